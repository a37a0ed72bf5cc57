//! Bad input and a failing system: each gives its own kind of error at once,
//! names the path or port, and leaves nothing behind.

mod common;

use std::{
    env, fs,
    fs::File,
    net::IpAddr,
    ops::RangeInclusive,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
};

use common::{
    Block, NOBODY, Parent, Peer, am_root, assert_error, bind_strictly, command,
    give_to_ordinary_user, have_strace, lock_dir, mode, open_descriptors, run_child,
    start_in_namespace, start_unprivileged, text,
};
use portlock::{BindFreePort, Builder, ErrorKind, FreePort};

#[test]
fn child() {
    run_child(&[
        ("fill the file system", fill_the_file_system),
        ("read-only file system", read_only_file_system),
        ("run out of descriptors", run_out_of_descriptors),
        ("privileged ports", privileged_ports),
        ("read-only directory", read_only_directory),
        ("no IPv6", no_ipv6),
        ("environment", environment),
    ]);
}

fn builder(dir: &Path, ports: RangeInclusive<u16>) -> Builder {
    FreePort::builder().ports(ports).lock_dir(dir)
}

// ---------------------------------------------------------------------------
// Ranges.

#[test]
#[expect(clippy::reversed_empty_ranges, reason = "bad input is the point")]
fn ranges_without_a_port() {
    let kind = ErrorKind::InvalidPorts;
    assert_error(FreePort::new(4000..4000), kind, &["4000..4000"]);
    assert_error(FreePort::new(6000..=4000), kind, &["6000..=4000"]);
    assert_error(FreePort::try_new(0..=0), kind, &["0..=0"]);
    assert_error(FreePort::try_new(..1), kind, &["..1"]);
    assert_error(FreePort::listen(0..1), kind, &["0..1"]);
    assert_error(BindFreePort::new(9..9), kind, &["9..9"]);
    let empty = FreePort::builder().ports(6000..4000);
    assert_error(empty.acquire(), kind, &["no ports"]);
}

#[test]
fn a_range_of_one_port() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let builder = builder(dir.path(), block.ports.clone());
    let port = builder.try_acquire().expect("free");
    assert_eq!(port.port(), block.first());
    assert_error(
        builder.try_acquire(),
        ErrorKind::Exhausted,
        &[
            &format!("no free port in {port}: 1 leased"),
            &format!("{port} by pid {}", std::process::id()),
            "bad_input",
        ],
    );
}

#[test]
fn exhaustion_says_who_holds_what_for_how_long() {
    let (dir, block) = (lock_dir(), Block::new(3));
    let builder = builder(dir.path(), block.ports.clone());
    let leased = builder.clone().label("orders api").acquire().expect("free");
    let others = block.ports.clone().filter(|&port| port != leased.port());
    let bound: Vec<_> = others
        .map(|port| bind_strictly(port).expect("free"))
        .collect();
    let patience = std::time::Duration::from_millis(50);
    assert_error(
        builder.timeout(patience).acquire(),
        ErrorKind::Exhausted,
        &[
            &format!("in {}-{} after 0.", block.ports.start(), block.ports.end()),
            &format!("1 leased ({leased} by pid {}", std::process::id()),
            "(orders api)",
            "2 bound by other programs",
        ],
    );
    drop(bound);
}

#[test]
fn a_host_that_this_machine_does_not_have() {
    let (dir, block) = (lock_dir(), Block::new(1));
    // An address of TEST-NET-1 (RFC 5737), which no machine has.
    let host: IpAddr = "192.0.2.1".parse().expect("an address");
    let address = format!("192.0.2.1:{}", block.first());
    assert_error(
        builder(dir.path(), block.ports.clone())
            .host(host)
            .acquire(),
        ErrorKind::Probe,
        &[&address],
    );
}

#[test]
fn one_listener_for_several_hosts() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let hosts: [IpAddr; 2] = ["127.0.0.1", "127.0.0.2"].map(|host| host.parse().expect("valid"));
    let builder = builder(dir.path(), block.ports.clone())
        .host(hosts[0])
        .host(hosts[1]);
    assert_error(builder.listen(), ErrorKind::Unsupported, &["127.0.0.2"]);
    builder
        .acquire()
        .map(drop)
        .expect("a lease needs no listener");
}

// ---------------------------------------------------------------------------
// The lock directory.

#[test]
fn lock_directories_that_are_none() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let acquire = |path: &Path| builder(path, block.ports.clone()).acquire();
    let kind = ErrorKind::LockDir;

    let missing = dir.path().join("missing");
    assert_error(acquire(&missing), kind, &[text(&missing), "No such file"]);
    assert!(!missing.exists(), "a directory that was named is not made");

    let file = dir.path().join("file");
    File::create(&file).expect("our own directory");
    assert_error(acquire(&file), kind, &[text(&file), "not a directory"]);
    let below = file.join("below");
    assert_error(acquire(&below), kind, &[text(&below), "Not a directory"]);

    let link = dir.path().join("link");
    symlink(dir.path(), &link).expect("our own directory");
    assert_error(acquire(&link), kind, &[text(&link), "symbolic link"]);
    assert_error(acquire(&link.join("")), kind, &["symbolic link"]);

    assert_error(acquire(Path::new("")), kind, &["lock directory"]);
    assert_error(acquire(Path::new("\0")), kind, &["lock directory"]);
}

#[test]
fn private_lock_files_are_private() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = builder(dir.path(), block.ports.clone()).acquire();
    let port = port.expect("free");
    let file = dir.path().join(port.to_string());
    let made = fs::metadata(&file).expect("the lock file").permissions();
    assert_eq!(made.mode() & 0o7777, 0o600);
    assert_eq!(fs::read_dir(dir.path()).expect("ours").count(), 1);
    port.release().expect("released");
    assert!(file.exists(), "release leaves the file");
}

/// Arguments: port. Leases it with what the environment says.
fn environment(parent: &Parent) {
    let port: u16 = parent.argument(0);
    let outcome = match FreePort::try_new(port..=port).map(drop) {
        Ok(()) => "leased".to_owned(),
        Err(error) => format!("{:?} {error}", error.kind()),
    };
    parent.say(outcome);
}

#[test]
fn the_environment_names_the_directory() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let binary = env::current_exe().expect("this test binary");
    let port = block.first().to_string();
    let said = |variables: &[(&str, &Path)]| {
        let mut command = command(&[], &binary, "environment", &[&port]);
        command
            .env_remove("PORTLOCK_DIR")
            .envs(variables.iter().copied());
        Peer::start_command(command).hear()
    };
    let runtime = dir.path().join("runtime");
    fs::create_dir(&runtime).expect("our own directory");
    let named = dir.path().join("named");
    fs::create_dir(&named).expect("our own directory");
    let missing = dir.path().join("missing");
    let (variable, xdg) = ("PORTLOCK_DIR", "XDG_RUNTIME_DIR");

    assert_eq!(said(&[(variable, &named), (xdg, &runtime)]), "leased");
    assert!(named.join(&port).exists() && !runtime.join("portlock").exists());
    // Empty means unset, and TMPDIR means nothing.
    let unset = [
        (variable, Path::new("")),
        (xdg, &runtime),
        ("TMPDIR", &missing),
    ];
    assert_eq!(said(&unset), "leased");
    assert!(runtime.join("portlock").join(&port).exists());
    let made = fs::metadata(runtime.join("portlock")).expect("made");
    assert_eq!(made.permissions().mode() & 0o7777, 0o700);

    let relative = said(&[(variable, Path::new("locks"))]);
    assert!(
        relative.starts_with("LockDir PORTLOCK_DIR=locks"),
        "{relative}"
    );
    let absent = said(&[(variable, &missing), (xdg, &runtime)]);
    assert!(absent.starts_with("LockDir"), "{absent}");
    assert!(absent.contains(text(&missing)), "{absent}");

    if am_root() {
        // As after `su`: the variable still names another user's directory.
        let foreign = dir.path().join("foreign");
        fs::create_dir(&foreign).expect("our own directory");
        chown(&foreign, Some(NOBODY), None).expect("root may");
        assert_eq!(said(&[(xdg, &foreign)]), "leased");
        assert!(!foreign.join("portlock").exists());
    }
}

// ---------------------------------------------------------------------------
// A system that fails. These need a process of their own, and some root.

/// Arguments: lock directory, on a file system of its own, and port.
fn fill_the_file_system(parent: &Parent) {
    let dir = PathBuf::from(parent.argument::<String>(0));
    let port: u16 = parent.argument(1);
    let acquire = || builder(&dir, port..=port).acquire();
    let file = dir.join(port.to_string());

    // Space for a name but not for the record, then not even for a name.
    for name in ["space", "names"] {
        let filler = dir.join(name);
        fs::create_dir(&filler).expect("still space");
        if name == "space" {
            let error = fs::write(filler.join("0"), vec![0; 1 << 20]).expect_err("full");
            assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        } else {
            fs::remove_file(&file).expect("made before");
            let full = (0..1 << 20).find(|i| File::create(filler.join(i.to_string())).is_err());
            assert!(full.is_some());
        }
        let operation = if name == "space" {
            "write owner record"
        } else {
            "make"
        };
        assert_error(
            acquire(),
            ErrorKind::Lock,
            &[operation, text(&file), "No space"],
        );
        fs::remove_dir_all(&filler).expect("our own");
        drop(acquire().expect("with space again, the port is free"));
    }
    parent.say("done");
}

#[test]
fn a_full_file_system() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let dir = text(dir.path());
    let mount = format!("mount -t tmpfs -o size=64k,nr_inodes=64,mode=700 none {dir}");
    let arguments = [dir, &block.first().to_string()];
    if let Some(peer) = start_in_namespace("--mount", &mount, "fill the file system", &arguments) {
        peer.finish_well();
    }
}

/// Arguments: lock directory, on a read-only file system, and port.
fn read_only_file_system(parent: &Parent) {
    let dir = PathBuf::from(parent.argument::<String>(0));
    let port: u16 = parent.argument(1);
    for port in [port, port + 1] {
        let file = dir.join(port.to_string());
        assert_error(
            builder(&dir, port..=port).acquire(),
            ErrorKind::Lock,
            &[text(&file), "Read-only file system"],
        );
    }
    parent.say("done");
}

#[test]
fn a_read_only_file_system() {
    let (dir, block) = (lock_dir(), Block::new(2));
    let (dir, port) = (text(dir.path()), block.first().to_string());
    // One lock file is there already, the other is missing.
    let mount = format!(
        "mount -t tmpfs -o mode=700 none {dir} && : > {dir}/{port} && \
         mount -o remount,ro {dir}"
    );
    if let Some(peer) =
        start_in_namespace("--mount", &mount, "read-only file system", &[dir, &port])
    {
        peer.finish_well();
    }
}

/// Arguments: lock directory that this user may not write to, and port.
fn read_only_directory(parent: &Parent) {
    parent.say("started");
    let dir = PathBuf::from(parent.argument::<String>(0));
    let port: u16 = parent.argument(1);
    let file = dir.join(port.to_string());
    assert_error(
        builder(&dir, port..=port).acquire(),
        ErrorKind::Lock,
        &[text(&file), "Permission denied"],
    );
    parent.say("done");
}

#[test]
fn a_directory_that_we_may_not_write_to() {
    let (dir, block) = (lock_dir(), Block::new(1));
    give_to_ordinary_user(dir.path());
    mode(dir.path(), 0o500);
    let arguments = [text(dir.path()), &block.first().to_string()];
    let peer = start_unprivileged("read-only directory", &arguments);
    peer.finish_well();
}

/// Arguments: lock directory.
fn privileged_ports(parent: &Parent) {
    parent.say("started");
    let dir = PathBuf::from(parent.argument::<String>(0));
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    let first: u16 = first.expect("Linux has it").trim().parse().expect("a port");
    if first < 11 {
        eprintln!("left out: every port may be bound by everybody here");
    } else {
        let ports = first - 10..=first - 1;
        let named = format!("{}-{}", ports.start(), ports.end());
        assert_error(
            builder(&dir, ports.clone()).acquire(),
            ErrorKind::PermissionDenied,
            &[&named],
        );
        assert_error(
            BindFreePort::new(ports.clone()),
            ErrorKind::PermissionDenied,
            &[&named],
        );
        // With one that is permitted among them, that one is found.
        let port = builder(&dir, first - 10..=first + 200).acquire();
        assert!(port.expect("some port above is free").port() >= first);
    }
    parent.say("done");
}

#[test]
fn ports_that_an_ordinary_user_may_not_bind() {
    let dir = lock_dir();
    give_to_ordinary_user(dir.path());
    let peer = start_unprivileged("privileged ports", &[text(dir.path())]);
    peer.finish_well();
}

/// Arguments: lock directory and port.
fn run_out_of_descriptors(parent: &Parent) {
    let dir = PathBuf::from(parent.argument::<String>(0));
    let port: u16 = parent.argument(1);
    let file = dir.join(port.to_string());
    let builder = builder(&dir, port..=port);
    let mut seen = Vec::new();
    // First with the directory to be opened, then with it open.
    for _ in 0..2 {
        for left in 0.. {
            let mut taken = Vec::new();
            while let Ok(file) = File::open("/dev/null") {
                taken.push(file);
            }
            taken.truncate(taken.len() - left);
            let outcome = builder.try_acquire();
            drop(taken);
            let Err(error) = outcome else { break };
            let (kind, message) = (error.kind(), error.to_string());
            assert!(message.contains("Too many open files"), "{message}");
            let named = match kind {
                ErrorKind::LockDir => text(&dir),
                ErrorKind::Lock => text(&file),
                _ => &port.to_string(),
            };
            assert!(message.contains(named), "{message}");
            seen.push(kind);

            let before = open_descriptors();
            drop(builder.try_acquire().expect("the failure took nothing"));
            // The directory stays open from the first success on.
            assert!(open_descriptors() <= before + 1);
        }
    }
    let open = open_descriptors();
    for _ in 0..100 {
        drop(builder.try_acquire().expect("free"));
    }
    assert_eq!(open_descriptors(), open);
    // None left for the directory; then, with that open, none left for the
    // socket; then none left for the lock file.
    let [directory, file, socket] = [ErrorKind::LockDir, ErrorKind::Lock, ErrorKind::Probe];
    assert_eq!(seen, [directory, socket, file, socket]);
    parent.say("done");
}

#[test]
fn no_descriptors_left() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let binary = env::current_exe().expect("this test binary");
    let limit = ["sh", "-c", "ulimit -n 64 && exec \"$0\" \"$@\""];
    let arguments = [text(dir.path()), &block.first().to_string()];
    let command = command(&limit, &binary, "run out of descriptors", &arguments);
    Peer::start_command(command).finish_well();
}

/// Arguments: lock directory and port. Every other socket it makes, from the
/// first, is an IPv6 one and cannot be had.
fn no_ipv6(parent: &Parent) {
    let dir = PathBuf::from(parent.argument::<String>(0));
    let port: u16 = parent.argument(1);
    let v6: IpAddr = "::1".parse().expect("an address");
    let v4: IpAddr = "127.0.0.1".parse().expect("an address");
    let any = builder(&dir, port..=port);

    let lease = any.try_acquire();
    drop(lease.expect("free on every address there is"));
    let (lease, listener) = any.listen().expect("free");
    assert!(listener.local_addr().expect("bound").is_ipv4());
    drop(lease);
    assert_error(any.try_acquire(), ErrorKind::Exhausted, &["1 bound"]);
    drop(listener);
    let only_v6 = any.clone().host(v6).try_acquire();
    assert_error(only_v6, ErrorKind::Probe, &["[::1]", "not supported"]);
    // Tried in the order of addresses: IPv4 first.
    let lease = any.host(v6).host(v4).try_acquire();
    drop(lease.expect("free on every host there is"));
    parent.say("done");
}

#[test]
fn no_ipv6_on_this_system() {
    let (dir, block) = (lock_dir(), Block::new(1));
    if !have_strace() {
        return;
    }
    let binary = env::current_exe().expect("this test binary");
    let trace = dir.path().join("trace");
    let strace = ["strace", "-f", "-o", text(&trace)];
    let arguments = [text(dir.path()), &block.first().to_string()];
    let fail = "inject=socket:error=EAFNOSUPPORT:when=1+2";
    let prefix = [&strace[..], &["-e", "trace=socket", "-e", fail]].concat();
    Peer::start_command(command(&prefix, &binary, "no IPv6", &arguments)).finish_well();
}
