//! Which lock directory a command uses.

use std::path::Path;

use portlock::LockDir;

/// Returns the directory that the user has named, or else the one that is used without.
pub(crate) fn lock_dir(named: Option<&Path>) -> portlock::Result<LockDir> {
    match named {
        Some(path) => LockDir::open(path),
        None => LockDir::locate(),
    }
}
