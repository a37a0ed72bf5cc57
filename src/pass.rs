//! One pass of a call over its ports: each is tried once, and locked before it is probed.

use std::{
    borrow::Cow,
    cell::RefCell,
    collections::BTreeMap,
    mem,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use crate::{
    bindfree::{Bind, ClosingPorts, Endpoints, Probe},
    clock::since_1970,
    error::{Error, ErrorKind, Result},
    lock::PortLock,
    lock_dir::{LockDir, OpenDir},
    mark::{self, Mark},
    names,
    owner::{self, Kind},
    ports::{Order, PortSet},
    process, registry,
    reservation::{Key, Line},
    search::{Exhausted, search},
    unavailable::{Attempt, Failure, Unavailable},
};

/// The request of a call, the same in each of its passes.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) ports: Cow<'a, PortSet>,
    pub(crate) lock_dir: Option<&'a Path>,
    pub(crate) endpoints: &'a Endpoints,
    pub(crate) label: Option<&'a str>,
    pub(crate) prefer: Option<&'a str>,
    /// The name whose reserved ports are leased. Without it, reserved ports are skipped.
    pub(crate) key: Option<&'a Key>,
    pub(crate) hold_socket: bool,
    /// The process that will hold the lease, if not this one.
    pub(crate) delegate_to: Option<u32>,
    /// Whether the default lock directory is created if it is missing. A check creates nothing.
    pub(crate) creates_dir: bool,
}

/// The ports that a pass tries.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scope<'a> {
    /// All requested ports.
    All,
    /// All requested ports, for a caller that waits: each port is checked before it is taken, so
    /// that taking and returning it wakes no other waiter.
    AllAfterCheck,
    /// Only those of these ports that have just been released, checked in the same way.
    Released(&'a PortSet),
}

/// One pass over the ports.
pub(crate) struct Pass<'a> {
    request: &'a Request<'a>,
    scope: Scope<'a>,
    /// `None` if it does not exist and must not be created: then no port is leased.
    dir: Option<OpenDir>,
    /// When the pass began, as the time since 1970.
    now: Duration,
    order: Order,
    closing: ClosingPorts,
    /// The lock of one of the ports, taken by a waiter's watch, until an attempt on that port
    /// uses it.
    handed: RefCell<Option<PortLock>>,
}

/// The habit of this process to begin a search in the neighborhood of the lock directory.
///
/// If the whole neighborhood is leased or in TIME_WAIT, trying its ports for each lease would triple the
/// cost of a lease. So after a search that has found nothing there, the next searches skip it: twice as
/// many each time, because a port in TIME_WAIT costs as much as a lease.
#[derive(Debug)]
struct Habit {
    /// Number of searches that will still skip the neighborhood.
    skips: AtomicU32,
    /// Number of searches that will skip it after the next one that finds nothing there.
    next_skips: AtomicU32,
}

static HABIT: Habit = Habit::new();

impl Habit {
    const MIN_SKIPS: u32 = 64;
    const MAX_SKIPS: u32 = 4096;

    const fn new() -> Self {
        Self {
            skips: AtomicU32::new(0),
            next_skips: AtomicU32::new(Self::MIN_SKIPS),
        }
    }

    /// Returns whether the next search begins there.
    fn begins_near(&self) -> bool {
        let one_less = |left: u32| left.checked_sub(1);
        let skips = &self.skips;
        skips
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
            .is_err()
    }

    fn found_near(&self) {
        self.next_skips.store(Self::MIN_SKIPS, Ordering::Relaxed);
    }

    fn found_nothing_near(&self) {
        let skips = self.next_skips.load(Ordering::Relaxed);
        self.skips.store(skips, Ordering::Relaxed);
        let doubled = Self::MAX_SKIPS.min(2 * skips);
        self.next_skips.store(doubled, Ordering::Relaxed);
    }
}

/// A port that is locked and probed but not leased yet, because other ports of the request may be
/// unavailable.
#[derive(Debug)]
pub(crate) struct Candidate<T> {
    pub(crate) socket: T,
    pub(crate) lock: PortLock,
}

impl Request<'_> {
    /// Returns the lock directory, or `None` if it does not exist and must not be created.
    pub(crate) fn open_dir(&self, now: Duration) -> Result<Option<OpenDir>> {
        if self.creates_dir {
            let dir = OpenDir::locate_at(self.lock_dir, now)?;
            names::restore_once(&dir)?;
            Ok(Some(dir))
        } else {
            Ok(LockDir::located(self.lock_dir)?.opened().cloned())
        }
    }

    /// Closes the probe, or keeps it open if the request holds the socket.
    pub(crate) fn settle(&self, probe: Probe) -> Attempt<Option<Box<Probe>>> {
        if self.hold_socket {
            return Ok(Some(Box::new(probe.hold(self.endpoints)?)));
        }
        probe.close()?;
        Ok(None)
    }
}

impl<'a> Pass<'a> {
    pub(crate) fn begin(
        request: &'a Request<'a>,
        scope: Scope<'a>,
        handed: Option<PortLock>,
    ) -> Result<Self> {
        let now = since_1970();
        let dir = request.open_dir(now)?;
        let order = match (request.prefer, &dir) {
            (Some(name), _) => Order::of_name(name),
            (None, Some(dir)) if HABIT.begins_near() => Order::random_near(dir.digest()),
            (None, _) => Order::random(),
        };
        // The directory may have been created again since then.
        let handed = handed.filter(|lock| dir.as_ref().is_some_and(|dir| lock.is_in(dir)));
        Ok(Self {
            request,
            scope,
            dir,
            now,
            order,
            closing: ClosingPorts::default(),
            handed: RefCell::new(handed),
        })
    }

    /// Finds one port, and turns its probe with `finish` into the value that the caller wants.
    pub(crate) fn one<T>(
        &self,
        finish: impl Fn(Probe) -> Attempt<T>,
    ) -> Attempt<Candidate<T>, Exhausted> {
        let mut tried = 0;
        let found = self.search(self.ports(), |port, closing| {
            tried += 1;
            if self.checks_first() {
                self.check_locked(port, closing)?;
            }
            self.attempt(port, closing, &finish)
        });
        if self.ports().is_beyond_neighbors(self.order, tried) {
            HABIT.found_nothing_near();
        } else if found.is_ok() && self.order.begins_near() {
            HABIT.found_near();
        }
        found
    }

    /// Finds `n` ports.
    pub(crate) fn many<T>(
        &self,
        n: usize,
        finish: impl Fn(Probe) -> Attempt<T>,
    ) -> Attempt<Vec<Candidate<T>>, Exhausted> {
        let take = |port, closing| self.attempt(port, closing, &finish);
        // Fewer ports may have just been released than are requested.
        let all = &*self.request.ports;
        if !self.checks_first() {
            return self.collect(n, all, take);
        }
        let seem_available = self.collect(n, all, |port, closing| {
            self.check_locked(port, closing).map(|()| port)
        })?;
        self.collect(n, &seem_available.into_iter().collect(), take)
    }

    /// Finds the ports at all `offsets` from one of `bases`. No resulting port may exceed 65535.
    pub(crate) fn group(
        &self,
        bases: &PortSet,
        offsets: &[u16],
    ) -> Attempt<Vec<Candidate<Option<Box<Probe>>>>, Exhausted> {
        // Neighboring bases share ports: a port that is unavailable is tried and counted only
        // once.
        let mut unavailable = BTreeMap::new();
        let found = self.search(bases, |base, closing| {
            let ports = offsets.iter().map(|offset| base + offset);
            let is_final = |why: &&Unavailable| **why != Unavailable::Lingering;
            let known = |port| unavailable.get(&port).filter(is_final);
            if let Some(why) = ports.clone().find_map(known) {
                return Err((*why).into());
            }
            if self.checks_first() {
                for port in ports.clone() {
                    note(&mut unavailable, port, self.check_locked(port, closing))?;
                }
            }
            let mut all = Vec::with_capacity(offsets.len());
            for port in ports {
                let attempt = self.attempt(port, closing, |probe| self.request.settle(probe));
                all.push(note(&mut unavailable, port, attempt)?);
            }
            Ok(all)
        });
        found.map_err(|failure| match failure {
            Failure::Unavailable(_) => Failure::Unavailable(unavailable.into_iter().collect()),
            error => error,
        })
    }

    /// Checks whether a port could be leased, without writing anything.
    pub(crate) fn check(&self) -> Attempt<(), Exhausted> {
        self.search(self.ports(), |port, closing| {
            match self.lock_to_check(port)? {
                Some(_lock) => self.probe(port, closing),
                // No caller leases it, and a check must not create the file, so check what is
                // possible without a lock.
                None => Probe::check_unlocked(port, self.request.endpoints, self.bind(closing)),
            }
        })
    }

    /// Tries to take one port: claim, lock, probe, record.
    ///
    /// The lock comes before the probe. In the reverse order, every caller that only checks a
    /// leased port would bind it for a moment, and if the holder's own server started just then,
    /// it would find its port in use.
    ///
    /// Every exit but the last releases in reverse order, by drop.
    fn attempt<T>(
        &self,
        port: u16,
        closing: bool,
        finish: impl FnOnce(Probe) -> Attempt<T>,
    ) -> Attempt<Candidate<T>> {
        let mark = mark::current();
        let lock = self.lock(port, mark, self.request.key)?;
        let probe = Probe::bind(port, self.request.endpoints, self.bind(closing))?;
        let socket = finish(probe)?;
        self.record(&lock, mark)?;
        Ok(Candidate { socket, lock })
    }

    /// Claims and locks a port that is reserved for `key`, or without a key one that is not
    /// reserved.
    fn lock(&self, port: u16, mark: Mark, key: Option<&Key>) -> Attempt<PortLock> {
        let claim = registry::claim(port, mark).ok_or(Unavailable::Leased(port))?;
        match self.handed(port) {
            Some(lock) => lock.claimed(claim).unless_kept(key),
            None => PortLock::try_acquire(self.dir()?, claim, key),
        }
    }

    /// Reserves one port that is neither leased nor reserved nor in use, and none of those that the
    /// call has just reserved. Returns its lock.
    pub(crate) fn reserve(
        &self,
        line: &Line,
        just_reserved: impl Iterator<Item = u16> + Clone,
    ) -> Attempt<PortLock, Exhausted> {
        let order = Order::of_name(&line.key().preference());
        self.search_in(order, self.ports(), |port, closing| {
            if just_reserved.clone().any(|it| it == port) {
                return Err(Unavailable::NotEnough.into());
            }
            let lock = self.lock(port, mark::current(), None)?;
            self.probe(port, closing)?;
            lock.write_reservation(line)?;
            Ok(lock)
        })
    }

    /// Writes the owner record.
    fn record(&self, lock: &PortLock, mark: Mark) -> Attempt<()> {
        let label = self.request.label;
        match self.request.delegate_to {
            None => owner::with_held(mark, self.now.as_secs(), label, |record| {
                lock.inform(record)
            }),
            // Finding the process costs as much as a lease, so it comes after everything that may
            // fail.
            Some(pid) => {
                let process = process::find(pid)?;
                lock.write_long(&owner::of_process(Kind::Delegated, &process, label))
            }
        }
    }

    /// Checks whether a port seems worth taking. Locks it for a moment and writes nothing.
    fn check_locked(&self, port: u16, closing: bool) -> Attempt<()> {
        if let Some(lock) = self.handed(port) {
            self.probe(port, closing)?;
            self.handed.replace(Some(lock));
            return Ok(());
        }
        match self.lock_to_check(port)? {
            Some(_lock) => self.probe(port, closing),
            // Without the lock it must not be probed.
            None => Ok(()),
        }
    }

    fn probe(&self, port: u16, closing: bool) -> Attempt<()> {
        let probe = Probe::bind(port, self.request.endpoints, self.bind(closing))?;
        Ok(probe.close()?)
    }

    /// Returns the lock of this port if the watch has taken it, once.
    fn handed(&self, port: u16) -> Option<PortLock> {
        self.handed.borrow_mut().take_if(|lock| lock.port() == port)
    }

    /// Locks a port that is not leased. Returns `None` if it has no lock file.
    fn lock_to_check(&self, port: u16) -> Attempt<Option<PortLock>> {
        if let Some(lock) = self.handed(port) {
            return lock.unless_kept(self.request.key).map(Some);
        }
        let mark = mark::current();
        match &self.dir {
            _ if registry::is_claimed(port, mark) => Err(Unavailable::Leased(port).into()),
            Some(dir) => PortLock::try_check(dir, port, mark, self.request.key),
            None => Ok(None),
        }
    }

    pub(crate) fn dir(&self) -> Result<&OpenDir> {
        if let Some(dir) = &self.dir {
            return Ok(dir);
        }
        // Only a request that leases nothing has no directory.
        let dir = LockDir::located(self.request.lock_dir)?;
        let message = format!("lock directory {} does not exist", dir.path().display());
        Err(Error::new(ErrorKind::LockDir, message))
    }

    fn ports(&self) -> &PortSet {
        match self.scope {
            Scope::Released(ports) => ports,
            Scope::All | Scope::AllAfterCheck => &self.request.ports,
        }
    }

    fn checks_first(&self) -> bool {
        !matches!(self.scope, Scope::All)
    }

    /// Returns how to bind a port, depending on whether closing connections count as free.
    fn bind(&self, closing_is_free: bool) -> Bind<'_> {
        match closing_is_free {
            true => Bind::StrictOrClosing(&self.closing),
            false => Bind::Strict,
        }
    }

    fn search<T>(
        &self,
        ports: &PortSet,
        attempt: impl FnMut(u16, bool) -> Attempt<T>,
    ) -> Attempt<T, Exhausted> {
        self.search_in(self.order, ports, attempt)
    }

    fn search_in<T>(
        &self,
        order: Order,
        ports: &PortSet,
        attempt: impl FnMut(u16, bool) -> Attempt<T>,
    ) -> Attempt<T, Exhausted> {
        search(ports, order, self.request.endpoints.time_wait(), attempt)
    }

    /// Tries each port once until `n` attempts have succeeded.
    fn collect<T>(
        &self,
        n: usize,
        ports: &PortSet,
        mut attempt: impl FnMut(u16, bool) -> Attempt<T>,
    ) -> Attempt<Vec<T>, Exhausted> {
        let mut all = Vec::with_capacity(n);
        self.search(ports, |port, closing| {
            all.push(attempt(port, closing)?);
            if all.len() < n {
                return Err(Unavailable::NotEnough.into());
            }
            Ok(mem::take(&mut all))
        })
    }
}

/// Records why a port is unavailable, or that it no longer is.
fn note<T>(
    unavailable: &mut BTreeMap<u16, Unavailable>,
    port: u16,
    outcome: Attempt<T>,
) -> Attempt<T> {
    match &outcome {
        Ok(_) => {
            unavailable.remove(&port);
        }
        Err(Failure::Unavailable(why)) => {
            unavailable.insert(port, *why);
        }
        Err(Failure::Error(_)) => {}
    }
    outcome
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::{mem::MaybeUninit, net::TcpListener};

    use rustix::{
        fs::inotify::{self, CreateFlags, WatchFlags},
        io::Errno,
    };

    use super::*;

    #[test]
    fn a_waiter_whose_port_stays_bound_wakes_no_other_waiter() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let server = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = server.local_addr().expect("bound").port();
        let (ports, endpoints) = (PortSet::from(port), Endpoints::default());
        let request = Request {
            ports: Cow::Borrowed(&ports),
            lock_dir: Some(dir.path()),
            endpoints: &endpoints,
            label: None,
            prefer: None,
            key: None,
            hold_socket: false,
            delegate_to: None,
            creates_dir: true,
        };
        let try_all_ways = |scope| {
            let pass = Pass::begin(&request, scope, None).expect("our own directory");
            let settle = |probe| request.settle(probe);
            for outcome in [
                pass.one(settle).map(drop),
                pass.many(1, settle).map(drop),
                pass.group(&ports, &[0]).map(drop),
            ] {
                assert!(
                    matches!(outcome, Err(Failure::Unavailable(_))),
                    "{outcome:?}"
                );
            }
        };
        // The first one creates the lock file.
        try_all_ways(Scope::All);
        // As in a waiter's watch.
        let watch = inotify::init(CreateFlags::NONBLOCK).expect("descriptors left");
        inotify::add_watch(&watch, dir.path(), WatchFlags::CLOSE_WRITE).expect("our own");
        let is_woken = || {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut events = inotify::Reader::new(&watch, &mut buffer);
            events.next().map(drop) != Err(Errno::AGAIN)
        };
        try_all_ways(Scope::AllAfterCheck);
        try_all_ways(Scope::Released(&ports));
        assert!(!is_woken());
        try_all_ways(Scope::All);
        assert!(is_woken(), "by one that does not check first");
    }
}
