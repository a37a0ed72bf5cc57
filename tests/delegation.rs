//! Leases that are handed to another process, and what is left in the directory.

mod common;

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Barrier,
    time::{Duration, Instant},
};

use common::{
    Block, Cat, LONG, Parent, Peer, am_root, command, have_strace, lock_dir, run_child,
    start_in_namespace, start_unprivileged, text,
};
use portlock::{Builder, ErrorKind, FreePort, LeaseState, LockDir};

#[test]
fn child() {
    run_child(&[
        ("delegate", delegate),
        ("delegate within", delegate_within),
        ("release", release),
        ("try once", try_once),
        ("look", look),
    ]);
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
fn a_port_can_be_acquired_for_another_process_at_once() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let builder = builder(dir.path(), block.first()).label("for another");
    let ended = {
        let server = Cat::start();
        let port = builder.acquire_for(server.0.id()).expect("free");
        assert_eq!(port, block.first());
        let pid = format!("pid {} \"cat\" (for another)", server.0.id());
        let message = assert_leased(&builder);
        assert!(message.contains(&pid), "{message}");
        let id = server.0.id();
        server.end();
        id
    };
    let builder = builder.timeout(Duration::ZERO);
    for nobody in [ended, 0, 1 << 23] {
        let error = builder.acquire_for(nobody).expect_err("no such process");
        assert_eq!(error.kind(), ErrorKind::Process, "{error}");
    }
    let held = builder.try_acquire().expect("it went with the process");
    let error = builder.acquire_for(std::process::id()).expect_err("held");
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
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
fn a_delegated_lease_lives_as_long_as_that_process() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let builder = builder(dir.path(), block.first());
    let server = Cat::start();
    let pid = server.0.id().to_string();
    let port = block.first().to_string();
    let delegator = Peer::start("delegate", &[text(dir.path()), &port, &pid]);
    assert_eq!(delegator.hear(), port);
    assert_leased(&builder);
    assert!(delegator.finish().success());

    let message = assert_leased(&builder);
    assert!(
        message.contains(&format!("pid {pid} \"cat\" (handed on)")),
        "{message}"
    );
    let locks = LockDir::locate(Some(dir.path())).expect("trusted");
    let lease = &locks.leases().expect("readable")[0];
    assert_eq!(
        (lease.port, lease.state),
        (block.first(), LeaseState::Delegated)
    );
    let owner = lease.owner.as_ref().expect("a record");
    assert_eq!(owner.pid().to_string(), pid);
    assert_eq!(
        (owner.program(), owner.label()),
        (Some("cat"), Some("handed on"))
    );

    server.end();
    assert_eq!(
        locks.leases().expect("readable")[0].state,
        LeaseState::Stale
    );
    builder
        .try_acquire()
        .map(drop)
        .expect("its process has ended");
}

#[test]
fn a_process_that_ended_and_was_not_waited_for_keeps_nothing() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let builder = builder(dir.path(), block.first());
    let mut server = Cat::start();
    let port = builder.try_acquire().expect("free");
    port.delegate_to(server.0.id()).expect("it runs");
    server.0.kill().expect("our own child");
    let deadline = Instant::now() + LONG;
    while builder.try_acquire().is_err() {
        assert!(Instant::now() < deadline, "the zombie keeps the port");
    }
}

#[test]
fn a_process_that_is_none_is_refused() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let builder = builder(dir.path(), block.first());
    for pid in [0, 1 << 23, u32::MAX] {
        let port = builder.try_acquire().expect("free");
        let error = port.delegate_to(pid).expect_err("no such process");
        assert_eq!(error.kind(), ErrorKind::Process);
        assert!(error.to_string().contains(&pid.to_string()), "{error}");
    }
    builder.try_acquire().map(drop).expect("given back");
}

/// Replaces word `index` of the port's record.
fn forge(dir: &Path, port: u16, index: usize, word: &str) {
    let path = dir.join(port.to_string());
    let record = fs::read_to_string(&path).expect("a lock file");
    let mut words: Vec<&str> = record.split_ascii_whitespace().collect();
    words[index] = word;
    let line = format!("{:511}\n", words.join(" "));
    fs::write(&path, line).expect("our own file");
}

#[test]
fn a_recycled_pid_keeps_nothing_and_a_living_process_everything() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let (port, own) = (block.first(), std::process::id());
    let builder = builder(dir.path(), port);
    let (start, boot) = (2, 3);
    for (index, word) in [(start, "1"), (boot, "6e1f7a4e-0c55-4f3e-a1d0-3e9b3c1f0a77")] {
        let lease = builder.try_acquire().expect("free");
        lease.delegate_to(own).expect("this process lives");
        for _ in 0..3 {
            assert_leased(&builder);
        }
        forge(dir.path(), port, index, word);
        builder.try_acquire().map(drop).expect("another process");
    }
    // Who held a lease, by the record, and did not end well, keeps nothing.
    let lease = builder.try_acquire().expect("free");
    lease.delegate_to(own).expect("this process lives");
    forge(dir.path(), port, 0, "held");
    builder.try_acquire().map(drop).expect("the lock decides");
}

#[test]
fn a_process_that_cannot_be_seen_counts_as_alive() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let (port, namespace) = (block.first(), 4);
    let builder = builder(dir.path(), port);
    let lease = builder.try_acquire().expect("free");
    lease.delegate_to(std::process::id()).expect("it lives");
    forge(dir.path(), port, namespace, "1");
    assert_leased(&builder);
    let locks = LockDir::locate(Some(dir.path())).expect("trusted");
    assert_eq!(locks.clean().expect("readable").removed, 0);
    locks.release(port, true).expect("by force");
    builder.try_acquire().map(drop).expect("free");
}

/// Arguments: lock directory and port. This process is the first of its namespace.
fn delegate_within(parent: &Parent) {
    let dir: String = parent.argument(0);
    let builder = builder(Path::new(&dir), parent.argument(1));
    let server = Cat::start();
    let lease = builder.acquire().expect("free");
    lease.delegate_to(server.0.id()).expect("it runs");
    parent.say(server.0.id());
    let namespace = fs::read_link("/proc/self/ns/pid").expect("Linux has it");
    parent.say(namespace.display());
    parent.hear();
    server.end();
    parent.say("ended");
    parent.hear();
    drop(builder.acquire().expect("free"));
    let server = Cat::start();
    let lease = builder.acquire().expect("free");
    lease.delegate_to(server.0.id()).expect("it runs");
    parent.say("again");
    parent.hear();
}

#[test]
fn a_process_in_a_namespace_below_is_found_by_its_pid_there() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = block.first().to_string();
    let arguments = [text(dir.path()), &port];
    let kind = "--pid --fork --kill-child --mount-proc";
    let Some(mut peer) = start_in_namespace(kind, "true", "delegate within", &arguments) else {
        return;
    };
    let builder = builder(dir.path(), block.first());
    let locks = LockDir::locate(Some(dir.path())).expect("trusted");
    let pid: u32 = peer.hear().parse().expect("a pid");
    assert!(pid < 100, "of a namespace of its own");
    let namespace = peer.hear();
    assert_leased(&builder);
    nor_is_it_given_where_the_system_fails_to_tell(&builder, &arguments, &namespace);

    peer.say("end it");
    assert_eq!(peer.hear(), "ended");
    builder.try_acquire().map(drop).expect("seen to be gone");

    // When the whole namespace is gone, nobody can tell any more.
    peer.say("once more");
    assert_eq!(peer.hear(), "again");
    peer.kill();
    let deadline = Instant::now() + LONG;
    while !members(&namespace).is_empty() {
        assert!(Instant::now() < deadline, "the namespace does not end");
    }
    assert_leased(&builder);
    let error = locks.release(block.first(), false).expect_err("not seen");
    assert!(error.to_string().contains("cannot be seen"), "{error}");
    locks.release(block.first(), true).expect("by force");
    builder.try_acquire().map(drop).expect("free");
}

/// The directories in /proc of the processes of a pid namespace.
fn members(namespace: &str) -> Vec<PathBuf> {
    let is_member = |process: &PathBuf| {
        fs::read_link(process.join("ns/pid")).is_ok_and(|link| link == Path::new(namespace))
    };
    let entries = fs::read_dir("/proc").expect("Linux has it").flatten();
    let processes = entries.map(|entry| entry.path());
    processes.filter(is_member).collect()
}

/// Arguments: lock directory and port.
fn try_once(parent: &Parent) {
    let dir: String = parent.argument(0);
    let outcome = builder(Path::new(&dir), parent.argument(1)).try_acquire();
    parent.say(match outcome.map_err(|error| error.to_string()) {
        Ok(_) => "leased".to_owned(),
        Err(message) => message,
    });
}

fn nor_is_it_given_where_the_system_fails_to_tell(
    builder: &Builder,
    arguments: &[&str],
    namespace: &str,
) {
    if !have_strace() {
        return;
    }
    let processes = members(namespace);
    let [directory, own] = ["/proc", "/proc/self/ns/pid"].map(PathBuf::from);
    let of_each = |file: &str| processes.iter().map(|process| process.join(file)).collect();
    let not_found = "cannot find the process that owns";
    for (fault, paths, said) in [
        ("openat:error=EMFILE", vec![directory], not_found),
        ("openat:error=EMFILE", of_each("status"), not_found),
        ("openat:error=EMFILE", of_each("stat"), not_found),
        ("readlink:error=ENOMEM", of_each("ns/pid"), not_found),
        ("readlink:error=ENOMEM", vec![own], "1 leased"),
    ] {
        let trace = tempfile::NamedTempFile::new().expect("a temporary file");
        let inject = format!("inject={fault}");
        let mut strace = vec!["strace", "-f", "-o", text(trace.path()), "-e", &inject];
        strace.extend(paths.iter().flat_map(|path| ["-P", text(path)]));
        let binary = std::env::current_exe().expect("this test binary");
        let peer = Peer::start_command(command(&strace, &binary, "try once", arguments));
        let outcome = peer.hear();
        assert!(outcome.contains(said), "{fault} {paths:?}: {outcome}");
        peer.finish();
        let trace = fs::read_to_string(trace.path()).expect("our own");
        assert!(trace.contains("(INJECTED)"), "{fault} {paths:?}");
        assert_leased(builder);
    }
}

#[test]
fn only_delegated_leases_can_be_released_by_others() {
    let (dir, block) = (lock_dir(), Block::new(2));
    let port = block.first();
    let builder = builder(dir.path(), port);
    let locks = LockDir::locate(Some(dir.path())).expect("trusted");
    let refused = |part: &str| {
        for force in [false, true] {
            let error = locks.release(port, force).expect_err(part);
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
    locks.release(port, false).expect("our own");
    builder.try_acquire().map(drop).expect("free");
    refused("not leased");
}

#[test]
fn a_lease_can_be_released_while_others_look_at_it() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let builder = builder(dir.path(), block.first());
    let locks = LockDir::locate(Some(dir.path())).expect("trusted");
    let port = block.first().to_string();
    let mut looker = Peer::start("look", &[text(dir.path()), &port]);
    assert_eq!(looker.hear(), "looking");
    for _ in 0..200 {
        // The looker may have it for a moment, when it is nobody's.
        let lease = builder.acquire().expect("soon");
        lease.delegate_to(std::process::id()).expect("it lives");
        locks.release(block.first(), false).expect("our own");
    }
    looker.kill();
}

/// Arguments: lock directory and port.
fn look(parent: &Parent) {
    let dir: String = parent.argument(0);
    let builder = builder(Path::new(&dir), parent.argument(1));
    parent.say("looking");
    std::thread::spawn(move || {
        loop {
            drop(builder.try_acquire());
        }
    });
    parent.hear();
}

/// Arguments: lock directory and port.
fn release(parent: &Parent) {
    parent.say("started");
    let dir: String = parent.argument(0);
    let locks = LockDir::locate(Some(Path::new(&dir))).expect("trusted");
    let error = locks
        .release(parent.argument(1), false)
        .expect_err("another user's");
    assert!(error.to_string().contains("not this user's"), "{error}");
    locks.release(parent.argument(1), true).expect("by force");
    parent.say("done");
}

#[test]
fn a_lease_of_another_user_needs_force() {
    if !am_root() {
        eprintln!("left out: only root can run this as two users");
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let (dir, block) = (lock_dir(), Block::new(1));
    let shared = fs::Permissions::from_mode(0o1777);
    fs::set_permissions(dir.path(), shared).expect("our own");
    let builder = builder(dir.path(), block.first());
    let lease = builder.try_acquire().expect("free");
    lease.delegate_to(std::process::id()).expect("it lives");
    let arguments = [text(dir.path()), &block.first().to_string()];
    start_unprivileged("release", &arguments).finish_well();
    builder.try_acquire().map(drop).expect("released by force");
}

#[test]
fn clean_removes_what_nobody_leases() {
    let (dir, block) = (lock_dir(), Block::new(3));
    let builder = |n| builder(dir.path(), block.first() + n);
    let locks = LockDir::locate(Some(dir.path())).expect("trusted");
    let held = builder(0).acquire().expect("free");
    let delegated = builder(1).acquire().expect("free");
    delegated.delegate_to(std::process::id()).expect("it lives");
    builder(2).acquire().map(drop).expect("free");
    // None of these is a lock file.
    fs::write(dir.path().join("notes"), "").expect("our own directory");
    fs::write(dir.path().join("04000"), "").expect("our own directory");
    fs::create_dir(dir.path().join("1")).expect("our own directory");
    std::os::unix::fs::symlink("notes", dir.path().join("2")).expect("our own directory");
    fs::write(dir.path().join(".new.3.1.0"), "").expect("our own directory");

    let states: Vec<_> = locks.leases().expect("readable");
    let states: Vec<_> = states.iter().map(|lease| lease.state).collect();
    assert_eq!(
        states,
        [LeaseState::Held, LeaseState::Delegated, LeaseState::Stale]
    );
    let cleaned = locks.clean().expect("ours");
    assert_eq!((cleaned.removed, cleaned.kept), (1, 2));
    assert_eq!(locks.leases().expect("readable").len(), 2);
    assert_eq!(fs::read_dir(dir.path()).expect("ours").count(), 7);
    assert_leased(&builder(0));
    assert_leased(&builder(1));
    drop(held);

    // A maker that was killed long ago is no maker any more.
    let stray = fs::File::open(dir.path().join(".new.3.1.0")).expect("ours");
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(7200);
    stray.set_modified(long_ago).expect("ours");
    assert_eq!(locks.clean().expect("ours").removed, 2);
}

#[test]
fn cleaners_at_the_same_time_do_not_fail() {
    let dir = lock_dir();
    let locks = LockDir::locate(Some(dir.path())).expect("trusted");
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(7200);
    for i in 0..200 {
        let line = dir.path().join(format!(".waiting.{i:016x}"));
        let mode = rustix::fs::Mode::RWXU;
        rustix::fs::mkfifoat(rustix::fs::CWD, line, mode).expect("our own directory");
        let stray = fs::File::create(dir.path().join(format!(".new.{i}.1.0")));
        let stray = stray.expect("our own directory");
        stray.set_modified(long_ago).expect("ours");
    }
    let start = Barrier::new(4);
    let clean = || {
        start.wait();
        locks.clean().expect("ours").removed
    };
    let removed: usize = std::thread::scope(|scope| {
        let cleaners = [(); 4].map(|()| scope.spawn(clean));
        cleaners.map(|cleaner| cleaner.join().expect("no panic"))
    })
    .iter()
    .sum();
    assert_eq!(removed, 400);
    assert_eq!(fs::read_dir(dir.path()).expect("ours").count(), 0);
}

#[test]
fn a_lease_lives_as_long_as_its_descriptor() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let builder = builder(dir.path(), block.first());
    let lease = builder.try_acquire().expect("free");
    let fd: OwnedFd = lease.into_fd().expect("descriptors left");
    assert_leased(&builder);
    // As its input, the child inherits it.
    let copy = fd.try_clone().expect("descriptors left");
    let mut command = Command::new("sleep");
    let child = command.arg("1000").stdin(Stdio::from(copy)).spawn();
    let server = Cat(child.expect("sleep is installed"));
    drop((command, fd));
    assert_leased(&builder);
    server.end();
    builder
        .try_acquire()
        .map(drop)
        .expect("the last copy is closed");
}

#[test]
fn waiting_for_a_server() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = builder(dir.path(), block.first()).acquire().expect("free");
    let error = port
        .wait_until_listening(Duration::from_millis(50))
        .expect_err("nobody listens");
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
