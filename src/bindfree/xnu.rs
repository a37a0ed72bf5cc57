//! The order of the binds of a probe on XNU, the kernel of macOS.
//!
//! A bind without options sees every socket of its family that its address covers, whatever the
//! options of that socket; a dual-stack bind of `[::]` misses IPv4 sockets other than one of
//! `0.0.0.0`. A bind with `SO_REUSEADDR` sees only an unconnected socket of exactly its address,
//! and connections go to the most specific address. So a bind of `127.0.0.1` with the option
//! succeeds beside a server on `0.0.0.0`, and takes the server's connections on that address
//! until it is closed. (`in_pcbbind`, `in_pcblookup_local` and `in_pcblookup_hash_locked` in
//! bsd/netinet/in_pcb.c; `in6_pcbbind` and `in6_pcblookup_local` in bsd/netinet6/in6_pcb.c.)
//!
//! Therefore the option is set only to find out what a strict bind conflicts with, and the
//! wildcard addresses come first: a specific address is bound only while its wildcard address is
//! held, and so no server has it.

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

    /// Binds a new socket. An address in use is [`Unavailable::Bound`], and so is one that
    /// another socket may not share with this process.
    fn bind(&self, host: IpAddr, options: Options)
    -> Attempt<Self::Socket, Unavailable, io::Error>;

    /// Returns the addresses of this machine, including the loopback addresses.
    fn addresses(&self) -> io::Result<Vec<IpAddr>>;
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    /// `IPV6_V6ONLY`. IPv4 sockets ignore it.
    pub(super) only_v6: bool,
    /// `SO_REUSEADDR`.
    pub(super) reuse_address: bool,
}

/// Binds `host` strictly, or with `SO_REUSEADDR` if `closing_is_free` and only connections
/// conflict.
///
/// All connections count as closing, because the kernel makes no difference.
pub(super) fn bind<N: Network>(
    network: &N,
    host: IpAddr,
    ty: Type,
    closing_is_free: bool,
) -> Attempt<N::Socket, Unavailable, io::Error> {
    match bind_strictly(network, host) {
        // UDP has no TIME_WAIT: a connected socket is in use like any other.
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
        // Kept until the other socket is bound, so that no IPv4 server can bind in between.
        let _v4 = bind(ANY_V4)?;
        return bind(ANY);
    }
    bind(host)
}

/// Binds `host` with `SO_REUSEADDR`, unless a socket that is not connected conflicts.
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
            // A strict bind has just found the address in use. It still is, whatever the reason
            // for this refusal, such as a missing privilege for a specific address.
            Err(Failure::Unavailable(_)) => Err(Unavailable::Bound.into()),
            outcome => outcome,
        }
    };
    // Keep the first bind, so that no server can bind a wildcard address afterwards.
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
            // Sockets cannot have this address, or no longer can.
            Err(Failure::Error(error)) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(socket)
}
