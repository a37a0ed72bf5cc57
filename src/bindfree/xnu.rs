//! The order of the binds of a probe on XNU, the kernel of macOS.
//!
//! A bind without options sees every socket of its family that its address covers, whatever the
//! options of that socket; `[::]` of both families misses IPv4 sockets beside one of `0.0.0.0`.
//! A bind with `SO_REUSEADDR` sees only an unconnected socket of exactly its address, and
//! connections look for the most specific address first. So one of `127.0.0.1` with the option
//! succeeds beside a server of `0.0.0.0`, and takes the server's connections on that address until
//! it is closed. (`in_pcbbind`, `in_pcblookup_local` and `in_pcblookup_hash_locked` in
//! bsd/netinet/in_pcb.c; `in6_pcbbind` and `in6_pcblookup_local` in bsd/netinet6/in6_pcb.c.)
//!
//! Therefore the option is set only to find out what a strict bind has met, and the wildcard
//! addresses come first: a specific address is bound only while its wildcard address is held, and
//! so has no server.

use std::{io, net::IpAddr};

use socket2::Type;

use super::{ANY, ANY_V4};
use crate::unavailable::{Attempt, Failure, Unavailable};

#[cfg(test)]
mod model;

/// The sockets of one port and protocol.
pub(super) trait Network {
    /// A bound socket, until it is dropped.
    type Socket;

    /// Binds a new socket. An address in use is [`Unavailable::Bound`], and one that another socket
    /// may not share with this process as well.
    fn bind(&self, host: IpAddr, options: Options)
    -> Attempt<Self::Socket, Unavailable, io::Error>;

    /// Returns the addresses of this machine, the loopback addresses among them.
    fn addresses(&self) -> io::Result<Vec<IpAddr>>;
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    /// `IPV6_V6ONLY`. IPv4 sockets ignore it.
    pub(super) only_v6: bool,
    /// `SO_REUSEADDR`.
    pub(super) reuse_address: bool,
}

/// Binds `host` strictly, or with `SO_REUSEADDR` if `closing_is_free` and nothing but connections
/// is in the way.
///
/// Connections count as closing whether they are or not, for the kernel makes no difference.
pub(super) fn bind<N: Network>(
    network: &N,
    host: IpAddr,
    ty: Type,
    closing_is_free: bool,
) -> Attempt<N::Socket, Unavailable, io::Error> {
    match bind_strictly(network, host) {
        // UDP has no TIME_WAIT: a connected socket is in use as any other.
        Err(Failure::Unavailable(Unavailable::Bound)) if ty == Type::STREAM => {}
        outcome => return outcome,
    }
    let socket = bind_beside_connections(network, host)?;
    if closing_is_free {
        Ok(socket)
    } else {
        Err(Unavailable::Lingering.into())
    }
}

fn bind_strictly<N: Network>(
    network: &N,
    host: IpAddr,
) -> Attempt<N::Socket, Unavailable, io::Error> {
    let bind = |host: IpAddr| {
        let options = Options {
            only_v6: !host.is_unspecified(),
            reuse_address: false,
        };
        network.bind(host, options)
    };
    if host == ANY {
        // Kept until the other is bound, so that no server of IPv4 comes in between.
        let _v4 = bind(ANY_V4)?;
        return bind(ANY);
    }
    bind(host)
}

/// Binds `host` with `SO_REUSEADDR`, unless a socket that is not connected is in the way.
fn bind_beside_connections<N: Network>(
    network: &N,
    host: IpAddr,
) -> Attempt<N::Socket, Unavailable, io::Error> {
    let bind = |host, only_v6| {
        let options = Options {
            only_v6,
            reuse_address: true,
        };
        match network.bind(host, options) {
            // A strict bind has just found the address in use. Why this one is refused, as for want
            // of a privilege for a specific address, makes it no less so.
            Err(Failure::Unavailable(_)) => Err(Unavailable::Bound.into()),
            outcome => outcome,
        }
    };
    // What is bound first is kept, so that no server comes to a wildcard address afterwards.
    let (_other, socket) = match host {
        ANY => (Some(bind(ANY_V4, false)?), bind(ANY, false)?),
        ANY_V4 => (None, bind(ANY_V4, false)?),
        IpAddr::V4(_) => return bind(ANY_V4, false).and_then(|_any| bind(host, false)),
        IpAddr::V6(_) => return bind(ANY, true).and_then(|_any| bind(host, true)),
    };
    for address in network.addresses()? {
        if host == ANY_V4 && address.is_ipv6() {
            continue;
        }
        match bind(address, true) {
            Ok(_) => {}
            // It is not, or no longer, an address that sockets can have.
            Err(Failure::Error(error)) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(socket)
}
