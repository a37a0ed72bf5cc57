//! The sockets that serve ports in this network namespace, and the processes that have them.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
};

use crate::{
    bindfree::{Endpoints, Protocol},
    error::{Error, ErrorKind, Result},
    process,
    server::Process,
};

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;
#[cfg(windows)]
mod windows;

#[cfg(target_os = "linux")]
use linux as system;
#[cfg(target_os = "macos")]
use macos as system;
#[cfg(windows)]
use windows as system;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// The socket listens.
    Tcp,
    /// The socket is bound.
    Udp,
}

/// A socket that serves a port.
#[derive(Clone, Debug)]
pub(crate) struct Socket {
    pub(crate) transport: Transport,
    pub(crate) address: SocketAddr,
    pub(crate) user_id: Option<u32>,
    /// The key by which the processes that have it are found.
    key: system::Key,
}

impl Socket {
    /// Returns how specific the socket is for connections to `address` (smaller is more
    /// specific), or `None` if it receives none of them. The system prefers the most specific
    /// socket (`compute_score` in the kernel's net/ipv4/inet_hashtables.c).
    fn rank(&self, address: SocketAddr) -> Option<u8> {
        if self.transport != Transport::Tcp || self.address.port() != address.port() {
            return None;
        }
        match (self.address.ip(), address.ip().to_canonical()) {
            (own, wanted) if own == wanted => Some(0),
            (own, wanted) if own.is_unspecified() && own.is_ipv4() == wanted.is_ipv4() => Some(1),
            // It accepts both families, unless it was created for IPv6 only, which is not shown.
            (IpAddr::V6(own), IpAddr::V4(_)) if own.is_unspecified() => Some(2),
            _ => None,
        }
    }

    /// Returns whether the socket receives the connections to every address that no other socket
    /// receives.
    pub(crate) fn accepts_everywhere(&self) -> bool {
        self.transport == Transport::Tcp && self.address.ip().is_unspecified()
    }

    /// Returns whether the socket keeps these endpoints from being bound.
    fn blocks(&self, endpoints: &Endpoints) -> bool {
        let other = match self.transport {
            Transport::Tcp => Protocol::Udp,
            Transport::Udp => Protocol::Tcp,
        };
        let own = self.address.ip();
        let overlaps = |host: &IpAddr| {
            own.is_unspecified() || host.is_unspecified() || host.to_canonical() == own
        };
        let hosts = endpoints.hosts();
        endpoints.protocol != other && (hosts.is_empty() || hosts.iter().any(overlaps))
    }
}

/// Returns all sockets that serve a port.
///
/// # Errors
///
/// [`Probe`](ErrorKind::Probe) if the system fails to list them.
pub(crate) fn all() -> Result<Vec<Socket>> {
    system::all().map_err(|error| {
        let message = "cannot list the sockets of this machine";
        Error::with_cause(ErrorKind::Probe, message, error)
    })
}

/// Returns the sockets that serve each port: those that listen for TCP, or else those for UDP.
pub(crate) fn by_port(sockets: Vec<Socket>) -> HashMap<u16, Vec<Socket>> {
    let mut by_port: HashMap<u16, Vec<Socket>> = HashMap::new();
    for socket in sockets {
        by_port
            .entry(socket.address.port())
            .or_default()
            .push(socket);
    }
    for sockets in by_port.values_mut() {
        let is_tcp = |socket: &Socket| socket.transport == Transport::Tcp;
        if sockets.iter().any(is_tcp) {
            sockets.retain(is_tcp);
        }
    }
    by_port
}

/// Returns the sockets that receive connections to `address`, an address of this machine.
pub(crate) fn that_accept(sockets: &[Socket], address: SocketAddr) -> Vec<&Socket> {
    let best = sockets
        .iter()
        .filter_map(|socket| socket.rank(address))
        .min();
    let is_best = |socket: &&Socket| best.is_some() && socket.rank(address) == best;
    sockets.iter().filter(is_best).collect()
}

/// The visible processes that have each of some sockets.
pub(crate) struct Processes(HashMap<system::Key, Vec<u32>>);

impl Processes {
    /// Returns the visible processes that have each of `sockets`.
    ///
    /// # Errors
    ///
    /// [`Process`](ErrorKind::Process) if the system fails to show them.
    pub(crate) fn of<'a>(sockets: impl IntoIterator<Item = &'a Socket>) -> Result<Self> {
        let keys = sockets.into_iter().map(|socket| socket.key).collect();
        system::processes(&keys).map(Self).map_err(cannot_see)
    }

    /// Returns the pids of the processes that have any of `sockets`.
    pub(crate) fn having<'a>(&self, sockets: impl IntoIterator<Item = &'a Socket>) -> Vec<u32> {
        let keys = sockets.into_iter().map(|socket| socket.key);
        let mut pids: Vec<u32> = keys
            .filter_map(|key| self.0.get(&key))
            .flatten()
            .copied()
            .collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }
}

/// Returns the error for a failure of the system to show processes.
pub(crate) fn cannot_see(cause: io::Error) -> Error {
    let message = "cannot find the process that has a socket";
    Error::with_cause(ErrorKind::Process, message, cause)
}

/// Returns the visible processes that serve some ports and conflict with these endpoints, for a
/// message. Errors are ignored, because the message can do without them.
pub(crate) fn servers(ports: &[u16], endpoints: &Endpoints) -> Vec<(u16, Process)> {
    if ports.is_empty() {
        return Vec::new();
    }
    let mut in_the_way = all().unwrap_or_default();
    in_the_way.retain(|socket| ports.contains(&socket.address.port()) && socket.blocks(endpoints));
    let Ok(processes) = Processes::of(&in_the_way) else {
        return Vec::new();
    };
    let by_port = by_port(in_the_way);
    let named = ports.iter().filter_map(|port| {
        let pid = *processes.having(by_port.get(port)?).first()?;
        Some((*port, process::describe(pid)))
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, process};

    use portlock_testkit::{bind_udp, is_wine, listen};

    use super::*;

    fn pids(address: SocketAddr) -> Vec<u32> {
        let all = all().expect("listed");
        let sockets = that_accept(&all, address);
        let processes = Processes::of(sockets.iter().copied()).expect("shown");
        processes.having(sockets)
    }

    #[test]
    fn a_listener_is_found_with_its_process_at_its_address_only() {
        let listener = listen("127.0.0.1:0");
        let address = listener.local_addr().expect("bound");
        assert_eq!(pids(address), [process::id()]);
        let other = SocketAddr::from(([127, 0, 0, 2], address.port()));
        assert!(pids(other).is_empty());
        drop(listener);
        assert!(pids(address).is_empty());
    }

    #[test]
    fn a_bound_udp_socket_serves_its_port_unless_another_one_listens() {
        let udp = bind_udp("127.0.0.1:0");
        let address = udp.local_addr().expect("bound");
        let found = |transport| {
            let by_port = by_port(all().expect("listed"));
            let sockets = &by_port[&address.port()];
            assert!(sockets.iter().all(|socket| socket.transport == transport));
            assert_eq!(
                Processes::of(sockets).expect("shown").having(sockets),
                [process::id()]
            );
        };
        found(Transport::Udp);
        assert!(pids(address).is_empty(), "nothing can be connected to");
        // Another program can have the port for TCP.
        if TcpListener::bind(address).is_err() {
            eprintln!("skipped: {address} is not free for TCP");
            return;
        }
        let _tcp = listen(address);
        found(Transport::Tcp);
    }

    #[test]
    fn only_a_socket_of_the_same_protocol_is_named_as_the_cause() {
        if is_wine("the process of a TCP socket while a UDP socket has the same port") {
            return;
        }
        let udp = bind_udp("127.0.0.1:0");
        let port = udp.local_addr().expect("bound").port();
        let Ok(tcp) = TcpListener::bind(("127.0.0.1", port)) else {
            eprintln!("skipped: port {port} is not free for TCP");
            return;
        };
        let named = |protocol| {
            let mut endpoints = Endpoints::default();
            endpoints.protocol = protocol;
            let named = servers(&[port], &endpoints).into_iter();
            named
                .map(|(port, process)| (port, process.pid))
                .collect::<Vec<_>>()
        };
        let own = [(port, process::id())];
        assert_eq!(named(Protocol::Tcp), own);
        assert_eq!(named(Protocol::Udp), own);
        drop(tcp);
        assert_eq!(named(Protocol::Tcp), []);
        assert_eq!(named(Protocol::Udp), own);
        assert_eq!(named(Protocol::TcpAndUdp), own);
        drop(udp);
        let _tcp = listen(("127.0.0.1", port));
        assert_eq!(named(Protocol::Tcp), own);
        assert_eq!(named(Protocol::Udp), []);
        assert_eq!(named(Protocol::TcpAndUdp), own);
    }

    #[test]
    fn the_most_specific_socket_gets_the_connection() {
        let socket = |address: &str, transport| Socket {
            transport,
            address: address.parse().expect("an address"),
            user_id: None,
            key: system::Key::default(),
        };
        let tcp = |address| socket(address, Transport::Tcp);
        let accepting = |sockets: &[Socket], address: &str| {
            let found = that_accept(sockets, address.parse().expect("an address"));
            found
                .iter()
                .map(|socket| socket.address.to_string())
                .collect::<Vec<_>>()
        };
        let all = [
            tcp("127.0.0.1:80"),
            tcp("0.0.0.0:80"),
            tcp("[::]:80"),
            tcp("127.0.0.1:81"),
            socket("127.0.0.3:80", Transport::Udp),
        ];
        assert_eq!(accepting(&all, "127.0.0.1:80"), ["127.0.0.1:80"]);
        assert_eq!(accepting(&all, "[::ffff:127.0.0.1]:80"), ["127.0.0.1:80"]);
        assert_eq!(accepting(&all, "127.0.0.3:80"), ["0.0.0.0:80"]);
        assert_eq!(accepting(&all, "[::1]:80"), ["[::]:80"]);
        assert_eq!(accepting(&all[2..], "127.0.0.1:80"), ["[::]:80"]);
        assert!(accepting(&all[..2], "[::1]:80").is_empty());
        // A listener with `SO_REUSEPORT` may be one of several.
        let several = [tcp("0.0.0.0:80"), tcp("0.0.0.0:80")];
        assert_eq!(accepting(&several, "127.0.0.1:80").len(), 2);
    }
}
