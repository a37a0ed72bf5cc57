//! The helpers of CPython's test suite.

use std::net::{IpAddr, TcpListener, UdpSocket};

use portlock::{
    ErrorKind,
    compat::{
        Family, SocketType,
        cpython::{HOST, HOST_V4, HOST_V6, bind_port, find_unused_port},
    },
};
use socket2::{Domain, Socket, Type};

#[cfg(unix)]
type Descriptor = std::os::fd::OwnedFd;
#[cfg(windows)]
type Descriptor = std::os::windows::io::OwnedSocket;

fn socket(domain: Domain, ty: Type) -> Socket {
    Socket::new(domain, ty, None).expect("a socket")
}

#[test]
fn bind_port_returns_the_port_it_bound() {
    for (domain, host) in [
        (Domain::IPV4, IpAddr::from(HOST)),
        (Domain::IPV6, HOST_V6.into()),
    ] {
        for ty in [Type::STREAM, Type::DGRAM] {
            let socket = socket(domain, ty);
            let port = bind_port(&socket, host).expect("bound");
            let address = socket.local_addr().expect("bound").as_socket();
            assert_eq!(address, Some((host, port).into()));
            assert_ne!(port, 0);
        }
    }
}

#[test]
fn bind_port_refuses_tcp_sockets_that_could_share_their_port() {
    for (domain, host) in [
        (Domain::IPV4, IpAddr::from(HOST)),
        (Domain::IPV6, HOST_V6.into()),
    ] {
        let reuse_address = socket(domain, Type::STREAM);
        reuse_address.set_reuse_address(true).expect("unbound");
        let sockets = [
            (reuse_address, "SO_REUSEADDR"),
            // Windows has no such option.
            #[cfg(unix)]
            {
                let reuse_port = socket(domain, Type::STREAM);
                reuse_port.set_reuse_port(true).expect("unbound");
                (reuse_port, "SO_REUSEPORT")
            },
        ];
        for (socket, name) in sockets {
            let error = bind_port(&socket, host).expect_err(name);
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains(name), "{error}");
            // On Windows, it has no address in this case.
            let address = socket
                .local_addr()
                .ok()
                .and_then(|address| address.as_socket());
            assert_eq!(address.map_or(0, |address| address.port()), 0, "not bound");
        }
        // Multicast receivers need the option.
        let udp = socket(domain, Type::DGRAM);
        udp.set_reuse_address(true).expect("unbound");
        bind_port(&udp, host).expect("UDP sockets may set it");
    }
}

#[test]
fn bind_port_reports_which_operation_the_system_refused() {
    let socket = socket(Domain::IPV4, Type::STREAM);
    let error = bind_port(&socket, HOST_V6).expect_err("another family");
    assert_eq!(error.kind(), ErrorKind::Probe);
    assert!(error.to_string().contains("::1"), "{error}");
    bind_port(&socket, HOST).expect("bound");
    let error = bind_port(&socket, HOST).expect_err("bound before");
    assert_eq!(error.kind(), ErrorKind::Probe);
}

#[test]
fn bind_port_accepts_the_sockets_of_any_crate() {
    // By reference and by value, and a type that only borrows the descriptor.
    let plain: Descriptor = socket(Domain::IPV4, Type::STREAM).into();
    let port = bind_port(&plain, HOST_V4).expect("bound");
    let socket = Socket::from(plain);
    let address = socket.local_addr().expect("bound").as_socket();
    assert_eq!(address, Some((HOST_V4, port).into()));
    let error = bind_port(&&socket, HOST).expect_err("bound before");
    assert_eq!(error.kind(), ErrorKind::Probe);
}

#[test]
fn find_unused_port_returns_a_port_that_can_be_bound() {
    let tcp = find_unused_port(Family::V4, SocketType::Stream).expect("a port");
    TcpListener::bind((HOST, tcp)).expect("unused");
    let tcp = find_unused_port(Family::V6, SocketType::Stream).expect("a port");
    TcpListener::bind((HOST_V6, tcp)).expect("unused");
    let udp = find_unused_port(Family::V4, SocketType::Datagram).expect("a port");
    UdpSocket::bind((HOST, udp)).expect("unused");
}
