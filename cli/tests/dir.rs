//! `portlock dir`, and that read-only commands create nothing.

use std::process::Command;

#[cfg(target_os = "linux")]
use portlock_testkit::portlock;
use portlock_testkit::{FAILED, Said, Scene, answer};
use serde_json::Value;

#[test]
fn the_lock_directory_is_printed_with_its_origin() {
    let scene = Scene::new(1);
    let other = Scene::new(1);
    let dir = |options: &[&str]| {
        let mut dir = scene.program(["dir"]);
        dir.args(options);
        dir
    };
    let named = other.dir().to_str().expect("UTF-8");
    for (dir, path, origin) in [
        (
            dir(&["--lock-dir", named]),
            other.dir(),
            "named by the caller",
        ),
        (dir(&[]), scene.dir(), "named by PORTLOCK_DIR"),
    ] {
        let mut as_json = Command::new(dir.get_program());
        as_json.args(dir.get_args()).arg("--json");
        let variables = dir
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?)));
        as_json.envs(variables);
        let path = path.to_str().expect("UTF-8");
        let printed = answer(dir).code(0).warns_of_nothing();
        let expected = format!("{path}\n{origin}; private to this user\n");
        assert!(printed.out().starts_with(&expected), "{}", printed.out());
        let printed = answer(as_json).code(0).json();
        assert_eq!(printed["path"], path);
        assert_eq!(printed["origin"], origin);
        assert_eq!(printed["shared"], false);
    }
    #[cfg(unix)]
    {
        portlock_testkit::set_mode(scene.dir(), 0o1777);
        let printed = answer(dir(&[])).code(0);
        assert!(printed.out().contains("shared with other users\n"));
        let printed = scene.portlock(["dir", "--json"]).code(0).json();
        assert_eq!(printed["shared"], true);
    }

    let mut relative = dir(&[]);
    relative.env("PORTLOCK_DIR", "relative");
    let refused = answer(relative).code(FAILED).prints_just("");
    refused.warns("PORTLOCK_DIR=relative is not an absolute path");
}

#[test]
fn an_overridden_directory_is_named_if_ports_are_leased_in_it() {
    let (scene, other) = (Scene::new(1), Scene::new(1));
    let named = other.dir().to_str().expect("UTF-8");
    // Other directories of this user may contain leases that are not ours.
    let leases_in_scene = || {
        let printed = scene.portlock(["dir", "--lock-dir", named, "--json"]);
        let printed = printed.code(0).json();
        let others = printed["others"].as_array().expect("a list").clone();
        let path = scene.dir().to_str();
        let is_it = |other: &&Value| other["path"].as_str() == path;
        let leases = others.iter().find(is_it).map(|other| &other["leases"]);
        leases.and_then(Value::as_u64)
    };
    assert_eq!(leases_in_scene(), None);
    let pid = std::process::id().to_string();
    scene.portlock(["pick", "--pid", &pid]).code(0);
    assert_eq!(leases_in_scene(), Some(1));
    let printed = scene.portlock(["dir", "--lock-dir", named]).code(0);
    let expected = format!("\n1 port is leased in {}", scene.dir().display());
    assert!(printed.out().contains(&expected), "{}", printed.out());
    // The directory in use is not listed as another one.
    let printed = scene.portlock(["dir"]).code(0);
    assert!(!printed.out().contains(&expected), "{}", printed.out());
    scene
        .portlock(["release", &scene.port().to_string()])
        .code(0);
    assert_eq!(leases_in_scene(), None);
}

// By its mode, root may write to /proc, but no file can be created there.
#[cfg(target_os = "linux")]
#[test]
fn a_directory_in_which_no_lock_file_can_be_created_is_a_failure() {
    let scene = Scene::new(1);
    for args in [&["dir"][..], &["dir", "--json"]] {
        let mut dir = scene.program(args);
        dir.env("PORTLOCK_DIR", "/proc");
        let printed = answer(dir).code(FAILED);
        printed.warns("cannot create a lock file in /proc: ");
    }
    scene.portlock(["dir"]).code(0);
    let mut left = std::fs::read_dir(scene.dir()).expect("our own directory");
    assert!(left.next().is_none());
}

/// Returns a script in a mount namespace in which portlock can be executed, or `None`.
#[cfg(target_os = "linux")]
fn in_mount_namespace(scene: &Scene, script: &str) -> Option<Command> {
    if ["/tmp", "/run"]
        .iter()
        .any(|dir| portlock().starts_with(dir))
    {
        eprintln!("skipped: portlock is in a directory that the test covers");
        return None;
    }
    let fresh = "set -e; mount -t tmpfs none /run; mount -t tmpfs none /tmp";
    let mut command = scene.in_namespace("--mount", &format!("{fresh}; {script}"))?;
    command.env_remove("PORTLOCK_DIR");
    command.env_remove("XDG_RUNTIME_DIR");
    Some(command)
}

#[cfg(target_os = "linux")]
#[test]
fn read_only_commands_create_no_default_directory() {
    let scene = Scene::new(1);
    let port = scene.port();
    let script = format!(
        "portlock dir; portlock dir --json; portlock list --all; portlock clean;
         portlock release {port} && exit 9; ls -A /tmp; test ! -e /run/portlock"
    );
    let Some(command) = in_mount_namespace(&scene, &script) else {
        return;
    };
    let printed = answer(command).code(0).warns("it is not leased");
    let out = printed.out();
    for part in [
        "this user's own in /tmp; private to this user\n",
        "no port is leased\n",
        "0 lock files removed, 0 kept\n",
    ] {
        assert!(out.contains(part), "no {part:?} in: {out}");
    }
    assert!(out.ends_with(" kept\n"), "created: {out}");
}

#[cfg(target_os = "linux")]
#[test]
fn other_directories_and_a_private_tmp_are_named() {
    let scene = Scene::new(1);
    let script = "
        portlock pick --pid $$ >/dev/null
        mkdir -m 1777 /run/portlock; portlock dir
        rmdir /run/portlock
        mkdir /tmp/systemd-private-1-x; mount --bind /tmp/systemd-private-1-x /tmp
        portlock dir; portlock dir --json";
    let Some(command) = in_mount_namespace(&scene, script) else {
        return;
    };
    let printed = answer(command).code(0);
    let (id, why) = (
        rustix::process::geteuid().as_raw(),
        "/tmp is private to this service (PrivateTmp= in systemd)",
    );
    let out = printed.out();
    for part in [
        "/run/portlock\ncreated by root for all users; shared with other users\n",
        &format!("\n1 port is leased in /tmp/portlock-{id}, which"),
        &format!("\n{why}: callers with another /tmp"),
        &format!("\"private_tmp\": \"{why}\""),
    ] {
        assert!(out.contains(part), "no {part:?} in: {out}");
    }
}

// Uses a name that is not UTF-8.
#[cfg(target_os = "linux")]
#[test]
fn a_path_is_printed_byte_for_byte_to_a_program_and_escaped_on_a_terminal() {
    use std::os::unix::ffi::OsStrExt as _;

    let scene = Scene::new(1);
    let name: &[u8] = b"a\x1b[31mb\xff\xe2\x80\xaec";
    let path = scene.dir().join(std::ffi::OsStr::from_bytes(name));
    std::fs::create_dir(&path).expect("our own directory");
    portlock_testkit::set_mode(&path, 0o700);
    let mut dir = scene.program(["dir"]);
    dir.env("PORTLOCK_DIR", &path);
    let said = answer(dir).code(0);
    let out = &said.get_output().stdout;
    assert!(
        out.starts_with(&[path.as_os_str().as_bytes(), b"\n"].concat()),
        "{out:?}"
    );

    let Some(mut terminal) = scene.on_terminal("portlock dir") else {
        return;
    };
    terminal.env("PORTLOCK_DIR", &path);
    let said = answer(terminal).code(0);
    let line = said.out().lines().next().expect("a line");
    let readable = ["a\\u{1b}[31mb", "\u{fffd}", "\\u{202e}c"].concat();
    assert!(line.contains(&readable), "{line}");
}
