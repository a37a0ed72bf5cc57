//! The ports that the kernel sets aside (sysctl(3), ip(4)).

use std::{io, ops::RangeInclusive};

use sysctl::{Ctl, CtlValue, Sysctl as _};

use crate::{
    error::{Error, ErrorKind, Result},
    ports::PortSet,
};

/// Returns the ephemeral range.
pub(crate) fn ephemeral() -> Result<RangeInclusive<u16>> {
    let first = setting("net.inet.ip.portrange.first")?;
    let last = setting("net.inet.ip.portrange.last")?;
    // From the first to the last, whichever is larger (in_pcb.c in XNU).
    Ok(first.min(last)..=first.max(last))
}

/// Returns the ephemeral range, for choosing ports outside it.
pub(crate) fn presumably_ephemeral() -> Result<RangeInclusive<u16>> {
    ephemeral()
}

/// Returns no ports: macOS has no setting for reserved ports.
pub(crate) fn reserved() -> Result<PortSet> {
    Ok(PortSet::default())
}

/// Privilege that a process needs to bind the ports that are not permitted to it.
pub(crate) const PRIVILEGE: &str =
    "ports below 1024 need root, unless they are bound on every address";

/// Returns the first port that this process is always permitted to bind (`IPPORT_RESERVED`).
pub(crate) fn first_permitted() -> Result<u16> {
    Ok(1024)
}

fn setting(name: &str) -> Result<u16> {
    let fail = |cause: io::Error| {
        let message = format!("cannot read {name}");
        Error::with_cause(ErrorKind::Unsupported, message, cause)
    };
    let value = Ctl::new(name)
        .and_then(|setting| setting.value())
        .map_err(|error| fail(io::Error::other(error)))?;
    let number = match value {
        CtlValue::Int(number) => u16::try_from(number).ok(),
        CtlValue::Uint(number) => u16::try_from(number).ok(),
        _ => None,
    };
    number.ok_or_else(|| fail(io::Error::other(format!("{value:?} is no port"))))
}
