//! A lock directory in which other users do as they please. Nothing outside it is ever touched,
//! no call hangs, no port is leased twice unless the kernel provides no way to detect it (the
//! last section), and the damage can be undone.
//!
//! Written for Linux: each trap relies on its file systems and users. macOS runs the same code of
//! the library, as far as it applies there.

#![cfg(target_os = "linux")]
#![allow(
    clippy::incompatible_msrv,
    reason = "tests need a newer Rust than the library"
)]

mod error;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::Write,
    ops::RangeInclusive,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant, SystemTime},
};

use error::assert_error;
use portlock::{Builder, ErrorKind, FreePort, LockDir};
use portlock_testkit::{
    Block, LONG, NOBODY, Oracle, Parent, Peer, am_root, bind_strictly, lock_dir, run_child,
    set_mode, start_as, stress, text,
};
use rustix::{
    fs::{CWD, Mode},
    process::umask,
};
use tempfile::TempDir;

/// User IDs that need no entry in the password file.
const ROOT: u32 = 0;
const SOMEBODY: u32 = 12345;
/// A part of the messages about symbolic links, with glibc and with musl.
const A_LINK: &str = "ymbolic link";

#[test]
fn child() {
    run_child(&[
        ("obey", obey),
        ("compete", compete),
        ("own directory", own_directory),
        ("mode changes", lease_while_the_mode_changes),
    ]);
}

fn builder(dir: &Path, ports: RangeInclusive<u16>) -> Builder {
    // The tests bind strictly.
    let builder = FreePort::builder().reuse_address(false);
    builder.ports(ports).lock_dir(dir)
}

/// Arguments: lock directory. Follows the parent's orders, and reports the outcomes.
fn obey(parent: &Parent) {
    let dir = PathBuf::from(parent.argument::<String>(0));
    let mut held = BTreeMap::new();
    let mut servers = Vec::new();
    parent.say("started");
    loop {
        let line = parent.hear();
        let (order, number) = line.split_once(' ').unwrap_or((&line, "0"));
        let port: u16 = number.parse().expect("a number");
        let one = builder(&dir, port..=port);
        let locks = || LockDir::open(&dir);
        let outcome = match order {
            // Released before the parent is answered.
            "try" => one.try_acquire().map(|_| "free".to_owned()),
            "hold" => one.try_acquire().map(|lease| {
                held.insert(port, lease);
                "held".to_owned()
            }),
            "wait" => one.timeout(LONG).acquire().map(|lease| {
                held.insert(port, lease);
                "held".to_owned()
            }),
            "release" => {
                let lease = held.remove(&port).expect("held");
                lease.release().map(|()| "released".to_owned())
            }
            "delegate" => {
                let lease = held.remove(&port).expect("held");
                let number = lease.delegate_to(std::process::id());
                number.map(|_| "delegated".to_owned())
            }
            "serve" => {
                servers.push(bind_strictly(port).expect("leased"));
                Ok("bound".to_owned())
            }
            "list" => locks().and_then(|locks| Ok(format!("{:?}", locks.entries()?))),
            "clean" => locks().and_then(|locks| Ok(format!("{:?}", locks.clean()?))),
            "unlink" => Ok(match fs::remove_file(dir.join(number)) {
                Ok(()) => "removed".to_owned(),
                Err(error) => error.to_string(),
            }),
            "umask" => {
                umask(Mode::from_raw_mode(port.into()));
                Ok("set".to_owned())
            }
            _ => unreachable!("no such order: {order}"),
        };
        parent.say(match outcome {
            Ok(outcome) => outcome,
            Err(error) => format!("{:?} {error}", error.kind()),
        });
    }
}

fn obedient(uid: u32, dir: &Path) -> Peer {
    start_as(uid, "obey", &[text(dir)])
}

/// Asserts that the text is an error of `kind` whose message contains all `parts`.
#[track_caller]
fn assert_says(said: &str, kind: &str, parts: &[&str]) {
    assert_eq!(said.split(' ').next(), Some(kind), "{said}");
    for part in parts {
        assert!(said.contains(part), "no {part:?} in: {said}");
    }
}

/// A shared lock directory, and a directory beside it that portlock must not touch.
struct Scene {
    locks: TempDir,
    outside: TempDir,
    block: Block,
}

impl Scene {
    fn new(n: u16) -> Self {
        let scene = Self {
            locks: lock_dir(),
            outside: lock_dir(),
            block: Block::new(n),
        };
        set_mode(scene.locks.path(), 0o1777);
        // So that following a link here can do harm.
        set_mode(scene.outside.path(), 0o777);
        for name in ["file", "second"] {
            let path = scene.outside.path().join(name);
            fs::write(&path, "precious").expect("our own");
            set_mode(&path, 0o666);
        }
        make_fifo(&scene.outside.path().join("fifo"), 0o666);
        scene
    }

    fn dir(&self) -> &Path {
        self.locks.path()
    }

    fn port(&self) -> u16 {
        self.block.first()
    }

    /// Returns the lock file of the first port.
    fn file(&self) -> PathBuf {
        self.dir().join(self.port().to_string())
    }

    fn outside(&self, name: &str) -> PathBuf {
        self.outside.path().join(name)
    }

    /// Returns two users who lease ports here: the user who runs the tests and, if that is root,
    /// an ordinary one.
    fn victims(&self) -> [Peer; 2] {
        [ROOT, SOMEBODY].map(|uid| obedient(uid, self.dir()))
    }
}

/// Returns everything about a file that a call could change, except the access time.
fn snapshot(path: &Path) -> (fs::FileType, [i64; 9], Vec<u8>) {
    let stat = fs::symlink_metadata(path).expect("it is there");
    let content = if stat.is_file() {
        fs::read(path).unwrap_or_default()
    } else {
        Vec::new()
    };
    let number = |number: u64| i64::try_from(number).expect("small");
    let numbers = [
        number(stat.ino()),
        stat.mode().into(),
        stat.uid().into(),
        number(stat.nlink()),
        number(stat.size()),
        stat.mtime(),
        stat.mtime_nsec(),
        stat.ctime(),
        stat.ctime_nsec(),
    ];
    (stat.file_type(), numbers, content)
}

type Snapshot = BTreeMap<OsString, (fs::FileType, [i64; 9], Vec<u8>)>;

/// Returns the same for a directory and everything in it.
fn snapshot_all(dir: &Path) -> Snapshot {
    let entries = fs::read_dir(dir).expect("our own").flatten();
    let all = entries.map(|entry| (entry.file_name(), snapshot(&entry.path())));
    all.chain([(".".into(), snapshot(dir))]).collect()
}

fn make_fifo(path: &Path, mode_of_it: u32) {
    rustix::fs::mkfifoat(CWD, path, Mode::from_raw_mode(0o600)).expect("our own directory");
    set_mode(path, mode_of_it);
}

/// Transfers it to another user, if possible.
fn give_away(path: &Path) {
    if am_root() {
        lchown(path, Some(NOBODY), Some(NOBODY)).expect("root may");
    }
}

fn remove(path: &Path) {
    fs::remove_file(path)
        .or_else(|_| fs::remove_dir_all(path))
        .expect("our own");
}

/// Writes a record by hand, into a file of any user: without O_CREAT if the file exists, because
/// another test may have raised `fs.protected_regular`.
fn write_record(path: &Path, record: impl AsRef<[u8]>) -> File {
    let open = |new: bool| {
        let mut options = OpenOptions::new();
        options
            .write(true)
            .truncate(!new)
            .create_new(new)
            .open(path)
    };
    let mut file = open(false).or_else(|_| open(true)).expect("others may");
    file.write_all(record.as_ref()).expect("still space");
    file
}

/// Creates something in a directory of another user: at the path, in the scene.
type Make = fn(&Path, &Scene);

// ---------------------------------------------------------------------------
// The lock directory itself.

#[test]
fn lock_directories_that_others_may_change() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let acquire = |path: &Path| builder(path, block.ports.clone()).acquire();
    let kind = ErrorKind::LockDir;
    for others_may_write in [0o777, 0o770, 0o707] {
        set_mode(dir.path(), others_may_write);
        let octal = format!("{others_may_write:04o}");
        assert_error(acquire(dir.path()), kind, &[text(dir.path()), &octal]);
    }
    assert_eq!(fs::read_dir(dir.path()).expect("ours").count(), 0);

    set_mode(dir.path(), 0o1777);
    drop(acquire(dir.path()).expect("a shared directory"));
    let file = dir.path().join(block.first().to_string());
    let made = fs::metadata(file).expect("the lock file").permissions();
    assert_eq!(made.mode() & 0o7777, 0o1666, "whatever the umask");

    // Another user's directory: root can give one away, other users find one in /.
    let given_away = lock_dir();
    let foreign = if am_root() {
        chown(given_away.path(), Some(NOBODY), None).expect("root may");
        given_away.path()
    } else {
        Path::new("/")
    };
    assert_error(acquire(foreign), kind, &[text(foreign), "owned by user"]);
    if am_root() {
        set_mode(given_away.path(), 0o1777);
        assert_error(acquire(foreign), kind, &[text(foreign), "owned by user"]);
    }
}

/// Arguments: lock directory, port. In a separate process, because the last used directory must
/// be this one.
fn lease_while_the_mode_changes(parent: &Parent) {
    let (dir, port): (PathBuf, u16) = (parent.argument(0), parent.argument(1));
    let acquire = || builder(&dir, port..=port).try_acquire();
    drop(acquire().expect("a private directory"));
    set_mode(&dir, 0o777);
    let start = Instant::now();
    let error = loop {
        match acquire() {
            Err(error) => break error,
            Ok(_) => assert!(start.elapsed() < LONG, "it is never refused"),
        }
    };
    assert_error::<()>(Err(error), ErrorKind::LockDir, &["not sticky"]);
    assert!(acquire().is_err(), "and it stays refused");
    set_mode(&dir, 0o700);
    acquire().map(drop).expect("private again");
    parent.say("done");
}

#[test]
fn a_directory_in_use_is_checked_again() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = block.first().to_string();
    Peer::start("mode changes", &[text(dir.path()), &port]).finish_well();
}

#[test]
fn a_removed_directory_is_created_again_or_noticed_immediately() {
    let (parent, block) = (lock_dir(), Block::new(1));
    let dir = parent.path().join("locks");
    fs::create_dir(&dir).expect("our own");
    let acquire = || builder(&dir, block.ports.clone()).acquire();
    drop(acquire().expect("free"));
    for _ in 0..3 {
        fs::remove_dir_all(&dir).expect("our own");
        assert_error(acquire(), ErrorKind::LockDir, &[text(&dir), "No such file"]);
        fs::create_dir(&dir).expect("our own");
        let port = acquire().expect("free");
        assert!(dir.join(port.to_string()).exists(), "locked elsewhere");
    }
}

/// Reports the outcome of a lease in the user's own directory.
fn own_directory(parent: &Parent) {
    parent.say("started");
    parent.hear();
    let port: u16 = parent.argument(0);
    parent.say(match FreePort::try_new(port..=port) {
        Ok(_) => "free".to_owned(),
        Err(error) => format!("{:?} {error}", error.kind()),
    });
}

#[test]
fn a_users_own_directory_that_another_user_created_first() {
    if !am_root() {
        eprintln!("skipped: only root can run this as two users");
        return;
    }
    if Path::new("/run/portlock").exists() {
        eprintln!("skipped: here root has created a directory for all users");
        return;
    }
    let (scene, block) = (Scene::new(1), Block::new(1));
    // A user ID that no user has.
    let uid = rand::random_range(1_000_000..2_000_000_000);
    let path = PathBuf::from(format!("/tmp/portlock-{uid}"));
    let plants: [(Make, &str); 5] = [
        (
            |path, _| fs::create_dir(path).expect("new"),
            "owned by user",
        ),
        (
            |path, _| {
                fs::create_dir(path).expect("new");
                set_mode(path, 0o1777);
            },
            "owned by user",
        ),
        (
            |path, scene| symlink(scene.outside.path(), path).expect("new"),
            A_LINK,
        ),
        (|path, _| symlink("missing", path).expect("new"), A_LINK),
        (|path, _| make_fifo(path, 0o666), "not a directory"),
    ];
    let before = snapshot_all(scene.outside.path());
    let port = block.first().to_string();
    let mut user = own_directory_of(uid, &port);
    for (plant, why) in plants {
        plant(&path, &scene);
        give_away(&path);
        let said = user.ask("now");
        remove(&path);
        assert_says(&said, "LockDir", &[text(&path), why]);
        user = own_directory_of(uid, &port);
    }
    assert_eq!(snapshot_all(scene.outside.path()), before);
    let said = user.ask("now");
    let made = snapshot(&path);
    remove(&path);
    assert_eq!(said, "free");
    assert_eq!(made.1[1] & 0o7777, 0o700);
}

fn own_directory_of(uid: u32, port: &str) -> Peer {
    let (_dir, copy) = portlock_testkit::open_copy();
    let mut command = portlock_testkit::command(&[], &copy, "own directory", &[port]);
    command
        .env_remove("PORTLOCK_DIR")
        .env_remove("XDG_RUNTIME_DIR");
    std::os::unix::process::CommandExt::uid(&mut command, uid);
    let peer = Peer::start_command(command);
    assert_eq!(peer.hear(), "started");
    peer
}

#[test]
fn permissions_that_change_while_a_lease_is_held() {
    let (dir, block) = (lock_dir(), Block::new(3));
    portlock_testkit::give_to_ordinary_user(dir.path());
    let [held, there, missing] = [0, 1, 2].map(|offset| block.first() + offset);
    let path = |port: u16| dir.path().join(port.to_string());
    let mut holder = obedient(NOBODY, dir.path());
    assert_eq!(holder.ask(format!("try {there}")), "free");
    for changed in [0o000, 0o500, 0o777] {
        assert_eq!(holder.ask(format!("hold {held}")), "held");
        set_mode(dir.path(), changed);
        // A process that has not opened the directory yet.
        let mut newcomer = obedient(NOBODY, dir.path());
        let start = Instant::now();
        while changed == 0o777 && holder.ask(format!("try {there}")) == "free" {
            assert!(start.elapsed() < LONG, "it is never checked again");
        }
        let mut says = |port: u16, newly: bool, kind: &str| {
            let peer = if newly { &mut newcomer } else { &mut holder };
            let said = peer.ask(format!("try {port}"));
            match kind {
                "free" => assert_eq!(said, "free"),
                "Lock" => assert_says(&said, kind, &[text(&path(port)), "Permission denied"]),
                _ => assert_says(&said, kind, &[text(dir.path())]),
            }
        };
        let kinds = match changed {
            0o000 => [("Lock", "LockDir"), ("Lock", "LockDir")],
            // Only creating files is forbidden.
            0o500 => [("free", "free"), ("Lock", "Lock")],
            _ => [("LockDir", "LockDir"), ("LockDir", "LockDir")],
        };
        for (port, (known, new)) in [there, missing].into_iter().zip(kinds) {
            says(port, false, known);
            says(port, true, new);
        }
        assert_eq!(holder.ask(format!("release {held}")), "released");
        set_mode(dir.path(), 0o700);
        for port in [held, there] {
            assert_eq!(newcomer.ask(format!("try {port}")), "free", "{changed:o}");
        }
    }
}

// ---------------------------------------------------------------------------
// Its entries.

#[test]
fn entries_that_are_not_lock_files() {
    let scene = Scene::new(3);
    let plants: [(Make, &str); 8] = [
        (
            |path, scene| symlink(scene.outside("file"), path).expect("new"),
            A_LINK,
        ),
        (|path, _| symlink("/dev/zero", path).expect("new"), A_LINK),
        (
            |path, scene| symlink(scene.outside("missing"), path).expect("new"),
            A_LINK,
        ),
        (
            |path, scene| {
                let other = (scene.port() + 2).to_string();
                File::create(scene.dir().join(&other)).expect("our own");
                symlink(other, path).expect("new");
            },
            A_LINK,
        ),
        (
            |path, _| fs::create_dir(path).expect("new"),
            "Is a directory",
        ),
        (|path, _| make_fifo(path, 0o666), "not a regular file"),
        (
            |path, _| {
                UnixListener::bind(path).expect("new");
                set_mode(path, 0o666);
            },
            "No such device",
        ),
        (
            |path, scene| fs::hard_link(scene.outside("second"), path).expect("new"),
            "second hard link",
        ),
    ];
    let file = scene.file();
    let mut victims = scene.victims();
    let [port, other] = [scene.port(), scene.port() + 1];
    for (plant, why) in plants {
        plant(&file, &scene);
        if why != "second hard link" {
            give_away(&file);
        }
        let (outside, planted) = (snapshot_all(scene.outside.path()), snapshot(&file));
        for victim in &mut victims {
            assert_says(
                &victim.ask(format!("try {port}")),
                "Lock",
                &[text(&file), why],
            );
            assert_eq!(victim.ask(format!("try {other}")), "free", "beside: {why}");
            let listed = victim.ask("list");
            assert!(!listed.contains(&format!("port: {port},")), "{listed}");
            assert!(listed.contains(&format!("port: {other},")), "{listed}");
            assert_says(&victim.ask("clean"), "CleanCounts", &[]);
            assert_eq!(snapshot(&file), planted, "{why}");
        }
        assert_eq!(snapshot_all(scene.outside.path()), outside, "{why}");
        remove(&file);
        for victim in &mut victims {
            assert_eq!(victim.ask(format!("try {port}")), "free", "after: {why}");
        }
        remove(&file);
    }
}

#[test]
fn files_that_others_cannot_open() {
    let scene = Scene::new(2);
    let (file, port) = (scene.file(), scene.port());
    File::create(&file).expect("our own");
    set_mode(&file, 0o000);
    let mut victim = obedient(SOMEBODY, scene.dir());
    let denied = [text(&file), "Permission denied"];
    assert_says(&victim.ask(format!("try {port}")), "Lock", &denied);
    assert_eq!(victim.ask(format!("try {}", port + 1)), "free");
    // They are listed but not removed, and do not affect other files.
    let listed = victim.ask("list");
    assert!(
        listed.contains(&format!("port: {port}, state: Stale")),
        "{listed}"
    );
    assert_eq!(victim.ask("clean"), "CleanCounts { removed: 1, kept: 1 }");
    assert!(file.exists());
    // Its length means that it may be delegated.
    let len = |len| {
        let opened = File::options()
            .write(true)
            .open(&file)
            .expect("we are root");
        opened.set_len(len).expect("our own");
    };
    len(512);
    let listed = victim.ask("list");
    assert!(
        listed.contains(&format!("port: {port}, state: Delegated")),
        "{listed}"
    );
    len(0);
    set_mode(&file, 0o666);
    assert_eq!(victim.ask(format!("try {port}")), "free");
}

#[test]
fn invalid_records() {
    let scene = Scene::new(1);
    let mut victims = scene.victims();
    let own = std::process::id();
    let short = format!("{:510}\n", format!("delegated {own} - - - 0 - -"));
    let garbage: [&[u8]; 12] = [
        b"",
        b"\n\n\n",
        b"\xff\xfe\x80 held 1\n",
        b"delegated 1",
        b"delegated 0 - - - 0 - -\n",
        b"held 1 1 - - 1 \x1b[31m \x07\n",
        short.as_bytes(),
        &[0; 511],
        &[0xff; 512],
        &[b' '; 513],
        &[0; 70_000],
        &[b'%'; 70_000],
    ];
    // One of 1 GiB, without a block on the disk.
    let sizes = garbage.map(|bytes| (bytes, bytes.len() as u64));
    for (bytes, len) in sizes.into_iter().chain([(&b"held"[..], 1 << 30)]) {
        for victim in &mut victims {
            let file = write_record(&scene.file(), bytes);
            file.set_len(len).expect("our own");
            set_mode(&scene.file(), 0o666);
            give_away(&scene.file());
            assert_says(&victim.ask("list"), "[PortEntry", &["Stale"]);
            assert_eq!(victim.ask(format!("hold {}", scene.port())), "held");
            assert_says(&victim.ask("list"), "[PortEntry", &["Held"]);
            assert_eq!(victim.ask(format!("release {}", scene.port())), "released");
        }
        remove(&scene.file());
    }
}

#[test]
fn records_that_claim_ports_for_others() {
    let scene = Scene::new(1);
    let port = scene.port();
    let mut victims = scene.victims();
    let locks = LockDir::open(scene.dir()).expect("ours");
    let others = obedient(NOBODY, scene.dir());
    // Any user who may write to the directory may claim a port: it is better to withhold it.
    for pid in [1, std::process::id(), victims[1].id(), others.id()] {
        let record = format!("{:511}\n", format!("delegated {pid} - - - 0 - -"));
        write_record(&scene.file(), record);
        set_mode(&scene.file(), 0o666);
        give_away(&scene.file());
        for victim in &mut victims {
            let by = format!("by pid {pid}");
            assert_says(&victim.ask(format!("try {port}")), "Exhausted", &[&by]);
            assert_eq!(victim.ask("clean"), "CleanCounts { removed: 0, kept: 1 }");
        }
        locks
            .force_release(port)
            .expect("any user who may write may release");
        for victim in &mut victims {
            assert_eq!(victim.ask(format!("try {port}")), "free");
        }
    }
}

#[test]
fn a_record_that_another_user_overwrites() {
    let scene = Scene::new(1);
    let port = scene.port();
    let [mut holder, mut other] = scene.victims();
    assert_eq!(holder.ask(format!("hold {port}")), "held");
    for record in ["", "held 1 - - - 0 - -\n", "garbage"] {
        write_record(&scene.file(), record);
        assert_says(
            &other.ask(format!("try {port}")),
            "Exhausted",
            &["1 leased"],
        );
    }
    // A delegated lease is only its record: here all users must be trusted.
    assert_eq!(holder.ask(format!("delegate {port}")), "delegated");
    assert_says(
        &other.ask(format!("try {port}")),
        "Exhausted",
        &["1 leased"],
    );
    write_record(&scene.file(), "");
    assert_eq!(other.ask(format!("try {port}")), "free");
}

#[test]
fn thousands_of_entries() {
    const N: usize = 400;
    let scene = Scene::new(2);
    let old = SystemTime::now() - Duration::from_secs(7200);
    for i in 0..N {
        make_fifo(&scene.dir().join(format!(".waiting.{i:016x}")), 0o666);
        make_fifo(
            &scene.dir().join(format!(".new.waiting.{i:016x}.1.0")),
            0o666,
        );
        let stray = File::create(scene.dir().join(format!(".new.{i}.1.0"))).expect("our own");
        stray.set_modified(old).expect("our own");
    }
    let [mut one, mut two] = scene.victims();
    assert_eq!(one.ask(format!("hold {}", scene.port())), "held");
    two.say(&format!("wait {}", scene.port()));
    assert_eq!(one.ask(format!("release {}", scene.port())), "released");
    assert_eq!(two.hear(), "held");
    // Two cleaners at the same time do not disturb each other.
    let clean = || {
        let locks = LockDir::open(scene.dir()).expect("ours");
        locks
            .clean()
            .expect("files that the other one removed are gone")
    };
    let removed: usize = thread::scope(|scope| {
        let cleaners = [(); 2].map(|()| scope.spawn(clean));
        let cleaned = cleaners.map(|cleaner| cleaner.join().expect("no panic"));
        cleaned.iter().map(|cleaned| cleaned.removed).sum()
    });
    // Also the wait queue of those two, if they waited in it.
    assert!((2 * N..=2 * N + 1).contains(&removed), "{removed}");
    let left = fs::read_dir(scene.dir()).expect("ours").count();
    assert_eq!(
        left,
        N + 1,
        "the port, and files of creators that may be alive"
    );
}

// ---------------------------------------------------------------------------
// The wait queue.

/// Returns the name of the wait queue for one port.
fn line_name(port: u16) -> OsString {
    let dir = lock_dir();
    let held = builder(dir.path(), port..=port).acquire().expect("free");
    let waiting = builder(dir.path(), port..=port).timeout(Duration::from_millis(1));
    assert_error(waiting.acquire(), ErrorKind::Exhausted, &[]);
    drop(held);
    let names = fs::read_dir(dir.path()).expect("ours").flatten();
    let mut names = names.map(|entry| entry.file_name());
    let is_line = |name: &OsString| name.as_encoded_bytes().starts_with(b".waiting.");
    names.find(is_line).expect("a process has waited")
}

fn open_fifo(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits();
    options.custom_flags(i32::try_from(nonblock).expect("small"));
    options.open(path).expect("our own")
}

#[expect(clippy::disallowed_methods, reason = "acts as another program")]
fn open_locked(path: &Path) -> File {
    let fifo = open_fifo(path);
    fifo.try_lock().expect("no process waits yet");
    fifo
}

#[test]
fn files_that_are_not_wait_queues() {
    let scene = Scene::new(1);
    let port = scene.port();
    let line = scene.dir().join(line_name(port));
    let mut waiters = Vec::from(scene.victims());
    waiters.push(obedient(SOMEBODY, scene.dir()));
    // FIFOs that others keep open.
    type Plant = fn(&Path, &Scene) -> Option<File>;
    let year = Duration::from_secs(365 * 24 * 3600);
    let plants: [(&str, Plant); 10] = [
        ("file", |line, _| {
            fs::write(line, "precious").expect("new");
            set_mode(line, 0o666);
            None
        }),
        ("link to file", |line, scene| {
            symlink(scene.outside("file"), line).expect("new");
            None
        }),
        ("link to FIFO", |line, scene| {
            symlink(scene.outside("fifo"), line).expect("new");
            None
        }),
        ("dangling link", |line, scene| {
            symlink(scene.outside("missing"), line).expect("new");
            None
        }),
        ("directory", |line, _| {
            fs::create_dir(line).expect("new");
            None
        }),
        ("socket", |line, _| {
            UnixListener::bind(line).expect("new");
            set_mode(line, 0o666);
            None
        }),
        ("hard link", |line, scene| {
            fs::hard_link(scene.outside("fifo"), line).expect("new");
            None
        }),
        ("closed", |line, _| {
            make_fifo(line, 0o000);
            None
        }),
        ("full", |line, _| {
            make_fifo(line, 0o666);
            let mut fifo = open_fifo(line);
            while fifo.write(&[b'\n'; 4096]).is_ok() {}
            Some(fifo)
        }),
        ("locked", |line, _| {
            make_fifo(line, 0o666);
            Some(open_locked(line))
        }),
    ];
    for (what, plant) in plants {
        // Two of the leaders that keep it locked forever are silent. One has a timestamp from a year
        // ago, the other one from the future.
        let times = [SystemTime::now() - year, SystemTime::now() + year];
        for time in &times[..if what == "locked" { 2 } else { 1 }] {
            let kept = plant(&line, &scene);
            if what == "locked" {
                let fifo = kept.as_ref().expect("open");
                fifo.set_modified(*time).expect("our own");
            }
            if what != "hard link" {
                give_away(&line);
            }
            let (outside, planted) = (snapshot_all(scene.outside.path()), snapshot(&line));
            let held = builder(scene.dir(), port..=port).acquire().expect("free");
            for waiter in &mut waiters {
                waiter.say(&format!("wait {port}"));
            }
            // This does not wait for an event: usually, some of them already wait by then.
            thread::sleep(Duration::from_millis(10));
            held.release().expect("released");
            let mut left: Vec<&mut Peer> = waiters.iter_mut().collect();
            while !left.is_empty() {
                let moment = Duration::from_millis(2);
                let lucky = left
                    .iter()
                    .position(|waiter| waiter.hear_within(moment).is_some());
                let Some(lucky) = lucky else { continue };
                let waiter = left.swap_remove(lucky);
                assert_eq!(waiter.ask(format!("release {port}")), "released", "{what}");
            }
            assert_eq!(snapshot_all(scene.outside.path()), outside, "{what}");
            let now = snapshot(&line);
            if planted.0.is_fifo() && what != "hard link" {
                // It may serve as a wait queue.
                assert_eq!(now.1[..4], planted.1[..4], "{what}");
            } else {
                assert_eq!(now, planted, "{what}");
                assert_says(&waiters[0].ask("clean"), "CleanCounts", &[]);
                assert_eq!(snapshot(&line), planted, "{what}");
                assert_eq!(snapshot_all(scene.outside.path()), outside, "{what}");
            }
            remove(&line);
        }
    }
}

#[test]
fn a_leader_that_never_leaves_delays_no_waiter_beyond_the_timeout() {
    let scene = Scene::new(1);
    let port = scene.port();
    let line = scene.dir().join(line_name(port));
    make_fifo(&line, 0o666);
    let head = open_locked(&line);
    let over = AtomicBool::new(false);
    let held = builder(scene.dir(), port..=port).acquire().expect("free");
    thread::scope(|scope| {
        scope.spawn(|| {
            // As if it were awake.
            while !over.load(Ordering::Relaxed) {
                head.set_modified(SystemTime::now()).expect("our own");
                thread::sleep(Duration::from_millis(10));
            }
        });
        let patience = Duration::from_millis(300);
        let waiter = scope.spawn(move || {
            builder(scene.dir(), port..=port)
                .timeout(patience)
                .acquire()
        });
        thread::sleep(patience / 10);
        drop(held);
        let lease = waiter.join().expect("no panic");
        over.store(true, Ordering::Relaxed);
        drop(lease.expect("it rescans at the end"));
    });
}

#[test]
fn a_lock_file_that_is_replaced_while_others_wait() {
    let scene = Scene::new(1);
    let port = scene.port();
    let plants: [(Make, &str); 2] = [
        (|path, _| make_fifo(path, 0o666), "not a regular file"),
        (
            |path, scene| symlink(scene.outside("file"), path).expect("new"),
            A_LINK,
        ),
    ];
    for (plant, why) in plants {
        let mut holder = obedient(ROOT, scene.dir());
        assert_eq!(holder.ask(format!("hold {port}")), "held");
        let planted = scene.dir().join("planted");
        plant(&planted, &scene);
        let outside = snapshot_all(scene.outside.path());
        let mut waiter = obedient(SOMEBODY, scene.dir());
        waiter.say(&format!("wait {port}"));
        thread::sleep(Duration::from_millis(5));
        fs::rename(&planted, scene.file()).expect("our own");
        assert_says(&waiter.hear(), "Lock", &[text(&scene.file()), why]);
        assert_eq!(snapshot_all(scene.outside.path()), outside, "{why}");
        assert_eq!(holder.ask(format!("release {port}")), "released");
        remove(&scene.file());
        assert_eq!(waiter.ask(format!("try {port}")), "free");
    }
}

// ---------------------------------------------------------------------------
// Several users, and their umasks.

#[test]
fn every_umask_leads_to_the_same_modes() {
    let (shared, private, block) = (lock_dir(), lock_dir(), Block::new(3));
    set_mode(shared.path(), 0o1777);
    portlock_testkit::give_to_ordinary_user(private.path());
    for (offset, mask) in (0..).zip([0o777, 0o077, 0o000]) {
        let port = block.first() + offset;
        for (dir, expected) in [(shared.path(), 0o666), (private.path(), 0o600)] {
            let line = dir.join(line_name(port));
            let [mut holder, mut waiter] = [(); 2].map(|()| obedient(NOBODY, dir));
            for peer in [&mut holder, &mut waiter] {
                assert_eq!(peer.ask(format!("umask {mask}")), "set");
            }
            assert_eq!(holder.ask(format!("hold {port}")), "held");
            waiter.say(&format!("wait {port}"));
            let start = Instant::now();
            while !line.exists() {
                assert!(start.elapsed() < LONG, "no process waits");
                thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(holder.ask(format!("release {port}")), "released");
            assert_eq!(waiter.hear(), "held");
            let file = dir.join(port.to_string());
            for (path, expected) in [(line, expected), (file, expected | 0o1000)] {
                let made = snapshot(&path).1[1] & 0o7777;
                assert_eq!(made, expected, "umask {mask:o}: {}", path.display());
            }
        }
        let mut other = obedient(SOMEBODY, shared.path());
        assert_eq!(other.ask(format!("try {port}")), "free");
    }
}

/// Arguments: lock directory, first and last port, directory of the oracle, rounds.
fn compete(parent: &Parent) {
    let ports = parent.argument(1)..=parent.argument(2);
    let dir: String = parent.argument(0);
    let builder = builder(Path::new(&dir), ports.clone()).timeout(LONG);
    let oracle = Oracle::new(parent.argument::<String>(3));
    let rounds: usize = parent.argument(4);
    parent.say("started");
    parent.hear();
    let mut overlaps = 0;
    for round in 0..rounds {
        let n = if round % 4 == 0 { 4 } else { 1 };
        for lease in builder.acquire_many(n).expect("ports in time") {
            let port = lease.port();
            if oracle.take(port) {
                // Bound while the oracle would detect another holder.
                drop(bind_strictly(port).expect("leased to us"));
                oracle.give_back(port);
            } else {
                overlaps += 1;
            }
            lease.release().expect("released");
        }
    }
    parent.say(format!("{overlaps} overlaps"));
    // Each can have the ports that the others have released.
    parent.hear();
    for port in ports {
        let one = builder.clone().ports(port..=port);
        one.acquire().map(drop).expect("released by its holder");
    }
    parent.say("done");
}

/// A setting of the whole system, restored when dropped.
struct Setting(&'static str, String);

impl Setting {
    /// Returns `None` if it cannot be set, or is already that high.
    fn raise(path: &'static str, value: &str) -> Option<Self> {
        let before = fs::read_to_string(path).ok()?;
        if before.trim() >= value {
            return None;
        }
        match fs::write(path, value) {
            Ok(()) => Some(Self(path, before)),
            Err(error) => {
                eprintln!("skipped: {path} stays {}: {error}", before.trim());
                None
            }
        }
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let _ = fs::write(self.0, &self.1);
    }
}

fn users_compete() {
    let (scene, oracle) = (Scene::new(6), lock_dir());
    set_mode(oracle.path(), 0o1777);
    let (first, last) = (scene.block.ports.start(), scene.block.ports.end());
    let range = [text(scene.dir()), &first.to_string(), &last.to_string()];
    let rounds = stress(60).to_string();
    let arguments = [&range[..], &[text(oracle.path()), &rounds]].concat();
    let mut peers = [ROOT, NOBODY, SOMEBODY].map(|uid| start_as(uid, "compete", &arguments));
    for peer in &mut peers {
        peer.say("go");
    }
    for peer in &peers {
        let outcome = peer.hear_within(10 * LONG).expect("in time");
        assert_eq!(outcome, "0 overlaps");
    }
    for mut peer in peers {
        peer.say("go on");
        peer.finish_well();
    }
    for entry in fs::read_dir(scene.dir()).expect("ours").flatten() {
        let is_line = text(&entry.path()).contains("/.waiting.");
        let expected = if is_line { 0o666 } else { 0o1666 };
        assert_eq!(snapshot(&entry.path()).1[1] & 0o7777, expected);
    }
}

#[test]
fn several_users_share_a_directory() {
    users_compete();
    // With the kernel's protection against other users' files (proc_sys_fs(5)).
    let paths = [
        "/proc/sys/fs/protected_regular",
        "/proc/sys/fs/protected_fifos",
    ];
    let settings = paths.map(|path| Setting::raise(path, "2"));
    if settings.iter().any(Option::is_some) {
        users_compete();
    }
}

// ---------------------------------------------------------------------------
// Cases in which a lease continues unseen: docs/guarantees.md has the table.

#[test]
fn a_directory_that_is_replaced_while_leases_are_held() {
    let (parent, block) = (lock_dir(), Block::new(2));
    set_mode(parent.path(), 0o755);
    let [port, bound] = [block.first(), block.first() + 1];
    let (dir, aside) = (parent.path().join("locks"), parent.path().join("aside"));
    let make = || fs::create_dir(&dir).expect("new");
    let newcomer = || obedient(ROOT, &dir);
    for remove_it in [false, true] {
        make();
        let (mut holder, mut other) = (newcomer(), newcomer());
        for port in [port, bound] {
            assert_eq!(holder.ask(format!("hold {port}")), "held");
            assert_says(
                &other.ask(format!("try {port}")),
                "Exhausted",
                &["1 leased"],
            );
        }
        assert_eq!(holder.ask(format!("serve {bound}")), "bound");

        if remove_it {
            remove(&dir);
        } else {
            // After it is moved away and back, it is the same.
            fs::rename(&dir, &aside).expect("our own");
            assert_says(
                &newcomer().ask(format!("try {port}")),
                "LockDir",
                &[text(&dir)],
            );
            fs::rename(&aside, &dir).expect("our own");
            assert_says(
                &newcomer().ask(format!("try {port}")),
                "Exhausted",
                &["1 leased"],
            );
            fs::rename(&dir, &aside).expect("our own");
        }
        make();
        // The process itself knows about its lease, in any directory.
        assert_says(
            &holder.ask(format!("try {port}")),
            "Exhausted",
            &["1 leased"],
        );
        // Others do not know, except about bound ports.
        assert_eq!(newcomer().ask(format!("try {port}")), "free");
        assert_says(
            &newcomer().ask(format!("try {bound}")),
            "Exhausted",
            &["1 bound"],
        );
        // A process with the old directory open notices a removal immediately, and a replacement
        // soon.
        let start = Instant::now();
        while other.ask(format!("hold {port}")) != "held" {
            assert!(!remove_it && start.elapsed() < LONG, "in the old one");
        }
        assert!(dir.join(port.to_string()).exists());
        // The end of the old lease does not end the new one.
        assert_eq!(holder.ask(format!("release {port}")), "released");
        for peer in [&mut holder, &mut newcomer()] {
            // The holder may use the old directory for a moment.
            let start = Instant::now();
            while peer.ask(format!("try {port}")) == "free" {
                assert!(!remove_it && start.elapsed() < LONG, "leased twice");
            }
        }
        assert_eq!(other.ask(format!("release {port}")), "released");
        assert_eq!(newcomer().ask(format!("try {port}")), "free");
        for left in [&dir, &aside] {
            let _ = fs::remove_dir_all(left);
        }
    }
}

#[test]
fn a_lock_file_that_is_replaced_while_its_lease_is_held() {
    let scene = Scene::new(1);
    let (port, file) = (scene.port(), scene.file());
    let mut holder = obedient(SOMEBODY, scene.dir());
    let mut other = obedient(ROOT, scene.dir());
    let leased = |peer: &mut Peer| {
        let said = peer.ask(format!("try {port}"));
        assert_says(&said, "Exhausted", &["1 leased"]);
    };
    assert_eq!(holder.ask(format!("hold {port}")), "held");
    leased(&mut other);
    // After it is moved away and back, it is the same. In the meantime, others have a new one.
    let aside = scene.dir().join("aside");
    fs::rename(&file, &aside).expect("our own");
    leased(&mut holder);
    assert_eq!(other.ask(format!("try {port}")), "free");
    fs::rename(&aside, &file).expect("our own");
    leased(&mut other);
    // With a second name it is refused, and so not leased twice.
    fs::hard_link(&file, &aside).expect("our own");
    assert_says(
        &other.ask(format!("try {port}")),
        "Exhausted",
        &["1 leased"],
    );
    remove(&aside);
    leased(&mut other);

    // A cleaner does not remove it; removing it without its lock does harm.
    assert_says(&other.ask("clean"), "CleanCounts", &["removed: 0"]);
    remove(&file);
    assert_eq!(other.ask(format!("hold {port}")), "held");
    assert_eq!(holder.ask(format!("release {port}")), "released");
    leased(&mut holder);
}

#[test]
fn only_the_creator_of_a_lock_file_may_remove_it() {
    if !am_root() {
        eprintln!("skipped: only root can run this as three users");
        return;
    }
    let scene = Scene::new(1);
    let port = scene.port();
    let mut maker = obedient(NOBODY, scene.dir());
    let [mut root, mut holder] = scene.victims();
    for (made_by_maker, outcome) in [(true, "removed"), (false, "Operation not permitted")] {
        let first = if made_by_maker { &mut maker } else { &mut root };
        assert_eq!(first.ask(format!("try {port}")), "free");
        assert_eq!(holder.ask(format!("hold {port}")), "held");
        assert_says(
            &maker.ask(format!("unlink {port}")),
            outcome.split(' ').next().expect("a word"),
            &[outcome],
        );
        // So files that root has created are safe from all other users.
        let said = root.ask(format!("try {port}"));
        if made_by_maker {
            assert_eq!(said, "free");
            remove(&scene.file());
        } else {
            assert_says(&said, "Exhausted", &["1 leased"]);
        }
        assert_eq!(holder.ask(format!("release {port}")), "released");
    }
}
