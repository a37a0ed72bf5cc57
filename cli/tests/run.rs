//! `portlock run` on Unix, where the command replaces portlock. The commands need a Unix shell. For
//! Windows see `windows.rs`.

#![cfg(unix)]

mod ephemeral;

use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
    fs,
    io::{BufRead, BufReader, Read},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    os::unix::{ffi::OsStrExt, fs::symlink, process::ExitStatusExt},
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use ephemeral::ephemeral;
use portlock_testkit::{
    EXHAUSTED, FAILED, Running, Said, Scene, answer, has_second_loopback, is_ignored, is_installed,
    listen_strictly, set, stress, until,
};
use rustix::process::Signal;

// ---------------------------------------------------------------------------
// How CMD receives its ports.

/// Returns the variables that CMD has and this process does not, with their values.
fn added_variables(scene: &Scene, options: &[&str]) -> (Vec<String>, Vec<u16>) {
    let env = |command: Command| -> HashSet<String> {
        let env = answer(command).code(0).warns_of_nothing();
        env.out().lines().map(str::to_owned).collect()
    };
    let mut run = scene.program(["run"]);
    run.args(options).args(["--", "env"]);
    let (with, without) = (env(run), env(scene.command("env")));
    assert!(without.is_subset(&with));
    let added = with.difference(&without);
    let mut added: Vec<_> = added.filter_map(|line| line.split_once('=')).collect();
    added.sort_unstable();
    let added = added.into_iter();
    added
        .map(|(name, value)| (name.to_owned(), value.parse::<u16>().expect("a port")))
        .unzip()
}

#[test]
fn the_ports_are_in_the_environment() {
    let scene = Scene::new(4);
    let of = |options: &[&str]| added_variables(&scene, options);
    for options in [&[][..], &["-n", "1"], &["--contiguous"]] {
        let (names, ports) = of(options);
        assert_eq!(names, ["PORT"]);
        assert!(scene.ports().contains(&ports[0]), "{ports:?}");
    }
    for options in [&["-n", "3"][..], &["-n", "3", "--contiguous"]] {
        let (names, ports) = of(options);
        assert_eq!(names, ["PORT", "PORT_1", "PORT_2", "PORT_3"]);
        assert_eq!(ports[0], ports[1]);
        assert_eq!(ports.iter().collect::<HashSet<_>>().len(), 3);
        assert!(ports.iter().all(|port| scene.ports().contains(port)));
        if options.contains(&"--contiguous") {
            assert_eq!(ports[1..], [ports[0], ports[0] + 1, ports[0] + 2]);
        }
    }
    let (names, ports) = of(&["--env", "HTTP_PORT", "--env=_x1"]);
    assert_eq!(names, ["HTTP_PORT", "_x1"]);
    assert_ne!(ports[0], ports[1]);
}

#[test]
fn the_ports_are_in_the_arguments() {
    let scene = Scene::new(3);
    let (a, b, c) = (scene.port(), scene.port() + 1, scene.port() + 2);
    let all = ["-n", "3", "--contiguous"];
    for (options, argument, replaced) in [
        (&all[..], "{port}", format!("{a}")),
        (&all, "--port={port}", format!("--port={a}")),
        (&all, "{port1}{port2}{port3}", format!("{a}{b}{c}")),
        (&all, "{PORT}:{PORT_2}", format!("{a}:{b}")),
        (&all, "{\"a\": {port}}", format!("{{\"a\": {a}}}")),
        // Braces that are not placeholders.
        (
            &all,
            "{x} {ports} {HOST} ${PORT} {1,2} {",
            "{x} {ports} {HOST} ${PORT} {1,2} {".into(),
        ),
        (&all, "", String::new()),
        (
            &["--env", "A", "--env", "B", "--prefer=x"],
            "{A} {B}",
            String::new(),
        ),
    ] {
        let args = [&["run"], options, &["--", "printf", "%s", argument]].concat();
        let run = scene.portlock(args).code(0);
        if options.contains(&"A") {
            let ports: Vec<u16> = run
                .out()
                .split(' ')
                .map(|p| p.parse().expect("a port"))
                .collect();
            assert!(ports.len() == 2 && ports[0] != ports[1], "{ports:?}");
        } else {
            run.prints_just(&replaced);
        }
    }
    // A shell variable is left unchanged.
    let run = ["run", "--", "sh", "-c", "echo ${PORT}"];
    let run = scene.portlock(run).code(0);
    assert!(scene.ports().contains(&run.ports()[0]), "{}", run.out());
    // Placeholders in the program's name are not replaced.
    let run = ["run", "--", "{port}"];
    scene.portlock(run).code(127).warns("{port}");
}

#[test]
fn what_is_not_utf8_passes_untouched() {
    let scene = Scene::new(1);
    let bytes = OsStr::from_bytes;
    let args: Vec<OsString> = ["run", "--", "printf", "%s|%s"].map(OsString::from).into();
    let mut run = scene.program(args);
    run.args([bytes(b"\xff{port}\xfe{PORT}"), bytes(b"{\xc3}\x01\n\\")]);
    let run = answer(run).code(0);
    let port = scene.port().to_string();
    let port = port.as_bytes();
    let expected = [b"\xff", port, b"\xfe", port, b"|{\xc3}\x01\n\\"];
    assert_eq!(run.get_output().stdout, expected.concat());

    // So do the program's own name, and variables of others.
    // The macOS file system allows only UTF-8 names.
    let name = if cfg!(target_os = "macos") {
        "\u{fe}".as_bytes()
    } else {
        b"\xfe\xff"
    };
    let program = scene.dir().join(bytes(name));
    symlink("/bin/sh", &program).expect("our own directory");
    let mut run = scene.program([OsStr::new("run"), program.as_os_str()]);
    run.args(["-c", "printf %s \"$FOREIGN\""]);
    run.env("FOREIGN", bytes(b"\xff"));
    let run = answer(run).code(0);
    assert_eq!(run.get_output().stdout, b"\xff");
}

#[test]
fn options_after_the_command_belong_to_it() {
    let scene = Scene::new(1);
    let line = ["echo", "--ports", "1", "-n", "2", "--help", "--", "-V"];
    let expected = "--ports 1 -n 2 --help -- -V\n";
    let run = [&["run"][..], &line].concat();
    scene.portlock(run).code(0).prints_just(expected);
    let run = [&["run", "--timeout=0", "--"][..], &line].concat();
    scene.portlock(run).code(0).prints_just(expected);
    // After `--`, a word that starts with a dash is the command.
    let run = ["run", "--", "--version"];
    scene.portlock(run).code(127).warns("--version");
}

// ---------------------------------------------------------------------------
// portlock becomes CMD.

#[test]
fn the_process_becomes_the_command() {
    let scene = Scene::new(1);
    let script = ["run", "--", "sh", "-c", "echo $$; exec cat"];
    let running = Running::start(scene.program(script));
    assert_eq!(running.hear(), running.id().to_string());
    let list = scene.list();
    assert_eq!(list.len(), 1, "{list:?}");
    assert_eq!(list[0]["pid"], running.id());
    assert!(running.finish().success());
}

#[test]
fn the_exit_status_is_the_commands() {
    let scene = Scene::new(1);
    for status in [0, 1, 3, 42, 75, 124, 125, 126, 127, 255] {
        let exit = format!("exit {status}");
        let run = scene.portlock(["run", "--", "sh", "-c", &exit]);
        run.code(status).warns_of_nothing();
    }
    for (signal, number) in [("TERM", 15), ("KILL", 9), ("PIPE", 13), ("INT", 2)] {
        if signal == "INT" && is_ignored(Signal::INT) {
            continue;
        }
        let script = format!("kill -{signal} $$");
        let run = scene.program(["run", "--", "sh", "-c", &script]);
        let status = answer(run).get_output().status;
        assert_eq!(status.signal(), Some(number));
        // As a shell reports it.
        let script = format!("portlock run -- sh -c 'kill -{signal} $$' 2>/dev/null; echo $?");
        let shell = answer(scene.script("sh", &script)).code(0);
        shell.prints_just(&format!("{}\n", 128 + number));
    }
    scene.assert_leasable(scene.port());
}

#[test]
fn signals_reach_the_command() {
    let scene = Scene::new(1);
    let script = "trap 'exit 7' TERM; echo ready; read line; exit 1";
    let mut running = Running::start(scene.program(["run", "--", "sh", "-c", script]));
    assert_eq!(running.hear(), "ready");
    running.signal(Signal::TERM);
    assert_eq!(running.wait().code(), Some(7));
    scene.assert_leasable(scene.port());
}

#[test]
fn a_command_that_cannot_be_executed_is_reported_as_env_reports_it() {
    let scene = Scene::new(1);
    let file = scene.dir().join("file");
    fs::write(&file, "echo").expect("our own directory");
    let file = file.to_str().expect("UTF-8");
    let below = format!("{file}/below");
    for (program, status) in [
        ("/nonexistent/program", 127),
        ("no-such-program-anywhere", 127),
        ("", 127),
        (file, 126),
        ("/", 126),
        (&below, 126),
    ] {
        let run = scene
            .portlock(["run", "--", program, "{port}"])
            .code(status);
        let says = format!("portlock: cannot execute {program}");
        run.prints_just("").warns(&says);
        // As env(1) reports it.
        let mut env = scene.command("env");
        env.arg(program);
        answer(env).code(status);
    }
    scene.assert_leasable(scene.port());
}

/// Returns the open descriptors of a shell, and the signals that it blocks or ignores.
#[cfg(target_os = "linux")]
const SHOW_INHERITED: &str = "
    for fd in /proc/self/fd/*; do readlink $fd; done | sort
    grep -E '^Sig(Blk|Ign)' /proc/self/status";

#[cfg(target_os = "linux")]
#[test]
fn the_command_inherits_only_the_locks() {
    let scene = Scene::new(3);
    let dir = format!("{}/", scene.dir().display());
    let line = |line: &str| match line.split_once(":\t") {
        // The C library reserves two of the others.
        Some((name, signals)) => {
            let signals = u64::from_str_radix(signals, 16).expect("a set of signals");
            format!("{name}: {:x}", signals & 0x7fff_ffff)
        }
        None => line.to_owned(),
    };
    let inherited = |command: Command| -> Vec<String> {
        let printed = answer(command).code(0);
        // Pipes differ from run to run.
        let lines = printed
            .out()
            .lines()
            .filter(|line| !line.starts_with("pipe:"));
        lines.map(line).collect()
    };
    let plain = inherited(scene.script("sh", SHOW_INHERITED));
    for n in ["1", "3"] {
        let run = scene.program(["run", "-n", n, "--", "sh", "-c", SHOW_INHERITED]);
        let (locks, rest): (Vec<String>, Vec<String>) = inherited(run)
            .into_iter()
            .partition(|line| line.starts_with(&dir));
        assert_eq!(locks.len().to_string(), n, "{locks:?}");
        assert_eq!(rest, plain);
    }
}

#[test]
fn closed_descriptors_are_harmless() {
    let scene = Scene::new(2);
    for closed in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"] {
        for options in ["", "-n 2", "--listen"] {
            let script = format!("portlock run {options} -- sh -c 'exit 42' {closed}");
            let run = answer(scene.script("sh", &script));
            run.code(42).warns_of_nothing().prints_just("");
            let script = format!("portlock run {options} -- /nonexistent {closed}");
            answer(scene.script("sh", &script)).code(127);
        }
    }
}

// ---------------------------------------------------------------------------
// The lease.

#[test]
fn the_lease_ends_with_the_command_and_not_before() {
    let scene = Scene::new(1);
    for _ in 0..stress(10) {
        let (holder, port) = scene.hold(&[]);
        assert_eq!(port, scene.port());
        scene.assert_leased(port);
        let status = holder.kill();
        assert_eq!(status.signal(), Some(9));
        // The port is free immediately, without waiting.
        let port = port.to_string();
        let run = ["run", "--timeout=0", "--ports", &port, "true"];
        scene.portlock(run).code(0);
        scene.check(scene.port()).code(0);
    }
}

#[test]
fn the_lease_lasts_as_long_as_a_grandchild() {
    let scene = Scene::new(1);
    // This workaround passes the input on: a shell's background process gets no input otherwise.
    let script = "exec 9<&0; cat <&9 >/dev/null & echo $PORT";
    let mut parent = Running::start(scene.program(["run", "--", "sh", "-c", script]));
    assert_eq!(parent.hear(), scene.port().to_string());
    assert!(parent.wait().success());
    for _ in 0..3 {
        scene.assert_leased(scene.port());
    }
    let check = scene.check(scene.port()).warns_of_nothing();
    let from = format!("inherited it from pid {} \"portlock\" (sh)", parent.id());
    // The user follows.
    assert!(check.out().contains(&from), "{}", check.out());
    parent.close();
    until("the grandchild's end", || {
        let check = scene.check(scene.port());
        (check.get_output().status.code() == Some(0)).then_some(())
    });
    scene.assert_leasable(scene.port());
}

#[test]
fn a_command_waits_for_a_lease_to_end() {
    let scene = Scene::new(1);
    let (holder, _) = scene.hold(&[]);
    let mut waiting = Running::start(scene.program(["run", "--timeout=60", "echo", "{port}"]));
    for _ in 0..10 {
        scene.assert_leased(scene.port());
        assert!(!waiting.has_ended());
    }
    holder.kill();
    assert_eq!(waiting.hear(), scene.port().to_string());
    assert!(waiting.wait().success());
}

#[test]
fn a_nested_command_has_its_own_port() {
    let scene = Scene::new(2);
    let inner = "echo $PORT; portlock run -- sh -c 'echo $PORT'";
    let run = scene.portlock(["run", "--", "sh", "-c", inner]).code(0);
    let ports = run.ports();
    assert!(ports.len() == 2 && ports[0] != ports[1], "{ports:?}");
    let inner = "portlock run -n 2 --timeout=0 true; echo $?";
    let run = scene.portlock(["run", "--", "sh", "-c", inner]).code(0);
    run.prints_just(&format!("{EXHAUSTED}\n"));
}

#[test]
fn all_ports_or_none() {
    let scene = Scene::new(3);
    let (holder, _) = scene.hold(&[]);
    for options in [
        &["-n", "3"][..],
        &["-n", "3", "--contiguous"],
        &["-n", "3", "--listen"],
    ] {
        let args = [&["run", "--timeout=0"], options, &["true"]].concat();
        scene.portlock(args).code(EXHAUSTED);
        assert_eq!(scene.list().len(), 1);
    }
    scene
        .portlock(["run", "--timeout=0", "-n", "2", "true"])
        .code(0);
    holder.kill();
    scene
        .portlock(["run", "--timeout=0", "-n", "3", "true"])
        .code(0);
}

#[test]
fn the_same_name_gets_the_same_port() {
    let scene = Scene::new(100);
    let run = ["run", "--prefer=a/b", "printenv", "PORT"];
    let port = scene.portlock(run).code(0).ports();
    for _ in 0..3 {
        assert_eq!(scene.portlock(run).ports(), port);
    }
    let (holder, held) = scene.hold(&["--prefer=a/b"]);
    assert_eq!([held], port[..]);
    assert_ne!(scene.portlock(run).ports(), port);
    drop(holder);
    assert_eq!(scene.portlock(run).ports(), port);
    // With 100 ports, four names have the same port by chance once in a million runs.
    let names = ["b", "c", "d", "e"].map(|name| format!("--prefer={name}"));
    let other = |name: &String| scene.portlock(["run", name, "printenv", "PORT"]).ports();
    assert!(names.iter().any(|name| other(name) != port));
}

#[test]
fn the_label_defaults_to_the_commands_name() {
    let scene = Scene::new(1);
    for (options, label) in [
        (&[][..], "sh"),
        (&["--label", "api under test"], "api under test"),
        (&["--label", "größe"], "größe"),
    ] {
        let (_holder, _) = scene.hold(options);
        assert_eq!(scene.list()[0]["label"], label);
    }
}

// ---------------------------------------------------------------------------
// What "free" means.

/// Returns whether `run` leases the scene's only port with these options.
#[track_caller]
fn is_free(scene: &Scene, options: &[&str]) -> bool {
    let args = [&["run", "--timeout=0"], options, &["true"]].concat();
    let status = scene.portlock(args).get_output().status.code();
    assert!([Some(0), Some(EXHAUSTED)].contains(&status), "{status:?}");
    status == Some(0)
}

#[test]
fn a_port_must_be_free_on_every_address_or_on_the_named_ones() {
    if !has_second_loopback() {
        return;
    }
    let scene = Scene::new(1);
    let other = Ipv4Addr::new(127, 0, 0, 2);
    let server = TcpListener::bind((other, scene.port())).expect("a free port");
    for (options, free) in [
        (&[][..], false),
        (&["--host=127.0.0.2"], false),
        (&["--host=0.0.0.0"], false),
        (&["--host=127.0.0.1"], true),
        (&["--host=127.0.0.1", "--host=127.0.0.3"], true),
        (&["--host=127.0.0.1", "--host=127.0.0.2"], false),
        (&["--listen"], false),
        (&["--listen", "--host=127.0.0.1"], true),
        (&["--host=localhost"], true),
    ] {
        assert_eq!(is_free(&scene, options), free, "{options:?}");
    }
    drop(server);
    // A name means all its addresses. On every system, localhost includes this one.
    let _server = TcpListener::bind(("127.0.0.1", scene.port())).expect("a free port");
    assert!(!is_free(&scene, &["--host=localhost"]));
    assert!(is_free(&scene, &["--host=127.0.0.2"]));
}

#[test]
fn a_port_must_be_free_for_the_protocol() {
    let scene = Scene::new(1);
    let udp = UdpSocket::bind(("127.0.0.1", scene.port())).expect("a free port");
    for (option, free) in [
        ("--label=tcp", true),
        ("--udp", false),
        ("--tcp-and-udp", false),
    ] {
        assert_eq!(is_free(&scene, &[option]), free, "{option}");
    }
    // For a moment, a child that another test is spawning may keep a copy of the descriptor.
    drop(udp);
    until("free for UDP", || is_free(&scene, &["--udp"]).then_some(()));
    let tcp = listen_strictly(scene.port()).expect("free");
    for (option, free) in [
        ("--label=tcp", false),
        ("--udp", true),
        ("--tcp-and-udp", false),
    ] {
        assert_eq!(is_free(&scene, &[option]), free, "{option}");
    }
    drop(tcp);
}

#[test]
fn a_port_in_time_wait_is_free_with_reuse_address() {
    let scene = Scene::new(1);
    let server = TcpListener::bind(("127.0.0.1", scene.port())).expect("a free port");
    let mut client = TcpStream::connect(("127.0.0.1", scene.port())).expect("it listens");
    let (connection, _) = server.accept().expect("a client");
    // The side that closes first enters TIME_WAIT: here the server.
    connection
        .shutdown(std::net::Shutdown::Both)
        .expect("connected");
    drop(connection);
    client.read_to_end(&mut Vec::new()).expect("closed");
    drop((client, server));
    // If the system has no table that shows TIME_WAIT, the port is not free without the option.
    let is_macos = cfg!(target_os = "macos");
    let printed = if is_macos {
        "bound, and not listening"
    } else {
        "free, in TIME_WAIT"
    };
    until("nothing but TIME_WAIT", || {
        let check = scene.check(scene.port()).out().to_owned();
        (check == format!("{} {printed}\n", scene.port())).then_some(())
    });
    assert!(!is_free(&scene, &["--reuse-address=no"]));
    assert_eq!(is_free(&scene, &[]), !is_macos);
    for options in [&["--reuse-address"][..], &["--reuse-address=yes"]] {
        assert!(is_free(&scene, options), "{options:?}");
    }
    let wrong = scene.portlock(["run", "--reuse-address=maybe", "true"]);
    wrong.code(FAILED).warns("neither yes nor no");
}

#[test]
fn named_ephemeral_ports_cause_a_warning() {
    let scene = Scene::new(1);
    let (range, own) = (set(ephemeral()), scene.set());
    for (ports, warning) in [
        (&range, true),
        (&format!("{own},{range}"), true),
        (&own, false),
    ] {
        for command in [
            &["run", "--ports", ports, "printenv", "PORT"][..],
            &["pick", "--ports", ports],
        ] {
            let run = scene.portlock(command).code(0);
            assert_eq!(run.ports().len(), 1);
            let warned =
                run.err().starts_with("portlock: warning: ") && run.err().contains("ephemeral");
            assert_eq!(warned, warning, "{}", run.err());
        }
        scene.release_all();
    }
    // Ports named by the environment are the machine's policy, so there is no warning.
    let mut run = scene.program(["run", "true"]);
    run.env("PORTLOCK_PORTS", &range);
    answer(run).code(0).warns_of_nothing();
}

#[test]
fn bad_ports_in_the_environment_are_an_error() {
    let scene = Scene::new(1);
    for command in [
        &["run", "true"][..],
        &["pick"],
        &["list", "--map"],
        &["ports"],
    ] {
        let mut command = scene.program(command);
        command.env("PORTLOCK_PORTS", "4000-");
        answer(command)
            .code(FAILED)
            .prints_just("")
            .warns("PORTLOCK_PORTS=\"4000-\"");
    }
}

// ---------------------------------------------------------------------------
// Many concurrent commands.

/// A server that binds without SO_REUSEADDR, sends its token to one client, and ends.
const SERVER: &str = "
import socket, sys
port, token = int(sys.argv[1]), sys.argv[2]
server = socket.socket()
try:
    server.bind(('127.0.0.1', port))
except OSError as error:
    print('bind failed:', error, flush=True)
    sys.exit(1)
server.listen(1)
print(port, flush=True)
connection, _ = server.accept()
connection.sendall(token.encode() + b'\\n')
# The client closes first, so its side is in TIME_WAIT, on its own port.
connection.recv(1)
";

#[test]
fn many_concurrent_commands_each_have_their_own_port() {
    if !is_installed("python3") {
        return;
    }
    const AT_ONCE: usize = 16;
    let (scene, count) = (Scene::new(400), stress(60));
    let next = AtomicUsize::new(0);
    let serve = |number: usize| -> Result<u16, String> {
        let token = format!("server {number}");
        let line = ["run", "--timeout=60", "--", "python3", "-IS", "-c", SERVER];
        let mut run = scene.program(line);
        let mut server = run
            .args(["{port}", &token])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut printed = String::new();
        let mut out = BufReader::new(server.stdout.take().expect("piped"));
        out.read_line(&mut printed).expect("a line");
        let port = printed.trim_end().parse().map_err(|_| printed.clone());
        let answer = port.as_ref().map(|&port: &u16| {
            let client = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
            let mut answer = String::new();
            let mut client = BufReader::new(client);
            client.read_line(&mut answer).expect("an answer");
            answer
        });
        let right = answer.map(|answer| answer.trim_end() == token);
        let status = server.wait().expect("our own child");
        match right {
            Ok(true) if status.success() => port,
            other => Err(format!("{printed:?} {other:?} {status}")),
        }
    };
    let worker = || {
        let numbers = std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)));
        numbers
            .take_while(|&number| number < count)
            .map(serve)
            .collect()
    };
    let results: Vec<Result<u16, String>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(worker)).collect();
        let join = |worker: thread::ScopedJoinHandle<'_, Vec<_>>| worker.join().expect("no panic");
        workers.into_iter().flat_map(join).collect()
    });
    let failures: Vec<_> = results.iter().filter(|result| result.is_err()).collect();
    assert!(failures.is_empty(), "{failures:?}");
    assert_eq!(results.len(), count);
    let ports: HashSet<_> = results.iter().flatten().collect();
    eprintln!("{count} servers on {} distinct ports", ports.len());
    assert!(ports.iter().all(|port| scene.ports().contains(port)));
    scene.assert_no_lease();
}
