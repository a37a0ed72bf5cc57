//! One lock file, locked: the only file that takes or ends a file lock.
//!
//! A port is leased as long as the file `<lock directory>/<port>` is locked, on Unix
//! with flock(2), on Windows with LockFileEx. The kernel ends the lock when the last descriptor of that
//! open file description is closed, and so at the latest when its holder dies,
//! however it dies. Nothing is ever left to clean up.
//!
//! Files are not removed when a lease ends. Where somebody else removes or
//! replaces one, a lock could be taken on a file that later callers can no
//! longer find; so once it is locked, it is looked at again, and if need be let go of and
//! opened anew. How, and where the owner record stands, depends on the system: see
//! `lock/unix.rs` and `lock/windows.rs`.

use std::{fs::File, io, path::PathBuf};

use fs4::TryLockError;

use crate::{
    error::{Error, ErrorKind, Result, USE_VARIABLE},
    lock_dir::OpenDir,
    mark::{self, Mark},
    owner::{self, Owner, Record},
    process::Evidence,
    registry::Claim,
    retry::retry,
};

#[cfg(unix)]
pub(crate) mod unix;
#[cfg(windows)]
pub(crate) mod windows;

#[cfg(unix)]
pub(crate) use unix as lock_file;
#[cfg(windows)]
pub(crate) use windows as lock_file;

/// How often one acquisition opens the file again because it was removed or
/// replaced in between, and how often a call interrupted by a signal is made
/// again. Far beyond what happens; only a bound.
const TRIES: usize = 100;

/// For what a lock file is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Access {
    /// To read who has the port, without a lock.
    ReadRecord,
    /// To lock it, and so that its closing wakes nobody.
    Look,
    Write,
}

/// What came of opening a lock file.
#[derive(Debug)]
pub(crate) enum Opened {
    File(File),
    Missing,
    /// Somebody is just removing it.
    #[allow(dead_code, reason = "only on Windows this is seen")]
    Held,
}

/// What came of making a lock file.
#[derive(Debug)]
pub(crate) enum Made {
    File(File),
    /// Somebody else was faster.
    Exists,
    /// The directory was removed.
    NoDirectory,
}

/// What a lock file turned out to be once it was locked.
#[derive(Debug)]
pub(crate) enum Inspected {
    /// What others find too, with a record so long.
    AtItsPath { record: usize },
    /// It was removed or replaced.
    #[allow(dead_code, reason = "on Windows it cannot be")]
    Elsewhere,
    /// No file that may be written to.
    Refused(&'static str),
}

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
    dir: OpenDir,
    /// Of the process that acquired it.
    mark: Mark,
    /// The file is long enough for a record that counts without a lock.
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
    /// Locks the file of the claimed port, created if it is missing, without waiting. Returns
    /// `None` if someone else has the lock, or has the port without one.
    pub(crate) fn try_acquire(dir: &OpenDir, claim: Claim) -> Result<Option<Self>> {
        let (port, mark) = (claim.port(), claim.mark());
        let open = || open_or_make(dir, port);
        let Try::Locked(mut lock) = Self::try_lock(dir, port, mark, open)? else {
            return Ok(None);
        };
        lock.claim = Some(claim);
        Ok(if lock.is_kept_by_its_record()? {
            None
        } else {
            Some(lock)
        })
    }

    /// Locks the file of `port` without waiting, only to look whether it can be had.
    ///
    /// A look claims nothing: a port that this process has claimed is one that it leases, or is about
    /// to.
    pub(crate) fn try_look(dir: &OpenDir, port: u16, mark: Mark) -> Result<Try> {
        let open = || open(dir, port, Access::Look);
        Ok(match Self::try_lock(dir, port, mark, open)? {
            Try::Locked(lock) if lock.is_kept_by_its_record()? => Try::Held,
            other => other,
        })
    }

    /// Locks the file of `port` if there is one, without waiting, whatever its record says.
    pub(crate) fn try_existing(dir: &OpenDir, port: u16) -> Result<Try> {
        Self::try_lock(dir, port, mark::current(), || open(dir, port, Access::Look))
    }

    /// The same, to write to it.
    pub(crate) fn try_existing_to_write(dir: &OpenDir, port: u16) -> Result<Try> {
        let open = || open(dir, port, Access::Write);
        Self::try_lock(dir, port, mark::current(), open)
    }

    fn try_lock(
        dir: &OpenDir,
        port: u16,
        mark: Mark,
        open: impl Fn() -> Result<Opened>,
    ) -> Result<Try> {
        for _ in 0..TRIES {
            let file = match open()? {
                Opened::File(file) => file,
                Opened::Missing => return Ok(Try::Missing),
                Opened::Held => return Ok(Try::Held),
            };
            if !try_lock(&file).map_err(|error| fail("lock", dir, port, error))? {
                return Ok(Try::Held);
            }
            let mut lock = Self {
                claim: None,
                file,
                ended: false,
                port,
                dir: dir.clone(),
                mark,
                is_long: false,
            };
            if lock.inspect()? {
                return Ok(Try::Locked(lock));
            }
        }
        let error = io::Error::other(format!("it was replaced {TRIES} times while being locked"));
        Err(fail("lock", dir, port, error))
    }

    /// Whether the record keeps the port leased, as that of a delegated lease does.
    fn is_kept_by_its_record(&self) -> Result<bool> {
        // A shorter one cannot.
        Ok(self.is_long && is_kept(&self.dir, self.port, self.read_owner()?.as_ref())?)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Looks at the file that was locked: whether it is still the one that others
    /// find at its path, and how long its record is.
    ///
    /// # Errors
    ///
    /// It is no file that may be written to.
    fn inspect(&mut self) -> Result<bool> {
        match lock_file::inspect(self.dir.sys(), self.port, &self.file) {
            Ok(Inspected::AtItsPath { record }) => {
                self.is_long = owner::may_count(record);
                Ok(true)
            }
            Ok(Inspected::Elsewhere) => Ok(false),
            Ok(Inspected::Refused(why)) => Err(self.refuse(why)),
            Err(error) => Err(fail("stat", &self.dir, self.port, error)),
        }
    }

    #[cold]
    fn refuse(&self, why: &str) -> Error {
        let path = file_path(&self.dir, self.port);
        let message = format!("refusing lock file {}: {why}", path.display());
        Error::new(ErrorKind::Lock, message)
    }

    /// Who had the lock before, or has the port without one.
    pub(crate) fn read_owner(&self) -> Result<Option<Owner>> {
        read_owner(&self.dir, self.port, &self.file)
    }

    /// Writes the record of a held lease, or of none, into the file.
    ///
    /// In place and always of the same length. Only where a longer record was, the
    /// rest of it is cut off.
    pub(crate) fn write_owner(&self, record: &Record<{ owner::LEN }>) -> Result<()> {
        self.write(record.bytes(), self.is_long)
    }

    /// Writes a record that counts without the lock: the longer file is what makes it one.
    pub(crate) fn write_long(&self, record: &Record<{ owner::LONG_LEN }>) -> Result<()> {
        self.write(record.bytes(), false)
    }

    fn write(&self, record: &[u8], is_longer: bool) -> Result<()> {
        lock_file::write_record(self.dir.sys(), self.port, &self.file, record, is_longer)
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

    /// # Errors
    ///
    /// The caller is a forked copy of the process that acquired the lock.
    pub(crate) fn must_be_ours(&self, operation: &str) -> Result<()> {
        if mark::current() == self.mark {
            return Ok(());
        }
        let path = file_path(&self.dir, self.port);
        let message = format!(
            "cannot {operation} {}: the lease belongs to the process of which this process ({}) \
             is a forked copy",
            path.display(),
            std::process::id()
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
pub(crate) fn recorded_owner(dir: &OpenDir, port: u16) -> Result<Option<Owner>> {
    match open(dir, port, Access::ReadRecord)? {
        Opened::File(file) => read_owner(dir, port, &file),
        Opened::Missing | Opened::Held => Ok(None),
    }
}

/// Whether this record keeps the port leased although nobody has the lock.
pub(crate) fn is_kept(dir: &OpenDir, port: u16, owner: Option<&Owner>) -> Result<bool> {
    owner
        .map_or(Ok(false), Owner::keeps_the_port)
        .map_err(|error| fail("find the process that owns", dir, port, error))
}

/// Whether the process in the record is proven to have ended.
pub(crate) fn has_ended(dir: &OpenDir, port: u16, owner: &Owner) -> Result<bool> {
    let evidence = owner
        .process
        .evidence()
        .map_err(|error| fail("find the process that owns", dir, port, error))?;
    Ok(evidence == Evidence::Gone)
}

fn read_owner(dir: &OpenDir, port: u16, file: &File) -> Result<Option<Owner>> {
    let mut record = [0; owner::LONG_LEN];
    let len = lock_file::read_record(dir.sys(), port, file, &mut record)
        .map_err(|error| fail("read owner record of", dir, port, error))?;
    Ok(Owner::parse(&record[..len]))
}

/// Opens the file of `port`, and creates it first if it is missing.
fn open_or_make(dir: &OpenDir, port: u16) -> Result<Opened> {
    for _ in 0..TRIES {
        match open(dir, port, Access::Write)? {
            Opened::Missing => {}
            opened => return Ok(opened),
        }
        match lock_file::make(dir.sys(), port, std::process::id()) {
            Ok(Made::File(file)) => return Ok(Opened::File(file)),
            Ok(Made::Exists) => {}
            Ok(Made::NoDirectory) => return Err(dir.removed()),
            Err(error) => {
                let is_denied = error.kind() == io::ErrorKind::PermissionDenied;
                let error = fail("create", dir, port, error);
                return Err(match is_denied {
                    true => error.with_hint(USE_VARIABLE),
                    false => error,
                });
            }
        }
    }
    let error = io::Error::other(format!("it was made and removed {TRIES} times"));
    Err(fail("open", dir, port, error))
}

/// Opens the file of `port`, if there is one.
fn open(dir: &OpenDir, port: u16, access: Access) -> Result<Opened> {
    lock_file::open(dir.sys(), port, access).map_err(|error| fail("open", dir, port, error))
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

fn file_path(dir: &OpenDir, port: u16) -> PathBuf {
    dir.path().join(port.to_string())
}

#[cold]
fn fail(operation: &str, dir: &OpenDir, port: u16, cause: io::Error) -> Error {
    let path = file_path(dir, port);
    let message = format!("cannot {operation} lock file {}", path.display());
    Error::with_cause(ErrorKind::Lock, message, cause)
}
