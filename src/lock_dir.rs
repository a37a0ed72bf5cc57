//! The lock directory: its location, and whether it can be trusted.
//!
//! A user who can rename or remove files in the directory can break exclusivity unnoticed, and
//! one who can place a link in it can redirect our writes. So it is checked before it is used.
//! What is checked, and where the directory is, depends on the system: see the files in
//! `lock_dir/`.
//!
//! The result is cached for [`RECHECK_INTERVAL`], because checking for every lease would add a
//! tenth to its cost. In that time only the directory's owner and root can change the directory,
//! and they could also do so at any later moment of the lease. The removal of the directory is
//! noticed when the next file cannot be created in it.

use std::{
    env, fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::{
    clock::since_1970,
    error::{Error, ErrorKind, Result},
    per_process::PerProcess,
};

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;
#[cfg(unix)]
pub(crate) mod unix;
#[cfg(windows)]
pub(crate) mod windows;

#[cfg(target_os = "linux")]
use linux::{KEPT, default_dir, default_dirs, is_local, is_unmapped};
#[cfg(target_os = "macos")]
use macos::{KEPT, default_dir, default_dirs, is_local, is_unmapped};
#[cfg(unix)]
use unix as system;
#[cfg(windows)]
use windows::{self as system, default_dir, default_dirs};

/// The environment variable that names the lock directory.
pub(crate) const VARIABLE: &str = "PORTLOCK_DIR";

/// How long a directory that passed its check is used without another one.
const RECHECK_INTERVAL: Duration = Duration::from_millis(100);

/// A lock directory that has been checked and is open, for leasing.
#[derive(Clone, Debug)]
pub(crate) struct OpenDir {
    dir: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    origin: Origin,
    sys: system::Dir,
    /// The digest of `sys`, stored because computing it for each lease would take an allocation.
    digest: u64,
    /// Whether this process knows that the copies of reservations have been restored into it.
    is_restored: AtomicBool,
}

/// The directory with one lock file per port, checked to be trustworthy.
///
/// Only callers that use the same lock directory exclude each other. Leasing ports does not
/// require this type: [`Builder`](crate::Builder) finds the directory by the same rules. Use it
/// to inspect and clean the directory.
///
/// Locating never creates anything. A default directory that does not exist yet counts as empty:
/// no port is leased in it.
///
/// # Examples
///
/// ```
/// use portlock::LockDir;
///
/// let dir = LockDir::locate()?;
/// println!("locks are in {} ({})", dir.path().display(), dir.origin());
/// for entry in dir.entries()? {
///     println!("{}: {:?}", entry.port, entry.state);
/// }
/// # Ok::<(), portlock::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct LockDir {
    path: PathBuf,
    origin: Origin,
    /// `None` for a default directory that does not exist.
    open: Option<OpenDir>,
}

/// Why a lock directory is the one in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// The program named it.
    Given,
    /// The environment variable `PORTLOCK_DIR` names it.
    Variable,
    /// It is `/run/portlock`, which root has created for all users, on Linux.
    Machine,
    /// It is this user's directory in `/tmp`, on Linux.
    Tmp,
    /// It is in this user's runtime directory because there is no `/tmp`, on Linux.
    RuntimeDir,
    /// It is in this user's local data directory, on macOS.
    LocalData,
    /// It is in this user's profile, on Windows.
    Home,
}

impl Origin {
    /// Returns whether the directory was chosen by the rules, not named by a program or user.
    pub(crate) fn is_default(self) -> bool {
        !matches!(self, Self::Given | Self::Variable)
    }

    /// Returns whether its user creates it. Any other directory is created by the person who
    /// decides who shares it.
    pub(crate) fn is_created_by_its_user(self) -> bool {
        match self {
            Self::Given | Self::Variable | Self::Machine => false,
            Self::Tmp | Self::RuntimeDir | Self::LocalData | Self::Home => true,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Given => "named by the caller",
            Self::Variable => "named by PORTLOCK_DIR",
            Self::Machine => "created by root for all users",
            Self::Tmp => "this user's own in /tmp",
            Self::RuntimeDir => "in this user's runtime directory, because there is no /tmp",
            Self::LocalData => "in this user's local data directory",
            Self::Home => "in this user's profile",
        })
    }
}

impl LockDir {
    /// Returns the lock directory that is used unless the caller names one: the one that
    /// `PORTLOCK_DIR` names, else this user's default directory.
    ///
    /// # Errors
    ///
    /// [`LockDir`](ErrorKind::LockDir) if the directory that the variable names is missing, or the
    /// directory cannot be opened or trusted, with the reason.
    ///
    /// # Examples
    ///
    /// ```
    /// let dir = portlock::LockDir::locate()?;
    /// println!("{}: {}", dir.path().display(), dir.origin());
    /// # Ok::<(), portlock::Error>(())
    /// ```
    pub fn locate() -> Result<Self> {
        Self::located(None)
    }

    /// Returns the lock directory at `path`, whatever the environment says.
    ///
    /// # Errors
    ///
    /// [`LockDir`](ErrorKind::LockDir) if it is missing, or cannot be opened or trusted, with the
    /// reason.
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::LockDir;
    ///
    /// let path = tempfile::tempdir()?; // with mode 0700
    /// assert!(LockDir::open(path.path())?.entries()?.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::located(Some(path.as_ref()))
    }

    /// Returns the directory at `chosen` if it is set, else the one that the rules choose.
    pub(crate) fn located(chosen: Option<&Path>) -> Result<Self> {
        Ok(match locate(chosen, since_1970(), IfMissing::Allow)? {
            Location::Open(open) => Self {
                path: open.dir.path.clone(),
                origin: open.dir.origin,
                open: Some(open),
            },
            Location::Missing { path, origin } => Self {
                path,
                origin,
                open: None,
            },
        })
    }

    /// Returns every path that may be, or was under earlier rules, the default directory of a
    /// caller of this user, in any session and whatever root creates.
    ///
    /// Callers with different default directories do not exclude each other. With these paths, a
    /// program can detect that.
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::{LockDir, PortEntry};
    ///
    /// let own = LockDir::locate()?;
    /// for path in LockDir::default_paths() {
    ///     let Ok(other) = LockDir::open(&path) else {
    ///         continue; // There is none.
    ///     };
    ///     if path != own.path() && other.entries()?.iter().any(PortEntry::is_leased) {
    ///         println!("ports are leased in {} too", path.display());
    ///     }
    /// }
    /// # Ok::<(), portlock::Error>(())
    /// ```
    #[must_use]
    pub fn default_paths() -> Vec<PathBuf> {
        default_dirs(system::user())
    }

    /// Returns the path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns why this directory is the one in use.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Returns whether other users may lease ports in it too. A default directory that does not
    /// exist yet will be private when the first lease creates it.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.open
            .as_ref()
            .is_some_and(|open| open.sys().is_shared())
    }

    /// Returns the directory if it exists.
    pub(crate) fn opened(&self) -> Option<&OpenDir> {
        self.open.as_ref()
    }
}

impl OpenDir {
    /// Returns the directory to lease from, by the rules of [`LockDir`], given the time since
    /// 1970. A default directory that is missing is created.
    pub(crate) fn locate_at(chosen: Option<&Path>, now: Duration) -> Result<Self> {
        match locate(chosen, now, IfMissing::Create)? {
            Location::Open(open) => Ok(open),
            // Another process removed it as soon as it was created.
            Location::Missing { path, .. } => Err(removed(&path)),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.dir.path
    }

    pub(crate) fn origin(&self) -> Origin {
        self.dir.origin
    }

    /// Returns whether it is known that all reservations have been restored into it.
    #[inline]
    pub(crate) fn is_restored(&self) -> bool {
        self.dir.is_restored.load(Ordering::Relaxed)
    }

    pub(crate) fn set_restored(&self) {
        self.dir.is_restored.store(true, Ordering::Relaxed);
    }

    /// Returns the error for a directory that was removed. The next [`locate`](Self::locate)
    /// checks it again.
    pub(crate) fn removed(&self) -> Error {
        if let Some(mut last) = LAST_USED.lock() {
            last.take_if(|last| Arc::ptr_eq(&last.open.dir, &self.dir));
        }
        removed(self.path())
    }

    /// Returns whether another directory, or none, is at its path now.
    pub(crate) fn is_removed(&self) -> bool {
        let found = system::find(
            &self.dir.path,
            IfMissing::Allow,
            self.dir.origin,
            system::user(),
        );
        match found {
            Ok(Some(found)) => !self.dir.sys.is_still(&found),
            Ok(None) => true,
            // Whatever the error is, the directory is not missing.
            Err(_) => false,
        }
    }

    /// Returns whether both are the same directory.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.dir.sys.is(&other.dir.sys)
    }

    /// Returns a hash that distinguishes it from other directories, the same for all callers.
    pub(crate) fn digest(&self) -> u64 {
        self.dir.digest
    }

    /// Returns the directory as the system sees it.
    #[inline]
    pub(crate) fn sys(&self) -> &system::Dir {
        &self.dir.sys
    }
}

fn removed(path: &Path) -> Error {
    let message = format!("lock directory {} was removed", path.display());
    Error::new(ErrorKind::LockDir, message).at(path)
}

/// Outcome of [`locate`].
enum Location {
    Open(OpenDir),
    Missing { path: PathBuf, origin: Origin },
}

/// Returns the absolute form of a relative path, so that it stays the same directory when the
/// working directory changes. If there is none, returns the path unchanged: opening it reports
/// why.
pub(crate) fn absolute(path: PathBuf) -> PathBuf {
    if path.is_absolute() {
        return path;
    }
    std::path::absolute(&path).unwrap_or(path)
}

fn locate(chosen: Option<&Path>, now: Duration, default: IfMissing) -> Result<Location> {
    let user = system::user();
    let was_relative;
    let chosen = match chosen {
        Some(path) if path.is_relative() => {
            was_relative = absolute(path.to_owned());
            Some(&*was_relative)
        }
        chosen => chosen,
    };
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
    if let Some(last) = LAST_USED.lock()
        && let Some(last) = &*last
        && last.is_good_for(named, user, now)
    {
        return Ok(Location::Open(last.open.clone()));
    }
    let located = match named {
        Some((Origin::Variable, path)) if path.is_relative() => {
            // It would mean a different directory in each working directory.
            let message = format!("{VARIABLE}={} is not an absolute path", path.display());
            return Err(Error::new(ErrorKind::LockDir, message));
        }
        // A named directory must exist. To create it, we would have to guess its kind, and a
        // misspelled path would give its caller a separate empty directory in which every port is
        // free.
        Some((origin, path)) => open(path, IfMissing::Refuse, origin, user)?,
        None => {
            let (path, origin) = default_dir(user)?;
            // Root may just have removed the directory of all users, which we must not create.
            let missing = if origin.is_created_by_its_user() {
                default
            } else {
                IfMissing::Refuse
            };
            open(&path, missing, origin, user)?
        }
    };
    if let Location::Open(open) = &located
        && let Some(mut last) = LAST_USED.lock()
    {
        *last = Some(LastUsed {
            named: named.map(|(origin, path)| (origin, path.to_owned())),
            user,
            checked: now,
            open: open.clone(),
        });
    }
    Ok(located)
}

/// What to do if nothing exists at the path.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum IfMissing {
    Create,
    Allow,
    Refuse,
}

/// The last used directory, so that a process that leases from one directory opens it once. Only
/// one is kept, because each costs a descriptor.
struct LastUsed {
    /// The requested directory; `None` is the user's own.
    named: Option<(Origin, PathBuf)>,
    user: system::User,
    checked: Duration,
    open: OpenDir,
}

static LAST_USED: PerProcess<LastUsed> = PerProcess::new();

impl LastUsed {
    fn is_good_for(
        &self,
        named: Option<(Origin, &Path)>,
        user: system::User,
        now: Duration,
    ) -> bool {
        let same_name = match (&self.named, named) {
            (Some((origin, path)), Some(named)) => {
                // Compared as text, because comparing paths by their components takes longer.
                *origin == named.0 && path.as_os_str() == named.1.as_os_str()
            }
            (None, None) => true,
            _ => false,
        };
        // If the clock was set back, check again.
        let age = now.checked_sub(self.checked);
        same_name && self.user == user && age.is_some_and(|age| age < RECHECK_INTERVAL)
    }
}

/// Opens the directory at `path` and checks it. If it is still the last used one, only checks it.
fn open(path: &Path, missing: IfMissing, origin: Origin, user: system::User) -> Result<Location> {
    // Strip a trailing slash: with it, a symbolic link would be followed in spite of lstat and
    // O_NOFOLLOW (path_resolution(7)).
    let path: PathBuf = path.components().collect();
    let Some(found) = system::find(&path, missing, origin, user)? else {
        return Ok(Location::Missing { path, origin });
    };
    let last = LAST_USED
        .lock()
        .and_then(|last| Some(last.as_ref()?.open.clone()));
    let is_it = |OpenDir { dir }: &OpenDir| {
        (&dir.path, dir.origin) == (&path, origin) && dir.sys.is_still(&found)
    };
    if let Some(last) = last.filter(is_it) {
        return Ok(Location::Open(last));
    }
    let sys = system::Dir::open(&path, origin, user)?;
    let dir = Arc::new(Inner {
        path,
        origin,
        digest: sys.digest(),
        sys,
        is_restored: AtomicBool::new(false),
    });
    Ok(Location::Open(OpenDir { dir }))
}

pub(crate) fn cannot(operation: &str, path: &Path, cause: io::Error) -> Error {
    let message = format!("cannot {operation} lock directory {}", path.display());
    Error::with_cause(ErrorKind::LockDir, message, cause).at(path)
}

pub(crate) fn refuse(path: &Path, why: &str) -> Error {
    let message = format!("refusing lock directory {}: {why}", path.display());
    Error::new(ErrorKind::LockDir, message).at(path)
}

// Owners and modes exist only on Unix.
#[cfg(all(test, unix))]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use rustix::process::geteuid;

    use super::*;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("our own directory");
    }

    fn opened(path: &Path, missing: IfMissing) -> OpenDir {
        match open(path, missing, Origin::Given, geteuid()).expect("trusted") {
            Location::Open(open) => open,
            Location::Missing { path, .. } => panic!("{} is missing", path.display()),
        }
    }

    fn refused(path: &Path) -> Error {
        let outcome = open(path, IfMissing::Refuse, Origin::Given, geteuid());
        outcome.err().expect("not to be trusted")
    }

    #[test]
    fn own_directories_are_private_when_only_we_can_write() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for private in [0o700, 0o755, 0o1700] {
            mode(dir.path(), private);
            let dir = opened(dir.path(), IfMissing::Refuse);
            assert_eq!(dir.sys().permissions().as_raw_mode(), 0o600, "{private:o}");
            assert!(!dir.sys().is_shared());
        }
        for shared in [0o1777, 0o1770] {
            mode(dir.path(), shared);
            let dir = opened(dir.path(), IfMissing::Refuse);
            assert_eq!(dir.sys().permissions().as_raw_mode(), 0o666, "{shared:o}");
            assert!(dir.sys().is_shared());
        }
        for writable in [0o777, 0o770, 0o702] {
            mode(dir.path(), writable);
            let error = refused(dir.path());
            assert_eq!(error.kind(), ErrorKind::LockDir);
            assert!(error.to_string().contains("not sticky"), "{error}");
            assert!(error.to_string().contains("chmod 1777"), "{error}");
        }
        // Root can change the owner to any user that this user namespace maps.
        if std::os::unix::fs::chown(dir.path(), Some(12345), None).is_ok() {
            let error = refused(dir.path()).to_string();
            assert!(error.contains("chmod 1777"), "{error}");
            std::os::unix::fs::chown(dir.path(), Some(geteuid().as_raw()), None).expect("root");
        }
        // As with a Kubernetes emptyDir, whose mode its users may not change.
        mode(dir.path(), 0o2777);
        let other = rustix::process::Uid::from_raw(geteuid().as_raw() + 1);
        let error = open(dir.path(), IfMissing::Refuse, Origin::Given, other);
        let error = error.err().expect("not sticky").to_string();
        let what_to_do = format!("mkdir -m 1777 {}/portlock", dir.path().display());
        assert!(
            error.contains("2777") && error.contains(&what_to_do),
            "{error}"
        );
    }

    #[test]
    fn a_directory_that_was_replaced_is_opened_again() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let path = parent.path().join("locks");
        let first = opened(&path, IfMissing::Create);
        fs::rename(&path, parent.path().join("elsewhere")).expect("our own directory");
        let second = opened(&path, IfMissing::Create);
        assert!(!first.is(&second));
        assert!(second.is(&opened(&path, IfMissing::Refuse)));
        let found = system::find(&path, IfMissing::Refuse, Origin::Given, geteuid());
        let found = found.expect("trusted").expect("created");
        assert!(second.sys().is_still(&found) && !first.sys().is_still(&found));
    }

    #[test]
    fn a_directory_has_the_path_that_was_asked_for() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let roundabout = dir.path().join("..");
        let roundabout = roundabout.join(dir.path().file_name().expect("a name"));
        mode(dir.path(), 0o1777);
        // This includes the last used path.
        for path in [dir.path(), &roundabout, dir.path()] {
            let located = LockDir::open(path).expect("trusted");
            assert_eq!(located.path(), path);
            assert!(located.is_shared());
        }
    }

    #[test]
    fn the_directory_used_last_is_used_again_for_the_same_request_within_100_ms() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (path, user) = (dir.path(), geteuid());
        let other_user = rustix::process::Uid::from_raw(user.as_raw() + 1);
        let checked = Duration::from_secs(1000);
        let last = |named: Option<Origin>| LastUsed {
            named: named.map(|origin| (origin, path.to_owned())),
            user,
            checked,
            open: opened(path, IfMissing::Refuse),
        };
        let (own, given) = (last(None), last(Some(Origin::Given)));
        let this = Some((Origin::Given, path));
        for later in [Duration::ZERO, RECHECK_INTERVAL - Duration::from_nanos(1)] {
            assert!(given.is_good_for(this, user, checked + later));
            assert!(own.is_good_for(None, user, checked + later));
        }
        for other in [
            Some((Origin::Variable, path)),
            Some((Origin::Given, Path::new("/"))),
            None,
        ] {
            assert!(!given.is_good_for(other, user, checked));
        }
        assert!(!own.is_good_for(this, user, checked));
        assert!(!given.is_good_for(this, other_user, checked));
        assert!(!given.is_good_for(this, user, checked + RECHECK_INTERVAL));
        // The clock was set back.
        assert!(!given.is_good_for(this, user, checked - Duration::from_nanos(1)));
    }

    #[test]
    fn a_replacement_of_a_directory_after_the_check_is_not_opened() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let [target, link, file] = ["target", "link", "file"].map(|name| parent.path().join(name));
        let target = opened(&target, IfMissing::Create);
        std::os::unix::fs::symlink(target.path(), &link).expect("our own directory");
        fs::write(&file, "").expect("our own directory");
        for path in [&link, &file] {
            let outcome = system::Dir::open(path, Origin::Given, geteuid());
            let error = outcome.expect_err("no directory");
            assert!(error.to_string().starts_with("cannot open"), "{error}");
        }
        // A program started with exec does not inherit it either.
        let flags = rustix::io::fcntl_getfd(target.sys().fd()).expect("open");
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn a_missing_directory_is_not_created_by_inspecting_it() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let path = parent.path().join("locks");
        let located = open(&path, IfMissing::Allow, Origin::Given, geteuid());
        assert!(matches!(located, Ok(Location::Missing { .. })));
        assert!(!path.exists());
    }

    #[test]
    fn a_missing_directory_is_an_error_that_says_what_to_do() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let path = parent.path().join("locks");
        let named = refused(&path).to_string();
        assert!(named.contains("mkdir -m 700"), "{named}");
        let default = open(
            &path.join("below"),
            IfMissing::Create,
            Origin::Tmp,
            geteuid(),
        );
        let default = default.err().expect("its parent is missing").to_string();
        assert!(default.contains("set PORTLOCK_DIR"), "{default}");
    }

    #[test]
    fn a_file_instead_of_a_directory_keeps_its_mode() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let path = parent.path().join("locks");
        fs::write(&path, "").expect("our own directory");
        mode(&path, 0o400);
        let outcome = open(&path, IfMissing::Create, Origin::Tmp, geteuid());
        let error = outcome.err().expect("no directory").to_string();
        assert!(error.contains("not a directory"), "{error}");
        let kept = fs::metadata(&path).expect("there").permissions();
        assert_eq!(kept.mode() & 0o7777, 0o400);
    }

    #[test]
    fn a_directory_whose_creator_was_killed_is_completed() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let path = parent.path().join("locks");
        fs::create_dir(&path).expect("our own directory");
        // As under an umask of 0777.
        mode(&path, 0);
        opened(&path, IfMissing::Create);
        let finished = fs::metadata(&path).expect("made").permissions();
        assert_eq!(finished.mode() & 0o7777, 0o700);
        // A usable directory keeps its mode.
        mode(&path, 0o755);
        opened(&path, IfMissing::Create);
        let usable = fs::metadata(&path).expect("made").permissions();
        assert_eq!(usable.mode() & 0o7777, 0o755);
        // A directory that was named keeps its mode too.
        mode(&path, 0o500);
        opened(&path, IfMissing::Refuse);
        let named = fs::metadata(&path).expect("made").permissions();
        assert_eq!(named.mode() & 0o7777, 0o500);
    }

    #[test]
    fn a_trailing_slash_does_not_let_a_symbolic_link_through() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let target = parent.path().join("target");
        opened(&target, IfMissing::Create);
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(&target, &link).expect("our own directory");
        for path in [link.clone(), link.join(""), link.join(".")] {
            let error = refused(&path);
            assert!(error.to_string().contains("symbolic link"), "{error}");
        }
    }
}
