//! Strict binds on Windows: those with `SO_EXCLUSIVEADDRUSE`. Without it, two sockets that both
//! set `SO_REUSEADDR` get the same address ("Using SO_REUSEADDR and SO_EXCLUSIVEADDRUSE" in
//! Microsoft's documentation has a table of the results of a second bind).

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use socket2::{Domain, Socket, Type};
use windows_sys::Win32::Networking::WinSock::{WSAEACCES, WSAEADDRINUSE, WSAEAFNOSUPPORT};

use super::{Bind, bind_one, is_absent_family};
use crate::{
    error::{Error, ErrorKind, Result},
    unavailable::{Attempt, Failure, Unavailable},
};

mod exclusive;

pub(crate) use exclusive::set_exclusive_address_use as make_strict;

const ANY: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
const ANY_V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// The error for an address family that the system lacks.
pub(crate) const UNKNOWN_FAMILY: i32 = WSAEAFNOSUPPORT;

/// Binds one address. The bind fails if any socket would block a server there. Closing
/// connections never do.
///
/// It first checks the addresses whose sockets that bind does not see:
///
/// * It is not documented that a dual-stack bind of `[::]` sees sockets with an IPv4 address.
/// * A bind of a specific address, strict or not, does not see a socket with the wildcard
///   address, and would receive its connections. A strict bind of the wildcard address would see
///   sockets with other specific addresses, which do not conflict. So the wildcard address is bound
///   without options, which sees only sockets with the wildcard address.
pub(crate) fn bind(
    host: IpAddr,
    port: u16,
    ty: Type,
    _: Bind<'_>,
) -> Attempt<Socket, Unavailable, io::Error> {
    let strictly = |host: IpAddr| bind_one(host, port, ty, !host.is_unspecified(), Bind::Strict);
    let checked = match host {
        ANY => Some((ANY_V4, strictly(ANY_V4))),
        ANY_V4 => None,
        IpAddr::V4(_) => Some((ANY_V4, bind_by_default(ANY_V4, port, ty))),
        IpAddr::V6(_) => Some((ANY, bind_by_default(ANY, port, ty))),
    };
    match checked {
        Some((other, Err(Failure::Error(error)))) if is_absent_family(other, &error) => {}
        Some((_, Err(failure))) => return Err(failure),
        // This socket would block the next bind.
        Some((_, Ok(socket))) => drop(socket),
        None => {}
    }
    strictly(host)
}

fn bind_by_default(host: IpAddr, port: u16, ty: Type) -> Attempt<Socket, Unavailable, io::Error> {
    let address = SocketAddr::new(host, port);
    let socket = Socket::new(Domain::for_address(address), ty, None)?;
    match socket.bind(&address.into()) {
        Ok(()) => Ok(socket),
        Err(error) if is_in_use(&error) => Err(Unavailable::Bound.into()),
        Err(error) => Err(error.into()),
    }
}

/// Whether [`closing_ports`] reports the ports that only closing connections keep from being
/// bound strictly.
pub(crate) const SHOWS_CLOSING: bool = false;

/// Returns no ports: Windows has no table that shows closing connections.
pub(crate) fn closing_ports() -> io::Result<HashMap<u16, Vec<IpAddr>>> {
    Ok(HashMap::new())
}

/// Returns `None`: Windows has no table that shows whether a socket has the port.
pub(crate) fn is_in_table(_: u16, _: Type) -> io::Result<Option<bool>> {
    Ok(None)
}

/// Returns an error: a held socket would block the lease's own server.
pub(crate) fn can_hold() -> Result<()> {
    let message = "a lease cannot hold its socket on Windows: it would keep out its own server";
    Err(Error::new(ErrorKind::Unsupported, message))
}

/// Lets a bind of the socket ignore connections in TIME_WAIT. This is the default on Windows,
/// where `SO_REUSEADDR` would let it ignore listeners too.
pub(crate) fn ignore_time_wait(_: &Socket) -> io::Result<()> {
    Ok(())
}

/// Does nothing: no copy of a bound socket outlives it, because Windows has no fork and socket2
/// creates sockets that no child inherits.
pub(crate) fn neutralize(_: &Socket) -> io::Result<()> {
    Ok(())
}

/// Returns what kept the socket from being bound strictly. That bind has just failed.
pub(crate) fn occupant(_: &Socket, _: SocketAddr) -> io::Result<Unavailable> {
    Ok(Unavailable::Bound)
}

/// Returns the options that let a socket share its port, and whether each is set.
pub(crate) fn sharing_options(socket: &Socket) -> [(&'static str, io::Result<bool>); 1] {
    [("SO_REUSEADDR", socket.reuse_address())]
}

/// Returns whether another socket has bound the address, or the system has excluded the port.
///
/// A bind fails with `WSAEACCES` if the port is in an excluded range, if another user's socket
/// has the address, or if another socket has it exclusively. All count as in use, because no port
/// needs a privilege.
pub(crate) fn is_in_use(error: &io::Error) -> bool {
    is(error, WSAEADDRINUSE) || is(error, WSAEACCES)
}

/// Returns `false`: on Windows, no port needs a privilege.
pub(crate) fn is_not_permitted(_: &io::Error) -> bool {
    false
}

fn is(error: &io::Error, code: i32) -> bool {
    error.raw_os_error() == Some(code)
}
