//! The process-wide set of claimed ports.
//!
//! The lock files alone already exclude threads of one process from each other: a `flock` lock
//! belongs to the open file description, and every acquisition opens its own (flock(2)). The set
//! saves the system calls for ports that this process holds.
//!
//! A port's entry is the mark of the process that claimed it rather than a bit. A child created
//! by `fork` inherits the memory. With bits, it would forever assume that it holds every port
//! that its parent held then, because nothing would clear them. An entry with another mark does
//! not belong to this process, and the lock file decides.
//!
//! There is one set for all lock directories: a port belongs to the machine, and two leases of
//! one number in one process would be useless.

#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, Ordering};

#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, Ordering};

use crate::mark::Mark;

/// The mark of the process that claimed each port, or 0. 256 KiB of zero pages; only the pages of
/// claimed ports are backed by memory.
#[cfg(not(loom))]
static CLAIMED_BY: [AtomicU32; 1 << 16] = [const { AtomicU32::new(0) }; 1 << 16];

// For the model: a new set for each execution, no larger than needed.
#[cfg(loom)]
loom::lazy_static! {
    static ref CLAIMED_BY: [AtomicU32; 3] = std::array::from_fn(|_| AtomicU32::new(0));
}

/// A port claimed by this process, until dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    port: u16,
    mark: Mark,
}

/// Claims `port` for the process with this mark, which must be the caller's own.
#[inline]
pub(crate) fn claim(port: u16, mark: Mark) -> Option<Claim> {
    let entry = &CLAIMED_BY[usize::from(port)];
    let current = entry.load(Ordering::Relaxed);
    if current == mark {
        return None;
    }
    entry
        .compare_exchange(current, mark, Ordering::Acquire, Ordering::Relaxed)
        .ok()
        .map(|_| Claim { port, mark })
}

/// Returns whether the process with this mark, which must be the caller's own, has claimed
/// `port`.
pub(crate) fn is_claimed(port: u16, mark: Mark) -> bool {
    CLAIMED_BY[usize::from(port)].load(Ordering::Relaxed) == mark
}

impl Claim {
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Returns the mark of the process that claimed it.
    pub(crate) fn mark(&self) -> Mark {
        self.mark
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // In a forked copy this clears only the child's memory, where the parent's entry has no
        // meaning anyway. Not a load and a store: in between, another thread of the child may
        // claim the port (the model finds it).
        let _ = CLAIMED_BY[usize::from(self.port)].compare_exchange(
            self.mark,
            0,
            Ordering::Release,
            Ordering::Relaxed,
        );
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    // Nothing here binds: ports 1 to 9 are only numbers, used only by this module.

    #[test]
    fn a_port_is_claimed_once_until_dropped() {
        let pid = std::process::id();
        let first = claim(1, pid).expect("unclaimed");
        assert_eq!((first.port(), first.mark()), (1, pid));
        assert!(claim(1, pid).is_none());
        assert!(is_claimed(1, pid) && !is_claimed(1, pid + 1));
        assert!(claim(2, pid).is_some(), "dropped immediately");
        drop(first);
        assert!(!is_claimed(1, pid));
        assert!(claim(1, pid).is_some());
    }

    #[test]
    fn a_claim_inherited_from_another_process_does_not_count() {
        let parent = claim(3, 1_000_001).expect("unclaimed");
        let child = claim(3, 1_000_002).expect("the parent's entry is not ours");
        drop(parent);
        assert!(claim(3, 1_000_002).is_none(), "still the child's");
        drop(child);
    }
}

/// Explores every interleaving of the threads' steps, and every value that the memory model lets
/// them read: `RUSTFLAGS="--cfg loom" cargo test --release --lib registry`.
#[cfg(all(test, loom))]
mod model {
    use std::{mem, sync::atomic as unmodelled};

    use loom::{
        sync::{
            Arc,
            atomic::{AtomicBool, AtomicUsize},
        },
        thread,
    };

    use super::*;

    const PID: u32 = 812;
    const PARENT: u32 = 811;

    /// The data of the holder of a port.
    #[derive(Default)]
    struct Place {
        is_held: AtomicBool,
        /// Written with relaxed ordering: the next holder sees what the last one wrote only if
        /// the claims ensure it.
        holders: AtomicUsize,
    }

    impl Place {
        /// Claims the port if it is free, and releases it.
        fn visit(&self, port: u16) -> usize {
            let Some(claim) = claim(port, PID) else {
                return 0;
            };
            let was_held = self.is_held.swap(true, Ordering::Relaxed);
            assert!(!was_held, "two have port {port}");
            let holders = self.holders.load(Ordering::Relaxed);
            self.holders.store(holders + 1, Ordering::Relaxed);
            self.is_held.store(false, Ordering::Relaxed);
            drop(claim);
            1
        }
    }

    fn explore(name: &str, execution: impl Fn() + Send + Sync + 'static) {
        let executions = std::sync::Arc::new(unmodelled::AtomicUsize::new(0));
        let counter = std::sync::Arc::clone(&executions);
        loom::model(move || {
            counter.fetch_add(1, Ordering::Relaxed);
            execution();
        });
        println!("{name}: {executions:?} executions");
    }

    /// Runs threads that each visit their ports in this order.
    fn visitors(orders: &'static [&'static [u16]]) {
        let places: Arc<[Place; 3]> = Arc::default();
        let visit = |ports: &'static [u16]| {
            let places = Arc::clone(&places);
            move || -> Vec<(u16, usize)> {
                let visit = |&port: &u16| (port, places[usize::from(port)].visit(port));
                ports.iter().map(visit).collect()
            }
        };
        let (here, others) = orders.split_first().expect("one at least");
        let others: Vec<_> = others
            .iter()
            .map(|ports| thread::spawn(visit(ports)))
            .collect();
        let mut visits = visit(here)();
        for other in others {
            visits.extend(other.join().expect("no panic"));
        }
        for port in 1..=2 {
            let of_port = visits.iter().filter(|visit| visit.0 == port);
            let successes: usize = of_port.clone().map(|visit| visit.1).sum();
            let place = &places[usize::from(port)];
            assert_eq!(place.holders.load(Ordering::Relaxed), successes);
            assert!(
                successes > 0 || of_port.count() == 0,
                "nobody had port {port}"
            );
            assert!(claim(port, PID).is_some(), "port {port} was not given back");
        }
    }

    #[test]
    fn one_holder_at_a_time_sees_what_the_last_one_wrote() {
        explore("two threads", || visitors(&[&[1, 1], &[1, 1]]));
        explore("three threads", || visitors(&[&[1], &[1], &[1]]));
        explore("two ports", || visitors(&[&[1, 2], &[2, 1]]));
    }

    #[test]
    fn one_of_two_simultaneous_claims_succeeds() {
        explore("simultaneously", || {
            let other = thread::spawn(|| claim(1, PID));
            let both = [claim(1, PID), other.join().expect("no panic")];
            assert_eq!(both.iter().flatten().count(), 1);
        });
    }

    #[test]
    fn one_of_two_claims_in_a_forked_child_succeeds() {
        explore("in a child", || {
            mem::forget(claim(1, PARENT));
            let other = thread::spawn(|| claim(1, PID));
            let both = [claim(1, PID), other.join().expect("no panic")];
            assert_eq!(both.iter().flatten().count(), 1);
        });
        explore("in a child that drops its copy", || {
            let copy = claim(1, PARENT);
            let other = thread::spawn(|| claim(1, PID));
            drop(copy);
            let both = [claim(1, PID), other.join().expect("no panic")];
            assert_eq!(both.iter().flatten().count(), 1);
        });
    }
}
