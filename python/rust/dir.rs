//! The lock directory.

use std::{
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use portlock::{EntryState, LockDir, PortEntry};
use pyo3::prelude::*;

use crate::{argument, error};

/// The fields of `portlock.Entry`, in its order.
type Fields = (
    u16,
    &'static str,
    Option<u32>,
    Option<String>,
    Option<String>,
    Option<f64>,
    Option<String>,
);

/// Returns every lock file's port, and whether it is leased.
#[pyfunction]
#[pyo3(signature = (lock_dir=None))]
pub(crate) fn entries(py: Python<'_>, lock_dir: Option<PathBuf>) -> PyResult<Vec<Fields>> {
    let entries = with_dir(py, lock_dir, |dir| dir.entries())?;
    Ok(entries.iter().map(fields).collect())
}

fn fields(entry: &PortEntry) -> Fields {
    let state = match entry.state {
        EntryState::Held => "held",
        EntryState::Inherited => "inherited",
        EntryState::Delegated => "delegated",
        EntryState::Stale => "stale",
        // A state that a newer library adds is unknown here too.
        _ => "unknown",
    };
    let owner = entry.owner.as_ref();
    let seconds = |time: SystemTime| Some(time.duration_since(UNIX_EPOCH).ok()?.as_secs_f64());
    (
        entry.port,
        state,
        owner.map(|owner| owner.pid()),
        owner.and_then(|owner| owner.program()).map(str::to_owned),
        owner.and_then(|owner| owner.label()).map(str::to_owned),
        owner.and_then(|owner| owner.since()).and_then(seconds),
        entry.holder(),
    )
}

/// Removes the lock files of ports that are not leased, and returns how many it removed and kept.
#[pyfunction]
#[pyo3(signature = (lock_dir=None))]
pub(crate) fn clean(py: Python<'_>, lock_dir: Option<PathBuf>) -> PyResult<(usize, usize)> {
    let counts = with_dir(py, lock_dir, |dir| dir.clean())?;
    Ok((counts.removed, counts.kept))
}

/// Returns the path of the lock directory.
#[pyfunction]
#[pyo3(signature = (lock_dir=None))]
pub(crate) fn lock_dir(py: Python<'_>, lock_dir: Option<PathBuf>) -> PyResult<PathBuf> {
    with_dir(py, lock_dir, |dir| Ok(dir.path().to_owned()))
}

/// Ends the lease of a port that is delegated to a process of this user.
#[pyfunction]
#[pyo3(signature = (port, lock_dir=None))]
pub(crate) fn release_delegated(
    py: Python<'_>,
    port: &Bound<'_, PyAny>,
    lock_dir: Option<PathBuf>,
) -> PyResult<()> {
    let port = argument::port(port)?;
    with_dir(py, lock_dir, |dir| dir.release(port))
}

fn with_dir<T: Send>(
    py: Python<'_>,
    path: Option<PathBuf>,
    call: impl FnOnce(&LockDir) -> portlock::Result<T> + Send,
) -> PyResult<T> {
    let outcome = py.detach(|| {
        let dir = match path {
            Some(path) => LockDir::open(path),
            None => LockDir::locate(),
        };
        call(&dir?)
    });
    outcome.map_err(|error| error::immediate(py, &error))
}
