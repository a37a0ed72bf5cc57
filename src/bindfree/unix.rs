//! Strict binds on Unix: those without `SO_REUSEADDR`.

use std::io;

use rustix::io::Errno;
use socket2::Socket;

/// The error for an address family that the system lacks.
pub(crate) const UNKNOWN_FAMILY: i32 = Errno::AFNOSUPPORT.raw_os_error();

/// Ensures that a bind of the socket fails if its address is in use. This is the default on Unix.
#[inline]
pub(crate) fn make_strict(_: &Socket) -> io::Result<()> {
    Ok(())
}

/// Lets a bind of the socket ignore connections in TIME_WAIT.
pub(crate) fn ignore_time_wait(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_address(true)
}

/// Lets servers bind a port although a copy of its bound socket outlives that socket. See
/// `Probe::neutralize`.
#[inline]
pub(crate) fn neutralize(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_address(true)
}

/// Returns the options that let a socket share its port, and whether each is set.
pub(crate) fn sharing_options(socket: &Socket) -> [(&'static str, io::Result<bool>); 2] {
    [
        ("SO_REUSEADDR", socket.reuse_address()),
        ("SO_REUSEPORT", socket.reuse_port()),
    ]
}

/// Returns whether another socket has bound the address.
pub(crate) fn is_in_use(error: &io::Error) -> bool {
    is(error, Errno::ADDRINUSE)
}

/// Returns whether this process is not permitted to bind the address.
pub(crate) fn is_not_permitted(error: &io::Error) -> bool {
    is(error, Errno::ACCESS) || is(error, Errno::PERM)
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Type};

    use super::*;

    #[test]
    fn a_failed_bind_is_classified_by_its_error_number() {
        for (errno, in_use, not_permitted) in [
            (Errno::ADDRINUSE, true, false),
            (Errno::ACCESS, false, true),
            (Errno::PERM, false, true),
            (Errno::ADDRNOTAVAIL, false, false),
        ] {
            let error = io::Error::from(errno);
            assert_eq!(is_in_use(&error), in_use, "{error}");
            assert_eq!(is_not_permitted(&error), not_permitted, "{error}");
        }
        // An error without a number is not the system's.
        assert!(!is_in_use(&io::ErrorKind::AddrInUse.into()));
    }

    #[test]
    fn a_socket_has_the_sharing_options_that_were_set() {
        let options = |socket: &Socket| {
            sharing_options(socket).map(|(name, is_set)| (name, is_set.expect("our own socket")))
        };
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        make_strict(&socket).expect("our own socket");
        let strict = [("SO_REUSEADDR", false), ("SO_REUSEPORT", false)];
        assert_eq!(options(&socket), strict);
        for share in [ignore_time_wait, neutralize] {
            socket.set_reuse_address(false).expect("our own socket");
            share(&socket).expect("our own socket");
            let shared = [("SO_REUSEADDR", true), ("SO_REUSEPORT", false)];
            assert_eq!(options(&socket), shared);
        }
        socket.set_reuse_address(false).expect("our own socket");
        socket.set_reuse_port(true).expect("our own socket");
        let shared = [("SO_REUSEADDR", false), ("SO_REUSEPORT", true)];
        assert_eq!(options(&socket), shared);
    }
}
