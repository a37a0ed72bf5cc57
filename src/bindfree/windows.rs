//! Strict binds: those with `SO_EXCLUSIVEADDRUSE`. Without, two sockets that both set
//! `SO_REUSEADDR` get the same address ("Using SO_REUSEADDR and SO_EXCLUSIVEADDRUSE" in
//! Microsoft's documentation, with a table of what a second bind gives).

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

/// The error of an address family that the system does not have.
pub(crate) const UNKNOWN_FAMILY: i32 = WSAEAFNOSUPPORT;

/// Binds one address so that the bind fails if any socket is in the way of a server there, closing
/// connections excepted, which keep nobody from binding.
///
/// Before, it checks the addresses whose sockets that bind does not see:
///
/// * That a dual-stack bind of `[::]` sees who has an IPv4 address is not documented.
/// * One of a specific address, strict or not, does not see who has the wildcard
///   address, and would get his connections; a strict bind of that would see who has
///   bound another specific one, which is in nobody's way. So it is bound as sockets
///   are by default, which sees just who has the wildcard address.
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
        // It would refuse the next one.
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

/// Whether [`closing_ports`] shows the ports that nothing but closing connections keep from being
/// bound strictly.
pub(crate) const SHOWS_CLOSING: bool = false;

/// The ports with nothing but closing connections, which no table shows.
pub(crate) fn closing_ports() -> io::Result<HashMap<u16, Vec<IpAddr>>> {
    Ok(HashMap::new())
}

/// Whether any socket has the port, which no table shows.
pub(crate) fn is_in_table(_: u16, _: Type) -> io::Result<Option<bool>> {
    Ok(None)
}

/// Whether a port can be held by a socket that is out of its server's way.
pub(crate) fn can_hold() -> Result<()> {
    let message = "a lease cannot hold its socket on Windows: it would keep out its own server";
    Err(Error::new(ErrorKind::Unsupported, message))
}

/// Lets a bind of the socket pass over connections in TIME_WAIT: it does so as it is.
/// `SO_REUSEADDR` would let it pass over listeners too.
pub(crate) fn ignore_time_wait(_: &Socket) -> io::Result<()> {
    Ok(())
}

/// Makes what may outlive the closing of a bound socket harmless: nothing does. There
/// is no fork, and socket2 makes sockets that no child inherits.
pub(crate) fn neutralize(_: &Socket) -> io::Result<()> {
    Ok(())
}

/// Returns what kept the socket from being bound strictly, which has just failed.
pub(crate) fn occupant(_: &Socket, _: SocketAddr) -> io::Result<Unavailable> {
    Ok(Unavailable::Bound)
}

/// The options with which a socket may share its port, and whether it has them.
pub(crate) fn sharing_options(socket: &Socket) -> [(&'static str, io::Result<bool>); 1] {
    [("SO_REUSEADDR", socket.reuse_address())]
}

/// Somebody has bound it, or the system has excluded it.
///
/// `WSAEACCES` is what a bind gives of an excluded range, of an address that another
/// user's socket has, and of one that another one has exclusively: taken in any case,
/// for no port needs a privilege.
pub(crate) fn is_in_use(error: &io::Error) -> bool {
    is(error, WSAEADDRINUSE) || is(error, WSAEACCES)
}

/// This process may not bind it.
pub(crate) fn is_not_permitted(_: &io::Error) -> bool {
    false
}

fn is(error: &io::Error, code: i32) -> bool {
    error.raw_os_error() == Some(code)
}
