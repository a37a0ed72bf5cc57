//! A lease takes no memory from the heap: everything it needs is on the stack.
//!
//! This does not hold where the paths of lock files are joined, as on Windows.

#![cfg(unix)]

use allocation_counter::{AllocationInfo, measure};
use portlock::FreePort;

/// Returns the smallest number of bytes that one of several leases allocates. The first leases
/// create lock files, and the lock directory is checked ten times a second; both allocate some
/// memory.
fn allocated(lease: impl Fn() -> FreePort) -> u64 {
    let rounds = (0..1000).map(|_| {
        let AllocationInfo { count_total, .. } = measure(|| drop(lease()));
        count_total
    });
    rounds.min().expect("several")
}

#[test]
fn a_lease_allocates_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    // Below every ephemeral range, and so few that each port soon has its file.
    let builder = FreePort::builder().ports(20_000..=20_063);
    let named = builder.clone().lock_dir(dir.path());
    assert_eq!(allocated(|| named.acquire().expect("a free port")), 0);
    let labelled = named.clone().label("api under test");
    let with_label = allocated(|| labelled.acquire().expect("a free port"));
    assert!(with_label > 0, "its record is created separately");
}
