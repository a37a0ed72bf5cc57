//! The five tests of the Python recipe on which this crate is based.

use std::{
    collections::HashSet,
    net::TcpListener,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use portlock::FreePort;
use portlock_testkit::{Block, LONG, Parent, Peer, lock_dir, run_child, text};

#[test]
fn child() {
    run_child(&[("lease", lease)]);
}

/// Leases one port of a range, reports it, and holds it until told to stop.
fn lease(parent: &Parent) {
    let [first, last] = [1, 2].map(|index| parent.argument::<u16>(index));
    let builder = FreePort::builder()
        .ports(first..=last)
        .lock_dir(parent.argument::<String>(0))
        .timeout(LONG);
    parent.say("waiting");
    let port = builder.acquire().expect("a port in time");
    parent.say(port.port());
    parent.hear();
    port.release().expect("released");
}

#[test]
fn one_port() {
    let (dir, block) = (lock_dir(), Block::new(10));
    let port = FreePort::builder()
        .ports(block.ports.clone())
        .lock_dir(dir.path())
        .acquire()
        .expect("a free port");
    assert!(block.ports.contains(&port.port()));
    TcpListener::bind(("127.0.0.1", port.port())).expect("the holder can bind it");
}

#[test]
fn the_same_port_again_after_release() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let builder = FreePort::builder()
        .ports(block.ports.clone())
        .lock_dir(dir.path());
    let port = builder.try_acquire().expect("free");
    port.release().expect("released");
    let again = builder.try_acquire().expect("free again");
    assert_eq!(again.port(), block.first());
}

#[test]
fn a_second_process_waits_for_the_release() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = FreePort::builder()
        .ports(block.ports.clone())
        .lock_dir(dir.path())
        .acquire()
        .expect("free");
    let number = port.to_string();
    let second = Peer::start("lease", &[text(dir.path()), &number, &number]);
    assert_eq!(second.hear(), "waiting");
    assert_eq!(second.hear_within(Duration::from_millis(500)), None);
    let released = Instant::now();
    port.release().expect("released");
    assert_eq!(second.hear(), number);
    assert!(released.elapsed() < Duration::from_secs(1));
    assert!(second.finish().success());
}

#[test]
fn a_hundred_threads_on_exactly_a_hundred_ports() {
    let (dir, block) = (lock_dir(), Block::new(100));
    let builder = FreePort::builder()
        .ports(block.ports.clone())
        .lock_dir(dir.path());
    let all_at_once = Barrier::new(100);
    let ports: Vec<FreePort> = thread::scope(|scope| {
        let lease = || {
            all_at_once.wait();
            builder.acquire().expect("one for each")
        };
        let threads: Vec<_> = (0..100).map(|_| scope.spawn(lease)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect()
    });
    let distinct: HashSet<u16> = ports.iter().map(FreePort::port).collect();
    assert_eq!(distinct.len(), 100);
    assert!(distinct.iter().all(|port| block.ports.contains(port)));
}

#[test]
fn ten_processes_on_ten_ports() {
    let (dir, block) = (lock_dir(), Block::new(10));
    let (first, last) = (block.ports.start(), block.ports.end());
    let arguments = [text(dir.path()), &first.to_string(), &last.to_string()];
    let peers: Vec<Peer> = (0..10).map(|_| Peer::start("lease", &arguments)).collect();
    let mut distinct = HashSet::new();
    for peer in &peers {
        assert_eq!(peer.hear(), "waiting");
        let port: u16 = peer.hear().parse().expect("a port");
        assert!(block.ports.contains(&port));
        distinct.insert(port);
    }
    assert_eq!(distinct.len(), 10);
    for peer in peers {
        assert!(peer.finish().success());
    }
}

#[cfg(target_os = "linux")]
#[test]
fn the_same_on_other_file_systems() {
    portlock_testkit::run_on_each_file_system("the_same_on_other_file_systems", 1.0);
}
