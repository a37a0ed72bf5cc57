//! The system's settings that determine the ports for servers: long, unusual, hidden, or not
//! readable.
//!
//! The settings and the ways to hide them exist only on Linux.

#![cfg(target_os = "linux")]

use std::{
    fs::{self, File},
    io::Read as _,
    sync::Mutex,
};

use portlock::{PortSet, ephemeral_port_range};
use portlock_testkit::{
    Parent, Peer, am_root, command, have_strace, lock_dir, open_copy, run_child,
    start_in_namespace, text,
};

const DIR: &str = "/proc/sys/net/ipv4";
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
const EPHEMERAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const UNPRIVILEGED: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

#[test]
fn child() {
    run_child(&[("reserved", reserved), ("settings", settings)]);
}

// ---------------------------------------------------------------------------
// Lists of reserved ports.

/// Arguments: none. The child has a separate network namespace.
fn reserved(parent: &Parent) {
    let server_ports = || PortSet::server_ports().expect("settings that can be read");
    let every_second: Vec<String> = (1..=u16::MAX).step_by(2).map(|p| p.to_string()).collect();
    let pairs = (1..u16::MAX - 1).step_by(3);
    let pairs: Vec<String> = pairs.map(|p| format!("{p}-{}", p + 1)).collect();
    let unreserved = server_ports();
    for list in [
        // 63 bytes, of which a first read of 32 bytes would return half.
        "2000-2100,3000-3100,4000-4100,5000-5100,8080,9090,30000-32767",
        "0-1023",
        "0",
        "0,2000",
        "0-2000,2048",
        &every_second.join(","),
        &pairs.join(","),
        "8080",
    ] {
        fs::write(RESERVED, list).expect("our own namespace");
        let mut kernels = vec![0; 1 << 20];
        let mut file = File::open(RESERVED).expect("it was written to");
        let len = file.read(&mut kernels).expect("procfs");
        assert_eq!(len, list.len() + 1, "the kernel has taken all of the list");

        let bounds = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let port = |text: &str| text.parse::<u16>().expect("a port");
            port(first)..=port(last)
        };
        let reserved: PortSet = list.split(',').flat_map(bounds).collect();
        assert!(
            server_ports() == unreserved.difference(&reserved),
            "{list:.60}"
        );
    }
    // An empty list is one line.
    fs::write(RESERVED, "\n").expect("our own namespace");
    assert!(server_ports() == unreserved);
    parent.say("done");
}

#[test]
fn a_list_of_reserved_ports_is_read_whole_and_may_have_port_0() {
    if let Some(peer) = start_in_namespace("--net", "true", "reserved", &[]) {
        peer.finish_well();
    }
}

// ---------------------------------------------------------------------------
// Settings that are hidden or cannot be read.

/// Collects the warnings of this process.
struct Warnings(Mutex<Vec<String>>);

static WARNINGS: Warnings = Warnings(Mutex::new(Vec::new()));

impl log::Log for Warnings {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let mut warnings = self.0.lock().expect("no panic");
            warnings.push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// Reports the ephemeral range, the ports for servers, and each warning or error; then "done".
fn settings(parent: &Parent) {
    log::set_logger(&WARNINGS).expect("only this one");
    log::set_max_level(log::LevelFilter::Trace);
    // Twice: a warning is logged once.
    for _ in 0..2 {
        parent.say(match ephemeral_port_range() {
            Ok(range) => format!("{range:?}"),
            Err(error) => format!("{:?} {error}", error.kind()),
        });
        parent.say(match PortSet::server_ports() {
            Ok(ports) => ports.to_string(),
            Err(error) => format!("{:?} {error}", error.kind()),
        });
    }
    for warning in WARNINGS.0.lock().expect("no panic").iter() {
        parent.say(warning);
    }
    parent.say("done");
}

/// A child's report about the settings.
struct Said {
    ephemeral: String,
    ports: String,
    warnings: Vec<String>,
}

impl Said {
    fn by(peer: Peer) -> Self {
        let (ephemeral, ports) = (peer.hear(), peer.hear());
        assert_eq!(peer.hear(), ephemeral);
        assert_eq!(peer.hear(), ports);
        let mut warnings = Vec::new();
        loop {
            match peer.hear() {
                line if line == "done" => break,
                line => warnings.push(line),
            }
        }
        assert!(peer.finish().success());
        Self {
            ephemeral,
            ports,
            warnings,
        }
    }

    #[track_caller]
    fn assert_defaults(&self) {
        assert_eq!(self.ephemeral, "32768..=60999");
        assert!(self.ports.starts_with("1024-1718,"), "{}", self.ports);
        assert!(self.ports.ends_with("-32767,61000-65535"), "{}", self.ports);
    }

    #[track_caller]
    fn assert_one_warning_of(&self, path: &str, why: &str) {
        let of_path = self.warnings.iter().filter(|text| text.contains(path));
        let of_path: Vec<&String> = of_path.collect();
        assert_eq!(of_path.len(), 1, "{path}: {:?}", self.warnings);
        assert!(of_path[0].contains(why), "{}", of_path[0]);
    }
}

#[test]
fn missing_or_empty_settings_have_the_kernels_defaults() {
    // Each setting differs from its default, and is then hidden.
    let change = format!("echo 20000 29999 > {EPHEMERAL} && echo 8080 > {RESERVED}");
    let empty = [EPHEMERAL, RESERVED, UNPRIVILEGED].map(|path| format!("mount --bind {{}} {path}"));
    let (dir, lines) = (lock_dir(), lock_dir());
    let [nothing, line] = [dir.path().join("nothing"), lines.path().join("line")];
    fs::write(&nothing, "").expect("our own directory");
    fs::write(&line, "\n").expect("our own directory");
    for (hide, why) in [
        (format!("mount -t tmpfs none {DIR}"), "No such file"),
        (empty.join(" && ").replace("{}", text(&nothing)), "empty"),
    ] {
        let script = format!("{change} && {hide}");
        if let Some(peer) = start_in_namespace("--net --mount", &script, "settings", &[]) {
            let said = Said::by(peer);
            said.assert_defaults();
            for path in [EPHEMERAL, RESERVED] {
                said.assert_one_warning_of(path, why);
            }
        }
    }
    // An empty line is an empty list, but not a number.
    let hide = empty[..2].join(" && ").replace("{}", text(&line));
    let script = format!("{change} && {hide}");
    if let Some(peer) = start_in_namespace("--net --mount", &script, "settings", &[]) {
        let said = Said::by(peer);
        said.assert_defaults();
        said.assert_one_warning_of(EPHEMERAL, "empty");
        assert_eq!(said.warnings.len(), 1, "{:?}", said.warnings);
    }
}

#[test]
fn the_first_port_for_ordinary_users_has_a_default_too() {
    if !am_root() {
        eprintln!("skipped: only root can prepare the namespace of another user");
        return;
    }
    let (_dir, copy) = open_copy();
    for (hide, first) in [
        ("true", 3000),
        (&*format!("mount -t tmpfs none {DIR}"), 1024),
    ] {
        let script = format!("echo 3000 > {UNPRIVILEGED} && {hide} && exec \"$0\" \"$@\"");
        let prefix = [
            "unshare",
            "--net",
            "--mount",
            "sh",
            "-c",
            &script,
            "setpriv",
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
        ];
        let said = Said::by(Peer::start_command(command(
            &prefix,
            &copy,
            "settings",
            &[],
        )));
        assert!(
            said.ports.starts_with(&format!("{first}-")),
            "{}",
            said.ports
        );
        if first == 1024 {
            said.assert_one_warning_of(UNPRIVILEGED, "No such file");
        }
    }
}

#[test]
fn unreadable_settings_have_the_kernels_defaults_and_other_errors_end_the_call() {
    if !have_strace() {
        return;
    }
    let binary = std::env::current_exe().expect("this test binary");
    let dir = lock_dir();
    let said = |path: &str, fault: &str| {
        let trace = dir.path().join("trace");
        let inject = format!("inject={fault}");
        let strace = [
            "strace",
            "-f",
            "-o",
            text(&trace),
            "-P",
            path,
            "-e",
            &inject,
        ];
        Said::by(Peer::start_command(command(
            &strace,
            &binary,
            "settings",
            &[],
        )))
    };
    for (error, why) in [
        ("EACCES", "Permission denied"),
        ("EPERM", "not permitted"),
        ("ENOENT", "No such file"),
    ] {
        for path in [EPHEMERAL, RESERVED] {
            let said = said(path, &format!("openat:error={error}"));
            said.assert_one_warning_of(path, why);
            assert_eq!(said.warnings.len(), 1, "{:?}", said.warnings);
            assert!(said.ports.contains("-1718,"), "{}", said.ports);
        }
    }
    for fault in ["openat:error=EMFILE", "pread64:error=EIO"] {
        let said = said(RESERVED, fault);
        let expected = format!("Unsupported cannot read {RESERVED}: ");
        assert!(said.ports.starts_with(&expected), "{}", said.ports);
        assert!(said.warnings.is_empty(), "{:?}", said.warnings);
        assert_eq!(said.ephemeral, current());
    }
}

/// Returns the ephemeral range on this system.
fn current() -> String {
    format!("{:?}", ephemeral_port_range().expect("it can be read"))
}
