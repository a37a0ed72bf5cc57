//! The lock directory that a command uses.

use std::path::Path;

use portlock::LockDir;

/// Returns the lock directory named by the user, or else the default one.
pub(crate) fn lock_dir(named: Option<&Path>) -> portlock::Result<LockDir> {
    match named {
        Some(path) => LockDir::open(path),
        None => LockDir::locate(),
    }
}
