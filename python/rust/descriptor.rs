//! Descriptors as Python's integers.

use std::net::TcpListener;

use portlock::FreePort;
use pyo3::prelude::*;

use crate::error;

#[cfg(unix)]
pub(crate) fn of_listener(listener: TcpListener) -> i64 {
    use std::os::fd::IntoRawFd;
    listener.into_raw_fd().into()
}

#[cfg(windows)]
#[expect(
    clippy::cast_possible_wrap,
    reason = "Python's own conversion of a handle"
)]
pub(crate) fn of_listener(listener: TcpListener) -> i64 {
    use std::os::windows::io::IntoRawSocket;
    listener.into_raw_socket() as i64
}

/// Returns the descriptor of a lease, which belongs to the caller from then on.
#[cfg(unix)]
pub(crate) fn of_lease(py: Python<'_>, take: impl FnOnce() -> PyResult<FreePort>) -> PyResult<i64> {
    use std::os::fd::IntoRawFd;
    let outcome = take()?.into_fd();
    let descriptor = outcome.map_err(|error| error::immediate(py, &error))?;
    Ok(descriptor.into_raw_fd().into())
}

#[cfg(windows)]
pub(crate) fn of_lease(
    py: Python<'_>,
    _take: impl FnOnce() -> PyResult<FreePort>,
) -> PyResult<i64> {
    let message = "a lease cannot be inherited as a descriptor on Windows; use delegate_to(pid)";
    Err(error::refused(
        py,
        portlock::ErrorKind::Unsupported,
        message,
    ))
}
