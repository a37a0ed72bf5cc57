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
    env, fmt,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, Stat},
    io::Errno,
    process::{Uid, geteuid},
};

use crate::error::{Error, ErrorKind, Result};

/// The environment variable that names the lock directory.
pub(crate) const VARIABLE: &str = "PORTLOCK_DIR";

/// A directory that has been checked, and is open.
#[derive(Debug)]
struct OpenDir {
    path: Arc<Path>,
    fd: OwnedFd,
    identity: (u64, u64),
}

/// The directory with one lock file per port, checked to be trustworthy.
///
/// Only callers that use the same lock directory exclude each other. To lease
/// ports, no value of this type is needed: [`Builder`](crate::Builder) finds the
/// directory by the same rules. It is for looking after it.
///
/// # Examples
///
/// ```
/// use portlock::LockDir;
///
/// let dir = LockDir::locate(None)?;
/// println!("locks are in {} ({})", dir.path().display(), dir.origin());
/// for lease in dir.leases()? {
///     println!("{}: {:?}", lease.port, lease.state);
/// }
/// # Ok::<(), portlock::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct LockDir {
    dir: Arc<OpenDir>,
    shared: bool,
    origin: Origin,
}

/// Why a lock directory is the one in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// The program named it.
    Given,
    /// The environment variable `PORTLOCK_DIR` names it.
    Variable,
    /// It is in the user's runtime directory.
    RuntimeDir,
    /// The user has no runtime directory.
    Fallback,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Given => "named by the caller",
            Self::Variable => "named by PORTLOCK_DIR",
            Self::RuntimeDir => "in this user's runtime directory",
            Self::Fallback => "this user has no runtime directory",
        })
    }
}

impl LockDir {
    /// The lock directory to use: `chosen` if there is one, else the one that
    /// `PORTLOCK_DIR` names, else this user's own, which is made if it is missing.
    ///
    /// # Errors
    ///
    /// [`LockDir`](ErrorKind::LockDir) if it is missing, cannot be made or
    /// opened, or is not to be trusted, with the reason.
    pub fn locate(chosen: Option<&Path>) -> Result<Self> {
        // A directory that was named must exist. To make it would need a guess
        // at its kind, and a misspelt path would give its caller an empty
        // directory of its own, in which every port is free.
        let us = geteuid();
        if let Some(path) = chosen {
            return open(path, Missing::Refuse, Origin::Given, us);
        }
        // As in the XDG base directory specification, empty means unset.
        let Some(value) = env::var_os(VARIABLE).filter(|value| !value.is_empty()) else {
            let (path, origin) = default_path(us);
            return open(&path, Missing::Make, origin, us);
        };
        let path = Path::new(&value);
        if path.is_relative() {
            // It would mean another directory in each working directory.
            let message = format!("{VARIABLE}={} is not an absolute path", path.display());
            return Err(Error::new(ErrorKind::LockDir, message));
        }
        open(path, Missing::Refuse, Origin::Variable, us)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir.path
    }

    /// Why it is this one.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Whether other users may lease ports in it too.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    pub(crate) fn shared_path(&self) -> &Arc<Path> {
        &self.dir.path
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.dir.fd.as_fd()
    }

    /// The mode that lock files in it have.
    pub(crate) fn file_mode(&self) -> Mode {
        let own = Mode::RUSR | Mode::WUSR;
        if self.shared {
            own | Mode::RGRP | Mode::WGRP | Mode::ROTH | Mode::WOTH
        } else {
            own
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
fn default_path(us: Uid) -> (PathBuf, Origin) {
    let uid = us.as_raw();
    let by_uid = || PathBuf::from(format!("/run/user/{uid}"));
    let runtime_dir = dirs::runtime_dir()
        .filter(|dir| is_dir_of(us, dir))
        .or_else(|| Some(by_uid()).filter(|dir| is_dir_of(us, dir)));
    match runtime_dir {
        Some(dir) => (dir.join("portlock"), Origin::RuntimeDir),
        None => (format!("/tmp/portlock-{uid}").into(), Origin::Fallback),
    }
}

fn is_dir_of(us: Uid, path: &Path) -> bool {
    rustix::fs::lstat(path).is_ok_and(|stat| is_dir(&stat) && stat.st_uid == us.as_raw())
}

/// What to do when there is nothing at the path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    Refuse,
}

/// The directory opened last, so that a process that leases from one directory
/// opens it once. Only one is kept, for each costs a descriptor.
static OPENED: Mutex<Option<Arc<OpenDir>>> = Mutex::new(None);

fn opened() -> MutexGuard<'static, Option<Arc<OpenDir>>> {
    OPENED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens the directory at `path` and checks it, or only checks it again if it
/// is still the one opened last.
fn open(path: &Path, missing: Missing, origin: Origin, us: Uid) -> Result<LockDir> {
    // Without a trailing slash, with which a symbolic link would be followed
    // in spite of lstat and O_NOFOLLOW (path_resolution(7)).
    let path: &Path = &path.components().collect::<PathBuf>();
    let found = match rustix::fs::lstat(path) {
        Err(Errno::NOENT) if missing == Missing::Make => make_private(path)?,
        found => found.map_err(|error| cannot("use", path, error))?,
    };
    let shared = check(path, &found, us)?;

    let last = opened().clone();
    if let Some(dir) = last.filter(|dir| *dir.path == *path && dir.identity == identity(&found)) {
        return Ok(LockDir {
            dir,
            shared,
            origin,
        });
    }

    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(|error| cannot("open", path, error))?;
    // What was checked above may have been replaced since.
    let stat = rustix::fs::fstat(&fd).map_err(|error| cannot("stat", path, error))?;
    let shared = check(path, &stat, us)?;
    let dir = Arc::new(OpenDir {
        path: path.into(),
        fd,
        identity: identity(&stat),
    });
    *opened() = Some(Arc::clone(&dir));
    Ok(LockDir {
        dir,
        shared,
        origin,
    })
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

/// Refuses the directory unless it is of one of the two kinds; gives whether it
/// is shared.
fn check(path: &Path, stat: &Stat, us: Uid) -> Result<bool> {
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
    let (owner, us) = (stat.st_uid, us.as_raw());
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
    Ok(shared)
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
            let trusted =
                open(dir.path(), Missing::Refuse, Origin::Given, geteuid()).expect("trusted");
            assert_eq!(trusted.file_mode().as_raw_mode(), 0o600, "{private:o}");
        }
        for shared in [0o1777, 0o1770] {
            mode(dir.path(), shared);
            let trusted =
                open(dir.path(), Missing::Refuse, Origin::Given, geteuid()).expect("trusted");
            assert_eq!(trusted.file_mode().as_raw_mode(), 0o666, "{shared:o}");
        }
        for refused in [0o777, 0o770, 0o702] {
            mode(dir.path(), refused);
            let error = open(dir.path(), Missing::Refuse, Origin::Given, geteuid())
                .expect_err("not sticky");
            assert_eq!(error.kind(), ErrorKind::LockDir);
            assert!(error.to_string().contains("not sticky"), "{error}");
        }
    }

    #[test]
    fn a_directory_that_was_replaced_is_opened_again() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let path = parent.path().join("locks");
        let first = open(&path, Missing::Make, Origin::Given, geteuid()).expect("made");
        fs::rename(&path, parent.path().join("elsewhere")).expect("our own directory");
        let second = open(&path, Missing::Make, Origin::Given, geteuid()).expect("made again");
        assert_ne!(first.dir.identity, second.dir.identity);
    }

    #[test]
    fn a_trailing_slash_does_not_let_a_symbolic_link_through() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let target = parent.path().join("target");
        open(&target, Missing::Make, Origin::Given, geteuid()).expect("made");
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(&target, &link).expect("our own directory");
        for path in [link.clone(), link.join(""), link.join(".")] {
            let error = open(&path, Missing::Refuse, Origin::Given, geteuid())
                .expect_err("a symbolic link");
            assert!(error.to_string().contains("symbolic link"), "{error}");
        }
    }
}
