//! Helpers under the names that other tools gave them.
//!
//! They are here so that tests can be moved over line by line.
//!
//! * CPython's [`bind_port`] and [`find_unused_port`]. The latter gives a number that
//!   was free a moment ago, not a lease: to keep it free, use [`FreePort`].
//! * portpicker's [`pick_unused_port`] and its kin. Here the port is leased, for the
//!   rest of this process's life.

use std::{
    env::{self, VarError},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process,
};

use socket2::{Domain, Socket, Type};

use crate::{
    bindfree::{Protocol, probe},
    builder::Builder,
    error::{Error, ErrorKind, Result},
    freeport::FreePort,
    logging::warn,
    per_process::PerProcess,
    portserver::get_port_from_port_server,
};

/// The host of CPython's `test.support.socket_helper.HOST`: the IPv4 loopback
/// address.
pub const HOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// The host of CPython's `HOSTv6`: the IPv6 loopback address.
pub const HOST_V6: Ipv6Addr = Ipv6Addr::LOCALHOST;

/// Binds `socket` to a port of `host` that the system chooses, and gives the
/// port: CPython's `bind_port(sock, host)`.
///
/// A TCP socket that has `SO_REUSEADDR` or `SO_REUSEPORT` set is refused. With
/// them, `bind` may succeed although another socket has the same port, and two
/// tests each believe that it is theirs. `SO_REUSEADDR` is for servers at a
/// fixed address that restart; a test that lets the system choose its port has
/// no use for it. CPython refuses IPv4 sockets only; the same holds for IPv6.
///
/// # Platform-specific behavior
///
/// On Windows, which has no `SO_REUSEPORT`, a TCP socket is bound with
/// `SO_EXCLUSIVEADDRUSE`, as CPython has it: without, another one with `SO_REUSEADDR`
/// could take the port away.
///
/// # Errors
///
/// [`Unsupported`](ErrorKind::Unsupported) for a TCP socket with one of these
/// options; [`Probe`](ErrorKind::Probe) if the system refuses, for example because
/// the socket is of another family than `host` or has been bound before.
///
/// # Examples
///
/// ```
/// use portlock::compat::{HOST, bind_port};
/// use socket2::{Domain, Socket, Type};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
/// let port = bind_port(&socket, HOST)?;
/// socket.listen(1)?;
/// assert_ne!(port, 0);
/// # Ok(())
/// # }
/// ```
pub fn bind_port(socket: &Socket, host: impl Into<IpAddr>) -> Result<u16> {
    let host = host.into();
    let fail = |operation: &str| {
        let message = format!("cannot {operation} a socket to be bound to {host}");
        move |error: io::Error| Error::with_cause(ErrorKind::Probe, message, error)
    };
    if socket.r#type().map_err(fail("get the type of"))? == Type::STREAM {
        for (name, set) in probe::sharing_options(socket) {
            if set.map_err(fail("get the options of"))? {
                let message = format!(
                    "refusing to bind a TCP socket to {host} that has {name} set: it could share \
                     its port with another one"
                );
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
        }
        probe::make_strict(socket).map_err(fail("set the options of"))?;
    }
    let any_port = SocketAddr::new(host, 0);
    socket.bind(&any_port.into()).map_err(fail("bind"))?;
    let address = socket.local_addr().map_err(fail("get the address of"))?;
    match address.as_socket() {
        Some(address) => Ok(address.port()),
        None => {
            let message = format!("a socket bound to {host} has no port");
            Err(Error::new(ErrorKind::Probe, message))
        }
    }
}

/// A port that was unused a moment ago: CPython's
/// `find_unused_port(family, socktype)`.
///
/// The system chooses it from the ephemeral range, on the loopback address of
/// the family, and it is anybody's again when this returns. Use it for what
/// CPython recommends it for, a program outside that must be told a number, only
/// where a [`FreePort`] cannot be kept.
///
/// # Errors
///
/// [`Unsupported`](ErrorKind::Unsupported) for a domain other than IPv4 and IPv6;
/// [`Probe`](ErrorKind::Probe) if the system refuses, for example because it
/// does not have that family.
///
/// # Examples
///
/// ```
/// use portlock::compat::find_unused_port;
/// use socket2::{Domain, Type};
///
/// let port = find_unused_port(Domain::IPV4, Type::STREAM)?;
/// assert_ne!(port, 0);
/// # Ok::<(), portlock::Error>(())
/// ```
pub fn find_unused_port(domain: Domain, ty: Type) -> Result<u16> {
    let host: IpAddr = match domain {
        Domain::IPV4 => HOST.into(),
        Domain::IPV6 => HOST_V6.into(),
        _ => {
            let message = format!("sockets of {domain:?} have no ports");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
    };
    let fail = |operation: &str| {
        let message = format!("cannot {operation} a {ty:?} socket on {host}");
        move |error: io::Error| Error::with_cause(ErrorKind::Probe, message, error)
    };
    let socket = Socket::new(domain, ty, None).map_err(fail("make"))?;
    let port = bind_port(&socket, host)?;
    // What a child that is just starting has of it must not be in the way of
    // the server to come; see `Probe::neutralize`.
    probe::neutralize(&socket).map_err(fail("set SO_REUSEADDR on"))?;
    Ok(port)
}

/// The environment variable that names a port server.
const PORT_SERVER: &str = "PORTSERVER_ADDRESS";

/// The ports that this process has picked, by number: with its lease, or with
/// none if a port server has given it.
static PICKED: PerProcess<Picked> = PerProcess::new();

#[derive(Default)]
struct Picked {
    in_use: Vec<(u16, Option<FreePort>)>,
    /// Still this process's, to be given out again before any other.
    returned: Vec<(u16, Option<FreePort>)>,
}

/// Does something with the ports that this process has picked. A forked child has picked
/// none: those of its parent are not its own to give out.
fn with_picked<T>(f: impl FnOnce(&mut Picked) -> T) -> Result<T> {
    let mut picked = PICKED.lock().ok_or_else(|| {
        let message = "cannot use the list of the ports that this process has picked: it was in \
                       use at too many forks in a row";
        Error::new(ErrorKind::Process, message)
    })?;
    Ok(f(picked.get_or_insert_default()))
}

/// Picks a port that is free for TCP and UDP, for the rest of this process's life:
/// portpicker's `pick_unused_port()`.
///
/// If the environment variable `PORTSERVER_ADDRESS` is set, the port server there is
/// asked. Where it cannot be reached or refuses, and where there is none, the
/// port is leased from [`PortSet::server_ports`](crate::PortSet::server_ports); never
/// is it only a number that happened to be free. A server that failed is told of
/// through the [`log`] crate, as a warning.
///
/// Ports that were returned, or added with [`add_reserved_port`], come first.
///
/// # Errors
///
/// As for [`Builder::acquire`].
///
/// # Examples
///
/// ```
/// use portlock::{pick_unused_port, return_port};
///
/// let port = pick_unused_port()?;
/// return_port(port)?;
/// # Ok::<(), portlock::Error>(())
/// ```
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

/// Gives a port back that [`pick_unused_port`] has given: portpicker's
/// `return_port(port)`.
///
/// If it was leased, the lease ends and anybody can have it. If a port server gave
/// it, it stays this process's, for the protocol has no way to give it back; it
/// is the next one to be picked here.
///
/// # Errors
///
/// [`InvalidPorts`](ErrorKind::InvalidPorts) if the port was not picked by this
/// process, or was returned already; otherwise as for [`FreePort::release`].
///
/// # Examples
///
/// ```
/// use portlock::{pick_unused_port, return_port};
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

/// Adds a port to those that [`pick_unused_port`] gives first: portpicker's
/// `add_reserved_port(port)`.
///
/// portpicker takes the caller's word that the port is reserved. Here it is
/// leased, now, and stays so until it is picked and returned.
///
/// # Errors
///
/// As for [`FreePort::try_new`]: [`Exhausted`](ErrorKind::Exhausted) if it is leased
/// or bound.
///
/// # Examples
///
/// ```
/// use portlock::{add_reserved_port, pick_unused_port};
///
/// // If nobody else has it:
/// if add_reserved_port(7000).is_ok() {
///     assert_eq!(pick_unused_port()?, 7000);
/// }
/// # Ok::<(), portlock::Error>(())
/// ```
pub fn add_reserved_port(port: u16) -> Result<()> {
    let lease = any_protocol().ports(port..=port).try_acquire()?;
    with_picked(|picked| picked.returned.push((port, Some(lease))))
}

/// Whether a port is free for TCP and UDP, and leased by nobody: portpicker's
/// `is_port_free(port)`.
///
/// The answer may be wrong a moment later. To use the port, lease it:
/// [`Builder::try_acquire`] with [`Protocol::TcpAndUdp`] determines the same, and keeps the
/// port.
///
/// # Errors
///
/// As for [`FreePort::try_new`], but that the port is in use, leased or not
/// permitted is no error.
///
/// # Examples
///
/// ```
/// use std::net::TcpListener;
///
/// let server = TcpListener::bind("127.0.0.1:0")?;
/// assert!(!portlock::is_port_free(server.local_addr()?.port())?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn is_port_free(port: u16) -> Result<bool> {
    match any_protocol().ports(port..=port).check() {
        Ok(()) => Ok(true),
        Err(error) => match error.kind() {
            ErrorKind::Exhausted | ErrorKind::PermissionDenied => Ok(false),
            _ => Err(error),
        },
    }
}

fn any_protocol() -> Builder {
    FreePort::builder().protocol(Protocol::TcpAndUdp)
}
