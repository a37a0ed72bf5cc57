//! The ports that this system sets aside, and those that are left for servers.

use std::{
    env,
    fs::{self, File},
    io::Read as _,
    ops::RangeInclusive,
};

use crate::{
    error::{Error, ErrorKind, Result},
    ports::PortSet,
};

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;
#[cfg(windows)]
mod windows;

#[cfg(target_os = "linux")]
use linux as system;
#[cfg(target_os = "macos")]
use macos as system;
#[cfg(windows)]
use windows as system;

pub(crate) use system::PRIVILEGE;

/// The environment variables that override [`PortSet::server_ports`].
const PORTS: &str = "PORTLOCK_PORTS";
const PORTS_FILE: &str = "PORTLOCK_PORTS_FILE";

/// Largest number of bytes in a file of ports: twice the longest set without comments.
const MAX_FILE_LEN: u64 = 1 << 20;

/// The "bad ports" above 1023 of the Fetch standard
/// (<https://fetch.spec.whatwg.org/#port-blocking>): no browser connects to them.
pub(crate) const REFUSED_BY_BROWSERS: [u16; 19] = [
    1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669,
    6679, 6697, 10080,
];

/// Returns the range from which the system chooses ports, for connecting clients and for `bind`
/// to port 0.
///
/// A server that needs a certain port should use one outside this range.
///
/// # Platform-specific behavior
///
/// * On Linux it is `net.ipv4.ip_local_port_range` of the calling thread's network namespace; it
///   applies to IPv6 as well. If the setting is missing, empty or not readable by this process, as
///   in some containers and sandboxes, the kernel's default, 32768 to 60999, is used, and a warning
///   is logged to the [`log`](https://docs.rs/log) crate.
/// * On macOS it is `net.inet.ip.portrange.first` and `last`, which apply to IPv6 as
///   well.
/// * On Windows it is what `netsh int ipv4 show dynamicport tcp` prints. It is run once
///   per process, because no documented function returns the range.
///
/// # Errors
///
/// [`Unsupported`](ErrorKind::Unsupported) if reading the setting fails for another reason, or if
/// it cannot be parsed; on macOS and Windows also if it is missing.
///
/// # Examples
///
/// ```
/// let ephemeral = portlock::ephemeral_port_range()?;
/// println!("clients get ports from {} to {}", ephemeral.start(), ephemeral.end());
/// # Ok::<(), portlock::Error>(())
/// ```
#[doc(alias = "getEphemeralTCPPortRange")]
pub fn ephemeral_port_range() -> Result<RangeInclusive<u16>> {
    system::ephemeral()
}

impl PortSet {
    /// Returns the ports that are left for servers on this machine: the default set of
    /// [`Builder`](crate::Builder).
    ///
    /// The environment can override them: `PORTLOCK_PORTS` with a set such as
    /// `4000-4999,!4045,7000`, or else `PORTLOCK_PORTS_FILE` with the path of a regular file of
    /// at most 1 MiB that contains one, with comments and any number of lines. An empty variable
    /// counts as unset.
    ///
    /// Otherwise they are all ports from 1024 to 65535 except
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
    /// If Linux hides one of its settings, the kernel's default is used instead, and a warning is
    /// logged to the [`log`](https://docs.rs/log) crate, once per setting.
    ///
    /// If Windows does not report its ephemeral range, its default range is assumed, 49152 to
    /// 65535. If it does not report the excluded ranges, none are excluded, and the probe finds
    /// out which of those ports cannot be bound.
    ///
    /// # Errors
    ///
    /// [`InvalidPorts`](ErrorKind::InvalidPorts) if a variable is set to something that is not a
    /// set of ports or an empty set, if the file cannot be read, is not a regular file or is too
    /// long, or if the system leaves no port for servers; [`Unsupported`](ErrorKind::Unsupported)
    /// if a setting of the system cannot be read or parsed.
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
            return chosen(&ports_file(&path, &origin)?, &origin);
        }
        let first = system::first_permitted()?.max(1024);
        let refused = REFUSED_BY_BROWSERS.into_iter().collect();
        let ephemeral = system::presumably_ephemeral()?;
        let (from, to) = (*ephemeral.start(), *ephemeral.end());
        let ports = Self::from(first..)
            .difference(&ephemeral.into())
            .difference(&system::reserved()?)
            .difference(&refused);
        if ports.is_empty() {
            // Using some of them anyway would silently conflict with clients.
            let message = format!(
                "no ports are left for servers from {first} on: the ephemeral range is {from} to \
                 {to}; name some in {PORTS}"
            );
            return Err(Error::new(ErrorKind::InvalidPorts, message));
        }
        Ok(ports)
    }
}

/// Reads the file that a user has named in `origin`.
///
/// The call neither waits nor uses much memory, whatever kind of file is at the path.
fn ports_file(path: &str, origin: &str) -> Result<String> {
    let fail = |error| Error::with_cause(ErrorKind::InvalidPorts, origin, error);
    let refuse = |why: &str| {
        let message = format!("{origin}: it must name a regular file of at most 1 MiB, but {why}");
        Error::new(ErrorKind::InvalidPorts, message)
    };
    // Checked before it is opened, because opening a FIFO waits for a writer.
    if !fs::metadata(path).map_err(fail)?.is_file() {
        return Err(refuse("it names a directory, a device, a pipe or a socket"));
    }
    let mut bytes = Vec::new();
    // The reported length of a file can be wrong, as in procfs.
    File::open(path)
        .and_then(|file| file.take(MAX_FILE_LEN + 1).read_to_end(&mut bytes))
        .map_err(fail)?;
    if bytes.len() as u64 > MAX_FILE_LEN {
        return Err(refuse("it is longer"));
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| Error::new(ErrorKind::InvalidPorts, format!("{origin} is not UTF-8")))?;
    // Some editors on Windows begin each file with a byte order mark.
    Ok(match text.strip_prefix('\u{feff}') {
        Some(text) => text.to_owned(),
        None => text,
    })
}

/// Parses the ports that a user has named in `origin`.
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
