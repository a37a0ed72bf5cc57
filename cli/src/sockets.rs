//! Which ports have a server, as the kernel lists its sockets.

use std::collections::HashSet;

use procfs::net::{self, TcpState};

/// The ports on which a TCP socket listens or a UDP socket is bound, in this
/// network namespace.
///
/// Only looks: to bind a leased port, even for a moment, could make its holder's
/// own bind fail. A TCP socket that is bound and does not listen yet is not in
/// these lists (proc_pid_net(5)).
pub(crate) fn ports_in_use() -> HashSet<u16> {
    // A list that is not there, as that of IPv6 may be, has no sockets.
    let tcp = [net::tcp(), net::tcp6()].into_iter().flatten().flatten();
    let tcp = tcp.filter(|socket| socket.state == TcpState::Listen);
    let udp = [net::udp(), net::udp6()].into_iter().flatten().flatten();
    tcp.map(|socket| socket.local_address.port())
        .chain(udp.map(|socket| socket.local_address.port()))
        .collect()
}
