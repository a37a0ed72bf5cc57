//! The process-wide set of claimed ports, and the wake-up when one is given back.
//!
//! The lock files alone already exclude threads of one process from each
//! other: `flock` belongs to the open file description, and every acquisition
//! opens its own (flock(2)). The set saves the system calls for ports that
//! this very process holds, and tells its waiting threads at once when one
//! comes free.
//!
//! A port's entry is the pid that claimed it rather than a bit. A child made
//! by `fork` inherits the memory, and with mere bits it would believe for ever
//! that it holds whatever its parent held then, with nobody to clear them. An
//! entry of another pid is simply not ours, and the lock file decides.
//!
//! The set is one for all lock directories: a port is the machine's, and two
//! leases of one number in one process would help nobody.

use std::{
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

/// By port: the pid that claimed it, or 0. 256 KiB of zero pages, of which
/// only those are ever backed by memory whose ports are touched.
static CLAIMED_BY: [AtomicU32; 1 << 16] = [const { AtomicU32::new(0) }; 1 << 16];

/// How many leases this process has ended.
static RELEASES: AtomicU64 = AtomicU64::new(0);
static WAITERS: AtomicU32 = AtomicU32::new(0);
/// Guards no data: it orders a release against a waiter about to sleep.
static WAITING: Mutex<()> = Mutex::new(());
static RELEASED: Condvar = Condvar::new();

/// A port claimed by this process, until dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    port: u16,
    pid: u32,
    leased: bool,
}

/// Claims `port` for the process `pid`, which must be the caller's own.
pub(crate) fn claim(port: u16, pid: u32) -> Option<Claim> {
    let entry = &CLAIMED_BY[usize::from(port)];
    let current = entry.load(Ordering::Relaxed);
    if current == pid {
        return None;
    }
    entry
        .compare_exchange(current, pid, Ordering::Acquire, Ordering::Relaxed)
        .ok()
        .map(|_| Claim {
            port,
            pid,
            leased: false,
        })
}

impl Claim {
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Marks the claim as a lease: its end then wakes the waiting threads.
    ///
    /// A claim that ends without one, because the port turned out to be held
    /// elsewhere, wakes nobody: two waiters would keep waking each other.
    pub(crate) fn into_lease(mut self) -> Self {
        self.leased = true;
        self
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // In a forked copy this clears the child's own memory only, where the
        // parent's entry meant nothing anyway.
        let _ = CLAIMED_BY[usize::from(self.port)].compare_exchange(
            self.pid,
            0,
            Ordering::Release,
            Ordering::Relaxed,
        );
        if self.leased {
            RELEASES.fetch_add(1, Ordering::SeqCst);
            // Sequentially consistent on both sides: either this load sees the
            // waiter, or the waiter's look at RELEASES sees this release.
            if WAITERS.load(Ordering::SeqCst) > 0 {
                drop(WAITING.lock().unwrap_or_else(PoisonError::into_inner));
                RELEASED.notify_all();
            }
        }
    }
}

/// How many leases of this process have ended so far: take it before a search,
/// hand it to [`wait_for_release`] after.
pub(crate) fn releases() -> u64 {
    RELEASES.load(Ordering::SeqCst)
}

/// Waits until this process has ended another lease since `seen` was read, but
/// no longer than `at_most`.
pub(crate) fn wait_for_release(seen: u64, at_most: Duration) {
    WAITERS.fetch_add(1, Ordering::SeqCst);
    let guard = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
    let unchanged = |(): &mut ()| releases() == seen;
    // Woken or timed out, the caller searches again either way.
    drop(RELEASED.wait_timeout_while(guard, at_most, unchanged));
    WAITERS.fetch_sub(1, Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc,
        time::{Duration, Instant},
    };

    use serial_test::serial;

    use super::*;

    // Nothing here binds: ports 1 to 9 are only numbers, used by this module alone.

    #[test]
    fn a_port_is_claimed_once_until_dropped() {
        let pid = std::process::id();
        let first = claim(1, pid).expect("unclaimed");
        assert!(claim(1, pid).is_none());
        assert!(claim(2, pid).is_some(), "dropped at once");
        drop(first);
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

    #[test]
    #[serial(releases)]
    fn the_end_of_a_lease_wakes_a_waiter() {
        let lease = claim(4, std::process::id())
            .expect("unclaimed")
            .into_lease();
        let (about_to_wait, waiting) = mpsc::channel();
        let waiter = std::thread::spawn(move || {
            let seen = releases();
            about_to_wait.send(()).expect("receiver lives");
            let start = Instant::now();
            wait_for_release(seen, Duration::from_secs(60));
            start.elapsed()
        });
        waiting.recv().expect("sender lives");
        drop(lease);
        assert!(waiter.join().expect("no panic") < Duration::from_secs(30));
    }

    #[test]
    #[serial(releases)]
    fn a_claim_that_became_no_lease_wakes_nobody() {
        let seen = releases();
        drop(claim(5, std::process::id()));
        assert_eq!(releases(), seen);
    }
}
