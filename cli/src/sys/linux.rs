//! What only Linux has: its lists of sockets, the abstract namespace, and /proc.

use std::{
    collections::HashSet,
    io,
    os::{linux::net::SocketAddrExt, unix::net::SocketAddr},
};

use procfs::{
    net::{self, TcpState},
    process::Process,
};

use crate::failure::Failure;

pub(super) const DEFAULT_ADDRESS: Option<&str> = Some("@unittest-portserver");
pub(super) const ADDRESS_HELP: &str = "Where to listen: @NAME in the abstract namespace, or a path";

/// The ports on which a TCP socket listens or a UDP socket is bound, in this
/// network namespace.
///
/// Only looks: to bind a leased port, even for a moment, could make its holder's
/// own bind fail. A TCP socket that is bound and does not listen yet is not in
/// these lists (proc_pid_net(5)).
pub(crate) fn ports_in_use() -> Result<HashSet<u16>, Failure> {
    // A list that is not there, as that of IPv6 may be, has no sockets.
    let tcp = [net::tcp(), net::tcp6()].into_iter().flatten().flatten();
    let tcp = tcp.filter(|socket| socket.state == TcpState::Listen);
    let udp = [net::udp(), net::udp6()].into_iter().flatten().flatten();
    Ok(tcp
        .map(|socket| socket.local_address.port())
        .chain(udp.map(|socket| socket.local_address.port()))
        .collect())
}

pub(super) fn abstract_address(name: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(name)
}

/// Whether the process may have a port that this user asks for.
pub(super) fn check_user(pid: u32, user: u32) -> Result<(), String> {
    let process = i32::try_from(pid)
        .ok()
        .and_then(|pid| Process::new(pid).ok());
    let Some(status) = process.and_then(|process| process.status().ok()) else {
        return Err(format!("process {pid}, which does not exist"));
    };
    if [status.ruid, status.euid].contains(&user) {
        Ok(())
    } else {
        Err(format!(
            "process {pid} of user {}, for user {user} asked for it",
            status.ruid
        ))
    }
}
