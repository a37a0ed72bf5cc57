//! The copies of reservations, in the user's state directory.
//!
//! The default lock directory does not survive a restart of the machine. So each reservation that
//! this user makes is copied to the state directory, in a separate directory for each lock
//! directory, `portlock/<hash of its path>`:
//!
//! * a file for each reservation, named by the hash of root and name, with the port and the line
//!   in the lock file;
//! * `lock-dir`, the path of the lock directory.
//!
//! Each file is written under another name and then renamed, so that it is complete or does not
//! exist. A mark in the lock directory means that the copies have been restored into it; without
//! the mark, they have to be.
//!
//! If the state directory does not exist or this process may not use it, there are no copies. It is
//! created if it is missing, but the home directory is not.
//! Nothing is written into a state directory of another user, as after su(1): that user could not
//! write there afterwards.

use std::{
    fmt::Display,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use rand::{Rng as _, rngs::SmallRng};

use crate::{
    error::{Error, ErrorKind, Result},
    ports::fnv1a,
    reservation::{Directory, Key, Line, Presence},
    retry::retry,
};

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(unix)]
use unix as system;
#[cfg(windows)]
use windows as system;

/// The file that names the lock directory.
const LOCK_DIR: &str = "lock-dir";

/// The beginning of the name of a file while it is written.
const STRAY_PREFIX: &str = ".new.";

/// Minimum age at which such a file is removed. Writing one takes microseconds.
const STRAY_MIN_AGE: Duration = Duration::from_secs(3600);

/// Largest number of attempts to write a file whose directory is removed as soon as it was
/// created. Only a bound.
const MAX_TRIES: usize = 10;

/// The copies of the reservations in one lock directory.
#[derive(Debug)]
pub(crate) struct Copies {
    dir: PathBuf,
    lock_dir: PathBuf,
}

/// The copy of one reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    pub(crate) port: u16,
    pub(crate) line: Line,
}

impl Copy {
    fn text(&self) -> String {
        format!("{} {}", self.port, self.line.text())
    }

    fn parse(text: &str) -> Option<Self> {
        let (port, line) = text.split_once(' ')?;
        Some(Self {
            port: port.parse().ok().filter(|&port| port > 0)?,
            line: Line::parse(line.as_bytes())?,
        })
    }
}

impl Copies {
    /// Returns the copies of the reservations in the lock directory at `path`, or `None` if this user has no
    /// state directory.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let hash = fnv1a(path.to_string_lossy().as_bytes());
        Some(Self {
            dir: all()?.join(format!("{hash:016x}")),
            lock_dir: path.to_owned(),
        })
    }

    /// Returns the copy of the reservation of `key`.
    pub(crate) fn get(&self, key: &Key) -> Result<Option<Copy>> {
        let copy = read(&self.path(key))?.and_then(|text| Copy::parse(&text));
        Ok(copy.filter(|copy| copy.line.is_of(key)))
    }

    /// Returns all copies.
    pub(crate) fn all(&self) -> Result<Vec<Copy>> {
        let mut copies = Vec::new();
        for path in entries(&self.dir)? {
            if is_copy(&path) {
                copies.extend(read(&path)?.and_then(|text| Copy::parse(&text)));
            }
        }
        copies.sort_unstable_by_key(|copy| copy.port);
        Ok(copies)
    }

    /// Writes a copy. If that is not permitted, as in a sandbox, or there is no home directory to
    /// write it to, returns why.
    ///
    /// # Errors
    ///
    /// If it cannot be written for any other reason.
    pub(crate) fn put(&self, copy: &Copy, is_default: bool) -> Result<Option<String>> {
        let path = self.path(&copy.line.key());
        let none = |why: &dyn Display| Ok(Some(format!("cannot write {}: {why}", path.display())));
        if let Some(home) = missing_home(&self.dir) {
            return none(&format!(
                "the home directory {} does not exist",
                home.display()
            ));
        }
        if !is_own(&self.dir).map_err(|error| fail_with_copy("use", &self.dir, error))? {
            return none(&"its directory belongs to another user");
        }
        let put = || {
            let marker = self.dir.join(LOCK_DIR);
            if !marker.exists() {
                write(&marker, &self.lock_dir_text(is_default))?;
            }
            write(&path, &copy.text())
        };
        let mut tries = 0;
        let written = loop {
            match system::create_private(&self.dir).and_then(|()| put()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries < MAX_TRIES => {
                    tries += 1;
                }
                written => break written,
            }
        };
        match written {
            Err(error) if is_none(&error) || error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                none(&error)
            }
            written => {
                written.map_err(|error| fail_with_copy("write", &path, error))?;
                Ok(None)
            }
        }
    }

    /// Returns the line that names the lock directory. A default directory is created again after
    /// each restart, so there is no proof that it is gone for good.
    fn lock_dir_text(&self, is_default: bool) -> String {
        let path = self.lock_dir.to_string_lossy();
        let directory = match Directory::existing(&path) {
            Ok(directory) if !is_default => directory,
            _ => Directory::never_gone(&path),
        };
        directory.words() + "\n"
    }

    /// Removes the copy of the reservation of `key`.
    pub(crate) fn remove(&self, key: &Key) -> Result<()> {
        remove(&self.path(key))?;
        remove_if_empty(&self.dir)
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.dir
            .join(format!("{:016x}", fnv1a(key.preference().as_bytes())))
    }
}

/// Removes the copies whose root directory or lock directory is proven to be gone, for all lock
/// directories, and returns the number of removed copies.
pub(crate) fn clean() -> Result<usize> {
    let mut removed = 0;
    let Some(all) = all() else {
        return Ok(removed);
    };
    for dir in entries(&all)? {
        let lock_dir = read(&dir.join(LOCK_DIR))?;
        let lock_dir =
            lock_dir.and_then(|text| Directory::parse(&mut text.split_ascii_whitespace()));
        let is_gone = lock_dir.is_some_and(|dir| dir.presence() == Presence::Gone);
        for path in entries(&dir)? {
            if is_old_stray(&path) {
                remove(&path)?;
            }
            if !is_copy(&path) {
                continue;
            }
            let copy = read(&path)?.and_then(|text| Copy::parse(&text));
            // A lock directory that cannot be read proves nothing.
            if is_gone || copy.is_none_or(|copy| !copy.line.counts()) {
                remove(&path)?;
                removed += 1;
            }
        }
        remove_if_empty(&dir)?;
    }
    Ok(removed)
}

/// Removes the directory of the copies for one lock directory if it is empty.
fn remove_if_empty(dir: &Path) -> Result<()> {
    if entries(dir)?.iter().any(|path| is_copy(path)) {
        return Ok(());
    }
    remove(&dir.join(LOCK_DIR))?;
    // It stays if it contains the file of a process that was killed or is adding a copy.
    let _ = fs::remove_dir(dir);
    Ok(())
}

/// Returns whether this user's copies have been restored into the lock directory at `path`.
pub(crate) fn is_marked(path: &Path) -> Result<bool> {
    let mark = path.join(system::mark());
    match fs::symlink_metadata(&mark) {
        // Other users of a shared directory can create this mark too.
        Ok(metadata) => Ok(system::is_own(&metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(fail("inspect", &mark, error)),
    }
}

/// Marks that this user's copies have been restored into the lock directory at `path`.
pub(crate) fn set_mark(path: &Path) -> Result<()> {
    let mark = path.join(system::mark());
    match system::create_mark(&mark) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(fail("create", &mark, error))
        }
        _ => Ok(()),
    }
}

/// Returns the directory with the copies for all lock directories.
fn all() -> Option<PathBuf> {
    let state = dirs::state_dir().or_else(dirs::data_local_dir)?;
    Some(state.join("portlock").join("reservations"))
}

/// Returns the home directory above the path if it does not exist, like `/nonexistent`. Then it
/// is not meant to exist, although root could create it.
fn missing_home(dir: &Path) -> Option<PathBuf> {
    let is_missing = |home: &PathBuf| matches!(home.try_exists(), Ok(false));
    dirs::home_dir().filter(|home| dir.starts_with(home) && is_missing(home))
}

/// Returns whether the part of the path that exists belongs to this user.
fn is_own(dir: &Path) -> io::Result<bool> {
    for dir in dir.ancestors() {
        match fs::metadata(dir) {
            Ok(metadata) => return Ok(system::is_own(&metadata)),
            Err(error) if is_none(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Returns whether the error means that nothing exists there that this process may use.
fn is_none(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::PermissionDenied
    )
}

fn is_copy(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.len() == 16 && name.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Returns whether the file was left by a process that was killed while writing it.
fn is_old_stray(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let age = || {
        fs::symlink_metadata(path)?
            .modified()
            .map(|time| time.elapsed())
    };
    name.is_some_and(|name| name.starts_with(STRAY_PREFIX))
        && matches!(age(), Ok(Ok(age)) if age > STRAY_MIN_AGE)
}

fn read(path: &Path) -> Result<Option<String>> {
    match system::read(path) {
        Ok(text) => Ok(String::from_utf8(text).ok()),
        Err(error) if is_none(&error) => Ok(None),
        Err(error) => Err(fail_with_copy("read", path, error)),
    }
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let read = || fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect();
    match retry(read) {
        Err(error) if is_none(&error) => Ok(Vec::new()),
        entries => entries.map_err(|error: io::Error| fail_with_copy("read", dir, error)),
    }
}

/// Writes a file that is complete before others can find it.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let random = rand::make_rng::<SmallRng>().next_u64();
    let stray = path.with_file_name(format!("{STRAY_PREFIX}{random:016x}"));
    let written =
        system::write_new(&stray, text.as_bytes()).and_then(|()| fs::rename(&stray, path));
    if written.is_err() {
        let _ = fs::remove_file(&stray);
    }
    written
}

fn remove(path: &Path) -> Result<()> {
    // A copy that exists and cannot be removed would be restored.
    let is_there = || fs::symlink_metadata(path).is_ok();
    match fs::remove_file(path) {
        Err(error) if !is_none(&error) || is_there() => Err(fail_with_copy("remove", path, error)),
        _ => Ok(()),
    }
}

/// Returns the error for a file in the state directory.
#[cold]
fn fail_with_copy(operation: &str, path: &Path, cause: io::Error) -> Error {
    // Only Linux has a variable for it.
    let hint = match dirs::state_dir() {
        Some(_) => "set XDG_STATE_HOME to a directory that can be written to",
        None => "",
    };
    fail(operation, path, cause).with_hint_instead(hint)
}

/// Returns the error for a file in the lock directory.
#[cold]
fn fail(operation: &str, path: &Path, cause: io::Error) -> Error {
    let message = format!("cannot {operation} {}", path.display());
    Error::with_cause(ErrorKind::Lock, message, cause).at(path)
}
