//! One lock file, locked: the only module that takes or ends a file lock.
//!
//! A port is leased as long as the file `<lock directory>/<port>` is locked
//! with flock(2). The kernel ends the lock when the last descriptor of that
//! open file description is closed, and so at the latest when its holder dies,
//! however it dies. Nothing is ever left to clean up.
//!
//! Files are not removed when a lease ends. Where somebody else removes or
//! replaces one, a lock could be taken on a file that later callers can no
//! longer find; so after locking, the file is compared with the one that is at
//! the path now.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    path::{Path, PathBuf},
    process,
    sync::Arc,
};

use fs4::TryLockError;
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, RenameFlags},
    io::Errno,
    path::DecInt,
};

use crate::{
    error::{Error, ErrorKind, Result},
    lock_dir::{Trusted, identity},
    owner::{self, Owner},
};

/// How often one acquisition opens the file again because it was removed or
/// replaced in between, and how often a call interrupted by a signal is made
/// again. Far beyond what happens; only a bound.
const TRIES: usize = 100;

/// Never by way of a symbolic link, never blocking on a FIFO, never making a
/// terminal ours, never inherited by a program that is executed.
const OPEN: OFlags = OFlags::NOFOLLOW
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

/// A held lock on one port's file. Dropping it ends the lock.
#[derive(Debug)]
pub(crate) struct PortLock {
    /// `None` only once the lock has been ended.
    file: Option<File>,
    port: u16,
    dir: Arc<Path>,
    pid: u32,
}

impl PortLock {
    /// Locks the file of `port` without waiting, or gives `None` if someone
    /// else holds it. `pid` is the caller's own.
    pub(crate) fn try_acquire(dir: &Trusted, port: u16, pid: u32) -> Result<Option<Self>> {
        for _ in 0..TRIES {
            let file = File::from(open_or_make(dir, port, pid)?);
            if !try_lock(&file).map_err(|error| fail("lock", dir.path(), port, error))? {
                return Ok(None);
            }
            let lock = Self {
                file: Some(file),
                port,
                dir: Arc::clone(dir.path()),
                pid,
            };
            if lock.is_at_its_path(dir)? {
                return Ok(Some(lock));
            }
        }
        let error = io::Error::other(format!("it was replaced {TRIES} times while being locked"));
        Err(fail("lock", dir.path(), port, error))
    }

    /// Whether the file locked is still the one that others find at its path.
    ///
    /// # Errors
    ///
    /// It is no file that may be written to.
    fn is_at_its_path(&self, dir: &Trusted) -> Result<bool> {
        let Some(file) = &self.file else {
            return Ok(false);
        };
        let fail = |error: Errno| fail("stat", dir.path(), self.port, error.into());
        let locked = rustix::fs::fstat(file).map_err(fail)?;
        if FileType::from_raw_mode(locked.st_mode) != FileType::RegularFile {
            return Err(self.refuse("it is not a regular file"));
        }
        if locked.st_nlink > 1 {
            // Where others may add to the directory, the other name could be
            // that of any file of ours, and our record would overwrite it.
            return Err(self.refuse("it has a second hard link"));
        }
        let name = DecInt::new(self.port);
        match rustix::fs::statat(dir.fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(at_path) => Ok(locked.st_nlink == 1 && identity(&at_path) == identity(&locked)),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(fail(error)),
        }
    }

    fn refuse(&self, why: &str) -> Error {
        let path = file_path(&self.dir, self.port);
        let message = format!("refusing lock file {}: {why}", path.display());
        Error::new(ErrorKind::Lock, message)
    }

    /// Writes who holds the lock into the file.
    ///
    /// In place and always of the same length: truncating would cost more than
    /// writing, and could fail for want of space where overwriting cannot.
    pub(crate) fn write_owner(&self, label: Option<&str>) -> Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        file.write_all_at(&owner::record(self.pid, label), 0)
            .map_err(|error| fail("write owner record to", &self.dir, self.port, error))
    }

    /// Ends the lock.
    ///
    /// # Errors
    ///
    /// The caller is a forked copy of the process that acquired it, and the
    /// lock goes on; or the system refuses to unlock.
    pub(crate) fn release(mut self) -> Result<()> {
        self.unlock()
    }

    /// Unlocks explicitly, then closes.
    ///
    /// Closing alone is not enough. The lock belongs to the open file
    /// description, and a child that another thread is just starting has a
    /// duplicate of the descriptor until it executes its program, close-on-exec
    /// or not. LOCK_UN on any duplicate ends the lock for all of them
    /// (flock(2)). For the same reason a copy of this value in a forked child
    /// must only close: to unlock there would end the parent's lease.
    fn unlock(&mut self) -> Result<()> {
        let Some(file) = self.file.take() else {
            return Ok(());
        };
        let us = process::id();
        if us != self.pid {
            let path = file_path(&self.dir, self.port);
            let message = format!(
                "cannot unlock {}: the lease belongs to process {}, of which this process ({us}) \
                 is a forked copy",
                path.display(),
                self.pid
            );
            return Err(Error::new(ErrorKind::Lock, message));
        }
        unlock(&file).map_err(|error| fail("unlock", &self.dir, self.port, error))
    }
}

impl Drop for PortLock {
    fn drop(&mut self) {
        // To hear of a failure is what `release` is for. The lock ends with the
        // descriptor in any case.
        let _ = self.unlock();
    }
}

/// What the file of `port` says of its holder, if it says anything.
pub(crate) fn recorded_owner(dir: &Trusted, port: u16) -> Option<Owner> {
    let name = DecInt::new(port);
    let fd = rustix::fs::openat(dir.fd(), name, OPEN | OFlags::RDONLY, Mode::empty()).ok()?;
    let mut record = [0; owner::LEN];
    let len = File::from(fd).read_at(&mut record, 0).ok()?;
    owner::parse(&record[..len])
}

/// Opens the file of `port`, and makes it first if it is missing.
///
/// It is opened without O_CREAT: in a sticky directory `fs.protected_regular`
/// refuses that flag for files of other users (proc_sys_fs(5)).
fn open_or_make(dir: &Trusted, port: u16, pid: u32) -> Result<OwnedFd> {
    for _ in 0..TRIES {
        let name = DecInt::new(port);
        match rustix::fs::openat(dir.fd(), name, OPEN | OFlags::RDWR, Mode::empty()) {
            Err(Errno::NOENT) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(fail("open", dir.path(), port, error.into())),
            Ok(fd) => return Ok(fd),
        }
        if let Some(fd) = make(dir, port, pid)? {
            return Ok(fd);
        }
    }
    let error = io::Error::other(format!("it was made and removed {TRIES} times"));
    Err(fail("open", dir.path(), port, error))
}

/// Makes the file of `port`, open, or gives `None` if another process was faster.
///
/// It comes into being under another name and is renamed once its mode is
/// right: a maker that is killed in between then leaves a stray file, but never
/// a lock file that other users, or with a harsh umask even its owner, could
/// not open.
fn make(dir: &Trusted, port: u16, pid: u32) -> Result<Option<OwnedFd>> {
    let fail = |error: Errno| fail("make", dir.path(), port, error.into());
    let stray = format!(".{port}.{pid}.{:08x}", rand::random::<u32>());
    let flags = OPEN | OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
    let fd = rustix::fs::openat(dir.fd(), &stray, flags, dir.file_mode()).map_err(fail)?;
    let made = rustix::fs::fchmod(&fd, dir.file_mode()).and_then(|()| {
        let name = DecInt::new(port);
        rustix::fs::renameat_with(dir.fd(), &stray, dir.fd(), name, RenameFlags::NOREPLACE)
    });
    let Err(error) = made else {
        return Ok(Some(fd));
    };
    let removed = rustix::fs::unlinkat(dir.fd(), &stray, AtFlags::empty());
    match error {
        Errno::EXIST => removed.map(|()| None).map_err(fail),
        error => Err(fail(error)),
    }
}

/// Takes the exclusive lock, or says that someone else has it.
#[expect(clippy::disallowed_methods, reason = "this is the module that may")]
fn try_lock(file: &File) -> io::Result<bool> {
    let mut interrupted = 0;
    loop {
        // By its full name: std's own method of that name would take precedence.
        match fs4::FileExt::try_lock(file) {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error))
                if error.kind() == io::ErrorKind::Interrupted && interrupted < TRIES =>
            {
                interrupted += 1;
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the module that may")]
fn unlock(file: &File) -> io::Result<()> {
    fs4::FileExt::unlock(file)
}

fn file_path(dir: &Path, port: u16) -> PathBuf {
    dir.join(port.to_string())
}

fn fail(operation: &str, dir: &Path, port: u16, cause: io::Error) -> Error {
    let path = file_path(dir, port);
    let message = format!("cannot {operation} lock file {}", path.display());
    Error::with_cause(ErrorKind::Lock, message, cause)
}
