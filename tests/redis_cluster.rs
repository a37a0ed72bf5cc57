//! Real three-node Redis Clusters on ports from `acquire_offsets(&[0, 10000])`, in three suites
//! at the same time: each forms a cluster and keeps its own value.
//!
//! Redis runs only on Unix.

#![cfg(unix)]

#[path = "../examples/redis_cluster.rs"]
#[allow(dead_code, unreachable_pub, reason = "the example has its own main")]
mod example;

use std::{collections::HashSet, process::Command, sync::Barrier, thread};

use example::{Cluster, redis_cli};
use portlock::FreePort;
use portlock_testkit::lock_dir;

const SUITES: usize = 3;
const NODES: usize = 3;

#[test]
fn three_suites_each_form_a_redis_cluster() {
    for program in ["redis-server", "redis-cli"] {
        if Command::new(program).arg("--version").output().is_err() {
            eprintln!("skipped: {program} is not installed");
            return;
        }
    }
    let dir = lock_dir();
    let all_at_once = Barrier::new(SUITES);
    let mut suites: Vec<Cluster> = thread::scope(|scope| {
        let threads: Vec<_> = (0..SUITES)
            .map(|suite| {
                let builder = FreePort::builder()
                    .ports(11000..=12999)
                    .lock_dir(dir.path())
                    .label(format!("Redis Cluster of suite {suite}"));
                let all_at_once = &all_at_once;
                scope.spawn(move || {
                    all_at_once.wait();
                    Cluster::start(&builder).expect("a cluster")
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a cluster"))
            .collect()
    });
    for (suite, cluster) in suites.iter().enumerate() {
        let at = cluster.nodes[0].addr();
        let answer = redis_cli(at, &["-c", "SET", "suite", &suite.to_string()]);
        assert_eq!(answer.expect("a cluster"), "OK");
    }
    for (suite, cluster) in suites.iter().enumerate() {
        for node in &cluster.nodes {
            let answer = redis_cli(node.addr(), &["-c", "GET", "suite"]);
            assert_eq!(answer.expect("a cluster"), suite.to_string());
        }
    }
    // A server that could not bind one of its two ports has ended, and another program has
    // answered instead.
    let nodes = suites.iter_mut().flat_map(|cluster| &mut cluster.nodes);
    for node in nodes {
        let ended = node.has_ended().expect("our own child");
        assert!(!ended, "at {}", node.addr());
    }
    let nodes = suites.iter().flat_map(|cluster| &cluster.nodes);
    let ports: Vec<u16> = nodes
        .flat_map(|node| node.ports.iter().map(FreePort::port))
        .collect();
    assert_eq!(ports.len(), SUITES * NODES * 2);
    let distinct: HashSet<u16> = ports.iter().copied().collect();
    assert_eq!(distinct.len(), ports.len(), "{ports:?}");
}
