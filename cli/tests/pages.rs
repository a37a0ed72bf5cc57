//! The pages in `docs/`: their commands print what the pages show.

#![cfg(target_os = "linux")]

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use portlock_testkit::{Scene, am_root, is_installed, portlock};

/// Returns the directory of the pages.
fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("docs")
}

/// Returns the paths of all pages.
fn pages() -> Vec<PathBuf> {
    let mut pages = Vec::new();
    let mut dirs = vec![docs()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension() == Some(OsStr::new("md")) {
                pages.push(path);
            }
        }
    }
    pages.sort();
    pages
}

/// Returns the blocks of commands with their output. Commands after a `#` are for root to run manually.
fn sessions(page: &str) -> Vec<&str> {
    let blocks = page.split("\n```console\n").skip(1);
    blocks
        .map(|block| block.split("\n```\n").next().expect("one part at least"))
        .filter(|session| session.starts_with("$ "))
        .collect()
}

/// Returns a shell script that runs the commands of a session and prints it as the page does.
///
/// Each session has its own network and directories, and portlock is installed where all containers
/// find it.
fn script(session: &str) -> String {
    let commands = session.lines().filter_map(|line| line.strip_prefix("$ "));
    let runs = commands.map(|command| {
        let quoted = command.replace('\'', r"'\''");
        format!("printf '%s\\n' '$ {quoted}'; {{ {command}; }} 2>&1\n")
    });
    let fresh = format!(
        "umask 022; set -e
         mount -t tmpfs none /usr/local/bin; cp {} /usr/local/bin/portlock
         mount -t tmpfs none /run; mount -t tmpfs none /tmp; cd /
         mkdir /tmp/home; export HOME=/tmp/home
         export PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
         ip link set lo up
         set +e\n",
        portlock().display()
    );
    fresh + &runs.collect::<String>()
}

/// Returns the text without the parts that vary: pids and, in the rows of `portlock list`, ages and column
/// widths.
fn comparable(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let is_row = line.starts_with("PORT ") || line.starts_with(|c: char| c.is_ascii_digit());
        if !is_row || !line.contains("  ") {
            return without_pids(line);
        }
        let words = line.split_whitespace().enumerate();
        let words = words.map(|(column, word)| {
            let unit = word.trim_start_matches(|c: char| c.is_ascii_digit());
            let is_pid_or_age = unit.len() < word.len() && ["", "s", "m", "h"].contains(&unit);
            if column > 0 && is_pid_or_age {
                "N"
            } else {
                word
            }
        });
        without_pids(&words.collect::<Vec<_>>().join(" "))
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Returns the line with each pid replaced by `N`.
fn without_pids(line: &str) -> String {
    let mut parts = line.split("pid ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |line, part| {
        line + "pid N" + part.trim_start_matches(|c: char| c.is_ascii_digit())
    })
}

/// Returns whether the machine has everything that the session needs.
fn can_run(session: &str) -> bool {
    let tools = ["bwrap", "unshare", "setpriv", "systemd-nspawn"];
    let mut needed = tools.into_iter().filter(|tool| session.contains(tool));
    if !needed.all(is_installed) {
        return false;
    }
    // From within a container, it cannot be proven that a process in another one has ended.
    let namespace = fs::read_link("/proc/self/ns/pid").expect("Linux has it");
    let is_first = namespace == Path::new("pid:[4026531836]");
    if session.contains("unshare --pid") && !is_first {
        eprintln!("skipped: this is a container itself");
        return false;
    }
    true
}

#[test]
fn each_command_prints_what_its_page_shows() {
    // The root user of a container may have only some user ids.
    let users = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if !am_root() || !users.contains("4294967295") {
        eprintln!("skipped: only the machine's root user can create what all users share");
        return;
    }
    if ["/tmp", "/run", "/usr/local/bin"]
        .iter()
        .any(|dir| portlock().starts_with(dir))
    {
        eprintln!("skipped: portlock is in a directory that the test covers");
        return;
    }
    let pages: Vec<(PathBuf, String)> = pages()
        .into_iter()
        .map(|path| (path.clone(), fs::read_to_string(path).expect("a page")))
        .collect();
    let sessions = pages.iter().flat_map(|(path, page)| {
        let sessions = sessions(page).into_iter();
        sessions.map(move |session| (path, session))
    });
    let (mut count, mut differ) = (0, Vec::new());
    for (path, session) in sessions {
        count += 1;
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
        let (said, shown) = (comparable(said.trim_end()), comparable(session));
        if said != shown {
            let path = path.display();
            differ.push(format!("-- {path} shows:\n{shown}\n-- but it is:\n{said}"));
        }
    }
    assert!(count > 5, "the pages' format has changed");
    assert!(differ.is_empty(), "{}", differ.join("\n\n"));
}

/// The init container of the page's pod, run as Kubernetes would run it.
#[test]
fn the_pod_of_the_guide_creates_the_directory_that_it_names() {
    let page = fs::read_to_string(docs().join("containers.md")).expect("the page");
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
