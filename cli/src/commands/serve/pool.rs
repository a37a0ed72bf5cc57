//! The ports of a port server, and the clients to which they are granted.
//!
//! The state kept here only determines where to search first. Every grant is a lease in the
//! lock directory, delegated to the client. So a server that is killed and restarted, with
//! nothing in memory, still honors every grant.

use std::{
    collections::HashMap,
    fmt, iter, mem,
    path::PathBuf,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use portlock::{Builder, EntryState, FreePort, PortEntry, PortSet, Protocol};
use rand::{rngs::SmallRng, seq::SliceRandom as _};

use crate::{failure::is_busy, lock_dir::lock_dir, sys};

/// The pause before busy ports are searched again: a bounded multiple of the time that the last
/// search took. It limits the work that refused clients can cause.
const PAUSE_FACTOR: u32 = 4;
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Number of ports that are searched together, unless some are in TIME_WAIT.
///
/// A search that finds a port does not report which others are taken. So where most of a large
/// pool is taken, several small searches learn more than one large one. Also, the time to copy a
/// set and to remove a port from it is proportional to its size: with 512 ports, a grant took
/// 10 % longer.
const BLOCK: usize = 64;

/// Maximum size of a pool that is kept as one block. A block in which every port is taken or in
/// TIME_WAIT costs 32 ms, the time that the library waits for a lingering socket.
const UNDIVIDED: usize = 512;

/// Number of searches per request, in addition to one per block of free ports. One is normal, for
/// ports that may have become free. More happen only if other requests return ports meanwhile.
const SEARCHES: usize = 8;

/// The pause between checks for clients that have ended, as a multiple of the time that the last
/// check took.
const RECLAIM_FACTOR: u32 = 20;

/// If fewer free ports are left, only one request at a time searches them. Otherwise concurrent
/// requests would find them locked by each other, and the library would wait for these locks.
const FEW: usize = 8;

/// Why a port was not granted.
#[derive(Debug)]
pub(crate) enum Denial {
    /// The process does not exist, or must not have ports.
    Process,
    /// No port is free.
    Exhausted,
    Failure(portlock::Error),
}

/// The ports that a server grants.
#[derive(Debug)]
pub(crate) struct Pool {
    size: usize,
    lock_dir: Option<PathBuf>,
    /// Whether ports in TIME_WAIT are granted: like any other if `true`, never if `false`, and
    /// only when no strictly free port is left if `None`.
    reuse_address: Option<bool>,
    state: Mutex<State>,
    /// Held while the last few ports are searched.
    turn: Mutex<()>,
    checked_for_last_request: AtomicUsize,
}

/// Every port of the pool is in one of these.
#[derive(Debug)]
struct State {
    /// Believed to be free, in nonempty blocks. The last block is searched first.
    free: Vec<PortSet>,
    /// Found to be leased by others, or bound.
    busy: PortSet,
    /// By the pid of the client, oldest first.
    granted: HashMap<u32, Vec<u16>>,
    /// The earliest time at which busy ports are searched again.
    next_rescan: Instant,
    /// The time of the next check for clients that have ended.
    next_reclaim: Instant,
}

/// The ports of one search.
#[derive(Debug)]
struct Candidates {
    ports: PortSet,
    /// Whether no other ports are believed to be free.
    are_all: bool,
}

impl Pool {
    pub(crate) fn new(
        ports: &PortSet,
        reuse_address: Option<bool>,
        lock_dir: Option<PathBuf>,
    ) -> Self {
        Self {
            size: ports.len(),
            lock_dir,
            reuse_address,
            state: Mutex::new(State {
                free: blocks(ports),
                busy: PortSet::default(),
                granted: HashMap::new(),
                next_rescan: Instant::now(),
                next_reclaim: Instant::now(),
            }),
            turn: Mutex::new(()),
            checked_for_last_request: AtomicUsize::new(0),
        }
    }

    /// Returns how many ports there are, and how many were tried for the last request.
    ///
    /// A search that finds a port counts as one, because the library does not report how many
    /// ports it skipped.
    pub(crate) fn numbers(&self) -> (usize, usize) {
        let checked = self.checked_for_last_request.load(Ordering::Relaxed);
        (self.size, checked)
    }

    /// Describes who has the ports, such as `280 granted to 12 processes, 20 taken by
    /// others`.
    pub(crate) fn usage(&self) -> impl fmt::Display {
        let state = self.state();
        let granted: usize = state.granted.values().map(Vec::len).sum();
        let free: usize = state.free.iter().map(PortSet::len).sum();
        let others = self.size.saturating_sub(granted + free);
        let processes = state.granted.len();
        let noun = if processes == 1 {
            "process"
        } else {
            "processes"
        };
        format!("{granted} granted to {processes} {noun}, {others} taken by others")
    }

    /// Leases a port for the process `pid`. Blocks in system calls, and does not hold the state's
    /// lock meanwhile.
    pub(crate) fn grant(&self, pid: u32) -> Result<u16, Denial> {
        if sys::is_no_process(pid) {
            return Err(Denial::Process);
        }
        let mut checked = 0;
        let granted = self.search(pid, &mut checked);
        self.checked_for_last_request
            .store(checked, Ordering::Relaxed);
        granted
    }

    fn search(&self, pid: u32, checked: &mut usize) -> Result<u16, Denial> {
        let mut may_refill = true;
        for _ in 0..self.size / BLOCK + SEARCHES {
            let Some(mut candidates) = self.candidates(&mut may_refill) else {
                break;
            };
            let mut _turn = None;
            if candidates.are_all && candidates.ports.len() < FEW {
                _turn = Some(self.turn.lock().unwrap_or_else(PoisonError::into_inner));
                // The previous request may have taken some.
                match self.candidates(&mut may_refill) {
                    Some(now) => candidates = now,
                    None => break,
                }
            }
            let start = Instant::now();
            match self.lease(&candidates, pid) {
                Ok(port) => {
                    *checked += 1;
                    self.state().grant(port, pid);
                    return Ok(port);
                }
                Err(error) if is_busy(&error) => {
                    *checked += candidates.ports.len();
                    let lingering = error.counts().map_or(0, |counts| counts.lingering);
                    let mut state = self.state();
                    if lingering > 0 && !candidates.are_all {
                        // They are the last resort, once all other ports have been searched.
                        state.join_blocks();
                    } else {
                        state.miss(&candidates.ports, start.elapsed());
                    }
                }
                Err(error) => {
                    return Err(match error.kind() {
                        // The process has just ended.
                        portlock::ErrorKind::Process => Denial::Process,
                        _ => Denial::Failure(error),
                    });
                }
            }
        }
        Err(Denial::Exhausted)
    }

    /// Returns the ports to search next, and checks once per request for more.
    fn candidates(&self, may_refill: &mut bool) -> Option<Candidates> {
        let mut state = self.state();
        if state.free.is_empty() && mem::take(may_refill) {
            self.refill(&mut state);
        }
        state.reclaim();
        let are_all = state.free.len() == 1;
        let ports = state.free.last()?.clone();
        Some(Candidates { ports, are_all })
    }

    /// Leases one of the candidates.
    ///
    /// By default, ports in TIME_WAIT are the last resort: the library may use them only when no
    /// other ports are left to be searched.
    fn lease(&self, candidates: &Candidates, pid: u32) -> portlock::Result<u16> {
        let mut builder: Builder = FreePort::builder()
            .ports(&candidates.ports)
            .protocol(Protocol::TcpAndUdp)
            .timeout(Duration::ZERO)
            .label("port server");
        if let Some(dir) = &self.lock_dir {
            builder = builder.lock_dir(dir);
        }
        let strictly = (!candidates.are_all).then_some(false);
        if let Some(reuse_address) = self.reuse_address.or(strictly) {
            builder = builder.reuse_address(reuse_address);
        }
        builder.acquire_for(pid)
    }

    /// Returns the ports of clients that have ended to the pool and, if a rescan is due, all busy
    /// ports.
    ///
    /// Only the oldest port of a pid is checked, on behalf of all of them. If the pid was reused
    /// by another client, the search finds that client's ports leased.
    fn refill(&self, state: &mut State) {
        let State {
            free,
            busy,
            granted,
            next_rescan,
            ..
        } = state;
        let now = Instant::now();
        let is_due = *next_rescan <= now;
        let mut returned = Vec::new();
        granted.retain(|&pid, ports| {
            let is_granted = |port: &u16| self.is_granted(*port, pid);
            // Checking that the pid still belongs to the client takes longer.
            let lives =
                !sys::is_no_process(pid) && (!is_due || ports.first().is_some_and(is_granted));
            if !lives {
                returned.append(ports);
            }
            lives
        });
        let mut ports: PortSet = returned.into_iter().collect();
        if is_due {
            *next_rescan = now + SHORTEST_PAUSE;
            ports = ports.union(&mem::take(busy));
        }
        *free = blocks(&ports);
    }

    /// Returns whether the port is still leased for the client with this pid. Returns `false` if
    /// that cannot be determined: a search then finds the port leased.
    fn is_granted(&self, port: u16, pid: u32) -> bool {
        let entry = lock_dir(self.lock_dir.as_deref()).and_then(|dir| dir.entry(port));
        let is_clients = |entry: PortEntry| {
            entry.state == EntryState::Delegated
                && entry.owner.is_some_and(|owner| owner.pid() == pid)
        };
        entry.is_ok_and(|entry| entry.is_some_and(is_clients))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Divides ports into blocks in random order, so that several servers and callers on the same
/// ports start in different places.
fn blocks(ports: &PortSet) -> Vec<PortSet> {
    let ports: Vec<u16> = ports.iter().collect();
    let len = match ports.len() {
        0..=UNDIVIDED => UNDIVIDED,
        _ => BLOCK,
    };
    let blocks = ports.chunks(len).map(|block| block.iter().copied());
    let mut blocks: Vec<PortSet> = blocks.map(PortSet::from_iter).collect();
    blocks.shuffle(&mut rand::make_rng::<SmallRng>());
    blocks
}

impl State {
    /// Joins all blocks of free ports into one.
    fn join_blocks(&mut self) {
        let joined = mem::take(&mut self.free).into_iter();
        let joined = joined.reduce(|joined, block| joined.union(&block));
        self.free.extend(joined);
    }

    /// Returns the ports of clients that are certainly gone to the pool, if a check is due. They join
    /// the block that is searched next, because their lock files already exist. Separate blocks
    /// would each cost a search, and the number of searches per request is bounded.
    fn reclaim(&mut self) {
        let start = Instant::now();
        if start < self.next_reclaim {
            return;
        }
        let mut returned = Vec::new();
        self.granted.retain(|&pid, ports| {
            let is_gone = sys::is_no_process(pid);
            if is_gone {
                returned.append(ports);
            }
            !is_gone
        });
        let returned: PortSet = returned.into_iter().collect();
        match self.free.last_mut() {
            _ if returned.is_empty() => {}
            Some(next) => *next = next.union(&returned),
            None => self.free.push(returned),
        }
        self.next_reclaim = start + start.elapsed() * RECLAIM_FACTOR;
    }

    /// Records that a port has been granted. Another search may have moved it meanwhile.
    fn grant(&mut self, port: u16, pid: u32) {
        let one = PortSet::from(port);
        let busy = iter::once(&mut self.busy);
        let mut sets = self.free.iter_mut().rev().chain(busy);
        if let Some(set) = sets.find(|set| set.contains(port)) {
            *set = set.difference(&one);
        }
        self.free.retain(|block| !block.is_empty());
        self.granted.entry(pid).or_default().push(port);
    }

    /// Records that none of these ports was available.
    fn miss(&mut self, ports: &PortSet, took: Duration) {
        for block in &mut self.free {
            // Some may have been granted to other clients meanwhile.
            let rest = block.difference(ports);
            self.busy = self.busy.union(&block.difference(&rest));
            *block = rest;
        }
        self.free.retain(|block| !block.is_empty());
        let pause = (took * PAUSE_FACTOR).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        self.next_rescan = self.next_rescan.max(Instant::now() + pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_granted_once_while_its_client_lives() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let ports: PortSet = "20100-20104".parse().expect("valid");
        let pool = Pool::new(&ports, None, Some(dir.path().to_owned()));
        let own = std::process::id();
        // Both wait for their input, which stays open during this test.
        let waiting = if cfg!(windows) { "cmd" } else { "cat" };
        let mut child = std::process::Command::new(waiting)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("every system has it");
        let first = pool.grant(child.id()).expect("one is free");
        let mut granted = vec![first];
        while let Ok(port) = pool.grant(own) {
            assert!(!granted.contains(&port));
            granted.push(port);
        }
        assert!(matches!(pool.grant(own), Err(Denial::Exhausted)));
        child.kill().expect("our own child");
        child.wait().expect("our own child");
        // On Windows a process exists as long as any handle to it is open, and only the next rescan
        // finds that it has ended.
        let patience = Duration::from_secs(if cfg!(windows) { 60 } else { 0 });
        let deadline = Instant::now() + patience;
        let back = loop {
            match pool.grant(own) {
                Ok(port) => break port,
                Err(denial) => assert!(Instant::now() < deadline, "not returned: {denial:?}"),
            }
            std::thread::sleep(SHORTEST_PAUSE);
        };
        assert_eq!(back, first);

        // Another server, or a restarted one, finds all of them leased.
        let again = Pool::new(&ports, None, Some(dir.path().to_owned()));
        assert!(matches!(again.grant(own), Err(Denial::Exhausted)));
        assert!(matches!(again.grant(1 << 23), Err(Denial::Process)));
    }

    fn free(state: &State) -> PortSet {
        state.free.iter().flat_map(PortSet::iter).collect()
    }

    #[test]
    fn successive_clients_leave_few_lock_files() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let ports = PortSet::from(21_000..=21_999);
        let pool = Pool::new(&ports, None, Some(dir.path().to_owned()));
        for _ in 0..400 {
            let waiting = if cfg!(windows) { "cmd" } else { "cat" };
            let mut child = std::process::Command::new(waiting)
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::null())
                .spawn()
                .expect("every system has it");
            pool.grant(child.id()).expect("many are free");
            child.kill().expect("our own child");
            child.wait().expect("our own child");
        }
        let names = std::fs::read_dir(dir.path()).expect("our own");
        let names = names.map(|entry| entry.expect("our own").file_name().into_string());
        let is_lock_file =
            |name: &Result<String, _>| name.as_ref().is_ok_and(|name| name.parse::<u16>().is_ok());
        let files = names.filter(is_lock_file).count();
        // A new port for each client would leave 400. On a busy machine, the checks for clients that
        // have ended are less frequent.
        assert!(files <= 200, "{files} lock files");
    }

    #[test]
    fn ports_that_come_back_one_by_one_add_no_searches() {
        let ports = PortSet::from(4000..=4999);
        let pool = Pool::new(&ports, None, None);
        let mut state = pool.state();
        let blocks = state.free.len();
        // No process can have this pid.
        for port in 4000..=4999 {
            state.grant(port, 1 << 23);
            state.next_reclaim = Instant::now();
            state.reclaim();
        }
        assert_eq!(free(&state), ports);
        assert!(state.free.len() <= blocks, "{} blocks", state.free.len());
    }

    #[test]
    fn a_search_that_misses_moves_only_what_it_searched() {
        let set = |text: &str| text.parse::<PortSet>().expect("valid");
        let pool = Pool::new(&set("4000-4009"), None, None);
        let mut state = pool.state();
        // Meanwhile another client was granted one of the ports.
        state.grant(4001, 812);
        state.miss(&set("4000-4004"), Duration::ZERO);
        assert_eq!(state.free, [set("4005-4009")]);
        assert_eq!(state.busy, set("4000,4002-4004"));
        state.miss(&set("4004-4006"), Duration::ZERO);
        assert_eq!(state.free, [set("4007-4009")]);
        assert_eq!(state.busy, set("4000,4002-4006"));
        // Granted even though this server believed that it was busy.
        state.grant(4003, 813);
        assert_eq!(state.busy, set("4000,4002,4004-4006"));
        drop(state);
        assert_eq!(
            pool.usage().to_string(),
            "2 granted to 2 processes, 5 taken by others"
        );
    }

    #[test]
    fn every_port_is_in_one_block_until_one_lingers() {
        let ports: PortSet = "4000-4999,7000".parse().expect("valid");
        let pool = Pool::new(&ports, None, None);
        let mut state = pool.state();
        let sizes = |state: &State| state.free.iter().map(PortSet::len).collect::<Vec<_>>();
        let mut blocks = sizes(&state);
        blocks.sort_unstable();
        let full = [BLOCK; 1001 / BLOCK];
        assert_eq!(blocks, [&[1001 % BLOCK], &full[..]].concat());
        state.grant(7000, 812);
        state.join_blocks();
        assert_eq!(state.free, [PortSet::from(4000..=4999)]);
        state.join_blocks();
        assert_eq!(sizes(&state), [1000]);
        for port in 4000..=4999 {
            state.grant(port, 812);
        }
        assert!(state.free.is_empty());
        state.join_blocks();
        assert!(state.free.is_empty());
    }
}
