//! The meaning of "free": every kind of request with every kind of occupant.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use portlock::{BindFreePort, Builder, ErrorKind, FreePort, Protocol};
#[cfg(unix)]
use portlock_testkit::leave_in_time_wait;
use portlock_testkit::{Block, bind_strictly, lock_dir};
use socket2::{Domain, Socket, Type};

/// A second loopback address, or the first again on macOS, which has no other by default.
const SECOND: &str = if cfg!(target_os = "macos") {
    "127.0.0.1"
} else {
    "127.0.0.2"
};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn bind(host: IpAddr, port: u16, ty: Type, only_v6: bool, reuse_address: bool) -> Socket {
    let address = SocketAddr::new(host, port);
    let socket = Socket::new(Domain::for_address(address), ty, None).expect("a socket");
    if host.is_ipv6() {
        socket.set_only_v6(only_v6).expect("unbound");
    }
    socket.set_reuse_address(reuse_address).expect("unbound");
    let bound = socket.bind(&address.into());
    bound.unwrap_or_else(|error| panic!("{address}: {error}"));
    socket
}

/// The addresses that an occupant (row) and a request (column) have in common.
const REQUESTS: [&str; 6] = ["any", "127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "::"];
const OCCUPANTS: [(&str, [bool; 6]); 6] = {
    const TAKEN: bool = true;
    const FREE: bool = false;
    [
        ("127.0.0.1", [TAKEN, TAKEN, FREE, TAKEN, FREE, TAKEN]),
        ("127.0.0.2", [TAKEN, FREE, TAKEN, TAKEN, FREE, TAKEN]),
        ("0.0.0.0", [TAKEN, TAKEN, TAKEN, TAKEN, FREE, TAKEN]),
        ("::1", [TAKEN, FREE, FREE, FREE, TAKEN, TAKEN]),
        (":: only", [TAKEN, FREE, FREE, FREE, TAKEN, TAKEN]),
        ("::", [TAKEN, TAKEN, TAKEN, TAKEN, TAKEN, TAKEN]),
    ]
};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Listening,
    ListeningWithReuseAddress,
    Bound,
    Udp,
}

const KINDS: [Kind; 4] = [
    Kind::Listening,
    Kind::ListeningWithReuseAddress,
    Kind::Bound,
    Kind::Udp,
];

fn occupy(name: &str, port: u16, kind: Kind) -> Socket {
    let only_v6 = name == ":: only";
    let host = ip(name.trim_end_matches(" only"));
    match kind {
        Kind::Bound => bind(host, port, Type::STREAM, only_v6, false),
        Kind::Udp => bind(host, port, Type::DGRAM, only_v6, false),
        Kind::Listening | Kind::ListeningWithReuseAddress => {
            let reuse_address = kind == Kind::ListeningWithReuseAddress;
            let socket = bind(host, port, Type::STREAM, only_v6, reuse_address);
            socket.listen(1).expect("bound");
            socket
        }
    }
}

fn builder(dir: &tempfile::TempDir, block: &Block) -> Builder {
    FreePort::builder()
        .ports(block.ports.clone())
        .lock_dir(dir.path())
}

/// Returns whether Wine, under which the Windows tests run, may differ from Microsoft's
/// documentation of SO_EXCLUSIVEADDRUSE, or the documentation does not cover the case.
fn may_differ(occupant: &str, kind: Kind, request: &str) -> bool {
    let specific = |host: &str| ["127.0.0.1", "127.0.0.2"].contains(&host);
    cfg!(windows)
        && if kind == Kind::Bound {
            // A dual-stack socket and an IPv4 one.
            occupant == "::" && !request.contains(':') && request != "any"
        } else {
            // A wildcard address beside one that is in use.
            specific(occupant) && specific(request) && occupant != request
        }
}

#[test]
fn every_request_against_every_occupant() {
    let (dir, block) = (lock_dir(), Block::new(1));
    // Without a lock file, which a check does not create.
    let unused = lock_dir();
    let port = block.first();
    let mut wrong = Vec::new();
    let mut cells = 0;
    let is_there = |host: &str| host != "127.0.0.2" || host == SECOND;
    for (occupant, row) in OCCUPANTS {
        if !is_there(occupant) {
            continue;
        }
        for kind in KINDS {
            let _occupant = occupy(occupant, port, kind);
            for (request, common_address) in REQUESTS.into_iter().zip(row) {
                if !is_there(request) {
                    continue;
                }
                for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::TcpAndUdp] {
                    let common_protocol = match protocol {
                        Protocol::Udp => kind == Kind::Udp,
                        Protocol::Tcp => kind != Kind::Udp,
                        _ => true,
                    };
                    // For a leased port, even TIME_WAIT counts as free, but not a process that is
                    // alive.
                    for reuse_address in [false, true] {
                        let mut builder = builder(&dir, &block)
                            .protocol(protocol)
                            .reuse_address(reuse_address);
                        if request != "any" {
                            builder = builder.host(ip(request));
                        }
                        let taken = match builder.try_acquire() {
                            Ok(_) => false,
                            Err(error) if error.kind() == ErrorKind::Exhausted => true,
                            Err(error) => panic!("{occupant} {kind:?} {request}: {error}"),
                        };
                        let checked = builder.lock_dir(unused.path()).check().is_err();
                        if checked != taken {
                            wrong.push((occupant, kind, request, protocol, checked));
                        }
                        cells += 1;
                        if may_differ(occupant, kind, request) {
                            continue;
                        }
                        if taken != (common_address && common_protocol) {
                            wrong.push((occupant, kind, request, protocol, taken));
                        }
                    }
                }
            }
        }
    }
    let hosts = if is_there("127.0.0.2") { 6 } else { 5 };
    assert_eq!(cells, hosts * 4 * hosts * 3 * 2);
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn a_leased_port_can_be_bound_strictly_on_every_requested_address() {
    let (dir, block) = (lock_dir(), Block::new(4));
    let _occupants = block
        .ports
        .clone()
        .skip(1)
        .zip(["127.0.0.1", "0.0.0.0", "::1"])
        .map(|(port, host)| occupy(host, port, Kind::Listening))
        .collect::<Vec<_>>();
    for _ in 0..20 {
        let port = builder(&dir, &block).acquire().expect("one is free");
        assert_eq!(port.port(), block.first());
        drop(bind_strictly(port.port()).expect("free on every address"));
    }
    let both = builder(&dir, &block)
        .host(ip(SECOND))
        .host(ip("::1"))
        .protocol(Protocol::TcpAndUdp);
    for _ in 0..20 {
        let port = both.acquire().expect("one is free").port();
        for host in [SECOND, "::1"] {
            for ty in [Type::STREAM, Type::DGRAM] {
                bind(ip(host), port, ty, true, false);
            }
        }
    }
}

#[test]
fn a_port_that_this_process_leases_is_leased_in_every_directory() {
    let (dir, used, unused, block) = (lock_dir(), lock_dir(), lock_dir(), Block::new(1));
    let leave_lock_file = builder(&used, &block).try_acquire().expect("free");
    drop(leave_lock_file);
    let lease = builder(&dir, &block).try_acquire().expect("free");
    for elsewhere in [&used, &unused].map(|dir| builder(dir, &block)) {
        for outcome in [elsewhere.check(), elsewhere.try_acquire().map(drop)] {
            let error = outcome.expect_err("leased, though not bound");
            assert_eq!(error.kind(), ErrorKind::Exhausted);
            assert!(error.to_string().contains("1 leased"), "{error}");
        }
    }
    drop(lease);
    builder(&unused, &block).check().expect("free");
}

#[test]
fn a_probe_occupies_its_port_until_released() {
    let block = Block::new(2);
    let probe = BindFreePort::new(block.ports.clone()).expect("free");
    let other = BindFreePort::new(block.ports.clone()).expect("one is left");
    assert_ne!(probe.port(), other.port());
    let error = BindFreePort::new(block.ports.clone()).expect_err("none is left");
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    assert!(error.to_string().ends_with("2 bound by other programs"));

    let port = probe.port();
    for host in ["127.0.0.1", SECOND, "0.0.0.0", "::1", "::"] {
        // std sets SO_REUSEADDR, which on macOS allows binding a specific address.
        if !cfg!(target_os = "macos") || ip(host).is_unspecified() {
            assert!(TcpListener::bind((host, port)).is_err(), "{host}");
        }
    }
    UdpSocket::bind(("0.0.0.0", port)).expect("UDP ports are others");
    probe.release().expect("released");
    TcpListener::bind(("0.0.0.0", port)).expect("free again");
}

// On Windows, TIME_WAIT blocks no bind, and on macOS nothing shows that it is TIME_WAIT.
#[cfg(target_os = "linux")]
#[test]
fn time_wait_is_a_last_resort_and_counts_as_free_or_busy_if_asked_for() {
    let (dir, block) = (lock_dir(), Block::new(2));
    let strictly_free = block.first() + 1;
    let address = ("127.0.0.1", block.first());
    let builder = |ports: std::ops::RangeInclusive<u16>| {
        FreePort::builder().ports(ports).lock_dir(dir.path())
    };
    let (one, two) = (
        builder(block.first()..=block.first()),
        builder(block.ports.clone()),
    );
    leave_in_time_wait(block.first());

    for _ in 0..20 {
        let port = two.try_acquire().expect("one is free");
        assert_eq!(port.port(), strictly_free);
        two.check().expect("the other one is a last resort");
    }
    let strict = one.clone().reuse_address(false);
    for error in [strict.try_acquire().map(drop), strict.check()] {
        let error = error.expect_err("strictly, it is in use");
        assert_eq!(error.kind(), ErrorKind::Exhausted);
        assert!(error.to_string().contains("1 in TIME_WAIT"), "{error}");
    }
    let equal = two.clone().reuse_address(true);
    let mut leased = (0..200).map(|_| equal.try_acquire().expect("free").port());
    assert!(leased.any(|port| port == block.first()));

    let both = two.acquire_block(2).expect("one by the last resort");
    drop(both);
    one.check().expect("free but for TIME_WAIT");
    let (port, listener) = one.listen().expect("free but for TIME_WAIT");
    drop((listener, port));
    let port = one.try_acquire().expect("free but for TIME_WAIT");
    let server = TcpListener::bind(address).expect("std sets SO_REUSEADDR");
    drop((server, port));

    // A socket that does not listen yet keeps it busy.
    let bound = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    bound.set_reuse_address(true).expect("unbound");
    bound
        .bind(&SocketAddr::from(([127, 0, 0, 1], strictly_free)).into())
        .expect("free");
    let other = builder(strictly_free..=strictly_free);
    for builder in [other.clone(), other.reuse_address(true)] {
        let error = builder.try_acquire().expect_err("bound by another program");
        assert!(
            error.to_string().contains("1 in TIME_WAIT or bound"),
            "{error}"
        );
    }
    // The same if there are closing connections on another address.
    let elsewhere = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    elsewhere.set_reuse_address(true).expect("unbound");
    let bound_elsewhere = SocketAddr::from(([127, 0, 0, 2], block.first()));
    if elsewhere.bind(&bound_elsewhere.into()).is_ok() {
        let other = one.clone().host(bound_elsewhere.ip());
        for builder in [other.clone(), other.reuse_address(true)] {
            builder.try_acquire().expect_err("bound by another program");
        }
    }
    drop(elsewhere);
    // So does a connection that is not closing.
    drop(bound);
    let listener = TcpListener::bind(("127.0.0.1", strictly_free)).expect("free");
    let client = TcpStream::connect(("127.0.0.1", strictly_free)).expect("it listens");
    let (connection, _) = listener.accept().expect("a connection");
    drop(listener);
    leave_in_time_wait(strictly_free);
    let busy = builder(strictly_free..=strictly_free);
    let busy = [busy.clone(), busy.reuse_address(true)];
    for builder in &busy {
        builder.try_acquire().expect_err("there is a connection");
    }
    // A connection that is shut down keeps it busy too, while its program still has the socket.
    let shut_down = connection.shutdown(std::net::Shutdown::Write);
    shut_down.expect("connected");
    for builder in &busy {
        builder.try_acquire().expect_err("it can still read");
    }
    drop((client, connection));
}

#[cfg(target_os = "macos")]
#[test]
fn connections_alone_count_as_free_on_request() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = block.first();
    leave_in_time_wait(port);
    let default = builder(&dir, &block);
    let strict = default.clone().reuse_address(false);
    for builder in [&default, &strict] {
        let error = builder.try_acquire().expect_err("strictly, it is in use");
        assert!(error.to_string().contains("1 in TIME_WAIT"), "{error}");
        builder.check().expect_err("strictly, it is in use");
    }
    let shared = default.reuse_address(true);
    shared.check().expect("free but for TIME_WAIT");
    drop(shared.listen().expect("free but for TIME_WAIT"));
    let lease = shared.try_acquire().expect("free but for TIME_WAIT");
    drop(TcpListener::bind(("127.0.0.1", port)).expect("std sets SO_REUSEADDR"));
    drop(lease);

    // A socket that does not listen yet keeps it busy, and so does a server beside the
    // connection.
    for host in ["127.0.0.1", "0.0.0.0", "::1", "::"] {
        for kind in [Kind::Bound, Kind::Listening] {
            let occupant = bind(ip(host), port, Type::STREAM, true, true);
            if kind == Kind::Listening {
                occupant.listen(1).expect("bound");
            }
            let error = shared.try_acquire().expect_err("bound by another program");
            // The system does not show the process of a socket that does not listen.
            let by = match kind {
                Kind::Bound => ": 1 bound by another program",
                _ => ": bound by pid ",
            };
            assert!(error.to_string().contains(by), "{host}: {error}");
        }
    }
}

#[test]
fn a_socket_is_held_for_tcp_alone() {
    let (dir, block) = (lock_dir(), Block::new(1));
    for protocol in [Protocol::Udp, Protocol::TcpAndUdp] {
        let builder = builder(&dir, &block).protocol(protocol);
        let error = builder.clone().hold_socket(true).try_acquire();
        let error = error.expect_err("Linux would assign the port to others");
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        builder.try_acquire().map(drop).expect("nothing is left");
    }
}

#[test]
fn the_address_to_connect_to() {
    let (dir, block) = (lock_dir(), Block::new(1));
    for (host, address) in [
        (None, "127.0.0.1"),
        (Some("0.0.0.0"), "127.0.0.1"),
        (Some(SECOND), SECOND),
        (Some("::1"), "::1"),
    ] {
        let builder = builder(&dir, &block);
        let builder = match host {
            Some(host) => builder.host(ip(host)),
            None => builder,
        };
        let (port, _listener) = builder.listen().expect("free");
        assert_eq!(port.addr(), SocketAddr::new(ip(address), block.first()));
        TcpStream::connect(port.addr()).expect("it listens there");
    }
}

/// To find out whether a lingering socket has the port, the probe binds a TCP socket again with
/// SO_REUSEADDR. A UDP socket would then share the server's port, and receive its datagrams.
#[test]
fn a_udp_server_with_reuse_address_is_not_joined_by_a_probe() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let loopback = ip("127.0.0.1");
    let _server = bind(loopback, *block.ports.start(), Type::DGRAM, false, true);
    let builder = builder(&dir, &block).protocol(Protocol::Udp);
    for builder in [builder.clone(), builder.host(loopback)] {
        let error = builder.try_acquire().expect_err("the server has it");
        let counts = error.counts().expect("no port is free");
        assert_eq!((counts.bound, counts.lingering), (1, 0), "{error}");
    }
}
