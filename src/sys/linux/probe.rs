//! One strict bind sees all that is in its way.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use socket2::Type;

use crate::{error::Result, search::Miss};

pub(crate) use crate::sys::unix::probe::*;

/// What a bind of `host` would not see of those who are in its way: nothing.
#[inline]
pub(crate) fn look_around(_: IpAddr, _: u16, _: Type, _: bool) -> io::Result<Option<Miss>> {
    Ok(None)
}

/// Whether a port can be held by a socket that is out of its server's way.
#[inline]
pub(crate) fn can_hold() -> Result<()> {
    Ok(())
}

/// The addresses of the sockets of this type that have the port, connections in TIME_WAIT included,
/// or `None` if /proc does not show them. A TCP socket that is bound, and neither listens nor is
/// connected, is not among them (proc_pid_net(5)).
pub(crate) fn sockets(port: u16, ty: Type) -> io::Result<Option<Vec<IpAddr>>> {
    let names = match ty {
        Type::DGRAM => ["udp", "udp6"],
        _ => ["tcp", "tcp6"],
    };
    let mut addresses = Vec::new();
    for name in names {
        let text = match fs::read_to_string(format!("/proc/self/net/{name}")) {
            Ok(text) => text,
            // Without IPv6 its tables are missing.
            Err(error) if error.kind() == io::ErrorKind::NotFound && name.ends_with('6') => {
                continue;
            }
            Err(error) => {
                return match error.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => Ok(None),
                    _ => Err(error),
                };
            }
        };
        let sockets = text.lines().filter_map(local_address);
        addresses.extend(
            sockets
                .filter(|(_, of)| *of == port)
                .map(|(address, _)| address),
        );
    }
    Ok(Some(addresses))
}

/// The local address of a line such as `0: 0100007F:1F90 00000000:0000 0A …`: each 32 bits of
/// the address as a number of this machine, in hexadecimal digits.
fn local_address(line: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = line.split_ascii_whitespace().nth(1)?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = [0; 16];
    let groups = bytes.chunks_exact_mut(4).zip(0..);
    for (group, i) in groups.take(address.len() / 8) {
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
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn the_kernels_table_is_read() {
        for (host, canonical) in [
            ("127.0.0.1", "127.0.0.1"),
            ("0.0.0.0", "0.0.0.0"),
            ("[::1]", "::1"),
            ("[::ffff:127.0.0.1]", "127.0.0.1"),
        ] {
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
                let sockets = sockets(port, ty).expect("readable").expect("shown");
                let expected: IpAddr = canonical.parse().expect("an address");
                assert!(sockets.contains(&expected), "{host}: {sockets:?}");
            }
        }
        assert_eq!(local_address("  sl  local_address rem_address   st"), None);
    }
}
