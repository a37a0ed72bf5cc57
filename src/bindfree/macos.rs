//! A wildcard address and a specific one can both be bound, by sockets with
//! `SO_REUSEADDR` (setsockopt(2); `in_pcbbind` in bsd/netinet/in_pcb.c of XNU). Such a
//! bind of one does not see the other, and so the loopback addresses, on which servers
//! under test listen, are checked too.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use socket2::Type;

use super::{Bind, bind_one, is_absent_family};
use crate::{
    error::{Error, ErrorKind, Result},
    unavailable::{Attempt, Failure, Unavailable},
};

pub(crate) use super::unix::*;

const ANY: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
const ANY_V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const LOOPBACK: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
const LOOPBACK_V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Checks the addresses whose sockets a bind of `host` does not see.
///
/// Each address is bound and closed again before the next, for these binds would refuse
/// each other.
pub(crate) fn check_other_addresses(
    host: IpAddr,
    port: u16,
    ty: Type,
    how: Bind<'_>,
) -> Attempt<(), Unavailable, io::Error> {
    let hosts: &[IpAddr] = match host {
        ANY => &[LOOPBACK_V4, LOOPBACK, ANY_V4],
        ANY_V4 => &[LOOPBACK_V4],
        // A strict bind sees who has the wildcard address; and one of that would see who
        // has bound another specific one, which is in nobody's way.
        _ if !matches!(how, Bind::Shared) => &[],
        IpAddr::V4(_) => &[ANY_V4],
        IpAddr::V6(_) => &[ANY],
    };
    for &host in hosts {
        match bind_one(host, port, ty, how) {
            Ok(socket) => neutralize(&socket)?,
            Err(Failure::Error(error)) if is_absent_family(host, &error) => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(())
}

/// How a socket is bound where closing connections count as free: no table shows them, and one that
/// is bound with `SO_REUSEADDR` passes over them.
pub(crate) const WITH_CLOSING: Option<Bind<'static>> = Some(Bind::Shared);

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
    let message = "a lease cannot hold its socket on macOS: it would keep out its own server";
    Err(Error::new(ErrorKind::Unsupported, message))
}
