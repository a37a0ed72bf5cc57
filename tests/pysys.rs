//! PySys's port allocation.

use std::{env, net::TcpListener};

use portlock::{
    ErrorKind, FreePort, PortSet,
    compat::{
        Family, SocketType,
        pysys::{
            TcpPortOwner, allocate_tcp_port, get_server_tcp_ports, initialize_port_pool,
            log_port_allocation_stats, port_is_in_use,
        },
    },
};

use portlock_testkit::{Block, Parent, Peer, command, lock_dir, run_child, text};

#[test]
fn child() {
    run_child(&[("allocate", allocate)]);
}

fn is_leased(port: u16) -> bool {
    match FreePort::try_new(port) {
        Ok(_) => false,
        Err(error) if error.is_busy() => true,
        Err(error) => panic!("{error}"),
    }
}

fn is_in_use(port: u16, host: &str) -> bool {
    port_is_in_use(port, host, Family::V4, SocketType::Stream).expect("no failure")
}

/// The environment names four ports.
fn allocate(parent: &Parent) {
    let all = get_server_tcp_ports().expect("four");
    assert_eq!(all.len(), 4);

    let owner = TcpPortOwner::new().expect("free");
    let port = owner.port();
    assert!(all.contains(port) && is_leased(port) && is_in_use(port, ""));
    assert_eq!(owner.to_string(), port.to_string());
    owner.cleanup().expect("our own");
    assert!(!is_leased(port) && !is_in_use(port, ""));

    let dropped = TcpPortOwner::new().expect("free");
    let port = dropped.port();
    drop(dropped);
    assert!(!is_leased(port));

    // A port may be in use on an address other than the requested one. macOS has one loopback
    // address of each family, and under Wine a bind of the wildcard address, which is tried on
    // Windows, sees sockets of all addresses of its family.
    let (other, family) = if cfg!(any(target_os = "macos", windows)) {
        ("::1", Family::V6)
    } else {
        ("127.0.0.2", Family::V4)
    };
    let is_in_use_at_other = |port| {
        let is_in_use = port_is_in_use(port, other, family, SocketType::Stream);
        is_in_use.expect("no failure")
    };
    let servers: Vec<TcpListener> = all
        .iter()
        .map(|port| TcpListener::bind(("127.0.0.1", port)).expect("free"))
        .collect();
    assert!(is_in_use(port, "") && is_in_use(port, "localhost") && !is_in_use_at_other(port));
    let port = allocate_tcp_port(&[other], family).expect("free there");
    assert!(is_leased(port) && is_in_use_at_other(port), "for good");
    drop(servers);

    let three: Vec<TcpPortOwner> = (0..3)
        .map(|_| TcpPortOwner::with_hosts(&[], Family::V6).expect("free"))
        .collect();
    let stats = log_port_allocation_stats().expect("no fork");
    assert_eq!(stats.total_server_ports, 4);
    assert_eq!(stats.peak_allocated_ports, 4);
    assert_eq!(stats.lifetime_total_allocated_ports, 6);
    drop(three);
    initialize_port_pool().expect("again");

    for (host, family) in [
        ("127.0.0.1", Family::V6),
        ("::1", Family::V4),
        ("no such host", Family::V4),
    ] {
        let error = TcpPortOwner::with_hosts(&[host], family).expect_err("no such address");
        assert_eq!(error.kind(), ErrorKind::Probe);
        assert!(error.to_string().contains(host), "{error}");
    }
    parent.say(port);
    parent.hear();
    parent.say("done");
}

#[test]
fn a_port_is_leased_until_it_is_cleaned_up() {
    let (dir, block) = (lock_dir(), Block::new(4));
    let binary = env::current_exe().expect("this test binary");
    let mut command = command(&[], &binary, "allocate", &[]);
    command.env("PORTLOCK_DIR", text(dir.path())).env(
        "PORTLOCK_PORTS",
        PortSet::from(block.ports.clone()).to_string(),
    );
    let mut peer = Peer::start_command(command);
    let port: u16 = peer.hear().parse().expect("a port");
    let builder = FreePort::builder().ports(port).lock_dir(dir.path());
    assert!(builder.try_acquire().expect_err("the child's").is_busy());
    peer.say("end");
    peer.finish_well();
    builder.try_acquire().map(drop).expect("with the process");
}
