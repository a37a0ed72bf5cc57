//! The default lock directory.
//!
//! It is not in `AppData`: what a packaged (MSIX) program and its children create there is
//! redirected, file by file, into a private copy. Two lock files of one port would exist
//! and look alike.

use std::path::PathBuf;

use super::dir::User;
use crate::{
    error::{Error, ErrorKind, Result},
    lock_dir::{Origin, USE_VARIABLE},
};

/// Returns `.portlock` in the user's profile, which no environment variable moves
/// (`FOLDERID_Profile`).
pub(crate) fn default_dir(_: User) -> Result<(PathBuf, Origin)> {
    match dirs::home_dir() {
        Some(dir) => Ok((dir.join(".portlock"), Origin::Home)),
        None => {
            let message = "this user has no profile directory";
            Err(Error::new(ErrorKind::LockDir, message).with_hint(USE_VARIABLE))
        }
    }
}

/// Returns every path at which a caller of this user has its default directory, or had it
/// by earlier rules.
pub(crate) fn default_dirs(_: User) -> Vec<PathBuf> {
    let home = dirs::home_dir().map(|dir| dir.join(".portlock"));
    let data = dirs::data_local_dir().map(|dir| dir.join("portlock"));
    home.into_iter().chain(data).collect()
}
