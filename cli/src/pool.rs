//! The ports of a port server, and who has been granted which.
//!
//! What is kept here only says where to look first. Every grant is a lease out of
//! the lock directory, delegated to the client, and so a server that was
//! killed and starts again with nothing in memory keeps every promise.

use std::{
    collections::{HashMap, VecDeque},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use portlock::{Builder, FreePort, Lease, LeaseState, LockDir, PortSet, Protocol};

use crate::{lease::is_busy, sys};

/// How long the outcome of looking at all ports again counts, if it was that
/// none is free. It bounds what refused clients can make the server do.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Why a port was not granted.
#[derive(Debug)]
pub(crate) enum Denial {
    /// No such process, or one that must not have ports.
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
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Believed to be free, to be tried from the front.
    free: VecDeque<u16>,
    /// Granted, by the pid of the client, the oldest first.
    granted: HashMap<u32, Vec<u16>>,
    /// Found to be leased by others, or bound.
    busy: Vec<u16>,
    looked: Option<Instant>,
    checked_for_last_request: usize,
}

impl Pool {
    pub(crate) fn new(ports: &PortSet, lock_dir: Option<PathBuf>) -> Self {
        let mut free: Vec<u16> = ports.iter().collect();
        // Other servers and other callers on the same ports start elsewhere.
        rand::seq::SliceRandom::shuffle(&mut free[..], &mut rand::rng());
        Self {
            size: free.len(),
            lock_dir,
            state: Mutex::new(State {
                free: free.into(),
                granted: HashMap::new(),
                busy: Vec::new(),
                looked: None,
                checked_for_last_request: 0,
            }),
        }
    }

    /// How many ports there are, and how many were tried for the last request.
    pub(crate) fn numbers(&self) -> (usize, usize) {
        (self.size, self.state().checked_for_last_request)
    }

    /// Leases a port for the process `pid`. Blocks for as long as the system calls
    /// of that take, and no lock is held meanwhile.
    pub(crate) fn grant(&self, pid: u32) -> Result<u16, Denial> {
        if sys::is_no_process(pid) {
            return Err(Denial::Process);
        }
        let (mut checked, mut looked) = (0, false);
        let granted = loop {
            let next = self.state().free.pop_front();
            if let Some(port) = next {
                checked += 1;
                match self.lease(port, pid) {
                    Ok(port) => {
                        self.state().granted.entry(pid).or_default().push(port);
                        break Ok(port);
                    }
                    Err(error) if is_busy(&error) => self.state().busy.push(port),
                    Err(error) => {
                        self.state().free.push_back(port);
                        break Err(match error.kind() {
                            // It has ended just now.
                            portlock::ErrorKind::Process => Denial::Process,
                            _ => Denial::Failure(error),
                        });
                    }
                }
            } else if looked || !self.look_again() {
                break Err(Denial::Exhausted);
            } else {
                looked = true;
            }
        };
        self.state().checked_for_last_request = checked;
        granted
    }

    fn lease(&self, port: u16, pid: u32) -> portlock::Result<u16> {
        let mut builder: Builder = FreePort::builder()
            .ports(port..=port)
            .protocol(Protocol::TcpAndUdp)
            .timeout(Duration::ZERO)
            .label("port server");
        if let Some(dir) = &self.lock_dir {
            builder = builder.lock_dir(dir);
        }
        builder.acquire_for(pid)
    }

    /// Puts back what may be free again: ports of clients that have ended, and all
    /// that others had. Whether there was any.
    ///
    /// The oldest port of a pid tells for all of them. If the pid has been given
    /// to a process that is a client too, its ports are found to be leased.
    fn look_again(&self) -> bool {
        let mut state = self.state();
        if !state.free.is_empty() {
            return true;
        }
        let State { free, granted, .. } = &mut *state;
        granted.retain(|&pid, ports| {
            let lives = ports
                .first()
                .is_some_and(|&port| self.is_granted(port, pid));
            if !lives {
                free.extend(ports.drain(..));
            }
            lives
        });
        let is_due = state
            .looked
            .is_none_or(|looked| looked.elapsed() >= LOOK_AGAIN);
        if state.free.is_empty() && is_due {
            state.looked = Some(Instant::now());
            let busy = std::mem::take(&mut state.busy);
            state.free.extend(busy);
        }
        !state.free.is_empty()
    }

    /// Whether the port's lease is still that of the client with this pid. In doubt
    /// not: the lease itself decides.
    fn is_granted(&self, port: u16, pid: u32) -> bool {
        let lease = LockDir::locate(self.lock_dir.as_deref()).and_then(|dir| dir.lease(port));
        let is_clients = |lease: Lease| {
            lease.state == LeaseState::Delegated
                && lease.owner.is_some_and(|owner| owner.pid() == pid)
        };
        lease.is_ok_and(|lease| lease.is_some_and(is_clients))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_granted_once_while_its_client_lives() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let ports: PortSet = "20100-20104".parse().expect("valid");
        let pool = Pool::new(&ports, Some(dir.path().to_owned()));
        let own = std::process::id();
        // Either waits for its input, which does not end before this test.
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
        assert_eq!(pool.grant(own).expect("given back"), first);

        // Another server, or the same one started again, knows of all of them.
        let again = Pool::new(&ports, Some(dir.path().to_owned()));
        assert!(matches!(again.grant(own), Err(Denial::Exhausted)));
        assert!(matches!(again.grant(1 << 23), Err(Denial::Process)));
    }
}
