//! One call's way to its leases: claim, lock, probe, record; and the waiting.

use std::{
    borrow::Cow,
    collections::HashMap,
    mem,
    net::{IpAddr, TcpListener},
    process,
    time::{Duration, Instant},
};

use rand::RngExt;

use crate::{
    bindfree::{Endpoints, Probe},
    error::{Error, ErrorKind, Result},
    freeport::FreePort,
    lock::{self, PortLock},
    lock_dir::LockDir,
    owner,
    ports::{Order, PortSet},
    registry::{self, Claim},
    search::{Exhausted, Miss, search},
};

/// The pause before a second pass over the ports. It doubles up to
/// [`LONGEST_PAUSE`]; half of it is random, so that waiters spread out.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// But the longest pause is never less than so many times what a pass takes.
/// Callers that want many ports each undo what they have when there are not
/// enough; those who try at the same time would keep each other from success.
const PASSES_PER_PAUSE: u32 = 8;

/// All that the attempts of one call have in common.
#[derive(Debug)]
pub(crate) struct Acquisition<'a> {
    pub(crate) ports: Cow<'a, PortSet>,
    pub(crate) dir: LockDir,
    pub(crate) endpoints: Endpoints,
    pub(crate) label: Option<&'a str>,
    pub(crate) prefer: Option<&'a str>,
    pub(crate) hold_socket: bool,
    pub(crate) timeout: Duration,
}

/// A port that was had, not yet a lease: if others that are wanted with it
/// cannot be had, its end wakes nobody.
#[derive(Debug)]
struct Taken<T> {
    socket: T,
    lock: PortLock,
    claim: Claim,
}

impl Acquisition<'_> {
    /// Leases one port.
    pub(crate) fn one(&self) -> Result<FreePort> {
        let taken = self.take_one(|probe| self.settle(probe))?;
        Ok(self.lease(taken))
    }

    /// Leases one port, and its probe becomes a listener.
    pub(crate) fn one_listening(&self) -> Result<(FreePort, TcpListener)> {
        let taken = self.take_one(Probe::listen)?;
        let lease = FreePort::leased(self.host(), None, taken.lock, taken.claim);
        Ok((lease, taken.socket))
    }

    fn take_one<T>(&self, finish: impl Fn(Probe) -> Result<Result<T, Miss>>) -> Result<Taken<T>> {
        self.repeat(
            || format!("no free port in {}", self.ports.brief()),
            |order| search(&self.ports, order, |port| self.attempt(port, &finish)),
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
            let lease = FreePort::leased(self.host(), None, taken.lock, taken.claim);
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
            return Err(self.too_few(&format!("{n} ports")));
        }
        self.repeat(
            || format!("no {n} free ports in {}", self.ports.brief()),
            |order| {
                let mut all = Vec::with_capacity(n);
                search(&self.ports, order, |port| {
                    match self.attempt(port, &finish)? {
                        Ok(taken) => all.push(taken),
                        Err(miss) => return Ok(Err(miss)),
                    }
                    if all.len() < n {
                        return Ok(Err(Miss::NotEnough));
                    }
                    Ok(Ok(mem::take(&mut all)))
                })
            },
        )
    }

    /// Leases `n` contiguous ports, all in the set.
    pub(crate) fn block(&self, n: usize) -> Result<Vec<FreePort>> {
        let Some(last) = n.checked_sub(1) else {
            return Ok(Vec::new());
        };
        let what = format!("{n} contiguous ports");
        let starts = match u16::try_from(last) {
            Ok(last) => self.ports.starts_of_blocks(last),
            Err(_) => PortSet::default(),
        };
        let offsets: Vec<u16> = (0..=u16::MAX).take(n).collect();
        self.group(&starts, &offsets, &what)
    }

    /// Leases the ports at all `offsets` from some port of the set.
    pub(crate) fn offsets(&self, offsets: &[u16]) -> Result<Vec<FreePort>> {
        let Some(&largest) = offsets.iter().max() else {
            return Ok(Vec::new());
        };
        if let Some(twice) = (1..offsets.len()).find(|&i| offsets[..i].contains(&offsets[i])) {
            let message = format!("offset {} was given twice: {offsets:?}", offsets[twice]);
            return Err(Error::new(ErrorKind::InvalidPorts, message));
        }
        let too_high = match (u16::MAX - largest).checked_add(1) {
            Some(first) => PortSet::from(first..),
            None => PortSet::default(),
        };
        let what = format!("ports with the offsets {offsets:?}");
        self.group(&self.ports.difference(&too_high), offsets, &what)
    }

    /// Leases the ports at all `offsets` from one of `bases`; none of them may
    /// be beyond 65535.
    fn group(&self, bases: &PortSet, offsets: &[u16], what: &str) -> Result<Vec<FreePort>> {
        if bases.is_empty() {
            return Err(self.too_few(what));
        }
        let all = self.repeat(
            || format!("no free {what} in {}", self.ports.brief()),
            |order| {
                // Neighbouring bases share ports: one that was missed need not
                // be tried again for each of them.
                let mut missed = HashMap::new();
                search(bases, order, |base| {
                    let ports = offsets.iter().map(|offset| base + offset);
                    if let Some(miss) = ports.clone().find_map(|port| missed.get(&port)) {
                        return Ok(Err(*miss));
                    }
                    let mut all = Vec::with_capacity(offsets.len());
                    for port in ports {
                        match self.attempt(port, |probe| self.settle(probe))? {
                            Ok(taken) => all.push(taken),
                            Err(Miss::Leftover) => return Ok(Err(Miss::Leftover)),
                            Err(miss) => {
                                missed.insert(port, miss);
                                return Ok(Err(miss));
                            }
                        }
                    }
                    Ok(Ok(all))
                })
            },
        )?;
        Ok(all.into_iter().map(|taken| self.lease(taken)).collect())
    }

    fn too_few(&self, what: &str) -> Error {
        let message = format!(
            "{what} were asked for, and {} cannot have them",
            self.ports.brief()
        );
        Error::new(ErrorKind::InvalidPorts, message)
    }

    /// Makes one pass after the other until one succeeds or the time is over.
    fn repeat<T>(
        &self,
        headline: impl Fn() -> String,
        mut pass: impl FnMut(Order) -> Result<Result<T, Exhausted>>,
    ) -> Result<T> {
        let start = Instant::now();
        let mut longest = SHORTEST_PAUSE;
        loop {
            let releases = registry::releases();
            let pass_start = Instant::now();
            let order = match self.prefer {
                Some(name) => Order::of_name(name),
                None => Order::random(&mut rand::rng()),
            };
            let exhausted = match pass(order)? {
                Ok(found) => return Ok(found),
                Err(exhausted) => exhausted,
            };
            let left = self.timeout.saturating_sub(start.elapsed());
            if left.is_zero() || !exhausted.may_change() {
                let waited = match self.timeout {
                    Duration::ZERO => String::new(),
                    _ => format!(" after {:.1} s", start.elapsed().as_secs_f64()),
                };
                let owner_of = |port| lock::recorded_owner(&self.dir, port);
                return Err(exhausted.into_error(headline() + &waited, owner_of));
            }
            let pause = rand::rng().random_range(longest / 2..=longest);
            let limit = LONGEST_PAUSE.max(pass_start.elapsed() * PASSES_PER_PAUSE);
            registry::wait_for_release(releases, pause.min(left));
            longest = (longest * 2).min(limit);
        }
    }

    /// Tries to take one port: claim, lock, probe, record.
    ///
    /// The lock comes before the probe. In the other order everybody who only
    /// looks at a leased port would bind it for a moment, and the holder's own
    /// server, if it started just then, would find its port in use.
    ///
    /// On every way out but the last, what was taken is given back in the
    /// opposite order, by being dropped.
    fn attempt<T>(
        &self,
        port: u16,
        finish: impl FnOnce(Probe) -> Result<Result<T, Miss>>,
    ) -> Result<Result<Taken<T>, Miss>> {
        let pid = process::id();
        let Some(claim) = registry::claim(port, pid) else {
            return Ok(Err(Miss::Leased(port)));
        };
        let Some(lock) = PortLock::try_acquire(&self.dir, port, pid)? else {
            return Ok(Err(Miss::Leased(port)));
        };
        let probe = match Probe::bind(port, &self.endpoints)? {
            Ok(probe) => probe,
            Err(miss) => return Ok(Err(miss)),
        };
        let socket = match finish(probe)? {
            Ok(socket) => socket,
            Err(miss) => return Ok(Err(miss)),
        };
        lock.write_owner(&owner::held(pid, self.label))?;
        Ok(Ok(Taken {
            socket,
            lock,
            claim,
        }))
    }

    /// Closes the probe, or holds it if that was asked for.
    fn settle(&self, probe: Probe) -> Result<Result<Option<Probe>, Miss>> {
        if self.hold_socket {
            return Ok(Ok(Some(probe.hold()?)));
        }
        probe.close()?;
        Ok(Ok(None))
    }

    fn lease(&self, taken: Taken<Option<Probe>>) -> FreePort {
        FreePort::leased(self.host(), taken.socket, taken.lock, taken.claim)
    }

    fn host(&self) -> Option<IpAddr> {
        self.endpoints.hosts().first().copied()
    }
}
