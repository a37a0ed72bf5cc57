//! One lock file, locked: the only module that takes or ends a file lock.
//!
//! A port is leased as long as the file `<lock directory>/<port>` is locked
//! with flock(2). The kernel ends the lock when the last descriptor of that
//! open file description is closed, and so at the latest when its holder dies,
//! however it dies. Nothing is ever left to clean up.
//!
//! Files are not removed when a lease ends. Where somebody else removes or
//! replaces one, a lock could be taken on a file that later callers can no
//! longer find; so once it is locked, a file without links is let go of and opened
//! anew. To compare it with what is at the path now would find nothing more on most
//! file systems, but for a file renamed by hand between the two calls, and one that
//! is renamed a moment later, with the lease held, nobody can find either way.

use std::{
    fmt::Display,
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt as _,
    },
    path::PathBuf,
    process,
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
    owner::{self, Owner, Record},
    registry::Claim,
};

/// How often one acquisition opens the file again because it was removed or
/// replaced in between, and how often a call interrupted by a signal is made
/// again. Far beyond what happens; only a bound.
const TRIES: usize = 100;

/// Never by way of a symbolic link, never blocking on a FIFO, never making a
/// terminal ours, never inherited by a program that is executed.
pub(crate) const OPEN: OFlags = OFlags::NOFOLLOW
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

/// A held lock on one port's file. Dropping it ends the lock.
#[derive(Debug)]
pub(crate) struct PortLock {
    // Dropped in this order, once the lock has ended: who is woken by the closing of
    // the file must be able to claim the port.
    claim: Option<Claim>,
    file: File,
    /// The lock was ended, or goes on without this value.
    ended: bool,
    port: u16,
    dir: LockDir,
    pid: u32,
    /// The file is long enough for the record of a delegated lease.
    is_long: bool,
}

/// What came of locking a file that may not exist.
#[derive(Debug)]
pub(crate) enum Try {
    Locked(PortLock),
    Held,
    Missing,
}

impl PortLock {
    /// Locks the file of the claimed port, made if it is missing, without waiting, or
    /// gives `None` if someone else holds it or has it delegated.
    pub(crate) fn try_acquire(dir: &LockDir, claim: Claim) -> Result<Option<Self>> {
        let (port, pid) = (claim.port(), claim.pid());
        let open = || open_or_make(dir, port, pid).map(Some);
        let Try::Locked(mut lock) = Self::try_lock(dir, port, pid, open)? else {
            return Ok(None);
        };
        lock.claim = Some(claim);
        Ok(if lock.is_delegated()? {
            None
        } else {
            Some(lock)
        })
    }

    /// Locks the file of the claimed port without waiting, only to look whether it can
    /// be had.
    pub(crate) fn try_look(dir: &LockDir, claim: Claim) -> Result<Try> {
        let (port, pid) = (claim.port(), claim.pid());
        Ok(
            match Self::try_lock(dir, port, pid, || open_to_look(dir, port))? {
                Try::Locked(mut lock) => {
                    lock.claim = Some(claim);
                    if lock.is_delegated()? {
                        Try::Held
                    } else {
                        Try::Locked(lock)
                    }
                }
                other => other,
            },
        )
    }

    /// Locks the file of `port` if there is one, without waiting, whoever it is
    /// delegated to and whoever has claimed it.
    pub(crate) fn try_existing(dir: &LockDir, port: u16) -> Result<Try> {
        Self::try_lock(dir, port, process::id(), || open_to_look(dir, port))
    }

    /// The same, to write to it.
    pub(crate) fn try_existing_to_write(dir: &LockDir, port: u16) -> Result<Try> {
        let open = || open(dir, port, OFlags::RDWR);
        Self::try_lock(dir, port, process::id(), open)
    }

    fn try_lock(
        dir: &LockDir,
        port: u16,
        pid: u32,
        open: impl Fn() -> Result<Option<OwnedFd>>,
    ) -> Result<Try> {
        for _ in 0..TRIES {
            let Some(fd) = open()? else {
                return Ok(Try::Missing);
            };
            let file = File::from(fd);
            if !try_lock(&file).map_err(|error| fail("lock", dir, port, error))? {
                return Ok(Try::Held);
            }
            let mut lock = Self {
                claim: None,
                file,
                ended: false,
                port,
                dir: dir.clone(),
                pid,
                is_long: false,
            };
            if lock.inspect()? {
                return Ok(Try::Locked(lock));
            }
        }
        let error = io::Error::other(format!("it was replaced {TRIES} times while being locked"));
        Err(fail("lock", dir, port, error))
    }

    /// Whether a process that lives, or may live, has the port without a lock.
    fn is_delegated(&self) -> Result<bool> {
        // In a shorter file nobody can.
        Ok(self.is_long && is_delegated(&self.dir, self.port, self.read_owner()?.as_ref())?)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Removes the file, with the lock held: who waits to open it will make a
    /// new one, and who has it open will notice.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let name = DecInt::new(self.port);
        Ok(rustix::fs::unlinkat(self.dir.fd(), name, AtFlags::empty())?)
    }

    /// Looks at the file that was locked: whether it is still the one that others
    /// find at its path, and how long it is.
    ///
    /// # Errors
    ///
    /// It is no file that may be written to.
    fn inspect(&mut self) -> Result<bool> {
        let fail = |error: Errno| fail("stat", &self.dir, self.port, error.into());
        let locked = rustix::fs::fstat(&self.file).map_err(fail)?;
        if FileType::from_raw_mode(locked.st_mode) != FileType::RegularFile {
            return Err(self.refuse("it is not a regular file"));
        }
        if locked.st_nlink > 1 {
            // Where others may add to the directory, the other name could be
            // that of any file of ours, and our record would overwrite it.
            return Err(self.refuse("it has a second hard link"));
        }
        let mut is_at_its_path = locked.st_nlink == 1;
        if is_at_its_path && !self.dir.is_local() {
            let name = DecInt::new(self.port);
            is_at_its_path =
                match rustix::fs::statat(self.dir.fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(at_path) => identity(&at_path) == identity(&locked),
                    Err(Errno::NOENT) => false,
                    Err(error) => return Err(fail(error)),
                };
        }
        self.is_long = usize::try_from(locked.st_size).is_ok_and(owner::may_be_delegated);
        Ok(is_at_its_path)
    }

    #[cold]
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

    /// Writes the record of a held lease, or of none, into the file.
    ///
    /// In place and always of the same length: truncating would cost more than
    /// writing, and could fail for want of space where overwriting cannot. Only
    /// where a delegated lease was, the file is cut to that length.
    pub(crate) fn write_owner(&self, record: &Record<{ owner::LEN }>) -> Result<()> {
        let mut written = write_all(&self.file, record.bytes());
        if self.is_long && written.is_ok() {
            // Not by `set_len`, which makes an interrupted call again without a bound.
            written = retry(|| Ok(rustix::fs::ftruncate(&self.file, owner::LEN as u64)?));
        }
        self.written(written)
    }

    /// Writes the record of a delegated lease: the longer file is what makes it one.
    pub(crate) fn write_delegated(&self, record: &Record<{ owner::DELEGATED_LEN }>) -> Result<()> {
        self.written(write_all(&self.file, record.bytes()))
    }

    fn written(&self, written: io::Result<()>) -> Result<()> {
        written.map_err(|error| fail("write owner record to", &self.dir, self.port, error))
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
    ///
    /// # Errors
    ///
    /// The caller is a forked copy of the process that acquired the lock; or the
    /// descriptor cannot be duplicated.
    pub(crate) fn into_fd(mut self) -> Result<OwnedFd> {
        self.must_be_ours("pass on")?;
        let file = self
            .file
            .try_clone()
            .map_err(|error| fail("duplicate the descriptor of", &self.dir, self.port, error))?;
        self.ended = true;
        Ok(file.into())
    }

    /// # Errors
    ///
    /// The caller is a forked copy of the process that acquired the lock.
    pub(crate) fn must_be_ours(&self, operation: &str) -> Result<()> {
        let us = process::id();
        if us == self.pid {
            return Ok(());
        }
        let path = file_path(&self.dir, self.port);
        let message = format!(
            "cannot {operation} {}: the lease belongs to process {}, of which this process ({us}) \
             is a forked copy",
            path.display(),
            self.pid
        );
        Err(Error::new(ErrorKind::Lock, message))
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
        self.must_be_ours("unlock")?;
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

/// What the file of `port` says of its holder, if there is one and it says anything.
pub(crate) fn recorded_owner(dir: &LockDir, port: u16) -> Result<Option<Owner>> {
    let Some(fd) = open(dir, port, OFlags::RDONLY)? else {
        return Ok(None);
    };
    read_owner(&File::from(fd)).map_err(|error| fail("read owner record of", dir, port, error))
}

/// Whether a process that lives, or may live, has the port without a lock.
pub(crate) fn is_delegated(dir: &LockDir, port: u16, owner: Option<&Owner>) -> Result<bool> {
    owner
        .map_or(Ok(false), Owner::is_delegated_to_the_living)
        .map_err(|error| fail("find the process that owns", dir, port, error))
}

fn read_owner(file: &File) -> io::Result<Option<Owner>> {
    let mut record = [0; owner::DELEGATED_LEN];
    let len = retry(|| file.read_at(&mut record, 0))?;
    Ok(Owner::parse(&record[..len]))
}

/// As `write_all_at`, which makes interrupted calls again without a bound.
fn write_all(file: &File, record: &[u8]) -> io::Result<()> {
    let mut written = 0;
    while written < record.len() {
        written += match retry(|| file.write_at(&record[written..], written as u64))? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            len => len,
        };
    }
    Ok(())
}

/// Makes a call again that a signal interrupted, within bounds.
fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..TRIES {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
    call()
}

/// Opens the file of `port`, and makes it first if it is missing.
fn open_or_make(dir: &LockDir, port: u16, pid: u32) -> Result<OwnedFd> {
    for _ in 0..TRIES {
        if let Some(fd) = open(dir, port, OFlags::RDWR)? {
            return Ok(fd);
        }
        if let Some(fd) = make(dir, port, pid)? {
            return Ok(fd);
        }
    }
    let error = io::Error::other(format!("it was made and removed {TRIES} times"));
    Err(fail("open", dir, port, error))
}

/// Opens the file of `port`, if there is one, so that its closing wakes nobody: for
/// reading.
fn open_to_look(dir: &LockDir, port: u16) -> Result<Option<OwnedFd>> {
    // On NFS only a file that is open for writing can be locked (flock(2)).
    let local = dir.is_local();
    open(dir, port, if local { OFlags::RDONLY } else { OFlags::RDWR })
}

/// Opens the file of `port` if there is one.
///
/// Without O_CREAT: in a sticky directory `fs.protected_regular` refuses that
/// flag for files of other users (proc_sys_fs(5)).
fn open(dir: &LockDir, port: u16, access: OFlags) -> Result<Option<OwnedFd>> {
    let mut interrupted = 0;
    loop {
        let name = DecInt::new(port);
        match rustix::fs::openat(dir.fd(), name, OPEN | access, Mode::empty()) {
            Ok(fd) => return Ok(Some(fd)),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::INTR) if interrupted < TRIES => interrupted += 1,
            Err(error) => return Err(fail("open", dir, port, error.into())),
        }
    }
}

/// Whether a file of this name was being made. A maker that was killed leaves it.
pub(crate) fn is_stray_name(name: &str) -> bool {
    name.starts_with(STRAY_PREFIX)
}

/// The name, for this maker alone, of a file that is to become `name`.
pub(crate) fn stray_name(name: impl Display, pid: u32) -> String {
    format!("{STRAY_PREFIX}{name}.{pid}.{:08x}", rand::random::<u32>())
}

const STRAY_PREFIX: &str = ".new.";

/// Makes the file of `port`, open, or gives `None` if another process was faster.
///
/// It comes into being under another name and is renamed once its mode is
/// right: a maker that is killed in between then leaves a stray file, but never
/// a lock file that other users, or with a harsh umask even its owner, could
/// not open.
fn make(dir: &LockDir, port: u16, pid: u32) -> Result<Option<OwnedFd>> {
    let fail = |error: Errno| match error {
        // There is no other name in the path that could be missing.
        Errno::NOENT => dir.removed(),
        error => fail("make", dir, port, error.into()),
    };
    let stray = stray_name(port, pid);
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
fn set_mode(fd: impl AsFd, mode: Mode) -> rustix::io::Result<()> {
    let stat = rustix::fs::fstat(&fd)?;
    if Mode::from_raw_mode(stat.st_mode) == mode {
        return Ok(());
    }
    rustix::fs::fchmod(fd, mode)
}

/// Takes the exclusive lock, or says that someone else has it.
#[expect(clippy::disallowed_methods, reason = "this is the module that may")]
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
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
pub(crate) fn unlock(file: &File) -> io::Result<()> {
    retry(|| fs4::FileExt::unlock(file))
}

fn file_path(dir: &LockDir, port: u16) -> PathBuf {
    dir.path().join(port.to_string())
}

#[cold]
fn fail(operation: &str, dir: &LockDir, port: u16, cause: io::Error) -> Error {
    let path = file_path(dir, port);
    let message = format!("cannot {operation} lock file {}", path.display());
    Error::with_cause(ErrorKind::Lock, message, cause)
}
