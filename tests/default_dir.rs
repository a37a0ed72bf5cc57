//! The default directory, in mount namespaces with a prepared `/tmp` and `/run`, and how lock
//! files in `/tmp` are kept.
//!
//! Only Linux has both.

#![cfg(target_os = "linux")]

use std::{
    env, fs,
    fs::File,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant, SystemTime},
};

use portlock::{EntryState, ErrorKind, FreePort, LockDir, Reservation};
use portlock_testkit::{
    Block, LONG, NOBODY, Parent, Peer, am_root, cat, command, have_strace, lock_dir, open_copy,
    run_child, set_mode, start_in_namespace, text,
};

#[test]
fn child() {
    run_child(&[
        ("caller", caller),
        ("one user", one_user),
        ("directory of the machine", directory_of_machine),
        ("closed tmp", closed_tmp),
        ("no tmp", no_tmp),
        ("only inspecting", only_inspecting),
        ("working directory", working_directory),
        ("unmapped owner", unmapped_owner),
        ("unmapped defaults", unmapped_defaults),
        ("lost reservations", lost_reservations),
        ("reserve", reserve),
        ("inspect", inspect),
    ]);
}

const MACHINE: &str = "/run/portlock";
const FRESH: &str = "mount -t tmpfs none /tmp && mount -t tmpfs none /run";

fn own_dir() -> PathBuf {
    format!("/tmp/portlock-{}", rustix::process::geteuid().as_raw()).into()
}

/// Starts a child in a mount namespace, or returns `None` if that is not possible.
fn start(script: &str, role: &str, arguments: &[&str]) -> Option<Peer> {
    let binary = env::current_exe().expect("this test binary");
    if ["/tmp", "/run"].iter().any(|dir| binary.starts_with(dir)) {
        eprintln!("skipped: this test binary is in a directory that the test covers");
        return None;
    }
    start_in_namespace("--mount", script, role, arguments)
}

// ---------------------------------------------------------------------------
// A caller without a named directory.

/// Arguments: port. Reports which directory is the default and the outcome of a lease, and keeps
/// the lease until the parent ends it.
fn caller(parent: &Parent) {
    let port: u16 = parent.argument(0);
    let lease = FreePort::try_new(port..=port);
    parent.say(match &lease {
        Ok(_) => {
            let dir = LockDir::locate().expect("as for the lease");
            format!("{:?} {}", dir.origin(), dir.path().display())
        }
        Err(error) => format!("{:?} {error}", error.kind()).replace('\n', " "),
    });
    parent.hear();
}

fn start_caller(port: u16, runtime_dir: Option<&Path>) -> Peer {
    start_caller_by(&[], port, runtime_dir)
}

/// Starts the same caller with `prefix`.
fn start_caller_by(prefix: &[&str], port: u16, runtime_dir: Option<&Path>) -> Peer {
    let binary = env::current_exe().expect("this test binary");
    let mut command = command(prefix, &binary, "caller", &[&port.to_string()]);
    // Empty means unset, and TMPDIR is ignored.
    command
        .env("PORTLOCK_DIR", "")
        .env("TMPDIR", "/run")
        .env_remove("XDG_RUNTIME_DIR");
    command.envs(runtime_dir.map(|dir| ("XDG_RUNTIME_DIR", dir)));
    Peer::start_command(command)
}

/// Returns the report of a caller that leases and ends.
fn says(port: u16, runtime_dir: Option<&Path>) -> String {
    start_caller(port, runtime_dir).hear()
}

#[track_caller]
fn assert_refuses(said: &str, kind: ErrorKind, parts: &[&str]) {
    assert!(said.starts_with(&format!("{kind:?} ")), "{said}");
    for part in parts {
        assert!(said.contains(part), "no {part:?} in: {said}");
    }
}

// ---------------------------------------------------------------------------
// One user.

/// Arguments: port.
fn one_user(parent: &Parent) {
    let port: u16 = parent.argument(0);
    let uid = rustix::process::geteuid().as_raw();
    let session = PathBuf::from(format!("/run/user/{uid}"));
    let below = session.join("below");
    let log_in = || {
        fs::create_dir_all(&below).expect("our own");
        for dir in [&session, &below] {
            set_mode(dir, 0o700);
        }
    };
    let variables = [None, Some(&*session), Some(&*below)];

    let holder = start_caller(port, None);
    let expected = format!("Tmp {}", own_dir().display());
    assert_eq!(holder.hear(), expected, "leased without a session");
    log_in();
    for variable in variables {
        let said = says(port, variable);
        assert_refuses(&said, ErrorKind::Exhausted, &["1 leased"]);
    }
    drop(holder);

    for variable in variables {
        let holder = start_caller(port, variable);
        assert_eq!(holder.hear(), expected, "leased in a session");
        fs::remove_dir_all(&session).expect("our own");
        let said = says(port, None);
        assert_refuses(&said, ErrorKind::Exhausted, &["1 leased"]);
        log_in();
    }
    parent.say("done");
}

#[test]
fn sessions_that_come_and_go_do_not_divide_one_user() {
    let block = Block::new(1);
    if let Some(peer) = start(FRESH, "one user", &[&block.first().to_string()]) {
        peer.finish_well();
    }
}

// ---------------------------------------------------------------------------
// The directory of all users.

/// Arguments: port.
fn directory_of_machine(parent: &Parent) {
    let port: u16 = parent.argument(0);
    let machine = Path::new(MACHINE);
    let expected = format!("Tmp {}", own_dir().display());
    assert_eq!(says(port, None), expected);

    fs::create_dir(machine).expect("our own");
    set_mode(machine, 0o1777);
    let runtime = PathBuf::from("/run/ours");
    fs::create_dir(&runtime).expect("our own");
    for variable in [None, Some(&*runtime)] {
        assert_eq!(says(port, variable), format!("Machine {MACHINE}"));
    }
    let file = fs::metadata(machine.join(port.to_string())).expect("made there");
    assert_eq!(file.mode() & 0o7777, 0o1666);

    // Root removes it after it was found. The tracer makes the second check report that.
    if have_strace() {
        let trace = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", MACHINE];
        let inject = ["-e", "inject=newfstatat:error=ENOENT:when=2"];
        let removed = start_caller_by(&[&trace[..], &inject].concat(), port, None);
        assert_refuses(
            &removed.hear(),
            ErrorKind::LockDir,
            &[MACHINE, "No such file"],
        );
    }

    // If root created one of these, it is an error.
    for other in [0o755, 0o700, 0o777, 0o1770, 0o3777] {
        set_mode(machine, other);
        let octal = format!("{other:04o}");
        let said = says(port, None);
        assert_refuses(&said, ErrorKind::LockDir, &[MACHINE, &octal, "1777"]);
    }
    fs::remove_dir_all(machine).expect("our own");
    symlink(&runtime, machine).expect("our own");
    assert_refuses(
        &says(port, None),
        ErrorKind::LockDir,
        &[MACHINE, "symbolic link"],
    );
    fs::remove_file(machine).expect("our own");
    File::create(machine).expect("our own");
    assert_refuses(
        &says(port, None),
        ErrorKind::LockDir,
        &[MACHINE, "not a directory"],
    );
    fs::remove_file(machine).expect("our own");

    // If another user did, it is ignored.
    fs::create_dir(machine).expect("our own");
    set_mode(machine, 0o1777);
    if chown(machine, Some(1), None).is_ok() {
        assert_eq!(says(port, None), expected);
        assert_eq!(fs::read_dir(machine).expect("ours").count(), 0);
    } else {
        eprintln!("skipped: no other user in this namespace");
    }
    parent.say("done");
}

#[test]
fn a_directory_that_root_made_is_the_default_of_all() {
    let block = Block::new(1);
    let arguments = [&*block.first().to_string()];
    if let Some(peer) = start(FRESH, "directory of the machine", &arguments) {
        peer.finish_well();
    }
}

// ---------------------------------------------------------------------------
// Where /tmp cannot be used.

/// Arguments: port, part of the error.
fn closed_tmp(parent: &Parent) {
    let port: u16 = parent.argument(0);
    let why: String = parent.argument(1);
    let runtime = PathBuf::from("/run/ours");
    fs::create_dir(&runtime).expect("our own");
    let said = says(port, Some(&runtime));
    let dir = own_dir();
    let parts = [text(&dir), &why, "PORTLOCK_DIR"];
    assert_refuses(&said, ErrorKind::LockDir, &parts);
    let count = fs::read_dir(&runtime).expect("ours").count();
    assert_eq!(count, 0, "a silent fallback");
    parent.say("done");
}

#[test]
fn an_unwritable_tmp_ends_the_call() {
    let block = Block::new(1);
    for (options, why) in [("ro", "Read-only"), ("nr_inodes=1", "No space")] {
        let script = format!("mount -t tmpfs none /run && mount -t tmpfs -o {options} none /tmp");
        let arguments = [&*block.first().to_string(), why];
        if let Some(peer) = start(&script, "closed tmp", &arguments) {
            peer.finish_well();
        }
    }
}

/// Arguments: port.
fn no_tmp(parent: &Parent) {
    let port: u16 = parent.argument(0);
    assert!(!Path::new("/tmp").exists());
    let runtime = PathBuf::from("/run/ours");
    fs::create_dir(&runtime).expect("our own");
    let said = says(port, Some(&runtime));
    assert_eq!(said, "RuntimeDir /run/ours/portlock");
    let refused = |variable, parts: &[&str]| {
        let said = says(port, variable);
        assert_refuses(&said, ErrorKind::LockDir, parts);
    };
    refused(None, &["/tmp", "XDG_RUNTIME_DIR", "PORTLOCK_DIR"]);
    // As after su(1).
    if chown(&runtime, Some(NOBODY), None).is_ok() {
        refused(Some(&runtime), &["/run/ours", "user 0", "PORTLOCK_DIR"]);
    } else {
        eprintln!("skipped: no other user in this namespace");
    }
    parent.say("done");
}

#[test]
fn without_tmp_it_is_in_the_runtime_directory() {
    let (root, block) = (lock_dir(), Block::new(1));
    // Everything in / except two directories.
    let script = format!(
        "root={}; mount -t tmpfs none $root && mkdir $root/run &&
         for dir in /*; do
             case $dir in /tmp | /run) continue ;; esac
             if [ -L $dir ]; then cp -P $dir $root
             elif [ -d $dir ]; then mkdir -p $root$dir && mount --rbind $dir $root$dir
             fi || exit
         done; exec chroot $root \"$0\" \"$@\"; false",
        root.path().display()
    );
    if let Some(peer) = start(&script, "no tmp", &[&block.first().to_string()]) {
        peer.finish_well();
    }
}

// ---------------------------------------------------------------------------
// Inspecting.

/// Arguments: port.
fn only_inspecting(parent: &Parent) {
    let port: u16 = parent.argument(0);
    let dir = LockDir::locate().expect("it need not exist");
    assert_eq!(dir.path(), own_dir());
    assert!(!dir.is_shared());
    assert_eq!(dir.entries().expect("empty"), []);
    assert_eq!(dir.entry(port).expect("empty"), None);
    let cleaned = dir.clean().expect("empty");
    assert_eq!((cleaned.removed, cleaned.kept), (0, 0));
    let error = dir.force_release(port).expect_err("empty");
    assert!(error.to_string().contains("it is not leased"), "{error}");
    assert!(!dir.path().exists(), "created by inspecting it");

    // Once a lease has created it, it is the same one.
    let lease = FreePort::try_new(port..=port).expect("free");
    let dir = LockDir::locate().expect("it exists");
    let leases = dir.entries().expect("ours");
    assert_eq!(leases[0].state, EntryState::Held);
    drop(lease);
    parent.say("done");
}

#[test]
fn inspecting_does_not_create_the_default_directory() {
    let block = Block::new(1);
    if let Some(peer) = start(FRESH, "only inspecting", &[&block.first().to_string()]) {
        peer.finish_well();
    }
}

/// Arguments: port, directory with two subdirectories, `here` and `there`.
fn working_directory(parent: &Parent) {
    let port: u16 = parent.argument(0);
    let dir = PathBuf::from(parent.argument::<String>(1));
    let (here, there) = (dir.join("here"), dir.join("there"));
    env::set_current_dir(&here).expect("our own");
    let builder = FreePort::builder().ports(port..=port).lock_dir("locks");
    let located = LockDir::open(Path::new("locks")).expect("our own");
    env::set_current_dir(&there).expect("our own");
    let lease = builder.try_acquire().expect("free");
    assert!(here.join("locks").join(port.to_string()).exists());
    assert_eq!(located.path(), here.join("locks"));
    assert_eq!(located.entries().expect("ours")[0].state, EntryState::Held);
    drop(lease);
    assert_eq!(fs::read_dir(there.join("locks")).expect("ours").count(), 0);
    parent.say("done");
}

#[test]
fn a_relative_directory_stays_when_the_working_directory_changes() {
    let (dir, block) = (lock_dir(), Block::new(1));
    for name in ["here", "there"] {
        let locks = dir.path().join(name).join("locks");
        fs::create_dir_all(&locks).expect("our own");
        set_mode(&locks, 0o700);
    }
    let arguments = [&*block.first().to_string(), text(dir.path())];
    Peer::start("working directory", &arguments).finish_well();
}

// ---------------------------------------------------------------------------
// User namespaces.

/// Arguments: port, lock directory.
fn unmapped_owner(parent: &Parent) {
    let port: u16 = parent.argument(0);
    let dir = PathBuf::from(parent.argument::<String>(1));
    let builder = FreePort::builder().ports(port..=port).lock_dir(&dir);
    assert_eq!(fs::metadata(&dir).expect("there").uid(), NOBODY);
    parent.say(match builder.try_acquire() {
        Ok(_) => "leased".to_owned(),
        Err(error) => error.to_string(),
    });
}

/// Runs a child as user 0 of a user namespace that maps its users with `map`. It is started by
/// `user`, which the map must map to 0.
fn in_user_namespace(user: u32, map: &str, binary: &Path, role: &str, arguments: &[&str]) -> Peer {
    let ids = [format!("--reuid={user}"), format!("--regid={user}")];
    let mut prefix = vec!["setpriv", &ids[0], &ids[1], "--clear-groups"];
    // Once the map is written, the child is root there, and its next exec gets root's capabilities.
    let script = "echo @unmapped; read go; exec \"$0\" \"$@\"";
    prefix.extend(["unshare", "--user", "sh", "-c", script]);
    let mut peer = Peer::start_command(command(&prefix, binary, role, arguments));
    assert_eq!(peer.hear(), "unmapped");
    for kind in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{kind}", peer.id()), map).expect("root may");
    }
    peer.say("go");
    peer
}

/// Returns whether the test can write maps of user namespaces.
fn can_map_users() -> bool {
    let can = Command::new("unshare")
        .args(["--user", "true"])
        .stderr(Stdio::null())
        .status();
    // Root of a container has only some users to map.
    let own = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let can = am_root() && own.contains("4294967295") && can.is_ok_and(|it| it.success());
    if !can {
        eprintln!("skipped: it takes the machine's root and user namespaces");
    }
    can
}

/// Maps of rootless containers: of a single user, and of subordinate users, one of which has the
/// number of the overflow user. Neither maps root.
const ROOTLESS: [(u32, &str); 2] = [(NOBODY, "0 65534 1"), (100_000, "0 100000 65536")];

#[test]
fn a_shared_directory_of_root_is_accepted_where_root_is_not_mapped() {
    if !can_map_users() {
        return;
    }
    let (dir, block) = (lock_dir(), Block::new(1));
    let (_copy, binary) = open_copy();
    let arguments = [&*block.first().to_string(), text(dir.path())];
    let says = |user, map| {
        let peer = in_user_namespace(user, map, &binary, "unmapped owner", &arguments);
        peer.hear()
    };
    for (user, map) in ROOTLESS {
        set_mode(dir.path(), 0o1777);
        assert_eq!(says(user, map), "leased", "{map}");
        let locks = LockDir::open(dir.path()).expect("ours");
        assert_eq!(locks.clean().expect("ours").removed, 1);
        set_mode(dir.path(), 0o755);
        let said = says(user, map);
        assert!(
            said.contains("or any user that this user namespace does not map"),
            "{said}"
        );
        // This root cannot set its mode.
        set_mode(dir.path(), 0o777);
        let said = says(user, map);
        assert!(
            said.contains("not sticky") && said.contains("mkdir -m 1777"),
            "{said}"
        );
    }
    // If every user is mapped, the overflow user is like any other.
    set_mode(dir.path(), 0o1777);
    chown(dir.path(), Some(NOBODY), None).expect("root may");
    let everybody = "0 0 4294967295";
    let refused = "owned by user 65534 (mode 1777)";
    let outside = Peer::start("unmapped owner", &arguments).hear();
    for said in [says(0, everybody), outside] {
        assert!(said.contains(refused), "{said}");
        assert!(said.contains("share must belong to root"), "{said}");
    }
}

/// Arguments: port, user, map. In a mount namespace with this test binary at `/run/test`.
fn unmapped_defaults(parent: &Parent) {
    let port: String = parent.argument(0);
    let (user, map): (u32, String) = (parent.argument(1), parent.argument(2));
    let says = || in_user_namespace(user, &map, Path::new("/run/test"), "caller", &[&port]).hear();
    // Another user, which appears as root in there, has created the directory first.
    let own = Path::new("/tmp/portlock-0");
    fs::create_dir(own).expect("our own");
    chown(own, Some(1), None).expect("root may");
    for other in [0o1777, 0o700] {
        set_mode(own, other);
        let octal = format!("{other:04o}");
        assert_refuses(&says(), ErrorKind::LockDir, &[text(own), &octal, "65534"]);
    }
    assert_eq!(fs::read_dir(own).expect("root may").count(), 0);

    // The directory for all users belongs to root.
    let machine = Path::new(MACHINE);
    fs::create_dir(machine).expect("our own");
    set_mode(machine, 0o1777);
    assert_eq!(says(), format!("Machine {MACHINE}"));
    parent.say("done");
}

#[test]
fn a_directory_that_looks_like_roots_is_not_trusted_where_every_user_can_create_it() {
    if !can_map_users() {
        return;
    }
    let block = Block::new(1);
    let script = "mount -t tmpfs none /run && cp \"$0\" /run/test && mount -t tmpfs none /tmp";
    for (user, map) in ROOTLESS {
        let arguments = [&*block.first().to_string(), &user.to_string(), map];
        if let Some(peer) = start(script, "unmapped defaults", &arguments) {
            peer.finish_well();
        }
    }
}

// ---------------------------------------------------------------------------
// Cleaners of /tmp.

#[test]
fn lock_files_are_not_removed_for_their_age() {
    let version = Command::new("systemd-tmpfiles")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    if version.is_err() {
        eprintln!("skipped: systemd-tmpfiles is not installed");
        return;
    }
    let (dir, block) = (lock_dir(), Block::new(2));
    let [held, delegated] = [block.first(), block.first() + 1];
    let acquire = |port: u16| {
        let builder = FreePort::builder().ports(port..=port).lock_dir(dir.path());
        builder.try_acquire().expect("free")
    };
    let (_lease, cat) = (acquire(held), cat());
    acquire(delegated).delegate_to(cat.0.id()).expect("alive");
    // A file that shows that the cleaner ran.
    let plain = dir.path().join("plain");
    File::create(&plain).expect("our own");
    let inode = |port: u16| fs::metadata(dir.path().join(port.to_string())).map(|file| file.ino());
    let inodes = [held, delegated].map(|port| inode(port).expect("leased"));
    for entry in fs::read_dir(dir.path()).expect("ours") {
        let long_ago = SystemTime::now() - Duration::from_secs(40 * 24 * 3600);
        let times = fs::FileTimes::new()
            .set_accessed(long_ago)
            .set_modified(long_ago);
        let file = File::options()
            .write(true)
            .open(entry.expect("ours").path());
        file.and_then(|file| file.set_times(times)).expect("ours");
    }
    let config = lock_dir();
    let config = config.path().join("ours.conf");
    let line = format!("d {} 0700 - - 1s\n", dir.path().display());
    fs::write(&config, line).expect("our own");

    // At first, its last change (ctime) is less than a second ago.
    let start = Instant::now();
    while plain.exists() {
        assert!(start.elapsed() < LONG, "nothing is cleaned");
        let status = Command::new("systemd-tmpfiles")
            .arg("--clean")
            .arg(&config)
            .status();
        assert!(status.expect("it is installed").success());
        thread::sleep(Duration::from_millis(50));
    }
    let left = [held, delegated].map(|port| inode(port).ok());
    assert_eq!(left, inodes.map(Some), "removed for their age");
    let leases = LockDir::open(dir.path()).and_then(|dir| dir.entries());
    let states: Vec<_> = leases.expect("ours").iter().map(|it| it.state).collect();
    assert_eq!(states, [EntryState::Held, EntryState::Delegated]);
    cat.end();
}

#[test]
fn lock_files_have_the_sticky_bit_and_wait_queues_do_not() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let builder = FreePort::builder()
        .ports(block.ports.clone())
        .lock_dir(dir.path());
    let _lease = builder.try_acquire().expect("free");
    let waited = builder.timeout(Duration::from_millis(20)).acquire();
    waited.expect_err("leased");
    let modes = fs::read_dir(dir.path()).expect("ours").map(|entry| {
        let entry = entry.expect("ours");
        let mode = entry.metadata().expect("ours").permissions().mode() & 0o7777;
        let name = entry.file_name().into_string().expect("ASCII");
        (name.starts_with(".waiting."), mode)
    });
    let mut modes: Vec<_> = modes.collect();
    modes.sort_unstable();
    assert_eq!(modes, [(false, 0o1600), (true, 0o600)]);
}

// ---------------------------------------------------------------------------
// Reservations in a directory that is lost.

/// Arguments: port. Reserves it.
fn reserve(parent: &Parent) {
    let port: u16 = parent.argument(0);
    let web = FreePort::builder().ports(port).name("web").root(ROOT);
    let reserved = web.reserve();
    parent.say(reserved.expect("a free port").port);
    parent.hear();
}

const STATE: &str = "/run/state";
const ROOT: &str = "/run/shop";

/// Starts a caller whose state directory is `state`.
fn start_with_state(role: &str, port: u16, state: &str) -> Peer {
    let binary = env::current_exe().expect("this test binary");
    let mut command = command(&[], &binary, role, &[&port.to_string()]);
    command
        .env("PORTLOCK_DIR", "")
        .env("XDG_STATE_HOME", state)
        .env("HOME", state);
    Peer::start_command(command)
}

/// Arguments: two ports.
fn lost_reservations(parent: &Parent) {
    let [web, other] = [0, 1].map(|index| parent.argument::<u16>(index));
    fs::create_dir(ROOT).expect("our own");
    fs::create_dir(STATE).expect("our own");
    assert_eq!(
        start_with_state("reserve", web, STATE).hear(),
        web.to_string()
    );
    let lock_file = own_dir().join(web.to_string());
    let reserved = fs::read(&lock_file).expect("reserved").split_off(512);
    let reboot = || fs::remove_dir_all(own_dir()).expect("our own");
    let others = || fs::read_dir("/tmp").expect("our own").count() - 1;

    // Any caller that finds the new directory finds the reservation in it.
    for _ in 0..40 {
        reboot();
        let finder = thread::spawn({
            let lock_file = lock_file.clone();
            move || {
                let end = Instant::now() + LONG;
                while !own_dir().exists() && Instant::now() < end {}
                lock_file.exists()
            }
        });
        let caller = start_with_state("caller", web, STATE);
        assert_refuses(&caller.hear(), ErrorKind::Exhausted, &["1 reserved"]);
        assert!(
            finder.join().expect("it ends"),
            "found without its reservation"
        );
        let restored = fs::read(&lock_file).expect("restored");
        assert_eq!(restored[512..], reserved);
        let mode = |path: &Path| fs::metadata(path).expect("ours").mode() & 0o7777;
        assert_eq!((mode(&own_dir()), mode(&lock_file)), (0o700, 0o1600));
        assert_eq!(others(), 0, "nothing is left over");
    }

    // A directory that a caller without a state directory created.
    reboot();
    let homeless = start_with_state("caller", other, "/dev/null/none");
    assert!(homeless.hear().starts_with("Tmp "));
    assert!(!lock_file.exists());
    let caller = start_with_state("caller", web, STATE);
    assert_refuses(&caller.hear(), ErrorKind::Exhausted, &["1 reserved"]);
    let refused = start_with_state("caller", other, STATE).hear();
    assert_refuses(&refused, ErrorKind::Exhausted, &["1 leased"]);
    assert_eq!(
        start_with_state("reserve", web, STATE).hear(),
        web.to_string()
    );

    // Inspecting creates and restores nothing, and shows what is reserved.
    reboot();
    let mut inspector = start_with_state("inspect", web, STATE);
    assert_eq!(inspector.ask("list"), format!("{web} web"));
    assert!(!own_dir().exists());

    // A missing default directory may be created again, so its copies are kept.
    assert_eq!(inspector.ask("clean-copies"), "0");
    assert_eq!(
        start_with_state("reserve", web, STATE).hear(),
        web.to_string()
    );
    // The root of the reservation is gone: nothing is restored.
    fs::remove_dir(ROOT).expect("our own");
    reboot();
    let caller = start_with_state("caller", web, STATE);
    assert!(caller.hear().starts_with("Tmp "));
    assert_eq!(inspector.ask("clean-copies"), "1");
    parent.say("done");
}

/// Lists the reservations, or removes copies.
fn inspect(parent: &Parent) {
    loop {
        parent.say(match &*parent.hear() {
            "list" => {
                let all = LockDir::locate()
                    .expect("one")
                    .reservations()
                    .expect("readable");
                let one = |web: &Reservation| format!("{} {}", web.port, web.name);
                all.iter().map(one).collect::<Vec<_>>().join(", ")
            }
            _ => LockDir::clean_copies().expect("our own").to_string(),
        });
    }
}

#[test]
fn a_lost_directory_is_created_again_with_its_reservations() {
    let block = Block::new(2);
    let ports = block.ports.clone().map(|port| port.to_string());
    let ports: Vec<String> = ports.collect();
    let arguments: Vec<&str> = ports.iter().map(String::as_str).collect();
    if let Some(peer) = start(FRESH, "lost reservations", &arguments) {
        peer.finish_well();
    }
}
