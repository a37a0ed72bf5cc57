//! The lock directory on Unix.
//!
//! A user who can rename or remove files in the directory can break exclusivity unnoticed, and
//! one who can place a link in it can redirect our writes. So it is checked before it is used: it
//! must be a real directory (no symbolic link) of one of two kinds.
//!
//! * **Private**: owned by this user and writable by no other user. Only this user can read and
//!   write the files in it. A mode like 0755 is as good as 0700 here, because others can neither
//!   open the files nor add any.
//! * **Shared between users**: writable by group or others, and therefore required to be sticky
//!   (mode 1777) and owned by root or by this user, because a directory's owner may rename and
//!   remove the files in it in spite of the sticky bit (unlink(2), EPERM). All users can read and
//!   write the files in it, whatever the umask. An owner that is not mapped into our user namespace
//!   looks like any other unmapped owner, including root. It counts as root for a directory that
//!   somebody chose: a named one, or the one of all users.
//!
//! In a shared directory every user can do some harm, though only inside it: keep ports from
//! others (by locking files or replacing them), delay waiters until the timeout, end a
//! *delegated* lease by writing to its record, and remove or rename a lock file that they
//! created. Removing or replacing a lock file or the directory during a lease always breaks
//! exclusivity: the lock continues on a file that is no longer at its path. Later callers in the
//! same process still know about the lease, by the process-wide set; other callers only if the
//! port is bound. If the file or directory is moved back, the lease is visible again. Only root
//! can remove files that root created. The parents of the directory are not checked.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt as _,
    },
    path::Path,
    process,
};

use rand::{Rng as _, rngs::SmallRng};
use rustix::{
    fs::{AtFlags, CWD, Dev, FileType, Mode, OFlags, RenameFlags, Stat},
    io::Errno,
    process::{Uid, geteuid},
};

use super::{IfMissing, KEPT, Origin, cannot, is_local, is_unmapped, refuse};
use crate::{
    copies::{self, Copies},
    error::{Error, Result, USE_VARIABLE},
    ports::fnv1a,
    reservation,
};

/// The user of the directory.
pub(crate) type User = Uid;

/// Returns the user that runs this process.
#[inline]
pub(crate) fn user() -> User {
    geteuid()
}

/// A directory that has been checked and is open.
#[derive(Debug)]
pub(crate) struct Dir {
    fd: OwnedFd,
    checked: DirStatus,
    local: bool,
}

/// The result of a check.
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
        // It may have been replaced after the check.
        let stat = rustix::fs::fstat(&fd).map_err(|error| fail("stat", path, error))?;
        let checked = check(path, &stat, origin, user)?;
        let local = is_local(&fd).map_err(|error| fail("stat", path, error))?;
        Ok(Self { fd, checked, local })
    }

    /// Returns whether it is still the directory that was just found.
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

    /// Returns a hash of the directory's identity rather than its path: in another mount
    /// namespace, the same path can be another directory.
    pub(crate) fn digest(&self) -> u64 {
        let (device, inode) = self.checked.identity;
        fnv1a(format!("{device} {inode}").as_bytes())
    }

    /// Returns whether it is on a file system of this machine on which a removed file has no
    /// links left, and a file that is open for reading can be locked.
    #[inline]
    pub(crate) fn is_local(&self) -> bool {
        self.local
    }

    #[inline]
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Returns the permissions for files in it.
    pub(crate) fn permissions(&self) -> Mode {
        let own = Mode::RUSR | Mode::WUSR;
        if self.checked.shared {
            own | Mode::RGRP | Mode::WGRP | Mode::ROTH | Mode::WOTH
        } else {
            own
        }
    }

    /// Returns the mode for lock files in it.
    pub(crate) fn file_mode(&self) -> Mode {
        self.permissions() | KEPT
    }

    /// Removes a file in it.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.fd, name, AtFlags::empty())?)
    }
}

/// Checks the directory at `path`. `missing` says what to do if it is missing: create it, return
/// `None`, or fail.
pub(crate) fn find(
    path: &Path,
    missing: IfMissing,
    origin: Origin,
    user: User,
) -> Result<Option<DirStatus>> {
    let found = match (rustix::fs::lstat(path), missing) {
        (Err(Errno::NOENT), IfMissing::Allow) => return Ok(None),
        (Err(Errno::NOENT), IfMissing::Create) => {
            make_restored(path, user)?;
            make_private(path, user)?
        }
        (Ok(found), IfMissing::Create) if is_unfinished(&found, user) => make_private(path, user)?,
        (found, _) => found.map_err(|error| fail("use", path, error))?,
    };
    check(path, &found, origin, user).map(Some)
}

/// Creates the directory at `path` and restores this user's reservations, if there are copies of
/// any.
///
/// It is created under another name and renamed when all reservations are in it, so no caller
/// finds it without them. If another process is faster, or the file system cannot rename without
/// replacing, they have to be restored into the existing directory.
fn make_restored(path: &Path, us: Uid) -> Result<()> {
    let Some(copies) = Copies::of(path) else {
        return Ok(());
    };
    let copies: Vec<_> = copies.all()?;
    let counting: Vec<_> = copies.iter().filter(|copy| copy.line.counts()).collect();
    let Some(name) = path.file_name().filter(|_| !counting.is_empty()) else {
        return Ok(());
    };
    let random = rand::make_rng::<SmallRng>().next_u32();
    let stray = format!(".{}.new.{}.{random:08x}", name.display(), process::id());
    let stray = path.with_file_name(stray);
    make_private(&stray, us)?;
    let restore = || {
        for copy in counting {
            let mode = Mode::RUSR | Mode::WUSR | KEPT;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = stray.join(copy.port.to_string());
            let file = File::from(rustix::fs::openat(CWD, file, flags, mode)?);
            // The umask may remove permissions, and a file system may refuse the sticky bit.
            rustix::fs::fchmod(&file, mode)
                .or_else(|_| rustix::fs::fchmod(&file, mode.difference(KEPT)))?;
            file.write_all_at(copy.line.text().as_bytes(), reservation::OFFSET as u64)?;
        }
        Ok(())
    };
    let restored = restore()
        .map_err(|error| cannot("restore the reservations in", path, error))
        .and_then(|()| copies::set_mark(&stray))
        .and_then(|()| rename(&stray, path));
    if !matches!(restored, Ok(true)) {
        // No other process uses it.
        let _ = fs::remove_dir_all(&stray);
    }
    restored.map(|_| ())
}

/// Renames a directory unless something exists at `path`. Returns whether it was renamed.
fn rename(stray: &Path, path: &Path) -> Result<bool> {
    match rustix::fs::renameat_with(CWD, stray, CWD, path, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST | Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => Ok(false),
        Err(error) => Err(fail("create", path, error)),
    }
}

/// Creates the directory at `path` with mode 0700, or completes one that another process has just
/// created, even if that process was killed in between.
fn make_private(path: &Path, us: Uid) -> Result<Stat> {
    let made = match rustix::fs::mkdir(path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => rustix::fs::lstat(path),
        Err(error) => Err(error),
    };
    made.and_then(|made| {
        if !is_unfinished(&made, us) {
            return Ok(made);
        }
        // It is safe to use the path again: our directory there is in a parent directory that is
        // ours or sticky.
        rustix::fs::chmod(path, Mode::RWXU)?;
        rustix::fs::lstat(path)
    })
    .map_err(|error| fail("create", path, error))
}

/// Returns whether it is a directory of ours that we cannot use. A umask that removes the owner's
/// permissions leaves it in that state until its creator sets the mode.
fn is_unfinished(stat: &Stat, us: Uid) -> bool {
    let mode = Mode::from_raw_mode(stat.st_mode);
    is_dir(stat) && stat.st_uid == us.as_raw() && !mode.contains(Mode::RWXU)
}

/// Refuses the directory unless it is of one of the two kinds; otherwise returns its status.
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
            // As with a Kubernetes `emptyDir` volume, which has mode 0777 or 2777.
            format!(
                "only its owner can change that: create a directory in it \
                 (mkdir -m 1777 {}/portlock) and name that one",
                path.display()
            )
        };
        return refuse(format!(
            "others may write to it (mode {octal:04o}) and it is not sticky; {what_to_do}"
        ));
    }
    // If the user creates the directory, as in /tmp, any other user can create it first, and may
    // look like root in this user namespace.
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

/// The identity of a file: it differs from that of every other file that exists at the same time.
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
