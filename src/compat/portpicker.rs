//! The functions of the Python package [portpicker](https://github.com/google/python_portpicker), as
//! of version 1.6.0. Here each port is leased.
//!
//! | portpicker | here |
//! |---|---|
//! | `pick_unused_port`, `PickUnusedPort` | [`pick_unused_port`] |
//! | `return_port` | [`return_port`] |
//! | `add_reserved_port` | [`add_reserved_port`] |
//! | `is_port_free`, `IsPortFree` | [`is_port_free`] |
//! | `bind`, `Bind` | [`bind`] |
//! | `get_port_from_port_server`, `GetPortFromPortServer` | [`get_port_from_port_server`] |
//! | `NoFreePortFoundError` | an [`Error`] that [is busy](crate::Error::is_busy) |

use std::{
    env::{self, VarError},
    process,
};

pub use crate::portserver::get_port_from_port_server;
use crate::{
    bindfree::Protocol,
    builder::Builder,
    compat::{Family, SocketType, cpython::find_unused_port, is_free},
    error::{Error, ErrorKind, Result},
    freeport::FreePort,
    logging::warn,
    per_process::PerProcess,
};

/// The environment variable that names a port server.
const PORT_SERVER: &str = "PORTSERVER_ADDRESS";

/// The ports that this process has picked, by number, each with its lease, or without one if a
/// port server assigned it.
static PICKED: PerProcess<Picked> = PerProcess::new();

#[derive(Default)]
struct Picked {
    in_use: Vec<(u16, Option<FreePort>)>,
    /// Ports that still belong to this process and are picked again before any other.
    returned: Vec<(u16, Option<FreePort>)>,
}

/// Calls `f` with the ports that this process has picked. A forked child has picked none: the
/// ports of its parent are not its own.
fn with_picked<T>(f: impl FnOnce(&mut Picked) -> T) -> Result<T> {
    let mut picked = PICKED.lock().ok_or_else(|| {
        let message = "cannot use the list of the ports that this process has picked: it was in \
                       use at too many forks in a row";
        Error::new(ErrorKind::Process, message)
    })?;
    Ok(f(picked.get_or_insert_default()))
}

/// Picks a port that is free for TCP and UDP, for the rest of this process's life:
/// portpicker's `pick_unused_port()`, also known as `PickUnusedPort`.
///
/// If the environment variable `PORTSERVER_ADDRESS` is set, that port server is asked for a port.
/// If it cannot be reached or refuses, or if the variable is not set, the port is leased from
/// [`PortSet::server_ports`](crate::PortSet::server_ports); it is never just a number that
/// happened to be free. If a server failed, a warning is logged to the
/// [`log`](https://docs.rs/log) crate.
///
/// Ports that were returned, or added with [`add_reserved_port`], are picked first.
///
/// # Errors
///
/// As for [`Builder::acquire`].
///
/// # Examples
///
/// ```
/// use portlock::compat::portpicker::{pick_unused_port, return_port};
///
/// let port = pick_unused_port()?;
/// return_port(port)?;
/// # Ok::<(), portlock::Error>(())
/// ```
#[doc(alias = "PickUnusedPort")]
pub fn pick_unused_port() -> Result<u16> {
    let reuse = |picked: &mut Picked| {
        let (port, lease) = picked.returned.pop()?;
        picked.in_use.push((port, lease));
        Some(port)
    };
    if let Some(port) = with_picked(reuse)? {
        return Ok(port);
    }
    let served = match env::var(PORT_SERVER) {
        Ok(address) if address.is_empty() => None,
        Ok(address) => Some(get_port_from_port_server(&address, process::id())),
        Err(VarError::NotPresent) => None,
        Err(VarError::NotUnicode(address)) => {
            let message = format!("{PORT_SERVER}={address:?} is not UTF-8");
            Some(Err(Error::new(ErrorKind::PortServer, message)))
        }
    };
    let (port, lease) = match served {
        Some(Ok(port)) => (port, None),
        failed => {
            let lease = any_protocol().acquire()?;
            if let Some(Err(error)) = failed {
                warn!("{error}; leased port {lease} without it");
            }
            (lease.port(), Some(lease))
        }
    };
    with_picked(|picked| picked.in_use.push((port, lease)))?;
    Ok(port)
}

/// Returns a port that [`pick_unused_port`] picked: portpicker's
/// `return_port(port)`.
///
/// If it was leased, the lease ends. If it is from a port server, it stays with this process,
/// because the protocol has no message that returns a port; it is the next port that this process
/// picks.
///
/// # Errors
///
/// [`InvalidPorts`](ErrorKind::InvalidPorts) if the port was not picked by this
/// process, or was returned already; otherwise as for [`FreePort::release`].
///
/// # Examples
///
/// ```
/// use portlock::compat::portpicker::{pick_unused_port, return_port};
///
/// let port = pick_unused_port()?;
/// return_port(port)?;
/// assert!(return_port(port).is_err(), "only once");
/// # Ok::<(), portlock::Error>(())
/// ```
pub fn return_port(port: u16) -> Result<()> {
    let found = with_picked(|picked| {
        let index = picked.in_use.iter().position(|(number, _)| *number == port);
        index.map(|index| picked.in_use.swap_remove(index))
    })?;
    match found {
        Some((_, Some(lease))) => lease.release(),
        Some((_, None)) => with_picked(|picked| picked.returned.push((port, None))),
        None => {
            let message = format!("cannot return port {port}: this process has not picked it");
            Err(Error::new(ErrorKind::InvalidPorts, message))
        }
    }
}

/// Adds a port to those that [`pick_unused_port`] picks first: portpicker's
/// `add_reserved_port(port)`.
///
/// portpicker trusts the caller that the port is reserved. Here it is leased immediately, and
/// stays leased until it is picked and returned.
///
/// # Errors
///
/// As for [`FreePort::try_new`]: [`Exhausted`](ErrorKind::Exhausted) if it is leased
/// or bound.
///
/// # Examples
///
/// ```
/// use portlock::compat::portpicker::{add_reserved_port, pick_unused_port};
///
/// // If it is free:
/// if add_reserved_port(7000).is_ok() {
///     assert_eq!(pick_unused_port()?, 7000);
/// }
/// # Ok::<(), portlock::Error>(())
/// ```
pub fn add_reserved_port(port: u16) -> Result<()> {
    let lease = any_protocol().ports(port).try_acquire()?;
    with_picked(|picked| picked.returned.push((port, Some(lease))))
}

/// Returns whether a port is free for TCP and UDP, and not leased: portpicker's
/// `is_port_free(port)`, also known as `IsPortFree`.
///
/// The answer may be wrong a moment later. To use the port, lease it:
/// [`Builder::try_acquire`] with [`Protocol::TcpAndUdp`] checks the same and keeps the
/// port.
///
/// # Errors
///
/// As for [`FreePort::try_new`], except that it is not an error if the port is in use, leased or
/// not permitted.
///
/// # Examples
///
/// ```
/// use std::net::TcpListener;
/// use portlock::compat::portpicker::is_port_free;
///
/// let server = TcpListener::bind("127.0.0.1:0")?;
/// assert!(!is_port_free(server.local_addr()?.port())?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "IsPortFree")]
pub fn is_port_free(port: u16) -> Result<bool> {
    is_free(&any_protocol().ports(port))
}

/// Number of ports that [`bind`] requests from the system until one is free on every address.
const CHOICES: usize = 16;

/// Returns `port` if it is free and not leased, on every address, for sockets of this type:
/// portpicker's `bind(port, socket_type, socket_proto)`, also known as `Bind`. For port 0,
/// returns one that the system chooses from its ephemeral range.
///
/// portpicker builds `is_port_free` on it, and it keeps nothing bound. To keep the socket that
/// finds the port free, use [`FreePort::listen`]. The type of a socket implies its protocol, so
/// there is no parameter for the protocol.
///
/// # Errors
///
/// As for [`is_port_free`].
///
/// # Examples
///
/// ```
/// use portlock::compat::{SocketType, portpicker::bind};
///
/// let port = bind(0, SocketType::Stream)?.expect("a port");
/// let server = std::net::TcpListener::bind(("127.0.0.1", port))?;
/// assert_eq!(bind(port, SocketType::Stream)?, None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "Bind")]
pub fn bind(port: u16, socket_type: SocketType) -> Result<Option<u16>> {
    let builder = FreePort::builder().protocol(socket_type.protocol());
    if port > 0 {
        return Ok(is_free(&builder.ports(port))?.then_some(port));
    }
    for _ in 0..CHOICES {
        let chosen = find_unused_port(Family::V4, socket_type)
            .or_else(|_| find_unused_port(Family::V6, socket_type))?;
        // It may be in use on other addresses.
        if is_free(&builder.clone().ports(chosen))? {
            return Ok(Some(chosen));
        }
    }
    Ok(None)
}

fn any_protocol() -> Builder {
    FreePort::builder().protocol(Protocol::TcpAndUdp)
}
