//! Waiting: a caller that can have a port gets it, whatever happens to the other waiters.

#![allow(
    clippy::incompatible_msrv,
    reason = "tests need a newer Rust than the library"
)]

#[cfg(target_os = "linux")]
use std::fs;
use std::{
    ops::{ControlFlow, RangeInclusive},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use portlock::{Builder, ErrorKind, FreePort};
use portlock_testkit::{Block, LONG, Parent, Peer, lock_dir, run_child, stress, text};

#[test]
fn child() {
    run_child(&[("wait", wait)]);
}

fn builder(dir: &Path, ports: RangeInclusive<u16>) -> Builder {
    FreePort::builder().ports(ports).lock_dir(dir)
}

/// Arguments: lock directory, first and last port, number of ports. Waits for them, reports them,
/// and keeps them until told to continue.
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
fn killed_waiters_do_not_delay_other_waiters() {
    let (dir, block) = (lock_dir(), Block::new(2));
    let builder = builder(dir.path(), block.ports.clone());
    let held = builder.acquire_many(2).expect("free");
    let mut waiters: Vec<Peer> = (0..4)
        .map(|_| waiter(dir.path(), &block.ports, 1))
        .collect();
    // The leader is among them, or one of them becomes the leader.
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
fn a_waiter_for_other_ports_does_not_block() {
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

// Only Linux can exchange two directories atomically.
#[cfg(target_os = "linux")]
#[test]
fn a_directory_that_is_created_again_has_its_ports() {
    let (parent, block) = (lock_dir(), Block::new(1));
    let dir = parent.path().join("locks");
    fs::create_dir(&dir).expect("our own");
    // A lease of another process: this process would know about its own.
    let mut holder = waiter(&dir, &block.ports, 1);
    assert_eq!(holder.hear(), block.first().to_string());
    let mut waiting = waiter(&dir, &block.ports, 1);
    // By renaming, because a directory must exist at each moment.
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
    // The old directory's information about the port no longer counts.
    assert_eq!(waiting.hear(), block.first().to_string());
    for peer in [&mut waiting, &mut holder] {
        peer.say("go on");
    }
    waiting.finish_well();
    holder.finish_well();
}

// ---------------------------------------------------------------------------
// `Builder::on_wait`.

/// Leases ports without a claim in this process, so that each attempt to lease them here locks
/// their files, and wakes waiters.
fn delegate(builder: &Builder, n: usize) {
    let own = std::process::id();
    for lease in builder.acquire_many(n).expect("free") {
        lease.delegate_to(own).expect("our own");
    }
}

#[test]
fn a_callback_is_called_during_a_wait_only() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let builder = builder(dir.path(), block.ports.clone())
        .timeout(LONG)
        .label("api under test");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let watched = {
        let seen = seen.clone();
        builder.clone().on_wait(move |status| {
            let mut seen = seen.lock().expect("no panic");
            seen.push(status.clone());
            match seen.len() {
                3 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        })
    };
    let lease = watched.acquire().expect("free");
    let error = watched.try_acquire().expect_err("leased");
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    assert!(seen.lock().expect("no panic").is_empty(), "nothing waited");

    let port = lease.port();
    let holder = format!(": 1 leased ({port} by pid {}", std::process::id());
    let calls: [fn(&Builder) -> portlock::Result<()>; 3] = [
        |builder| builder.acquire().map(drop),
        |builder| builder.acquire_many(1).map(drop),
        |builder| builder.wait_until_free(),
    ];
    for call in calls {
        let error = call(&watched).expect_err("stopped");
        assert_eq!(error.kind(), ErrorKind::Stopped);
        assert!(!error.is_busy());
        let message = error.to_string();
        let start = format!("stopped waiting: no free port in {port} after ");
        assert!(
            message.starts_with(&start)
                && message.contains(&holder)
                && message.ends_with("(api under test))"),
            "{message}"
        );
        assert_eq!(error.counts().map(|counts| counts.leased), Some(1));
        let seen = std::mem::take(&mut *seen.lock().expect("no panic"));
        assert_eq!(seen.len(), 3);
        assert!(seen.iter().all(|status| status.counts().leased == 1));
        // When the wait begins, and then at most every tenth of a second.
        assert!(seen[1].elapsed() >= seen[0].elapsed() + Duration::from_millis(100));
        assert!(seen[2].elapsed() >= seen[1].elapsed() + Duration::from_millis(100));
    }
    // Nothing was kept.
    lease.release().expect("our own");
    let again = watched.try_acquire().expect("free");
    assert_eq!(again.port(), port);
    assert!(seen.lock().expect("no panic").is_empty());
}

/// One caller is the leader of the wait queue, and the others are behind it.
#[test]
fn a_wait_stops_at_any_position_in_the_queue() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let builder = builder(dir.path(), block.ports.clone()).timeout(LONG);
    let lease = builder.acquire().expect("free");
    let waiter = || {
        let (sender, calls) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let builder = {
            let stop = stop.clone();
            builder.clone().on_wait(move |_| {
                let _ = sender.send(());
                match stop.load(Ordering::Relaxed) {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            })
        };
        let thread = thread::spawn(move || builder.acquire().map(drop));
        // After the second call it is waiting; after the first it was about to wait.
        for _ in 0..2 {
            calls.recv_timeout(LONG).expect("it waits");
        }
        (calls, stop, thread)
    };
    let mut waiters = [waiter(), waiter(), waiter()];
    for (calls, ..) in &mut waiters {
        // It continues to be called at any position.
        for _ in 0..5 {
            calls.recv_timeout(LONG).expect("it waits");
        }
    }
    // From the end of the queue to its leader.
    for (calls, stop, thread) in waiters.into_iter().rev() {
        stop.store(true, Ordering::Relaxed);
        let error = thread.join().expect("no panic").expect_err("stopped");
        assert_eq!(error.kind(), ErrorKind::Stopped);
        drop(calls);
    }
    lease.release().expect("our own");
    builder.try_acquire().map(drop).expect("nothing was kept");
}

/// This also holds for a caller that rescans repeatedly because others try the same ports.
#[test]
fn a_callback_is_called_about_all_ports_ten_times_a_second() {
    let (dir, block) = (lock_dir(), Block::new(3));
    let builder = builder(dir.path(), block.ports.clone()).timeout(LONG);
    delegate(&builder, 3);
    let first = builder.clone().ports(block.first());
    let is_done = AtomicBool::new(false);
    let calls = Arc::new(Mutex::new(Vec::new()));
    let watched = {
        let calls = calls.clone();
        builder.on_wait(move |status| {
            let mut calls = calls.lock().expect("no panic");
            calls.push((Instant::now(), status.counts().leased));
            match calls.len() {
                6 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        })
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                first.try_acquire().map(drop).expect_err("leased");
            }
        });
        let error = watched.acquire().expect_err("stopped");
        is_done.store(true, Ordering::Relaxed);
        assert_eq!(error.kind(), ErrorKind::Stopped);
        assert_eq!(error.counts().map(|counts| counts.leased), Some(3));
    });
    let calls = calls.lock().expect("no panic");
    assert!(calls.iter().all(|&(_, leased)| leased == 3), "{calls:?}");
    assert!(calls.is_sorted_by(|a, b| b.0 - a.0 >= Duration::from_millis(100)));
}

#[test]
fn a_callback_that_continues_changes_nothing() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let builder = builder(dir.path(), block.ports.clone()).timeout(LONG);
    let lease = builder.acquire().expect("free");
    let (sender, calls) = mpsc::channel();
    let watched = builder.clone().on_wait(move |_| {
        let _ = sender.send(());
        ControlFlow::Continue(())
    });
    let short = watched.clone().timeout(Duration::from_millis(250));
    let error = short.acquire().expect_err("leased");
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    assert!(error.to_string().contains("after 0."), "{error}");
    while calls.try_recv().is_ok() {}

    let waiter = thread::spawn(move || watched.acquire());
    for _ in 0..3 {
        calls.recv_timeout(LONG).expect("it waits");
    }
    let port = lease.port();
    lease.release().expect("our own");
    let leased = waiter.join().expect("no panic").expect("it is free now");
    assert_eq!(leased.port(), port);
}
