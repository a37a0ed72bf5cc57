//! The ports that the kernel sets aside (ip-sysctl in its documentation).

use std::{fs, io, ops::RangeInclusive};

use rustix::thread::{CapabilitySet, capabilities};

use crate::{
    error::{Error, ErrorKind, Result},
    ports::PortSet,
};

const EPHEMERAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
const UNPRIVILEGED: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// The kernel's own default for [`EPHEMERAL`].
const DEFAULT_EPHEMERAL: RangeInclusive<u16> = 32768..=60999;

/// The ephemeral range.
pub(crate) fn ephemeral() -> Result<RangeInclusive<u16>> {
    let Some(text) = setting(EPHEMERAL)? else {
        return Ok(DEFAULT_EPHEMERAL);
    };
    let mut ends = text.split_ascii_whitespace().map(str::parse::<u16>);
    match (ends.next(), ends.next(), ends.next()) {
        (Some(Ok(first)), Some(Ok(last)), None) => Ok(first..=last),
        _ => Err(not_understood(EPHEMERAL, &text)),
    }
}

/// The ephemeral range, for a choice of ports that are not in it.
pub(crate) fn presumably_ephemeral() -> Result<RangeInclusive<u16>> {
    ephemeral()
}

/// The ports that are kept for some program.
pub(crate) fn reserved() -> Result<PortSet> {
    match setting(RESERVED)? {
        None => Ok(PortSet::default()),
        // The kernel writes it as we do: 8080,9148-9150.
        Some(text) => text.parse().map_err(|_| not_understood(RESERVED, &text)),
    }
}

/// The first port that this process may bind.
pub(crate) fn first_permitted() -> Result<u16> {
    if may_bind_privileged_ports() {
        return Ok(1);
    }
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
