//! Which ports this system sets aside, and which are left for servers.

use std::{env, fs, io, ops::RangeInclusive};

use rustix::thread::{CapabilitySet, capabilities};

use crate::{
    error::{Error, ErrorKind, Result},
    ports::PortSet,
};

/// The environment variables that override [`PortSet::server_ports`].
const PORTS: &str = "PORTLOCK_PORTS";
const PORTS_FILE: &str = "PORTLOCK_PORTS_FILE";

const EPHEMERAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
const UNPRIVILEGED: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// The kernel's own default for [`EPHEMERAL`] (ip-sysctl in its documentation).
const DEFAULT_EPHEMERAL: RangeInclusive<u16> = 32768..=60999;

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
/// On Linux it is `net.ipv4.ip_local_port_range` of the calling thread's network
/// namespace; it holds for IPv6 as well. In a container that hides it, it is
/// the kernel's default, 32768 to 60999, rather than IANA's 49152 to 65535,
/// which Linux does not use.
///
/// # Errors
///
/// [`Unsupported`](ErrorKind::Unsupported) if the setting is there but cannot be
/// read or understood.
///
/// # Examples
///
/// ```
/// let ephemeral = portlock::ephemeral_port_range()?;
/// println!("clients get ports from {} to {}", ephemeral.start(), ephemeral.end());
/// # Ok::<(), portlock::Error>(())
/// ```
pub fn ephemeral_port_range() -> Result<RangeInclusive<u16>> {
    let Some(text) = setting(EPHEMERAL)? else {
        return Ok(DEFAULT_EPHEMERAL);
    };
    let mut ends = text.split_ascii_whitespace().map(str::parse::<u16>);
    match (ends.next(), ends.next(), ends.next()) {
        (Some(Ok(first)), Some(Ok(last)), None) => Ok(first..=last),
        _ => Err(not_understood(EPHEMERAL, &text)),
    }
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
    /// * those that an administrator has reserved
    ///   (`net.ipv4.ip_local_reserved_ports`);
    /// * those below `net.ipv4.ip_unprivileged_port_start`, if this thread does
    ///   not have `CAP_NET_BIND_SERVICE`;
    /// * those that browsers refuse to connect to, by the
    ///   [Fetch standard](https://fetch.spec.whatwg.org/#port-blocking).
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
        let first = if may_bind_privileged_ports() {
            1024
        } else {
            unprivileged_port_start()?.max(1024)
        };
        let refused = REFUSED_BY_BROWSERS.into_iter().collect();
        let ephemeral = ephemeral_port_range()?;
        let (from, to) = (*ephemeral.start(), *ephemeral.end());
        let ports = Self::from(first..)
            .difference(&ephemeral.into())
            .difference(&reserved_ports()?)
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

fn reserved_ports() -> Result<PortSet> {
    match setting(RESERVED)? {
        None => Ok(PortSet::default()),
        // The kernel writes it as we do: 8080,9148-9150.
        Some(text) => text.parse().map_err(|_| not_understood(RESERVED, &text)),
    }
}

fn unprivileged_port_start() -> Result<u16> {
    match setting(UNPRIVILEGED)? {
        // IPPORT_RESERVED, as it was before Linux 4.11 made it a setting.
        None => Ok(1024),
        Some(text) => text
            .trim()
            .parse()
            .map_err(|_| not_understood(UNPRIVILEGED, &text)),
    }
}

/// In doubt not: at worst it leaves out ports that could have been used.
fn may_bind_privileged_ports() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_BIND_SERVICE))
}

/// A setting of the kernel, or `None` where it is not to be seen.
fn setting(path: &str) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            let message = format!("cannot read {path}");
            Err(Error::with_cause(ErrorKind::Unsupported, message, error))
        }
    }
}

fn not_understood(path: &str, text: &str) -> Error {
    let message = format!("cannot understand {path}: {:?}", text.trim_end());
    Error::new(ErrorKind::Unsupported, message)
}
