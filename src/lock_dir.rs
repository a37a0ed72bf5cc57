//! The lock directory: where it is, and whether it can be trusted.
//!
//! Whoever can rename or remove files in the directory can end exclusivity
//! unseen, and whoever can plant a link in it can aim our writes elsewhere. So
//! it is checked before it is used: a real directory (no symbolic link),
//! and one of two kinds.
//!
//! * **Private**: owned by this user, writable by nobody else. Files in it are
//!   made 0600. A mode like 0755 is as good as 0700 here, for others can
//!   neither open the files nor add any.
//! * **Shared between users**: writable by group or others, and then sticky
//!   (mode 1777), owned by root or by this user, because a directory's owner
//!   may rename and remove what is in it in spite of the sticky bit (unlink(2),
//!   EPERM). Files in it are made 0666 whatever the umask.
//!
//! In a shared directory every user can do some harm, though none outside it: keep ports
//! from others (lock files, or put something else in their place), hold up who waits
//! until the timeout, end a *delegated* lease by writing to its record, and remove or
//! rename a lock file that he has made. That ends exclusivity as it does wherever a
//! lock file or the directory is removed or replaced while a lease is held: the lock
//! goes on, on a file that is no longer at its path. Later callers in the same process
//! still know of the lease, by the process-wide set; others only if the port is bound.
//! Moved back, the file or directory is what it was. Files that root has made can be
//! removed by root alone. What is above the directory is not checked.
//!
//! The outcome holds good for [`RECHECK`], for to look again for every lease would
//! cost a tenth of the lease. Only the directory's owner and root can change it
//! in that time, and what they could do then they can do at any later moment of
//! the lease too. A directory that was removed is noticed at once: nothing can be
//! made in it any more.

use std::{
    env, fmt,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, Stat},
    io::Errno,
    process::{Uid, geteuid},
};

use crate::{
    error::{Error, ErrorKind, Result},
    owner::since_1970,
};

/// The environment variable that names the lock directory.
pub(crate) const VARIABLE: &str = "PORTLOCK_DIR";

/// How long a directory that was found trustworthy is used without another look.
const RECHECK: Duration = Duration::from_millis(100);

/// A directory that has been checked, and is open.
#[derive(Debug)]
struct OpenDir {
    path: PathBuf,
    fd: OwnedFd,
    identity: (u64, u64),
    shared: bool,
    origin: Origin,
    local: bool,
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
        Self::locate_at(chosen, since_1970())
    }

    /// The same for a caller that knows what time it is, after 1970.
    pub(crate) fn locate_at(chosen: Option<&Path>, now: Duration) -> Result<Self> {
        let user = geteuid();
        let variable = match chosen {
            Some(_) => None,
            // As in the XDG base directory specification, empty means unset.
            None => env::var_os(VARIABLE).filter(|value| !value.is_empty()),
        };
        let named = match (chosen, &variable) {
            (Some(path), _) => Some((Origin::Given, path)),
            (None, Some(value)) => Some((Origin::Variable, Path::new(value))),
            (None, None) => None,
        };
        if let Some(last) = &*last_used()
            && last.is_good_for(named, user, now)
        {
            return Ok(Self {
                dir: Arc::clone(&last.dir),
            });
        }
        let dir = match named {
            Some((Origin::Variable, path)) if path.is_relative() => {
                // It would mean another directory in each working directory.
                let message = format!("{VARIABLE}={} is not an absolute path", path.display());
                return Err(Error::new(ErrorKind::LockDir, message));
            }
            // A directory that was named must exist. To make it would need a guess
            // at its kind, and a misspelt path would give its caller an empty
            // directory of its own, in which every port is free.
            Some((origin, path)) => open(path, Missing::Refuse, origin, user)?,
            None => {
                let (path, origin) = default_path(user)?;
                open(&path, Missing::Make, origin, user)?
            }
        };
        *last_used() = Some(LastUsed {
            named: named.map(|(origin, path)| (origin, path.to_owned())),
            user,
            checked: now,
            dir: Arc::clone(&dir),
        });
        Ok(Self { dir })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir.path
    }

    /// Why it is this one.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.dir.origin
    }

    /// Whether other users may lease ports in it too.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.dir.shared
    }

    /// The error that it turned out to be removed; the next [`locate`](Self::locate)
    /// looks again.
    pub(crate) fn removed(&self) -> Error {
        let mut last = last_used();
        if last
            .as_ref()
            .is_some_and(|last| Arc::ptr_eq(&last.dir, &self.dir))
        {
            *last = None;
        }
        let message = format!("lock directory {} was removed", self.path().display());
        Error::new(ErrorKind::LockDir, message)
    }

    /// Whether it is on a file system of this machine on which a file that is removed
    /// has no links left, and one that is open for reading can be locked.
    pub(crate) fn is_local(&self) -> bool {
        self.dir.local
    }

    /// Whether both are the same directory.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.dir.identity == other.dir.identity
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.dir.fd.as_fd()
    }

    /// The mode that lock files in it have.
    pub(crate) fn file_mode(&self) -> Mode {
        let own = Mode::RUSR | Mode::WUSR;
        if self.dir.shared {
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
///
/// # Errors
///
/// The system fails to say what is there. To pass that over would put this caller
/// into another directory than all others.
fn default_path(us: Uid) -> Result<(PathBuf, Origin)> {
    let uid = us.as_raw();
    let by_uid = PathBuf::from(format!("/run/user/{uid}"));
    for dir in dirs::runtime_dir().into_iter().chain([by_uid]) {
        if is_dir_of(us, &dir)? {
            return Ok((dir.join("portlock"), Origin::RuntimeDir));
        }
    }
    Ok((format!("/tmp/portlock-{uid}").into(), Origin::Fallback))
}

fn is_dir_of(us: Uid, path: &Path) -> Result<bool> {
    match rustix::fs::lstat(path) {
        Ok(stat) => Ok(is_dir(&stat) && stat.st_uid == us.as_raw()),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::LOOP | Errno::NAMETOOLONG) => {
            Ok(false)
        }
        Err(error) => {
            let message = format!("cannot use runtime directory {}", path.display());
            Err(Error::with_cause(ErrorKind::LockDir, message, error))
        }
    }
}

/// What to do when there is nothing at the path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    Refuse,
}

/// The directory used last, so that a process that leases from one directory opens
/// it once. Only one is kept, for each costs a descriptor.
struct LastUsed {
    /// What was asked for; `None` is the user's own directory.
    named: Option<(Origin, PathBuf)>,
    user: Uid,
    checked: Duration,
    dir: Arc<OpenDir>,
}

static LAST_USED: Mutex<Option<LastUsed>> = Mutex::new(None);

fn last_used() -> MutexGuard<'static, Option<LastUsed>> {
    LAST_USED.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LastUsed {
    fn is_good_for(&self, named: Option<(Origin, &Path)>, user: Uid, now: Duration) -> bool {
        let same_name = match (&self.named, named) {
            (Some((origin, path)), Some(named)) => {
                // As text: to compare paths by their components takes longer.
                *origin == named.0 && path.as_os_str() == named.1.as_os_str()
            }
            (None, None) => true,
            _ => false,
        };
        // If the clock was set back, it is time.
        let age = now.checked_sub(self.checked);
        same_name && self.user == user && age.is_some_and(|age| age < RECHECK)
    }
}

/// Opens the directory at `path` and checks it, or only checks it again if it
/// is still the one used last.
fn open(path: &Path, missing: Missing, origin: Origin, user: Uid) -> Result<Arc<OpenDir>> {
    // Without a trailing slash, with which a symbolic link would be followed
    // in spite of lstat and O_NOFOLLOW (path_resolution(7)).
    let path: PathBuf = path.components().collect();
    let found = match rustix::fs::lstat(&path) {
        Err(Errno::NOENT) if missing == Missing::Make => make_private(&path, user)?,
        Ok(found) if missing == Missing::Make && is_unfinished(&found, user) => {
            make_private(&path, user)?
        }
        found => found.map_err(|error| cannot("use", &path, error))?,
    };
    let shared = check(&path, &found, user)?;

    let last = last_used().as_ref().map(|last| Arc::clone(&last.dir));
    let is_it = |dir: &Arc<OpenDir>| {
        (&dir.path, dir.identity) == (&path, identity(&found))
            && (dir.shared, dir.origin) == (shared, origin)
    };
    if let Some(dir) = last.filter(is_it) {
        return Ok(dir);
    }

    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(CWD, &path, flags, Mode::empty())
        .map_err(|error| cannot("open", &path, error))?;
    // What was checked above may have been replaced since.
    let stat = rustix::fs::fstat(&fd).map_err(|error| cannot("stat", &path, error))?;
    let shared = check(&path, &stat, user)?;
    let local = is_local(&fd).map_err(|error| cannot("stat", &path, error))?;
    Ok(Arc::new(OpenDir {
        path,
        fd,
        identity: identity(&stat),
        shared,
        origin,
        local,
    }))
}

/// Whether the file system is one of those that were tried.
///
/// On NFS, and as a rule on FUSE, a file that is removed while it is open is only
/// renamed and keeps its link (`.nfsXXXX`, `.fuse_hiddenXXXX`). The numbers are from
/// the kernel's linux/magic.h.
fn is_local(dir: &OwnedFd) -> rustix::io::Result<bool> {
    const TMPFS: u64 = 0x0102_1994;
    const EXT: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    const BTRFS: u64 = 0x9123_683e;
    const OVERLAYFS: u64 = 0x794c_7630;
    let kind = rustix::fs::fstatfs(dir)?.f_type;
    let local = [TMPFS, EXT, XFS, BTRFS, OVERLAYFS];
    Ok(u64::try_from(kind).is_ok_and(|kind| local.contains(&kind)))
}

/// Makes the directory at `path` with mode 0700, or finds that another process
/// has just made it, or was killed in between.
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
    .map_err(|error| cannot("make", path, error))
}

/// Whether it is a directory of ours that we cannot use: an umask that takes bits
/// from the owner leaves it so until its maker has set the mode.
fn is_unfinished(stat: &Stat, us: Uid) -> bool {
    let mode = Mode::from_raw_mode(stat.st_mode);
    is_dir(stat) && stat.st_uid == us.as_raw() && !mode.contains(Mode::RWXU)
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
            let dir = LockDir {
                dir: open(dir.path(), Missing::Refuse, Origin::Given, geteuid()).expect("trusted"),
            };
            assert_eq!(dir.file_mode().as_raw_mode(), 0o600, "{private:o}");
        }
        for shared in [0o1777, 0o1770] {
            mode(dir.path(), shared);
            let dir = LockDir {
                dir: open(dir.path(), Missing::Refuse, Origin::Given, geteuid()).expect("trusted"),
            };
            assert_eq!(dir.file_mode().as_raw_mode(), 0o666, "{shared:o}");
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
        assert_ne!(first.identity, second.identity);
    }

    #[test]
    fn a_directory_whose_maker_was_killed_is_finished() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let path = parent.path().join("locks");
        fs::create_dir(&path).expect("our own directory");
        // As under an umask of 0777.
        mode(&path, 0);
        open(&path, Missing::Make, Origin::Fallback, geteuid()).expect("finished");
        let finished = fs::metadata(&path).expect("made").permissions();
        assert_eq!(finished.mode() & 0o7777, 0o700);
        // But not one that somebody has named.
        mode(&path, 0o500);
        let named = open(&path, Missing::Refuse, Origin::Given, geteuid());
        named.expect("it can be opened");
        let named = fs::metadata(&path).expect("made").permissions();
        assert_eq!(named.mode() & 0o7777, 0o500);
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
