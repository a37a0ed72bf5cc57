//! Which ports this system sets aside, and which are left for servers.

use std::{env, fs, ops::RangeInclusive};

use crate::{
    error::{Error, ErrorKind, Result},
    ports::PortSet,
    sys::ports as sys,
};

/// The environment variables that override [`PortSet::server_ports`].
const PORTS: &str = "PORTLOCK_PORTS";
const PORTS_FILE: &str = "PORTLOCK_PORTS_FILE";

/// The "bad ports" above 1023 of the Fetch standard
/// (<https://fetch.spec.whatwg.org/#port-blocking>): no browser connects to them.
const REFUSED_BY_BROWSERS: [u16; 19] = [
    1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669,
    6679, 6697, 10080,
];

/// The range from which the system itself chooses ports, for clients that
/// connect and for `bind` to port 0.
///
/// A server that shall get a port of its choice should choose it elsewhere.
///
/// # Platform-specific behavior
///
/// * On Linux it is `net.ipv4.ip_local_port_range` of the calling thread's network
///   namespace; it holds for IPv6 as well. In a container that hides it, it is
///   the kernel's default, 32768 to 60999, rather than IANA's 49152 to 65535,
///   which Linux does not use.
/// * On macOS it is `net.inet.ip.portrange.first` and `last`, which hold for IPv6 as
///   well.
/// * On Windows it is what `netsh int ipv4 show dynamicport tcp` says, asked once in the
///   life of this process: there is no documented function that tells it.
///
/// # Errors
///
/// [`Unsupported`](ErrorKind::Unsupported) if the setting is there but cannot be
/// read or understood; on macOS and Windows also if it is not there.
///
/// # Examples
///
/// ```
/// let ephemeral = portlock::ephemeral_port_range()?;
/// println!("clients get ports from {} to {}", ephemeral.start(), ephemeral.end());
/// # Ok::<(), portlock::Error>(())
/// ```
pub fn ephemeral_port_range() -> Result<RangeInclusive<u16>> {
    sys::ephemeral()
}

impl PortSet {
    /// The ports that are left for servers on this machine: what
    /// [`Builder`](crate::Builder) chooses from unless it is given others.
    ///
    /// The environment can name them: `PORTLOCK_PORTS` as a set such as
    /// `4000-4999,!4045,7000`, or else `PORTLOCK_PORTS_FILE` as the path of a
    /// file that holds one, with comments and any number of lines. A variable
    /// that is empty counts as unset.
    ///
    /// Otherwise they are all from 1024 to 65535 but
    ///
    /// * those of the [ephemeral range](ephemeral_port_range), both ends included;
    /// * those that an administrator has reserved (Linux:
    ///   `net.ipv4.ip_local_reserved_ports`; Windows: the excluded port ranges);
    /// * on Linux those below `net.ipv4.ip_unprivileged_port_start`, if this thread does
    ///   not have `CAP_NET_BIND_SERVICE`;
    /// * those that browsers refuse to connect to, by the
    ///   [Fetch standard](https://fetch.spec.whatwg.org/#port-blocking).
    ///
    /// # Platform-specific behavior
    ///
    /// Where Windows does not tell its ephemeral range, it is taken to be the one that it
    /// comes with, 49152 to 65535; where it does not tell the excluded ranges, none are
    /// left out, and the probe finds those of its own that cannot be bound.
    ///
    /// # Errors
    ///
    /// [`InvalidPorts`](ErrorKind::InvalidPorts) if a variable is set to something
    /// that is no set of ports, or a set without any, if the file cannot be
    /// read, or if the system leaves no port for servers;
    /// [`Unsupported`](ErrorKind::Unsupported) if a setting of the
    /// system cannot be read or understood.
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::{FreePort, PortSet};
    ///
    /// let ports = PortSet::server_ports()?;
    /// let port = FreePort::builder().ports(ports.clone()).acquire()?;
    /// assert!(ports.contains(port.port()));
    /// # Ok::<(), portlock::Error>(())
    /// ```
    pub fn server_ports() -> Result<Self> {
        if let Some(text) = variable(PORTS)? {
            return chosen(&text, &format!("{PORTS}={text:?}"));
        }
        if let Some(path) = variable(PORTS_FILE)? {
            let origin = format!("{PORTS_FILE}={path:?}");
            let text = fs::read_to_string(&path)
                .map_err(|error| Error::with_cause(ErrorKind::InvalidPorts, &origin, error))?;
            return chosen(&text, &origin);
        }
        let first = sys::first_permitted()?.max(1024);
        let refused = REFUSED_BY_BROWSERS.into_iter().collect();
        let ephemeral = sys::presumably_ephemeral()?;
        let (from, to) = (*ephemeral.start(), *ephemeral.end());
        let ports = Self::from(first..)
            .difference(&ephemeral.into())
            .difference(&sys::reserved()?)
            .difference(&refused);
        if ports.is_empty() {
            // To take some all the same would be a silent clash with clients.
            let message = format!(
                "no ports are left for servers from {first} on: the ephemeral range is {from} to \
                 {to}; name some in {PORTS}"
            );
            return Err(Error::new(ErrorKind::InvalidPorts, message));
        }
        Ok(ports)
    }
}

/// The ports that a user has named in `origin`.
fn chosen(text: &str, origin: &str) -> Result<PortSet> {
    let ports: PortSet = text.parse().map_err(|error: Error| error.of(origin))?;
    if ports.is_empty() {
        let message = format!("{origin} names no port from 1 to 65535");
        return Err(Error::new(ErrorKind::InvalidPorts, message));
    }
    Ok(ports)
}

fn variable(name: &str) -> Result<Option<String>> {
    let Some(value) = env::var_os(name).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let value = value.into_string().map_err(|value| {
        let message = format!("{name}={value:?} is not UTF-8");
        Error::new(ErrorKind::InvalidPorts, message)
    })?;
    Ok(Some(value))
}
