//! Sockets on Windows: the system's tables (GetExtendedTcpTable, GetExtendedUdpTable). They name
//! one process for each socket, the one that created it, which may have ended.

use std::{
    collections::{HashMap, HashSet},
    io,
};

use netstat2::{
    AddressFamilyFlags, ProtocolFlags, ProtocolSocketInfo, SocketInfo, TcpState, get_sockets_info,
};

use super::{Socket, Transport};

/// The process that has the socket.
pub(super) type Key = u32;

pub(super) fn all() -> io::Result<Vec<Socket>> {
    let families = [AddressFamilyFlags::IPV4, AddressFamilyFlags::IPV6];
    let protocols = [ProtocolFlags::TCP, ProtocolFlags::UDP];
    let tables = families
        .into_iter()
        .flat_map(|family| protocols.map(|protocol| get_sockets_info(family, protocol)));
    // A table that does not exist, such as that of IPv6, has no sockets.
    Ok(tables.flatten().flatten().filter_map(socket).collect())
}

fn socket(info: SocketInfo) -> Option<Socket> {
    let (transport, address, port) = match info.protocol_socket_info {
        ProtocolSocketInfo::Tcp(tcp) if tcp.state == TcpState::Listen => {
            (Transport::Tcp, tcp.local_addr, tcp.local_port)
        }
        ProtocolSocketInfo::Tcp(_) => return None,
        ProtocolSocketInfo::Udp(udp) => (Transport::Udp, udp.local_addr, udp.local_port),
    };
    Some(Socket {
        transport,
        address: (address.to_canonical(), port).into(),
        user_id: None,
        key: info.associated_pids.first().copied().unwrap_or_default(),
    })
}

pub(super) fn processes(pids: &HashSet<Key>) -> io::Result<HashMap<Key, Vec<u32>>> {
    // Process 0 is not a process.
    let known = pids.iter().filter(|&&pid| pid != 0);
    Ok(known.map(|&pid| (pid, vec![pid])).collect())
}
