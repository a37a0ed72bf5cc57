//! One call's way to its leases: claim, lock, probe, record; and the waiting.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    mem,
    net::{IpAddr, TcpListener},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::{
    bindfree::{Bind, Closing, Endpoints, Probe},
    clock::since_1970,
    error::{Error, ErrorKind, Result},
    freeport::FreePort,
    leases,
    lock::{PortLock, Try},
    lock_dir::{LockDir, OpenDir},
    mark,
    owner::{self, Kind},
    ports::{Order, PortSet},
    process, registry,
    search::{Exhausted, Miss, TimeWait, search},
    waiting::{Waiting, Woken},
};

/// How often one call goes on in a lock directory that was made again after it had
/// been removed. Far beyond what happens; only a bound.
const REMOVALS: u32 = 100;

/// The pauses before a call that is about to fail tries again because a port seems to be locked
/// only by somebody who looks at it, 21 ms in all. A look takes some microseconds, unless it is
/// preempted.
const MOMENTS: [Duration; 4] = [
    Duration::from_micros(250),
    Duration::from_millis(1),
    Duration::from_millis(4),
    Duration::from_millis(16),
];

/// All that the attempts of one call have in common.
#[derive(Debug)]
pub(crate) struct Acquisition<'a> {
    pub(crate) ports: Cow<'a, PortSet>,
    pub(crate) lock_dir: Option<&'a Path>,
    pub(crate) endpoints: &'a Endpoints,
    pub(crate) label: Option<&'a str>,
    pub(crate) prefer: Option<&'a str>,
    pub(crate) hold_socket: bool,
    pub(crate) timeout: Duration,
    /// The process that will have the lease, if not this one.
    pub(crate) delegate_to: Option<u32>,
    /// Whether the default lock directory is created if it is missing. A check creates nothing.
    pub(crate) creates_dir: bool,
}

/// One pass over the ports.
struct Pass<'a> {
    /// `None` if it does not exist and is not to be created: then nothing is leased.
    dir: Option<OpenDir>,
    /// When it began, after 1970.
    now: Duration,
    order: Order,
    /// The ports that were released; `None` if all are to be looked at.
    released: Option<&'a PortSet>,
    /// Ports are looked at before they are taken, so that nobody who waits is woken
    /// for what could not be had.
    looks_first: bool,
    closing: Closing,
}

impl Pass<'_> {
    /// How a port is bound where ports with closing connections count as free, or not.
    fn bind(&self, closing_is_free: bool) -> Bind<'_> {
        match closing_is_free {
            true => Bind::StrictOrClosing(&self.closing),
            false => Bind::Strict,
        }
    }
}

/// A port that was had, not yet a lease: others that are wanted with it may be
/// missing.
#[derive(Debug)]
struct Taken<T> {
    socket: T,
    lock: PortLock,
}

impl Acquisition<'_> {
    /// Leases one port.
    pub(crate) fn one(&self) -> Result<FreePort> {
        let taken = self.take_one(|probe| self.settle(probe))?;
        Ok(self.lease(taken))
    }

    /// Waits until one port could be leased, and leases none.
    pub(crate) fn none(&self) -> Result<()> {
        self.repeat(
            || format!("no free port in {}", self.ports.brief()),
            |pass| {
                let ports = pass.released.unwrap_or(&self.ports);
                let check = |port, closing| self.check(pass, port, closing);
                search(ports, pass.order, self.time_wait(), check)
            },
        )
    }

    /// Leases one port for the process that it is delegated to.
    pub(crate) fn one_delegated(&self) -> Result<u16> {
        let taken = self.take_one(|probe| self.settle(probe))?;
        // It is that process's now, whatever may go wrong with the lock.
        Ok(taken.lock.port())
    }

    /// Leases one port, and its probe becomes a listener.
    pub(crate) fn one_listening(&self) -> Result<(FreePort, TcpListener)> {
        let taken = self.take_one(Probe::listen)?;
        let lease = FreePort::leased(self.host(), None, taken.lock);
        Ok((lease, taken.socket))
    }

    fn take_one<T>(&self, finish: impl Fn(Probe) -> Result<Result<T, Miss>>) -> Result<Taken<T>> {
        self.repeat(
            || format!("no free port in {}", self.ports.brief()),
            |pass| {
                let ports = pass.released.unwrap_or(&self.ports);
                search(ports, pass.order, self.time_wait(), |port, closing| {
                    if pass.looks_first
                        && let Err(miss) = self.look(pass, port, closing)?
                    {
                        return Ok(Err(miss));
                    }
                    self.attempt(pass, port, closing, &finish)
                })
            },
        )
    }

    /// Leases `n` ports or none.
    pub(crate) fn many(&self, n: usize) -> Result<Vec<FreePort>> {
        let all = self.take_many(n, |probe| self.settle(probe))?;
        Ok(all.into_iter().map(|taken| self.lease(taken)).collect())
    }

    /// Leases `n` ports or none, and their probes become listeners.
    pub(crate) fn many_listening(&self, n: usize) -> Result<Vec<(FreePort, TcpListener)>> {
        let all = self.take_many(n, Probe::listen)?;
        let listening = |taken: Taken<TcpListener>| {
            let lease = FreePort::leased(self.host(), None, taken.lock);
            (lease, taken.socket)
        };
        Ok(all.into_iter().map(listening).collect())
    }

    /// Takes `n` ports or none.
    ///
    /// Nobody waits while holding a part of what is wanted, so callers cannot
    /// wait for each other in a circle: a pass that does not find enough gives
    /// everything back before the pause.
    fn take_many<T>(
        &self,
        n: usize,
        finish: impl Fn(Probe) -> Result<Result<T, Miss>>,
    ) -> Result<Vec<Taken<T>>> {
        if n == 0 {
            return Ok(Vec::new());
        }
        if n > self.ports.len() {
            let has = format!("has only {}", self.ports.len());
            return Err(self.too_few(&format!("{n} ports"), &has));
        }
        self.repeat(
            || match n {
                1 => format!("no free port in {}", self.ports.brief()),
                n => format!("fewer than {n} ports are free in {}", self.ports.brief()),
            },
            |pass| {
                let time_wait = self.time_wait();
                let take = |port, closing| self.attempt(pass, port, closing, &finish);
                if !pass.looks_first {
                    return collect(n, &self.ports, pass.order, time_wait, take);
                }
                let look = |port, closing| Ok(self.look(pass, port, closing)?.map(|()| port));
                match collect(n, &self.ports, pass.order, time_wait, look)? {
                    Ok(seen) => {
                        collect(n, &seen.into_iter().collect(), pass.order, time_wait, take)
                    }
                    Err(exhausted) => Ok(Err(exhausted)),
                }
            },
        )
    }

    /// Leases `n` contiguous ports, all in the set.
    pub(crate) fn block(&self, n: usize) -> Result<Vec<FreePort>> {
        let Some(last) = n.checked_sub(1) else {
            return Ok(Vec::new());
        };
        let starts = match u16::try_from(last) {
            Ok(last) => self.ports.starts_of_blocks(last),
            Err(_) => PortSet::default(),
        };
        let offsets: Vec<u16> = (0..=u16::MAX).take(n).collect();
        if starts.is_empty() {
            let has = format!("has no {n} in a row");
            return Err(self.too_few(&format!("{n} contiguous ports"), &has));
        }
        let what = match n {
            1 => "no free port".to_owned(),
            n => format!("no {n} contiguous free ports"),
        };
        self.group(&starts, &offsets, &what)
    }

    /// Leases the ports at all `offsets` from some port of the set.
    pub(crate) fn offsets(&self, offsets: &[u16]) -> Result<Vec<FreePort>> {
        let Some(&largest) = offsets.iter().max() else {
            return Ok(Vec::new());
        };
        if let Some(twice) = (1..offsets.len()).find(|&i| offsets[..i].contains(&offsets[i])) {
            let offset = offsets[twice];
            let message = format!("the offset {offset} was given twice, in {offsets:?}");
            return Err(Error::new(ErrorKind::InvalidPorts, message));
        }
        let too_high = match (u16::MAX - largest).checked_add(1) {
            Some(first) => PortSet::from(first..),
            None => PortSet::default(),
        };
        let bases = self.ports.difference(&too_high);
        if bases.is_empty() {
            let ports = self.ports.brief();
            let message =
                format!("the offset {largest} leads beyond port 65535 from every port in {ports}");
            return Err(Error::new(ErrorKind::InvalidPorts, message));
        }
        let what = format!("no free ports at the offsets {offsets:?} from any port");
        self.group(&bases, offsets, &what)
    }

    /// Leases the ports at all `offsets` from one of `bases`; none of them may
    /// be beyond 65535.
    fn group(&self, bases: &PortSet, offsets: &[u16], what: &str) -> Result<Vec<FreePort>> {
        let all = self.repeat(
            || format!("{what} in {}", self.ports.brief()),
            |pass| {
                // Neighboring bases share ports: one that was missed need not be tried
                // again for each of them, and is counted once.
                let mut missed = BTreeMap::new();
                let found = search(bases, pass.order, self.time_wait(), |base, closing| {
                    let ports = offsets.iter().map(|offset| base + offset);
                    let is_final = |miss: &&Miss| **miss != Miss::Leftover;
                    let known = |port| missed.get(&port).filter(is_final);
                    if let Some(miss) = ports.clone().find_map(known) {
                        return Ok(Err(*miss));
                    }
                    let note = |missed: &mut BTreeMap<u16, Miss>, port, miss| {
                        missed.insert(port, miss);
                        Ok(Err(miss))
                    };
                    if pass.looks_first {
                        for port in ports.clone() {
                            if let Err(miss) = self.look(pass, port, closing)? {
                                return note(&mut missed, port, miss);
                            }
                        }
                    }
                    let mut all = Vec::with_capacity(offsets.len());
                    for port in ports {
                        match self.attempt(pass, port, closing, |probe| self.settle(probe))? {
                            Ok(taken) => {
                                missed.remove(&port);
                                all.push(taken);
                            }
                            Err(miss) => return note(&mut missed, port, miss),
                        }
                    }
                    Ok(Ok(all))
                })?;
                Ok(found.map_err(|_| missed.into_values().collect()))
            },
        )?;
        Ok(all.into_iter().map(|taken| self.lease(taken)).collect())
    }

    fn too_few(&self, what: &str, has: &str) -> Error {
        let message = format!("{what} were asked for, but {} {has}", self.ports.brief());
        Error::new(ErrorKind::InvalidPorts, message)
    }

    /// Makes one pass after the other until one succeeds or the time is over.
    fn repeat<T>(
        &self,
        headline: impl Fn() -> String,
        mut pass: impl FnMut(&Pass<'_>) -> Result<Result<T, Exhausted>>,
    ) -> Result<T> {
        match self.pass(&mut pass, None, false)? {
            Ok(found) => Ok(found),
            Err(exhausted) => self.wait(&headline, &mut pass, exhausted),
        }
    }

    /// Makes a pass, and another one if the lock directory turns out to be removed.
    fn pass<T>(
        &self,
        pass: &mut impl FnMut(&Pass<'_>) -> Result<Result<T, Exhausted>>,
        released: Option<&PortSet>,
        looks_first: bool,
    ) -> Result<Result<T, Exhausted>> {
        let mut removals = 0;
        loop {
            let now = since_1970();
            let order = match self.prefer {
                Some(name) => Order::of_name(name),
                None => Order::random(),
            };
            let outcome = pass(&Pass {
                dir: self.open_dir(now)?,
                now,
                order,
                released,
                looks_first,
                closing: Closing::default(),
            });
            match outcome {
                Err(error) if error.kind() == ErrorKind::LockDir && removals < REMOVALS => {
                    removals += 1;
                }
                outcome => return outcome,
            }
        }
    }

    /// The lock directory; `None` if it does not exist and is not to be created.
    fn open_dir(&self, now: Duration) -> Result<Option<OpenDir>> {
        if self.creates_dir {
            OpenDir::locate_at(self.lock_dir, now).map(Some)
        } else {
            Ok(LockDir::locate(self.lock_dir)?.open().cloned())
        }
    }

    /// Continues after a first pass. Separate from it, because what waiting needs would make it
    /// slower.
    #[cold]
    fn wait<T>(
        &self,
        headline: &impl Fn() -> String,
        pass: &mut impl FnMut(&Pass<'_>) -> Result<Result<T, Exhausted>>,
        mut exhausted: Exhausted,
    ) -> Result<T> {
        let start = Instant::now();
        let mut look = Duration::ZERO;
        let mut waiting: Option<Waiting<'_>> = None;
        let mut released = None;
        let mut moments = MOMENTS.into_iter();
        loop {
            let waited = start.elapsed();
            let left = self.timeout.saturating_sub(waited);
            let dir = self.open_dir(since_1970())?;
            if released.is_none() && (left.is_zero() || !exhausted.may_change()) {
                let is_in_doubt = || leases::any_is_in_doubt(dir.as_ref(), exhausted.leased());
                if let Some(moment) = moments.next()
                    && is_in_doubt()?
                {
                    thread::sleep(moment);
                    exhausted = match self.pass(pass, None, false)? {
                        Ok(found) => return Ok(found),
                        Err(exhausted) => exhausted,
                    };
                    continue;
                }
                let waited = match self.timeout {
                    Duration::ZERO => String::new(),
                    _ => format!(" after {:.1} s", waited.as_secs_f64()),
                };
                let holders = leases::holders(dir.as_ref(), exhausted.examples());
                return Err(exhausted.into_error(headline() + &waited, &holders));
            }
            let line = match waiting.take() {
                Some(waiting) if waiting.is_in(dir.as_ref()) => waiting,
                _ => Waiting::new(dir.as_ref(), &self.ports),
            };
            released = match waiting.insert(line).wait(look, left) {
                Woken::Released(ports) => Some(ports),
                Woken::Due => None,
            };
            let look_start = Instant::now();
            exhausted = match self.pass(pass, released.as_ref(), true)? {
                Ok(found) => return Ok(found),
                Err(exhausted) => exhausted,
            };
            look = look_start.elapsed();
        }
    }

    /// Whether a port seems worth taking: it is locked for a moment, without leaving a trace.
    fn look(&self, pass: &Pass<'_>, port: u16, closing: bool) -> Result<Result<(), Miss>> {
        match self.lock_to_look(pass, port)? {
            Try::Locked(_lock) => self.probe(port, pass.bind(closing)),
            Try::Held => Ok(Err(Miss::Leased(port))),
            // Without a lock it must not be probed.
            Try::Missing => Ok(Ok(())),
        }
    }

    /// Whether a port could be leased, without leaving a trace.
    ///
    /// A port without a lock file is leased by nobody, and a check must not create the file: there
    /// it finds out without a lock what it can.
    fn check(&self, pass: &Pass<'_>, port: u16, closing: bool) -> Result<Result<(), Miss>> {
        match self.lock_to_look(pass, port)? {
            Try::Locked(_lock) => self.probe(port, pass.bind(closing)),
            Try::Held => Ok(Err(Miss::Leased(port))),
            Try::Missing => Probe::peek(port, self.endpoints, pass.bind(closing)),
        }
    }

    fn lock_to_look(&self, pass: &Pass<'_>, port: u16) -> Result<Try> {
        let mark = mark::current();
        match &pass.dir {
            _ if registry::is_claimed(port, mark) => Ok(Try::Held),
            Some(dir) => PortLock::try_look(dir, port, mark),
            None => Ok(Try::Missing),
        }
    }

    fn time_wait(&self) -> TimeWait {
        self.endpoints.time_wait()
    }

    fn probe(&self, port: u16, bind: Bind<'_>) -> Result<Result<(), Miss>> {
        match Probe::bind(port, self.endpoints, bind)? {
            Ok(probe) => Ok(Ok(probe.close()?)),
            Err(miss) => Ok(Err(miss)),
        }
    }

    /// Tries to take one port: claim, lock, probe, record.
    ///
    /// The lock comes before the probe. In the other order every caller that only
    /// looks at a leased port would bind it for a moment, and the holder's own
    /// server, if it started just then, would find its port in use.
    ///
    /// On every way out but the last, what was taken is given back in the
    /// opposite order, by being dropped.
    fn attempt<T>(
        &self,
        pass: &Pass<'_>,
        port: u16,
        closing: bool,
        finish: impl FnOnce(Probe) -> Result<Result<T, Miss>>,
    ) -> Result<Result<Taken<T>, Miss>> {
        let mark = mark::current();
        let Some(claim) = registry::claim(port, mark) else {
            return Ok(Err(Miss::Leased(port)));
        };
        let Some(dir) = &pass.dir else {
            let dir = LockDir::locate(self.lock_dir)?;
            let message = format!("lock directory {} does not exist", dir.path().display());
            return Err(Error::new(ErrorKind::LockDir, message));
        };
        let Some(lock) = PortLock::try_acquire(dir, claim)? else {
            return Ok(Err(Miss::Leased(port)));
        };
        let probe = match Probe::bind(port, self.endpoints, pass.bind(closing))? {
            Ok(probe) => probe,
            Err(miss) => return Ok(Err(miss)),
        };
        let socket = match finish(probe)? {
            Ok(socket) => socket,
            Err(miss) => return Ok(Err(miss)),
        };
        match self.delegate_to {
            None => owner::with_held(mark, pass.now.as_secs(), self.label, |record| {
                lock.write_owner(record)
            })?,
            // To find it costs as much as a lease, and so comes after all that may miss.
            Some(pid) => {
                let process = process::find(pid)?;
                lock.write_long(&owner::of_process(Kind::Delegated, &process, self.label))?;
            }
        }
        Ok(Ok(Taken { socket, lock }))
    }

    /// Closes the probe, or holds it if that was asked for.
    fn settle(&self, probe: Probe) -> Result<Result<Option<Box<Probe>>, Miss>> {
        if self.hold_socket {
            return Ok(Ok(Some(Box::new(probe.hold(self.endpoints)?))));
        }
        probe.close()?;
        Ok(Ok(None))
    }

    fn lease(&self, taken: Taken<Option<Box<Probe>>>) -> FreePort {
        FreePort::leased(self.host(), taken.socket, taken.lock)
    }

    fn host(&self) -> Option<IpAddr> {
        self.endpoints.hosts().first().copied()
    }
}

/// Tries each port once, in the given order, until `n` attempts have succeeded.
fn collect<T>(
    n: usize,
    ports: &PortSet,
    order: Order,
    time_wait: TimeWait,
    mut attempt: impl FnMut(u16, bool) -> Result<Result<T, Miss>>,
) -> Result<Result<Vec<T>, Exhausted>> {
    let mut all = Vec::with_capacity(n);
    search(ports, order, time_wait, |port, closing| {
        match attempt(port, closing)? {
            Ok(one) => all.push(one),
            Err(miss) => return Ok(Err(miss)),
        }
        if all.len() < n {
            return Ok(Err(Miss::NotEnough));
        }
        Ok(Ok(mem::take(&mut all)))
    })
}
