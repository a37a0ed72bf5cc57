//! The command line: the help, and invalid arguments with their exit statuses.

use std::net::TcpListener;
#[cfg(unix)]
use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::symlink},
};

#[cfg(unix)]
use portlock_testkit::{BOUND, OrdinaryUser, am_root, low_ports_are_privileged, set_mode};
use portlock_testkit::{
    EXHAUSTED, FAILED, NAME, Running, Said, Scene, TIMED_OUT, TRUE, shell, until, value,
};

/// The commands, as the help lists them.
fn listed_commands(scene: &Scene) -> Vec<String> {
    let help = scene.portlock(["--help"]).code(0).warns_of_nothing();
    let commands = help.out().split("Commands:\n").nth(1).expect("a list");
    let commands = commands.lines().take_while(|line| !line.is_empty());
    let name = |line: &str| line.split_whitespace().next().map(str::to_owned);
    commands.filter_map(name).collect()
}

#[test]
fn each_command_has_help() {
    let scene = Scene::new(1);
    let commands = listed_commands(&scene);
    for command in [
        "run",
        "pick",
        "env",
        "port",
        "list",
        "check",
        "wait",
        "release",
        "clean",
        "ports",
        "dir",
        "completions",
        "man",
    ] {
        assert!(commands.iter().any(|listed| listed == command), "{command}");
    }
    for command in commands.iter().filter(|command| *command != "help") {
        let usage = format!("\nUsage: portlock {command}");
        for args in [[&command[..], "--help"], [command, "-h"], ["help", command]] {
            let help = scene.portlock(args).code(0).warns_of_nothing();
            assert!(help.out().contains(&usage), "{}", help.out());
        }
    }
    assert_eq!(scene.lock_files(), 0);
}

#[test]
fn the_help_lists_exit_statuses_and_environment_variables() {
    let scene = Scene::new(1);
    let help = scene.portlock(["--help"]).code(0);
    for word in [
        " 75 ",
        " 124 ",
        " 125 portlock itself failed, or its arguments are not valid\n",
        " 126 ",
        " 127 ",
        "PORTLOCK_DIR",
        "PORTLOCK_PORTS",
        "PORTLOCK_PORTS_FILE",
        "NO_COLOR",
    ] {
        assert!(help.out().contains(word), "{word}");
    }
}

#[test]
fn the_version_is_the_package_version() {
    let version = format!("portlock {}\n", env!("CARGO_PKG_VERSION"));
    for option in ["--version", "-V"] {
        let scene = Scene::new(1);
        scene.portlock([option]).code(0).prints_just(&version);
    }
}

#[test]
fn without_a_command_it_prints_usage() {
    let scene = Scene::new(1);
    let none: [&str; 0] = [];
    scene
        .portlock(none)
        .code(FAILED)
        .prints_just("")
        .warns("Usage: portlock");
}

/// Asserts that the command exits with 125, prints why on standard error only, and leases nothing.
#[track_caller]
fn assert_refused(scene: &Scene, args: &[&str], why: &str) {
    eprintln!("portlock {args:?}");
    scene.portlock(args).code(FAILED).prints_just("").warns(why);
    assert_eq!(scene.lock_files(), 0);
}

#[test]
fn an_invalid_command_line_is_refused() {
    let scene = Scene::new(1);
    for (args, why) in [
        (&["nonsense"][..], "nonsense"),
        (&["Run", TRUE], "Run"),
        (&["--nonsense"], "--nonsense"),
        (&["help", "nonsense"], "nonsense"),
        (&["run"], "CMD"),
        (&["run", "--"], "CMD"),
        (&["run", "--timeout", "1"], "CMD"),
        (&["pick", "4000"], "4000"),
        (&["list", "4000"], "4000"),
        (&["check"], "PORT"),
        (&["wait"], "PORT"),
        (&["wait", "--free"], "PORT"),
        (&["release"], "PORT"),
        (&["clean", "4000"], "4000"),
        (&["dir", "/"], "/"),
        (&["port"], "NAME"),
        (&["port", "web", "api"], "api"),
        (&["port", "Web"], "is not a name"),
        (&["port", "web", "--ports=x"], "x"),
        (&["env", "-"], "is not a name"),
        (&["env", "--format=toml"], "toml"),
        (&["stop"], "NAME"),
        (&["run", "--name=1", TRUE], "is not a name"),
        (&["run", "--root=.", TRUE], "--name"),
        (&["run", "--or-any", TRUE], "--name"),
        (&["pick", "--name=web", "--name=web"], "web twice"),
        (&["completions"], "SHELL"),
        (&["completions", "nonsense"], "nonsense"),
        (&["man", "/", "/"], "/"),
        (&["ports", "4000", "4001"], "4001"),
        (&["--lock-dir"], "--lock-dir"),
    ] {
        assert_refused(&scene, args, why);
    }
}

#[test]
fn a_misspelled_option_of_run_is_not_mistaken_for_the_command() {
    let scene = Scene::new(1);
    assert_refused(&scene, &["run", "--prots", "4000", TRUE], "--prots");
    assert_refused(&scene, &["run", "-x", TRUE], "-x");
}

#[test]
fn the_number_of_ports_may_directly_follow_its_short_option() {
    let scene = Scene::new(2);
    for option in [&["-n2"][..], &["-n", "2"], &["--number=2"]] {
        let pick = [&["pick"], option].concat();
        assert_eq!(scene.portlock(&pick).code(0).ports().len(), 2);
        scene.release_all();
        let line = format!("echo {}", value("PORT_2"));
        let run = [&["run"], option, &shell(&line)].concat();
        assert_eq!(scene.portlock(&run).code(0).ports().len(), 1);
    }
}

#[test]
fn options_that_exclude_each_other_are_refused() {
    let scene = Scene::new(2);
    for args in [
        &["run", "--env", "A", "-n", "2", TRUE][..],
        &["run", "-n", "1", "--env", "A", TRUE],
        &["run", "--udp", "--tcp-and-udp", TRUE],
        &["run", "--listen", "--udp", TRUE],
        &["run", "--listen", "--tcp-and-udp", TRUE],
        &["run", "--listen", "--contiguous", "-n", "2", TRUE],
        &["pick", "--udp", "--tcp-and-udp"],
        &["list", "--map", "--json"],
        &["run", "--name=a", "-n", "2", TRUE],
        &["run", "--name=a", "--env=A", TRUE],
        &["run", "--name=a", "--contiguous", TRUE],
        &["pick", "--name=a", "--prefer=b"],
        &["list", "--map", "--name=a"],
        &["ports", "--server", "--ephemeral"],
        &["ports", "--server", "4000"],
        &["ports", "--ephemeral", "4000"],
    ] {
        assert_refused(&scene, args, "cannot be used with");
    }
    // A listener can be bound to only one address.
    let two = ["run", "--listen", "--host=127.0.0.1", "--host=::1", TRUE];
    // On Windows the option does not exist.
    let why = if cfg!(windows) {
        "--listen"
    } else {
        "one host"
    };
    assert_refused(&scene, &two, why);
}

#[test]
fn an_invalid_port_set_is_refused() {
    let scene = Scene::new(1);
    for set in ["x", "0", "65536", "1-65536", "9-1", "-5", "1-", "!", "1;2"] {
        let option = format!("--ports={set}");
        for command in [&["run", &option, TRUE][..], &["pick", &option]] {
            assert_refused(&scene, command, set);
        }
        assert_refused(&scene, &["list", &option], set);
        assert_refused(&scene, &["ports", "--", set], set);
    }
    // Valid sets without any ports.
    for set in ["", ",", "#4000", "4000,!4000"] {
        let option = format!("--ports={set}");
        assert_refused(&scene, &["run", &option, TRUE], "no ports to choose from");
        assert_refused(&scene, &["pick", &option], "no ports to choose from");
    }
}

#[test]
fn an_invalid_port_is_refused() {
    let scene = Scene::new(1);
    for port in [
        "0",
        "65536",
        "X",
        "",
        "4000-4001",
        "4000,4001",
        "99999999999",
    ] {
        for command in ["check", "wait", "release"] {
            assert_refused(&scene, &[command, port], "not a port from 1 to 65535");
        }
    }
    let good = scene.port().to_string();
    assert_refused(&scene, &["check", &good, "0"], "not a port");
    // A name without a reservation, and an invalid name.
    for (name, why) in [
        ("x", "no port is reserved as x"),
        ("x!", "\"x!\" is not a name"),
    ] {
        for command in [
            &["check", name][..],
            &["wait", "--free", name],
            &["release", name],
        ] {
            assert_refused(&scene, command, why);
        }
    }
    assert_refused(&scene, &["check", "-1"], "-1");
}

#[test]
fn an_invalid_number_of_ports_is_refused() {
    let scene = Scene::new(3);
    for number in ["0", "65536", "x", "", "1.5", "99999999999999999999"] {
        let option = format!("-n{number}");
        let number = format!("--number={number}");
        if option != "-n" {
            assert_refused(&scene, &["pick", &option], "not a number from 1 to 65535");
        }
        let run = ["run", &number, TRUE];
        assert_refused(&scene, &run, "not a number from 1 to 65535");
    }
    // More ports than the set has, so waiting cannot help.
    for option in [&["-n", "4"][..], &["-n", "4", "--contiguous"]] {
        let args = [&["run"], option, &[TRUE]].concat();
        assert_refused(&scene, &args, "were asked for");
    }
}

#[test]
fn an_invalid_timeout_is_refused_and_a_long_one_is_not() {
    let scene = Scene::new(1);
    let port = scene.port().to_string();
    for time in [
        "-1",
        "-0.1",
        "NaN",
        "inf",
        "-inf",
        "1e300",
        "x",
        "",
        "s",
        "1x",
        "-1s",
        "1s-",
        "1e3s",
        "99999999999999999999y",
    ] {
        let option = format!("--timeout={time}");
        for command in [
            &["run", &option, TRUE][..],
            &["pick", &option],
            &["wait", &option, &port],
            &["wait", "--free", &option, &port],
        ] {
            assert_refused(&scene, command, "not a time such as 30, 500ms, 2s or 1m");
        }
    }
    for time in [
        "0", "0.0", "1e-9", ".5", "1e19", "2s", "500ms", "1m", "0s", "1.5s", "1h 30m", "500y",
    ] {
        let option = format!("--timeout={time}");
        scene.portlock(["run", &option, TRUE]).code(0);
        scene.portlock(["wait", "--free", &option, &port]).code(0);
    }
}

#[test]
fn a_negative_value_is_an_invalid_value_of_its_option() {
    let scene = Scene::new(1);
    let port = scene.port().to_string();
    let time = "not a time such as 30, 500ms, 2s or 1m";
    for (args, why) in [
        (&["run", "--timeout", "-1", TRUE][..], time),
        (&["pick", "--timeout", "-1s"], time),
        (&["wait", "--timeout", "-0.5", &port], time),
        (&["pick", "-n", "-1"], "not a number from 1 to 65535"),
        (&["pick", "--pid", "-1"], "invalid value '-1' for '--pid"),
        (&["pick", "--ports", "-4000"], "invalid port set"),
        (&["check", "-1"], "not a port from 1 to 65535"),
        (&["wait", "-1"], "not a port from 1 to 65535"),
        (&["release", "-1"], "not a port from 1 to 65535"),
    ] {
        assert_refused(&scene, args, why);
    }
}

#[test]
fn the_value_of_reuse_address_as_a_separate_argument_is_refused() {
    let scene = Scene::new(1);
    for (value, args) in [
        ("no", &["pick", "--reuse-address", "no"][..]),
        ("yes", &["pick", "--reuse-address", "yes", "--json"]),
        ("no", &["serve", "--reuse-address", "no"]),
        // It would be taken as the command.
        ("no", &["run", "--reuse-address", "no", TRUE]),
        ("yes", &["run", "--reuse-address", "yes"]),
    ] {
        assert_refused(&scene, args, &format!(": --reuse-address={value}"));
    }
    // Here it is the command, or one of its arguments.
    let run = ["run", "--reuse-address", "--", "no"];
    scene.portlock(run).code(127).warns("cannot execute no");
    let run = [
        &["run", "--"],
        &shell("exit 5")[..],
        &["--reuse-address", "no"],
    ]
    .concat();
    scene.portlock(run).code(5);
}

#[test]
fn an_empty_port_set_is_an_invalid_value_of_its_option() {
    let scene = Scene::new(1);
    for command in [&["run", "--ports", "", TRUE][..], &["pick", "--ports", ""]] {
        assert_refused(&scene, command, "invalid value '' for '--ports <SET>'");
    }
}

#[test]
fn the_longest_timeout_does_not_overflow() {
    let scene = Scene::new(1);
    let (holder, port) = scene.hold(&[]);
    let port = port.to_string();
    let start = |args: &[&str]| Running::start(scene.program(args));
    let mut waiting = [
        start(&["run", "--timeout=1e19", TRUE]),
        start(&["wait", "--free", "--timeout=1e19", &port]),
    ];
    if cfg!(target_os = "linux") {
        // The lock file, and the wait queue.
        until("a wait queue", || (scene.lock_files() == 2).then_some(()));
    }
    holder.kill();
    for child in &mut waiting {
        assert!(child.wait().success());
    }
    let mut waiting = start(&["wait", "--timeout=1e19", &port]);
    let _server = TcpListener::bind(("127.0.0.1", scene.port())).expect("a free port");
    assert!(waiting.wait().success());
}

#[test]
fn an_invalid_variable_name_is_refused() {
    let scene = Scene::new(2);
    for name in ["", "1", "1A", "A-B", "A=B", "A B", "Ä", "{port}", "A\n"] {
        let option = format!("--env={name}");
        let run = ["run", &option, TRUE];
        assert_refused(&scene, &run, "not the name of a variable");
    }
}

#[test]
fn a_variable_that_is_named_twice_is_refused() {
    // It could hold only one of the ports.
    let scene = Scene::new(2);
    let run = ["run", "--env=A", "--env=A", TRUE];
    assert_refused(&scene, &run, "A");
}

#[test]
fn a_pid_without_a_process_is_refused() {
    let scene = Scene::new(1);
    for (pid, why) in [
        ("0", "cannot find process 0"),
        // Larger than any pid on Linux (PID_MAX_LIMIT).
        ("8388608", "cannot find process 8388608"),
        ("4294967295", "cannot find process 4294967295"),
        ("4294967296", "4294967296"),
        ("-1", "-1"),
        ("x", "'x'"),
        ("", "--pid"),
    ] {
        eprintln!("pick --pid={pid}");
        let option = format!("--pid={pid}");
        let pick = scene.portlock(["pick", &option]);
        pick.code(FAILED).prints_just("").warns(why);
        scene.assert_no_lease();
    }
    scene.assert_leasable(scene.port());
}

#[test]
fn a_host_that_is_neither_an_address_nor_a_name_is_refused() {
    let scene = Scene::new(1);
    // Labels have at most 63 letters (RFC 1035), so no name server is queried.
    let long = "x".repeat(64);
    for (host, why) in [
        ("127.0.0", "neither an address nor a name"),
        ("1", "neither an address nor a name"),
        ("", "neither an address nor a name"),
        ("127.0.0.1:80", "neither an address nor a name"),
        ("[::1]", "neither an address nor a name"),
        ("fe80::1%lo", "neither an address nor a name"),
        ("localhost:80", "neither an address nor a name"),
        (&long, "cannot be resolved"),
    ] {
        let option = format!("--host={host}");
        for command in [
            &["run", &option, TRUE][..],
            &["pick", &option],
            &["wait", &option, "4000"],
            &["wait", "--free", &option, "4000"],
        ] {
            assert_refused(&scene, command, "--host");
            assert_refused(&scene, command, why);
        }
    }
    // TEST-NET-1 of RFC 5737: a valid address, but not of this machine.
    scene
        .portlock(["run", "--timeout=0", "--host=192.0.2.1", TRUE])
        .code(FAILED)
        .prints_just("")
        .warns("cannot bind TCP 192.0.2.1");
}

// Only on Unix can an argument be arbitrary bytes.
#[cfg(unix)]
#[test]
fn what_is_not_utf8_is_refused_where_text_is_meant() {
    let scene = Scene::new(1);
    let bytes = OsStr::from_bytes(b"\xff");
    for command in [
        [OsStr::new("pick"), OsStr::new("--label"), bytes],
        [OsStr::new("pick"), OsStr::new("--ports"), bytes],
        [OsStr::new("check"), OsStr::new("4000"), bytes],
    ] {
        scene.portlock(command).code(FAILED).warns("UTF-8");
    }
    scene.assert_no_lease();
}

/// Returns arguments for each command that uses the lock directory.
#[cfg(unix)]
fn commands(port: &str) -> [Vec<&str>; 13] {
    [
        vec!["run", TRUE],
        vec!["pick"],
        vec!["env"],
        vec!["env", "web"],
        vec!["port", "web"],
        vec!["stop", "--all"],
        vec!["list"],
        vec!["list", "--map"],
        vec!["check", port],
        vec!["wait", "--free", port],
        vec!["release", port],
        vec!["clean"],
        vec!["dir"],
    ]
}

// Uses Unix modes and links.
#[cfg(unix)]
#[test]
fn a_lock_directory_that_is_missing_or_cannot_be_trusted_is_refused() {
    let scene = Scene::new(1);
    let port = scene.port().to_string();
    let path = |name: &str| scene.dir().join(name);
    let make = |name: &str, mode| {
        fs::create_dir(path(name)).expect("our own directory");
        set_mode(&path(name), mode);
    };
    make("open to all", 0o777);
    make("open to the group", 0o770);
    make("private", 0o700);
    symlink("private", path("link")).expect("our own directory");
    fs::write(path("file"), "").expect("our own directory");
    for (name, why) in [
        ("missing", "No such file"),
        ("missing/too", "No such file"),
        ("file", "directory"),
        ("link", "symbolic link"),
        ("open to all", "not sticky"),
        ("open to the group", "not sticky"),
    ] {
        let dir = path(name);
        for args in commands(&port) {
            eprintln!("{name}: {args:?}");
            let mut by_option = scene.program(&args[..1]);
            by_option.arg("--lock-dir").arg(&dir).args(&args[1..]);
            let refused = portlock_testkit::answer(by_option)
                .code(FAILED)
                .prints_just("");
            refused.warns(why).warns(dir.to_str().expect("UTF-8"));
            let mut by_variable = scene.program(&args);
            by_variable.env("PORTLOCK_DIR", &dir);
            portlock_testkit::answer(by_variable)
                .code(FAILED)
                .warns(why);
        }
        // These commands do not use the lock directory.
        for args in [&["ports"][..], &["completions", "bash"], &["man"]] {
            let mut command = scene.program(args);
            command.env("PORTLOCK_DIR", &dir);
            portlock_testkit::answer(command).code(0);
        }
    }
    assert!(!path("missing").exists());
    scene
        .portlock(["list", "--lock-dir="])
        .code(FAILED)
        .prints_just("");
}

// Only on Unix can an argument be arbitrary bytes.
#[cfg(unix)]
#[test]
fn the_lock_directory_may_be_named_before_or_after_the_command() {
    let scene = Scene::new(1);
    let other = tempfile::tempdir().expect("a temporary directory");
    // The macOS file system allows only UTF-8 names.
    let name = if cfg!(target_os = "macos") {
        OsStr::new("with spaces: \u{ff}")
    } else {
        OsStr::from_bytes(b"not UTF-8: \xff")
    };
    let other = other.path().join(name);
    fs::create_dir(&other).expect("our own directory");
    let [option, run, list] = ["--lock-dir", "run", "list"].map(OsStr::new);
    let cmd = OsStr::new("true");
    let run_before = [option, other.as_os_str(), run, cmd];
    scene.portlock(run_before).code(0);
    assert_eq!(fs::read_dir(&other).expect("ours").count(), 1);
    let list = [list, option, other.as_os_str(), OsStr::new("--all")];
    let list = scene.portlock(list).code(0);
    assert!(list.out().contains("stale"), "{}", list.out());
    assert_eq!(scene.lock_files(), 0);
    // After CMD, the option belongs to CMD.
    let run = ["run", "echo", "--lock-dir", "/nowhere"];
    let run = scene.portlock(run).code(0);
    run.prints_just("--lock-dir /nowhere\n");
}

// Uses Unix modes and links.
#[cfg(unix)]
#[test]
fn a_lock_directory_that_is_not_writable_is_an_error() {
    let (scene, user) = (Scene::new(1), OrdinaryUser::new());
    user.give(scene.dir());
    set_mode(scene.dir(), 0o500);
    let port = scene.port().to_string();
    for args in [&["run", TRUE][..], &["pick"]] {
        let refused = user.portlock(&scene, args).code(FAILED);
        let refused = refused.prints_just("");
        refused.warns("Permission denied").warns("set PORTLOCK_DIR");
    }
    // To list and check, read access is enough.
    for args in [
        &["list"][..],
        &["check", &port],
        &["wait", "--free", "--timeout=0", &port],
    ] {
        user.portlock(&scene, args).code(0);
    }
    set_mode(scene.dir(), 0o300);
    let list = user.portlock(&scene, &["list"]).code(FAILED);
    list.warns("Permission denied");
    set_mode(scene.dir(), 0o700);
}

// Uses Unix modes and links.
#[cfg(unix)]
#[test]
fn a_lock_directory_of_another_user_is_refused() {
    if !am_root() {
        eprintln!("skipped: only root can run this as two users");
        return;
    }
    let (scene, user) = (Scene::new(1), OrdinaryUser::new());
    set_mode(scene.dir(), 0o755);
    for args in commands(&scene.port().to_string()) {
        let refused = user.portlock(&scene, &args).code(FAILED);
        refused.prints_just("").warns("portlock: ");
    }
    // A sticky, world-writable directory is shared.
    set_mode(scene.dir(), 0o1777);
    user.portlock(&scene, &["run", TRUE]).code(0);
    let dir = user.portlock(&scene, &["dir"]).code(0);
    assert!(dir.out().contains("shared"), "{}", dir.out());
}

#[test]
fn ports_that_others_have_end_it_with_75_and_say_who_has_them() {
    let scene = Scene::new(2);
    let mut ports = scene.ports();
    let (leased, bound) = (scene.port(), ports.nth(1).expect("two"));
    let only = leased.to_string();
    let (holder, _) = scene.hold(&["--label=api", "--ports", &only]);
    let server = TcpListener::bind(("127.0.0.1", bound)).expect("a free port");
    let pid = format!(
        "1 leased ({leased} by pid {} \"{NAME}\" (api))",
        holder.id()
    );
    for timeout in ["0", "0.1"] {
        let timeout = format!("--timeout={timeout}");
        for args in [
            &["run", &timeout, TRUE][..],
            &["run", "--listen", &timeout, TRUE],
            &["run", "-n", "2", &timeout, TRUE],
            &["run", "-n", "2", "--contiguous", &timeout, TRUE],
            &["pick", &timeout],
            &["pick", "-n2", &timeout],
            &["pick", "--json", &timeout],
        ] {
            // Windows does not support it.
            if cfg!(windows) && args.contains(&"--listen") {
                continue;
            }
            let refused = scene.portlock(args).code(EXHAUSTED).prints_just("");
            let waited = refused.err().contains(" after 0.");
            assert_eq!(waited, timeout != "--timeout=0", "{}", refused.err());
            if !args.contains(&"--contiguous") {
                refused.warns(&pid).warns("1 bound by another program");
            }
        }
    }
    drop((holder, server));
}

#[test]
fn what_does_not_happen_in_time_ends_it_with_124() {
    let scene = Scene::new(1);
    let port = scene.port().to_string();
    for timeout in ["--timeout=0", "--timeout=0.05"] {
        let wait = scene.portlock(["wait", timeout, &port]).code(TIMED_OUT);
        wait.prints_just("").warns(&port);
    }
    let (_holder, _) = scene.hold(&[]);
    for timeout in ["--timeout=0", "--timeout=0.05"] {
        let wait = scene.portlock(["wait", "--free", timeout, &port]);
        wait.code(TIMED_OUT).prints_just("").warns("1 leased");
    }
}

// Only Unix has privileged ports.
#[cfg(unix)]
#[test]
fn no_command_waits_for_ports_that_are_not_permitted() {
    if !low_ports_are_privileged() {
        eprintln!("skipped: every user may bind every port here");
        return;
    }
    let (scene, user) = (Scene::new(1), OrdinaryUser::new());
    user.give(scene.dir());
    let check = user.portlock(&scene, &["check", "1"]).code(BOUND);
    check.prints_just("1 not permitted\n");
    for args in [
        &["run", "--ports=1-9", "--timeout=1000", TRUE][..],
        &["pick", "--ports=1-9", "--timeout=1000"],
        &["wait", "--free", "--timeout=1000", "1"],
    ] {
        // Not "timed out", because it did not wait.
        let refused = user.portlock(&scene, args).code(FAILED);
        refused.prints_just("").warns("not permitted");
    }
}

#[test]
fn a_misspelled_placeholder_is_refused_before_anything_is_leased() {
    let scene = Scene::new(3);
    for (options, argument, meant) in [
        (
            &[][..],
            "{port2}",
            "there is only one, {port} (-n leases more)",
        ),
        (&["-n", "3"], "--x={port4}", "there are only 3"),
        (&["--env", "HTTP"], "{HTPP}", "did you mean {HTTP}?"),
        (&["--env=HTTP", "--env=DB"], "a{db}", "did you mean {DB}?"),
        (&[], "{port} {Port}", "did you mean {port}?"),
    ] {
        let args = [&["run"], options, &["--", "echo", "{port}", argument]].concat();
        assert_refused(&scene, &args, meant);
        assert_refused(&scene, &args, argument);
    }
    // It is refused even if no port is free, without waiting.
    let (_holder, _) = scene.hold(&["-n", "3"]);
    let run = ["run", "--timeout=60", "--", "echo", "{port2}"];
    scene.portlock(run).code(FAILED).warns("{port2}");
}
