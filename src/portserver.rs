//! The client for portpicker's port server protocol.
//!
//! The connection is a stream socket, on Windows a named pipe, and serves one request: the pid of
//! the process that the port will belong to, in decimal, and a newline. The answer is the port in
//! decimal and a newline, or nothing if the server refuses; then the server closes the
//! connection. No message returns a port: it becomes free when that process ends.

use std::{
    io, str,
    time::{Duration, Instant},
};

use crate::error::{Error, ErrorKind, Result};

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(unix)]
use unix::Connection;
#[cfg(windows)]
use windows::Connection;

/// Time limit for the whole exchange with a port server.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Largest number of bytes in an answer. A port has at most 5 digits and a line end. A longer
/// answer is invalid, and is not read to its end.
pub(crate) const MAX_ANSWER_LEN: usize = 15;

/// Asks the port server at `address` for a port that belongs to the process `pid`: portpicker's
/// `get_port_from_port_server(portserver_address, pid)`, also known as `GetPortFromPortServer`.
///
/// An address that begins with `@` is a name in Linux's abstract namespace (unix(7)); any other
/// address is a path.
///
/// The server decides how the port is leased: `portlock serve` leases it from its lock directory
/// for as long as that process lives; the Python `portserver.py` remembers it and does not know
/// about leases.
///
/// # Platform-specific behavior
///
/// On Windows, as in portpicker, `@name` is the named pipe `\\.\pipe\name`, and any other address
/// is the path of a pipe. Only Linux has an abstract namespace: on other Unix systems, connecting to
/// a name in it fails.
///
/// # Errors
///
/// [`PortServer`](ErrorKind::PortServer) if the server cannot be reached, does not answer within
/// 10 seconds, refuses, or sends an answer that is not a port. The message says which.
///
/// # Examples
///
/// ```no_run
/// use portlock::compat::portpicker::get_port_from_port_server;
///
/// let port = get_port_from_port_server("@unittest-portserver", std::process::id())?;
/// # Ok::<(), portlock::Error>(())
/// ```
#[doc(alias = "GetPortFromPortServer")]
pub fn get_port_from_port_server(address: &str, pid: u32) -> Result<u16> {
    let fail = |what: &str, cause: io::Error| {
        let message = match cause.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                let seconds = TIMEOUT.as_secs();
                let message = format!("port server {address} does not answer in {seconds} s");
                return Error::new(ErrorKind::PortServer, message);
            }
            _ => format!("cannot {what} port server {address}"),
        };
        Error::with_cause(ErrorKind::PortServer, message, cause)
    };
    let deadline = Instant::now() + TIMEOUT;
    let server = Connection::open(address, deadline).map_err(|error| fail("connect to", error))?;
    let answer = server
        .ask(&format!("{pid}\n"), deadline)
        .map_err(|error| fail("ask", error))?;
    let number: Option<u16> = match answer.trim_ascii() {
        // Both are refusals: some servers answer 0 instead of nothing.
        b"" => Some(0),
        text => str::from_utf8(text).ok().and_then(|text| text.parse().ok()),
    };
    // The beginning of a longer answer may look like a port.
    match number.filter(|_| answer.len() <= MAX_ANSWER_LEN) {
        Some(0) => {
            let message = format!("port server {address} has no port for process {pid}");
            Err(Error::new(ErrorKind::PortServer, message))
        }
        Some(port) => Ok(port),
        None => {
            let answer = String::from_utf8_lossy(&answer);
            let message = format!("port server {address} answers {answer:?}, which is no port");
            Err(Error::new(ErrorKind::PortServer, message))
        }
    }
}

/// Returns the time left until the deadline, never zero.
///
/// # Errors
///
/// If the deadline has passed.
pub(crate) fn time_left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(left)
}
