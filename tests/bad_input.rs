//! Bad input and a failing system: each leads immediately to a specific kind of error that names
//! the path or port, and leaves nothing behind.

mod error;
// Modes, users, mounts, limits, strace.
#[cfg(target_os = "linux")]
#[path = "bad_input/linux.rs"]
mod linux;

use std::{collections::HashSet, env, fs, fs::File, net::IpAddr, ops::RangeInclusive, path::Path};

use error::assert_error;
use portlock::{
    BindFreePort, Builder, ErrorKind, FreePort, PortSet, compat::portpicker::is_port_free,
};
use portlock_testkit::{
    Block, NOT_FOUND, Parent, Peer, Role, bind_strictly, command, lock_dir, run_child, text,
};

#[test]
fn child() {
    let roles = [("environment", environment as Role)];
    #[cfg(target_os = "linux")]
    let roles = [&roles[..], &linux::ROLES].concat();
    run_child(&roles);
}

fn builder(dir: &Path, ports: RangeInclusive<u16>) -> Builder {
    FreePort::builder().ports(ports).lock_dir(dir)
}

// ---------------------------------------------------------------------------
// Ranges.

#[test]
#[expect(clippy::reversed_empty_ranges, reason = "bad input is the point")]
fn every_call_refuses_sets_without_a_port_in_the_same_way() {
    let sets: [PortSet; 8] = [
        (6000..=4000).into(),
        (6000..4000).into(),
        (4000..4000).into(),
        (0..=0).into(),
        (..1).into(),
        0.into(),
        [].into(),
        "".parse().expect("the empty set"),
    ];
    let mut messages = HashSet::new();
    let mut refused = |error: portlock::Error| {
        assert_eq!(error.kind(), ErrorKind::InvalidPorts);
        messages.insert(error.to_string());
    };
    for set in &sets {
        refused(FreePort::new(set).expect_err("no port"));
        refused(FreePort::try_new(set).expect_err("no port"));
        refused(FreePort::listen(set).expect_err("no port"));
        refused(BindFreePort::new(set).expect_err("no port"));
        let builder = Builder::new().ports(set);
        refused(builder.acquire().expect_err("no port"));
        refused(builder.try_acquire().expect_err("no port"));
        refused(builder.listen().expect_err("no port"));
        refused(builder.check().expect_err("no port"));
        refused(builder.wait_until_free().expect_err("no port"));
        let pid = std::process::id();
        refused(builder.acquire_for(pid).expect_err("no port"));
        refused(builder.acquire_many(1).expect_err("no port"));
        refused(builder.acquire_block(1).expect_err("no port"));
        refused(builder.acquire_offsets(&[0]).expect_err("no port"));
        refused(builder.listen_many(1).expect_err("no port"));
    }
    refused(FreePort::new(6000..=4000).expect_err("no port"));
    refused(FreePort::try_new(0).expect_err("no port"));
    refused(BindFreePort::new(9..9).expect_err("no port"));
    refused(is_port_free(0).expect_err("no port"));
    let messages: Vec<String> = messages.into_iter().collect();
    assert_eq!(
        messages,
        [
            "no ports to choose from: an empty set, a reversed range or port 0 alone has no port \
             from 1 to 65535"
        ]
    );
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
fn the_error_of_an_exhausted_range_names_holders_and_duration() {
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
fn exhaustion_has_the_holders_that_its_message_names() {
    let (dir, block) = (lock_dir(), Block::new(2));
    let builder = builder(dir.path(), block.ports.clone());
    let leases = builder.acquire_many(2).expect("free");
    let error = builder.try_acquire().expect_err("leased");
    let ports: Vec<u16> = error.holders().iter().map(|(port, _)| *port).collect();
    assert_eq!(ports, block.ports.clone().collect::<Vec<_>>());
    let pid = format!("pid {} ", std::process::id());
    for (port, holder) in error.holders() {
        let holder = holder.as_deref().expect("we wrote it");
        assert!(holder.starts_with(&pid), "{holder}");
        assert!(error.to_string().contains(&format!("{port} by {holder}")));
    }
    drop(leases);
    let bound = bind_strictly(block.first()).expect("free");
    let error = builder.clone().ports(block.first()).try_acquire();
    assert!(error.expect_err("bound").holders().is_empty());
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
    let hosts: [IpAddr; 2] = ["127.0.0.1", "::1"].map(|host| host.parse().expect("valid"));
    let builder = builder(dir.path(), block.ports.clone())
        .host(hosts[0])
        .host(hosts[1]);
    assert_error(builder.listen(), ErrorKind::Unsupported, &["::1"]);
    builder
        .acquire()
        .map(drop)
        .expect("a lease needs no listener");
}

// ---------------------------------------------------------------------------
// The lock directory.

#[test]
fn paths_that_are_not_lock_directories() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let acquire = |path: &Path| builder(path, block.ports.clone()).acquire();
    let kind = ErrorKind::LockDir;

    let missing = dir.path().join("missing");
    assert_error(acquire(&missing), kind, &[text(&missing), NOT_FOUND]);
    assert!(!missing.exists(), "a named directory is not created");

    let file = dir.path().join("file");
    File::create(&file).expect("our own directory");
    assert_error(acquire(&file), kind, &[text(&file), "not a directory"]);
    let below = file.join("below");
    let none = if cfg!(windows) {
        "os error"
    } else {
        "Not a directory"
    };
    assert_error(acquire(&below), kind, &[text(&below), none]);

    // On Windows, creating one takes a privilege.
    #[cfg(unix)]
    {
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).expect("our own directory");
        assert_error(acquire(&link), kind, &[text(&link), "symbolic link"]);
        assert_error(acquire(&link.join("")), kind, &["symbolic link"]);
    }

    for path in [&missing, &file, &below] {
        let error = acquire(path).expect_err("none");
        assert_eq!(error.path(), Some(&**path), "{error}");
    }
    // On Windows, a directory and a file that is being removed cause the same error.
    if cfg!(unix) {
        let lock_file = dir.path().join(block.first().to_string());
        fs::create_dir(&lock_file).expect("our own directory");
        let error = acquire(dir.path()).expect_err("it is not a file");
        assert_eq!(error.kind(), ErrorKind::Lock);
        assert_eq!(error.path(), Some(&*lock_file), "{error}");
    }
    assert_eq!(FreePort::try_new(0).expect_err("no port").path(), None);

    assert_error(acquire(Path::new("")), kind, &["lock directory"]);
    assert_error(acquire(Path::new("\0")), kind, &["lock directory"]);
}

/// Arguments: port. Leases it with the settings from the environment.
fn environment(parent: &Parent) {
    let port: u16 = parent.argument(0);
    let outcome = match FreePort::try_new(port..=port).map(drop) {
        Ok(()) => "leased".to_owned(),
        Err(error) => format!("{:?} {error}", error.kind()),
    };
    parent.say(outcome);
}

/// Returns the report of a process that leases `port` with these variables in its environment.
fn lease_with(port: &str, variables: &[(&str, &Path)]) -> String {
    let binary = env::current_exe().expect("this test binary");
    let mut command = command(&[], &binary, "environment", &[port]);
    command
        .env_remove("PORTLOCK_DIR")
        .envs(variables.iter().copied());
    Peer::start_command(command).hear()
}

#[test]
fn the_environment_names_the_directory() {
    let (dir, block) = (lock_dir(), Block::new(1));
    let port = block.first().to_string();
    let said = |variables: &[(&str, &Path)]| lease_with(&port, variables);
    let named = dir.path().join("named");
    fs::create_dir(&named).expect("our own directory");
    let missing = dir.path().join("missing");
    let variable = "PORTLOCK_DIR";

    assert_eq!(said(&[(variable, &named)]), "leased");
    assert!(named.join(&port).exists());

    let relative = said(&[(variable, Path::new("locks"))]);
    assert!(
        relative.starts_with("LockDir PORTLOCK_DIR=locks"),
        "{relative}"
    );
    let absent = said(&[(variable, &missing)]);
    assert!(absent.starts_with("LockDir"), "{absent}");
    assert!(absent.contains(text(&missing)), "{absent}");
}
