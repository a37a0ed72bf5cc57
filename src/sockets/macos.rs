//! Sockets on macOS: those of each process that this user may inspect (`proc_pidfdinfo`). An
//! ordinary user sees only the sockets of that user's own processes.

use std::{
    collections::{HashMap, HashSet},
    io,
};

use listeners::{Protocol, SocketState};

use super::{Socket, Transport};

/// The process that has the socket. The system lists a shared socket for each process.
pub(super) type Key = u32;

pub(super) fn all() -> io::Result<Vec<Socket>> {
    let sockets = listeners::get_all().map_err(|error| io::Error::other(error.to_string()))?;
    let served = sockets.into_iter().filter_map(|socket| {
        let transport = match socket.protocol {
            Protocol::TCP if socket.state == SocketState::Listen => Transport::Tcp,
            Protocol::TCP => return None,
            Protocol::UDP => Transport::Udp,
        };
        let (ip, port) = (socket.socket.ip().to_canonical(), socket.socket.port());
        Some(Socket {
            transport,
            address: (ip, port).into(),
            user_id: None,
            key: socket.process.pid,
        })
    });
    Ok(served.collect())
}

pub(super) fn processes(pids: &HashSet<Key>) -> io::Result<HashMap<Key, Vec<u32>>> {
    Ok(pids.iter().map(|&pid| (pid, vec![pid])).collect())
}
