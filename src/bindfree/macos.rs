//! On macOS, a wildcard address and a specific one can both be bound, and a bind of one can miss
//! the other: [`xnu`](super::xnu) determines which addresses to bind, and in which order.

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

/// Binds one address, and checks the others that affect a server there.
pub(crate) fn bind(
    host: IpAddr,
    port: u16,
    ty: Type,
    how: Bind<'_>,
) -> Attempt<Socket, Unavailable, io::Error> {
    let closing_is_free = matches!(how, Bind::StrictOrClosing(_) | Bind::Shared);
    xnu::bind(&Sockets { port, ty }, host, ty, closing_is_free)
}

/// The real network: sockets of this system.
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
            // A bind of a link-local address needs an interface.
            let v6 = address.as_sockaddr_in6()?.ip();
            (!v6.is_unicast_link_local()).then_some(IpAddr::V6(v6))
        });
        Ok(address.collect())
    }
}

/// Whether [`closing_ports`] reports the ports that only closing connections keep from being
/// bound strictly.
pub(crate) const SHOWS_CLOSING: bool = false;

/// Returns no ports: macOS has no table that shows closing connections.
pub(crate) fn closing_ports() -> io::Result<HashMap<u16, Vec<IpAddr>>> {
    Ok(HashMap::new())
}

/// Returns what kept the socket from being bound strictly. `xnu` determines that.
pub(crate) fn occupant(_: &Socket, _: SocketAddr) -> io::Result<Unavailable> {
    Ok(Unavailable::Bound)
}

/// Returns `None`: macOS has no table that shows whether a socket has the port.
pub(crate) fn is_in_table(_: u16, _: Type) -> io::Result<Option<bool>> {
    Ok(None)
}

/// Returns an error: a held socket would block the lease's own server.
pub(crate) fn can_hold() -> Result<()> {
    let message = "a lease cannot hold its socket on macOS: it would keep out its own server";
    Err(Error::new(ErrorKind::Unsupported, message))
}
