//! `portlock pick`: leases for processes that are already running.

use std::{collections::HashSet, process::id};
#[cfg(unix)]
use std::{fs, process::Stdio};
#[cfg(target_os = "linux")]
use std::{fs::OpenOptions, os::unix::net::UnixStream, process::Command};

#[cfg(target_os = "linux")]
use portlock_testkit::FAILED;
use portlock_testkit::{EXHAUSTED, Said, Scene, TRUE};
#[cfg(unix)]
use portlock_testkit::{
    LEASED, OrdinaryUser, Running, am_root, answer, is_installed, set_mode, stress, until,
};

#[test]
fn the_lease_belongs_to_the_caller() {
    let scene = Scene::new(1);
    let pick = scene.portlock(["pick"]).code(0).warns_of_nothing();
    pick.prints_just(&format!("{}\n", scene.port()));
    scene.assert_leased(scene.port());
    let list = scene.list();
    assert_eq!(list[0]["pid"], id());
    assert_eq!(list[0]["state"], "delegated");
}

// Uses scripts of Unix shells.
#[cfg(unix)]
#[test]
fn in_a_shell_script_the_lease_lasts_as_long_as_the_script() {
    for shell in ["sh", "bash"] {
        if !is_installed(shell) {
            continue;
        }
        for script in [
            "port=$(portlock pick)",
            "port=`portlock pick`",
            "port=$(portlock pick) || exit",
            "set -e; trap 'echo over' EXIT; port=$(portlock pick)",
            "trap true INT TERM; port=$(portlock pick --label 'a b')",
            "export port=$(portlock pick)",
            "if port=$(portlock pick); then true; fi",
            "f() { local p=$(portlock pick); port=$p; }; f",
            // In these shells, the parent may not be the script.
            "port=$(portlock pick --pid $$ | cat)",
            "port=$(portlock pick --pid $$ 2>/dev/null || true)",
            "(portlock pick --pid $$) >port; read port <port",
        ] {
            let scene = Scene::new(1);
            let script = format!("{script}; echo $port; read line\n");
            let dir = tempfile::tempdir().expect("a temporary directory");
            let mut command = if cfg!(target_os = "macos") {
                // The bash 3.2 of macOS runs a command substitution in a subshell if the script is an
                // argument.
                let file = dir.path().join("script");
                fs::write(&file, &script).expect("our own directory");
                let mut command = scene.command(shell);
                command.arg(file);
                command
            } else {
                scene.script(shell, &script)
            };
            command.current_dir(dir.path());
            let mut shell = Running::start(command);
            assert_eq!(shell.hear(), scene.port().to_string(), "{script}");
            for _ in 0..2 {
                scene.assert_leased(scene.port());
            }
            assert_eq!(scene.list()[0]["pid"], shell.id(), "{script}");
            shell.say("end");
            shell.wait();
            scene.assert_leasable(scene.port());
        }
    }
}

#[test]
fn the_lease_lasts_as_long_as_the_named_process() {
    let scene = Scene::new(3);
    for n in 1..=3 {
        let idle = scene.idle();
        let pid = format!("--pid={}", idle.id());
        let pick = scene.portlock(["pick", &pid, &format!("-n{n}"), "--label=x y"]);
        let ports = pick.code(0).ports();
        assert_eq!(ports.iter().collect::<HashSet<_>>().len(), n);
        for lease in scene.list() {
            assert_eq!(lease["pid"], idle.id());
            assert_eq!(lease["label"], "x y");
            let program = if cfg!(windows) { "cmd.exe" } else { "cat" };
            assert_eq!(lease["program"], program);
        }
        assert_eq!(scene.list().len(), n);
        for &port in &ports {
            scene.assert_leased(port);
        }
        idle.kill();
        let all = ["run", "--timeout=0", "-n", "3", TRUE];
        scene.portlock(all).code(0);
    }
}

#[test]
fn it_can_print_its_ports_as_json() {
    let scene = Scene::new(9);
    let idle = scene.idle();
    let pid = idle.id().to_string();
    let pick = scene.portlock(["pick", "--json", "--pid", &pid]).code(0);
    let json = pick.json();
    assert_eq!(json["pid"], idle.id());
    assert_eq!(json["ports"].as_array().map(Vec::len), Some(1));

    let args = ["pick", "--json", "-n3", "--contiguous", "--pid", &pid];
    let json = scene.portlock(args).code(0).json();
    let ports = json["ports"].as_array().expect("an array");
    let ports: Vec<u64> = ports.iter().map(|p| p.as_u64().expect("a port")).collect();
    assert_eq!(ports, [ports[0], ports[0] + 1, ports[0] + 2]);
    assert_eq!(json.as_object().map(serde_json::Map::len), Some(2));
}

#[test]
fn all_ports_or_none() {
    let scene = Scene::new(3);
    scene.pick();
    let pick = scene.portlock(["pick", "-n3", "--timeout=0"]);
    pick.code(EXHAUSTED).prints_just("");
    assert_eq!(scene.list().len(), 1);
    let pick = scene.portlock(["pick", "-n2", "--timeout=0"]);
    assert_eq!(pick.code(0).ports().len(), 2);
}

// Uses /proc.
#[cfg(target_os = "linux")]
#[test]
fn an_ended_process_gets_no_lease() {
    let scene = Scene::new(1);
    // Ended but not reaped, so its pid has not been reused.
    let mut ended = Command::new("true").spawn().expect("true is installed");
    let pid = ended.id().to_string();
    until("the child's end", || {
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a child");
        state.contains(") Z ").then_some(())
    });
    let pick = || scene.portlock(["pick", "--pid", &pid]).code(FAILED);
    pick().prints_just("").warns(&pid);
    ended.wait().expect("our own child");
    pick().prints_just("").warns(&pid);
    scene.assert_no_lease();
    scene.assert_leasable(scene.port());
}

// Only Unix has zombies.
#[cfg(unix)]
#[test]
fn a_zombie_keeps_no_lease() {
    let scene = Scene::new(1);
    let mut idle = scene.command("cat");
    let mut idle = idle
        .stdin(Stdio::piped())
        .spawn()
        .expect("cat is installed");
    let pid = idle.id().to_string();
    scene.portlock(["pick", "--pid", &pid]).code(0);
    scene.assert_leased(scene.port());
    drop(idle.stdin.take());
    until("the zombie to release the port", || {
        let check = scene.check(scene.port());
        (check.get_output().status.code() == Some(0)).then_some(())
    });
    scene.assert_leasable(scene.port());
    idle.wait().expect("our own child");
}

#[test]
fn a_reused_pid_keeps_no_lease() {
    let scene = Scene::new(1);
    let (port, idle) = (scene.port(), scene.idle());
    let pid = idle.id().to_string();
    scene.portlock(["pick", "--pid", &pid]).code(0);
    for _ in 0..3 {
        scene.assert_leased(port);
        scene.portlock(["clean"]).code(0).prints("0 lock files");
    }
    let start = 2;
    scene.forge_word(port, start, "1");
    assert_eq!(scene.list().len(), 0);
    scene.assert_leasable(port);
    // The process itself is not affected.
    assert!(idle.finish().success());
}

/// If nothing was printed, nothing stays leased, not even for a moment.
#[cfg(target_os = "linux")]
#[track_caller]
fn assert_took_nothing(scene: &Scene, mut pick: Command) {
    let child = pick.stderr(Stdio::piped()).spawn().expect("it starts");
    let output = child.wait_with_output().expect("our own child");
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(FAILED), "{err}");
    let says = "portlock: cannot write to standard output: ";
    assert!(err.starts_with(says) && !err.contains("panicked"), "{err}");
    scene.assert_no_lease();
    for port in scene.ports() {
        scene.assert_leasable(port);
    }
}

#[cfg(target_os = "linux")]
const UNHEARD: [&[&str]; 3] = [&["pick"], &["pick", "--json"], &["pick", "-n2"]];

// Uses /dev/full and a Unix socket.
#[cfg(target_os = "linux")]
#[test]
fn ports_that_cannot_be_printed_are_not_leased() {
    let scene = Scene::new(2);
    for args in UNHEARD {
        let mut pick = scene.program(args);
        let full = OpenOptions::new().write(true).open("/dev/full");
        pick.stdout(full.expect("Linux has it"));
        assert_took_nothing(&scene, pick);

        // For a moment, a pipe would be kept open by a child that another test is spawning. Shutting
        // down a socket affects all copies of its descriptor.
        let (reader, writer) = UnixStream::pair().expect("descriptors left");
        reader.shutdown(std::net::Shutdown::Both).expect("ours");
        let mut pick = scene.program(args);
        pick.stdout(std::os::fd::OwnedFd::from(writer));
        assert_took_nothing(&scene, pick);
    }
}

// Uses scripts of Unix shells.
#[cfg(unix)]
#[test]
fn a_closed_standard_output_is_treated_like_dev_null() {
    let scene = Scene::new(1);
    // Rust's runtime replaces it with /dev/null before the program starts.
    for redirection in [">&-", ">/dev/null", "<&- >&-"] {
        let script = format!("portlock pick {redirection} && portlock list --json");
        let out = answer(scene.script("sh", &script)).code(0);
        assert!(out.out().contains("\"delegated\""), "{}", out.out());
        // The lease has ended with the shell.
        scene.assert_leasable(scene.port());
    }
}

// Uses scripts of Unix shells.
#[cfg(unix)]
#[test]
fn two_concurrent_shells_never_pick_the_same_port() {
    if !is_installed("bash") {
        return;
    }
    let each = stress(200).min(400);
    let scene = Scene::new(u16::try_from(2 * each + 20).expect("at most 820"));
    let script = format!(
        "for ((i = 0; i < {each}; i++)); do portlock pick --pid $$ || exit; done
        echo done; read line"
    );
    let shells = [(); 2].map(|()| Running::start(scene.script("bash", &script)));
    let picked = shells.each_ref().map(|shell| -> Vec<String> {
        let lines = std::iter::from_fn(|| shell.hear_or_end());
        lines.take_while(|line| line != "done").collect()
    });
    let all: HashSet<&String> = picked.iter().flatten().collect();
    assert_eq!(all.len(), 2 * each);
    let ports = all.iter().map(|port| port.parse().expect("a port"));
    assert!(ports.into_iter().all(|port| scene.ports().contains(&port)));

    let leased = |ports: &[String]| {
        let check = ["check"]
            .into_iter()
            .chain(ports.iter().map(String::as_str));
        let check = scene.portlock(check);
        let leased = check
            .out()
            .lines()
            .filter(|line| line.contains(" leased by pid "));
        (leased.count(), check.get_output().status.code())
    };
    assert_eq!(scene.list().len(), 2 * each);
    for ports in &picked {
        assert_eq!(leased(ports), (each, Some(LEASED)));
    }
    let [a, b] = shells;
    a.finish();
    assert_eq!(leased(&picked[0]), (0, Some(0)));
    assert_eq!(leased(&picked[1]), (each, Some(LEASED)));
    b.finish();
    assert_eq!(leased(&picked[1]), (0, Some(0)));

    // All of them can be leased in one call, although their lock files still exist.
    assert!(scene.lock_files() >= 2 * each);
    let (set, n) = (picked.concat().join(","), (2 * each).to_string());
    let run = ["run", "--timeout=0", "--ports", &set, "-n", &n, TRUE];
    scene.portlock(run).code(0);
}

// Runs as two Unix users.
#[cfg(unix)]
#[test]
fn a_lease_can_be_for_a_process_of_another_user() {
    if !am_root() {
        eprintln!("skipped: only root can run this as two users");
        return;
    }
    let (scene, user) = (Scene::new(1), OrdinaryUser::new());
    set_mode(scene.dir(), 0o1777);
    let idle = scene.idle();
    let pid = idle.id().to_string();
    user.portlock(&scene, &["pick", "--pid", &pid]).code(0);
    scene.assert_leased(scene.port());
    let check = user.portlock(&scene, &["check", &scene.port().to_string()]);
    check.code(LEASED);
    idle.kill();
    user.portlock(&scene, &["run", "--timeout=0", TRUE]).code(0);
    scene.assert_leasable(scene.port());
}
