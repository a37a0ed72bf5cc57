//! The process-wide set of claimed ports.
//!
//! The lock files alone already exclude threads of one process from each
//! other: `flock` belongs to the open file description, and every acquisition
//! opens its own (flock(2)). The set saves the system calls for ports that
//! this very process holds.
//!
//! A port's entry is the pid that claimed it rather than a bit. A child made
//! by `fork` inherits the memory, and with mere bits it would believe for ever
//! that it holds whatever its parent held then, with nobody to clear them. An
//! entry of another pid is simply not ours, and the lock file decides.
//!
//! The set is one for all lock directories: a port is the machine's, and two
//! leases of one number in one process would help nobody.

use std::sync::atomic::{AtomicU32, Ordering};

/// By port: the pid that claimed it, or 0. 256 KiB of zero pages, of which
/// only those are ever backed by memory whose ports are touched.
static CLAIMED_BY: [AtomicU32; 1 << 16] = [const { AtomicU32::new(0) }; 1 << 16];

/// A port claimed by this process, until dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    port: u16,
    pid: u32,
}

/// Claims `port` for the process `pid`, which must be the caller's own.
#[inline]
pub(crate) fn claim(port: u16, pid: u32) -> Option<Claim> {
    let entry = &CLAIMED_BY[usize::from(port)];
    let current = entry.load(Ordering::Relaxed);
    if current == pid {
        return None;
    }
    entry
        .compare_exchange(current, pid, Ordering::Acquire, Ordering::Relaxed)
        .ok()
        .map(|_| Claim { port, pid })
}

impl Claim {
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The process that has claimed it.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
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
    }
}

#[cfg(test)]
mod tests {
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
}
