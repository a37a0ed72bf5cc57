//! A lease takes no memory from the heap: what it needs is on the stack.
//!
//! Where the paths of lock files are joined, as on Windows, it is not so.

#![cfg(unix)]

use allocation_counter::{AllocationInfo, measure};
use portlock::FreePort;

/// The least that any of several leases takes. The first ones make lock files, and ten
/// times a second the lock directory is looked at again; both take some.
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
    // Below every ephemeral range, and so few that each has its file soon.
    let builder = FreePort::builder().ports(20_000..=20_063);
    let named = builder.clone().lock_dir(dir.path());
    assert_eq!(allocated(|| named.acquire().expect("a free port")), 0);
    let labelled = named.clone().label("api under test");
    let with_label = allocated(|| labelled.acquire().expect("a free port"));
    assert!(with_label > 0, "a record of its own is made for it");
}
