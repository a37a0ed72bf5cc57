//! A process that is forked repeatedly while its other threads are in calls of this crate. Locks
//! that they hold at that moment are never released in the child.
//!
//! Linux only: elsewhere, a child that hangs cannot be made to end with its parent.

use std::{
    env, io,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use portlock::{
    ErrorKind, LockDir,
    compat::portpicker::{add_reserved_port, pick_unused_port, return_port},
};
use portlock_testkit::{Block, LONG, Parent, Peer, command, lock_dir, stress, text};
use rustix::{
    io::Errno,
    process::{Signal, set_parent_process_death_signal},
};
use serial_test::serial;

use crate::builder;

/// Exit status of a child that succeeded.
const WELL: Errno = Errno::HOSTDOWN;

/// Forks, calls `in_child` in the child, and returns whether that returned `true`. Returns only
/// when the child has ended.
fn in_fork(in_child: impl Fn() -> bool + Send + Sync + 'static) -> bool {
    let mut command = Command::new("true");
    let before_exec = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        Err(io::Error::from(if in_child() { WELL } else { Errno::IO }))
    };
    // SAFETY: beyond async-signal-safe calls, the closure allocates in the child, which glibc
    // keeps usable after fork (pthread_atfork(3), "malloc"), and calls the code under test, which
    // must not wait for other threads' locks.
    unsafe { command.pre_exec(before_exec) };
    let outcome = command.spawn();
    outcome.is_err_and(|error| error.raw_os_error() == Some(WELL.raw_os_error()))
}

/// Arguments: lock directory, another one, first of four ports, activity of the threads, number
/// of forks.
pub(crate) fn fork_often(parent: &Parent) {
    let [dir, other] = [0, 1].map(|i| PathBuf::from(parent.argument::<String>(i)));
    let first: u16 = parent.argument(2);
    let what: String = parent.argument(3);
    let ends = AtomicBool::new(false);
    let busy = |work: &dyn Fn()| {
        while !ends.load(Ordering::Relaxed) {
            work();
        }
    };
    let on = |port: u16| builder(text(&dir), port..=port);
    let lease = || drop(on(first).try_acquire());
    let locate = || {
        for dir in [&dir, &other] {
            LockDir::open(dir).expect("ours");
        }
    };
    let held = on(first + 1).try_acquire().expect("free");
    let wait = || {
        let waiting = on(first + 1).timeout(Duration::from_millis(1));
        waiting.acquire().expect_err("held");
    };
    let pick = || return_port(pick_unused_port().expect("free")).expect("picked");
    let works: [&(dyn Fn() + Sync); 2] = match &*what {
        "lease" => [&lease, &locate],
        "wait" => [&wait, &wait],
        _ => [&pick, &pick],
    };
    let well = thread::scope(|scope| {
        for work in works {
            scope.spawn(|| busy(work));
        }
        let forks = 0..parent.argument::<usize>(4);
        let well = forks
            .map(|_| {
                // One port that no other caller leases, and one that is held.
                let (own, held) = (on(first + 2), on(first + 1));
                let what = what.clone();
                in_fork(move || match &*what {
                    "lease" => own.try_acquire().is_ok(),
                    "wait" => {
                        let waiting = held.clone().timeout(Duration::from_millis(1));
                        waiting
                            .acquire()
                            .is_err_and(|error| error.kind() == ErrorKind::Exhausted)
                    }
                    _ => pick_unused_port().is_ok(),
                })
            })
            .filter(|&well| well)
            .count();
        ends.store(true, Ordering::Relaxed);
        well
    });
    drop(held);
    parent.say(format!("{well} well"));
}

fn no_fork_hangs(what: &str, forks: usize) {
    let (dir, other, block) = (lock_dir(), lock_dir(), Block::new(20));
    let first = block.first();
    let [first_text, forks_text] = [first.to_string(), forks.to_string()];
    let arguments = [
        text(dir.path()),
        text(other.path()),
        &first_text,
        what,
        &forks_text,
    ];
    let binary = env::current_exe().expect("this test binary");
    let mut command = command(&[], &binary, "fork often", &arguments);
    command
        .env("PORTLOCK_DIR", dir.path())
        .env("PORTLOCK_PORTS", format!("{}-{}", first + 4, first + 19))
        .env_remove("PORTSERVER_ADDRESS");
    let said = Peer::start_command(command).hear_within(LONG);
    assert_eq!(said, Some(format!("{forks} well")), "a forked child hangs");
}

#[test]
#[serial]
fn a_forked_child_leases_while_threads_lease_and_locate() {
    no_fork_hangs("lease", stress(2000));
}

#[test]
#[serial]
fn a_forked_child_waits_while_threads_wait() {
    no_fork_hangs("wait", stress(200));
}

#[test]
#[serial]
fn a_forked_child_picks_while_threads_pick() {
    no_fork_hangs("pick", stress(500));
}

/// Arguments: first of two ports; the first belongs to this process.
pub(crate) fn pick_in_fork(parent: &Parent) {
    let first: u16 = parent.argument(0);
    add_reserved_port(first).expect("free");
    let well = in_fork(move || {
        return_port(first).is_err() && pick_unused_port().is_ok_and(|port| port == first + 1)
    });
    let own = pick_unused_port().expect("added");
    parent.say(format!("{well} {}", own == first));
}

#[test]
#[serial]
fn a_forked_child_does_not_pick_its_parents_ports() {
    let (dir, block) = (lock_dir(), Block::new(2));
    let first = block.first();
    let binary = env::current_exe().expect("this test binary");
    let mut command = command(&[], &binary, "pick in fork", &[&first.to_string()]);
    command
        .env("PORTLOCK_DIR", dir.path())
        .env("PORTLOCK_PORTS", format!("{first}-{}", first + 1))
        .env_remove("PORTSERVER_ADDRESS");
    assert_eq!(Peer::start_command(command).hear(), "true true");
}
