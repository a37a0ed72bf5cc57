//! A wildcard address and a specific one can both be bound, and a bind of one can miss the other:
//! [`xnu`](super::xnu) says which are bound, and in which order.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
};

use nix::ifaddrs::getifaddrs;
use socket2::{Socket, Type};

use super::{
    Bind, bind_one,
    xnu::{self, Network, Options},
};
use crate::{
    error::{Error, ErrorKind, Result},
    unavailable::{Attempt, Unavailable},
};

pub(crate) use super::unix::*;

/// Binds one address, and checks the others that matter to a server there.
pub(crate) fn bind(
    host: IpAddr,
    port: u16,
    ty: Type,
    how: Bind<'_>,
) -> Attempt<Socket, Unavailable, io::Error> {
    let closing_is_free = matches!(how, Bind::StrictOrClosing(_) | Bind::Shared);
    xnu::bind(&Sockets { port, ty }, host, ty, closing_is_free)
}

/// Real sockets.
struct Sockets {
    port: u16,
    ty: Type,
}

impl Network for Sockets {
    type Socket = Socket;

    fn bind(&self, host: IpAddr, options: Options) -> Attempt<Socket, Unavailable, io::Error> {
        let how = match options.reuse_address {
            true => Bind::Shared,
            false => Bind::Strict,
        };
        bind_one(host, self.port, self.ty, options.only_v6, how)
    }

    fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        let addresses = getifaddrs()?.filter_map(|interface| interface.address);
        let address = addresses.filter_map(|address| {
            if let Some(v4) = address.as_sockaddr_in() {
                return Some(IpAddr::V4(v4.ip()));
            }
            // Link-local addresses need an interface to be bound.
            let v6 = address.as_sockaddr_in6()?.ip();
            (!v6.is_unicast_link_local()).then_some(IpAddr::V6(v6))
        });
        Ok(address.collect())
    }
}

/// Whether [`closing_ports`] shows the ports that nothing but closing connections keep from being
/// bound strictly.
pub(crate) const SHOWS_CLOSING: bool = false;

/// The ports with nothing but closing connections, which no table shows.
pub(crate) fn closing_ports() -> io::Result<HashMap<u16, Vec<IpAddr>>> {
    Ok(HashMap::new())
}

/// Returns what kept the socket from being bound strictly: `xnu` finds that out.
pub(crate) fn occupant(_: &Socket, _: SocketAddr) -> io::Result<Unavailable> {
    Ok(Unavailable::Bound)
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
