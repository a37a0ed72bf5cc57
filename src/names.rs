//! The reservations in a lock directory: lookup, removal, and restoring them from their copies.
//!
//! A name has one port, and a port has one name. The latter is ensured by the lock of the port's
//! file, under which its line is written. For the former, a line is written or removed only under
//! a second lock for all names of the directory: the lock of the file `0`, which is not a port.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::{
    copies::{self, Copies, Copy},
    error::{Error, ErrorKind, Result},
    jitter::random,
    leases,
    lock::{self, Access, PortLock},
    lock_dir::{LockDir, OpenDir},
    logging::warn,
    mark,
    reservation::{Found, Key, Line, Reservation, absolute_root, variable},
    search::ByReason,
    unavailable::{Attempt, Failure},
};

/// The number of the file whose lock is for all names.
const ALL: u16 = 0;

/// Maximum wait for that lock. It is held for some milliseconds.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// The pause before each retry of a lock that is held only for a moment.
const RETRY_INTERVAL: Duration = Duration::from_millis(2);

/// Largest number of retries to lock a port's file, which another caller may only check.
const MAX_RETRIES: u32 = 20;

/// The lock for all names of a directory.
pub(crate) struct Names<'a> {
    dir: &'a OpenDir,
    copies: Option<Copies>,
    /// The lines in the lock files, by port.
    found: Vec<(u16, Found)>,
    _lock: PortLock,
}

/// A reservation that the current call has made. Until all are made, their ports stay locked.
#[derive(Debug)]
pub(crate) struct New {
    pub(crate) line: Line,
    pub(crate) lock: PortLock,
    pub(crate) has_copy: bool,
}

/// The port of a name that is reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    Reserved(u16),
    /// The lock directory was lost and another caller has leased the port since, so the
    /// reservation cannot be restored as long as that lease lasts.
    Leased(u16),
}

impl<'a> Names<'a> {
    pub(crate) fn lock(dir: &'a OpenDir) -> Result<Self> {
        let lock = lock_all(dir)?;
        Ok(Self {
            dir,
            copies: Copies::of(dir.path()),
            found: scan(dir)?,
            _lock: lock,
        })
    }

    /// Returns the port of `key` if it is reserved, and restores what is missing: its line, or its copy.
    pub(crate) fn find(&self, key: &Key) -> Result<Option<Known>> {
        let is_it = |(_, found): &&(u16, Found)| found.is_of(key) && found.counts();
        if let Some((port, Found::Line(line))) = self.found.iter().find(is_it) {
            self.copy(*port, line)?;
            return Ok(Some(Known::Reserved(*port)));
        }
        let copy = match &self.copies {
            Some(copies) => copies.get(key)?,
            None => None,
        };
        match copy {
            Some(copy) if copy.line.counts() => self.restore(&copy),
            _ => Ok(None),
        }
    }

    /// Writes the line of a copy, unless the port is reserved for another name.
    fn restore(&self, copy: &Copy) -> Result<Option<Known>> {
        let port = copy.port;
        if self.found.iter().any(|(reserved, _)| *reserved == port) {
            return Ok(None);
        }
        let lock = match lock_port(|| PortLock::try_any(self.dir, port, mark::current())) {
            Ok(lock) => lock,
            Err(Failure::Unavailable(_)) => return Ok(Some(Known::Leased(port))),
            Err(Failure::Error(error)) => return Err(error),
        };
        let needs = |failure| lock.needs_record(failure);
        let owner = lock.read().map_err(needs)?.owner;
        if lock::is_kept(self.dir, port, owner.as_ref())? {
            return Ok(Some(Known::Leased(port)));
        }
        lock.write_reservation(&copy.line).map_err(needs)?;
        Ok(Some(Known::Reserved(port)))
    }

    /// Takes note of a line that has been written.
    pub(crate) fn add(&mut self, port: u16, line: Line) {
        self.found.push((port, Found::Line(line)));
    }

    /// Writes copies of new reservations, and warns if that is not permitted.
    pub(crate) fn copy_new(&self, new: &mut [New]) -> Result<()> {
        let (mut missing, mut reason) = (0, None);
        for new in new {
            match self.copy(new.lock.port(), &new.line)? {
                None => new.has_copy = true,
                Some(why) => (missing, reason) = (missing + 1, Some(why)),
            }
        }
        if let Some(why) = reason {
            warn!(
                "{} no copy, and would be lost with the lock directory {}: {why}",
                match missing {
                    1 => "a new reservation has".to_owned(),
                    _ => format!("{missing} new reservations have"),
                },
                self.dir.path().display()
            );
        }
        Ok(())
    }

    /// Removes new reservations and their copies after an error. Further errors are ignored,
    /// because the first one is reported.
    pub(crate) fn remove_new(&self, new: &[New]) {
        for New {
            line,
            lock,
            has_copy,
        } in new
        {
            if let Some(copies) = self.copies.as_ref().filter(|_| *has_copy) {
                let _ = copies.remove(&line.key());
            }
            let _ = lock.remove_reservation(false);
        }
    }

    /// Writes a copy of the reservation of `port`. Returns why there is none if that is not
    /// permitted.
    fn copy(&self, port: u16, line: &Line) -> Result<Option<String>> {
        let Some(copies) = &self.copies else {
            return Ok(Some("this user has no home directory".to_owned()));
        };
        let copy = Copy {
            port,
            line: line.clone(),
        };
        if copies.get(&line.key())?.as_ref() == Some(&copy) {
            return Ok(None);
        }
        copies.put(&copy, self.dir.origin().is_default())
    }

    /// Restores all copies, unless that has been done.
    fn restore_all(&self) -> Result<()> {
        let Some(copies) = &self.copies else {
            return Ok(());
        };
        if copies::is_marked(self.dir.path())? {
            return Ok(());
        }
        for copy in copies.all()? {
            let key = copy.line.key();
            let is_known = self.found.iter().any(|(_, found)| found.is_of(&key));
            if !is_known && copy.line.counts() {
                self.restore(&copy)?;
            }
        }
        copies::set_mark(self.dir.path())
    }

    /// # Errors
    ///
    /// If another name of the same root has the same variable.
    pub(crate) fn must_not_share_variable(&self, key: &Key) -> Result<()> {
        let shares = |(_, found): &(u16, Found)| match found {
            Found::Line(line) if line.shares_variable_with(key) && line.counts() => {
                Some(line.name().to_owned())
            }
            _ => None,
        };
        match self.found.iter().find_map(shares) {
            None => Ok(()),
            Some(other) => {
                let message = format!(
                    "cannot reserve a port {key}: the name {other}, which is reserved there, has the same \
                     variable {}",
                    variable(&key.name)
                );
                Err(Error::new(ErrorKind::InvalidName, message))
            }
        }
    }
}

/// Restores the copies of this user's reservations into the directory, unless that has been done.
#[inline]
pub(crate) fn restore_once(dir: &OpenDir) -> Result<()> {
    if dir.is_restored() {
        return Ok(());
    }
    restore(dir)
}

#[cold]
fn restore(dir: &OpenDir) -> Result<()> {
    if let Some(copies) = Copies::of(dir.path())
        && !copies::is_marked(dir.path())?
        && !copies.all()?.is_empty()
    {
        Names::lock(dir)?.restore_all()?;
    }
    dir.set_restored();
    Ok(())
}

/// Returns the port of `key` if it is reserved and nothing is missing: neither its line nor its copy.
pub(crate) fn find(dir: &OpenDir, key: &Key) -> Result<Option<u16>> {
    let is_it = |found: &Found| found.is_of(key) && found.counts();
    let Some(copies) = Copies::of(dir.path()) else {
        let found = scan(dir)?.into_iter().find(|(_, found)| is_it(found));
        return Ok(found.map(|(port, _)| port));
    };
    let Some(copy) = copies.get(key)? else {
        return Ok(None);
    };
    let found = lock::recorded(dir, copy.port)?.reservation;
    Ok(found
        .is_some_and(|found| is_it(&found))
        .then_some(copy.port))
}

/// Returns the reservations in the lock files, by port.
fn scan(dir: &OpenDir) -> Result<Vec<(u16, Found)>> {
    let mut all = Vec::new();
    for port in dir.ports_with_reservations()? {
        match lock::recorded(dir, port) {
            // Another user made it unreadable for others. It may be reserved.
            Err(error) if error.is_denied() => all.push((port, Found::Unreadable)),
            content => all.extend(content?.reservation.map(|found| (port, found))),
        }
    }
    Ok(all)
}

fn lock_all(dir: &OpenDir) -> Result<PortLock> {
    let start = Instant::now();
    loop {
        match PortLock::try_any(dir, ALL, mark::current()) {
            Ok(lock) => return Ok(lock),
            Err(Failure::Error(error)) => return Err(error),
            Err(Failure::Unavailable(_)) if start.elapsed() < MAX_WAIT => {
                thread::sleep(random(RETRY_INTERVAL));
            }
            Err(Failure::Unavailable(_)) => {
                let path = dir.path().join(ALL.to_string());
                let message = format!(
                    "cannot lock {}: another process has kept it locked for {} s",
                    path.display(),
                    MAX_WAIT.as_secs()
                );
                return Err(Error::new(ErrorKind::Lock, message));
            }
        }
    }
}

/// Locks a port's file, which checking callers lock for a moment.
fn lock_port<T>(lock: impl Fn() -> Attempt<T>) -> Attempt<T> {
    for _ in 0..MAX_RETRIES {
        match lock() {
            Err(Failure::Unavailable(_)) => thread::sleep(RETRY_INTERVAL),
            outcome => return outcome,
        }
    }
    lock()
}

impl LockDir {
    /// Returns every reservation in the directory, by port.
    ///
    /// They include those that exist only as copies in this user's state directory, because the lock
    /// directory was lost and no port has been leased in the new one yet.
    ///
    /// # Errors
    ///
    /// [`LockDir`](ErrorKind::LockDir) if the directory cannot be read;
    /// [`Lock`](ErrorKind::Lock) if a lock file or a copy cannot be read.
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::LockDir;
    ///
    /// for reservation in LockDir::locate()?.reservations()? {
    ///     println!("{} is reserved {reservation}", reservation.port);
    /// }
    /// # Ok::<(), portlock::Error>(())
    /// ```
    pub fn reservations(&self) -> Result<Vec<Reservation>> {
        let mut all = match self.opened() {
            Some(dir) => scan(dir)?,
            None => Vec::new(),
        };
        if let Some(copies) = Copies::of(self.path()) {
            for copy in copies.all()? {
                let key = copy.line.key();
                let is_known =
                    |(port, found): &(u16, Found)| *port == copy.port || found.is_of(&key);
                if !all.iter().any(is_known) {
                    all.push((copy.port, Found::Line(copy.line)));
                }
            }
        }
        all.sort_unstable_by_key(|(port, _)| *port);
        let reservation = |(port, found): (u16, Found)| found.reservation(port);
        Ok(all.into_iter().map(reservation).collect())
    }

    /// Returns the reservations in the root directory `root`, by port.
    ///
    /// # Errors
    ///
    /// [`InvalidName`](ErrorKind::InvalidName) if the root cannot be used; otherwise as for
    /// [`reservations`](Self::reservations).
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::{LockDir, Reservation};
    ///
    /// for reservation in LockDir::locate()?.reservations_in(Reservation::default_root()?)? {
    ///     println!("{}={}", reservation.variable(), reservation.port);
    /// }
    /// # Ok::<(), portlock::Error>(())
    /// ```
    pub fn reservations_in(&self, root: impl AsRef<Path>) -> Result<Vec<Reservation>> {
        let root = absolute_root(Some(root.as_ref()))?;
        let mut all = self.reservations()?;
        all.retain(|reservation| reservation.root == Path::new(&root));
        Ok(all)
    }

    /// Returns the reservation of `name` in the root directory `root`, if there is one. It reserves
    /// nothing: [`Builder::reserve`](crate::Builder::reserve) does.
    ///
    /// # Errors
    ///
    /// [`InvalidName`](ErrorKind::InvalidName) if the name or the root cannot be used; otherwise as for
    /// [`reservations`](Self::reservations).
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::{LockDir, Reservation};
    ///
    /// match LockDir::locate()?.reservation("web", Reservation::default_root()?)? {
    ///     Some(web) => println!("{}={}", web.variable(), web.port),
    ///     None => println!("no port is reserved as web here"),
    /// }
    /// # Ok::<(), portlock::Error>(())
    /// ```
    pub fn reservation(&self, name: &str, root: impl AsRef<Path>) -> Result<Option<Reservation>> {
        let key = Key::new(name, Some(root.as_ref()))?;
        self.reserved(&key)
    }

    /// Returns whether the line of a reservation is in its lock file.
    pub(crate) fn has_line(&self, key: &Key, port: u16) -> Result<bool> {
        let Some(dir) = self.opened() else {
            return Ok(false);
        };
        let found = lock::recorded(dir, port)?.reservation;
        Ok(found.is_some_and(|found| found.is_of(key)))
    }

    pub(crate) fn reserved(&self, key: &Key) -> Result<Option<Reservation>> {
        if let Some(dir) = self.opened()
            && let Some(port) = find(dir, key)?
            && let Some(found) = lock::recorded(dir, port)?.reservation
            && found.is_of(key)
        {
            return Ok(Some(found.reservation(port)));
        }
        let mut all = self.reservations()?.into_iter();
        Ok(all.find(|reservation| reservation.is_of(key)))
    }

    /// Removes a reservation and its copy, so that any caller can lease its port. If it no
    /// longer exists, nothing happens.
    ///
    /// # Errors
    ///
    /// [`Lock`](ErrorKind::Lock) if the port is held: the message names the holder, whose lease has to
    /// end first. A delegated lease continues without the reservation.
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::{FreePort, LockDir};
    ///
    /// let (project, locks) = (tempfile::tempdir()?, tempfile::tempdir()?);
    /// let web = FreePort::builder().name("web").root(project.path()).lock_dir(locks.path());
    /// let reservation = web.reserve()?;
    /// assert!(FreePort::builder().ports(reservation.port).lock_dir(locks.path()).acquire().is_err());
    /// LockDir::open(locks.path())?.unreserve(&reservation)?;
    /// let any = FreePort::builder().ports(reservation.port).lock_dir(locks.path()).acquire()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn unreserve(&self, reservation: &Reservation) -> Result<()> {
        let port = reservation.port;
        let names = self.opened().map(lock_all).transpose()?;
        // The copy first: if this process is killed in between, no removed reservation is restored.
        if let Some(key) = reservation.key()
            && let Some(copies) = Copies::of(self.path())
            // A copy that this process may not read, the next caller may be able to read.
            && copies.get(&key)?.is_none_or(|copy| copy.port == port)
        {
            copies.remove(&key)?;
        }
        let Some(dir) = self.opened() else {
            return Ok(());
        };
        let is_it =
            |found: Option<Found>| found.is_some_and(|found| reservation.is_read_from(&found));
        let lock = match lock_port(|| PortLock::try_existing(dir, port, Access::Write)) {
            Ok(Some(lock)) => lock,
            Ok(None) => return Ok(()),
            Err(Failure::Error(error)) => return Err(error),
            Err(Failure::Unavailable(_)) if !is_it(lock::recorded(dir, port)?.reservation) => {
                return Ok(());
            }
            Err(Failure::Unavailable(_)) => {
                let leased = ByReason {
                    leased: vec![port],
                    ..ByReason::default()
                };
                let holder = leases::explain(Some(dir), leased, None).leased;
                let holder = holder.into_iter().find_map(|(_, holder)| holder);
                let message = format!(
                    "cannot remove the reservation of port {port}: it is leased{}, and that lease has to \
                     end first",
                    holder
                        .map(|holder| format!(" {holder}"))
                        .unwrap_or_default()
                );
                return Err(Error::new(ErrorKind::Lock, message));
            }
        };
        let needs = |failure| lock.needs_record(failure);
        let content = lock.read().map_err(needs)?;
        if is_it(content.reservation) {
            let goes_on = lock::is_kept(dir, port, content.owner.as_ref())?;
            lock.remove_reservation(goes_on).map_err(needs)?;
        }
        drop(names);
        Ok(())
    }

    /// Removes the copies of reservations in this user's state directory whose root directory or lock
    /// directory is proven to be gone, for all lock directories, and returns the number of removed copies.
    ///
    /// [`clean`](Self::clean) removes the reservations themselves and their copies, in one lock
    /// directory.
    ///
    /// # Errors
    ///
    /// [`Lock`](ErrorKind::Lock) if a copy cannot be read or removed.
    pub fn clean_copies() -> Result<usize> {
        copies::clean()
    }
}
