//! The lock directory on Windows.
//!
//! The access control list of the default directory is inherited from the user's profile, which
//! by default permits access only to this user, the system and administrators. The list of a
//! named directory is not checked either: the user who names it has to know who can write to it.
//!
//! It must be a real directory: no symbolic link, junction or other reparse point. It is not held
//! open. As long as one of its ports is leased, it can be neither renamed nor removed, because a
//! file in it is open.

use std::{
    fs, io,
    os::windows::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use windows_sys::Win32::Storage::FileSystem::FILE_ATTRIBUTE_REPARSE_POINT;

use super::{IfMissing, Origin, cannot, refuse};
use crate::{
    error::{Error, ErrorKind, Result, USE_VARIABLE},
    ports::fnv1a,
};

/// The user of the directory: any user that the system permits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct User;

/// Returns the user that runs this process.
pub(crate) fn user() -> User {
    User
}

/// A directory that has been checked.
#[derive(Debug)]
pub(crate) struct Dir {
    path: PathBuf,
}

/// The result of a check that succeeded.
pub(crate) struct DirStatus;

impl Dir {
    /// Returns the directory, which the caller has just found.
    pub(crate) fn open(path: &Path, _: Origin, _: User) -> Result<Self> {
        let path = path.to_owned();
        Ok(Self { path })
    }

    /// Returns `true`: the directory is identified by its path.
    pub(crate) fn is_still(&self, _: &DirStatus) -> bool {
        true
    }

    /// Returns `false`: Windows does not show whether other users lease ports in it.
    pub(crate) fn is_shared(&self) -> bool {
        false
    }

    /// Returns whether both are the same directory.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.path == other.path
    }

    /// Returns a hash of its path.
    pub(crate) fn digest(&self) -> u64 {
        fnv1a(self.path.as_os_str().as_encoded_bytes())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes a file in it.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }
}

/// Checks the directory at `path`. `missing` says what to do if it is missing: create it, return
/// `None`, or fail.
pub(crate) fn find(
    path: &Path,
    missing: IfMissing,
    _: Origin,
    _: User,
) -> Result<Option<DirStatus>> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => match missing {
            IfMissing::Allow => return Ok(None),
            IfMissing::Refuse => Err(error),
            IfMissing::Create => {
                match fs::create_dir(path) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(error) => return Err(cannot("create", path, error).with_hint(USE_VARIABLE)),
                }
                fs::symlink_metadata(path)
            }
        },
        found => found,
    };
    let found = found.map_err(|error| cannot("use", path, error))?;
    if found.file_attributes() & FILE_ATTRIBUTE_REPARSE_POINT != 0 {
        return Err(refuse(
            path,
            "it is a symbolic link or another reparse point",
        ));
    }
    if !found.is_dir() {
        return Err(refuse(path, "it is not a directory"));
    }
    Ok(Some(DirStatus))
}

/// Returns `.portlock` in the user's profile, whose path no environment variable changes
/// (`FOLDERID_Profile`).
///
/// It is not in `AppData`: files that a packaged (MSIX) program and its children create there are
/// redirected, one by one, into a private copy. Two lock files of one port would exist at the
/// same path.
pub(crate) fn default_dir(_: User) -> Result<(PathBuf, Origin)> {
    match dirs::home_dir() {
        Some(dir) => Ok((dir.join(".portlock"), Origin::Home)),
        None => {
            let message = "this user has no profile directory";
            Err(Error::new(ErrorKind::LockDir, message).with_hint(USE_VARIABLE))
        }
    }
}

/// Returns every path at which a caller of this user has its default directory, or had it under
/// earlier rules.
pub(crate) fn default_dirs(_: User) -> Vec<PathBuf> {
    let home = dirs::home_dir().map(|dir| dir.join(".portlock"));
    let data = dirs::data_local_dir().map(|dir| dir.join("portlock"));
    home.into_iter().chain(data).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_directory_is_trusted() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let path = parent.path().join("locks");
        let find = |path: &Path, missing| find(path, missing, Origin::Home, User);
        assert!(find(&path, IfMissing::Refuse).is_err());
        assert!(matches!(find(&path, IfMissing::Allow), Ok(None)));
        for _ in 0..2 {
            find(&path, IfMissing::Create).expect("created once");
        }
        let file = parent.path().join("file");
        fs::write(&file, "").expect("our own directory");
        let error = find(&file, IfMissing::Create).err().expect("a file");
        assert!(error.to_string().contains("not a directory"), "{error}");
    }
}
