//! Many threads of one process: leases are exclusive and their ports can be bound, without delay,
//! while other threads spawn children.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use portlock::FreePort;
#[cfg(not(target_os = "macos"))]
use portlock_testkit::nothing;
use portlock_testkit::{Block, LONG, listen_strictly, lock_dir, stress};
use serial_test::serial;

// All of these are serial: a child that one test spawns inherits the sockets of the others until
// it calls exec, and a strict bind would see them.

/// Runs `test` while `n` threads spawn children continuously.
///
/// Not on macOS, where each child has a copy of the probe for a moment that blocks even servers
/// with `SO_REUSEADDR` (docs/guarantees.md).
#[cfg(not(target_os = "macos"))]
fn while_spawning(n: usize, test: impl FnOnce()) {
    let done = AtomicBool::new(false);
    let spawned = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..n {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let status = nothing().status().expect("every system has it");
                    assert!(status.success());
                    spawned.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Also ends the spawning on a panic.
        struct Done<'a>(&'a AtomicBool);
        impl Drop for Done<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _done = Done(&done);
        test();
    });
    println!("{} children meanwhile", spawned.into_inner());
}

#[test]
#[serial]
fn sixteen_threads_on_32_ports_never_overlap() {
    let (dir, block) = (lock_dir(), Block::new(32));
    let builder = FreePort::builder()
        .reuse_address(false)
        .ports(block.ports.clone())
        .lock_dir(dir.path())
        .timeout(LONG);
    // The oracle is these flags and the strict binds, not portlock's registry.
    let held = [const { AtomicBool::new(false) }; 32];
    let (overlaps, failed_binds) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let leases = stress(2000);
    let cycle = || {
        let port = builder.acquire().expect("a port in time");
        let held = &held[usize::from(port.port() - block.first())];
        if held.swap(true, Ordering::SeqCst) {
            overlaps.fetch_add(1, Ordering::SeqCst);
        }
        match listen_strictly(port.port()) {
            Ok(listener) => drop(listener),
            Err(_) => {
                failed_binds.fetch_add(1, Ordering::SeqCst);
            }
        }
        held.store(false, Ordering::SeqCst);
        port.release().expect("released");
    };
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| (0..leases).for_each(|_| cycle()));
        }
    });
    assert_eq!((overlaps.into_inner(), failed_binds.into_inner()), (0, 0));
}

#[cfg(not(target_os = "macos"))]
#[test]
#[serial]
fn a_released_port_can_be_leased_immediately_while_children_start() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let builder = FreePort::builder()
        .ports(block.ports.clone())
        .lock_dir(dir.path());
    let leases = stress(5000);
    let mut slow = 0;
    while_spawning(3, || {
        for i in 0..leases {
            let port = builder.try_acquire().or_else(|error| {
                // On a busy machine, a child may take longer from fork to exec than a call
                // without a timeout waits.
                let lingers = error.counts().is_some_and(|counts| counts.lingering == 1);
                if !lingers {
                    return Err(error);
                }
                slow += 1;
                builder.acquire()
            });
            drop(port.unwrap_or_else(|error| panic!("lease {i}: {error}")));
        }
    });
    assert!(
        slow * 100 <= leases,
        "{slow} of {leases} leases had to wait"
    );
}

#[cfg(not(target_os = "macos"))]
#[test]
#[serial]
fn a_leased_port_can_be_bound_immediately_while_children_start() {
    let (dir, block) = (lock_dir(), Block::new(128));
    let builder = FreePort::builder()
        .ports(block.ports.clone())
        .lock_dir(dir.path());
    let mut failed = 0;
    while_spawning(3, || {
        for _ in 0..stress(20_000) {
            let port = builder.acquire().expect("a free port");
            // std sets SO_REUSEADDR, as most servers do on Unix.
            if TcpListener::bind(("0.0.0.0", port.port())).is_err() {
                failed += 1;
            }
        }
    });
    assert_eq!(failed, 0);
}

#[test]
#[serial]
fn a_listening_lease_has_no_gap_and_serves_both_families() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let builder = FreePort::builder()
        .ports(block.ports.clone())
        .lock_dir(dir.path());
    let (port, listener) = builder.listen().expect("free");
    for host in ["127.0.0.1", "::1"] {
        let mut client = TcpStream::connect((host, port.port())).expect("it listens");
        let (mut server, _) = listener.accept().expect("a connection");
        server.write_all(b"x").expect("connected");
        // The server closes first, so the connection's TIME_WAIT is on its port.
        server.shutdown(Shutdown::Both).expect("connected");
        drop(server);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).expect("connected");
        assert_eq!(answer, b"x");
    }
    drop(listener);
    TcpListener::bind(("0.0.0.0", port.port())).expect("TIME_WAIT does not keep the next server");
}

#[test]
#[serial]
fn a_waiting_thread_gets_the_port_that_another_releases() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let builder = FreePort::builder()
        .ports(block.ports.clone())
        .lock_dir(dir.path())
        .timeout(LONG);
    let first = builder.acquire().expect("free");
    thread::scope(|scope| {
        let waiters: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| builder.acquire().map(|port| port.port())))
            .collect();
        first.release().expect("released");
        for waiter in waiters {
            let port = waiter.join().expect("no panic").expect("in time");
            assert_eq!(port, block.first());
        }
    });
}

#[cfg(target_os = "linux")]
#[test]
#[serial]
fn the_same_on_other_file_systems() {
    portlock_testkit::run_on_each_file_system("the_same_on_other_file_systems", 0.05);
}
