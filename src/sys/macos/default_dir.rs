//! The default lock directory.
//!
//! It is not in `/tmp`: macOS removes files there that were not used for three days,
//! locked or not.

use std::path::PathBuf;

use rustix::process::Uid;

use crate::{
    error::{Error, ErrorKind, Result},
    lock_dir::{Origin, USE_VARIABLE},
};

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
