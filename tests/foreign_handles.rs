//! On Windows, no call fails because another program, such as a virus scanner, an indexer or a
//! backup program, has files in the lock directory open. A call waits for a lock that outlives its
//! holder.

#![cfg(windows)]
#![allow(
    clippy::incompatible_msrv,
    reason = "tests need a newer Rust than the library"
)]

use std::{
    fs::{self, File},
    os::windows::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::id,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use portlock::{Builder, EntryState, ErrorKind, FreePort, LockDir};
use portlock_testkit::{Block, Parent, Peer, lock_dir, run_child, text};
use tempfile::TempDir;

const FILE_SHARE_READ: u32 = 1;
const FILE_SHARE_WRITE: u32 = 2;
const FILE_SHARE_DELETE: u32 = 4;
const SHARED: u32 = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;

#[test]
fn child() {
    run_child(&[("hold", hold), ("lease once", lease_once)]);
}

/// Arguments: lock directory and port. Leases it until it is killed.
fn hold(parent: &Parent) {
    let dir: String = parent.argument(0);
    let port: u16 = parent.argument(1);
    let _lease = FreePort::builder()
        .ports(port..=port)
        .lock_dir(&dir)
        .acquire()
        .expect("free");
    parent.say("held");
    parent.hear();
}

/// Arguments: lock directory and port. Leases it once, and continues to run.
fn lease_once(parent: &Parent) {
    let dir: String = parent.argument(0);
    let port: u16 = parent.argument(1);
    let builder = FreePort::builder().ports(port..=port).lock_dir(&dir);
    builder.acquire().expect("free").release().expect("our own");
    parent.say("released");
    parent.hear();
}

/// Two ports, each with the files of an earlier lease.
struct Files {
    dir: TempDir,
    block: Block,
}

impl Files {
    fn new() -> Self {
        let files = Self {
            dir: lock_dir(),
            block: Block::new(2),
        };
        drop(files.both().acquire_many(2).expect("free"));
        files
    }

    fn port(&self) -> u16 {
        self.block.first()
    }

    fn other(&self) -> u16 {
        self.port() + 1
    }

    fn lock_file(&self) -> PathBuf {
        self.dir.path().join(self.port().to_string())
    }

    fn record(&self) -> PathBuf {
        self.dir.path().join(format!("{}.owner", self.port()))
    }

    fn one(&self) -> Builder {
        self.both().ports(self.port()..=self.port())
    }

    fn both(&self) -> Builder {
        FreePort::builder()
            .ports(self.block.ports.clone())
            .lock_dir(self.dir.path())
            .timeout(Duration::ZERO)
    }

    fn lock_dir(&self) -> LockDir {
        LockDir::open(self.dir.path()).expect("our own")
    }

    /// Asserts that both ports are listed, and that cleaning skips them, whatever is open.
    fn assert_can_be_inspected(&self) {
        let listed = self.lock_dir().entries().expect("listed");
        assert_eq!(listed.len(), 2, "{listed:?}");
        self.lock_dir().clean().expect("passed over");
    }

    /// Asserts that the port counts as leased, and that the other one is leased instead.
    fn assert_passed_over(&self) {
        let error = self.one().acquire().expect_err("passed over");
        assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
        let both = self.both();
        for _ in 0..4 {
            assert_eq!(both.acquire().expect("the other").port(), self.other());
        }
        let number = both.acquire_for(id()).expect("the other");
        assert_eq!(number, self.other());
        self.lock_dir().force_release(number).expect("our own");
    }

    /// Asserts that it is leased without its record, and that only this port cannot be delegated.
    fn assert_leased_without_record(&self) {
        let lease = self.one().acquire().expect("the lock is free");
        let error = self.one().acquire().expect_err("leased");
        assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
        let error = lease.delegate_to(id()).expect_err("it needs its record");
        assert_eq!(error.kind(), ErrorKind::Lock);
        let says = error.to_string();
        assert!(says.contains(text(&self.lock_file())), "{says}");
        assert_eq!(
            self.both().acquire_for(id()).expect("the other"),
            self.other()
        );
        self.lock_dir()
            .force_release(self.other())
            .expect("our own");
        let error = self.one().acquire_for(id()).expect_err("passed over");
        assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
    }
}

fn open(path: &Path, shared: u32) -> File {
    let file = File::options().read(true).share_mode(shared).open(path);
    file.expect("no process has it open")
}

#[expect(clippy::disallowed_methods, reason = "as another program does")]
fn try_lock(file: &File) -> bool {
    file.try_lock().is_ok()
}

fn lock(file: &File) {
    assert!(try_lock(file), "no process has it locked");
}

#[test]
fn the_port_of_an_unshared_lock_file_is_skipped() {
    let files = Files::new();
    for shared in [0, FILE_SHARE_READ, FILE_SHARE_WRITE] {
        let foreign = open(&files.lock_file(), shared);
        files.assert_passed_over();
        files.assert_can_be_inspected();
        drop(foreign);
        drop(files.both().acquire_many(2).expect("free again"));
    }
}

#[test]
fn a_held_lease_does_not_need_an_unshared_record() {
    let files = Files::new();
    for shared in [0, FILE_SHARE_READ] {
        let foreign = open(&files.record(), shared);
        files.assert_leased_without_record();
        files.assert_can_be_inspected();
        drop(foreign);
        drop(files.both().acquire_many(2).expect("free again"));
    }
}

#[test]
fn a_held_lease_does_not_need_a_locked_record() {
    let files = Files::new();
    let foreign = open(&files.record(), SHARED);
    lock(&foreign);
    if fs::read(files.record()).is_ok() {
        eprintln!("skipped: locks are only advisory here, as under Wine");
        return;
    }
    files.assert_leased_without_record();
    files.assert_can_be_inspected();
}

#[test]
fn a_record_that_could_delegate_the_port_is_needed() {
    let files = Files::new();
    let number = files.one().acquire_for(id()).expect("free");
    let record = fs::read_to_string(files.record()).expect("our own");
    files.lock_dir().release(number).expect("our own");
    // A record of a process that has ended.
    let ended = record.replace(&format!("delegated {} ", id()), "delegated 4294967292 ");
    assert_ne!(ended, record);
    fs::write(files.record(), ended).expect("our own");
    for shared in [0, FILE_SHARE_READ] {
        let foreign = open(&files.record(), shared);
        files.assert_passed_over();
        files.assert_can_be_inspected();
        drop(foreign);
    }
    drop(files.one().acquire().expect("free again"));
}

#[test]
fn a_file_that_another_program_removes_by_closing_it_ends_no_call() {
    for is_record in [false, true] {
        let files = Files::new();
        let path = match is_record {
            true => files.record(),
            false => files.lock_file(),
        };
        let foreign = open(&path, SHARED);
        fs::remove_file(&path).expect("shared for that");
        // Whether it is gone before that depends on the file system.
        drop(files.one().acquire().map_err(|error| {
            assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
        }));
        drop(files.both().acquire().expect("at least the other"));
        files.lock_dir().entries().expect("listed");
        drop(foreign);
        drop(files.both().acquire_many(2).expect("free again"));
    }
}

/// Callers that check the port lock it for a moment, and so do the threads of a waiter that has left.
#[test]
fn a_momentary_lock_is_not_a_lease() {
    const TRIES: usize = 100;
    let files = Files::new();
    let port = files.port().to_string();
    let mut peer = Peer::start("lease once", &[text(files.dir.path()), &port]);
    assert_eq!(peer.hear(), "released");
    let open = || {
        File::options()
            .read(true)
            .write(true)
            .open(files.lock_file())
    };
    let is_over = AtomicBool::new(false);
    let (refused, listed) = thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                // The lock may succeed or not: the peer may have leased the port.
                let file = open().expect("our own");
                if try_lock(&file) {
                    thread::sleep(Duration::from_millis(1));
                }
                drop(file);
                thread::sleep(Duration::from_millis(4));
            }
        });
        let one = files.one();
        // They do not change the peer's record.
        let refused = (0..TRIES).filter(|_| one.check().is_err()).count();
        peer.kill();
        let is_leased = || {
            let entry = files.lock_dir().entry(files.port()).expect("listed");
            entry.expect("its lock file").state != EntryState::Stale
        };
        let listed = (0..TRIES).filter(|_| is_leased()).count();
        is_over.store(true, Ordering::Relaxed);
        (refused, listed)
    });
    // A thread that has it locked can be preempted.
    assert!(refused < TRIES / 20, "{refused} of {TRIES} were refused");
    assert!(listed < TRIES / 20, "{listed} of {TRIES} were listed");
}

#[test]
fn a_call_waits_for_a_lock_that_outlives_its_holder_and_names_no_dead_holder() {
    let files = Files::new();
    let port = files.port();
    let mut holder = Peer::start("hold", &[text(files.dir.path()), &port.to_string()]);
    assert_eq!(holder.hear(), "held");
    let pid = holder.id();
    let named = |error: &portlock::Error| error.to_string().contains(&format!("pid {pid}"));
    let error = files.one().acquire().expect_err("held");
    assert!(named(&error), "{error}");
    holder.kill();
    // The system may keep the lock for a moment. The lock below simulates that.
    if let Err(error) = files.one().check() {
        assert!(!named(&error), "{error}");
    }
    let late = File::options()
        .read(true)
        .write(true)
        .open(files.lock_file());
    let late = late.expect("our own");
    lock(&late);
    let error = files.one().acquire().expect_err("locked");
    assert!(error.to_string().contains("1 leased ("), "{error}");
    assert!(!named(&error), "{error}");
    let listed = files.lock_dir().entry(port).expect("listed");
    let listed = listed.expect("its lock file");
    assert_eq!((listed.state, listed.holder()), (EntryState::Held, None));
    // The call waits longer than for the lock of a checking caller.
    let ends = thread::spawn(move || {
        thread::sleep(Duration::from_millis(80));
        drop(late);
    });
    drop(files.one().acquire().expect("it has ended"));
    ends.join().expect("no panic");
}
