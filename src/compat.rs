//! Helpers under the names that other tools gave them.
//!
//! They are here so that tests can be moved over line by line. What they
//! give is a number that was free a moment ago, not a lease: to keep it free,
//! use [`FreePort`](crate::FreePort).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use socket2::{Domain, Socket, Type};

use crate::error::{Error, ErrorKind, Result};

/// The host of CPython's `test.support.socket_helper.HOST`: the IPv4 loopback
/// address.
pub const HOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// The host of CPython's `HOSTv6`: the IPv6 loopback address.
pub const HOST_V6: Ipv6Addr = Ipv6Addr::LOCALHOST;

/// Binds `socket` to a port of `host` that the system chooses, and gives the
/// port: CPython's `bind_port(sock, host)`.
///
/// A TCP socket that has `SO_REUSEADDR` or `SO_REUSEPORT` set is refused. With
/// them, `bind` may succeed although another socket has the same port, and two
/// tests each believe that it is theirs. `SO_REUSEADDR` is for servers at a
/// fixed address that restart; a test that lets the system choose its port has
/// no use for it. CPython refuses IPv4 sockets only; the same holds for IPv6.
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
/// use portlock::compat::{HOST, bind_port};
/// use socket2::{Domain, Socket, Type};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
/// let port = bind_port(&socket, HOST)?;
/// socket.listen(1)?;
/// assert_ne!(port, 0);
/// # Ok(())
/// # }
/// ```
pub fn bind_port(socket: &Socket, host: impl Into<IpAddr>) -> Result<u16> {
    let host = host.into();
    let fail = |operation: &str| {
        let message = format!("cannot {operation} a socket to be bound to {host}");
        move |error: io::Error| Error::with_cause(ErrorKind::Probe, message, error)
    };
    if socket.r#type().map_err(fail("get the type of"))? == Type::STREAM {
        let options = [
            ("SO_REUSEADDR", socket.reuse_address()),
            ("SO_REUSEPORT", socket.reuse_port()),
        ];
        for (name, set) in options {
            if set.map_err(fail("get the options of"))? {
                let message = format!(
                    "refusing to bind a TCP socket to {host} that has {name} set: it could share \
                     its port with another one"
                );
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
        }
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

/// A port that was unused a moment ago: CPython's
/// `find_unused_port(family, socktype)`.
///
/// The system chooses it from the ephemeral range, on the loopback address of
/// the family, and it is anybody's again when this returns. Use it for what
/// CPython recommends it for, a program outside that must be told a number, only
/// where a [`FreePort`](crate::FreePort) cannot be kept.
///
/// # Errors
///
/// [`Unsupported`](ErrorKind::Unsupported) for a domain other than IPv4 and IPv6;
/// [`Probe`](ErrorKind::Probe) if the system refuses, for example because it
/// does not have that family.
///
/// # Examples
///
/// ```
/// use portlock::compat::find_unused_port;
/// use socket2::{Domain, Type};
///
/// let port = find_unused_port(Domain::IPV4, Type::STREAM)?;
/// assert_ne!(port, 0);
/// # Ok::<(), portlock::Error>(())
/// ```
pub fn find_unused_port(domain: Domain, ty: Type) -> Result<u16> {
    let host: IpAddr = match domain {
        Domain::IPV4 => HOST.into(),
        Domain::IPV6 => HOST_V6.into(),
        _ => {
            let message = format!("sockets of {domain:?} have no ports");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
    };
    let fail = |operation: &str| {
        let message = format!("cannot {operation} a {ty:?} socket on {host}");
        move |error: io::Error| Error::with_cause(ErrorKind::Probe, message, error)
    };
    let socket = Socket::new(domain, ty, None).map_err(fail("make"))?;
    let port = bind_port(&socket, host)?;
    // What a child that is just starting has of it must not be in the way of
    // the server to come; see `Probe::neutralise`.
    socket
        .set_reuse_address(true)
        .map_err(fail("set SO_REUSEADDR on"))?;
    Ok(port)
}
