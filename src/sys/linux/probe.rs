//! One strict bind sees all that is in its way.

use std::{fs, io, net::IpAddr};

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

/// Whether any socket of this type has the port, connections in TIME_WAIT included, or `None` if
/// /proc does not show that. A TCP socket that is bound, and neither listens nor is connected, is
/// not shown (proc_pid_net(5)).
pub(crate) fn is_in_table(port: u16, ty: Type) -> io::Result<Option<bool>> {
    let names = match ty {
        Type::DGRAM => ["udp", "udp6"],
        _ => ["tcp", "tcp6"],
    };
    for name in names {
        let text = match fs::read_to_string(format!("/proc/self/net/{name}")) {
            Ok(text) => text,
            Err(error) => match error.kind() {
                // Without IPv6 its tables are missing.
                io::ErrorKind::NotFound if name.ends_with('6') => continue,
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => return Ok(None),
                _ => return Err(error),
            },
        };
        if text.lines().filter_map(local_port).any(|of| of == port) {
            return Ok(Some(true));
        }
    }
    Ok(Some(false))
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
