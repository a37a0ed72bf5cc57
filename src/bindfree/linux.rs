//! On Linux, one strict bind sees every conflicting socket.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use socket2::{Socket, Type};

use super::{Bind, bind_one};
use crate::{
    error::Result,
    unavailable::{Attempt, Unavailable},
};

pub(crate) use super::unix::*;

/// Binds one address. The bind fails if any socket would block a server there.
#[inline]
pub(crate) fn bind(
    host: IpAddr,
    port: u16,
    ty: Type,
    how: Bind<'_>,
) -> Attempt<Socket, Unavailable, io::Error> {
    bind_one(host, port, ty, !host.is_unspecified(), how)
}

/// Whether [`closing_ports`] reports the ports that only closing connections keep from being
/// bound strictly.
pub(crate) const SHOWS_CLOSING: bool = true;

/// Returns the TCP ports that have only closing connections, with the local addresses of these.
/// Empty if /proc shows nothing.
///
/// A connection is closing if its program no longer has a descriptor for it (so its socket has no
/// inode), and its state is one that follows a close (include/net/tcp_states.h).
pub(crate) fn closing_ports() -> io::Result<HashMap<u16, Vec<IpAddr>>> {
    const FIN_WAIT1: &str = "04";
    const FIN_WAIT2: &str = "05";
    const TIME_WAIT: &str = "06";
    const LAST_ACK: &str = "09";
    const CLOSING: &str = "0B";
    let Some(tables) = tables(Type::STREAM)? else {
        return Ok(HashMap::new());
    };
    let mut closing: HashMap<u16, Vec<IpAddr>> = HashMap::new();
    let mut others = HashSet::new();
    for line in tables.iter().flat_map(|table| table.lines()) {
        let Some((address, port)) = local_address(line) else {
            continue;
        };
        let mut words = line.split_ascii_whitespace();
        let (state, inode) = (words.nth(3), words.nth(5));
        let is_closing = matches!(
            state,
            Some(FIN_WAIT1 | FIN_WAIT2 | TIME_WAIT | LAST_ACK | CLOSING)
        );
        if is_closing && inode == Some("0") {
            closing.entry(port).or_default().push(address);
        } else {
            others.insert(port);
        }
    }
    closing.retain(|port, _| !others.contains(port));
    Ok(closing)
}

/// Returns what kept the socket from being bound strictly. That bind has just failed.
///
/// If it still conflicts with a socket that has `SO_REUSEADDR`, it is listening or was bound
/// without that option. Otherwise it is a neutralized probe in a child that is being spawned, or
/// a connection in TIME_WAIT.
pub(crate) fn occupant(socket: &Socket, address: SocketAddr) -> io::Result<Unavailable> {
    socket.set_reuse_address(true)?;
    match socket.bind(&address.into()) {
        Ok(()) => Ok(Unavailable::Lingering),
        Err(error) if is_in_use(&error) => Ok(Unavailable::Bound),
        Err(error) => Err(error),
    }
}

/// Returns an error if a lease cannot keep its port bound without blocking its own server. Linux
/// can.
#[inline]
pub(crate) fn can_hold() -> Result<()> {
    Ok(())
}

/// Returns whether any socket of this type has the port, including connections in TIME_WAIT, or
/// `None` if /proc does not show that. A TCP socket that is bound but neither listening nor
/// connected is not shown (proc_pid_net(5)).
pub(crate) fn is_in_table(port: u16, ty: Type) -> io::Result<Option<bool>> {
    let tables = tables(ty)?;
    Ok(tables.map(|tables| {
        let mut ports = tables
            .iter()
            .flat_map(|table| table.lines())
            .filter_map(local_address);
        ports.any(|(_, of)| of == port)
    }))
}

/// Returns the socket tables for this type in this network namespace (proc_pid_net(5)), or `None`
/// if /proc does not show them.
fn tables(ty: Type) -> io::Result<Option<Vec<String>>> {
    let names = match ty {
        Type::DGRAM => ["udp", "udp6"],
        _ => ["tcp", "tcp6"],
    };
    let mut tables = Vec::with_capacity(names.len());
    for name in names {
        match table(name) {
            Ok(text) => tables.push(text),
            Err(error) => match error.kind() {
                // Without IPv6, its tables do not exist.
                io::ErrorKind::NotFound if name.ends_with('6') => {}
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => return Ok(None),
                _ => return Err(error),
            },
        }
    }
    Ok(Some(tables))
}

/// Returns one socket table, such as `tcp6`.
pub(crate) fn table(name: &str) -> io::Result<String> {
    fs::read_to_string(format!("/proc/self/net/{name}"))
}

/// The fields of a table line that are needed to find the processes that have the socket.
pub(crate) struct TableLine<'a> {
    pub(crate) address: SocketAddr,
    pub(crate) state: &'a str,
    pub(crate) user_id: Option<u32>,
    pub(crate) inode: u64,
}

impl<'a> TableLine<'a> {
    pub(crate) fn parse(line: &'a str) -> Option<Self> {
        let address = local_address(line)?.into();
        let mut words = line.split_ascii_whitespace().skip(3);
        let state = words.next()?;
        // Skips the queues, the timer and the retransmissions.
        let user_id = words.nth(3)?.parse().ok();
        let inode = words.nth(1)?.parse().ok()?;
        Some(Self {
            address,
            state,
            user_id,
            inode,
        })
    }
}

/// Parses the local address of a line such as `0: 0100007F:1F90 00000000:0000 0A …`. The address
/// is in hexadecimal, in groups of 32 bits in this machine's byte order.
fn local_address(line: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = line.split_ascii_whitespace().nth(1)?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = [0; 16];
    let groups = bytes.chunks_exact_mut(4).take(address.len() / 8);
    for (i, group) in groups.enumerate() {
        let digits = address.get(i * 8..i * 8 + 8)?;
        group.copy_from_slice(&u32::from_str_radix(digits, 16).ok()?.to_ne_bytes());
    }
    let address = match address.len() {
        8 => Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into(),
        32 => Ipv6Addr::from(bytes).to_canonical(),
        _ => return None,
    };
    Some((address, port))
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, UdpSocket};

    use socket2::{Domain, Socket};

    use super::*;
    use crate::{
        bindfree::{BindFreePort, ClosingPorts, Endpoints, Probe, Protocol},
        error::ErrorKind,
        unavailable::Failure,
    };

    #[test]
    fn a_copy_of_a_closed_probe_does_not_block_a_server() {
        let close: [fn(Probe); 2] = [
            |probe| probe.close().expect("our own socket"),
            |probe| drop(BindFreePort { probe }),
        ];
        for close in close {
            let probe = Probe::bind(0, &Endpoints::default(), Bind::Strict).expect("a free port");
            let socket = probe.first.as_ref().expect("bound");
            // As in a child that has not called exec yet.
            let copy = socket.try_clone().expect("descriptors left");
            let address = copy.local_addr().expect("bound").as_socket();
            close(probe);
            TcpListener::bind(address.expect("an address")).expect("std sets SO_REUSEADDR");
        }
    }

    #[test]
    fn a_probe_does_not_become_the_second_listener_of_its_port() {
        let probe = Probe::bind(0, &Endpoints::default(), Bind::Strict).expect("a free port");
        probe.neutralize().expect("our own socket");
        let socket = probe.first.as_ref().expect("bound");
        let address = socket.local_addr().expect("bound");
        let domain = socket.domain().expect("ours");
        let other = Socket::new(domain, Type::STREAM, None).expect("a socket");
        other.set_reuse_address(true).expect("ours");
        other.bind(&address).expect("nothing listens");
        other.listen(1).expect("nothing listens");
        let outcome = probe.listen();
        let is_bound = matches!(outcome, Err(Failure::Unavailable(Unavailable::Bound)));
        assert!(is_bound, "{outcome:?}");
    }

    #[test]
    fn a_probe_of_several_hosts_listens_on_the_first_and_fails_if_one_does_not_exist() {
        let bind = |others: &[[u8; 4]]| {
            let mut endpoints = Endpoints::default();
            endpoints.add_host(Ipv4Addr::LOCALHOST.into());
            for &other in others {
                endpoints.add_host(other.into());
            }
            Probe::bind(0, &endpoints, Bind::Strict)
        };
        let probe = bind(&[[127, 0, 0, 2], [127, 0, 0, 3]]).expect("free ports");
        assert_eq!(probe.others.len(), 2);
        let listener = probe.listen().expect("nothing listens");
        assert_eq!(
            listener.local_addr().expect("bound").ip(),
            Ipv4Addr::LOCALHOST
        );
        // An address for documentation (RFC 5737), which no machine has.
        let Err(Failure::Error(error)) = bind(&[[192, 0, 2, 1]]) else {
            panic!("no error");
        };
        let text = error.to_string();
        assert!(text.starts_with("cannot bind TCP 192.0.2.1:0"), "{text}");
    }

    /// Returns a socket that shares its port, and the port.
    fn shared(ty: Type) -> (Socket, u16) {
        let socket = Socket::new(Domain::IPV4, ty, None).expect("a socket");
        socket.set_reuse_address(true).expect("our own socket");
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        socket.bind(&any.into()).expect("a free port");
        let address = socket.local_addr().expect("bound").as_socket();
        (socket, address.expect("an address").port())
    }

    #[test]
    fn a_check_without_the_lock_does_not_block_a_server() {
        let (_server, port) = shared(Type::STREAM);
        // As a trade-off, it misses a server that does not listen yet.
        Probe::check_unlocked(port, &Endpoints::default(), Bind::Strict).expect("not seen");
    }

    #[test]
    fn a_udp_port_is_never_shared() {
        let endpoints = Endpoints {
            protocol: Protocol::Udp,
            ..Endpoints::default()
        };
        let (_server, port) = shared(Type::DGRAM);
        for how in [Bind::Strict, Bind::Shared] {
            let outcome = Probe::bind(port, &endpoints, how);
            assert!(
                matches!(outcome, Err(Failure::Unavailable(_))),
                "{outcome:?}"
            );
        }
    }

    #[test]
    fn a_table_that_was_read_earlier_is_not_proof_enough() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let earlier = HashMap::from([(address.port(), vec![address.ip()])]);
        let closing = ClosingPorts(earlier.into());
        let outcome = closing.is_all_there_is(address.ip(), address.port());
        assert!(!outcome.expect("readable"), "a socket listens now");
    }

    #[test]
    fn a_probe_that_cannot_listen_is_an_error() {
        let endpoints = Endpoints {
            protocol: Protocol::Udp,
            ..Endpoints::default()
        };
        let probe = Probe::bind(0, &endpoints, Bind::Strict).expect("a free port");
        let Err(Failure::Error(error)) = probe.listen() else {
            panic!("no UDP socket can listen (listen(2), EOPNOTSUPP)");
        };
        assert_eq!(error.kind(), ErrorKind::Probe);
        assert!(error.to_string().starts_with("cannot listen on"), "{error}");
    }

    #[test]
    fn the_kernels_table_is_read() {
        for host in ["127.0.0.1", "[::1]"] {
            let Ok(tcp) = TcpListener::bind(format!("{host}:0")) else {
                eprintln!("skipped: {host} does not exist here");
                continue;
            };
            let udp = UdpSocket::bind(format!("{host}:0")).expect("as for TCP");
            for (address, ty) in [
                (tcp.local_addr(), Type::STREAM),
                (udp.local_addr(), Type::DGRAM),
            ] {
                let port = address.expect("bound").port();
                assert_eq!(
                    is_in_table(port, ty).expect("readable"),
                    Some(true),
                    "{host}"
                );
            }
        }
        assert_eq!(is_in_table(0, Type::STREAM).expect("readable"), Some(false));
        assert_eq!(local_address("  sl  local_address rem_address   st"), None);
        let line = |address: &str| local_address(&format!("0: {address}:1F90 0:0 06"));
        let number = |bytes: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(bytes));
        let v4 = number([127, 0, 0, 1]);
        assert_eq!(line(&v4), Some((Ipv4Addr::LOCALHOST.into(), 8080)));
        let v6 = number([0; 4]).repeat(3) + &number([0, 0, 0, 1]);
        assert_eq!(line(&v6), Some((Ipv6Addr::LOCALHOST.into(), 8080)));
        let address: Ipv6Addr = "2001:db8:1:2:3:4:5:6".parse().expect("an address");
        let groups = address.octets();
        let groups = groups
            .chunks_exact(4)
            .map(|group| group.try_into().expect("4"));
        let v6: String = groups.map(number).collect();
        assert_eq!(line(&v6), Some((address.into(), 8080)));
        assert_eq!(line(&v6[..24]), None);
    }
}
