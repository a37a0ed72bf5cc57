//! `portlock run --listen`: passes sockets as systemd does (sd_listen_fds(3)) to programs that know
//! nothing about portlock. Only Unix has that convention.

#![cfg(unix)]

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::id,
};

use listenfd::ListenFd;
use portlock_testkit::{LONG, Peer, Running, Said, Scene, answer, is_installed, until};
use rustix::process::Signal;

const ACTIVATED: &str = "PORTLOCK_TEST_ACTIVATED";

/// The activated program: this test binary, running this test.
///
/// Each listener answers one connection with its name, its port and the port in the environment. Then
/// the program runs until its input is closed.
#[test]
fn activated() {
    if env::var_os(ACTIVATED).is_none() {
        return;
    }
    let value = |name: &str| env::var(name).unwrap_or_default();
    // Taking the listeners removes these variables.
    let (pid, fds, names) = (
        value("LISTEN_PID"),
        value("LISTEN_FDS"),
        value("LISTEN_FDNAMES"),
    );
    let is_us = pid == id().to_string();
    let mut passed = ListenFd::from_env();
    println!("\n@{} {is_us} {fds} {names}", passed.len());
    for index in 0..passed.len() {
        let listener = passed.take_tcp_listener(index).expect("a TCP socket");
        let listener = listener.expect("not taken yet");
        let name = names.split(':').nth(index).unwrap_or_default();
        let port = listener.local_addr().expect("bound").port();
        let in_environment = value(name);
        let (mut client, _) = listener.accept().expect("a client");
        writeln!(client, "{name} {port} {in_environment}").expect("it reads");
    }
    println!("\n@done");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// Returns a command that runs this test binary as the activated program, with these options.
fn activate(scene: &Scene, options: &[&str]) -> Peer {
    let own = env::current_exe().expect("this test binary");
    let mut run = scene.program(["run", "--listen"]);
    run.args(options)
        .arg("--")
        .arg(own)
        .args(["activated", "--exact", "--nocapture", "--test-threads=1"])
        .env(ACTIVATED, "1");
    Peer::start_command(run)
}

/// Returns everything that the server on this port sends.
fn ask(port: u16) -> String {
    ask_at((Ipv4Addr::LOCALHOST, port).into())
}

fn ask_at(address: SocketAddr) -> String {
    let mut client = TcpStream::connect(address).expect("it listens");
    client.set_read_timeout(Some(LONG)).expect("not zero");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn one_listener_is_passed_on() {
    for (options, name) in [
        (&[][..], "PORT"),
        (&["-n", "1"], "PORT"),
        (&["--env=HTTP"], "HTTP"),
        (&["--host=127.0.0.1"], "PORT"),
    ] {
        let scene = Scene::new(1);
        let port = scene.port();
        let activated = activate(&scene, options);
        assert_eq!(activated.hear(), format!("1 true 1 {name}"));
        assert_eq!(ask(port), format!("{name} {port} {port}\n"));
        assert_eq!(activated.hear(), "done");
        // The listeners are closed, and the lease continues.
        scene.assert_leased(port);
        assert!(activated.finish().success());
        scene.assert_no_lease();
        // The server closed the connection first, so its side is in TIME_WAIT.
        let run = ["run", "--timeout=0", "--reuse-address", "true"];
        scene.portlock(run).code(0);
    }
}

#[test]
fn several_listeners_are_passed_on_with_their_names() {
    for (options, names) in [
        (&["-n", "3"][..], ["PORT_1", "PORT_2", "PORT_3"]),
        (
            &["--env=HTTP", "--env=ADMIN", "--env=_3"],
            ["HTTP", "ADMIN", "_3"],
        ),
    ] {
        let scene = Scene::new(3);
        let activated = activate(&scene, options);
        assert_eq!(activated.hear(), format!("3 true 3 {}", names.join(":")));
        // They are all bound and leased, although no connection has been accepted yet.
        let leases = scene.list();
        assert_eq!(leases.len(), 3);
        for lease in &leases {
            assert_eq!(
                (lease["bound"].as_bool(), lease["pid"].as_u64()),
                (Some(true), Some(activated.id().into()))
            );
        }
        // Only the program knows which listener has which port, and each client waits for its turn.
        let clients: Vec<TcpStream> = scene
            .ports()
            .map(|port| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("it listens"))
            .collect();
        let mut answers = Vec::new();
        for client in clients {
            let port = client.peer_addr().expect("connected").port();
            let mut answer = String::new();
            BufReader::new(client)
                .read_line(&mut answer)
                .expect("an answer");
            let words: Vec<String> = answer.split_whitespace().map(str::to_owned).collect();
            assert_eq!(words[1..], [port.to_string(), port.to_string()], "{answer}");
            answers.push(words[0].clone());
        }
        answers.sort_unstable();
        let mut names = names.map(str::to_owned);
        names.sort_unstable();
        assert_eq!(answers, names);
        assert_eq!(activated.hear(), "done");
        for port in scene.ports() {
            scene.assert_leased(port);
        }
        assert!(activated.finish().success());
        scene.assert_no_lease();
    }
}

#[test]
fn variables_about_other_listeners_are_replaced() {
    let scene = Scene::new(1);
    let mut run = scene.program(["run", "--listen", "env"]);
    run.env("LISTEN_FDS", "7")
        .env("LISTEN_PID", "1")
        .env("LISTEN_FDNAMES", "a:b");
    let env = answer(run).code(0);
    let listen: Vec<&str> = env
        .out()
        .lines()
        .filter(|line| line.starts_with("LISTEN_"))
        .collect();
    assert_eq!(listen.len(), 3, "{listen:?}");
    assert!(listen.contains(&"LISTEN_FDS=1") && listen.contains(&"LISTEN_FDNAMES=PORT"));
    // Without --listen, there are no such variables.
    let env = scene.portlock(["run", "env"]).code(0);
    assert!(!env.out().contains("LISTEN_"));
}

// Uses /proc.
#[cfg(target_os = "linux")]
#[test]
fn descriptors_from_3_on_are_the_listeners_and_the_locks_come_after() {
    let scene = Scene::new(3);
    // Other descriptors may already have these numbers, for example in a program that was started with
    // redirections.
    for redirections in ["", "3</dev/null 4</dev/null 5</dev/null 6</dev/null"] {
        let script =
            "for fd in 3 4 5; do readlink /proc/$$/fd/$fd; done; readlink /proc/$$/fd/*; true";
        let line = format!("portlock run --listen -n 3 -- sh -c '{script}' {redirections}");
        let shell = answer(scene.script("sh", &line)).code(0);
        let links: Vec<&str> = shell.out().lines().collect();
        assert!(
            links[..3].iter().all(|link| link.starts_with("socket:")),
            "{links:?}"
        );
        let dir = format!("{}/", scene.dir().display());
        let locks = links[3..].iter().filter(|link| link.starts_with(&dir));
        assert_eq!(locks.count(), 3, "{links:?}");
        let sockets = links[3..].iter().filter(|link| link.starts_with("socket:"));
        assert_eq!(sockets.count(), 3, "{links:?}");
    }
}

#[test]
fn a_lease_with_a_listener_ends_with_the_command() {
    let scene = Scene::new(1);
    let line = ["run", "--listen", "sh", "-c", "echo ready; exec cat"];
    let holder = Running::start(scene.program(line));
    assert_eq!(holder.hear(), "ready");
    scene.assert_leased(scene.port());
    // It accepts connections from the start.
    let port = scene.port().to_string();
    scene.portlock(["wait", "--timeout=0", &port]).code(0);
    holder.kill();
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, scene.port())).is_err());
    let run = ["run", "--timeout=0", "--reuse-address", "true"];
    scene.portlock(run).code(0);
}

#[test]
fn an_existing_listener_is_not_displaced() {
    let scene = Scene::new(2);
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, scene.port())).expect("a free port");
    for _ in 0..10 {
        let run = ["run", "--listen", "--timeout=0", "printenv", "PORT"];
        let other = format!("{}\n", scene.port() + 1);
        scene.portlock(run).code(0).prints_just(&other);
    }
    drop(server);
}

#[test]
fn another_language_takes_the_listener() {
    if !is_installed("python3") {
        return;
    }
    let scene = Scene::new(1);
    let script = "
import os, socket
assert os.environ['LISTEN_PID'] == str(os.getpid())
names = os.environ['LISTEN_FDNAMES'].split(':')
assert int(os.environ['LISTEN_FDS']) == len(names) == 1
listener = socket.socket(fileno=3)
print(os.environ[names[0]], flush=True)
connection, _ = listener.accept()
connection.sendall(b'from python\\n')
connection.close()
";
    let line = [
        "run",
        "--listen",
        "--env=WEB_PORT",
        "--",
        "python3",
        "-IS",
        "-c",
        script,
    ];
    let mut server = Running::start(scene.program(line));
    assert_eq!(server.hear(), scene.port().to_string());
    assert_eq!(ask(scene.port()), "from python\n");
    assert!(server.wait().success());
}

#[test]
fn a_real_server_takes_the_listener() {
    // gunicorn is one of the few servers that run standalone and accept sockets from systemd.
    if !is_installed("gunicorn") {
        return;
    }
    let scene = Scene::new(1);
    let app = "
def app(environ, start_response):
    start_response('200 OK', [('Content-Length', '13'), ('Connection', 'close')])
    return [b'from gunicorn']
";
    fs::write(scene.dir().join("app.py"), app).expect("our own directory");
    let mut run = scene.program([
        "run",
        "--listen",
        "--",
        "gunicorn",
        "--log-level=error",
        "app:app",
    ]);
    run.current_dir(scene.dir());
    let mut server = Running::start(run);
    let port = scene.port().to_string();
    // A client can connect from the start, and is answered as soon as the server is ready.
    scene.portlock(["wait", "--timeout=60", &port]).code(0);
    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, scene.port())).expect("it listens");
    client
        .write_all(b"GET / HTTP/1.0\r\n\r\n")
        .expect("it reads");
    client.set_read_timeout(Some(LONG)).expect("not zero");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer");
    assert!(answer.ends_with("\r\nfrom gunicorn"), "{answer}");
    scene.assert_leased(scene.port());
    server.signal(Signal::TERM);
    server.wait();
    until("the workers' end", || scene.list().is_empty().then_some(()));
}

#[test]
fn a_command_that_cannot_be_executed_leaves_no_listener() {
    let scene = Scene::new(1);
    let run = ["run", "--listen", "--", "/nonexistent"];
    scene.portlock(run).code(127);
    scene.assert_leasable(scene.port());
}
