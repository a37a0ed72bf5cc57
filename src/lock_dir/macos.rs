//! The default lock directory on macOS.
//!
//! It is not in `/tmp`: each day, `com.apple.tmp_cleaner` removes files there that were not read
//! or written for three days, even if they are locked, because flock(2) updates no timestamp of a
//! file.

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

/// Returns every path at which a caller of this user has its default directory, or had it under
/// earlier rules.
pub(crate) fn default_dirs(us: Uid) -> Vec<PathBuf> {
    let data = dirs::data_local_dir().map(|dir| dir.join("portlock"));
    let tmp = format!("/tmp/portlock-{}", us.as_raw()).into();
    data.into_iter().chain([tmp]).collect()
}

/// The mode bit that keeps a lock file from being removed because of its age: none. Only root may
/// set the sticky bit of a file (chmod(2), EFTYPE), and nothing removes files here because of
/// their age.
pub(crate) const KEPT: Mode = Mode::empty();

/// Returns `false`: macOS has no user namespaces.
pub(crate) fn is_unmapped(_: u32) -> bool {
    false
}

/// Returns `false`: no file system was tested on macOS.
pub(crate) fn is_local(_: &OwnedFd) -> rustix::io::Result<bool> {
    Ok(false)
}
