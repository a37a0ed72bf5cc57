//! Acquires leases for one call: it makes passes over the ports and waits between them.

use std::{
    cell::RefCell,
    iter,
    net::{IpAddr, TcpListener},
    thread,
    time::{Duration, Instant},
};

use crate::{
    bindfree::Probe,
    clock::since_1970,
    error::{Error, ErrorKind, Result},
    freeport::FreePort,
    leases::{self, Doubt},
    lock::{PortLock, lock_file},
    names::{Known, Names, New},
    pass::{Candidate, Pass, Request, Scope},
    ports::PortSet,
    reservation::{Key, Line},
    search::Exhausted,
    unavailable::{Attempt, Failure},
    wait_status::{Calls, OnWait},
    waiting::{Wait, WakeReason},
};

/// Largest number of times that one call continues after its lock directory was removed and
/// created again. Only a bound; it is not reached in practice.
const MAX_REMOVALS: u32 = 100;

/// The pauses before each retry of a call that is about to fail although a port seems to be
/// locked only by a caller that checks it; 21 ms in total. A check takes microseconds unless it
/// is preempted.
const DOUBT_PAUSES: [Duration; 4] = [
    Duration::from_micros(250),
    Duration::from_millis(1),
    Duration::from_millis(4),
    Duration::from_millis(16),
];

/// The pause before each of [`lock_file::MAX_ENDING_RETRIES`].
const ENDING_PAUSE: Duration = Duration::from_millis(16);

/// How long to wait for a reserved port that is bound but not leased. When a server is killed,
/// its lease can end before its socket is closed.
const MAX_WAIT_FOR_BOUND: Duration = Duration::from_millis(500);

/// A request and its deadline.
#[derive(Debug)]
pub(crate) struct Acquisition<'a> {
    pub(crate) request: Request<'a>,
    pub(crate) timeout: Duration,
    /// The callback that is called during a wait.
    pub(crate) on_wait: Option<&'a OnWait>,
}

impl Acquisition<'_> {
    /// Leases one port.
    pub(crate) fn one(&self) -> Result<FreePort> {
        let found = self.find_one(|probe| self.request.settle(probe))?;
        Ok(self.lease(found))
    }

    /// Leases one port for the process that it is delegated to.
    pub(crate) fn one_delegated(&self) -> Result<u16> {
        let found = self.find_one(|probe| self.request.settle(probe))?;
        // The port belongs to that process now, even if handling the lock fails.
        Ok(found.lock.port())
    }

    /// Leases one port and turns its probe into a listener.
    pub(crate) fn one_listening(&self) -> Result<(FreePort, TcpListener)> {
        let found = self.find_one(Probe::listen)?;
        Ok(self.listening_lease(found))
    }

    /// Waits until one port could be leased, without leasing one.
    pub(crate) fn none(&self) -> Result<()> {
        self.repeat(|| self.no_free_port(), |pass| pass.check())
    }

    fn find_one<T>(&self, finish: impl Fn(Probe) -> Attempt<T>) -> Result<Candidate<T>> {
        self.repeat(|| self.no_free_port(), |pass| pass.one(&finish))
    }

    fn no_free_port(&self) -> String {
        let ports = self.ports().brief();
        match self.request.key {
            Some(key) => format!("port {ports}, which is reserved {key}, is not free"),
            None => format!("no free port in {ports}"),
        }
    }

    /// Returns the ports of `keys`, and reserves one of the ports for each key that has none: all or
    /// none. If a port is [`Known::Leased`], it reserves none, and returns only that key.
    pub(crate) fn reserve<'k>(&self, keys: &'k [Key]) -> Result<Vec<(&'k Key, Known)>> {
        let missing = RefCell::new(Vec::new());
        let headline = || {
            let ports = self.ports().brief();
            match &missing.borrow()[..] {
                [key] => format!("no port to reserve {key} is free in {ports}"),
                keys => format!(
                    "fewer than {} ports to reserve are free in {ports}",
                    keys.len()
                ),
            }
        };
        self.repeat(headline, |pass| {
            let mut names = Names::lock(pass.dir()?)?;
            let mut all = Vec::with_capacity(keys.len());
            let mut missing = missing.borrow_mut();
            missing.clear();
            for key in keys {
                match names.find(key)? {
                    Some(known @ Known::Leased(_)) => return Ok(vec![(key, known)]),
                    None if missing.contains(&key) => all.push((key, None)),
                    known => {
                        missing.extend(known.is_none().then_some(key));
                        all.push((key, known));
                    }
                }
            }
            let mut new = Vec::with_capacity(missing.len());
            if let Err(failure) = reserve_all(pass, &mut names, &missing, &mut new) {
                names.remove_new(&new);
                return Err(failure);
            }
            let all = all.into_iter().filter_map(|(key, known)| {
                let found = new.iter().find(|new| new.line.is_of(key));
                let new = found.map(|new| Known::Reserved(new.lock.port()));
                Some((key, known.or(new)?))
            });
            Ok(all.collect())
        })
    }

    /// Leases `n` ports, all or none.
    pub(crate) fn many(&self, n: usize) -> Result<Vec<FreePort>> {
        let all = self.find_many(n, |probe| self.request.settle(probe))?;
        Ok(all.into_iter().map(|found| self.lease(found)).collect())
    }

    /// Leases `n` ports, all or none, and turns their probes into listeners.
    pub(crate) fn many_listening(&self, n: usize) -> Result<Vec<(FreePort, TcpListener)>> {
        let all = self.find_many(n, Probe::listen)?;
        let listening = |found| self.listening_lease(found);
        Ok(all.into_iter().map(listening).collect())
    }

    /// Finds `n` ports, all or none.
    ///
    /// No caller waits while it holds some of its ports, so callers cannot deadlock: a pass that
    /// does not find enough releases everything before the pause.
    fn find_many<T>(
        &self,
        n: usize,
        finish: impl Fn(Probe) -> Attempt<T>,
    ) -> Result<Vec<Candidate<T>>> {
        if n == 0 {
            return Ok(Vec::new());
        }
        if n > self.ports().len() {
            let has = format!("has only {}", self.ports().len());
            return Err(self.too_few(&format!("{n} ports"), &has));
        }
        let headline = || match n {
            1 => self.no_free_port(),
            n => format!("fewer than {n} ports are free in {}", self.ports().brief()),
        };
        self.repeat(headline, |pass| pass.many(n, &finish))
    }

    /// Leases `n` contiguous ports of the set, all or none.
    pub(crate) fn block(&self, n: usize) -> Result<Vec<FreePort>> {
        let Some(last) = n.checked_sub(1) else {
            return Ok(Vec::new());
        };
        let starts = match u16::try_from(last) {
            Ok(last) => self.ports().starts_of_blocks(last),
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

    /// Leases the ports at all `offsets` from one port of the set.
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
        let bases = self.ports().difference(&too_high);
        if bases.is_empty() {
            let ports = self.ports().brief();
            let message =
                format!("the offset {largest} leads beyond port 65535 from every port in {ports}");
            return Err(Error::new(ErrorKind::InvalidPorts, message));
        }
        let what = format!("no free ports at the offsets {offsets:?} from any port");
        self.group(&bases, offsets, &what)
    }

    /// Leases the ports at all `offsets` from one of `bases`. No resulting port may exceed 65535.
    fn group(&self, bases: &PortSet, offsets: &[u16], what: &str) -> Result<Vec<FreePort>> {
        let headline = || format!("{what} in {}", self.ports().brief());
        let all = self.repeat(headline, |pass| pass.group(bases, offsets))?;
        Ok(all.into_iter().map(|found| self.lease(found)).collect())
    }

    fn too_few(&self, what: &str, has: &str) -> Error {
        let message = format!("{what} were asked for, but {} {has}", self.ports().brief());
        Error::new(ErrorKind::InvalidPorts, message)
    }

    /// Repeats passes until one succeeds or the timeout expires.
    fn repeat<T>(
        &self,
        headline: impl Fn() -> String,
        mut find: impl FnMut(&Pass<'_>) -> Attempt<T, Exhausted>,
    ) -> Result<T> {
        match self.pass(&mut find, Scope::All, None) {
            Ok(found) => Ok(found),
            Err(Failure::Unavailable(exhausted)) => self.wait(&headline, &mut find, exhausted),
            Err(Failure::Error(error)) => Err(error),
        }
    }

    /// Runs a pass, and repeats it if the lock directory was removed.
    fn pass<T>(
        &self,
        find: &mut impl FnMut(&Pass<'_>) -> Attempt<T, Exhausted>,
        scope: Scope<'_>,
        mut handed: Option<PortLock>,
    ) -> Attempt<T, Exhausted> {
        let mut removals = 0;
        loop {
            match find(&Pass::begin(&self.request, scope, handed.take())?) {
                Err(Failure::Error(error))
                    if error.kind() == ErrorKind::LockDir && removals < MAX_REMOVALS =>
                {
                    removals += 1;
                }
                outcome => return outcome,
            }
        }
    }

    /// Continues after the first pass. A separate function because the code for waiting would
    /// slow the first pass down.
    #[cold]
    fn wait<T>(
        &self,
        headline: &impl Fn() -> String,
        find: &mut impl FnMut(&Pass<'_>) -> Attempt<T, Exhausted>,
        mut exhausted: Exhausted,
    ) -> Result<T> {
        let start = Instant::now();
        let mut pass_took = Duration::ZERO;
        let mut waiting: Option<Wait<'_>> = None;
        let mut released = None;
        let mut doubt_pauses = DOUBT_PAUSES.into_iter();
        let mut ending_pauses = iter::repeat_n(ENDING_PAUSE, lock_file::MAX_ENDING_RETRIES);
        let mut calls = self.on_wait.map(|callback| Calls::begin(callback, start));
        let mut bound_since = None;
        loop {
            let waited = start.elapsed();
            let mut left = self.timeout.saturating_sub(waited);
            if self.request.key.is_some() && exhausted.counts().bound > 0 {
                let since = bound_since.get_or_insert_with(Instant::now);
                left = left.min(MAX_WAIT_FOR_BOUND.saturating_sub(since.elapsed()));
            } else {
                bound_since = None;
            }
            let dir = self.request.open_dir(since_1970())?;
            let is_over = released.is_none() && (left.is_zero() || !exhausted.may_change());
            let mut handed = None;
            let scope = if is_over {
                let pause = match leases::doubt(dir.as_ref(), exhausted.leased())? {
                    None => None,
                    Some(Doubt::Momentary) => doubt_pauses.next(),
                    Some(Doubt::Ending) => doubt_pauses.next().or_else(|| ending_pauses.next()),
                };
                match pause {
                    Some(pause) => thread::sleep(pause),
                    None => {
                        let waited = match self.timeout {
                            Duration::ZERO => String::new(),
                            _ => format!(" after {:.1} s", waited.as_secs_f64()),
                        };
                        // It takes milliseconds. A check, and a call that tries many ports once, is
                        // often one of many in a loop until a port is free.
                        let names_servers = self.request.creates_dir
                            && (!self.timeout.is_zero() || self.ports().len() == 1);
                        let endpoints = names_servers.then_some(self.request.endpoints);
                        let examples =
                            leases::explain(dir.as_ref(), exhausted.examples(), endpoints);
                        return Err(exhausted.into_error(headline() + &waited, &examples));
                    }
                }
                Scope::All
            } else {
                if let Some(calls) = &mut calls {
                    if released.is_none() {
                        calls.update(&mut exhausted);
                    }
                    calls.call_if_due(headline, dir.as_ref())?;
                }
                let queued = match waiting.take() {
                    Some(waiting) if waiting.is_in(dir.as_ref()) => waiting,
                    _ => Wait::new(dir.as_ref(), self.ports()),
                };
                let interrupt = calls.as_ref().map(Calls::due);
                let queued = waiting.insert(queued);
                queued.watch_for(exhausted.leased());
                released = match queued.wait(pass_took, left, interrupt) {
                    WakeReason::Released(ports) => Some(ports),
                    WakeReason::Locked(lock) => {
                        let port = lock.port();
                        handed = Some(lock);
                        Some(PortSet::from(port..=port))
                    }
                    WakeReason::Due => None,
                    WakeReason::Interrupted if start.elapsed() < self.timeout => continue,
                    WakeReason::Interrupted => None,
                };
                released
                    .as_ref()
                    .map_or(Scope::AllAfterCheck, Scope::Released)
            };
            let pass_start = Instant::now();
            exhausted = match self.pass(find, scope, handed) {
                Ok(found) => return Ok(found),
                Err(Failure::Unavailable(exhausted)) => exhausted,
                Err(Failure::Error(error)) => return Err(error),
            };
            pass_took = pass_start.elapsed();
        }
    }

    fn ports(&self) -> &PortSet {
        &self.request.ports
    }

    fn lease(&self, found: Candidate<Option<Box<Probe>>>) -> FreePort {
        FreePort::leased(self.host(), found.socket, found.lock)
    }

    fn listening_lease(&self, found: Candidate<TcpListener>) -> (FreePort, TcpListener) {
        let lease = FreePort::leased(self.host(), None, found.lock);
        (lease, found.socket)
    }

    fn host(&self) -> Option<IpAddr> {
        self.request.endpoints.hosts().first().copied()
    }
}

/// Reserves a port for each of `keys`, and adds it to `new`. An error leaves these to be removed.
fn reserve_all(
    pass: &Pass<'_>,
    names: &mut Names<'_>,
    keys: &[&Key],
    new: &mut Vec<New>,
) -> Attempt<(), Exhausted> {
    for key in keys {
        names.must_not_share_variable(key)?;
        let line = Line::new(key)?;
        let lock = pass.reserve(&line, new.iter().map(|new| new.lock.port()))?;
        names.add(lock.port(), line.clone());
        new.push(New {
            line,
            lock,
            has_copy: false,
        });
    }
    // Last, because other callers find a reservation that has its copy without the lock for all
    // names.
    names.copy_new(new)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{borrow::Cow, path::Path};

    use super::*;
    use crate::{bindfree::Endpoints, unavailable::Unavailable};

    fn acquisition<'a>(
        dir: &'a Path,
        endpoints: &'a Endpoints,
        timeout: Duration,
    ) -> Acquisition<'a> {
        Acquisition {
            request: Request {
                ports: Cow::Owned(PortSet::from(1)),
                lock_dir: Some(dir),
                endpoints,
                label: None,
                prefer: None,
                key: None,
                hold_socket: false,
                delegate_to: None,
                creates_dir: true,
            },
            timeout,
            on_wait: None,
        }
    }

    #[test]
    fn a_lock_directory_that_is_removed_repeatedly_ends_the_call() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let endpoints = Endpoints::default();
        let acquisition = acquisition(dir.path(), &endpoints, Duration::ZERO);
        let passes_until = |last: u32, kind| {
            let mut passes = 0;
            let mut find = |_: &Pass<'_>| -> Attempt<(), Exhausted> {
                passes += 1;
                match passes == last {
                    true => Ok(()),
                    false => Err(Error::new(kind, "removed").into()),
                }
            };
            let outcome = acquisition.pass(&mut find, Scope::All, None);
            (outcome.is_ok(), passes)
        };
        // Only a bound for this test.
        const FAR_BEYOND: u32 = 10 * MAX_REMOVALS;
        let removed = ErrorKind::LockDir;
        assert_eq!(passes_until(FAR_BEYOND, removed), (false, 1 + MAX_REMOVALS));
        assert_eq!(
            passes_until(1 + MAX_REMOVALS, removed),
            (true, 1 + MAX_REMOVALS)
        );
        assert_eq!(passes_until(FAR_BEYOND, ErrorKind::Lock), (false, 1));
    }

    #[test]
    fn a_call_that_waits_makes_few_passes() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let endpoints = Endpoints::default();
        let timeout = Duration::from_millis(300);
        let mut passes = 0;
        let outcome = acquisition(dir.path(), &endpoints, timeout).repeat(String::new, |_| {
            passes += 1;
            let leased = [(1, Unavailable::Leased(1))];
            Err::<(), _>(Failure::Unavailable(leased.into_iter().collect()))
        });
        let error = outcome.expect_err("leased");
        assert_eq!(error.kind(), ErrorKind::Exhausted);
        // The pauses double from a millisecond to a tenth of a second.
        assert!((2..60).contains(&passes), "{passes} passes");
    }
}
