//! Linux-specific cases: modes and users, and a failing system.

use std::{
    env, fs,
    fs::File,
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use portlock::{BindFreePort, ErrorKind, Protocol};
use portlock_testkit::{
    Block, Parent, Peer, Role, command, give_to_ordinary_user, have_strace, lock_dir,
    open_descriptors, set_mode, start_in_namespace, start_unprivileged, text,
};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::{builder, error::assert_error};

/// The roles of this test's children.
pub(crate) const ROLES: [(&str, Role); 8] = [
    ("fill the file system", fill_the_file_system),
    ("read-only file system", read_only_file_system),
    ("run out of descriptors", run_out_of_descriptors),
    ("privileged ports", privileged_ports),
    ("read-only directory", read_only_directory),
    ("no file size", no_file_size),
    ("no IPv6", no_ipv6),
    ("IPv6 forbidden", ipv6_forbidden),
];

#[test]
fn private_lock_files_are_private() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = builder(dir.path(), block.ports.clone()).acquire();
    let port = port.expect("free");
    let file = dir.path().join(port.to_string());
    let made = fs::metadata(&file).expect("the lock file").permissions();
    assert_eq!(made.mode() & 0o7777, 0o1600);
    assert_eq!(fs::read_dir(dir.path()).expect("ours").count(), 1);
    port.release().expect("released");
    assert!(file.exists(), "release leaves the file");
}

#[test]
fn a_directory_in_which_no_file_can_be_created_is_not_reported_as_removed() {
    let block = Block::new(1);
    let outcome = builder(Path::new("/proc"), block.ports.clone()).try_acquire();
    let parts = ["cannot create lock file /proc/", "set PORTLOCK_DIR"];
    assert_error(outcome, ErrorKind::Lock, &parts);
}

// ---------------------------------------------------------------------------
// A failing system. These tests need a separate process, and some need root.

/// Arguments: lock directory, on a separate file system, and port.
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
            fs::remove_file(&file).expect("created before");
            let full = (0..1 << 20).find(|i| File::create(filler.join(i.to_string())).is_err());
            assert!(full.is_some());
        }
        let operation = if name == "space" {
            "write owner record"
        } else {
            "create"
        };
        assert_error(
            acquire(),
            ErrorKind::Lock,
            &[operation, text(&file), "No space", "set PORTLOCK_DIR"],
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
            &[text(&file), "Read-only file system", "set PORTLOCK_DIR"],
        );
    }
    parent.say("done");
}

#[test]
fn a_read_only_file_system() {
    let (dir, block) = (lock_dir(), Block::new(2));
    let (dir, port) = (text(dir.path()), block.first().to_string());
    // One lock file exists, the other is missing.
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
    set_mode(dir.path(), 0o500);
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
        eprintln!("skipped: every user may bind every port here");
    } else {
        let ports = first - 10..=first - 1;
        let named = format!("{}-{}", ports.start(), ports.end());
        // While no lock files exist.
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            assert_error(
                builder(&dir, ports.clone()).protocol(protocol).check(),
                ErrorKind::PermissionDenied,
                &[&named],
            );
        }
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
        // If a permitted port is among them, that port is found.
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
    // First when the directory has to be opened, then when it is open.
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
            // EMFILE: its text depends on the C library.
            assert!(message.contains("(os error 24)"), "{message}");
            let named = match kind {
                ErrorKind::LockDir => text(&dir),
                ErrorKind::Lock => text(&file),
                _ => &port.to_string(),
            };
            assert!(message.contains(named), "{message}");
            seen.push(kind);

            let before = open_descriptors();
            drop(builder.try_acquire().expect("the failure took nothing"));
            // The directory stays open after the first success.
            assert!(open_descriptors() <= before + 1);
        }
    }
    let open = open_descriptors();
    for _ in 0..100 {
        drop(builder.try_acquire().expect("free"));
    }
    assert_eq!(open_descriptors(), open);
    // No descriptor for the directory; then, with the directory open, none for the socket; then
    // none for the lock file.
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

/// Arguments: lock directory and port. This process may not write to files.
fn no_file_size(parent: &Parent) {
    let dir = PathBuf::from(parent.argument::<String>(0));
    let port: u16 = parent.argument(1);
    let file = dir.join(port.to_string());
    let builder = builder(&dir, port..=port);
    // First when the file has to be created, then when it exists.
    for _ in 0..2 {
        let named = [text(&file), "RLIMIT_FSIZE is 0 bytes", "ulimit -f"];
        assert_error(builder.try_acquire(), ErrorKind::Lock, &named);
    }
    let mut limit = getrlimit(Resource::Fsize);
    limit.current = Some(256);
    setrlimit(Resource::Fsize, limit).expect("it was a soft limit");
    let lease = builder.try_acquire().expect("room for the record");
    // The record of a delegated lease is longer.
    let own = std::process::id();
    let named = [text(&file), "RLIMIT_FSIZE is 256 bytes"];
    assert_error(lease.delegate_to(own), ErrorKind::Lock, &named);
    parent.say("done");
}

#[test]
fn a_limit_on_file_sizes_is_an_error_and_kills_no_process() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let binary = env::current_exe().expect("this test binary");
    let limit = ["sh", "-c", "ulimit -S -f 0 && exec \"$0\" \"$@\""];
    let arguments = [text(dir.path()), &block.first().to_string()];
    let command = command(&limit, &binary, "no file size", &arguments);
    Peer::start_command(command).finish_well();
}

/// Arguments: lock directory and port. Every other socket that it creates, starting with the
/// first, is an IPv6 socket and fails.
fn no_ipv6(parent: &Parent) {
    let dir = PathBuf::from(parent.argument::<String>(0));
    let port: u16 = parent.argument(1);
    let v6: IpAddr = "::1".parse().expect("an address");
    let v4: IpAddr = "127.0.0.1".parse().expect("an address");
    let any = builder(&dir, port..=port);

    let lease = any.try_acquire();
    drop(lease.expect("free on every existing address"));
    let (lease, listener) = any.listen().expect("free");
    assert!(listener.local_addr().expect("bound").is_ipv4());
    drop(lease);
    assert_error(any.try_acquire(), ErrorKind::Exhausted, &["bound by pid "]);
    drop(listener);
    let only_v6 = any.clone().host(v6).try_acquire();
    assert_error(only_v6, ErrorKind::Probe, &["[::1]", "not supported"]);
    // Tried in the order of addresses: IPv4 first.
    let lease = any.host(v6).host(v4).try_acquire();
    drop(lease.expect("free on every existing host"));
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

/// Arguments: lock directory and port. Of the three sockets that it creates, the first and the
/// third are forbidden.
fn ipv6_forbidden(parent: &Parent) {
    let dir = PathBuf::from(parent.argument::<String>(0));
    let port: u16 = parent.argument(1);
    let any = builder(&dir, port..=port);
    let v4: IpAddr = "127.0.0.1".parse().expect("an address");
    let address = format!("[::]:{port}");
    let named = [&address, "IPv6", "policy", "--host", "Builder::host"];
    assert_error(any.try_acquire(), ErrorKind::Probe, &named);
    let lease = any.clone().host(v4).try_acquire();
    drop(lease.expect("the message's advice works"));
    let address = format!("127.0.0.1:{port}");
    let named = [&address, "IPv4", "policy"];
    assert_error(any.host(v4).try_acquire(), ErrorKind::Probe, &named);
    parent.say("done");
}

#[test]
fn a_policy_that_forbids_ipv6_is_reported_with_a_workaround() {
    let (dir, block) = (lock_dir(), Block::new(1));
    if !have_strace() {
        return;
    }
    let binary = env::current_exe().expect("this test binary");
    let trace = dir.path().join("trace");
    let arguments = [text(dir.path()), &block.first().to_string()];
    for error in ["EACCES", "EPERM"] {
        let prefix = ["strace", "-f", "-o", text(&trace), "-e", "trace=socket"];
        let when = format!("inject=socket:error={error}:when=1+2");
        let prefix = [&prefix[..], &["-e", &when]].concat();
        Peer::start_command(command(&prefix, &binary, "IPv6 forbidden", &arguments)).finish_well();
    }
}
