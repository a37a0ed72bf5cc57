//! The lock on one lock file: the only module that takes or ends a file lock.
//!
//! A port is leased as long as the file `<lock directory>/<port>` is locked, on Unix
//! with flock(2), on Windows with LockFileEx. The kernel ends the lock when the last descriptor of that
//! open file description is closed, and so at the latest when its holder dies,
//! for whatever reason. Nothing is ever left to clean up.
//!
//! Files are not removed when a lease ends. If another process removes or
//! replaces one, a lock could be taken on a file that later callers can no
//! longer find; so after locking the file we check it again and, if it was replaced, release it
//! and retry. How, and where the owner record is stored, depends on the system: see
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
    reservation::{self, Found, Key, Line},
    retry::retry,
    unavailable::{Attempt, Failure, Unavailable},
};

#[cfg(unix)]
pub(crate) mod unix;
#[cfg(windows)]
pub(crate) mod windows;

#[cfg(unix)]
pub(crate) use unix as lock_file;
#[cfg(windows)]
pub(crate) use windows as lock_file;

/// Largest number of times that one acquisition opens the file again because it was removed or
/// replaced in between, and that a call interrupted by a signal is repeated. Far beyond what
/// happens; only a bound.
const MAX_TRIES: usize = 100;

/// The purpose for which a lock file is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Access {
    /// To read the owner record without a lock.
    ReadRecord,
    /// To lock it in a way that closing it wakes no waiter.
    Lock,
    /// To lock it and write to it.
    Write,
}

/// Whether a lock file, now that it is locked, is the one that other callers lock.
#[derive(Debug)]
pub(crate) enum FileStatus {
    /// It is the current file, with a record of this length in bytes.
    Current { record_len: usize },
    /// It was removed or replaced.
    #[allow(dead_code, reason = "on Windows it cannot be")]
    Replaced,
    /// It must not be written to, for this reason.
    Refused(&'static str),
}

/// The reason why a record was not read or written.
pub(crate) type RecordFailure = Failure<RecordInUse, io::Error>;

/// Another program has opened the record exclusively.
#[derive(Debug)]
#[allow(dead_code, reason = "on Unix no program can")]
pub(crate) struct RecordInUse;

/// A held lock on one port's file. Dropping it ends the lock.
#[derive(Debug)]
pub(crate) struct PortLock {
    // Dropped in this order, once the lock has ended: a waiter that is woken by the closing of
    // the file must be able to claim the port.
    claim: Option<Claim>,
    file: File,
    /// The lock was ended, or continues without this value.
    ended: bool,
    port: u16,
    dir: OpenDir,
    /// The mark of the process that acquired it.
    mark: Mark,
    /// Length of the file in bytes when it was locked.
    len: usize,
    /// Whether a reservation follows the record and must be kept.
    is_reserved: bool,
}

/// The content of a lock file.
#[derive(Debug, Default)]
pub(crate) struct Content {
    /// The process that holds the lease, or held it last.
    pub(crate) owner: Option<Owner>,
    pub(crate) reservation: Option<Found>,
}

impl PortLock {
    /// Locks the file of the claimed port, created if it is missing, without waiting. The port is
    /// to be reserved by `key`, or not at all.
    pub(crate) fn try_acquire(dir: &OpenDir, claim: Claim, key: Option<&Key>) -> Attempt<Self> {
        let lock = Self::try_any(dir, claim.port(), claim.mark())?;
        lock.claimed(claim).unless_kept(key)
    }

    /// Turns it into the lock of a claimed port.
    pub(crate) fn claimed(mut self, claim: Claim) -> Self {
        self.claim = Some(claim);
        self
    }

    /// Locks the file of `port`, created if it is missing, without waiting, whatever it says.
    pub(crate) fn try_any(dir: &OpenDir, port: u16, mark: Mark) -> Attempt<Self> {
        let open = || open_or_create(dir, port).map(Some);
        let lock = Self::lock_with(try_lock, dir, port, mark, open)?;
        lock.ok_or(Unavailable::Leased(port).into())
    }

    /// Locks the file of `port` without waiting, only to check whether it can be leased. Returns
    /// `None` if there is no file.
    ///
    /// A check claims nothing: a port that this process has claimed is one that it leases, or is about
    /// to.
    pub(crate) fn try_check(
        dir: &OpenDir,
        port: u16,
        mark: Mark,
        key: Option<&Key>,
    ) -> Attempt<Option<Self>> {
        let open = || open(dir, port, Access::Lock);
        let lock = Self::lock_with(try_lock, dir, port, mark, open)?;
        lock.map(|lock| lock.unless_kept(key)).transpose()
    }

    /// Locks the file of `port` if there is one, without waiting, whatever its record says.
    pub(crate) fn try_existing(dir: &OpenDir, port: u16, access: Access) -> Attempt<Option<Self>> {
        let open = || open(dir, port, access);
        Self::lock_with(try_lock, dir, port, mark::current(), open)
    }

    /// Locks the file of `port` if there is one, for as long as another process or thread has locked
    /// it waiting for that. Nothing ends this wait but the end of that lock.
    #[allow(dead_code, reason = "Linux reports that a file was closed")]
    pub(crate) fn wait_for_existing(dir: &OpenDir, port: u16) -> Attempt<Option<Self>> {
        let open = || open(dir, port, Access::Write);
        Self::lock_with(wait_for_lock, dir, port, mark::current(), open)
    }

    fn lock_with(
        take: fn(&File) -> io::Result<bool>,
        dir: &OpenDir,
        port: u16,
        mark: Mark,
        open: impl Fn() -> Attempt<Option<File>>,
    ) -> Attempt<Option<Self>> {
        for _ in 0..MAX_TRIES {
            let Some(file) = open()? else {
                return Ok(None);
            };
            if !take(&file).map_err(|error| fail("lock", dir, port, error))? {
                return Err(Unavailable::Leased(port).into());
            }
            let mut lock = Self {
                claim: None,
                file,
                ended: false,
                port,
                dir: dir.clone(),
                mark,
                len: 0,
                is_reserved: false,
            };
            if lock.is_current()? {
                return Ok(Some(lock));
            }
        }
        let why = format!("it was replaced {MAX_TRIES} times while being locked");
        Err(fail("lock", dir, port, io::Error::other(why)).into())
    }

    /// Ends the lock again if the record keeps the port leased, as for a delegated lease.
    #[allow(dead_code, reason = "Linux reports that a file was closed")]
    pub(crate) fn unless_kept_by_its_record(self) -> Attempt<Self> {
        if owner::may_count(self.len) && is_kept(&self.dir, self.port, self.read()?.owner.as_ref())?
        {
            return Err(Unavailable::Leased(self.port).into());
        }
        Ok(self)
    }

    /// Ends the lock again if the port is not reserved by `key`, or without a key if it is reserved; or
    /// if the record keeps the port leased, as that of a delegated lease does.
    pub(crate) fn unless_kept(mut self, key: Option<&Key>) -> Attempt<Self> {
        // Too short for anything that counts, as nearly every file is.
        if !owner::may_count(self.len) {
            return match key {
                None => Ok(self),
                Some(_) => Err(Unavailable::Reserved(self.port).into()),
            };
        }
        let content = self.read()?;
        // What the key is restored to may be leased without it.
        if key.is_some() && is_kept(&self.dir, self.port, content.owner.as_ref())? {
            return Err(Unavailable::Leased(self.port).into());
        }
        let is_ours = match (key, &content.reservation) {
            (None, None) => true,
            (None, Some(reservation)) => !reservation.counts(),
            (Some(key), Some(reservation)) => reservation.is_of(key),
            (Some(_), None) => false,
        };
        if !is_ours {
            return Err(Unavailable::Reserved(self.port).into());
        }
        if key.is_none() && is_kept(&self.dir, self.port, content.owner.as_ref())? {
            return Err(Unavailable::Leased(self.port).into());
        }
        // One that no longer counts goes with the record that is written next.
        self.is_reserved = key.is_some();
        Ok(self)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Returns whether its file is in this directory.
    pub(crate) fn is_in(&self, dir: &OpenDir) -> bool {
        self.dir.is(dir)
    }

    /// Checks whether the file that was locked is still the one that others find at its path, and
    /// how long its record is.
    ///
    /// # Errors
    ///
    /// If the file must not be written to.
    fn is_current(&mut self) -> Result<bool> {
        match lock_file::status(self.dir.sys(), self.port, &self.file) {
            Ok(FileStatus::Current { record_len }) => {
                self.len = record_len;
                self.is_reserved = record_len > reservation::OFFSET;
                Ok(true)
            }
            Ok(FileStatus::Replaced) => Ok(false),
            Ok(FileStatus::Refused(why)) => Err(self.refuse(why)),
            Err(error) => Err(fail("stat", &self.dir, self.port, error)),
        }
    }

    #[cold]
    fn refuse(&self, why: &str) -> Error {
        let path = file_path(&self.dir, self.port);
        let message = format!("refusing lock file {}: {why}", path.display());
        Error::new(ErrorKind::Lock, message)
    }

    /// Reads the owner record, which may count without a lock, and the reservation. The
    /// port is unavailable while another program has opened the record exclusively.
    pub(crate) fn read(&self) -> Attempt<Content> {
        read(&self.dir, self.port, &self.file)
    }

    /// Writes the record of a held lease, or of none, into the file.
    ///
    /// In place and always of the same length. Only where a longer record was, the
    /// rest of it is cut off, unless a reservation is behind it. The port is unavailable while another
    /// program has opened the record exclusively.
    pub(crate) fn write_owner(&self, record: &Record<{ owner::LEN }>) -> Attempt<()> {
        let cuts = owner::may_count(self.len) && !self.is_reserved;
        self.write(record.bytes(), 0, cuts)
    }

    /// Does the same, but where a record that another program has open counts for nothing without
    /// the lock, that stays as it is: the record of a held lease only informs.
    pub(crate) fn inform(&self, record: &Record<{ owner::LEN }>) -> Attempt<()> {
        match self.write_owner(record) {
            Err(Failure::Unavailable(_)) if !owner::may_count(self.len) => Ok(()),
            written => written,
        }
    }

    /// Writes a record that counts without the lock: the longer file is what makes it one. The port
    /// is unavailable while another program has opened the record exclusively.
    pub(crate) fn write_long(&self, record: &Record<{ owner::LONG_LEN }>) -> Attempt<()> {
        let cuts = self.len > reservation::OFFSET && !self.is_reserved;
        self.write(record.bytes(), 0, cuts)
    }

    #[inline]
    fn write(&self, text: &[u8], offset: usize, cuts: bool) -> Attempt<()> {
        lock_file::write(self.dir.sys(), self.port, &self.file, text, offset, cuts).map_err(
            |failure| unless_in_use(failure, "write owner record to", &self.dir, self.port),
        )
    }

    /// Returns the error for a lease that needs its record, which was not read or written.
    pub(crate) fn needs_record(&self, failure: Failure) -> Error {
        match failure {
            Failure::Error(error) => error,
            Failure::Unavailable(_) => {
                let cause = io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    "another program has opened it exclusively",
                );
                fail("use owner record of", &self.dir, self.port, cause)
            }
        }
    }

    /// Reserves the port, whatever the record says.
    pub(crate) fn write_reservation(&self, line: &Line) -> Attempt<()> {
        let written = self.write(line.text().as_bytes(), reservation::OFFSET, true);
        if written.is_err() {
            // A partial line would reserve the port for no name.
            let _ = self.write(b"", reservation::OFFSET, true);
        }
        written
    }

    /// Removes the reservation, and keeps the record of a lease that continues.
    pub(crate) fn remove_reservation(&self, goes_on: bool) -> Attempt<()> {
        let len = if goes_on { owner::LONG_LEN } else { owner::LEN };
        self.write(b"", len, true)
    }

    /// Ends the lock.
    ///
    /// # Errors
    ///
    /// If the caller is a forked copy of the process that acquired it, the
    /// lock continues; or the system refuses to unlock.
    pub(crate) fn release(mut self) -> Result<()> {
        self.unlock()
    }

    /// # Errors
    ///
    /// If the caller is a forked copy of the process that acquired the lock.
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
    /// description, and a child that another thread is spawning has a
    /// duplicate of the descriptor until it calls exec, close-on-exec
    /// or not. LOCK_UN on any duplicate ends the lock for all of them
    /// (flock(2)). For the same reason a copy of this value in a forked child
    /// must only close it: unlocking there would end the parent's lease.
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
        // `release` is what reports a failure. The lock ends with the descriptor in any case.
        let _ = self.unlock();
    }
}

/// What the file of `port` says of its holder, if there is one and it says anything.
pub(crate) fn recorded_owner(dir: &OpenDir, port: u16) -> Result<Option<Owner>> {
    Ok(recorded(dir, port)?.owner)
}

/// What the file of `port` says, if there is one, without a lock.
pub(crate) fn recorded(dir: &OpenDir, port: u16) -> Result<Content> {
    let found = open(dir, port, Access::ReadRecord)
        .and_then(|file| file.map_or(Ok(Content::default()), |file| read(dir, port, &file)));
    match found {
        Ok(content) => Ok(content),
        Err(Failure::Unavailable(_)) => Ok(Content::default()),
        Err(Failure::Error(error)) => Err(error),
    }
}

/// Returns whether this record keeps the port leased even if no process has the lock.
pub(crate) fn is_kept(dir: &OpenDir, port: u16, owner: Option<&Owner>) -> Result<bool> {
    owner
        .map_or(Ok(false), Owner::keeps_the_port)
        .map_err(|error| fail("find the process that owns", dir, port, error))
}

/// Returns whether the process in the record is proven to have ended.
pub(crate) fn has_ended(dir: &OpenDir, port: u16, owner: &Owner) -> Result<bool> {
    let evidence = owner
        .process
        .evidence()
        .map_err(|error| fail("find the process that owns", dir, port, error))?;
    Ok(evidence == Evidence::Gone)
}

fn read(dir: &OpenDir, port: u16, file: &File) -> Attempt<Content> {
    let mut text = [0; reservation::MAX_FILE_LEN];
    let len = lock_file::read(dir.sys(), port, file, &mut text)
        .map_err(|failure| unless_in_use(failure, "read owner record of", dir, port))?;
    let text = &text[..len];
    Ok(Content {
        owner: Owner::parse(&text[..len.min(owner::LONG_LEN)]),
        reservation: Found::parse(text),
    })
}

/// A port whose record is in use may be leased, or is unavailable.
fn unless_in_use(failure: RecordFailure, operation: &str, dir: &OpenDir, port: u16) -> Failure {
    match failure {
        Failure::Unavailable(RecordInUse) => Unavailable::Leased(port).into(),
        Failure::Error(error) => fail(operation, dir, port, error).into(),
    }
}

/// Opens the file of `port`, and creates it if it is missing.
fn open_or_create(dir: &OpenDir, port: u16) -> Attempt<File> {
    for _ in 0..MAX_TRIES {
        if let Some(file) = open(dir, port, Access::Write)? {
            return Ok(file);
        }
        let error = match lock_file::create(dir.sys(), port, std::process::id()) {
            Ok(file) => return Ok(file),
            Err(error) => error,
        };
        match error.kind() {
            // Another process was faster.
            io::ErrorKind::AlreadyExists => {}
            // Nothing else in its path can be missing.
            io::ErrorKind::NotFound if dir.is_removed() => return Err(dir.removed().into()),
            // ENOENT is also the error in /proc and /sys, where no process can create a file.
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
                let error = fail("create", dir, port, error);
                return Err(error.with_hint(USE_VARIABLE).into());
            }
            _ => return Err(fail("create", dir, port, error).into()),
        }
    }
    let why = format!("it was created and removed {MAX_TRIES} times");
    Err(fail("open", dir, port, io::Error::other(why)).into())
}

/// Opens the file of `port` if it exists.
fn open(dir: &OpenDir, port: u16, access: Access) -> Attempt<Option<File>> {
    lock_file::open(dir.sys(), port, access)
        .map_err(|failure| failure.map_error(|error| fail("open", dir, port, error)))
}

/// Takes the exclusive lock, or returns `false` if someone else has it.
#[expect(clippy::disallowed_methods, reason = "this is the module that may")]
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    let mut interrupted = 0;
    loop {
        // The full path is needed: std's method of the same name would take precedence.
        match fs4::FileExt::try_lock(file) {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error))
                if error.kind() == io::ErrorKind::Interrupted && interrupted < MAX_TRIES =>
            {
                interrupted += 1;
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// Takes the exclusive lock as soon as it is free, and returns `true`.
#[expect(clippy::disallowed_methods, reason = "this is the module that may")]
fn wait_for_lock(file: &File) -> io::Result<bool> {
    retry(|| fs4::FileExt::lock(file)).map(|()| true)
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
    Error::with_cause(ErrorKind::Lock, message, cause).at(path)
}
