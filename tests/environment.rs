//! The ports that the environment names.

#[cfg(unix)]
use std::path::Path;
use std::{env, ffi::OsStr, fs};

use portlock::{FreePort, PortSet};
use portlock_testkit::{Block, NOT_FOUND, Parent, Peer, command, lock_dir, run_child, text};

#[test]
fn child() {
    run_child(&[("server ports", server_ports)]);
}

fn server_ports(parent: &Parent) {
    parent.say(match PortSet::server_ports() {
        Ok(ports) => ports.to_string(),
        Err(error) => format!("{:?} {error}", error.kind()).replace('\n', " "),
    });
    let leased = FreePort::builder()
        .lock_dir(parent.argument::<String>(0))
        .try_acquire();
    parent.say(match leased.map(|port| port.port()) {
        Ok(port) => port.to_string(),
        Err(error) => format!("{:?}", error.kind()),
    });
}

#[test]
fn the_environment_determines_the_ports_or_an_error() {
    let (dir, block) = (lock_dir(), Block::new(3));
    let binary = env::current_exe().expect("this test binary");
    let said = |variables: &[(&str, &OsStr)]| {
        let mut command = command(&[], &binary, "server ports", &[text(dir.path())]);
        command
            .env_remove("PORTLOCK_PORTS")
            .env_remove("PORTLOCK_PORTS_FILE")
            .envs(variables.iter().copied());
        let peer = Peer::start_command(command);
        (peer.hear(), peer.hear())
    };
    let (variable, file_variable) = ("PORTLOCK_PORTS", "PORTLOCK_PORTS_FILE");
    let set = format!(
        "{}-{},!{}",
        block.first(),
        block.first() + 2,
        block.first() + 1
    );
    let read = format!("{},{}", block.first(), block.first() + 2);
    let file = dir.path().join("ports");
    fs::write(
        &file,
        format!("# ours\n{}\n\n{}\n", block.first(), block.first() + 2),
    )
    .expect("our own directory");

    for variables in [
        &[(variable, OsStr::new(&set))][..],
        &[(file_variable, file.as_os_str())],
        &[
            (variable, OsStr::new("")),
            (file_variable, file.as_os_str()),
        ],
        &[
            (variable, OsStr::new(&set)),
            (file_variable, OsStr::new("/nowhere")),
        ],
    ] {
        let (ports, leased) = said(variables);
        assert_eq!(ports, read, "{variables:?}");
        assert!(read.split(',').any(|port| port == leased), "{leased}");
    }

    // A byte order mark, as editors on Windows write it, and a file of the maximum length.
    let marked = dir.path().join("marked");
    fs::write(&marked, format!("\u{feff}{read}\r\n")).expect("our own directory");
    let longest = dir.path().join("longest");
    fs::write(
        &longest,
        format!("{read}{}", " ".repeat((1 << 20) - read.len())),
    )
    .expect("our own directory");
    for file in [&marked, &longest] {
        let (ports, leased) = said(&[(file_variable, file.as_os_str())]);
        assert_eq!(ports, read, "{file:?}");
        assert!(read.split(',').any(|port| port == leased), "{leased}");
    }
    let long = dir.path().join("long");
    fs::write(
        &long,
        format!("{read}{}", " ".repeat((1 << 20) + 1 - read.len())),
    )
    .expect("our own directory");
    // As PowerShell on Windows writes it.
    let utf16 = dir.path().join("utf16");
    fs::write(&utf16, b"\xff\xfe4\x000\x000\x000\x00").expect("our own directory");

    fs::write(&file, "4000\n40x0\n").expect("our own directory");
    let quoted = format!("{file:?}");
    for (name, value, parts) in [
        (
            variable,
            OsStr::new("40x0"),
            &["PORTLOCK_PORTS=", "40x0", "column 1"][..],
        ),
        (
            variable,
            OsStr::new(" "),
            &["PORTLOCK_PORTS=", "names no port"],
        ),
        (variable, OsStr::new("0"), &["\"0\""]),
        #[cfg(unix)]
        (
            variable,
            std::os::unix::ffi::OsStrExt::from_bytes(b"4000\xff"),
            &["not UTF-8"],
        ),
        (
            file_variable,
            OsStr::new("/nowhere"),
            &["/nowhere", NOT_FOUND],
        ),
        (
            file_variable,
            file.as_os_str(),
            &[&quoted, "40x0", "line 2"],
        ),
        (
            file_variable,
            OsStr::new("/"),
            &["PORTLOCK_PORTS_FILE=", "regular file", "directory"],
        ),
        (
            file_variable,
            utf16.as_os_str(),
            &["PORTLOCK_PORTS_FILE=", "not UTF-8"],
        ),
        (
            file_variable,
            long.as_os_str(),
            &["PORTLOCK_PORTS_FILE=", "1 MiB", "longer"],
        ),
    ] {
        let (message, leased) = said(&[(name, value)]);
        assert!(message.starts_with("InvalidPorts "), "{message}");
        for part in parts {
            assert!(message.contains(part), "no {part:?} in: {message}");
        }
        assert_eq!(leased, "InvalidPorts", "never a silent default");
    }
}

// Devices and FIFOs exist only on Unix.
#[cfg(unix)]
#[test]
fn a_file_of_ports_that_never_ends_or_blocks_is_refused() {
    let dir = lock_dir();
    let binary = env::current_exe().expect("this test binary");
    let fifo = dir.path().join("fifo");
    let mut mkfifo = std::process::Command::new("mkfifo");
    assert!(mkfifo.arg(&fifo).status().expect("POSIX has it").success());
    for path in [Path::new("/dev/zero"), &fifo] {
        let mut command = command(&[], &binary, "server ports", &[text(dir.path())]);
        command
            .env_remove("PORTLOCK_PORTS")
            .env("PORTLOCK_PORTS_FILE", path);
        let peer = Peer::start_command(command);
        let message = peer.hear();
        let start = format!("InvalidPorts PORTLOCK_PORTS_FILE={path:?}: ");
        assert!(message.starts_with(&start), "{message}");
        assert!(message.contains("must name a regular file"), "{message}");
        assert_eq!(peer.hear(), "InvalidPorts");
    }
}
