//! Waits for a server that is starting.

use std::{
    io,
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    thread,
    time::{Duration, Instant},
};

use crate::error::{Error, ErrorKind, Result};

/// Waits until something accepts connections at `address`, or at one of several: a socket
/// address, a host and a port, or a slice of socket addresses.
///
/// It connects, and closes the connection immediately. It retries if a connection is refused, is
/// not answered or has no route to its host, or if this machine does not have the local address
/// yet: networks come up while servers start. A name is resolved once, and any of its addresses
/// is sufficient.
///
/// That can be any server. If yours failed to start because another program has taken the port,
/// the other program's server answers.
/// [`FreePort::wait_for_server`](crate::FreePort::wait_for_server) and
/// [`LockDir::wait_for_server`](crate::LockDir::wait_for_server) distinguish them.
///
/// # Errors
///
/// [`Timeout`](ErrorKind::Timeout) with the last failure if nothing accepts a connection within
/// `timeout`; [`Probe`](ErrorKind::Probe) if the name cannot be resolved, or if connecting fails
/// at every address for a reason that does not go away.
///
/// # Examples
///
/// ```
/// use std::{net::TcpListener, time::Duration};
///
/// let server = TcpListener::bind("127.0.0.1:0")?;
/// let port = server.local_addr()?.port();
/// portlock::wait_until_listening(("localhost", port), Duration::from_secs(5))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn wait_until_listening(address: impl ToSocketAddrs, timeout: Duration) -> Result<()> {
    wait_for_any(address, timeout, |_, _| Ok(()))
}

/// Facts about the server that accepted a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accepted {
    pub(crate) address: SocketAddr,
    /// Whether the address belongs to this machine.
    pub(crate) is_local: bool,
}

/// Waits until something accepts connections at an address, and returns the result of `inspect`
/// for the first server that does and all addresses. An error from `inspect` ends the wait.
pub(crate) fn wait_for_any<T>(
    address: impl ToSocketAddrs,
    timeout: Duration,
    inspect: impl Fn(Accepted, &[SocketAddr]) -> Result<T>,
) -> Result<T> {
    let addresses = address.to_socket_addrs().map_err(|error| {
        let message = "cannot resolve the name of the host to connect to";
        Error::with_cause(ErrorKind::Probe, message, error)
    })?;
    let mut addresses: Vec<SocketAddr> = addresses.collect();
    if addresses.is_empty() {
        let message = "there is no address to connect to";
        return Err(Error::new(ErrorKind::Probe, message));
    }
    const MAX_PAUSE: Duration = Duration::from_millis(50);
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        // The last failure of this round, for the message. A refusal is preferred, because it is
        // the host's own answer.
        let mut failure = io::Error::from(io::ErrorKind::TimedOut);
        let mut next = 0;
        while let Some(&address) = addresses.get(next) {
            match connect(address, timeout.saturating_sub(start.elapsed())) {
                Ok(accepted) => return inspect(accepted, &addresses),
                Err(error) if may_pass(&error) => {
                    if failure.kind() != io::ErrorKind::ConnectionRefused {
                        failure = error;
                    }
                    next += 1;
                }
                // For example because there is no IPv6: another address may still answer.
                Err(_) if addresses.len() > 1 => drop(addresses.remove(next)),
                Err(error) => {
                    let message = format!("cannot connect to {address}");
                    return Err(Error::with_cause(ErrorKind::Probe, message, error));
                }
            }
        }
        let left = timeout.saturating_sub(start.elapsed());
        if left.is_zero() {
            let waited = match timeout {
                Duration::ZERO => String::new(),
                _ => format!(" after {:.1} s", start.elapsed().as_secs_f64()),
            };
            let addresses: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
            let addresses = addresses.join(" or ");
            let message = format!("nothing accepts connections at {addresses}{waited}");
            return Err(Error::with_cause(ErrorKind::Timeout, message, failure));
        }
        thread::sleep(pause.min(left));
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

/// Connects to a server and closes the connection.
fn connect(address: SocketAddr, left: Duration) -> io::Result<Accepted> {
    /// Time after which an unanswered attempt is repeated, because it may have been lost.
    const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);
    // Zero is not a valid timeout for connecting.
    let timeout = left.clamp(Duration::from_millis(1), ATTEMPT_TIMEOUT);
    let stream = TcpStream::connect_timeout(&address, timeout)?;
    if is_connected_with_itself(&stream) {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    // A connection to the wildcard address goes to the loopback address.
    let address = stream.peer_addr().unwrap_or(address);
    // For a connection to itself, a machine uses the same source address.
    let from_itself = stream
        .local_addr()
        .is_ok_and(|own| own.ip() == address.ip());
    Ok(Accepted {
        address,
        is_local: address.ip().to_canonical().is_loopback() || from_itself,
    })
}

/// Returns whether connecting may succeed later, after this error.
fn may_pass(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::Interrupted
            | io::ErrorKind::TimedOut
            | io::ErrorKind::WouldBlock
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::AddrNotAvailable
    )
}

/// Returns whether the client was assigned the same port that it connects to, and so is connected
/// with itself (RFC 9293, section 3.5: simultaneous open).
fn is_connected_with_itself(stream: &TcpStream) -> bool {
    match (stream.local_addr(), stream.peer_addr()) {
        (Ok(local), Ok(peer)) => local == peer,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use socket2::{Domain, Socket, Type};

    use super::*;

    #[test]
    fn a_connection_with_itself_does_not_count_as_a_server() {
        let any: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
        let server = TcpListener::bind(any).expect("a free port");
        let client = TcpStream::connect(server.local_addr().expect("bound"));
        assert!(!is_connected_with_itself(&client.expect("it listens")));

        if cfg!(target_os = "linux") {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            socket.bind(&any.into()).expect("a free port");
            let own = socket.local_addr().expect("bound");
            socket.connect(&own).expect("simultaneous open");
            assert!(is_connected_with_itself(&socket.into()));
        }
    }
}
