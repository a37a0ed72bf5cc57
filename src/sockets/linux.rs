//! Sockets on Linux: the kernel's tables (proc_pid_net(5)), and the descriptors of processes
//! (proc_pid_fd(5)).

use std::{
    collections::{HashMap, HashSet},
    fs, io,
};

use super::{Socket, Transport};
use crate::{
    bindfree::linux::{TableLine, table},
    process::linux::{View, if_shown},
};

/// The inode number of the socket.
pub(super) type Key = u64;

/// `TCP_LISTEN` in the kernel's include/net/tcp_states.h.
const LISTEN: &str = "0A";

pub(super) fn all() -> io::Result<Vec<Socket>> {
    let mut all = Vec::new();
    for (name, transport) in [
        ("tcp", Transport::Tcp),
        ("tcp6", Transport::Tcp),
        ("udp", Transport::Udp),
        ("udp6", Transport::Udp),
    ] {
        // Without IPv6, its tables do not exist; without /proc, no tables do.
        let Some(text) = if_shown(table(name))? else {
            continue;
        };
        let lines = text.lines().filter_map(TableLine::parse);
        let serves = |line: &TableLine| transport == Transport::Udp || line.state == LISTEN;
        all.extend(lines.filter(serves).map(|line| Socket {
            transport,
            address: line.address,
            user_id: line.user_id,
            key: line.inode,
        }));
    }
    Ok(all)
}

/// Returns which processes have the sockets with these inode numbers, for processes whose
/// descriptors this process may read.
pub(super) fn processes(inodes: &HashSet<Key>) -> io::Result<HashMap<Key, Vec<u32>>> {
    let mut found: HashMap<Key, Vec<u32>> = HashMap::new();
    // In another namespace's /proc, the same pids are other processes.
    if inodes.is_empty() || !View::take()?.is_ours {
        return Ok(found);
    }
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // It may have ended or belong to another user.
        let Some(descriptors) = if_shown(fs::read_dir(format!("/proc/{pid}/fd")))? else {
            continue;
        };
        for descriptor in descriptors {
            let link = descriptor.and_then(|descriptor| fs::read_link(descriptor.path()));
            let Some(link) = if_shown(link)? else {
                continue;
            };
            let inode = link.to_str().and_then(inode_of);
            if let Some(inode) = inode.filter(|inode| inodes.contains(inode)) {
                let pids = found.entry(inode).or_default();
                if pids.last() != Some(&pid) {
                    pids.push(pid);
                }
            }
        }
    }
    Ok(found)
}

/// Returns the number in `socket:[5505]`.
fn inode_of(link: &str) -> Option<u64> {
    let number = link.strip_prefix("socket:[")?.strip_suffix(']')?;
    number.parse().ok()
}
