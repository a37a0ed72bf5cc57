//! Many processes: leases are exclusive, their ports can be bound, and processes that are killed
//! or forked, or find a removed lock file, leave nothing behind.

#![allow(
    clippy::incompatible_msrv,
    reason = "tests need a newer Rust than the library"
)]

// Other systems have no fork.
#[cfg(unix)]
#[path = "multiprocess/fork.rs"]
mod fork;
#[cfg(target_os = "linux")]
#[path = "multiprocess/many_forks.rs"]
mod many_forks;
#[cfg(target_os = "linux")]
#[path = "multiprocess/same_pid.rs"]
mod same_pid;

use std::{fs, ops::RangeInclusive, path::Path, sync::OnceLock, thread, time::Duration};

use portlock::{Builder, FreePort, LockDir};
use portlock_testkit::{
    Block, LONG, Oracle, Parent, Peer, bind_strictly, listen_strictly, lock_dir, run_child, stress,
    text,
};
use serial_test::{parallel, serial};

// The tests that fork are serial, because their children inherit the sockets of other tests; and
// so is the one that repeatedly binds the same port strictly.

#[test]
fn child() {
    run_child(&[
        ("lease and bind", lease_and_bind),
        ("remove lock files", remove_lock_files),
        ("lease until killed", lease_until_killed),
        ("try once", try_once),
        ("keep for life", keep_for_life),
        #[cfg(target_os = "linux")]
        ("check", check),
        #[cfg(target_os = "linux")]
        ("copy with the same pid", same_pid::copy),
        #[cfg(target_os = "linux")]
        ("fork often", many_forks::fork_often),
        #[cfg(target_os = "linux")]
        ("pick in fork", many_forks::pick_in_fork),
    ]);
}

/// Inspects the lock directory repeatedly, in every way that does not lease. Arguments: lock
/// directory and port.
#[cfg(target_os = "linux")]
fn check(parent: &Parent) {
    let dir: String = parent.argument(0);
    let port = parent.argument(1);
    let builder = builder(&dir, port..=port);
    let locks = LockDir::open(Path::new(&dir)).expect("trusted");
    parent.say("checking");
    thread::spawn(move || {
        loop {
            let _ = locks.entries();
            let _ = locks.entry(port);
            let _ = locks.clean();
            let _ = builder.check();
        }
    });
    parent.hear();
}

/// A check locks the file for a moment, which is not a lease. On other systems, every listing
/// locks every file, so three processes that list all the time keep a port from all others.
#[cfg(target_os = "linux")]
#[test]
#[parallel]
fn a_caller_that_does_not_wait_is_not_refused_because_of_checks() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let arguments = [text(dir.path()), &block.first().to_string()];
    let checkers: Vec<Peer> = (0..3).map(|_| Peer::start("check", &arguments)).collect();
    for checker in &checkers {
        assert_eq!(checker.hear(), "checking");
    }
    let builder = builder(text(dir.path()), block.ports.clone());
    let mut refused = Vec::new();
    let tries = stress(3000);
    for _ in 0..tries {
        refused.extend(builder.try_acquire().map(drop).err());
        refused.extend(builder.check().err());
    }
    for mut checker in checkers {
        checker.kill();
    }
    let (some, n) = (refused.first(), refused.len());
    assert!(refused.is_empty(), "{n} of {tries} were refused: {some:?}");
}

fn builder(dir: &str, ports: RangeInclusive<u16>) -> Builder {
    // The tests bind strictly.
    let builder = FreePort::builder().reuse_address(false);
    builder.ports(ports).lock_dir(dir)
}

/// Arguments: lock directory, first and last port, directory of the oracle, number of threads,
/// number of leases of each thread. Reports the numbers of overlaps and failed binds.
fn lease_and_bind(parent: &Parent) {
    let ports = parent.argument(1)..=parent.argument(2);
    let builder = builder(&parent.argument::<String>(0), ports).timeout(LONG);
    let oracle = Oracle::new(parent.argument::<String>(3));
    let leases: usize = parent.argument(5);
    let work = || {
        let (mut overlaps, mut failed_binds) = (0, 0);
        for _ in 0..leases {
            let port = builder.acquire().expect("a port in time");
            let number = port.port();
            let alone = oracle.take(number);
            match listen_strictly(number) {
                Ok(listener) => drop(listener),
                Err(_) => failed_binds += 1,
            }
            if alone {
                oracle.give_back(number);
            } else {
                overlaps += 1;
            }
            port.release().expect("released");
        }
        (overlaps, failed_binds)
    };
    let (mut overlaps, mut failed_binds) = (0, 0);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..parent.argument(4)).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            let (o, f) = thread.join().expect("no panic");
            overlaps += o;
            failed_binds += f;
        }
    });
    parent.say(format!("{overlaps} overlaps, {failed_binds} failed binds"));
}

/// Removes the lock files of a range repeatedly: a cleaner may do so at any time.
fn remove_lock_files(parent: &Parent) {
    let dir: String = parent.argument(0);
    let ports = parent.argument::<u16>(1)..=parent.argument(2);
    let own = LockDir::open(Path::new(&dir)).expect("trusted");
    thread::spawn(move || {
        loop {
            // With our own cleaner, and with one that only knows the protocol.
            own.clean().expect("our own directory");
            for port in ports.clone() {
                remove_unless_locked(Path::new(&format!("{dir}/{port}")));
            }
        }
    });
    parent.hear();
}

/// Removes a lock file while holding its lock.
#[cfg(unix)]
#[expect(clippy::disallowed_methods, reason = "acts as another program")]
fn remove_unless_locked(path: &Path) {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(file) = fs::File::open(path) else {
        return;
    };
    if file.try_lock().is_ok() {
        // If it has been replaced since then, this would remove a file that another process may
        // hold: a cleaner must check again too.
        let inode = |metadata: std::io::Result<fs::Metadata>| metadata.map(|m| m.ino()).ok();
        if inode(file.metadata()) == inode(fs::symlink_metadata(path)) {
            let _ = fs::remove_file(path);
        }
    }
}

/// Removes a lock file. The system refuses while any process has it open.
#[cfg(windows)]
fn remove_unless_locked(path: &Path) {
    let _ = fs::remove_file(path);
}

/// Leases, listens and releases repeatedly, in two threads.
fn lease_until_killed(parent: &Parent) {
    let ports = parent.argument(1)..=parent.argument(2);
    let builder = builder(&parent.argument::<String>(0), ports).timeout(LONG);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let port = builder.acquire().expect("a port in time");
                    let _listener = listen_strictly(port.port());
                }
            });
        }
        parent.say("started");
        parent.hear();
    });
}

/// Tries to lease the port on each request of the parent, and reports the outcome.
fn try_once(parent: &Parent) {
    let port: u16 = parent.argument(1);
    let builder = builder(&parent.argument::<String>(0), port..=port);
    loop {
        parent.hear();
        // Released before the parent is answered.
        let outcome = match builder.try_acquire().map(drop) {
            Ok(()) => "leased".to_owned(),
            Err(error) => format!("{:?}", error.kind()),
        };
        parent.say(outcome);
    }
}

fn lease_and_bind_in_eight_processes(ports: &RangeInclusive<u16>, leases: usize, remover: bool) {
    let (dir, oracle) = (lock_dir(), lock_dir());
    let (first, last) = (ports.start().to_string(), ports.end().to_string());
    let range = [text(dir.path()), &first, &last];
    let _remover = remover.then(|| Peer::start("remove lock files", &range));
    let rest = [text(oracle.path()), "4", &stress(leases).to_string()];
    let arguments = [&range[..], &rest[..]].concat();
    let peers: Vec<Peer> = (0..8)
        .map(|_| Peer::start("lease and bind", &arguments))
        .collect();
    for peer in peers {
        let outcome = peer.hear_within(10 * LONG).expect("in time");
        assert_eq!(outcome, "0 overlaps, 0 failed binds");
        assert!(peer.finish().success());
    }
}

#[test]
#[parallel]
fn eight_processes_of_four_threads_never_overlap() {
    let block = Block::new(24);
    lease_and_bind_in_eight_processes(&block.ports, 500, false);
}

#[test]
#[parallel]
fn lock_files_may_be_removed_at_any_time() {
    let block = Block::new(24);
    lease_and_bind_in_eight_processes(&block.ports, 300, true);
}

// Serial: a child that another test is spawning has a copy of our probe, on a busy machine for
// longer than a single attempt waits.
#[test]
#[serial]
fn the_ports_of_a_killed_process_can_be_leased_immediately() {
    let (dir, block) = (lock_dir(), Block::new(4));
    let (first, last) = (block.ports.start(), block.ports.end());
    let arguments = [text(dir.path()), &first.to_string(), &last.to_string()];
    for i in 0..stress(200) {
        let mut peer = Peer::start("lease until killed", &arguments);
        assert_eq!(peer.hear(), "started");
        // Not a wait for an event: each time, the kill comes at a different point.
        thread::sleep(Duration::from_micros(rand::random_range(0..3000)));
        peer.kill();
        for port in block.ports.clone() {
            let lease = builder(text(dir.path()), port..=port).try_acquire();
            if let Err(error) = lease {
                panic!("after kill {i}: {error}");
            }
        }
    }
}

#[test]
#[parallel]
fn a_dropped_lease_is_free_for_another_process_and_a_held_one_is_not() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let builder = builder(text(dir.path()), block.ports.clone());
    let mut other = Peer::start("try once", &[text(dir.path()), &block.first().to_string()]);
    for _ in 0..50 {
        let port = builder.try_acquire().expect("free");
        other.say("now");
        assert_eq!(other.hear(), "Exhausted");
        drop(port);
        other.say("now");
        assert_eq!(other.hear(), "leased");
    }
}

#[test]
#[serial]
fn a_leased_port_is_not_even_probed() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = builder(text(dir.path()), block.ports.clone())
        .try_acquire()
        .expect("free");
    // A caller that binds the leased port strictly would block every strict bind of its holder
    // for a moment: none may fail while others request the port.
    let arguments = [text(dir.path()), &port.to_string(), &port.to_string()];
    let mut askers: Vec<Peer> = (0..2)
        .map(|_| Peer::start("lease until killed", &arguments))
        .collect();
    for asker in &askers {
        assert_eq!(asker.hear(), "started");
    }
    for _ in 0..stress(20_000) {
        drop(bind_strictly(port.port()).expect("leased to us"));
    }
    askers.iter_mut().for_each(Peer::kill);
}

#[cfg(target_os = "linux")]
#[test]
#[serial]
fn the_same_on_other_file_systems() {
    portlock_testkit::run_on_each_file_system("the_same_on_other_file_systems", 0.02);
}

/// Arguments: lock directory, first and last of three ports. Keeps two of them as the
/// documentation recommends, and one as it warns against; reports which.
fn keep_for_life(parent: &Parent) {
    static KEPT: OnceLock<FreePort> = OnceLock::new();
    let dir: String = parent.argument(0);
    let builder = builder(&dir, parent.argument(1)..=parent.argument(2));
    let leaked: &'static FreePort = Box::leak(Box::new(builder.acquire().expect("free")));
    let kept = KEPT.get_or_init(|| builder.acquire().expect("free"));
    let wrong = builder.acquire().expect("free").port();
    parent.say(format!("{leaked} {kept} {wrong}"));
    parent.hear();
    parent.say("done");
}

#[test]
#[serial]
fn a_lease_is_kept_for_the_life_of_its_process() {
    let (dir, block) = (lock_dir(), Block::new(3));
    let numbers = [block.ports.start(), block.ports.end()].map(u16::to_string);
    for is_killed in [false, true] {
        let mut peer = Peer::start(
            "keep for life",
            &[text(dir.path()), &numbers[0], &numbers[1]],
        );
        let said = peer.hear();
        let ports: Vec<u16> = said
            .split(' ')
            .map(|port| port.parse().expect("a port"))
            .collect();
        let lease = |port| builder(text(dir.path()), port..=port).try_acquire();
        for &port in &ports[..2] {
            assert!(lease(port).expect_err("leased").is_busy());
        }
        lease(ports[2]).map(drop).expect("the value was dropped");
        if is_killed {
            peer.kill();
        } else {
            peer.say("end");
            peer.finish_well();
        }
        for port in ports {
            lease(port).map(drop).expect("its process has ended");
        }
    }
}
