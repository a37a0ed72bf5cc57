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
    lock_dir::{LockDir, identity},
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
    file: File,
    /// The lock was ended, or goes on without this value.
    ended: bool,
    port: u16,
    dir: Arc<Path>,
    pid: u32,
}

/// What came of locking a file that may not exist.
#[derive(Debug)]
pub(crate) enum Try {
    Locked(PortLock),
    Held,
    Missing,
}

impl PortLock {
    /// Locks the file of `port`, made if it is missing, without waiting, or gives
    /// `None` if someone else holds it or has it delegated. `pid` is the caller's own.
    pub(crate) fn try_acquire(dir: &LockDir, port: u16, pid: u32) -> Result<Option<Self>> {
        let Try::Locked(lock) = Self::try_lock(dir, port, pid, open_or_make)? else {
            return Ok(None);
        };
        let owner = lock.read_owner()?;
        let delegated = owner.is_some_and(|owner| owner.is_delegated_to_the_living());
        Ok(if delegated { None } else { Some(lock) })
    }

    /// Locks the file of `port` if there is one, without waiting, whoever it is
    /// delegated to.
    pub(crate) fn try_existing(dir: &LockDir, port: u16) -> Result<Try> {
        Self::try_lock(dir, port, process::id(), |dir, port, _| open(dir, port))
    }

    fn try_lock(
        dir: &LockDir,
        port: u16,
        pid: u32,
        open: impl Fn(&LockDir, u16, u32) -> Result<Option<OwnedFd>>,
    ) -> Result<Try> {
        for _ in 0..TRIES {
            let Some(fd) = open(dir, port, pid)? else {
                return Ok(Try::Missing);
            };
            let file = File::from(fd);
            if !try_lock(&file).map_err(|error| fail("lock", dir.path(), port, error))? {
                return Ok(Try::Held);
            }
            let lock = Self {
                file,
                ended: false,
                port,
                dir: Arc::clone(dir.shared_path()),
                pid,
            };
            if lock.is_at_its_path(dir)? {
                return Ok(Try::Locked(lock));
            }
        }
        let error = io::Error::other(format!("it was replaced {TRIES} times while being locked"));
        Err(fail("lock", dir.path(), port, error))
    }

    /// Removes the file, with the lock held: who waits to open it will make a
    /// new one, and who has it open will notice.
    pub(crate) fn remove(&self, dir: &LockDir) -> io::Result<()> {
        let name = DecInt::new(self.port);
        Ok(rustix::fs::unlinkat(dir.fd(), name, AtFlags::empty())?)
    }

    /// Whether the file locked is still the one that others find at its path.
    ///
    /// # Errors
    ///
    /// It is no file that may be written to.
    fn is_at_its_path(&self, dir: &LockDir) -> Result<bool> {
        let fail = |error: Errno| fail("stat", dir.path(), self.port, error.into());
        let locked = rustix::fs::fstat(&self.file).map_err(fail)?;
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

    /// Who had the lock before, or has the port without one.
    pub(crate) fn read_owner(&self) -> Result<Option<Owner>> {
        read_owner(&self.file)
            .map_err(|error| fail("read owner record of", &self.dir, self.port, error))
    }

    /// Writes an owner record into the file.
    ///
    /// In place and always of the same length: truncating would cost more than
    /// writing, and could fail for want of space where overwriting cannot.
    pub(crate) fn write_owner(&self, record: &[u8; owner::LEN]) -> Result<()> {
        self.file
            .write_all_at(record, 0)
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

    /// A descriptor that has the lock too, and has it alone from now on: the
    /// lock lives until that and its duplicates are closed.
    pub(crate) fn into_fd(mut self) -> Result<OwnedFd> {
        let file = self
            .file
            .try_clone()
            .map_err(|error| fail("duplicate the descriptor of", &self.dir, self.port, error))?;
        self.ended = true;
        Ok(file.into())
    }

    /// Unlocks explicitly.
    ///
    /// Closing alone is not enough. The lock belongs to the open file
    /// description, and a child that another thread is just starting has a
    /// duplicate of the descriptor until it executes its program, close-on-exec
    /// or not. LOCK_UN on any duplicate ends the lock for all of them
    /// (flock(2)). For the same reason a copy of this value in a forked child
    /// must only close: to unlock there would end the parent's lease.
    fn unlock(&mut self) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        self.ended = true;
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
        unlock(&self.file).map_err(|error| fail("unlock", &self.dir, self.port, error))
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
pub(crate) fn recorded_owner(dir: &LockDir, port: u16) -> Option<Owner> {
    let name = DecInt::new(port);
    let fd = rustix::fs::openat(dir.fd(), name, OPEN | OFlags::RDONLY, Mode::empty()).ok()?;
    read_owner(&File::from(fd)).ok()?
}

fn read_owner(file: &File) -> io::Result<Option<Owner>> {
    let mut record = [0; owner::LEN];
    let mut len = file.read_at(&mut record, 0);
    for _ in 0..TRIES {
        match &len {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                len = file.read_at(&mut record, 0);
            }
            _ => break,
        }
    }
    Ok(Owner::parse(&record[..len?]))
}

/// Opens the file of `port`, and makes it first if it is missing.
fn open_or_make(dir: &LockDir, port: u16, pid: u32) -> Result<Option<OwnedFd>> {
    for _ in 0..TRIES {
        if let Some(fd) = open(dir, port)? {
            return Ok(Some(fd));
        }
        if let Some(fd) = make(dir, port, pid)? {
            return Ok(Some(fd));
        }
    }
    let error = io::Error::other(format!("it was made and removed {TRIES} times"));
    Err(fail("open", dir.path(), port, error))
}

/// Opens the file of `port` if there is one.
///
/// Without O_CREAT: in a sticky directory `fs.protected_regular` refuses that
/// flag for files of other users (proc_sys_fs(5)).
fn open(dir: &LockDir, port: u16) -> Result<Option<OwnedFd>> {
    let mut interrupted = 0;
    loop {
        let name = DecInt::new(port);
        match rustix::fs::openat(dir.fd(), name, OPEN | OFlags::RDWR, Mode::empty()) {
            Ok(fd) => return Ok(Some(fd)),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::INTR) if interrupted < TRIES => interrupted += 1,
            Err(error) => return Err(fail("open", dir.path(), port, error.into())),
        }
    }
}

/// Whether a file of this name was being made by [`make`]. A maker that was killed
/// leaves it.
pub(crate) fn is_stray_name(name: &str) -> bool {
    name.starts_with(STRAY_PREFIX)
}

const STRAY_PREFIX: &str = ".new.";

/// Makes the file of `port`, open, or gives `None` if another process was faster.
///
/// It comes into being under another name and is renamed once its mode is
/// right: a maker that is killed in between then leaves a stray file, but never
/// a lock file that other users, or with a harsh umask even its owner, could
/// not open.
fn make(dir: &LockDir, port: u16, pid: u32) -> Result<Option<OwnedFd>> {
    let fail = |error: Errno| fail("make", dir.path(), port, error.into());
    let stray = format!("{STRAY_PREFIX}{port}.{pid}.{:08x}", rand::random::<u32>());
    let flags = OPEN | OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
    let fd = rustix::fs::openat(dir.fd(), &stray, flags, dir.file_mode()).map_err(fail)?;
    let made = set_mode(&fd, dir.file_mode()).and_then(|()| {
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

/// Sets the mode of a file unless the umask has left it as it should be. To look
/// costs a tenth of setting it again.
fn set_mode(fd: &OwnedFd, mode: Mode) -> rustix::io::Result<()> {
    let stat = rustix::fs::fstat(fd)?;
    if Mode::from_raw_mode(stat.st_mode) == mode {
        return Ok(());
    }
    rustix::fs::fchmod(fd, mode)
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
