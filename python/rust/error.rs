//! The library's errors as Python's exceptions.

use std::time::Duration;

use portlock::{Error, ErrorKind};
use pyo3::{exceptions::PyValueError, intern, prelude::*};

/// Returns `portlock._errors.create`, which chooses the class. Not kept: if the package is imported again,
/// its exceptions are other classes.
fn create(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    py.import(intern!(py, "portlock._errors"))?
        .getattr(intern!(py, "create"))
}

/// Returns the exception for an error of the library in a call with this timeout.
pub(crate) fn of(py: Python<'_>, error: &Error, timeout: Duration) -> PyErr {
    let counts = error.counts().map(|counts| {
        (
            counts.leased,
            counts.reserved,
            counts.bound,
            counts.lingering,
            counts.not_permitted,
            counts.not_enough,
        )
    });
    let exception = || {
        create(py)?.call1((
            kind(error.kind()),
            error.to_string(),
            error.raw_os_error(),
            error.path(),
            counts,
            error.holders().to_vec(),
            !timeout.is_zero(),
        ))
    };
    exception().map_or_else(|error| error, PyErr::from_value)
}

/// Returns the exception for an error of a call that does not wait.
pub(crate) fn immediate(py: Python<'_>, error: &Error) -> PyErr {
    of(py, error, Duration::ZERO)
}

/// Returns the exception for invalid ports.
pub(crate) fn invalid_ports(py: Python<'_>, message: &str) -> PyErr {
    refused(py, ErrorKind::InvalidPorts, message)
}

/// Returns the exception for arguments that are refused before the library sees them.
pub(crate) fn refused(py: Python<'_>, of_kind: ErrorKind, message: &str) -> PyErr {
    let exception = || create(py)?.call1((kind(of_kind), message));
    exception().map_or_else(|error| error, PyErr::from_value)
}

/// Returns the exception for the use of a lease that has ended.
pub(crate) fn released(port: u16) -> PyErr {
    PyValueError::new_err(format!("the lease of port {port} has ended"))
}

fn kind(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::InvalidPorts => "invalid_ports",
        ErrorKind::Exhausted => "exhausted",
        ErrorKind::LockDir => "lock_dir",
        ErrorKind::Lock => "lock",
        ErrorKind::Probe => "probe",
        ErrorKind::PortServer => "port_server",
        ErrorKind::Timeout => "timeout",
        ErrorKind::InvalidName => "invalid_name",
        ErrorKind::OtherServer => "other_server",
        ErrorKind::Stopped => "stopped",
        ErrorKind::Process => "process",
        ErrorKind::PermissionDenied => "permission_denied",
        ErrorKind::Unsupported => "unsupported",
        // A kind that a newer library adds.
        _ => "other",
    }
}
