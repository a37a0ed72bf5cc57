//! The Python client from docs/protocol.md, beside this library: the page is sufficient to lease
//! ports together.
//!
//! The code is extracted from the page, followed by `protocol/driver.py`, and receives orders
//! over pipes. It is the client of thirty lines unless the whole one is named. All tests are
//! serial: the client does not retry if a child that another test is spawning has a duplicate of
//! a probe.

#![cfg(target_os = "linux")] // The client reads /proc.
#![allow(
    clippy::incompatible_msrv,
    reason = "tests need a newer Rust than the library"
)]

use std::{
    env,
    ffi::OsStr,
    fs,
    net::TcpListener,
    os::unix::{ffi::OsStrExt, fs::symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    thread,
};

use portlock::{Builder, EntryState, ErrorKind, FreePort, LockDir, PortSet};
use portlock_testkit::{
    Block, LONG, Oracle, Parent, Peer, Process, bind_strictly, cat, command, listen_strictly,
    lock_dir, run_child, stress, text,
};
use serial_test::serial;

const PAGE: &str = include_str!("../docs/protocol.md");
const DRIVER: &str = include_str!("protocol/driver.py");

#[test]
fn child() {
    run_child(&[
        ("lease and bind", lease_and_bind),
        ("clean", clean),
        ("lease", lease),
        ("reserve", reserve),
    ]);
}

fn builder(dir: &Path, port: u16) -> Builder {
    // Like the clients on the page, which do not handle TIME_WAIT.
    let builder = FreePort::builder().reuse_address(false);
    builder.ports(port..=port).lock_dir(dir)
}

/// The client, in a separate process. Its program's name is `client.py`.
struct Python {
    peer: Peer,
    _file: tempfile::TempDir,
}

impl Python {
    /// Starts the client of thirty lines. Returns `None` if Python is not installed.
    fn start(dir: &Path) -> Option<Self> {
        let mut blocks = python_on_page();
        let client = blocks.find(|block| block.contains("def lease("));
        Self::start_program(client.expect("on the page"), dir)
    }

    /// Starts the client that checks whether a process is alive, and records itself.
    fn start_whole(dir: &Path) -> Option<Self> {
        Self::start_program(&python_on_page().collect::<String>(), dir)
    }

    fn start_program(client: &str, dir: &Path) -> Option<Self> {
        // If it is a script that searches for the right version, this takes as long as a test.
        static IS_INSTALLED: OnceLock<bool> = OnceLock::new();
        let is_installed = IS_INSTALLED.get_or_init(|| {
            let mut version = Command::new("python3");
            let version = version.arg("--version").stdout(Stdio::null()).status();
            version.is_ok_and(|status| status.success())
        });
        if !is_installed {
            eprintln!("skipped: python3 is not installed");
            return None;
        }
        let file = tempfile::tempdir().expect("a temporary directory");
        let path = file.path().join("client.py");
        fs::write(&path, [client, DRIVER].concat()).expect("our own directory");
        let mut command = Command::new("python3");
        command
            .args([&path, dir])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let peer = Peer::start_command(command);
        assert_eq!(peer.hear(), "started");
        Some(Self { peer, _file: file })
    }

    fn lease(&mut self, port: u16) -> String {
        self.peer.ask(format!("lease {port} {port}"))
    }

    #[track_caller]
    fn must_lease(&mut self, port: u16) {
        assert_eq!(self.lease(port), format!("leased {port}"));
    }

    #[track_caller]
    fn must_not_lease(&mut self, port: u16, why: &str) {
        let said = self.lease(port);
        assert!(said.starts_with("none: ") && said.contains(why), "{said}");
    }
}

/// Returns the Python blocks on the page, in order.
fn python_on_page() -> impl Iterator<Item = &'static str> {
    let blocks = PAGE.split("```python\n").skip(1);
    blocks.map(|block| block.split_once("```").expect("the block ends").0)
}

fn leases(dir: &Path) -> Vec<portlock::PortEntry> {
    let locks = LockDir::open(dir).expect("trusted");
    locks.entries().expect("readable")
}

#[track_caller]
fn must_be_leased(builder: &Builder) -> String {
    let error = builder.try_acquire().expect_err("leased");
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
    let message = error.to_string();
    assert!(message.contains("1 leased"), "{message}");
    message
}

#[test]
#[serial]
fn a_port_that_one_has_leased_the_other_cannot_lease() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = block.first();
    let builder = builder(dir.path(), port);
    let Some(mut python) = Python::start(dir.path()) else {
        return;
    };
    for _ in 0..20 {
        let lease = builder.try_acquire().expect("free");
        python.must_not_lease(port, "leased or in use");
        lease.release().expect("released");
        python.must_lease(port);
        must_be_leased(&builder);
        assert_eq!(python.peer.ask("release"), "released");
    }
    builder.try_acquire().map(drop).expect("released");
}

#[test]
#[serial]
fn its_lease_is_listed_with_its_record() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = block.first();
    let builder = builder(dir.path(), port);
    let Some(mut python) = Python::start_whole(dir.path()) else {
        return;
    };
    let label = "api under test/größe %41";
    // Once in a new file, and once in a file that has the longer record.
    for _ in 0..2 {
        python.must_lease(port);
        let listed = &leases(dir.path())[0];
        assert_eq!((listed.port, listed.state), (port, EntryState::Held));
        let owner = listed.owner.as_ref().expect("a record");
        assert_eq!(owner.pid(), python.peer.id());
        assert_eq!(
            (owner.program(), owner.label()),
            (Some("client.py"), Some(label))
        );
        let since = owner.since().expect("it says");
        assert!(since.elapsed().expect("not later") < LONG);
        let named = format!("{port} by pid {} \"client.py\" ({label})", python.peer.id());
        let message = must_be_leased(&builder);
        assert!(message.contains(&named), "{message}");
        let record = fs::read(dir.path().join(port.to_string())).expect("its file");
        assert_eq!((record.len(), record.last()), (256, Some(&b'\n')));

        assert_eq!(python.peer.ask("release"), "released");
        assert_eq!(leases(dir.path())[0].state, EntryState::Stale);
        let server = cat();
        builder.acquire_for(server.0.id()).expect("free");
        server.end();
    }
}

/// Arguments: lock directory, first and last port, directory of the oracle, number of leases.
/// Reports the numbers of overlaps and failed binds.
fn lease_and_bind(parent: &Parent) {
    let builder = FreePort::builder()
        .reuse_address(false)
        .ports(parent.argument::<u16>(1)..=parent.argument(2))
        .lock_dir(parent.argument::<String>(0))
        .timeout(LONG);
    let oracle = Oracle::new(parent.argument::<String>(3));
    let (mut overlaps, mut failed_binds) = (0, 0);
    for _ in 0..parent.argument(4) {
        let lease = builder.acquire().expect("a port in time");
        let alone = oracle.take(lease.port());
        if let Err(_error) = listen_strictly(lease.port()) {
            failed_binds += 1;
        }
        if alone {
            oracle.give_back(lease.port());
        } else {
            overlaps += 1;
        }
    }
    parent.say(format!("{overlaps} overlaps, {failed_binds} failed binds"));
}

/// Argument: lock directory. Removes lock files, each with its lock held.
fn clean(parent: &Parent) {
    let locks = LockDir::open(parent.argument::<String>(0));
    let locks = locks.expect("trusted");
    thread::spawn(move || {
        loop {
            locks.clean().expect("our own directory");
        }
    });
    parent.hear();
}

#[test]
#[serial]
fn both_never_hold_the_same_port_at_the_same_time() {
    let (dir, oracle, block) = (lock_dir(), lock_dir(), Block::new(4));
    let [first, last] = [block.ports.start(), block.ports.end()].map(u16::to_string);
    let times = stress(300).to_string();
    let arguments = [text(dir.path()), &first, &last, text(oracle.path()), &times];
    let mut pythons = Vec::new();
    for start in [Python::start, Python::start_whole] {
        let Some(mut python) = start(dir.path()) else {
            return;
        };
        let order = ["compete", &first, &last, text(oracle.path()), &times];
        python.peer.say(&order.join(" "));
        pythons.push(python);
    }
    let _cleaner = Peer::start("clean", &[text(dir.path())]);
    let rusts = [(); 2].map(|()| Peer::start("lease and bind", &arguments));
    for peer in pythons.iter().map(|python| &python.peer).chain(&rusts) {
        let outcome = peer.hear_within(10 * LONG).expect("in time");
        assert_eq!(outcome, "0 overlaps, 0 failed binds");
    }
}

#[test]
#[serial]
fn it_does_not_probe_a_port_that_another_process_has_leased() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = block.first();
    let builder = builder(dir.path(), port);
    let Some(mut python) = Python::start_whole(dir.path()) else {
        return;
    };
    assert_eq!(python.peer.ask("count"), "ready");
    let lease = builder.try_acquire().expect("free");
    python.must_not_lease(port, "leased or in use");
    lease.release().expect("released");
    let server = cat();
    builder.acquire_for(server.0.id()).expect("free");
    python.must_not_lease(port, "leased or in use");
    assert_eq!(python.peer.ask("binds"), "0");
    server.end();
    python.must_lease(port);
    assert_eq!(python.peer.ask("binds"), "1");
}

#[test]
#[serial]
fn a_port_that_is_bound_cannot_be_leased() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = block.first();
    let Some(mut python) = Python::start(dir.path()) else {
        return;
    };
    for address in ["127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "::"] {
        let address: std::net::IpAddr = address.parse().expect("an address");
        let address = std::net::SocketAddr::new(address, port);
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(address),
            socket2::Type::STREAM,
            None,
        );
        let Ok(socket) = socket else {
            eprintln!("skipped: {address}, because this machine has no IPv6");
            continue;
        };
        // Neither listening nor strict: the hardest to detect.
        socket.set_reuse_address(true).expect("our own socket");
        if let Err(error) = socket.bind(&address.into()) {
            eprintln!("skipped: {address}: {error}");
            continue;
        }
        python.must_not_lease(port, "leased or in use");
    }
    python.must_lease(port);
}

#[test]
#[serial]
fn a_copy_of_its_probe_does_not_block_a_server() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = block.first();
    let Some(mut python) = Python::start(dir.path()) else {
        return;
    };
    assert_eq!(python.peer.ask("inherit"), "ready");
    python.must_lease(port);
    bind_strictly(port).expect_err("the duplicate is bound");
    TcpListener::bind(("0.0.0.0", port)).expect("std sets SO_REUSEADDR");
}

#[test]
#[serial]
fn a_duplicate_of_its_descriptor_does_not_keep_a_released_port() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = block.first();
    let builder = builder(dir.path(), port);
    let Some(mut python) = Python::start(dir.path()) else {
        return;
    };
    python.must_lease(port);
    assert_eq!(python.peer.ask(format!("duplicate {port}")), "1");
    must_be_leased(&builder);
    assert_eq!(python.peer.ask("release"), "released");
    builder.try_acquire().map(drop).expect("released");
}

#[test]
#[serial]
fn a_forked_copy_does_not_end_its_lease() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = block.first();
    let builder = builder(dir.path(), port);
    let Some(mut python) = Python::start(dir.path()) else {
        return;
    };
    python.must_lease(port);
    assert_eq!(python.peer.ask("fork"), "ended");
    must_be_leased(&builder);
    assert_eq!(python.peer.ask("release"), "released");
    builder.try_acquire().map(drop).expect("released");
}

#[test]
#[serial]
fn its_death_frees_the_port() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let builder = builder(dir.path(), block.first());
    let Some(mut python) = Python::start(dir.path()) else {
        return;
    };
    python.must_lease(block.first());
    must_be_leased(&builder);
    python.peer.kill();
    builder.try_acquire().map(drop).expect("its holder is dead");
}

#[test]
#[serial]
fn its_end_wakes_a_waiter() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = block.first();
    let Some(mut python) = Python::start(dir.path()) else {
        return;
    };
    python.must_lease(port);
    let arguments = [text(dir.path()), &port.to_string()];
    let waiter = Peer::start("lease", &arguments);
    assert_eq!(waiter.hear(), "started");
    // The page describes how the name of the wait queue is formed.
    let fnv1a = |text: &str| {
        let step = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
    };
    let line = |ports: &str| format!(".waiting.{:016x}", fnv1a(ports));
    let line_of_port = dir.path().join(line(&port.to_string()));
    while !line_of_port.exists() {
        assert_eq!(
            waiter.hear_within(std::time::Duration::from_millis(1)),
            None
        );
    }
    assert_eq!(python.peer.ask("release"), "released");
    assert_eq!(waiter.hear(), "leased");

    let text = "4000-4044,4046-4999,7000";
    let ports: PortSet = "7000,4000-4999,!4045".parse().expect("a set");
    assert_eq!(ports.to_string(), text);
    for text in ["4000-6000", text] {
        let hash = format!("{:016x}", fnv1a(text));
        let on_page = PAGE
            .split_once(&format!("`{text}` has"))
            .expect("on the page");
        assert!(on_page.1.trim_start().starts_with(&format!("`{hash}`")));
    }
}

/// Arguments: lock directory and port.
fn lease(parent: &Parent) {
    let dir: String = parent.argument(0);
    let builder = builder(Path::new(&dir), parent.argument(1)).timeout(LONG);
    parent.say("started");
    let lease = builder.acquire().expect("in time");
    parent.say("leased");
    parent.hear();
    drop(lease);
}

#[test]
#[serial]
fn a_file_that_is_removed_before_it_is_locked_is_not_a_lease() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = block.first();
    let builder = builder(dir.path(), port);
    let Some(mut python) = Python::start(dir.path()) else {
        return;
    };
    python.must_lease(port);
    assert_eq!(python.peer.ask("release"), "released");
    assert_eq!(python.peer.ask("pause"), "ready");
    assert_eq!(python.lease(port), "opened");
    let locks = LockDir::open(dir.path()).expect("trusted");
    assert_eq!(locks.clean().expect("our own").removed, 1);
    let lease = builder.try_acquire().expect("free");
    let said = python.peer.ask("go on");
    assert!(said.starts_with("none: "), "{said}");
    lease.release().expect("released");
    python.must_lease(port);
}

/// Writes a record, valid or not, into a lock file, padded to `len` bytes.
fn forge(dir: &Path, port: u16, words: &[&str], len: usize) {
    let line = format!("{:width$}\n", words.join(" "), width = len - 1);
    assert_eq!(line.len(), len);
    fs::write(dir.join(port.to_string()), line).expect("our own file");
}

#[test]
#[serial]
fn delegated_leases_are_respected_as_long_as_their_process_is_alive() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = block.first();
    let builder = builder(dir.path(), port).label("for another");
    let Some(mut python) = Python::start_whole(dir.path()) else {
        return;
    };
    let server = cat();
    builder.acquire_for(server.0.id()).expect("free");
    let path = dir.path().join(port.to_string());
    let record = fs::read_to_string(&path).expect("its file");
    python.must_not_lease(port, "leased or in use");

    // The effect of one changed word.
    let words: Vec<&str> = record.split_ascii_whitespace().collect();
    for (index, word, len, counts) in [
        (0, "delegated", 512, true),
        // This word has no effect.
        (6, "-", 512, true),
        // No process has the lock, and the process is known to be alive.
        (0, "passed", 512, true),
        (0, "held", 512, false),
        (0, "lent", 512, false),
        // Not written completely.
        (0, "delegated", 511, false),
        (0, "passed", 511, false),
        (0, "delegated", 256, false),
        // Another process, with a pid that no process has or can have.
        (1, "8388608", 512, false),
        (2, "1", 512, false),
        // An unknown value proves nothing.
        (2, "-", 512, true),
        (3, "-", 512, true),
        // No record.
        (1, "-", 512, false),
        (1, "x", 512, false),
        (1, "99999999999", 512, false),
        // A pid that no process can have.
        (1, "4294967295", 512, false),
        // An undetermined process counts only for a delegated lease.
        (3, "1 passed", 512, false),
        (3, "- passed", 512, false),
    ] {
        let mut words = words.clone();
        words[index] = word;
        if let Some((word, kind)) = word.split_once(' ') {
            (words[index], words[0]) = (word, kind);
        }
        forge(dir.path(), port, &words, len);
        let case = format!("{words:?}, {len} bytes");
        let said = python.lease(port);
        let leased = said.starts_with("leased");
        assert_eq!(leased, !counts, "{case}: {said}");
        if leased {
            assert_eq!(python.peer.ask("release"), "released");
            assert_eq!(fs::metadata(&path).expect("its file").len(), 256);
            forge(dir.path(), port, &words, len);
        }
        // The library agrees.
        let lease = builder.try_acquire();
        assert_eq!(lease.is_ok(), !counts, "{case}");
    }
    forge(dir.path(), port, &words, 512);
    python.must_not_lease(port, "leased or in use");
    server.end();
    python.must_lease(port);
    assert_eq!(python.peer.ask("release"), "released");

    // Its name is not valid text.
    let programs = lock_dir();
    let program = programs.path().join(OsStr::from_bytes(b"\xff) R 1"));
    symlink("/bin/cat", &program).expect("our own directory");
    let mut command = Command::new(program);
    let server = command.stdin(Stdio::piped()).spawn();
    let server = Process(server.expect("cat is installed"));
    builder.acquire_for(server.0.id()).expect("free");
    python.must_not_lease(port, "leased or in use");
}

#[test]
#[serial]
fn thirty_lines_treat_a_delegated_port_as_leased() {
    let code = python_on_page().find(|block| block.contains("def lease("));
    let lines = code.expect("on the page").lines();
    assert_eq!(lines.filter(|line| !line.is_empty()).count(), 30);

    let (dir, block) = (lock_dir(), Block::new(1));
    let port = block.first();
    let builder = builder(dir.path(), port);
    let Some(mut python) = Python::start(dir.path()) else {
        return;
    };
    let server = cat();
    builder.acquire_for(server.0.id()).expect("free");
    python.must_not_lease(port, "leased or in use");
    server.end();
    // It does not check the process.
    python.must_not_lease(port, "leased or in use");
    builder
        .try_acquire()
        .map(drop)
        .expect("its process has ended");
    python.must_lease(port);
    let listed = &leases(dir.path())[0];
    assert_eq!((listed.port, listed.state), (port, EntryState::Held));
    let owner = listed.owner.as_ref().expect("a record");
    assert_eq!((owner.pid(), owner.since()), (python.peer.id(), None));
}

/// Arguments: lock directory, root directory, port. Reserves it.
fn reserve(parent: &Parent) {
    let reserved = builder(&parent.argument::<PathBuf>(0), parent.argument(2))
        .name("web")
        .root(parent.argument::<PathBuf>(1))
        .reserve();
    parent.say(reserved.expect("a free port").port);
    parent.hear();
}

#[test]
#[serial]
fn a_reservation_outlives_its_lease_and_is_skipped() {
    let (dir, state, parent, block) = (lock_dir(), lock_dir(), lock_dir(), Block::new(2));
    let port = block.first();
    let root = fs::canonicalize(parent.path())
        .expect("our own")
        .join("a (shop)");
    fs::create_dir(&root).expect("our own");
    let binary = env::current_exe().expect("this test binary");
    let arguments = [text(dir.path()), text(&root), &port.to_string()];
    let mut command = command(&[], &binary, "reserve", &arguments);
    command.env("XDG_STATE_HOME", state.path());
    assert_eq!(Peer::start_command(command).hear(), port.to_string());
    let path = dir.path().join(port.to_string());
    let line = || fs::read(&path).expect("its file").split_off(512);
    let before = line();
    let Some(mut thirty) = Python::start(dir.path()) else {
        return;
    };
    thirty.must_not_lease(port, "leased or in use");
    let mut python = Python::start_whole(dir.path()).expect("as before");
    let builder = builder(dir.path(), port);
    let order = format!(
        "reserved web {}",
        root.display().to_string().replace(' ', "%20")
    );
    for _ in 0..2 {
        python.must_not_lease(port, "leased or in use");
        assert_eq!(python.peer.ask(&order), format!("leased {port}"));
        let listed = &leases(dir.path())[0];
        assert_eq!((listed.port, listed.state), (port, EntryState::Held));
        assert!(must_be_leased(&builder).contains("client.py"));
        assert_eq!(python.peer.ask("release"), "released");
        let error = builder.try_acquire().expect_err("reserved");
        assert_eq!(error.counts().expect("that is why").reserved, 1);
        assert_eq!(line(), before);
    }
    fs::remove_dir(&root).expect("our own");
    builder.try_acquire().map(drop).expect("its root is gone");
    thirty.must_lease(port);
}

#[test]
#[serial]
fn a_path_that_is_not_a_lock_file_is_an_error() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = block.first();
    let (path, outside) = (dir.path().join(port.to_string()), lock_dir());
    let victim = outside.path().join("victim");
    let Some(mut python) = Python::start(dir.path()) else {
        return;
    };
    type Plant = fn(&Path, &Path);
    let plants: [(Plant, &str); 4] = [
        (
            |victim, path| symlink(victim, path).expect("our own directory"),
            "symbolic links",
        ),
        (
            |victim, path| fs::hard_link(victim, path).expect("one file system"),
            "is not a lock file",
        ),
        (
            |_, path| {
                let mode = rustix::fs::Mode::RWXU;
                rustix::fs::mkfifoat(rustix::fs::CWD, path, mode).expect("our own directory");
            },
            "is not a lock file",
        ),
        (
            |_, path| fs::create_dir(path).expect("our own directory"),
            "Is a directory",
        ),
    ];
    for (plant, why) in plants {
        fs::write(&victim, "untouched").expect("our own directory");
        plant(&victim, &path);
        python.must_not_lease(port, why);
        assert_eq!(fs::read(&victim).expect("our own"), b"untouched");
        if fs::remove_file(&path).is_err() {
            fs::remove_dir(&path).expect("our own directory");
        }
    }
    python.must_lease(port);
}

#[test]
#[serial]
fn records_are_as_the_page_describes_them() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = block.first();
    let label = "100% größe\n";
    let builder = builder(dir.path(), port).label(label);
    let path = dir.path().join(port.to_string());
    let process = |file: &str| fs::read_to_string(Path::new("/proc").join(file)).expect("Linux");
    let (pid, server) = (std::process::id(), cat());
    let namespace = fs::read_link("/proc/self/ns/pid").expect("Linux");
    for (kind, pid, len) in [("held", pid, 256), ("delegated", server.0.id(), 512)] {
        let mut held = None;
        match kind {
            "held" => held = Some(builder.try_acquire().expect("free")),
            _ => assert_eq!(builder.acquire_for(pid).expect("free"), port),
        }
        let record = fs::read_to_string(&path).expect("ASCII");
        assert!(record.is_ascii() && record.len() == len, "{record:?}");
        let line = record.strip_suffix('\n').expect("a newline at its end");
        let words: Vec<&str> = line.trim_end_matches(' ').split(' ').collect();
        let stat = process(&format!("{pid}/stat"));
        let (_, fields) = stat.rsplit_once(')').expect("its name ends");
        // The first field after the name is field 3.
        let start = fields.split_whitespace().nth(22 - 3).expect("field 22");
        let expected = [kind, &pid.to_string(), start];
        assert_eq!(words[..3], expected);
        assert_eq!(format!("pid:[{}]", words[3]), text(&namespace));
        let since: u64 = words[4].parse().expect("a number");
        assert!((1_700_000_000..10_000_000_000).contains(&since));
        assert_eq!(words[6..], ["100%25%20gr%C3%B6%C3%9Fe%0A"]);
        drop(held);
    }
    let locks = LockDir::open(dir.path()).expect("trusted");
    locks.release(port).expect("our own");
    let nobody = format!("{:255}\n", "");
    assert_eq!(fs::read_to_string(&path).expect("ASCII"), nobody);

    // The record on the page, with one more word than there is today.
    let held = PAGE
        .lines()
        .find_map(|line| line.strip_prefix("    held "))
        .expect("on the page");
    let words = ["held", held, "and-more"];
    forge(dir.path(), port, &words, 256);
    let lease = &leases(dir.path())[0];
    assert_eq!(lease.state, EntryState::Stale);
    let owner = lease.owner.as_ref().expect("a record");
    assert_eq!(
        (owner.pid(), owner.program(), owner.label()),
        (812, Some("orders-test"), Some("api tests"))
    );
}
