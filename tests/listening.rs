//! Waiting for a server: on either loopback address, at any address of a name, and through
//! temporary errors.

mod error;

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    time::Duration,
};

use error::assert_error;
use portlock::{ErrorKind, FreePort, wait_until_listening};
use portlock_testkit::{Block, LONG, Parent, lock_dir, run_child};
#[cfg(target_os = "linux")]
use portlock_testkit::{Peer, command, have_strace, text};
use serial_test::serial;

// Serial, because a child that another test is spawning has a duplicate of each listener until it
// calls exec.

#[test]
fn child() {
    run_child(&[("wait", wait)]);
}

/// Arguments: addresses, separated by spaces, and a timeout in milliseconds. Waits for a
/// server at one of them.
fn wait(parent: &Parent) {
    let addresses: String = parent.argument(0);
    let addresses: Vec<SocketAddr> = addresses
        .split(' ')
        .map(|address| address.parse().expect("an address"))
        .collect();
    let timeout = Duration::from_millis(parent.argument(1));
    parent.say(match wait_until_listening(&addresses[..], timeout) {
        Ok(()) => "listens".to_owned(),
        Err(error) => format!("{:?} {error}", error.kind()),
    });
}

/// Returns whether this machine has IPv6.
fn has_ipv6() -> bool {
    let has_ipv6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    if !has_ipv6 {
        eprintln!("skipped: this machine has no IPv6");
    }
    has_ipv6
}

#[test]
#[serial]
fn a_lease_without_a_host_has_its_server_on_either_loopback_address() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let builder = FreePort::builder()
        .ports(block.ports.clone())
        .lock_dir(dir.path());
    let (v4, v6) = (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
    let port = builder.acquire().expect("free");
    let timed_out = port.wait_until_listening(Duration::ZERO);
    let both = format!("127.0.0.1:{port} or [::1]:{port}");
    assert_error(timed_out, ErrorKind::Timeout, &[&both]);
    for host in [v4.into(), v6.into()] {
        let address = SocketAddr::new(host, port.port());
        if address.is_ipv6() && !has_ipv6() {
            continue;
        }
        let server = TcpListener::bind(address).expect("leased to us");
        port.wait_until_listening(LONG).expect("it listens");
        drop(server);
    }
    port.release().expect("our own");

    // If there is a host, only that one counts.
    let port = builder.host(v4).acquire().expect("free");
    if has_ipv6() {
        let _server = TcpListener::bind((v6, port.port())).expect("free");
        let timed_out = port.wait_until_listening(Duration::ZERO);
        assert_error(timed_out, ErrorKind::Timeout, &["127.0.0.1"]);
    }
    let _server = TcpListener::bind((v4, port.port())).expect("leased to us");
    port.wait_until_listening(LONG).expect("it listens");
}

#[test]
#[serial]
fn several_listeners_are_those_of_their_leases() {
    let (dir, block) = (lock_dir(), Block::new(4));
    let builder = FreePort::builder()
        .ports(block.ports.clone())
        .lock_dir(dir.path());
    let all = builder.listen_many(3).expect("free");
    assert_eq!(all.len(), 3);
    for (port, listener) in &all {
        let address = listener.local_addr().expect("bound");
        assert_eq!(address.port(), port.port());
        port.wait_until_listening(LONG).expect("it listens");
    }
    let none = builder.clone().timeout(Duration::ZERO).listen_many(2);
    assert_error(none, ErrorKind::Exhausted, &["3 leased"]);
    assert!(builder.listen_many(0).expect("nothing to lease").is_empty());
}

#[test]
#[serial]
fn a_name_stands_for_all_its_addresses() {
    let block = Block::new(1);
    let name = ("localhost", block.first());
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, block.first())).expect("free");
    wait_until_listening(name, LONG).expect("it listens");
    drop(server);
    let timed_out = wait_until_listening(name, Duration::ZERO);
    assert_error(timed_out, ErrorKind::Timeout, &["127.0.0.1"]);
    // Longer than a label may be (RFC 1035), so that no name server is queried.
    let no_name = ("x".repeat(64), block.first());
    let unknown = wait_until_listening((&*no_name.0, no_name.1), LONG);
    assert_error(unknown, ErrorKind::Probe, &["cannot resolve"]);
    let none: [SocketAddr; 0] = [];
    let nowhere = wait_until_listening(&none[..], LONG);
    assert_error(nowhere, ErrorKind::Probe, &["no address"]);
}

// Uses strace.
#[cfg(target_os = "linux")]
#[test]
#[serial]
fn temporary_errors_are_retried_and_reported() {
    if !have_strace() {
        return;
    }
    let (dir, block) = (lock_dir(), Block::new(2));
    let binary = std::env::current_exe().expect("this test binary");
    let trace = dir.path().join("trace");
    let said = |addresses: &str, timeout: &str, fault: &str| {
        let inject = format!("inject=connect:{fault}");
        let strace = ["strace", "-f", "-o", text(&trace), "-e", &inject];
        let command = command(&strace, &binary, "wait", &[addresses, timeout]);
        Peer::start_command(command).hear()
    };
    let [server, none] = [block.first(), block.first() + 1].map(|port| format!("127.0.0.1:{port}"));
    let _server = TcpListener::bind(&server).expect("a free port");
    // Numbers, because the texts depend on the C library.
    for (error, number) in [
        ("ENETUNREACH", 101),
        ("EHOSTUNREACH", 113),
        ("EADDRNOTAVAIL", 99),
        ("ENETDOWN", 100),
    ] {
        // The third attempt gets through.
        let passing = format!("error={error}:when=1..2");
        assert_eq!(said(&server, "60000", &passing), "listens", "{error}");
        let lasting = said(&server, "20", &format!("error={error}"));
        let start = format!("Timeout nothing accepts connections at {server} after 0.");
        assert!(lasting.starts_with(&start), "{lasting}");
        let reported = format!("(os error {number})");
        assert!(lasting.contains(&reported), "{lasting}");
    }
    // The last error is reported, but among several addresses a refusal is preferred.
    let changing = said(&none, "0", "error=ENETDOWN:when=1");
    assert!(changing.contains("Network is down"), "{changing}");
    let both = format!("{none} {server}");
    let refused = said(&both, "0", "error=ENETDOWN:when=2");
    assert!(refused.contains("refused"), "{refused}");
    assert!(
        refused.contains(&format!("{none} or {server}")),
        "{refused}"
    );

    // The pauses increase: 63 ms for the first six, then 50 ms each.
    let refused = said(&none, "500", "error=ENETDOWN:when=1");
    assert!(refused.contains("refused"), "{refused}");
    let attempts = std::fs::read_to_string(&trace).expect("our own");
    let attempts = attempts.matches("connect(").count();
    assert!((2..=17).contains(&attempts), "{attempts} in 500 ms");

    // An error that does not go away ends the wait, unless another address is left.
    let denied = said(&server, "60000", "error=EACCES");
    let start = format!("Probe cannot connect to {server}: ");
    assert!(denied.starts_with(&start), "{denied}");
    assert_eq!(said(&both, "60000", "error=EACCES:when=1"), "listens");
}
