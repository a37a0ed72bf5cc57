//! portpicker's functions, and the client of a port server.

#[cfg(unix)]
#[path = "portpicker/socket.rs"]
mod server;
#[cfg(windows)]
#[path = "portpicker/pipe.rs"]
mod server;

use std::{collections::HashSet, env, net::TcpListener, path::Path};

use portlock::{
    ErrorKind, FreePort, LockDir,
    compat::{
        SocketType,
        portpicker::{
            add_reserved_port, bind, get_port_from_port_server, is_port_free, pick_unused_port,
            return_port,
        },
    },
};
use portlock_testkit::{
    Block, NOT_FOUND, Parent, Peer, bind_strictly, command, lock_dir, run_child,
};
use serial_test::{parallel, serial};
use server::{address_in, server};

// The tests that bind ports strictly themselves are serial: a child that another test is spawning
// has such a socket too, until it calls exec.

#[test]
fn child() {
    run_child(&[("pick", pick), ("reserved", reserved)]);
}

#[test]
#[parallel]
fn the_client_distinguishes_all_failures() {
    let dir = lock_dir();
    let address = &address_in(dir.path());
    let ask = || get_port_from_port_server(address, 812);
    let refused = |part: &str| {
        let error = ask().expect_err(part);
        assert_eq!(error.kind(), ErrorKind::PortServer);
        let message = error.to_string();
        assert!(
            message.contains(address) && message.contains(part),
            "{message}"
        );
    };
    refused(NOT_FOUND);
    #[cfg(unix)]
    {
        std::fs::write(address, "").expect("our own directory");
        refused(if cfg!(target_os = "macos") {
            "Socket operation on non-socket"
        } else {
            "Connection refused"
        });
        std::fs::remove_file(address).expect("our own directory");
    }

    let answers = [
        "15000\n",
        "15001",
        "",
        "0\n",
        "abc\n",
        "70000\n",
        "1234567890123456789\n",
        "00\n",
        "           150029\n",
    ];
    let server = server(address, &answers);
    assert_eq!(ask().expect("a port"), 15000);
    assert_eq!(ask().expect("a port"), 15001);
    refused("no port for process 812");
    refused("no port for process 812");
    refused("\"abc\\n\"");
    refused("\"70000\\n\"");
    refused("no port");
    refused("no port for process 812");
    refused("no port");
    let requests = server.join().expect("no panic");
    assert!(
        requests.iter().all(|request| request == "812\n"),
        "{requests:?}"
    );

    let long = format!("{address}{}", "x".repeat(200));
    let error = get_port_from_port_server(&long, 812).expect_err("too long for a socket");
    assert_eq!(error.kind(), ErrorKind::PortServer);
}

fn start(role: &str, dir: &Path, server: &str, ports: &str) -> Peer {
    let binary = env::current_exe().expect("this test binary");
    let mut command = command(&[], &binary, role, &[]);
    command
        .env("PORTLOCK_DIR", dir)
        .env("PORTLOCK_PORTS", ports)
        .env("PORTSERVER_ADDRESS", server);
    Peer::start_command(command)
}

/// Collects the warnings of the log crate.
struct Warnings;

impl log::Log for Warnings {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        println!("\n@{}", record.args());
    }

    fn flush(&self) {}
}

/// Picks as long as the parent requests it, and reports the ports.
fn pick(parent: &Parent) {
    log::set_logger(&Warnings).expect("the only one");
    log::set_max_level(log::LevelFilter::Warn);
    loop {
        match parent.hear().split_once(' ') {
            None => match pick_unused_port() {
                Ok(port) => parent.say(port),
                Err(error) => parent.say(format!("{:?}", error.kind())),
            },
            Some((_, port)) => match return_port(port.parse().expect("a port")) {
                Ok(()) => parent.say("returned"),
                Err(error) => parent.say(format!("{:?}", error.kind())),
            },
        }
    }
}

#[test]
#[serial]
fn a_picked_port_is_leased_until_returned_or_until_the_process_ends() {
    let (dir, block) = (lock_dir(), Block::new(3));
    let mut peer = start("pick", dir.path(), "", &block.set());
    let mut ask = |line: &str| {
        peer.say(line);
        peer.hear()
    };
    let ports: HashSet<String> = (0..3).map(|_| ask("pick")).collect();
    assert_eq!(ports.len(), 3);
    for port in &ports {
        let port: u16 = port.parse().expect("a port");
        let builder = FreePort::builder().ports(port..=port).lock_dir(dir.path());
        let error = builder.try_acquire().expect_err("leased");
        assert_eq!(error.kind(), ErrorKind::Exhausted);
        drop(bind_strictly(port).expect("and not bound"));
    }
    let one = ports.iter().next().expect("three");
    assert_eq!(ask(&format!("return {one}")), "returned");
    assert_eq!(ask(&format!("return {one}")), "InvalidPorts");
    assert_eq!(ask("return 1"), "InvalidPorts");
    assert_eq!(&ask("pick"), one);

    peer.kill();
    let builder = FreePort::builder()
        .ports(block.ports.clone())
        .lock_dir(dir.path());
    let all = builder.timeout(std::time::Duration::ZERO).acquire_many(3);
    assert_eq!(all.expect("the process has ended").len(), 3);
}

#[test]
#[parallel]
fn a_server_that_fails_is_replaced_by_a_lease_with_a_warning() {
    let (dir, block) = (lock_dir(), Block::new(2));
    let address = &address_in(dir.path());
    let mut peer = start("pick", dir.path(), address, &block.set());
    peer.say("pick");
    let warning = peer.hear();
    assert!(
        warning.contains("cannot connect to port server"),
        "{warning}"
    );
    assert!(warning.contains(address), "{warning}");
    let port: u16 = peer.hear().parse().expect("a port");
    assert!(
        warning.ends_with(&format!("leased port {port} without it")),
        "{warning}"
    );
    let leased = LockDir::open(dir.path()).expect("trusted").entry(port);
    let owner = leased.expect("readable").expect("leased").owner;
    assert_eq!(owner.expect("a record").pid(), peer.id());

    let server = server(address, &[""]);
    peer.say("pick");
    assert!(peer.hear().contains("has no port for process"));
    let other: u16 = peer.hear().parse().expect("a port");
    assert_ne!(port, other);
    assert_eq!(
        server.join().expect("no panic"),
        [format!("{}\n", peer.id())]
    );
}

#[test]
#[parallel]
fn a_served_port_is_picked_again_after_it_is_returned() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let address = &address_in(dir.path());
    let server = server(address, &["15000\n", "15001\n"]);
    let mut peer = start("pick", dir.path(), address, &block.set());
    let mut ask = |line: &str| {
        peer.say(line);
        peer.hear()
    };
    assert_eq!(ask("pick"), "15000");
    assert_eq!(ask("return 15000"), "returned");
    assert_eq!(ask("pick"), "15000", "without asking");
    assert_eq!(ask("pick"), "15001");
    server.join().expect("no panic");
}

/// Arguments: none; the environment names two ports.
fn reserved(parent: &Parent) {
    let ports = portlock::PortSet::server_ports().expect("two");
    let [first, second] = ports.iter().collect::<Vec<_>>()[..] else {
        unreachable!("two ports")
    };
    assert!(is_port_free(first).expect("no failure"));
    add_reserved_port(first).expect("free");
    assert!(!is_port_free(first).expect("no failure"), "leased");
    let error = add_reserved_port(first).expect_err("leased already");
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    assert_eq!(pick_unused_port().expect("the reserved one"), first);

    let occupant = TcpListener::bind(("127.0.0.1", second)).expect("free");
    assert!(!is_port_free(second).expect("no failure"), "bound");
    let bound = |port, socket_type| bind(port, socket_type).expect("no failure");
    assert_eq!(bound(second, SocketType::Stream), None);
    assert_eq!(bound(second, SocketType::Datagram), Some(second));
    assert_eq!(bound(first, SocketType::Datagram), None, "leased");
    assert!(bound(0, SocketType::Datagram).is_some_and(|port| port > 0));
    drop(occupant);
    assert!(is_port_free(second).expect("no failure"));
    return_port(first).expect("picked");
    assert!(is_port_free(first).expect("no failure"));
    parent.say("done");
}

#[test]
#[serial]
fn reserved_ports_are_leased_and_come_first() {
    let (dir, block) = (lock_dir(), Block::new(2));
    start("reserved", dir.path(), "", &block.set()).finish_well();
}
