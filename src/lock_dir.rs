//! The lock directory: where it is, and whether it can be trusted.
//!
//! Whoever can rename or remove files in the directory can end exclusivity
//! unseen, and whoever can plant a link in it can aim our writes elsewhere. So
//! it is checked before each acquisition: a real directory (no symbolic link),
//! and one of two kinds.
//!
//! * **Private**: owned by this user, writable by nobody else. Files in it are
//!   made 0600. A mode like 0755 is as good as 0700 here, for others can
//!   neither open the files nor add any.
//! * **Shared between users**: writable by group or others, and then sticky
//!   (mode 1777), owned by root or by this user, because a directory's owner
//!   may rename and remove what is in it in spite of the sticky bit (unlink(2),
//!   EPERM). Files in it are made 0666 whatever the umask.

use std::{
    env,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, Stat},
    io::Errno,
    process::geteuid,
};

use crate::error::{Error, ErrorKind, Result};

/// The environment variable that names the lock directory.
pub(crate) const VARIABLE: &str = "PORTLOCK_DIR";

/// A lock directory that has been checked, and is open.
#[derive(Debug)]
pub(crate) struct LockDir {
    path: Arc<Path>,
    fd: OwnedFd,
    identity: (u64, u64),
}

/// A lock directory as of one acquisition.
#[derive(Clone, Debug)]
pub(crate) struct Trusted {
    dir: Arc<LockDir>,
    file_mode: Mode,
}

impl Trusted {
    pub(crate) fn path(&self) -> &Arc<Path> {
        &self.dir.path
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.dir.fd.as_fd()
    }

    /// The mode that lock files in this directory have.
    pub(crate) fn file_mode(&self) -> Mode {
        self.file_mode
    }
}

/// The lock directory to use: `chosen` by the program if it was, else the one
/// that `PORTLOCK_DIR` names, else this user's own.
///
/// A directory that was named must exist. To make it would need a guess at
/// its kind, and a misspelt path would give its caller an empty directory of
/// its own, in which every port is free.
pub(crate) fn locate(chosen: Option<&Path>) -> Result<Trusted> {
    if let Some(path) = chosen {
        return open(path, Missing::Refuse);
    }
    // As in the XDG base directory specification, empty means unset.
    match env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
        None => open(&default_path(), Missing::Make),
        Some(value) => {
            let path = Path::new(&value);
            if path.is_relative() {
                // It would mean another directory in each working directory.
                let message = format!("{VARIABLE}={} is not an absolute path", path.display());
                return Err(Error::new(ErrorKind::LockDir, message));
            }
            open(path, Missing::Refuse)
        }
    }
}

/// `portlock` in the user's runtime directory, else `/tmp/portlock-<uid>`.
///
/// A runtime directory that is missing or another user's is passed over: that
/// is how it looks after `su` or `sudo`, which may leave `XDG_RUNTIME_DIR` as it
/// was. `/run/user/<uid>` is the same directory for a caller without that
/// variable, such as a cron job. `TMPDIR` is not looked at: test runners and
/// build systems rewrite it, and two callers would not see each other.
fn default_path() -> PathBuf {
    let uid = geteuid().as_raw();
    let by_uid = || PathBuf::from(format!("/run/user/{uid}"));
    let runtime_dir = dirs::runtime_dir()
        .filter(|dir| is_own_dir(dir))
        .or_else(|| Some(by_uid()).filter(|dir| is_own_dir(dir)));
    match runtime_dir {
        Some(dir) => dir.join("portlock"),
        None => PathBuf::from(format!("/tmp/portlock-{uid}")),
    }
}

fn is_own_dir(path: &Path) -> bool {
    rustix::fs::lstat(path).is_ok_and(|stat| is_dir(&stat) && stat.st_uid == geteuid().as_raw())
}

/// What to do when there is nothing at the path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    Refuse,
}

/// The directory opened last, so that a process that leases from one directory
/// opens it once. Only one is kept, for each costs a descriptor.
static OPENED: Mutex<Option<Arc<LockDir>>> = Mutex::new(None);

fn opened() -> MutexGuard<'static, Option<Arc<LockDir>>> {
    OPENED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens the directory at `path` and checks it, or only checks it again if it
/// is still the one opened last.
fn open(path: &Path, missing: Missing) -> Result<Trusted> {
    // Without a trailing slash, with which a symbolic link would be followed
    // in spite of lstat and O_NOFOLLOW (path_resolution(7)).
    let path: &Path = &path.components().collect::<PathBuf>();
    let found = match rustix::fs::lstat(path) {
        Err(Errno::NOENT) if missing == Missing::Make => make_private(path)?,
        found => found.map_err(|error| cannot("use", path, error))?,
    };
    let file_mode = check(path, &found)?;

    let last = opened().clone();
    if let Some(dir) = last.filter(|dir| *dir.path == *path && dir.identity == identity(&found)) {
        return Ok(Trusted { dir, file_mode });
    }

    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(|error| cannot("open", path, error))?;
    // What was checked above may have been replaced since.
    let stat = rustix::fs::fstat(&fd).map_err(|error| cannot("stat", path, error))?;
    let file_mode = check(path, &stat)?;
    let dir = Arc::new(LockDir {
        path: path.into(),
        fd,
        identity: identity(&stat),
    });
    *opened() = Some(Arc::clone(&dir));
    Ok(Trusted { dir, file_mode })
}

/// Makes the directory at `path` with mode 0700, or finds that another process
/// has just made it.
fn make_private(path: &Path) -> Result<Stat> {
    match rustix::fs::mkdir(path, Mode::RWXU) {
        // An umask that takes bits from the owner would leave a directory that
        // its owner cannot use. The path is safe to use again: what this
        // process has just made lies in a directory that is ours or sticky.
        Ok(()) => rustix::fs::chmod(path, Mode::RWXU),
        Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error),
    }
    .and_then(|()| rustix::fs::lstat(path))
    .map_err(|error| cannot("make", path, error))
}

/// Refuses the directory unless it is of one of the two kinds; gives the mode
/// that lock files in it have.
fn check(path: &Path, stat: &Stat) -> Result<Mode> {
    let refuse = |why: String| {
        let message = format!("refusing lock directory {}: {why}", path.display());
        Err(Error::new(ErrorKind::LockDir, message))
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {}
        FileType::Symlink => return refuse("it is a symbolic link".into()),
        _ => return refuse("it is not a directory".into()),
    }
    let mode = Mode::from_raw_mode(stat.st_mode);
    let (owner, us) = (stat.st_uid, geteuid().as_raw());
    let shared = mode.intersects(Mode::WGRP | Mode::WOTH);
    let octal = mode.as_raw_mode();
    if shared && !mode.contains(Mode::SVTX) {
        return refuse(format!(
            "others may write to it (mode {octal:04o}) and it is not sticky; \
             chmod 700 keeps it private, chmod 1777 shares it"
        ));
    }
    if owner != us && !(shared && owner == 0) {
        return refuse(format!(
            "it is owned by user {owner} (mode {octal:04o}), this process runs as user {us}"
        ));
    }
    Ok(if shared {
        Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP | Mode::ROTH | Mode::WOTH
    } else {
        Mode::RUSR | Mode::WUSR
    })
}

fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// What tells a file from every other one that exists at the same time.
pub(crate) fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

fn cannot(operation: &str, path: &Path, error: Errno) -> Error {
    let hint = match error {
        Errno::NOENT => " (mkdir -m 700 makes a private one, mkdir -m 1777 a shared one)",
        _ => "",
    };
    let message = format!("cannot {operation} lock directory {}{hint}", path.display());
    Error::with_cause(ErrorKind::LockDir, message, error)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("our own directory");
    }

    #[test]
    fn own_directories_are_private_when_only_we_can_write() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for private in [0o700, 0o755, 0o1700] {
            mode(dir.path(), private);
            let trusted = open(dir.path(), Missing::Refuse).expect("trusted");
            assert_eq!(trusted.file_mode().as_raw_mode(), 0o600, "{private:o}");
        }
        for shared in [0o1777, 0o1770] {
            mode(dir.path(), shared);
            let trusted = open(dir.path(), Missing::Refuse).expect("trusted");
            assert_eq!(trusted.file_mode().as_raw_mode(), 0o666, "{shared:o}");
        }
        for refused in [0o777, 0o770, 0o702] {
            mode(dir.path(), refused);
            let error = open(dir.path(), Missing::Refuse).expect_err("not sticky");
            assert_eq!(error.kind(), ErrorKind::LockDir);
            assert!(error.to_string().contains("not sticky"), "{error}");
        }
    }

    #[test]
    fn a_directory_that_was_replaced_is_opened_again() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let path = parent.path().join("locks");
        let first = open(&path, Missing::Make).expect("made");
        fs::rename(&path, parent.path().join("elsewhere")).expect("our own directory");
        let second = open(&path, Missing::Make).expect("made again");
        assert_ne!(first.dir.identity, second.dir.identity);
    }

    #[test]
    fn a_trailing_slash_does_not_let_a_symbolic_link_through() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let target = parent.path().join("target");
        open(&target, Missing::Make).expect("made");
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(&target, &link).expect("our own directory");
        for path in [link.clone(), link.join(""), link.join(".")] {
            let error = open(&path, Missing::Refuse).expect_err("a symbolic link");
            assert!(error.to_string().contains("symbolic link"), "{error}");
        }
    }
}
