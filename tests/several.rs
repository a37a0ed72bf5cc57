//! Several ports in one call, all or none; and the same port for the same name.

mod error;

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use error::assert_error;
use portlock::{Builder, ErrorKind, FreePort, PortSet};
use portlock_testkit::{
    Block, LONG, Parent, Peer, bind_strictly, lock_dir, run_child, stress, text,
};
use serial_test::{parallel, serial};

// The tests that bind ports strictly themselves are serial: a child that another test is spawning
// has such a socket too, until it calls exec.

#[test]
fn child() {
    run_child(&[("many", many), ("prefer", prefer)]);
}

fn builder(dir: &str, ports: impl Into<PortSet>) -> Builder {
    // The tests bind strictly.
    let builder = FreePort::builder().reuse_address(false);
    builder.ports(ports).lock_dir(dir)
}

fn numbers(ports: &[FreePort]) -> Vec<u16> {
    ports.iter().map(FreePort::port).collect()
}

/// Asserts that exactly `n` ports can be leased in one call, so nothing was left behind.
#[track_caller]
fn assert_free(builder: &Builder, n: usize) {
    let mut leases = Vec::new();
    while let Ok(lease) = builder.try_acquire() {
        leases.push(lease);
    }
    assert_eq!(leases.len(), n);
}

#[test]
#[serial]
fn many_are_all_or_none() {
    let (dir, block) = (lock_dir(), Block::new(10));
    let builder = builder(text(dir.path()), block.ports.clone()).timeout(Duration::ZERO);
    let all = builder.acquire_many(10).expect("ten are free");
    let distinct: HashSet<u16> = numbers(&all).into_iter().collect();
    assert_eq!(distinct.len(), 10);
    drop(all);

    let held = builder.acquire_many(4).expect("four are free");
    let message = "fewer than 7 ports are free in";
    assert_error(builder.acquire_many(7), ErrorKind::Exhausted, &[message]);
    assert_error(builder.acquire_many(7), ErrorKind::Exhausted, &["4 leased"]);
    assert_error(
        builder.acquire_many(7),
        ErrorKind::Exhausted,
        &["), 6 free"],
    );
    assert_free(&builder, 6);
    drop(held);
    assert_free(&builder, 10);

    let too_many = builder.acquire_many(11);
    let message = format!("11 ports were asked for, but {} has only 10", block.set());
    assert_error(too_many, ErrorKind::InvalidPorts, &[&message]);
    let _all = builder.acquire_many(10).expect("ten are free");
    let message = format!("no free port in {}: 10 leased", block.set());
    assert_error(builder.acquire_many(1), ErrorKind::Exhausted, &[&message]);
    assert!(
        builder
            .acquire_many(0)
            .expect("nothing to lease")
            .is_empty()
    );
}

/// Arguments: lock directory, first and last port, number of ports, number of times.
fn many(parent: &Parent) {
    let ports = parent.argument::<u16>(1)..=parent.argument(2);
    let builder = builder(&parent.argument::<String>(0), ports).timeout(LONG);
    for _ in 0..parent.argument(4) {
        let ports = builder.acquire_many(parent.argument(3)).expect("in time");
        let listeners = ports.iter().map(|port| bind_strictly(port.port()));
        let bound = listeners.collect::<Result<Vec<_>, _>>();
        parent.say(bound.expect("leased to us").len());
        parent.hear();
    }
}

#[test]
#[parallel]
fn two_that_want_60_of_100_wait_for_each_other() {
    let (dir, block) = (lock_dir(), Block::new(100));
    let (first, last) = (block.ports.start(), block.ports.end());
    let arguments = [
        text(dir.path()),
        &first.to_string(),
        &last.to_string(),
        "60",
        "1",
    ];
    let mut peers = [(); 2].map(|()| Peer::start("many", &arguments));
    // The first to lease has 60 ports, and the other has none until they are released.
    let deadline = Instant::now() + LONG;
    let moment = Duration::from_millis(10);
    let winner = loop {
        let said = peers
            .iter()
            .position(|peer| peer.hear_within(moment).is_some());
        if let Some(winner) = said {
            break winner;
        }
        assert!(Instant::now() < deadline, "neither got its ports");
    };
    let loser = 1 - winner;
    assert_eq!(peers[loser].hear_within(Duration::from_millis(300)), None);
    peers[winner].say("release");
    assert_eq!(peers[loser].hear(), "60");
    peers[loser].say("release");
    for peer in peers {
        assert!(peer.finish().success());
    }
}

#[test]
#[parallel]
fn six_that_repeatedly_want_30_of_100_all_end() {
    let (dir, block) = (lock_dir(), Block::new(100));
    let (first, last) = (block.ports.start(), block.ports.end());
    let rounds = stress(10);
    let (range, rounds_text) = ([first.to_string(), last.to_string()], rounds.to_string());
    let arguments = [text(dir.path()), &range[0], &range[1], "30", &rounds_text];
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let mut peer = Peer::start("many", &arguments);
                for _ in 0..rounds {
                    assert_eq!(peer.hear(), "30");
                    peer.say("release");
                }
                assert!(peer.finish().success());
            });
        }
    });
}

#[test]
#[serial]
fn a_block_is_contiguous_and_in_the_set() {
    let (dir, block) = (lock_dir(), Block::new(20));
    let first = block.first();
    let builder = builder(text(dir.path()), block.ports.clone()).timeout(Duration::ZERO);
    // With these in use, only one block of 9 contiguous ports fits, and none of 10.
    let busy = [first + 4, first + 14].map(|port| bind_strictly(port).expect("free"));
    let nine = builder.acquire_block(9).expect("there is a place for 9");
    assert_eq!(numbers(&nine), (first + 5..first + 14).collect::<Vec<_>>());
    drop(nine);
    let ten = builder.acquire_block(10);
    // Each port counts once, although many possible blocks of 10 contain it.
    let counted = "2 bound by other programs";
    let message = format!("no 10 contiguous free ports in {}: {counted}", block.set());
    assert_error(ten, ErrorKind::Exhausted, &[&message]);
    let held = builder.acquire_many(18).expect("18 are free");
    let message = format!("no free port in {}: 18 leased (", block.set());
    let one = builder.acquire_block(1);
    assert_error(one, ErrorKind::Exhausted, &[&message]);
    drop(held);
    assert_free(&builder, 18);
    drop(busy);
    assert_eq!(builder.acquire_block(20).expect("all are free").len(), 20);

    assert!(
        builder
            .acquire_block(0)
            .expect("nothing to lease")
            .is_empty()
    );
    let holed = PortSet::from(block.ports.clone()).difference(&(first + 10..=first + 10).into());
    let builder = builder.ports(holed);
    let message = "11 contiguous ports were asked for, but ";
    let eleven = builder.acquire_block(11);
    assert_error(eleven, ErrorKind::InvalidPorts, &[message]);
    let message = " has no 11 in a row";
    let eleven = builder.acquire_block(11);
    assert_error(eleven, ErrorKind::InvalidPorts, &[message]);
    let far_too_many = builder.acquire_block(usize::MAX);
    assert_error(far_too_many, ErrorKind::InvalidPorts, &["contiguous"]);
    builder
        .acquire_block(10)
        .map(drop)
        .expect("ten before the hole");
}

#[test]
#[serial]
fn offsets_are_leased_together_or_not_at_all() {
    let (dir, block) = (lock_dir(), Block::new(20));
    let first = block.first();
    let all = builder(text(dir.path()), block.ports.clone()).timeout(Duration::ZERO);
    // The port at the offset need not be among the ports to choose from.
    let bases = all.clone().ports(first..=first + 1);
    let pair = bases.acquire_offsets(&[0, 10]).expect("free");
    assert_eq!(pair[1].port(), pair[0].port() + 10);
    let other = bases.acquire_offsets(&[10, 0]).expect("free");
    assert_eq!(other[0].port(), other[1].port() + 10);
    let none = bases.acquire_offsets(&[0, 10]);
    let message = format!(
        "no free ports at the offsets [0, 10] from any port in {first}-{}: 2 leased ({first} by",
        first + 1
    );
    assert_error(none, ErrorKind::Exhausted, &[&message]);
    drop((pair, other));

    let busy = [first + 10, first + 11].map(|port| bind_strictly(port).expect("free"));
    let none = bases.acquire_offsets(&[0, 10]);
    assert_error(none, ErrorKind::Exhausted, &["2 bound by other programs"]);
    assert_free(&all, 18);
    drop(busy);

    let kind = ErrorKind::InvalidPorts;
    let message = "the offset 0 was given twice, in [0, 5, 0]";
    assert_error(bases.acquire_offsets(&[0, 5, 0]), kind, &[message]);
    assert_error(bases.acquire_offsets(&[u16::MAX]), kind, &["65535"]);
    let top = all.clone().ports(65_535..);
    let message = "the offset 1 leads beyond port 65535 from every port in 65535";
    assert_error(top.acquire_offsets(&[0, 1]), kind, &[message]);
    assert!(bases.acquire_offsets(&[]).expect("nothing").is_empty());
}

/// Arguments: lock directory, first and last port, name.
fn prefer(parent: &Parent) {
    let ports = parent.argument::<u16>(1)..=parent.argument(2);
    let port = builder(&parent.argument::<String>(0), ports)
        .prefer(parent.argument::<String>(3))
        .acquire()
        .expect("free");
    parent.say(port.port());
}

#[test]
#[parallel]
fn a_hundred_names_get_the_same_ports_in_two_runs() {
    let (dir, block) = (lock_dir(), Block::new(128));
    let (first, last) = (block.ports.start(), block.ports.end());
    let range = [first.to_string(), last.to_string()];
    let run = || -> Vec<String> {
        let names = (0..100).map(|i| format!("worktree-{i}/api"));
        let arguments =
            names.map(|name| [text(dir.path()), &range[0], &range[1], &name].join("\n"));
        // One after the other: names that prefer the same port find it free.
        arguments
            .map(|arguments| {
                let peer = Peer::start("prefer", &arguments.split('\n').collect::<Vec<_>>());
                let port = peer.hear();
                assert!(peer.finish().success());
                port
            })
            .collect()
    };
    let ports = run();
    assert_eq!(ports, run());
    let distinct: HashSet<&String> = ports.iter().collect();
    // 69 on average, if the hash spreads names evenly.
    assert!(distinct.len() > 50, "{}", distinct.len());
}

#[test]
#[serial]
fn a_preferred_port_that_is_taken_is_replaced() {
    let (dir, block) = (lock_dir(), Block::new(4));
    let builder = builder(text(dir.path()), block.ports.clone())
        .prefer("api")
        .timeout(Duration::ZERO);
    let first = builder.acquire().expect("free");
    let second = builder.acquire().expect("another");
    assert_ne!(first.port(), second.port());
    let preferred = first.port();
    drop(first);
    assert_eq!(builder.acquire().expect("free").port(), preferred);
    let three = builder.acquire_many(3).expect("free");
    assert_eq!(three[0].port(), preferred);
}
