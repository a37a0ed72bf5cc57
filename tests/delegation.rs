//! Leases that are transferred to another process, and files that are left in the directory.

#[cfg(target_os = "linux")]
#[path = "delegation/linux.rs"]
mod linux;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use portlock::{Builder, EntryState, ErrorKind, FreePort, LockDir};
use portlock_testkit::{
    Block, LONG, Parent, Peer, Role, cat, cat_program, forge, lock_dir, run_child, text,
};

#[test]
fn child() {
    let roles: [(&str, Role); 2] = [("delegate", delegate), ("check", check)];
    #[cfg(target_os = "linux")]
    let roles = [&roles[..], &linux::ROLES].concat();
    run_child(&roles);
}

fn builder(dir: &Path, port: u16) -> Builder {
    FreePort::builder().ports(port..=port).lock_dir(dir)
}

#[track_caller]
fn assert_leased(builder: &Builder) -> String {
    let error = builder.try_acquire().expect_err("still leased");
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
    error.to_string()
}

#[test]
fn a_port_can_be_acquired_for_another_process_in_one_call() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let builder = builder(dir.path(), block.first()).label("for another");
    let ended = {
        let server = cat();
        let port = builder.acquire_for(server.0.id()).expect("free");
        assert_eq!(port, block.first());
        let (pid, program) = (server.0.id(), cat_program());
        let pid = format!("pid {pid} \"{program}\" (for another)");
        let message = assert_leased(&builder);
        assert!(message.contains(&pid), "{message}");
        let id = server.0.id();
        server.end();
        id
    };
    let builder = builder.timeout(Duration::ZERO);
    // Windows reuses a pid immediately, perhaps for another test's child.
    let ended = if cfg!(windows) { 1 << 23 } else { ended };
    for nobody in [ended, 0, 1 << 23] {
        let error = builder.acquire_for(nobody).expect_err("no such process");
        assert_eq!(error.kind(), ErrorKind::Process, "{error}");
    }
    let held = builder
        .try_acquire()
        .expect("its lease ended with the process");
    let error = builder.acquire_for(std::process::id()).expect_err("held");
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
    // Nor does the call wait for a port.
    let error = builder.acquire_for(ended).expect_err("no such process");
    assert_eq!(error.kind(), ErrorKind::Process, "{error}");
    held.release().expect("released");
}

/// Arguments: lock directory, port, pid.
fn delegate(parent: &Parent) {
    let dir: String = parent.argument(0);
    let port = builder(Path::new(&dir), parent.argument(1))
        .label("handed on")
        .acquire();
    let number = port.expect("free").delegate_to(parent.argument(2));
    parent.say(number.expect("it runs"));
}

#[test]
fn a_delegated_lease_lasts_as_long_as_its_process() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let builder = builder(dir.path(), block.first());
    let server = cat();
    let pid = server.0.id().to_string();
    let port = block.first().to_string();
    let delegator = Peer::start("delegate", &[text(dir.path()), &port, &pid]);
    assert_eq!(delegator.hear(), port);
    assert_leased(&builder);
    assert!(delegator.finish().success());

    let message = assert_leased(&builder);
    let program = cat_program();
    let owner = format!("pid {pid} \"{program}\" (handed on)");
    assert!(message.contains(&owner), "{message}");
    let locks = LockDir::open(dir.path()).expect("trusted");
    let lease = &locks.entries().expect("readable")[0];
    assert_eq!(
        (lease.port, lease.state),
        (block.first(), EntryState::Delegated)
    );
    let owner = lease.owner.as_ref().expect("a record");
    assert_eq!(owner.pid().to_string(), pid);
    assert_eq!(
        (owner.program(), owner.label()),
        (Some(&program[..]), Some("handed on"))
    );

    server.end();
    assert_eq!(
        locks.entries().expect("readable")[0].state,
        EntryState::Stale
    );
    builder
        .try_acquire()
        .map(drop)
        .expect("its process has ended");
}

#[test]
fn a_process_that_ended_and_was_not_reaped_keeps_no_port() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let builder = builder(dir.path(), block.first());
    let mut server = cat();
    let port = builder.try_acquire().expect("free");
    port.delegate_to(server.0.id()).expect("it runs");
    server.0.kill().expect("our own child");
    let deadline = Instant::now() + LONG;
    while builder.try_acquire().is_err() {
        assert!(Instant::now() < deadline, "the zombie keeps the port");
    }
}

#[test]
fn a_pid_without_a_process_is_refused() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let builder = builder(dir.path(), block.first());
    for pid in [0, 1 << 23, u32::MAX] {
        let port = builder.try_acquire().expect("free");
        let error = port.delegate_to(pid).expect_err("no such process");
        assert_eq!(error.kind(), ErrorKind::Process);
        assert!(error.to_string().contains(&pid.to_string()), "{error}");
    }
    builder.try_acquire().map(drop).expect("released");
}

#[test]
fn a_reused_pid_keeps_no_port_and_a_living_process_keeps_all() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let (port, own) = (block.first(), std::process::id());
    let builder = builder(dir.path(), port);
    let lease = builder.try_acquire().expect("free");
    lease.delegate_to(own).expect("this process lives");
    for _ in 0..3 {
        assert_leased(&builder);
    }
    let start = 2;
    forge(dir.path(), port, start, "1");
    builder.try_acquire().map(drop).expect("another process");
    // A process that held a lease, according to the record, and did not end well, keeps no port.
    let lease = builder.try_acquire().expect("free");
    lease.delegate_to(own).expect("this process lives");
    forge(dir.path(), port, 0, "held");
    builder.try_acquire().map(drop).expect("the lock decides");
}

#[test]
fn only_delegated_leases_can_be_released_by_others() {
    let (dir, block) = (lock_dir(), Block::new(2));
    let port = block.first();
    let builder = builder(dir.path(), port);
    let locks = LockDir::open(dir.path()).expect("trusted");
    let refused = |part: &str| {
        for force in [false, true] {
            let release = if force {
                LockDir::force_release
            } else {
                LockDir::release
            };
            let error = release(&locks, port).expect_err(part);
            assert_eq!(error.kind(), ErrorKind::Lock);
            assert!(error.to_string().contains(part), "{error}");
        }
    };
    refused("not leased");
    let held = builder.try_acquire().expect("free");
    refused("is held by pid");
    drop(held);
    refused("not leased");

    let lease = builder.try_acquire().expect("free");
    lease.delegate_to(std::process::id()).expect("it lives");
    locks.release(port).expect("our own");
    builder.try_acquire().map(drop).expect("free");
    refused("not leased");
}

#[test]
fn a_lease_can_be_released_while_others_check_it() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let builder = builder(dir.path(), block.first());
    let locks = LockDir::open(dir.path()).expect("trusted");
    let port = block.first().to_string();
    let mut checker = Peer::start("check", &[text(dir.path()), &port]);
    assert_eq!(checker.hear(), "checking");
    for _ in 0..200 {
        // The checking process may have the lock for a moment while no process leases the port.
        let lease = builder.acquire().expect("soon");
        lease.delegate_to(std::process::id()).expect("it lives");
        locks.release(block.first()).expect("our own");
    }
    checker.kill();
}

/// Arguments: lock directory and port.
fn check(parent: &Parent) {
    let dir: String = parent.argument(0);
    let builder = builder(Path::new(&dir), parent.argument(1));
    parent.say("checking");
    std::thread::spawn(move || {
        loop {
            drop(builder.try_acquire());
        }
    });
    parent.hear();
}

#[test]
fn clean_removes_a_lease_whose_process_has_ended() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let server = cat();
    let builder = builder(dir.path(), block.first());
    builder.acquire_for(server.0.id()).expect("free");
    let locks = LockDir::open(dir.path()).expect("trusted");
    assert_eq!(locks.clean().expect("ours").removed, 0);
    server.end();
    assert_eq!(locks.clean().expect("ours").removed, 1);
}

#[test]
fn clean_removes_the_files_of_unleased_ports() {
    let (dir, block) = (lock_dir(), Block::new(3));
    let builder = |n| builder(dir.path(), block.first() + n);
    let locks = LockDir::open(dir.path()).expect("trusted");
    let held = builder(0).acquire().expect("free");
    let delegated = builder(1).acquire().expect("free");
    delegated.delegate_to(std::process::id()).expect("it lives");
    builder(2).acquire().map(drop).expect("free");
    // None of these is a lock file.
    fs::write(dir.path().join("notes"), "").expect("our own directory");
    fs::write(dir.path().join("04000"), "").expect("our own directory");
    fs::create_dir(dir.path().join("1")).expect("our own directory");
    #[cfg(unix)]
    std::os::unix::fs::symlink("notes", dir.path().join("2")).expect("our own directory");
    fs::write(dir.path().join(".new.3.1.0"), "").expect("our own directory");

    let states: Vec<_> = locks.entries().expect("readable");
    let states: Vec<_> = states.iter().map(|lease| lease.state).collect();
    assert_eq!(
        states,
        [EntryState::Held, EntryState::Delegated, EntryState::Stale]
    );
    let cleaned = locks.clean().expect("ours");
    assert_eq!((cleaned.removed, cleaned.kept), (1, 2));
    assert_eq!(locks.entries().expect("readable").len(), 2);
    let left = if cfg!(windows) { 8 } else { 7 };
    assert_eq!(fs::read_dir(dir.path()).expect("ours").count(), left);
    assert_leased(&builder(0));
    assert_leased(&builder(1));
    drop(held);

    if cfg!(windows) {
        // On Windows, a lock file is created under its final name.
        return;
    }
    // A process that began to create a file long ago was killed.
    let stray = fs::File::open(dir.path().join(".new.3.1.0")).expect("ours");
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(7200);
    stray.set_modified(long_ago).expect("ours");
    assert_eq!(locks.clean().expect("ours").removed, 2);
}

#[test]
fn waiting_for_a_server() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = builder(dir.path(), block.first()).acquire().expect("free");
    let error = port
        .wait_until_listening(Duration::from_millis(50))
        .expect_err("no process listens");
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(
        error.to_string().contains(&port.addr().to_string()),
        "{error}"
    );
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| port.wait_until_listening(LONG));
        let _server = std::net::TcpListener::bind(port.addr()).expect("leased to us");
        waiter.join().expect("no panic").expect("it listens");
    });
}
