//! Tests against the kernel's own choice of ports, in network namespaces with special settings.
//!
//! Only Linux has namespaces.

#![cfg(target_os = "linux")]

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use portlock::{FreePort, PortSet, Protocol, ephemeral_port_range, wait_until_listening};
use portlock_testkit::{
    Block, Parent, Peer, am_root, bind_strictly, command, lock_dir, open_copy, run_child,
    start_in_namespace, text,
};

#[test]
fn child() {
    run_child(&[
        ("held and not held", held_and_not_held),
        ("server ports", server_ports),
        ("no server ports", no_server_ports),
        ("connect with itself", connect_with_itself),
        ("obey", obey),
    ]);
}

/// Returns every port that the kernel assigns to sockets bound to port 0.
fn assigned_to_bind() -> Vec<u16> {
    let mut listeners = Vec::new();
    while let Ok(listener) = TcpListener::bind(("127.0.0.1", 0)) {
        listeners.push(listener);
    }
    let port = |listener: &TcpListener| listener.local_addr().expect("bound").port();
    listeners.iter().map(port).collect()
}

/// Returns every port that the kernel assigns to clients of one server.
fn assigned_to_connect() -> Vec<u16> {
    let server = TcpListener::bind(("127.0.0.1", 5000)).expect("a namespace of our own");
    let mut clients = Vec::new();
    while let Ok(client) = TcpStream::connect(("127.0.0.1", 5000)) {
        // The client is reset at its end, so that nothing stays in TIME_WAIT.
        socket2::SockRef::from(&client)
            .set_linger(Some(Duration::ZERO))
            .expect("connected");
        clients.push((client, server.accept().expect("a client")));
    }
    let port = |client: &TcpStream| client.local_addr().expect("connected").port();
    clients.iter().map(|(client, _)| port(client)).collect()
}

/// Returns every port that the kernel assigns to UDP sockets bound to port 0.
fn assigned_to_udp() -> Vec<u16> {
    let mut sockets = Vec::new();
    while let Ok(socket) = UdpSocket::bind(("127.0.0.1", 0)) {
        sockets.push(socket);
    }
    let port = |socket: &UdpSocket| socket.local_addr().expect("bound").port();
    sockets.iter().map(port).collect()
}

/// Arguments: lock directory. The ephemeral range is 40000 to 40009.
fn held_and_not_held(parent: &Parent) {
    let builder = FreePort::builder()
        .ports(40005..=40005)
        .protocol(Protocol::TcpAndUdp)
        .lock_dir(parent.argument::<String>(0));
    assert_eq!(ephemeral_port_range().expect("set"), 40000..=40009);
    assert!(builder.overlaps_ephemeral().expect("set"));
    let outside = PortSet::from(..).difference(&(40000..=40009).into());
    let outside = builder.clone().ports(outside);
    assert!(!outside.overlaps_ephemeral().expect("set"));

    let lease = builder.try_acquire().expect("free");
    for assigned in [assigned_to_bind(), assigned_to_connect(), assigned_to_udp()] {
        assert_eq!(assigned.len(), 10, "{assigned:?}");
        assert!(assigned.contains(&40005), "the kernel ignores leases");
    }
    drop(lease);

    // UDP ports cannot be held.
    let builder = builder.protocol(Protocol::Tcp).hold_socket(true);
    let lease = builder.try_acquire().expect("free");
    for assigned in [assigned_to_bind(), assigned_to_connect()] {
        assert_eq!(assigned.len(), 9, "{assigned:?}");
        assert!(!assigned.contains(&40005), "held");
    }
    // The server for which it was leased is not blocked, nor are its clients.
    let server = TcpListener::bind(lease.addr()).expect("std sets SO_REUSEADDR");
    let client = thread::spawn(move || {
        let mut answer = String::new();
        let mut client = TcpStream::connect(lease.addr()).expect("it listens");
        client.read_to_string(&mut answer).expect("connected");
        (answer, lease)
    });
    let (mut connection, _) = server.accept().expect("a client");
    connection.write_all(b"served").expect("connected");
    drop(connection);
    let (answer, lease) = client.join().expect("no panic");
    assert_eq!(answer, "served");
    drop(server);
    // After it is released, nothing of it is left.
    let port = lease.port();
    lease.release().expect("released");
    TcpListener::bind(("127.0.0.1", port)).expect("no longer held");
    parent.say("done");
}

#[test]
fn a_held_port_is_never_assigned_by_the_kernel() {
    let dir = lock_dir();
    let script = "ip link set lo up && echo 40000 40009 > /proc/sys/net/ipv4/ip_local_port_range";
    let arguments = [text(dir.path())];
    if let Some(peer) = start_in_namespace("--net", script, "held and not held", &arguments) {
        peer.finish_well();
    }
}

/// Returns whether the port is for servers, by a calculation that is independent of portlock's.
fn is_for_servers(port: u16, privileged: bool) -> bool {
    let setting = |name: &str| {
        let path = format!("/proc/sys/net/ipv4/{name}");
        fs::read_to_string(path)
            .expect("Linux has it")
            .trim()
            .to_owned()
    };
    let ephemeral = setting("ip_local_port_range");
    let (first, last) = ephemeral.split_once('\t').expect("two numbers");
    let reserved = setting("ip_local_reserved_ports");
    let is_reserved = reserved
        .split(',')
        .filter(|range| !range.is_empty())
        .any(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            port >= first.parse().expect("a port") && port <= last.parse().expect("a port")
        });
    let unprivileged: u16 = setting("ip_unprivileged_port_start")
        .parse()
        .expect("a port");
    // From the Fetch standard's table, the ports above 1023.
    let refused_by_browsers = matches!(
        port,
        1719 | 1720 | 1723 | 2049 | 3659 | 4045 | 4190 | 5060 | 5061 | 6000 | 6566 | 6665
            ..=6669 | 6679 | 6697 | 10080
    );
    let is_ephemeral =
        port >= first.parse().expect("a port") && port <= last.parse().expect("a port");
    port >= 1024
        && !is_ephemeral
        && !is_reserved
        && (privileged || port >= unprivileged)
        && !refused_by_browsers
}

/// Arguments: whether this process may bind any port.
fn server_ports(parent: &Parent) {
    let privileged: bool = parent.argument(0);
    let ports = PortSet::server_ports().expect("settings that can be read");
    // Reading the settings 65535 times would take too long.
    for port in (1000..1100).chain((1100..=65535).step_by(5)).chain([65535]) {
        assert_eq!(
            ports.contains(port),
            is_for_servers(port, privileged),
            "{port}"
        );
    }
    for edge in [
        1719, 3000, 4045, 8080, 9148, 9150, 10080, 20000, 29999, 32768, 60999,
    ] {
        for port in [edge - 1, edge, edge + 1] {
            assert_eq!(
                ports.contains(port),
                is_for_servers(port, privileged),
                "{port}"
            );
        }
    }
    parent.say("done");
}

#[test]
fn server_ports_follow_the_settings_of_the_namespace() {
    let set = |settings: &[(&str, &str)]| {
        let write =
            |(name, value): &(&str, &str)| format!(" && echo {value} > /proc/sys/net/ipv4/{name}");
        let writes: String = settings.iter().map(write).collect();
        format!("true{writes}")
    };
    let reserved = ("ip_local_reserved_ports", "8080,9148-9150,65535");
    let ephemeral = ("ip_local_port_range", "20000 29999");
    let unprivileged = ("ip_unprivileged_port_start", "3000");
    for settings in [&[][..], &[ephemeral, reserved], &[unprivileged, reserved]] {
        let script = set(settings);
        if let Some(peer) = start_in_namespace("--net", &script, "server ports", &["true"]) {
            peer.finish_well();
        }
    }
    // Again without privileges. A process that starts without them has none in the namespace
    // either, and so cannot prepare it.
    if am_root() {
        let (_dir, copy) = open_copy();
        let script = set(&[unprivileged]) + " && exec \"$0\" \"$@\"";
        let prefix = [
            "unshare",
            "--net",
            "sh",
            "-c",
            &script,
            "setpriv",
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
        ];
        let command = command(&prefix, &copy, "server ports", &["false"]);
        Peer::start_command(command).finish_well();
    }
}

fn no_server_ports(parent: &Parent) {
    let error = PortSet::server_ports().expect_err("all are ephemeral");
    assert_eq!(error.kind(), portlock::ErrorKind::InvalidPorts);
    assert!(error.to_string().contains("1024 to 65535"), "{error}");
    parent.say("done");
}

#[test]
fn a_system_that_leaves_no_port_for_servers_says_so() {
    let script = "echo 1024 65535 > /proc/sys/net/ipv4/ip_local_port_range";
    if let Some(peer) = start_in_namespace("--net", script, "no server ports", &[]) {
        peer.finish_well();
    }
}

/// The ephemeral range is only port 40000.
fn connect_with_itself(parent: &Parent) {
    let port = ("127.0.0.1", 40000);
    let itself = TcpStream::connect(port).expect("simultaneous open");
    assert_eq!(itself.local_addr().ok(), itself.peer_addr().ok());
    // So that nothing stays in TIME_WAIT.
    socket2::SockRef::from(&itself)
        .set_linger(Some(Duration::ZERO))
        .expect("connected");
    drop(itself);
    let error = wait_until_listening(port, Duration::ZERO).expect_err("there is no server");
    assert_eq!(error.kind(), portlock::ErrorKind::Timeout);
    assert!(error.to_string().contains("refused"), "{error}");
    parent.say("done");
}

#[test]
fn a_client_that_is_connected_with_itself_has_found_no_server() {
    let script = "ip link set lo up && echo 40000 40000 > /proc/sys/net/ipv4/ip_local_port_range";
    if let Some(peer) = start_in_namespace("--net", script, "connect with itself", &[]) {
        peer.finish_well();
    }
}

/// Arguments: lock directory. Follows the parent's orders, and reports the outcomes.
fn obey(parent: &Parent) {
    let dir: String = parent.argument(0);
    let mut held = None;
    let mut sockets = Vec::new();
    parent.say("started");
    loop {
        let line = parent.hear();
        let (order, port) = line.split_once(' ').expect("an order and a port");
        let port: u16 = port.parse().expect("a port");
        let one = FreePort::builder().ports(port..=port).lock_dir(&dir);
        match order {
            "lease" => match one.try_acquire() {
                Ok(lease) => {
                    held = Some(lease);
                    parent.say("leased");
                }
                Err(error) => parent.say(error),
            },
            "release" => {
                let lease = held.take().expect("leased before");
                lease.release().expect("our own");
                parent.say("released");
            }
            "bind" => {
                sockets.push(bind_strictly(port).expect("no process has it in this namespace"));
                parent.say("bound");
            }
            _ => unreachable!("no such order: {order}"),
        }
    }
}

#[test]
fn namespaces_that_share_a_directory_share_its_leases() {
    let (dir, block) = (lock_dir(), Block::new(2));
    let [port, bound] = [block.first(), block.first() + 1];
    let arguments = [text(dir.path())];
    let inside = || start_in_namespace("--net", "ip link set lo up", "obey", &arguments);
    let (Some(mut one), Some(mut two)) = (inside(), inside()) else {
        return;
    };
    let mut outside = Peer::start("obey", &arguments);
    for peer in [&one, &two, &outside] {
        assert_eq!(peer.hear(), "started");
    }
    // A port that is leased in one is leased in all, although it could be bound there.
    assert_eq!(one.ask(format!("lease {port}")), "leased");
    assert_eq!(one.ask(format!("bind {port}")), "bound");
    for peer in [&mut one, &mut two, &mut outside] {
        let said = peer.ask(format!("lease {port}"));
        assert!(said.contains("1 leased"), "{said}");
    }
    assert_eq!(two.ask(format!("bind {port}")), "bound");
    assert_eq!(one.ask(format!("release {port}")), "released");
    // After the release, it is bound in both, and free for callers in whose namespace it is not
    // bound.
    for peer in [&mut one, &mut two] {
        let said = peer.ask(format!("lease {port}"));
        assert!(said.contains("1 bound"), "{said}");
    }
    assert_eq!(outside.ask(format!("lease {port}")), "leased");

    // A port that is bound without a lease in one is free in the other, and once leased there,
    // leased in all.
    assert_eq!(one.ask(format!("bind {bound}")), "bound");
    let said = one.ask(format!("lease {bound}"));
    assert!(said.contains("1 bound"), "{said}");
    assert_eq!(two.ask(format!("lease {bound}")), "leased");
    for peer in [&mut one, &mut two] {
        let said = peer.ask(format!("lease {bound}"));
        assert!(said.contains("1 leased"), "{said}");
    }
}
