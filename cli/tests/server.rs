//! `portlock wait`, `check` and `list`: whose server answers on a port.

use std::process::id;

use portlock_testkit::{BOUND, Said, Scene, TIMED_OUT, cat_program, listen};
#[cfg(target_os = "linux")]
use portlock_testkit::{LEASED, OrdinaryUser, Running, am_root, is_installed, set_mode};
use serde_json::{Value, json};

/// Returns the rows of `wait --json` for one port, with these options.
fn wait_json(scene: &Scene, status: i32, options: &[&str]) -> Value {
    let port = scene.port().to_string();
    let args = [&["wait", "--json", "--timeout=0"], options, &[&port]].concat();
    scene.portlock(args).code(status).json()
}

fn row(port: u16, server: Option<&str>, pid: Option<u32>) -> Value {
    json!([{
        "port": port, "ready": true, "server": server, "server_pid": pid,
        "server_program": pid.map(|_| cat_program()),
    }])
}

#[test]
fn another_process_on_a_leased_port_is_not_accepted() {
    let scene = Scene::new(1);
    let port = scene.port();
    // The test suite's server: it could not bind the port, and does nothing.
    let (suite, _) = scene.hold(&["--label", "api tests"]);
    let text = port.to_string();
    let wait = |options: &[&str]| {
        let args = [&["wait", "--timeout=0"], options, &[&text]].concat();
        scene.portlock(args)
    };
    wait(&[]).code(TIMED_OUT);
    let _stranger = listen(("127.0.0.1", port));
    let refused = wait(&[]).code(BOUND);
    let refused = refused.warns(&format!(
        "portlock: 127.0.0.1:{port} is served by pid {} ({}), not by the lease's holder, pid {} ",
        id(),
        cat_program(),
        suite.id()
    ));
    refused.warns(&format!(
        "(to wait for that process's server, use --pid {}; to accept any server, --any)",
        id()
    ));
    let mut other = row(port, Some("other"), Some(id()));
    other[0]["ready"] = false.into();
    assert_eq!(wait_json(&scene, BOUND, &[]), other);

    // The options that accept the other server.
    let own = id().to_string();
    for options in [&["--any"][..], &["--pid", &own]] {
        wait(options).code(0).warns_of_nothing();
    }
    let suites = suite.id().to_string();
    let refused = wait(&["--pid", &suites]).code(BOUND);
    refused.warns(&format!(
        "not by process {suites} or a descendant of it (to accept any server, use --any)"
    ));
    let holders = row(port, Some("holder"), Some(id()));
    assert_eq!(wait_json(&scene, 0, &["--pid", &own]), holders);
    assert_eq!(wait_json(&scene, 0, &["--any"]), {
        let mut any = other.clone();
        any[0]["ready"] = true.into();
        any
    });
}

#[test]
fn on_a_port_without_a_lease_any_server_is_accepted() {
    let scene = Scene::new(1);
    let port = scene.port();
    let mut no_server = row(port, None, None);
    no_server[0]["ready"] = false.into();
    assert_eq!(wait_json(&scene, TIMED_OUT, &[]), no_server);
    let _server = listen(("127.0.0.1", port));
    assert_eq!(wait_json(&scene, 0, &[]), row(port, None, Some(id())));
    no_server[0]["ready"] = true.into();
    drop(_server);
    assert_eq!(wait_json(&scene, 0, &["--free"]), no_server);
}

#[test]
fn the_server_of_the_process_that_picked_the_port_is_the_holders() {
    let scene = Scene::new(1);
    let port = scene.pick();
    let _server = listen(("127.0.0.1", port));
    assert_eq!(
        wait_json(&scene, 0, &[]),
        row(port, Some("holder"), Some(id()))
    );
}

#[test]
fn options_that_exclude_each_other_are_refused() {
    let scene = Scene::new(1);
    for options in [
        ["--any", "--free"],
        ["--any", "--pid=1"],
        ["--free", "--pid=1"],
    ] {
        let args = [&["wait"], &options[..], &["4000"]].concat();
        scene.portlock(args).warns("cannot be used with");
    }
}

/// A program that reads a line, then listens on the port in its second argument, and reports that.
#[cfg(target_os = "linux")]
const PYTHON: &str = "import socket, sys\n\
    s = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n\
    print('listens', flush=True)\n\
    sys.stdin.read()";

#[cfg(target_os = "linux")]
fn run_server(scene: &Scene, script: &str) -> Running {
    let mut command = scene.program(["run", "sh", "-c", script, "sh", PYTHON, "{port}"]);
    command.stdin(std::process::Stdio::piped());
    let server = Running::start(command);
    assert_eq!(server.hear(), "listens");
    server
}

#[cfg(target_os = "linux")]
#[test]
fn the_server_that_run_started_is_the_holders() {
    if !is_installed("python3") {
        return;
    }
    for (script, program) in [
        ("exec python3 -c \"$1\" \"$2\"", "python3"),
        ("python3 -c \"$1\" \"$2\"; true", "sh"),
        // Its parent ends, and the server has the lease's descriptor, so it is the heir.
        (
            "exec 3<&0; { setsid python3 -c \"$1\" \"$2\" <&3 & } ; exit 0",
            "python3",
        ),
    ] {
        let scene = Scene::new(1);
        let _server = run_server(&scene, script);
        let list = portlock_testkit::until("the shell ends", || {
            let row = scene.list()[0].clone();
            (!script.contains("exit") || row["state"] == "inherited").then_some(row)
        });
        assert_eq!(list["server"], "holder", "{list}");
        assert_eq!(list["server_program"], "python3", "{list}");
        let table = scene.portlock(["list"]).code(0);
        assert!(table.out().contains(", bound "), "{}", table.out());
        assert!(table.out().contains(program), "{}", table.out());
        let waited = wait_json(&scene, 0, &[]);
        assert_eq!(waited[0]["server"], "holder", "{waited}");
    }
}

/// A client that connects to `localhost` may reach either server.
#[cfg(target_os = "linux")]
#[test]
fn a_stranger_at_the_other_loopback_address_is_not_accepted() {
    if !is_installed("python3") {
        return;
    }
    let scene = Scene::new(1);
    let port = scene.port();
    let _server = run_server(&scene, "exec python3 -c \"$1\" \"$2\"");
    assert_eq!(wait_json(&scene, 0, &[])[0]["server"], "holder");
    let Ok(_stranger) = std::net::TcpListener::bind(("::1", port)) else {
        eprintln!("skipped: ::1 cannot be bound");
        return;
    };
    let refused = scene.portlock(["wait", "--timeout=0", &port.to_string()]);
    refused.code(BOUND).warns(&format!(
        "portlock: [::1]:{port} is served by pid {} (",
        id()
    ));
    let list = &scene.list()[0];
    assert_eq!(
        (&list["server"], &list["server_pid"]),
        (&json!("other"), &json!(id()))
    );
    let table = scene.portlock(["list"]).code(0);
    let state = format!("leased, served by pid {} (", id());
    assert!(table.out().contains(&state), "{}", table.out());
    // Asked for one address, its own server decides.
    assert_eq!(
        wait_json(&scene, 0, &["--host=127.0.0.1"])[0]["server"],
        "holder"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_server_that_cannot_be_seen_is_accepted_with_a_note() {
    if !am_root() || !is_installed("python3") {
        eprintln!("skipped: only root can run this as another user");
        return;
    }
    let scene = Scene::new(1);
    set_mode(scene.dir(), 0o1777);
    let _server = run_server(&scene, "exec python3 -c \"$1\" \"$2\"");
    let (user, port) = (OrdinaryUser::new(), scene.port().to_string());
    let wait = user.portlock(&scene, &["wait", "--timeout=0", &port]);
    wait.code(0).warns(&format!(
        "portlock: note: the server on port {port} may belong to another process: \
         its process cannot be seen"
    ));
    let check = user.portlock(&scene, &["check", &port]);
    assert!(
        check.out().ends_with(
            "; served by a process that cannot be seen, which may not be the holder's\n"
        ),
        "{}",
        check.out()
    );
    let list = user.portlock(&scene, &["list"]);
    assert!(
        list.out().contains("leased, server unknown  "),
        "{}",
        list.out()
    );
    let json = user.portlock(&scene, &["list", "--json"]).json();
    assert_eq!(json[0]["server"], "unknown");
    assert_eq!(json[0]["server_pid"], Value::Null);
}

#[cfg(target_os = "linux")]
#[test]
fn check_says_which_user_has_a_port_whose_process_cannot_be_seen() {
    if !am_root() {
        eprintln!("skipped: only root can run this as another user");
        return;
    }
    let scene = Scene::new(1);
    set_mode(scene.dir(), 0o1777);
    let (user, port) = (OrdinaryUser::new(), scene.port());
    let _server = listen(("127.0.0.1", port));
    let check = |options: &[&str]| {
        let port = port.to_string();
        user.portlock(&scene, &[&["check"], options, &[&port]].concat())
    };
    let bound = format!("{port} bound, user root\n");
    check(&[]).code(BOUND).prints_just(&bound);
    let rows = check(&["--json"]).code(BOUND).json();
    assert_eq!(
        rows,
        json!([{
            "port": port, "state": "bound", "time_wait": false, "user": "root", "pid": null,
            "program": null, "command": null, "cwd": null, "label": null, "heir": null,
            "server": null, "server_pid": null, "server_program": null,
            "name": null, "root": null, "reservation": null,
        }])
    );
}

#[cfg(target_os = "linux")]
#[test]
fn another_users_server_is_named_to_a_user_who_may_see_it() {
    if !am_root() || !is_installed("python3") {
        eprintln!("skipped: only root can run this as another user");
        return;
    }
    let scene = Scene::new(1);
    set_mode(scene.dir(), 0o1777);
    let port = scene.port().to_string();
    let (holder, _) = scene.hold(&[]);
    let user = OrdinaryUser::new();
    let mut server = user.command(&scene, "python3");
    server.args(["-c", PYTHON, &port]);
    server.stdin(std::process::Stdio::piped());
    let server = Running::start(server);
    assert_eq!(server.hear(), "listens");
    let (holder, server) = (holder.id(), server.id());
    for asks in [true, false] {
        let ask = |args: &[&str]| match asks {
            true => user.portlock(&scene, args),
            false => scene.portlock(args),
        };
        let check = ask(&["check", &port]).code(LEASED);
        let printed = check.out();
        assert!(printed.starts_with(&format!("{port} leased by pid {holder} ")));
        let stranger =
            format!(", user root; served by pid {server} (python3), not by the holder\n");
        assert!(printed.ends_with(&stranger), "{printed}");
        let list = ask(&["list"]).code(0);
        let state = format!("leased, served by pid {server} (python3)  ");
        assert!(list.out().contains(&state), "{}", list.out());
        let list = ask(&["list", "--json"]).json();
        let row = (&list[0]["server"], &list[0]["server_pid"]);
        assert_eq!(row, (&json!("other"), &json!(server)));
        ask(&["wait", "--timeout=0", &port]).code(BOUND);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn on_a_terminal_a_long_wait_for_a_server_prints_who_has_the_port() {
    let scene = Scene::new(1);
    let port = scene.port();
    let wait = format!("portlock wait --timeout=60 {port}; echo $?");
    let expect = |what: &str| {
        let command = scene.on_terminal(&wait)?;
        let waiting = Running::start(command);
        assert_eq!(waiting.hear(), format!("portlock: waiting: {what}"));
        let server = listen(("127.0.0.1", port));
        let said = waiting.hear();
        drop(server);
        Some(said)
    };
    let Some(said) = expect(&format!("for a server on port {port}, which is not leased")) else {
        return;
    };
    assert_eq!(said, "0");
    let (holder, _) = scene.hold(&["--label", "api tests"]);
    let what = format!(
        "for a server on port {port}, leased by pid {} ",
        holder.id()
    );
    let command = scene.on_terminal(&wait).expect("as before");
    let waiting = Running::start(command);
    let said = waiting.hear();
    assert!(
        said.contains(&what) && said.ends_with(" (api tests)"),
        "{said}"
    );
}
