//! The guide on containers, `docs/containers.md`: its commands do what the page shows.

#![cfg(target_os = "linux")]

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use portlock_testkit::{Scene, am_root, is_installed, portlock};

/// The page.
fn page() -> String {
    let cli = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(cli.with_file_name("docs").join("containers.md")).expect("the page")
}

/// The blocks of commands with their output.
fn sessions(page: &str) -> Vec<&str> {
    let blocks = page.split("\n```console\n").skip(1);
    blocks
        .map(|block| block.split("\n```\n").next().expect("one part at least"))
        .collect()
}

/// A shell script that runs the commands of a session and prints it as the page does.
///
/// Each session has its own network and directories, with portlock where all containers
/// find it.
fn script(session: &str) -> String {
    let commands = session.lines().filter_map(|line| line.strip_prefix("$ "));
    let runs = commands.map(|command| {
        let quoted = command.replace('\'', r"'\''");
        format!("echo '$ {quoted}'; {{ {command}; }} 2>&1\n")
    });
    let fresh = format!(
        "umask 022; set -e
         mount -t tmpfs none /usr/local/bin; cp {} /usr/local/bin/portlock
         mount -t tmpfs none /run; mount -t tmpfs none /tmp; cd /
         export PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
         set +e\n",
        portlock().display()
    );
    fresh + &runs.collect::<String>()
}

/// With one number for all pids, which the page cannot know.
fn without_pids(text: &str) -> String {
    let mut parts = text.split("by pid ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        text + "by pid N" + part.trim_start_matches(|c: char| c.is_ascii_digit())
    })
}

/// Whether everything that the session needs is here.
fn can_run(session: &str) -> bool {
    let tools = ["bwrap", "unshare", "setpriv", "systemd-nspawn"];
    let mut needed = tools.into_iter().filter(|tool| session.contains(tool));
    if !needed.all(is_installed) {
        return false;
    }
    // From a container, the end of a process in another one cannot be proven.
    let namespace = fs::read_link("/proc/self/ns/pid").expect("Linux has it");
    let is_first = namespace == Path::new("pid:[4026531836]");
    if session.contains("unshare --pid") && !is_first {
        eprintln!("left out: this is a container itself");
        return false;
    }
    true
}

#[test]
fn each_command_of_the_guide_prints_what_it_shows() {
    let page = page();
    // Root of a container has only some users.
    let users = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if !am_root() || !users.contains("4294967295") {
        eprintln!("left out: it takes the machine's root to create what all users share");
        return;
    }
    if ["/tmp", "/run", "/usr/local/bin"]
        .iter()
        .any(|dir| portlock().starts_with(dir))
    {
        eprintln!("left out: portlock is in a directory that the test covers");
        return;
    }
    let sessions = sessions(&page);
    assert!(sessions.len() > 5, "the page's format has changed");
    let mut differ = Vec::new();
    for session in sessions {
        let scene = Scene::new(1);
        let command = scene.in_namespace("--mount --net", &script(session));
        let Some(mut command) = command.filter(|_| can_run(session)) else {
            continue;
        };
        for variable in ["PORTLOCK_DIR", "PORTLOCK_PORTS", "XDG_RUNTIME_DIR"] {
            command.env_remove(variable);
        }
        let output = command
            .stdin(Stdio::null())
            .output()
            .expect("it was run before");
        let said = String::from_utf8_lossy(&output.stdout);
        let (said, shown) = (without_pids(said.trim_end()), without_pids(session));
        if said != shown {
            differ.push(format!("-- shown:\n{shown}\n-- but is:\n{said}"));
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n\n"));
}

/// The init container of the page's pod, run as Kubernetes would run it.
#[test]
fn the_pod_of_the_guide_creates_the_directory_that_it_names() {
    let page = page();
    let value = |key: &str| {
        let (_, rest) = page.split_once(key).expect("on the page");
        rest.split(['}', '\n']).next().expect("one part").trim()
    };
    let named = value("PORTLOCK_DIR, value:");
    let words = value("command: ").trim_matches(['[', ']']);
    let words: Vec<&str> = words
        .split(", ")
        .map(|word| word.trim_matches('"'))
        .collect();
    assert_eq!(words.last(), Some(&named));

    let scene = Scene::new(1);
    let volume = tempfile::tempdir().expect("a temporary directory");
    portlock_testkit::set_mode(volume.path(), 0o2777);
    let dir = volume.path().join("portlock");
    let status = Command::new(words[0])
        .args(&words[1..words.len() - 1])
        .arg(&dir)
        .status();
    assert!(status.expect("mkdir is installed").success());
    let mut leased = scene.program(["run", "--", "echo", "leased"]);
    leased.env("PORTLOCK_DIR", &dir);
    portlock_testkit::answer(leased).code(0).stdout("leased\n");
}
