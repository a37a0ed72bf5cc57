//! The contents of a lock directory: which ports are leased and by which process, and which files
//! are stale.

use std::{
    collections::HashMap,
    fmt, fs, io, thread,
    time::{Duration, SystemTime},
};

use crate::{
    bindfree::Endpoints,
    copies::Copies,
    error::{Error, ErrorKind, Result},
    lock::{self, Access, Content, PortLock, lock_file},
    lock_dir::{LockDir, OpenDir},
    mark,
    owner::{self, Kind, Owner},
    process, registry,
    reservation::{self, Found, Reservation, ReservationState},
    search::{ByReason, Explained},
    server::Process,
    sockets,
    unavailable::{Attempt, Failure},
    waiting,
};

#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod unsupported;

#[cfg(target_os = "linux")]
use linux::ListedLocks;
#[cfg(not(target_os = "linux"))]
use unsupported::ListedLocks;

/// The lock file of a port in a lock directory, and what it says about the port: that it is
/// leased, or was.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PortEntry {
    /// The port.
    pub port: u16,
    /// Whether it is leased.
    pub state: EntryState,
    /// The process that holds the lease, or held it last. For a held lease, this is what the holder
    /// wrote about itself. `None` if the file does not say, or this user may not read it.
    pub owner: Option<Owner>,
    /// For an [inherited](EntryState::Inherited) lease, the process that holds it now. `None` if
    /// that cannot be seen.
    pub heir: Option<Heir>,
    /// The reservation of the port, leased or not.
    pub reservation: Option<Reservation>,
}

/// A process that inherited a lease from one that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Heir {
    /// Its pid, in the caller's pid namespace.
    pub pid: u32,
    /// The file name of its program.
    pub program: String,
}

/// The state of a port: whether it is leased, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EntryState {
    /// It is leased: the lock is held.
    Held,
    /// It is leased: the lock is held, although the process in the record has ended. Another
    /// process, such as a child, has inherited the descriptor of the lock. The lease ends with
    /// that process.
    Inherited,
    /// It is leased by the record alone, to a process that is not proven to have ended.
    Delegated,
    /// It is not leased. The file is left over from an earlier lease, and is harmless.
    Stale,
    /// The state cannot be determined: this user may not open the file, and the system does not
    /// list held locks. This user cannot lease the port.
    Unknown,
}

/// The process that took a lock that is held, or was a moment ago.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "only Linux lists locks")]
pub(crate) enum Taker {
    /// The process in the record.
    Recorded,
    Another,
    /// No process, although the kernel lists the locks of the process in the record.
    Unlisted,
    /// The kernel does not show the process.
    Unknown,
}

/// The process that has a held lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    /// The process in the record.
    Recorded,
    /// A process that inherited the lock. The process in the record has ended.
    Heir,
    /// An unknown process. The process in the record has ended.
    Unknown,
}

/// Result of [`LockDir::clean`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CleanCounts {
    /// Number of files that were removed.
    pub removed: usize,
    /// Number of files that are in use, or that this user may not remove.
    pub kept: usize,
}

/// Minimum age at which a stray file, left by a process that was killed while it created a lock
/// file, is removed. Creating one takes microseconds.
const STRAY_MIN_AGE: Duration = Duration::from_secs(3600);

/// Largest number of retries to release a delegated lease whose file a checking caller has locked,
/// and the pause before each.
const MAX_RELEASE_RETRIES: u32 = 200;
const RELEASE_RETRY_INTERVAL: Duration = Duration::from_millis(1);

/// Largest number of retries to lock a file that is listed, and the pause before each.
const MAX_LIST_RETRIES: u32 = 5;
const LIST_RETRY_INTERVAL: Duration = Duration::from_millis(1);

impl LockDir {
    /// Returns every lock file in the directory, by port.
    ///
    /// # Platform-specific behavior
    ///
    /// On Linux, listing takes no lock, so it keeps no caller from leasing meanwhile: the kernel
    /// lists the locks that are held (proc_locks(5), proc_pid_fdinfo(5)). It does not list the
    /// locks of other pid namespaces, so a file whose last holder is in one is locked for a
    /// moment. Other systems list no locks, so each file is locked: for that moment the port
    /// counts as leased. A file that this user may not open is then
    /// [`Unknown`](EntryState::Unknown).
    ///
    /// # Errors
    ///
    /// [`LockDir`](ErrorKind::LockDir) if the directory cannot be read; [`Lock`](ErrorKind::Lock)
    /// if a lock file cannot be read.
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::LockDir;
    ///
    /// for entry in LockDir::locate()?.entries()? {
    ///     if entry.is_leased() {
    ///         println!("{}: {:?}", entry.port, entry.owner);
    ///     }
    /// }
    /// # Ok::<(), portlock::Error>(())
    /// ```
    pub fn entries(&self) -> Result<Vec<PortEntry>> {
        let Some(dir) = self.opened() else {
            return Ok(Vec::new());
        };
        let mut listed = ListedLocks::new();
        let entry = |port| dir.entry_by(port, &mut listed);
        dir.ports()?.into_iter().map(entry).collect()
    }

    /// Returns the lock file of one port, if it exists, as [`entries`](Self::entries) returns it.
    ///
    /// # Errors
    ///
    /// As for [`entries`](Self::entries).
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::{EntryState, FreePort, LockDir};
    ///
    /// let port = FreePort::builder().label("api under test").acquire()?;
    /// let entry = LockDir::locate()?.entry(port.port())?.expect("its lock file");
    /// assert_eq!(entry.state, EntryState::Held);
    /// let owner = entry.owner.expect("we wrote it");
    /// assert_eq!(owner.pid(), std::process::id());
    /// assert_eq!(owner.label(), Some("api under test"));
    /// # Ok::<(), portlock::Error>(())
    /// ```
    pub fn entry(&self, port: u16) -> Result<Option<PortEntry>> {
        let Some(dir) = self.opened() else {
            return Ok(None);
        };
        let metadata = lock_file::metadata(dir.path(), port);
        let is_there = match metadata {
            Ok(metadata) => lock_file::is_lock_file(&metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(dir.cannot_read(error)),
        };
        let entry = || dir.entry_by(port, &mut ListedLocks::new());
        is_there.then(entry).transpose()
    }
}

impl OpenDir {
    fn entry_by(&self, port: u16, listed: &mut ListedLocks) -> Result<PortEntry> {
        let (content, is_kept) = match lock::recorded(self, port) {
            // Another user made it unreadable for others. The kernel's list shows whether it is
            // locked; its length shows whether it may be delegated.
            Err(error) if error.is_denied() => {
                let len = match lock_file::metadata(self.path(), port) {
                    Ok(metadata) => usize::try_from(metadata.len()).unwrap_or_default(),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
                    Err(error) => return Err(self.cannot_read(error)),
                };
                (Content::default(), owner::may_count(len))
            }
            content => {
                let content = content?;
                let is_kept = lock::is_kept(self, port, content.owner.as_ref())?;
                (content, is_kept)
            }
        };
        let Content { owner, reservation } = content;
        let reservation = reservation.map(|found| found.reservation(port));
        let has_passed = |owner: &Owner| owner.kind == Kind::Passed;
        let is_locked = if is_kept && !owner.as_ref().is_some_and(has_passed) {
            false
        } else {
            match listed.has(self, port, owner.as_ref()) {
                Some(held) => held,
                None => match self.lock_to_list(port, owner.as_ref()) {
                    Ok(_) => false,
                    Err(Failure::Unavailable(_)) => true,
                    Err(Failure::Error(error)) if error.is_denied() => {
                        return Ok(PortEntry {
                            port,
                            state: EntryState::Unknown,
                            owner,
                            heir: None,
                            reservation,
                        });
                    }
                    Err(Failure::Error(error)) => return Err(error),
                },
            }
        };
        let holder = match &owner {
            Some(owner) if is_locked => self.locked_by(port, owner, listed)?,
            _ => Holder::Recorded,
        };
        let owner = owner.filter(|_| holder != Holder::Unknown);
        let inherited = holder == Holder::Heir;
        let state = match (is_locked, is_kept) {
            (true, _) if inherited => EntryState::Inherited,
            (true, _) => EntryState::Held,
            (false, true) => EntryState::Delegated,
            (false, false) => EntryState::Stale,
        };
        let heir = owner
            .as_ref()
            .filter(|_| inherited)
            .and_then(|owner| listed.heir(self, port, &owner.process));
        Ok(PortEntry {
            port,
            state,
            owner,
            heir,
            reservation,
        })
    }

    /// Locks the file of `port`, which has this record. Retries while it is locked, unless the
    /// process in the record is alive: another caller may be listing it too, or the lock of a
    /// process that has ended may be about to end.
    fn lock_to_list(&self, port: u16, owner: Option<&Owner>) -> Attempt<Option<PortLock>> {
        for _ in 0..MAX_LIST_RETRIES {
            match PortLock::try_existing(self, port, Access::Lock) {
                Err(Failure::Unavailable(_)) => {}
                outcome => return outcome,
            }
            if let Some(owner) = owner
                && !lock::has_ended(self, port, owner)?
            {
                break;
            }
            thread::sleep(LIST_RETRY_INTERVAL);
        }
        PortLock::try_existing(self, port, Access::Lock)
    }

    /// Returns which process holds the port, which is locked and has this record.
    fn locked_by(&self, port: u16, owner: &Owner, listed: &mut ListedLocks) -> Result<Holder> {
        if !lock::has_ended(self, port, owner)? {
            return Ok(Holder::Recorded);
        }
        Ok(match listed.taker(self, port, &owner.process) {
            // A caller that checks the port, or has not written its record yet.
            Taker::Another => Holder::Unknown,
            // A checking caller, or none: the lock may outlive its process for a while.
            _ if !lock_file::IS_INHERITED => Holder::Unknown,
            _ => Holder::Heir,
        })
    }

    /// Returns the holder of a port that was found to be leased, for a message.
    pub(crate) fn holder(&self, port: u16, listed: &mut ListedLocks) -> Option<String> {
        let owner = lock::recorded_owner(self, port).ok()??;
        let holder = match owner.kind {
            // It has no lock. If its process has ended, another caller has the port.
            Kind::Delegated if lock::has_ended(self, port, &owner).ok()? => Holder::Unknown,
            Kind::Delegated => Holder::Recorded,
            _ => self.locked_by(port, &owner, listed).ok()?,
        };
        match holder {
            Holder::Recorded => Some(owner.to_string()),
            Holder::Heir => {
                let heir = listed.heir(self, port, &owner.process);
                Some(inherited_from(&owner, heir.as_ref()))
            }
            Holder::Unknown => None,
        }
    }
}

/// Returns text such as `pid 900 "sleep", which inherited it from pid 812 "sh" (api)`.
fn inherited_from(owner: &Owner, heir: Option<&Heir>) -> String {
    match heir {
        Some(heir) => format!("{heir}, which inherited it from {owner}"),
        None => format!("a process that inherited it from {owner}"),
    }
}

impl fmt::Display for Heir {
    /// Writes text such as `pid 900 "sleep"`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {}", self.pid)?;
        if !self.program.is_empty() {
            write!(f, " \"{}\"", self.program.escape_debug())?;
        }
        Ok(())
    }
}

impl PortEntry {
    /// Returns whether the port is known to be leased: whether the entry is neither
    /// [stale](EntryState::Stale) nor [unknown](EntryState::Unknown).
    #[must_use]
    pub fn is_leased(&self) -> bool {
        !matches!(self.state, EntryState::Stale | EntryState::Unknown)
    }

    /// Returns the process that holds the lease, with the program that it runs now. The record
    /// names the program at the time of leasing; the process may have called exec since, as in
    /// `portlock run`. `None` if the port is not leased or the process cannot be seen.
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::{FreePort, LockDir};
    ///
    /// let port = FreePort::new(4000..=6000)?;
    /// let entry = LockDir::locate()?.entry(port.port())?.expect("its lock file");
    /// let process = entry.process().expect("this one");
    /// assert_eq!(process.pid, std::process::id());
    /// # Ok::<(), portlock::Error>(())
    /// ```
    #[must_use]
    pub fn process(&self) -> Option<Process> {
        let pid = match (self.state, &self.owner) {
            (EntryState::Held | EntryState::Delegated, Some(owner)) => {
                owner.process.pid_here().ok()??
            }
            (EntryState::Inherited, _) => self.heir.as_ref()?.pid,
            _ => return None,
        };
        Some(process::describe(pid))
    }

    /// Returns a description of the holder, or of the last one, such as
    /// `pid 812 "orders-test" (api tests)`, or `None` if it is not known. The text contains no
    /// control characters, so it is safe to print on a terminal.
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::{FreePort, LockDir};
    ///
    /// let port = FreePort::new(4000..=6000)?;
    /// let entry = LockDir::locate()?.entry(port.port())?.expect("its lock file");
    /// println!("{port} is leased by {}", entry.holder().expect("we wrote it"));
    /// # Ok::<(), portlock::Error>(())
    /// ```
    #[must_use]
    pub fn holder(&self) -> Option<String> {
        let owner = self.owner.as_ref()?;
        Some(match self.state {
            EntryState::Inherited => inherited_from(owner, self.heir.as_ref()),
            _ => owner.to_string(),
        })
    }
}

/// Returns what is known of some ports that could not be leased: which processes hold them, and
/// for which names they are reserved. The processes that have bound ports are determined only for
/// the given `endpoints`, because that takes some milliseconds.
pub(crate) fn explain(
    dir: Option<&OpenDir>,
    ports: ByReason<u16>,
    endpoints: Option<&Endpoints>,
) -> ByReason<Explained> {
    let mut listed = ListedLocks::new();
    let mut holder = |port| dir?.holder(port, &mut listed);
    let mut leased = |port| (port, holder(port).map(|holder| format!("by {holder}")));
    let reserved = |port| (port, dir.and_then(|dir| dir.reserved_for(port)));
    let servers = endpoints.map(|endpoints| sockets::servers(&ports.bound, endpoints));
    let bound = |(port, process)| (port, Some(format!("by {process}")));
    ByReason {
        leased: ports.leased.into_iter().map(&mut leased).collect(),
        reserved: ports.reserved.into_iter().map(reserved).collect(),
        bound: servers.into_iter().flatten().map(bound).collect(),
    }
}

/// Largest number of leased ports for which to check whether they are really leased. If there are
/// more, each is locked by checks for a negligible part of the time, and finding out would take
/// several times as long as the search.
const MAX_DOUBTED_PORTS: usize = 32;

/// Why a port that could not be leased may in fact be free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Doubt {
    /// A caller may have locked it only for a moment to check it, as `list` and `clean` do.
    Momentary,
    /// The process in the record has ended, and its lock may be about to end.
    Ending,
}

/// Returns why any of these ports, none of which could be leased, may in fact be free. Of several
/// reasons, returns the one that can last longest.
///
/// # Errors
///
/// If the system fails to report it.
pub(crate) fn doubt(dir: Option<&OpenDir>, ports: &[u16]) -> Result<Option<Doubt>> {
    let Some(dir) = dir.filter(|_| ports.len() <= MAX_DOUBTED_PORTS) else {
        return Ok(None);
    };
    let mark = mark::current();
    let mut greatest = None;
    let mut listed = ListedLocks::new();
    // Many ports have the same few owners.
    let mut ended = HashMap::new();
    for &port in ports {
        let owner = match lock::recorded_owner(dir, port) {
            Err(error) if error.is_denied() => continue,
            owner => owner?,
        };
        let momentary = |is_in_doubt: bool| is_in_doubt.then_some(Doubt::Momentary);
        let doubt = match owner {
            None => Some(Doubt::Momentary),
            Some(owner) if owner.kind == Kind::Delegated => {
                momentary(!lock::is_kept(dir, port, Some(&owner))?)
            }
            Some(owner) if owner.process == process::this_as(mark).0 => {
                momentary(!registry::is_claimed(port, mark))
            }
            Some(owner) => match listed.taker(dir, port, &owner.process) {
                Taker::Recorded => None,
                Taker::Another | Taker::Unlisted => Some(Doubt::Momentary),
                Taker::Unknown => {
                    let has_ended = match ended.get(&owner.process) {
                        Some(has_ended) => *has_ended,
                        None => {
                            let has_ended = lock::has_ended(dir, port, &owner)?;
                            ended.insert(owner.process, has_ended);
                            has_ended
                        }
                    };
                    if has_ended {
                        Some(Doubt::Ending)
                    } else {
                        ListedLocks::DOUBT_OF_UNKNOWN_TAKER
                    }
                }
            },
        };
        greatest = greatest.max(doubt);
    }
    Ok(greatest)
}

impl LockDir {
    /// Ends the delegated lease of `port` if its process runs as this user or is proven to have
    /// ended.
    ///
    /// # Errors
    ///
    /// [`Lock`](ErrorKind::Lock) if the port is not leased by delegation, if that process belongs
    /// to another user or cannot be seen from here, or if the lock file cannot be written.
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::{FreePort, LockDir};
    ///
    /// let number = FreePort::builder().acquire_for(std::process::id())?;
    /// LockDir::locate()?.release(number)?;
    /// # Ok::<(), portlock::Error>(())
    /// ```
    pub fn release(&self, port: u16) -> Result<()> {
        self.end_delegated(port, false)
    }

    /// Ends the delegated lease of `port`, even if its process belongs to another user or cannot
    /// be seen from here.
    ///
    /// # Errors
    ///
    /// [`Lock`](ErrorKind::Lock) if the port is not leased by delegation, or if the lock file cannot
    /// be written.
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::{FreePort, LockDir};
    ///
    /// let number = FreePort::builder().acquire_for(std::process::id())?;
    /// LockDir::locate()?.force_release(number)?;
    /// # Ok::<(), portlock::Error>(())
    /// ```
    pub fn force_release(&self, port: u16) -> Result<()> {
        self.end_delegated(port, true)
    }

    fn end_delegated(&self, port: u16, force: bool) -> Result<()> {
        let what = || {
            let path = self.path().join(port.to_string());
            format!("cannot release port {port} ({})", path.display())
        };
        let refuse = |why: String| Err(Error::new(ErrorKind::Lock, what() + ": " + &why));
        let Some(dir) = self.opened() else {
            return refuse("it is not leased".into());
        };
        let mut retries = 0;
        let lock = loop {
            match PortLock::try_existing(dir, port, Access::Write) {
                Ok(Some(lock)) => break lock,
                Ok(None) => return refuse("it is not leased".into()),
                Err(Failure::Unavailable(_)) => {}
                Err(Failure::Error(error)) => return Err(error),
            }
            let owner = lock::recorded_owner(dir, port)?;
            let is_delegated = |owner: &Owner| owner.kind == Kind::Delegated;
            // A caller that wants the port locks the file for a moment to check it.
            if owner.as_ref().is_some_and(is_delegated) && retries < MAX_RELEASE_RETRIES {
                retries += 1;
                thread::sleep(RELEASE_RETRY_INTERVAL);
                continue;
            }
            return refuse(match dir.holder(port, &mut ListedLocks::new()) {
                Some(holder) => format!("it is held by {holder}, and ends with that process"),
                None => "it is held, and ends with the process that holds it".into(),
            });
        };
        let counts = |owner: &Owner| owner.kind != Kind::Held;
        let content = lock.read();
        let content = content.map_err(|failure| lock.needs_record(failure))?;
        let Some(owner) = content.owner.filter(counts) else {
            return refuse("it is not leased".into());
        };
        if owner.kind == Kind::Passed && !lock::is_kept(dir, port, Some(&owner))? {
            return refuse("it is not leased".into());
        }
        let is_ours = || owner.process.is_gone_or_of_this_user();
        let is_permitted = force
            || is_ours().map_err(|error| Error::with_cause(ErrorKind::Lock, what(), error))?;
        if !is_permitted {
            return refuse(format!(
                "it is delegated to {owner}, which is not this user's or cannot be seen from here"
            ));
        }
        lock.write_owner(&owner::nobody())
            .map_err(|failure| lock.needs_record(failure))
    }

    /// Removes the lock files of ports that are neither leased nor reserved, and the files that
    /// waiters left behind. A reservation counts until its root directory is proven to be gone.
    ///
    /// Cleaning is optional: these files are harmless. Each is removed with its lock held, so a
    /// caller that is about to lock it notices and creates a new one. For that moment the port
    /// counts as leased.
    ///
    /// # Errors
    ///
    /// [`LockDir`](ErrorKind::LockDir) if the directory cannot be read; [`Lock`](ErrorKind::Lock)
    /// if a lock file cannot be locked or removed for a reason other than that it is in use or
    /// belongs to another user.
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::{FreePort, LockDir};
    ///
    /// let path = tempfile::tempdir()?;
    /// FreePort::builder().lock_dir(path.path()).acquire()?.release()?;
    /// let cleaned = LockDir::open(path.path())?.clean()?;
    /// assert_eq!((cleaned.removed, cleaned.kept), (1, 0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn clean(&self) -> Result<CleanCounts> {
        let mut cleaned = CleanCounts::default();
        let Some(dir) = self.opened() else {
            return Ok(cleaned);
        };
        for port in dir.ports()? {
            let lock = match PortLock::try_existing(dir, port, Access::Lock) {
                Ok(Some(lock)) => lock,
                Ok(None) | Err(Failure::Unavailable(_)) => {
                    cleaned.kept += 1;
                    continue;
                }
                // Another user made it unreadable for others.
                Err(Failure::Error(error)) if error.is_denied() => {
                    cleaned.kept += 1;
                    continue;
                }
                Err(Failure::Error(error)) => return Err(error),
            };
            // A held lease whose lock is free has ended. Other leases, and reservations, are
            // removed only if they are proven to have ended.
            let content = match lock.read() {
                Ok(content) => content,
                // Another program has it open.
                Err(Failure::Unavailable(_)) => {
                    cleaned.kept += 1;
                    continue;
                }
                Err(Failure::Error(error)) => return Err(error),
            };
            let owner = content.owner.filter(|owner| owner.kind != Kind::Held);
            let is_kept = match owner {
                Some(owner) => !lock::has_ended(dir, port, &owner)?,
                None => false,
            };
            if is_kept || content.reservation.as_ref().is_some_and(Found::counts) {
                cleaned.kept += 1;
                continue;
            }
            if let Some(Found::Line(line)) = content.reservation
                && let Some(copies) = Copies::of(dir.path())
            {
                match copies.remove(&line.key()) {
                    // The reservation of a root that is gone is never restored.
                    Err(error) if error.is_denied() => {}
                    removed => removed?,
                }
            }
            let removed = lock_file::remove(dir.sys(), port, lock);
            dir.count_removal(removed, &mut cleaned, &port.to_string())?;
        }
        for (name, metadata) in dir.files()? {
            if let Some(removed) = waiting::remove_wait_queue(dir, &name) {
                dir.count_removal(removed, &mut cleaned, &name)?;
            }
            let age = metadata
                .modified()
                .map(|time| SystemTime::now().duration_since(time));
            let is_old = matches!(age, Ok(Ok(age)) if age > STRAY_MIN_AGE);
            if lock_file::is_stray(&name, &metadata) && is_old {
                dir.count_removal(dir.sys().remove(&name), &mut cleaned, &name)?;
            }
        }
        Ok(cleaned)
    }
}

impl OpenDir {
    fn count_removal(
        &self,
        removed: io::Result<()>,
        cleaned: &mut CleanCounts,
        name: &str,
    ) -> Result<()> {
        match removed {
            Ok(()) => cleaned.removed += 1,
            // Another cleaning caller was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // In a sticky directory only its owner may remove a file (unlink(2)).
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                cleaned.kept += 1;
            }
            Err(error) => {
                let path = self.path().join(name);
                let message = format!("cannot remove lock file {}", path.display());
                return Err(Error::with_cause(ErrorKind::Lock, message, error));
            }
        }
        Ok(())
    }

    /// Returns the name for which a port was found to be reserved, for a message.
    fn reserved_for(&self, port: u16) -> Option<String> {
        let found = lock::recorded(self, port).ok()?.reservation?;
        let reservation = found.reservation(port);
        Some(match reservation.state {
            ReservationState::Unreadable => "for an unknown name".to_owned(),
            _ => reservation.to_string(),
        })
    }

    /// Returns the ports that have a lock file, in ascending order. Any other file type in the
    /// directory is no lock file, even under a port's name.
    fn ports(&self) -> Result<Vec<u16>> {
        self.ports_with(|_| true)
    }

    /// Returns the ports whose lock files are long enough to contain a reservation.
    pub(crate) fn ports_with_reservations(&self) -> Result<Vec<u16>> {
        self.ports_with(|metadata| metadata.len() > reservation::OFFSET as u64)
    }

    fn ports_with(&self, wants: impl Fn(&fs::Metadata) -> bool) -> Result<Vec<u16>> {
        let port = |(name, metadata): (String, fs::Metadata)| {
            let port = lock_file::port_of(&name)?;
            (lock_file::is_lock_file(&metadata) && wants(&metadata)).then_some(port)
        };
        let mut ports: Vec<u16> = self.files()?.into_iter().filter_map(port).collect();
        ports.sort_unstable();
        // A port can have several files.
        ports.dedup();
        Ok(ports)
    }

    /// Returns the names and metadata of the files in the directory, except those that have been removed
    /// in the meantime.
    fn files(&self) -> Result<Vec<(String, fs::Metadata)>> {
        let entries = fs::read_dir(self.path()).map_err(|error| self.cannot_read(error))?;
        let mut found = Vec::new();
        for entry in entries {
            let metadata = entry.and_then(|entry| Ok((entry.file_name(), entry.metadata()?)));
            match metadata {
                Ok((name, metadata)) => {
                    found.extend(name.into_string().ok().map(|name| (name, metadata)));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(self.cannot_read(error)),
            }
        }
        Ok(found)
    }

    fn cannot_read(&self, cause: io::Error) -> Error {
        let message = format!("cannot read lock directory {}", self.path().display());
        Error::with_cause(ErrorKind::LockDir, message, cause).at(self.path())
    }
}
