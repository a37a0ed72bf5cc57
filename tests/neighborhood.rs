//! The number of lock files that a large set of ports leaves.

use std::{collections::HashSet, ffi::OsString, fs, path::Path};

use portlock::{Builder, PortSet};
use portlock_testkit::{lock_dir, stress};
use serial_test::serial;

/// Nothing here is bound for longer than a probe, so the ports of other tests may be among them.
fn builder(dir: &Path) -> Builder {
    Builder::new()
        .ports(PortSet::from(10_000..=29_999))
        .lock_dir(dir)
}

// One test at a time: a neighborhood in which the process has found no free port affects all of its
// searches.
#[test]
#[serial]
fn a_large_set_leaves_few_lock_files() {
    let dir = lock_dir();
    let builder = builder(dir.path());
    for _ in 0..stress(4000) {
        drop(builder.acquire().expect("many are free"));
    }
    let names = fs::read_dir(dir.path()).expect("our own");
    let names = names.map(|entry| entry.expect("our own").file_name());
    let is_lock_file = |name: &OsString| {
        name.to_str()
            .is_some_and(|name| name.parse::<u16>().is_ok())
    };
    let files = names.filter(is_lock_file).count();
    // A random port of the whole set each time would leave more than 3,600 files.
    assert!(files <= 1200, "{files} lock files");
}

#[test]
#[serial]
fn a_leased_neighborhood_is_not_a_limit() {
    let dir = lock_dir();
    let builder = builder(dir.path());
    let leases = builder.acquire_many(3000).expect("many are free");
    let ports: HashSet<u16> = leases.iter().map(|lease| lease.port()).collect();
    assert_eq!(ports.len(), 3000);
}

#[test]
#[serial]
fn a_neighborhood_that_is_leased_is_left_out_for_a_while() {
    let dir = lock_dir();
    let builder = builder(dir.path());
    let next = || builder.acquire().expect("many are free").port();
    // Because of earlier tests, the process may leave the neighborhood out. After these searches,
    // every neighbor is found.
    for _ in 0..5000 {
        next();
    }
    let neighbors: HashSet<u16> = (0..12_000).map(|_| next()).collect();
    let in_vain = || neighbors.iter().map(|&port| PortSet::from(port));
    let one = |ports: PortSet| builder.clone().ports(ports).acquire();
    let leases: Vec<_> = in_vain().filter_map(|ports| one(ports).ok()).collect();
    let free = next();
    drop(leases);
    assert!(!neighbors.contains(&free), "all of it was leased");
    let near = |n: usize| (0..n).filter(|_| neighbors.contains(&next())).count();
    // One port in twenty is a neighbor by chance.
    assert!(near(32) < 16, "it is searched for each lease");
    near(100);
    assert_eq!(near(32), 32, "it is never searched again");

    // The longer that nothing is found there, the longer it is left out.
    let leases: Vec<_> = in_vain().filter_map(|ports| one(ports).ok()).collect();
    for _ in 0..1500 {
        next();
    }
    drop(leases);
    assert!(
        near(200) < 100,
        "it is searched as often as in the beginning"
    );
    for _ in 0..5000 {
        next();
    }
    assert_eq!(near(32), 32, "it is never searched again");
}
