//! The lock directory.
//!
//! A user who can rename or remove files in the directory can end exclusivity
//! unseen, and one who can plant a link in it can aim our writes elsewhere. So
//! it is checked before it is used: a real directory (no symbolic link),
//! and one of two kinds.
//!
//! * **Private**: owned by this user, and nobody else can write to it. Files in it are
//!   readable and writable by this user alone. A mode like 0755 is as good as 0700 here,
//!   because others can neither open the files nor add any.
//! * **Shared between users**: writable by group or others, and then sticky
//!   (mode 1777), owned by root or by this user, because a directory's owner
//!   may rename and remove what is in it in spite of the sticky bit (unlink(2),
//!   EPERM). Files in it are readable and writable by all, whatever the umask. An owner who
//!   is not mapped into our user namespace looks like every other such owner, root
//!   among them, and counts as root for a directory that somebody has chosen: one that
//!   was named, or the one of all users.
//!
//! In a shared directory every user can do some harm, though none outside it: keep ports
//! from others (lock files, or put something else in their place), hold up waiters
//! until the timeout, end a *delegated* lease by writing to its record, and remove or
//! rename a lock file that he has made. That ends exclusivity as it does wherever a
//! lock file or the directory is removed or replaced while a lease is held: the lock
//! goes on, on a file that is no longer at its path. Later callers in the same process
//! still know of the lease, by the process-wide set; others only if the port is bound.
//! Moved back, the file or directory is what it was. Files that root has made can be
//! removed by root alone. What is above the directory is not checked.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Dev, FileType, Mode, OFlags, Stat},
    io::Errno,
    process::{Uid, geteuid},
};

use super::{IfMissing, KEPT, Origin, cannot, is_local, is_unmapped, refuse};
use crate::{
    error::{Error, Result, USE_VARIABLE},
    ports::fnv1a,
};

/// The user of the directory.
pub(crate) type User = Uid;

/// Returns the user that runs this process.
#[inline]
pub(crate) fn user() -> User {
    geteuid()
}

/// A directory that has been checked, and is open.
#[derive(Debug)]
pub(crate) struct Dir {
    fd: OwnedFd,
    checked: DirStatus,
    local: bool,
}

/// What a check has found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct DirStatus {
    identity: Identity,
    shared: bool,
}

impl Dir {
    /// Opens the directory and checks it.
    pub(crate) fn open(path: &Path, origin: Origin, user: User) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::empty())
            .map_err(|error| fail("open", path, error))?;
        // What was checked before may have been replaced since.
        let stat = rustix::fs::fstat(&fd).map_err(|error| fail("stat", path, error))?;
        let checked = check(path, &stat, origin, user)?;
        let local = is_local(&fd).map_err(|error| fail("stat", path, error))?;
        Ok(Self { fd, checked, local })
    }

    /// Returns whether it is still what has just been found.
    pub(crate) fn is_still(&self, found: &DirStatus) -> bool {
        self.checked == *found
    }

    /// Returns whether other users may lease ports in it too.
    pub(crate) fn is_shared(&self) -> bool {
        self.checked.shared
    }

    /// Returns whether both are the same directory.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.checked.identity == other.checked.identity
    }

    /// Returns a hash of what it is, and not of its path: in another mount namespace, the same path
    /// can be another directory.
    pub(crate) fn digest(&self) -> u64 {
        let (device, inode) = self.checked.identity;
        fnv1a(format!("{device} {inode}").as_bytes())
    }

    /// Returns whether it is on a file system of this machine on which a file that is removed
    /// has no links left, and one that is open for reading can be locked.
    #[inline]
    pub(crate) fn is_local(&self) -> bool {
        self.local
    }

    #[inline]
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Returns the permissions that the files in it have.
    pub(crate) fn permissions(&self) -> Mode {
        let own = Mode::RUSR | Mode::WUSR;
        if self.checked.shared {
            own | Mode::RGRP | Mode::WGRP | Mode::ROTH | Mode::WOTH
        } else {
            own
        }
    }

    /// Returns the mode that lock files in it have.
    pub(crate) fn file_mode(&self) -> Mode {
        self.permissions() | KEPT
    }

    /// Removes a file in it.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.fd, name, AtFlags::empty())?)
    }
}

/// Checks the directory at `path`. Creates it first if it is missing and `missing` says
/// so; returns `None` if it is missing and may be.
pub(crate) fn find(
    path: &Path,
    missing: IfMissing,
    origin: Origin,
    user: User,
) -> Result<Option<DirStatus>> {
    let found = match (rustix::fs::lstat(path), missing) {
        (Err(Errno::NOENT), IfMissing::Allow) => return Ok(None),
        (Err(Errno::NOENT), IfMissing::Create) => make_private(path, user)?,
        (Ok(found), IfMissing::Create) if is_unfinished(&found, user) => make_private(path, user)?,
        (found, _) => found.map_err(|error| fail("use", path, error))?,
    };
    check(path, &found, origin, user).map(Some)
}

/// Creates the directory at `path` with mode 0700, or finds that another process has just
/// created it, or was killed in between.
fn make_private(path: &Path, us: Uid) -> Result<Stat> {
    let made = match rustix::fs::mkdir(path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => rustix::fs::lstat(path),
        Err(error) => Err(error),
    };
    made.and_then(|made| {
        if !is_unfinished(&made, us) {
            return Ok(made);
        }
        // The path is safe to use again: what is ours at it lies in a directory
        // that is ours or sticky.
        rustix::fs::chmod(path, Mode::RWXU)?;
        rustix::fs::lstat(path)
    })
    .map_err(|error| fail("create", path, error))
}

/// Returns whether it is a directory of ours that we cannot use: an umask that takes bits
/// from the owner leaves it so until its maker has set the mode.
fn is_unfinished(stat: &Stat, us: Uid) -> bool {
    let mode = Mode::from_raw_mode(stat.st_mode);
    is_dir(stat) && stat.st_uid == us.as_raw() && !mode.contains(Mode::RWXU)
}

/// Refuses the directory unless it is of one of the two kinds; returns what was found.
fn check(path: &Path, stat: &Stat, origin: Origin, us: Uid) -> Result<DirStatus> {
    let refuse = |why: String| Err(refuse(path, &why));
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {}
        FileType::Symlink => return refuse("it is a symbolic link".into()),
        _ => return refuse("it is not a directory".into()),
    }
    let mode = Mode::from_raw_mode(stat.st_mode);
    let (owner, us) = (stat.st_uid, us.as_raw());
    let shared = mode.intersects(Mode::WGRP | Mode::WOTH);
    let octal = mode.as_raw_mode();
    if shared && !mode.contains(Mode::SVTX) {
        let what_to_do = if owner == us || us == 0 && !is_unmapped(owner) {
            "chmod 700 keeps it private, chmod 1777 shares it".to_owned()
        } else {
            // As with an `emptyDir` volume of Kubernetes, which has mode 0777 or 2777.
            format!(
                "it takes its owner to change that: create a directory in it \
                 (mkdir -m 1777 {}/portlock) and name that one",
                path.display()
            )
        };
        return refuse(format!(
            "others may write to it (mode {octal:04o}) and it is not sticky; {what_to_do}"
        ));
    }
    // Where its user creates it, as in /tmp, any other user can be faster, who from in here
    // may look like root.
    let is_root = || owner == 0 || !origin.is_created_by_its_user() && is_unmapped(owner);
    if owner != us && !(shared && is_root()) {
        let may_be_any = if is_unmapped(owner) {
            " or any user that this user namespace does not map"
        } else {
            ""
        };
        let root_shares = if shared {
            "; one that several users share must belong to root"
        } else {
            ""
        };
        let message = format!(
            "it is owned by user {owner}{may_be_any} (mode {octal:04o}), this process runs as \
             user {us}{root_shares}"
        );
        return Err(self::refuse(path, &message).with_hint(USE_VARIABLE));
    }
    let identity = identity(stat);
    Ok(DirStatus { identity, shared })
}

fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// What distinguishes a file from every other one that exists at the same time.
pub(crate) type Identity = (Dev, u64);

pub(crate) fn identity(stat: &Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

fn fail(operation: &str, path: &Path, error: Errno) -> Error {
    let cannot = cannot(operation, path, error.into());
    match error {
        Errno::NOENT if operation == "create" => cannot.with_hint(USE_VARIABLE),
        Errno::NOENT => {
            cannot.with_hint("mkdir -m 700 creates a private one, mkdir -m 1777 a shared one")
        }
        _ => cannot,
    }
}
