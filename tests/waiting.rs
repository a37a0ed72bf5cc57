//! Waiting: whoever can have a port gets it, whatever becomes of the others who wait.

#![allow(
    clippy::incompatible_msrv,
    reason = "tests need a newer Rust than the library"
)]

#[cfg(target_os = "linux")]
use std::fs;
use std::{ops::RangeInclusive, path::Path, time::Duration};

use portlock::{Builder, ErrorKind, FreePort};
use portlock_testkit::{Block, LONG, Parent, Peer, lock_dir, run_child, stress, text};

#[test]
fn child() {
    run_child(&[("wait", wait)]);
}

fn builder(dir: &Path, ports: RangeInclusive<u16>) -> Builder {
    FreePort::builder().ports(ports).lock_dir(dir)
}

/// Arguments: lock directory, first and last port, how many. Waits for them, says
/// which, and keeps them until it is told to go on.
fn wait(parent: &Parent) {
    let ports = parent.argument(1)..=parent.argument(2);
    let dir: String = parent.argument(0);
    let builder = builder(Path::new(&dir), ports).timeout(LONG);
    parent.say("waiting");
    let leases = builder.acquire_many(parent.argument(3));
    let leases = leases.expect("ports in time");
    let numbers: Vec<String> = leases.iter().map(ToString::to_string).collect();
    parent.say(numbers.join(" "));
    parent.hear();
    for lease in leases {
        lease.release().expect("released");
    }
    parent.say("done");
}

fn waiter(dir: &Path, ports: &RangeInclusive<u16>, n: usize) -> Peer {
    let numbers = [*ports.start(), *ports.end()].map(|port| port.to_string());
    let arguments = [text(dir), &numbers[0], &numbers[1], &n.to_string()];
    let peer = Peer::start("wait", &arguments);
    assert_eq!(peer.hear(), "waiting");
    peer
}

fn only(port: u16) -> RangeInclusive<u16> {
    port..=port
}

#[test]
fn each_of_many_waiters_gets_the_port_in_turn() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = block.first();
    let builder = builder(dir.path(), only(port));
    let held = builder.acquire().expect("free");
    let mut waiters: Vec<Peer> = (0..stress(8))
        .map(|_| waiter(dir.path(), &only(port), 1))
        .collect();
    held.release().expect("released");
    while !waiters.is_empty() {
        let moment = Duration::from_millis(5);
        let lucky = waiters
            .iter()
            .position(|waiter| waiter.hear_within(moment).is_some());
        let Some(lucky) = lucky else { continue };
        let error = builder.try_acquire().expect_err("it is the waiter's");
        assert_eq!(error.kind(), ErrorKind::Exhausted);
        let mut waiter = waiters.swap_remove(lucky);
        waiter.say("go on");
        waiter.finish_well();
    }
    builder.try_acquire().map(drop).expect("all have ended");
}

#[test]
fn waiters_that_are_killed_keep_nobody_waiting() {
    let (dir, block) = (lock_dir(), Block::new(2));
    let builder = builder(dir.path(), block.ports.clone());
    let held = builder.acquire_many(2).expect("free");
    let mut waiters: Vec<Peer> = (0..4)
        .map(|_| waiter(dir.path(), &block.ports, 1))
        .collect();
    // The head of the line is among them, or becomes it.
    for waiter in &mut waiters[..3] {
        waiter.kill();
    }
    drop(held);
    let mut last = waiters.pop().expect("one of four");
    let port: u16 = last.hear().parse().expect("a port");
    assert!(block.ports.contains(&port));
    last.say("go on");
    last.finish_well();
}

#[test]
fn who_waits_for_other_ports_stands_in_no_way() {
    let (dir, block) = (lock_dir(), Block::new(3));
    let [a, b, c] = [0, 1, 2].map(|offset| block.first() + offset);
    let held = [a, b, c].map(|port| builder(dir.path(), only(port)).try_acquire().expect("free"));
    let _for_a = waiter(dir.path(), &only(a), 1);
    let mut for_b = waiter(dir.path(), &only(b), 1);
    let _for_all = waiter(dir.path(), &block.ports, 3);
    let mut for_c = waiter(dir.path(), &(b..=c), 1);
    let [_a, b_lease, c_lease] = held;
    c_lease.release().expect("released");
    assert_eq!(for_c.hear(), c.to_string());
    b_lease.release().expect("released");
    assert_eq!(for_b.hear(), b.to_string());
    for waiter in [&mut for_b, &mut for_c] {
        waiter.say("go on");
    }
    for_b.finish_well();
    for_c.finish_well();
}

// Two directories can be exchanged at once on Linux alone.
#[cfg(target_os = "linux")]
#[test]
fn a_directory_that_is_made_again_has_its_ports() {
    let (parent, block) = (lock_dir(), Block::new(1));
    let dir = parent.path().join("locks");
    fs::create_dir(&dir).expect("our own");
    // Of another process: this one would know of its own lease.
    let mut holder = waiter(&dir, &block.ports, 1);
    assert_eq!(holder.hear(), block.first().to_string());
    let mut waiting = waiter(&dir, &block.ports, 1);
    // By renaming, for there must be one at each moment.
    let again = parent.path().join("again");
    fs::create_dir(&again).expect("our own");
    rustix::fs::renameat_with(
        rustix::fs::CWD,
        &again,
        rustix::fs::CWD,
        &dir,
        rustix::fs::RenameFlags::EXCHANGE,
    )
    .expect("our own");
    // What the old one says of the port is of no account any more.
    assert_eq!(waiting.hear(), block.first().to_string());
    for peer in [&mut waiting, &mut holder] {
        peer.say("go on");
    }
    waiting.finish_well();
    holder.finish_well();
}
