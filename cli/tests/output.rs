//! Standard output that is closed, full or a terminal. Uses Unix devices, sockets and shells.

#![cfg(unix)]

use std::{
    fs::OpenOptions,
    net::Shutdown,
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::{Command, Output, Stdio},
};

use portlock_testkit::{EXHAUSTED, FAILED, Said, Scene, answer, is_installed};

/// Returns the command lines that print something and end.
fn printing(scene: &Scene) -> Vec<Vec<String>> {
    let port = scene.port();
    let check = [format!("check {port}"), format!("check --json {port}")];
    let rest = [
        "list",
        "list --all",
        "list --json",
        "list --map",
        "clean",
        "ports",
        "ports --json",
        "dir",
        "dir --json",
        "completions bash",
        "completions zsh",
        "man",
    ];
    lines(check.iter().map(String::as_str).chain(rest))
}

/// Splits command lines without quotes.
fn lines<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<Vec<String>> {
    let words = |line: &str| line.split(' ').map(str::to_owned).collect();
    lines.into_iter().map(words).collect()
}

/// Runs the command with this standard output, and returns its status and what it prints on standard
/// error.
#[track_caller]
fn end_with(mut command: Command, out: impl Into<Stdio>) -> (Option<i32>, String) {
    let child = command.stdout(out).stderr(Stdio::piped()).spawn();
    // The command keeps its own copy of this end of its output.
    drop(command);
    let output: Output = child
        .and_then(std::process::Child::wait_with_output)
        .expect("our own child");
    let err = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(!err.contains("panicked"), "{err}");
    (output.status.code(), err)
}

/// Returns a stream that cannot be read by anyone.
///
/// For a moment, the reading end of a pipe would be kept open by a child that another test is spawning.
/// Shutting down a socket affects all copies of its descriptor.
fn broken() -> OwnedFd {
    let (reader, writer) = UnixStream::pair().expect("descriptors left");
    reader.shutdown(Shutdown::Both).expect("our own");
    writer.into()
}

#[test]
fn a_closed_reader_is_not_a_failure() {
    let scene = Scene::new(1);
    let others = lines([
        "--help",
        "run --help",
        "--version",
        "list --watch",
        "list --watch --map",
        "list --watch --json",
    ]);
    for args in printing(&scene).into_iter().chain(others) {
        let (status, err) = end_with(scene.program(&args), broken());
        assert_eq!((status, &err[..]), (Some(0), ""), "{args:?}");
    }
}

// Uses /dev/full.
#[cfg(target_os = "linux")]
#[test]
fn a_full_device_is_a_failure() {
    let scene = Scene::new(1);
    for args in printing(&scene).into_iter().chain(lines(["list --watch"])) {
        let full = OpenOptions::new().write(true).open("/dev/full");
        let (status, err) = end_with(scene.program(&args), full.expect("Linux has it"));
        assert_eq!(status, Some(FAILED), "{args:?}");
        let says = "portlock: cannot write to standard output: ";
        assert!(err.starts_with(says) && err.contains("No space"), "{err}");
    }
}

#[test]
fn the_null_device_is_not_a_failure() {
    let scene = Scene::new(1);
    for args in printing(&scene) {
        // Python opens subprocess.DEVNULL for reading too.
        for read in [false, true] {
            let null = OpenOptions::new().read(read).write(true).open("/dev/null");
            let (status, err) = end_with(scene.program(&args), null.expect("Linux has it"));
            assert_eq!((status, &err[..]), (Some(0), ""), "{args:?}");
        }
    }
}

#[test]
fn in_a_pipeline_the_reader_may_end_first() {
    if !is_installed("bash") {
        return;
    }
    let scene = Scene::new(1);
    for line in [
        "portlock list --watch",
        "portlock list --watch --map",
        "portlock list --watch --json",
        "portlock completions bash",
        "portlock man",
        "portlock --help",
    ] {
        let script = format!("{line} | head -n 1; echo ${{PIPESTATUS[@]}}");
        let shell = answer(scene.script("bash", &script)).code(0);
        let shell = shell.warns_of_nothing();
        let lines: Vec<&str> = shell.out().lines().collect();
        assert!(lines.len() == 2 && lines[1] == "0 0", "{line}: {lines:?}");
    }
}

#[test]
fn closed_descriptors_are_harmless() {
    let scene = Scene::new(1);
    for args in printing(&scene) {
        for closed in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"] {
            let script = format!("portlock {} {closed}", args.join(" "));
            let shell = answer(scene.script("sh", &script));
            let status = shell.get_output().status.code();
            // With standard output closed, success and failure are both accepted.
            let failed = status == Some(FAILED) && closed.contains(">&-");
            assert!(failed || status == Some(0), "{script}: {status:?}");
        }
    }
    for closed in ["2>&-", ">&- 2>&-"] {
        let script = format!("portlock nonsense {closed}");
        answer(scene.script("sh", &script)).code(FAILED);
        let script = format!("portlock release 1 {closed}");
        answer(scene.script("sh", &script)).code(FAILED);
    }
}

const ESC: char = '\u{1b}';

#[test]
fn output_to_a_pipe_has_no_colors() {
    let scene = Scene::new(2);
    let (_holder, _) = scene.hold(&[]);
    scene.pick();
    let others = lines([
        "--help",
        "run --help",
        "help list",
        "nonsense",
        "run",
        "run --timeout=0 true",
    ]);
    for args in printing(&scene).into_iter().chain(others) {
        for term in ["xterm-256color", "dumb"] {
            let mut command = scene.program(&args);
            command.env("TERM", term).env("COLORTERM", "truecolor");
            let said = answer(command);
            assert!(!said.out().contains(ESC), "{args:?}: {}", said.out());
            assert!(!said.err().contains(ESC), "{args:?}: {}", said.err());
        }
    }
}

#[test]
fn output_to_a_terminal_has_colors_unless_they_are_disabled() {
    let scene = Scene::new(2);
    scene.pick();
    let lines = [
        "portlock list --map",
        "portlock --help",
        "portlock nonsense",
        "portlock run --help",
    ];
    for line in lines {
        let Some(command) = scene.on_terminal(line) else {
            return;
        };
        let said = answer(command);
        assert!(said.out().contains(ESC), "{line}: {}", said.out());
        for (name, value) in [("NO_COLOR", "1"), ("TERM", "dumb")] {
            let Some(mut command) = scene.on_terminal(line) else {
                return;
            };
            command.env(name, value);
            let plain = answer(command);
            assert!(!plain.out().contains(ESC), "{line}: {}", plain.out());
        }
    }
    // A lease is bold yellow, and in the same place as without colors.
    let Some(map) = scene.on_terminal(lines[0]) else {
        return;
    };
    let map = answer(map).code(0);
    let lease = "\u{1b}[1m\u{1b}[33mo\u{1b}[0m";
    assert_eq!(map.out().matches(lease).count(), 2, "{}", map.out());
    assert!(map.out().contains("leased, not bound yet: 1"));
}

#[test]
fn on_a_terminal_each_refreshed_list_replaces_the_previous_one() {
    let scene = Scene::new(1);
    let Some(watch) = scene.on_terminal("portlock list --watch") else {
        return;
    };
    let watch = portlock_testkit::Running::start(watch);
    // Move the cursor home and clear the screen below it (CUP and ED in ECMA-48).
    for _ in 0..2 {
        assert_eq!(watch.hear(), "\u{1b}[H\u{1b}[Jno port is leased");
    }
}

#[test]
fn on_a_terminal_a_long_wait_prints_the_port_and_its_holder() {
    let scene = Scene::new(1);
    let port = scene.port();
    let lines = [
        ("portlock run --timeout=60 echo ran", "ran".to_owned()),
        ("portlock pick --timeout=60 --pid $$", port.to_string()),
        (
            &format!("portlock wait --free --timeout=60 {port} && echo free"),
            "free".to_owned(),
        ),
    ];
    for (line, then) in lines {
        let (holder, _) = scene.hold(&["--label", "api tests"]);
        let Some(command) = scene.on_terminal(line) else {
            return;
        };
        let waiting = portlock_testkit::Running::start(command);
        let said = waiting.hear();
        let start = format!("portlock: waiting: no free port in {port} after ");
        let by = format!("1 leased ({port} by pid {} ", holder.id());
        assert!(
            said.starts_with(&start) && said.contains(&by) && said.ends_with("(api tests))"),
            "{said}"
        );
        holder.kill();
        // The notice is printed once, followed by the command's output.
        assert_eq!(waiting.hear(), then, "{line}");
        drop(waiting);
        scene.release_all();
    }
}

#[test]
fn a_wait_is_not_announced_without_a_terminal() {
    let scene = Scene::new(1);
    let (_holder, _) = scene.hold(&[]);
    let run = scene.portlock(["run", "--timeout=1200ms", "true"]);
    let failed = run.code(EXHAUSTED);
    let text = failed.err();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("no free port"), "{text}");
}
