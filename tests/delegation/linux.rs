//! Linux-specific cases: pid namespaces, users, FIFOs, and descriptors that hold a lease.

use std::{
    fs,
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Barrier,
    time::{Duration, Instant},
};

use portlock::LockDir;
use portlock_testkit::{
    Block, LONG, Parent, Peer, Process, Role, am_root, cat, command, forge, have_strace,
    in_initial_namespace, lock_dir, start_in_namespace, start_unprivileged, text,
};

use crate::{assert_leased, builder};

/// The roles of this test's children.
pub(crate) const ROLES: [(&str, Role); 3] = [
    ("delegate within", delegate_within),
    ("release", release),
    ("try once", try_once),
];

#[test]
fn a_process_that_cannot_be_seen_counts_as_alive() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let (port, namespace) = (block.first(), 3);
    let builder = builder(dir.path(), port);
    let lease = builder.try_acquire().expect("free");
    lease.delegate_to(std::process::id()).expect("it lives");
    // It is unknown in which namespace the pid is valid.
    forge(dir.path(), port, namespace, "-");
    assert_leased(&builder);
    let locks = LockDir::open(dir.path()).expect("trusted");
    assert_eq!(locks.clean().expect("readable").removed, 0);
    locks.force_release(port).expect("by force");
    builder.try_acquire().map(drop).expect("free");
}

/// Arguments: lock directory and port. This process is the first of its namespace.
fn delegate_within(parent: &Parent) {
    let dir: String = parent.argument(0);
    let builder = builder(Path::new(&dir), parent.argument(1));
    let server = cat();
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
    let server = cat();
    let lease = builder.acquire().expect("free");
    lease.delegate_to(server.0.id()).expect("it runs");
    parent.say("again");
    parent.hear();
}

#[test]
fn a_process_in_a_child_namespace_is_found_by_its_pid_there() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = block.first().to_string();
    let arguments = [text(dir.path()), &port];
    let kind = "--pid --fork --kill-child --mount-proc";
    // The process in the record is not in this nested namespace, which is at another depth.
    let deeper = "{ unshare --pid --fork sleep 1000 & }";
    let Some(mut peer) = start_in_namespace(kind, deeper, "delegate within", &arguments) else {
        return;
    };
    let builder = builder(dir.path(), block.first());
    let locks = LockDir::open(dir.path()).expect("trusted");
    let pid: u32 = peer.hear().parse().expect("a pid");
    assert!(pid < 100, "in a separate namespace");
    let namespace = peer.hear();
    assert_leased(&builder);
    a_delegated_port_is_not_leased_if_the_system_fails_to_report(&builder, &arguments, &namespace);

    peer.say("end it");
    assert_eq!(peer.hear(), "ended");
    builder.try_acquire().map(drop).expect("seen to be gone");

    // When the whole namespace is gone, only the initial namespace can see that the process is in
    // no other one.
    peer.say("once more");
    assert_eq!(peer.hear(), "again");
    peer.kill();
    let deadline = Instant::now() + LONG;
    while !members(&namespace).is_empty() {
        assert!(Instant::now() < deadline, "the namespace does not end");
    }
    if !in_initial_namespace() {
        assert_leased(&builder);
        let error = locks.release(block.first()).expect_err("not seen");
        assert!(error.to_string().contains("cannot be seen"), "{error}");
        locks.force_release(block.first()).expect("by force");
    }
    builder.try_acquire().map(drop).expect("proven to be gone");
}

/// Returns the directories in /proc of the processes of a pid namespace.
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

fn a_delegated_port_is_not_leased_if_the_system_fails_to_report(
    builder: &portlock::Builder,
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
        ("?open,openat:error=EMFILE", vec![directory], not_found),
        ("?open,openat:error=EMFILE", of_each("status"), not_found),
        ("?open,openat:error=EMFILE", of_each("stat"), not_found),
        // A process that may not be inspected may be any process.
        ("?open,openat:error=EACCES", of_each("status"), "1 leased"),
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

/// Arguments: lock directory and port.
fn release(parent: &Parent) {
    parent.say("started");
    let dir: String = parent.argument(0);
    let locks = LockDir::open(Path::new(&dir)).expect("trusted");
    let error = locks
        .release(parent.argument(1))
        .expect_err("another user's");
    assert!(error.to_string().contains("not this user's"), "{error}");
    locks.force_release(parent.argument(1)).expect("by force");
    parent.say("done");
}

#[test]
fn a_lease_of_another_user_needs_force() {
    if !am_root() {
        eprintln!("skipped: only root can run this as two users");
        return;
    }
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
fn cleaners_at_the_same_time_do_not_fail() {
    let dir = lock_dir();
    let locks = LockDir::open(dir.path()).expect("trusted");
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
fn a_lease_is_not_passed_to_a_pid_without_a_process() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let lease = builder(dir.path(), block.first()).try_acquire();
    let error = lease
        .expect("free")
        .pass_to(1 << 23)
        .expect_err("no process");
    assert_eq!(error.kind(), portlock::ErrorKind::Process, "{error}");
}

#[test]
fn a_lease_lasts_as_long_as_its_descriptor() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let builder = builder(dir.path(), block.first());
    let lease = builder.try_acquire().expect("free");
    let fd: OwnedFd = lease.into_fd().expect("descriptors left");
    assert_leased(&builder);
    // The child inherits it as its input.
    let copy = fd.try_clone().expect("descriptors left");
    let mut command = Command::new("sleep");
    let child = command.arg("1000").stdin(Stdio::from(copy)).spawn();
    let server = Process(child.expect("sleep is installed"));
    drop((command, fd));
    assert_leased(&builder);
    server.end();
    builder
        .try_acquire()
        .map(drop)
        .expect("the last copy is closed");
}
