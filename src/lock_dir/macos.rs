//! The default lock directory.
//!
//! It is not in `/tmp`: each day, `com.apple.tmp_cleaner` removes the files there that were not read
//! or written for three days, locked or not, and a lock is no use in that sense: flock(2) changes no
//! time of a file.

use std::{os::fd::OwnedFd, path::PathBuf};

use rustix::{fs::Mode, process::Uid};

use super::Origin;
use crate::error::{Error, ErrorKind, Result, USE_VARIABLE};

/// Returns `portlock` in the user's local data directory, `~/Library/Application Support`.
pub(crate) fn default_dir(_: Uid) -> Result<(PathBuf, Origin)> {
    match dirs::data_local_dir() {
        Some(dir) => Ok((dir.join("portlock"), Origin::LocalData)),
        None => {
            let message = "this user has no local data directory";
            Err(Error::new(ErrorKind::LockDir, message).with_hint(USE_VARIABLE))
        }
    }
}

/// Returns every path at which a caller of this user has its default directory, or had it
/// by earlier rules.
pub(crate) fn default_dirs(us: Uid) -> Vec<PathBuf> {
    let data = dirs::data_local_dir().map(|dir| dir.join("portlock"));
    let tmp = format!("/tmp/portlock-{}", us.as_raw()).into();
    data.into_iter().chain([tmp]).collect()
}

/// The mode bit that keeps a lock file from being removed for its age: none. Only root may
/// set the sticky bit of a file (chmod(2), EFTYPE), and nothing removes files here for their age.
pub(crate) const KEPT: Mode = Mode::empty();

/// Returns whether this may be the owner of files whose real owner is not mapped: macOS has no user
/// namespaces.
pub(crate) fn is_unmapped(_: u32) -> bool {
    false
}

/// Returns whether the file system is one of those that were tried: none was.
pub(crate) fn is_local(_: &OwnedFd) -> rustix::io::Result<bool> {
    Ok(false)
}
