//! Strict binds: those without `SO_REUSEADDR`.

use std::io;

use rustix::io::Errno;
use socket2::Socket;

/// The error of an address family that the system does not have.
pub(crate) const UNKNOWN_FAMILY: i32 = Errno::AFNOSUPPORT.raw_os_error();

/// Makes a bind of the socket fail if its address is in use. That is the default on Unix.
#[inline]
pub(crate) fn make_strict(_: &Socket) -> io::Result<()> {
    Ok(())
}

/// Lets a bind of the socket pass over connections in TIME_WAIT.
pub(crate) fn ignore_time_wait(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_address(true)
}

/// Makes what may outlive the closing of a bound socket harmless. See
/// `Probe::neutralize`.
#[inline]
pub(crate) fn neutralize(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_address(true)
}

/// The options with which a socket may share its port, and whether it has them.
pub(crate) fn sharing_options(socket: &Socket) -> [(&'static str, io::Result<bool>); 2] {
    [
        ("SO_REUSEADDR", socket.reuse_address()),
        ("SO_REUSEPORT", socket.reuse_port()),
    ]
}

/// Somebody has bound it.
pub(crate) fn is_in_use(error: &io::Error) -> bool {
    is(error, Errno::ADDRINUSE)
}

/// This process may not bind it.
pub(crate) fn is_not_permitted(error: &io::Error) -> bool {
    is(error, Errno::ACCESS) || is(error, Errno::PERM)
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}
