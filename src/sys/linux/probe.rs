//! One strict bind sees all that is in its way.

use std::{fs, io, net::IpAddr};

use socket2::Type;

use crate::{bindfree::Bind, error::Result, ports::PortSet, search::Miss};

pub(crate) use crate::sys::unix::probe::*;

/// What a bind of `host` would not see of those who are in its way: nothing.
#[inline]
pub(crate) fn look_around(_: IpAddr, _: u16, _: Type, _: Bind<'_>) -> io::Result<Option<Miss>> {
    Ok(None)
}

/// How a socket is bound instead where closing connections count as free, for want of a table that
/// shows them: there is one.
pub(crate) const WITH_CLOSING: Option<Bind<'static>> = None;

/// The TCP ports on which nothing but closing connections are shown. None if /proc shows nothing.
///
/// A connection is closing if its program has no descriptor of it any more, and so its socket no
/// inode, and its state is one of those that follow a close (include/net/tcp_states.h).
pub(crate) fn closing_ports() -> io::Result<PortSet> {
    const FIN_WAIT1: &str = "04";
    const FIN_WAIT2: &str = "05";
    const TIME_WAIT: &str = "06";
    const LAST_ACK: &str = "09";
    const CLOSING: &str = "0B";
    let Some(tables) = tables(Type::STREAM)? else {
        return Ok(PortSet::default());
    };
    let (mut closing, mut others) = (Vec::new(), Vec::new());
    for line in tables.iter().flat_map(|table| table.lines()) {
        let Some(port) = local_port(line) else {
            continue;
        };
        let mut words = line.split_ascii_whitespace();
        let (state, inode) = (words.nth(3), words.nth(5));
        let is_closing = matches!(
            state,
            Some(FIN_WAIT1 | FIN_WAIT2 | TIME_WAIT | LAST_ACK | CLOSING)
        );
        match is_closing && inode == Some("0") {
            true => closing.push(port),
            false => others.push(port),
        }
    }
    let others: PortSet = others.into_iter().collect();
    Ok(closing.into_iter().collect::<PortSet>().difference(&others))
}

/// Whether a port can be held by a socket that is out of its server's way.
#[inline]
pub(crate) fn can_hold() -> Result<()> {
    Ok(())
}

/// Whether any socket of this type has the port, connections in TIME_WAIT included, or `None` if
/// /proc does not show that. A TCP socket that is bound, and neither listens nor is connected, is
/// not shown (proc_pid_net(5)).
pub(crate) fn is_in_table(port: u16, ty: Type) -> io::Result<Option<bool>> {
    let tables = tables(ty)?;
    Ok(tables.map(|tables| {
        let mut ports = tables
            .iter()
            .flat_map(|table| table.lines())
            .filter_map(local_port);
        ports.any(|of| of == port)
    }))
}

/// The tables of sockets of this type in this network namespace (proc_pid_net(5)), or `None` if
/// /proc does not show them.
fn tables(ty: Type) -> io::Result<Option<Vec<String>>> {
    let names = match ty {
        Type::DGRAM => ["udp", "udp6"],
        _ => ["tcp", "tcp6"],
    };
    let mut tables = Vec::with_capacity(names.len());
    for name in names {
        match fs::read_to_string(format!("/proc/self/net/{name}")) {
            Ok(text) => tables.push(text),
            Err(error) => match error.kind() {
                // Without IPv6 its tables are missing.
                io::ErrorKind::NotFound if name.ends_with('6') => {}
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => return Ok(None),
                _ => return Err(error),
            },
        }
    }
    Ok(Some(tables))
}

/// The local port of a line such as `0: 0100007F:1F90 00000000:0000 0A …`.
fn local_port(line: &str) -> Option<u16> {
    let (_, port) = line.split_ascii_whitespace().nth(1)?.split_once(':')?;
    u16::from_str_radix(port, 16).ok()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn the_kernels_table_is_read() {
        for host in ["127.0.0.1", "[::1]"] {
            let Ok(tcp) = TcpListener::bind(format!("{host}:0")) else {
                eprintln!("left out: {host} is not there");
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
        assert_eq!(local_port("  sl  local_address rem_address   st"), None);
    }
}
