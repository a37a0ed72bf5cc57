//! The helpers of CPython's test suite, `test.support.socket_helper`.
//!
//! | CPython | here |
//! |---|---|
//! | `bind_port(sock, host=HOST)` | [`bind_port`]`(&socket, HOST)` |
//! | `find_unused_port(family=AF_INET, socktype=SOCK_STREAM)` | [`find_unused_port`]`(Family::V4, SocketType::Stream)` |
//! | `HOST`, `HOSTv4`, `HOSTv6` | [`HOST`], [`HOST_V4`], [`HOST_V6`] |
//!
//! `find_unused_port` returns a number that was free a moment ago, not a lease. To keep the port,
//! use [`FreePort`](crate::FreePort).

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use socket2::{Domain, SockRef, Socket, Type};

#[cfg(unix)]
use self::unix::AnySocket;
#[cfg(windows)]
use self::windows::AnySocket;
use crate::{
    bindfree::probe,
    compat::{Family, SocketType},
    error::{Error, ErrorKind, Result},
};

/// The loopback address that tests use: CPython's `HOST`, which there is the name `localhost`.
pub const HOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// The IPv4 loopback address: CPython's `HOSTv4`.
#[doc(alias = "HOSTv4")]
pub const HOST_V4: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// The IPv6 loopback address: CPython's `HOSTv6`.
#[doc(alias = "HOSTv6")]
pub const HOST_V6: Ipv6Addr = Ipv6Addr::LOCALHOST;

/// Binds `socket` to a port of `host` that the system chooses, and returns the
/// port: CPython's `bind_port(sock, host)`.
///
/// The socket can be of any type: from [socket2](https://docs.rs/socket2), from tokio, or a bare
/// descriptor such as [`OwnedFd`](std::os::fd::OwnedFd).
///
/// A TCP socket that has `SO_REUSEADDR` or `SO_REUSEPORT` set is refused. With them, `bind` can
/// succeed although another socket has the same port, and two tests each assume that it is
/// theirs. `SO_REUSEADDR` is for servers that restart at a fixed address; a test that lets the
/// system choose its port does not need it. CPython refuses only IPv4 sockets; this function
/// refuses IPv6 sockets too.
///
/// # Platform-specific behavior
///
/// On Windows, the socket is anything that implements `AsSocket`. Windows has no `SO_REUSEPORT`,
/// and a TCP socket is bound with `SO_EXCLUSIVEADDRUSE`, as in CPython: without it, another
/// socket with `SO_REUSEADDR` could take the port away.
///
/// # Errors
///
/// [`Unsupported`](ErrorKind::Unsupported) for a TCP socket with one of these
/// options; [`Probe`](ErrorKind::Probe) if the system refuses, for example because
/// the socket is of another family than `host` or has been bound before.
///
/// # Examples
///
/// ```
/// use portlock::compat::cpython::{HOST, bind_port};
/// use socket2::{Domain, Socket, Type};
///
/// let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
/// let port = bind_port(&socket, HOST)?;
/// socket.listen(1)?;
/// assert_ne!(port, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn bind_port(socket: &impl AnySocket, host: impl Into<IpAddr>) -> Result<u16> {
    let socket = SockRef::from(socket);
    let host = host.into();
    let fail = |operation: &str| {
        let message = format!("cannot {operation} a socket to be bound to {host}");
        move |error: io::Error| Error::with_cause(ErrorKind::Probe, message, error)
    };
    if socket.r#type().map_err(fail("get the type of"))? == Type::STREAM {
        for (name, set) in probe::sharing_options(&socket) {
            if set.map_err(fail("get the options of"))? {
                let message = format!(
                    "refusing to bind a TCP socket to {host} that has {name} set: it could share \
                     its port with another one"
                );
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
        }
        probe::make_strict(&socket).map_err(fail("set the options of"))?;
    }
    let any_port = SocketAddr::new(host, 0);
    socket.bind(&any_port.into()).map_err(fail("bind"))?;
    let address = socket.local_addr().map_err(fail("get the address of"))?;
    match address.as_socket() {
        Some(address) => Ok(address.port()),
        None => {
            let message = format!("a socket bound to {host} has no port");
            Err(Error::new(ErrorKind::Probe, message))
        }
    }
}

/// Returns a port that was unused a moment ago: CPython's
/// `find_unused_port(family, socktype)`.
///
/// The system chooses it from the ephemeral range, on the loopback address of the family, and any
/// program can bind it when this function returns. Use it as CPython recommends, to pass a number
/// to an external program, and only where a [`FreePort`](crate::FreePort) cannot be kept.
///
/// # Errors
///
/// [`Probe`](ErrorKind::Probe) if the system refuses, for example because it lacks that family.
///
/// # Examples
///
/// ```
/// use portlock::compat::{Family, SocketType, cpython::find_unused_port};
///
/// let port = find_unused_port(Family::V4, SocketType::Stream)?;
/// assert_ne!(port, 0);
/// # Ok::<(), portlock::Error>(())
/// ```
pub fn find_unused_port(family: Family, socket_type: SocketType) -> Result<u16> {
    let host = family.loopback();
    let (ty, name) = match socket_type {
        SocketType::Stream => (Type::STREAM, "TCP"),
        SocketType::Datagram => (Type::DGRAM, "UDP"),
    };
    let fail = |operation: &str| {
        let message = format!("cannot {operation} a {name} socket on {host}");
        move |error: io::Error| Error::with_cause(ErrorKind::Probe, message, error)
    };
    let domain = Domain::for_address((host, 0).into());
    let socket = Socket::new(domain, ty, None).map_err(fail("create"))?;
    let port = bind_port(&socket, host)?;
    // A copy of the socket in a child that is being spawned must not block the next server; see
    // `Probe::neutralize`.
    probe::neutralize(&socket).map_err(fail("set SO_REUSEADDR on"))?;
    Ok(port)
}
