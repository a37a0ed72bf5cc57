//! File systems that cannot rename without replacing (`RENAME_NOREPLACE`), such as FUSE and NFS:
//! a real one, and a failing system call. `recipe.rs`, `multithread.rs` and `multiprocess.rs`
//! test that leases are exclusive, and run themselves on several kinds of file systems.
//!
//! Linux only.

#![cfg(target_os = "linux")]

mod error;

use std::{
    env, fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
    process::Command,
    time::Duration,
};

use error::assert_error;
use portlock::{EntryState, ErrorKind, FreePort, LockDir};
use portlock_testkit::{
    BINDFS, Block, Parent, Peer, command, have_strace, lock_dir, on_file_system, run_child,
    set_mode, text,
};
use rustix::{fs::Mode, process::umask};

#[test]
fn child() {
    run_child(&[
        ("lease", lease),
        ("wait behind a lease", wait_behind_a_lease),
        ("lease in every kind", lease_in_every_kind),
    ]);
}

/// Arguments: lock directory, port, umask in decimal. Leases, and reports the outcome.
fn lease(parent: &Parent) {
    let port: u16 = parent.argument(1);
    umask(Mode::from_raw_mode(parent.argument(2)));
    let builder = FreePort::builder()
        .ports(port..=port)
        .lock_dir(parent.argument::<String>(0));
    parent.say(match builder.try_acquire() {
        Ok(_) => "leased".to_owned(),
        Err(error) => format!("{:?} {error}", error.kind()),
    });
}

/// Returns a child whose calls of renameat2(2) fail.
fn without_noreplace(error: &str, role: &str, arguments: &[&str]) -> Peer {
    let inject = format!("inject=renameat2:error={error}");
    let trace = [
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=renameat2",
        "-e",
        &inject,
    ];
    let prefix = [&["strace"][..], &trace].concat();
    let binary = env::current_exe().expect("this test binary");
    Peer::start_command(command(&prefix, &binary, role, arguments))
}

/// Returns the entries of the directory: names, and modes with the file type.
fn entries(dir: &Path) -> Vec<(String, u32)> {
    let entries = fs::read_dir(dir).expect("ours").map(|entry| {
        let entry = entry.expect("ours");
        let name = entry.file_name().into_string().expect("ASCII");
        (name, entry.metadata().expect("ours").mode())
    });
    entries.collect()
}

const PRIVATE: u32 = 0o100_600 | STICKY;
const SHARED: u32 = 0o100_666 | STICKY;
const STICKY: u32 = 0o1000;

#[test]
fn lock_files_are_created_without_rename_noreplace() {
    if !have_strace() {
        return;
    }
    for error in ["EINVAL", "ENOSYS", "EOPNOTSUPP"] {
        for (directory, mask, file) in [(0o700, 0o77, PRIVATE), (0o1777, 0, SHARED)] {
            let (dir, block) = (lock_dir(), Block::new(1));
            set_mode(dir.path(), directory);
            let port = block.first().to_string();
            let arguments = [text(dir.path()), &port, &mask.to_string()];
            let said = without_noreplace(error, "lease", &arguments).hear();
            assert_eq!(said, "leased", "{error}");
            assert_eq!(entries(dir.path()), [(port, file)], "{error}");
        }
    }
}

#[test]
fn a_lock_file_is_never_found_with_too_few_permissions() {
    if !have_strace() {
        return;
    }
    for (directory, mask, modes) in [
        (0o1777, 0o22, "0644 instead of 0666"),
        (0o700, 0o277, "0400 instead of 0600"),
    ] {
        let (dir, block) = (lock_dir(), Block::new(1));
        set_mode(dir.path(), directory);
        let port = block.first().to_string();
        let arguments = [text(dir.path()), &port, &u32::to_string(&mask)];
        let file = dir.path().join(&port);
        let said = without_noreplace("EINVAL", "lease", &arguments).hear();
        for part in [
            "Lock ",
            "create",
            text(&file),
            "RENAME_NOREPLACE",
            modes,
            "PORTLOCK_DIR",
        ] {
            assert!(said.contains(part), "no {part:?} in: {said}");
        }
        assert_eq!(entries(dir.path()), []);

        // As the message says.
        fs::write(&file, "").expect("ours");
        set_mode(&file, 0o666);
        let said = without_noreplace("EINVAL", "lease", &arguments).hear();
        assert_eq!(said, "leased");
    }
}

#[test]
fn ten_processes_create_the_same_file_without_rename_noreplace() {
    if !have_strace() {
        return;
    }
    let (dir, block) = (lock_dir(), Block::new(8));
    for port in block.ports.clone() {
        let (port, mask) = (port.to_string(), 0o77.to_string());
        let arguments = [text(dir.path()), &port, &mask];
        let peers: Vec<Peer> = (0..10)
            .map(|_| without_noreplace("EINVAL", "lease", &arguments))
            .collect();
        let said: Vec<String> = peers.iter().map(Peer::hear).collect();
        let is_expected = |said: &String| said == "leased" || said.starts_with("Exhausted ");
        assert!(said.iter().all(is_expected), "{said:?}");
        assert!(said.contains(&"leased".to_owned()), "{said:?}");
        fs::remove_file(dir.path().join(&port)).expect("ours");
    }
    assert_eq!(entries(dir.path()), []);
}

/// Arguments: lock directory, port. Waits for a port that it has leased itself, and reports the name
/// and mode of the wait queue's file.
fn wait_behind_a_lease(parent: &Parent) {
    let dir: String = parent.argument(0);
    let port: u16 = parent.argument(1);
    let builder = FreePort::builder().ports(port..=port).lock_dir(&dir);
    let held = builder.try_acquire().expect("free");
    let waited = builder.timeout(Duration::from_millis(20)).acquire();
    waited.expect_err("leased");
    let mut lines = fs::read_dir(&dir).expect("ours").filter_map(|entry| {
        let entry = entry.expect("ours");
        let metadata = entry.metadata().expect("ours");
        metadata.file_type().is_fifo().then(|| {
            let name = entry.file_name().into_string().expect("ASCII");
            format!("{} {:o}", &name[..9], metadata.mode() & 0o7777)
        })
    });
    parent.say(lines.next().unwrap_or_default());
    held.release().expect("ours");
}

#[test]
fn waiters_queue_without_rename_noreplace() {
    if !have_strace() {
        return;
    }
    let (dir, block) = (lock_dir(), Block::new(1));
    let arguments = [text(dir.path()), &block.first().to_string()];
    let said = without_noreplace("EINVAL", "wait behind a lease", &arguments).hear();
    assert_eq!(said, ".waiting. 600");
    let left = entries(dir.path()).len();
    assert_eq!(left, 2, "the lock file and the wait queue");
}

/// Arguments: port. Leases below `TMPDIR` in a private and in a shared directory.
fn lease_in_every_kind(parent: &Parent) {
    let port: u16 = parent.argument(0);
    let number = port.to_string();
    for (directory, file) in [(0o700, PRIVATE), (0o1777, SHARED)] {
        umask(Mode::from_raw_mode(0o22));
        let dir = lock_dir();
        set_mode(dir.path(), directory);
        let builder = FreePort::builder().ports(port..=port).lock_dir(dir.path());
        let spoiled = builder.try_acquire().map(drop);
        if directory == 0o700 {
            spoiled.expect("that umask leaves the owner all permissions");
        } else {
            assert_error(spoiled, ErrorKind::Lock, &["RENAME_NOREPLACE", "0644"]);
        }

        umask(Mode::empty());
        let lease = builder.try_acquire().expect("free");
        assert_eq!(entries(dir.path()), [(number.clone(), file)]);
        let locks = LockDir::open(dir.path()).expect("ours");
        let leases = locks.entries().expect("ours");
        assert_eq!(leases[0].state, EntryState::Held);
        // A removed file that is still open may keep a link under another name.
        let open = fs::File::open(dir.path().join(&number)).expect("ours");
        drop(lease);
        assert_eq!(locks.clean().expect("ours").removed, 1);
        drop(builder.try_acquire().expect("free, in a new file"));
        drop(open);
    }
    parent.say("done");
}

#[test]
fn bindfs_holds_lock_files_of_both_kinds() {
    let (scratch, block) = (lock_dir(), Block::new(1));
    let script = "\"$0\" \"$@\"; exit $?";
    let Some(shell) = on_file_system(BINDFS, script, scratch.path()) else {
        return;
    };
    let binary = env::current_exe().expect("this test binary");
    let port = block.first().to_string();
    let mut command = command(&prefix(&shell), &binary, "lease in every kind", &[&port]);
    command.current_dir(scratch.path());
    Peer::start_command(command).finish_well();
}

/// Returns a command as a prefix of another.
fn prefix(command: &Command) -> Vec<&str> {
    let program = std::iter::once(command.get_program());
    let words = program.chain(command.get_args());
    words.map(|word| word.to_str().expect("UTF-8")).collect()
}
