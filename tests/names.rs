//! Ports that are reserved by name.
//!
//! Everything is done in children, whose state directory is the test's own.

#![cfg(unix)]

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use portlock::{Builder, Error, FreePort, LockDir, PortSet, Reservation};
use portlock_testkit::{
    Block, LONG, Parent, Peer, command, listen_strictly, lock_dir, run_child, set, stress, text,
};
use rand::{RngExt as _, rngs::SmallRng};
use tempfile::TempDir;

#[test]
fn child() {
    run_child(&[("caller", caller), ("namer", namer), ("taker", taker)]);
}

// ---------------------------------------------------------------------------
// One test's directories and callers.

struct Project {
    locks: TempDir,
    state: TempDir,
    /// The parent of the root.
    parent: TempDir,
    root: PathBuf,
    ports: Block,
}

impl Project {
    fn new(ports: u16) -> Self {
        let parent = lock_dir();
        let root = parent.path().join("shop");
        fs::create_dir(&root).expect("our own");
        let root = fs::canonicalize(root).expect("our own");
        Self {
            locks: lock_dir(),
            state: lock_dir(),
            parent,
            root,
            ports: Block::new(ports),
        }
    }

    fn command(&self, role: &str, arguments: &[&str]) -> Command {
        let binary = env::current_exe().expect("this test binary");
        let ports = set(self.ports.ports.clone());
        let own = [text(self.locks.path()), text(&self.root), &ports];
        let mut command = command(&[], &binary, role, &[&own[..], arguments].concat());
        command
            .env("XDG_STATE_HOME", self.state.path())
            .env("HOME", self.state.path());
        command
    }

    fn caller(&self) -> Peer {
        Peer::start_command(self.command("caller", &[]))
    }

    /// A caller that has no state directory.
    fn homeless_caller(&self) -> Peer {
        let mut command = self.command("caller", &[]);
        let none = self.parent.path().join("none").join("none");
        fs::write(self.parent.path().join("none"), "a file").expect("our own");
        command.env("XDG_STATE_HOME", &none).env("HOME", &none);
        Peer::start_command(command)
    }

    fn lock_file(&self, port: &str) -> PathBuf {
        self.locks.path().join(port)
    }

    fn reboot(&self) {
        for entry in fs::read_dir(self.locks.path()).expect("our own") {
            fs::remove_file(entry.expect("our own").path()).expect("our own");
        }
    }

    fn copies(&self) -> usize {
        let all = self.state.path().join("portlock").join("reservations");
        let dirs = fs::read_dir(all).into_iter().flatten().flatten();
        dirs.flat_map(|dir| fs::read_dir(dir.path()).into_iter().flatten())
            .filter(|file| {
                let name = file.as_ref().expect("our own").file_name();
                // What a process that was killed was about to write is no copy.
                name != "lock-dir" && !text(name.as_ref()).starts_with(".new.")
            })
            .count()
    }
}

fn said(error: &Error) -> String {
    format!("{:?} {error}", error.kind()).replace('\n', " ")
}

fn builder(parent: &Parent) -> Builder {
    let ports: PortSet = parent.argument::<String>(2).parse().expect("ports");
    FreePort::builder()
        .lock_dir(parent.argument::<PathBuf>(0))
        .root(parent.argument::<PathBuf>(1))
        .ports(ports)
        .timeout(LONG)
}

/// Arguments: lock directory, root, ports. Does what it is told, a line each.
fn caller(parent: &Parent) {
    let any = builder(parent);
    let locks = || LockDir::open(parent.argument::<PathBuf>(0)).expect("our own");
    let root = parent.argument::<PathBuf>(1);
    let mut leases = BTreeMap::new();
    loop {
        let line = parent.hear();
        let (what, argument) = line.split_once(' ').unwrap_or((&line, ""));
        let named = any.clone().name(argument);
        let mut keep = |lease: portlock::Result<FreePort>| match lease {
            Ok(lease) => {
                let port = lease.port();
                leases.insert(port, lease);
                port.to_string()
            }
            Err(error) => said(&error),
        };
        let answer = match what {
            "reserve" => named
                .reserve()
                .map(|reservation| reservation.port.to_string()),
            "lease" => Ok(keep(named.acquire())),
            "try" => Ok(keep(named.try_acquire())),
            "or-any" => Ok(keep(named.or_any().acquire())),
            "stopped" => Ok(keep(
                named.or_any().on_wait(|_| ControlFlow::Break(())).acquire(),
            )),
            "delegate" => named
                .acquire_for(std::process::id())
                .map(|port| port.to_string()),
            "check" => named.check().map(|()| "free".to_owned()),
            "port" => {
                let port: u16 = argument.parse().expect("a port");
                Ok(keep(any.clone().ports(port).try_acquire()))
            }
            "any" => Ok(keep(any.try_acquire())),
            "check-port" => {
                let port: u16 = argument.parse().expect("a port");
                any.clone().ports(port).check().map(|()| "free".to_owned())
            }
            "look" => locks()
                .reservation(argument, &root)
                .map(|found| match found {
                    Some(found) => format!("{} {:?}", found.port, found.state),
                    None => "none".to_owned(),
                }),
            "unreserve" => locks().reservation(argument, &root).and_then(|found| {
                locks().unreserve(&found.expect("it is reserved"))?;
                Ok("done".to_owned())
            }),
            "list" => locks().reservations().map(|all| {
                let one = |found: &Reservation| {
                    format!("{} {} {:?}", found.port, found.name, found.state)
                };
                all.iter().map(one).collect::<Vec<_>>().join(", ")
            }),
            "clean" => locks()
                .clean()
                .map(|done| format!("{} {}", done.removed, done.kept)),
            "clean-copies" => LockDir::clean_copies().map(|removed| removed.to_string()),
            "release" => locks()
                .release(argument.parse().expect("a port"))
                .map(|()| "done".to_owned()),
            "end" => {
                leases.clear();
                Ok("done".to_owned())
            }
            "bye" => {
                leases.clear();
                return;
            }
            other => panic!("unknown: {other}"),
        };
        parent.say(answer.unwrap_or_else(|error| said(&error)));
    }
}

#[track_caller]
fn assert_says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "no {part:?} in: {said}");
    }
}

#[track_caller]
fn port(said: String) -> String {
    assert!(said.parse::<u16>().is_ok(), "{said}");
    said
}

fn len(path: &Path) -> u64 {
    fs::metadata(path).expect("a lock file").len()
}

// ---------------------------------------------------------------------------
// What a reservation is.

#[test]
fn a_name_has_the_same_port_every_time_and_nobody_else_gets_it() {
    let project = Project::new(8);
    let (mut caller, mut other) = (project.caller(), project.caller());
    assert_eq!(caller.ask("look web"), "none");
    let web = port(caller.ask("reserve web"));
    let api = port(other.ask("reserve api"));
    assert_ne!(web, api);
    for _ in 0..3 {
        assert_eq!(caller.ask("lease web"), web);
        assert_eq!(caller.ask("end"), "done");
        assert_eq!(other.ask("lease web"), web);
        assert_eq!(other.ask("end"), "done");
    }
    assert_eq!(other.ask("look web"), format!("{web} Present"));
    let refused = other.ask(format!("port {web}"));
    let root = text(&project.root);
    assert_says(
        &refused,
        &[
            "Exhausted",
            "1 reserved",
            &format!("({web} as web in {root})"),
        ],
    );
    assert_says(
        &other.ask(format!("check-port {web}")),
        &["Exhausted", "1 reserved"],
    );
    assert_eq!(other.ask("check web"), "free");
    let mut taken = BTreeSet::new();
    for _ in 0..6 {
        taken.insert(port(other.ask("any")));
    }
    assert_eq!(taken.len(), 6);
    assert!(!taken.contains(&web) && !taken.contains(&api));
    assert_says(&other.ask("any"), &["6 leased", "2 reserved"]);
}

#[test]
fn every_end_of_a_lease_leaves_the_reservation() {
    let project = Project::new(4);
    let (mut other, mut caller) = (project.caller(), project.caller());
    let web = port(other.ask("reserve web"));
    let assert_reserved = |other: &mut Peer| {
        assert_says(&other.ask(format!("port {web}")), &["1 reserved"]);
        assert_eq!(other.ask("look web"), format!("{web} Present"));
    };
    // Released, killed, delegated, released by force, cleaned.
    assert_eq!(caller.ask("lease web"), web);
    assert_eq!(caller.ask("end"), "done");
    assert_reserved(&mut other);
    assert_eq!(caller.ask("lease web"), web);
    caller.kill();
    assert_reserved(&mut other);
    let mut caller = project.caller();
    assert_eq!(caller.ask("delegate web"), web);
    assert_says(&other.ask("try web"), &["Exhausted", "1 leased"]);
    assert_eq!(other.ask(format!("release {web}")), "done");
    assert_reserved(&mut other);
    assert_eq!(caller.ask("delegate web"), web);
    caller.kill();
    assert_reserved(&mut other);
    assert_eq!(other.ask("clean"), "0 1");
    assert_reserved(&mut other);
    assert_eq!(other.ask("lease web"), web);
}

#[test]
fn a_name_is_leased_by_one_after_the_other() {
    let project = Project::new(4);
    let (mut caller, mut other) = (project.caller(), project.caller());
    let web = port(caller.ask("lease web"));
    let said = other.ask("try web");
    let holder = format!("{web} by pid {}", caller.id());
    assert_says(&said, &["Exhausted", "reserved as web in", &holder]);
    // The old server still ends.
    other.say("lease web");
    assert_eq!(other.hear_within(Duration::from_millis(300)), None);
    assert_eq!(caller.ask("end"), "done");
    assert_eq!(other.hear(), web);
}

#[test]
fn a_reserved_port_that_is_bound_is_an_error_or_another_port() {
    let project = Project::new(4);
    let mut caller = project.caller();
    let web = port(caller.ask("reserve web"));
    let stranger = listen_strictly(web.parse().expect("a port")).expect("it is not bound");
    let start = Instant::now();
    let said = caller.ask("lease web");
    let headline = format!("port {web}, which is reserved as web in ");
    let server = format!(" s: bound by pid {} (", std::process::id());
    assert_says(&said, &["Exhausted", &headline, &server]);
    assert!(start.elapsed() < LONG / 2, "it fails soon");
    // A wait that is stopped leases no other port instead.
    assert_says(&caller.ask("stopped web"), &["Stopped", "1 bound"]);
    let other = port(caller.ask("or-any web"));
    assert_ne!(other, web);
    // A server that ends: its lease first, and its socket a moment later.
    caller.say("lease web");
    assert_eq!(caller.hear_within(Duration::from_millis(100)), None);
    drop(stranger);
    assert_eq!(caller.hear(), web);
}

#[test]
fn time_wait_does_not_keep_a_name_from_its_port() {
    let project = Project::new(4);
    let mut caller = project.caller();
    let web = port(caller.ask("lease web"));
    portlock_testkit::leave_in_time_wait(web.parse().expect("a port"));
    assert_eq!(caller.ask("end"), "done");
    assert_eq!(caller.ask("try web"), web);
}

#[test]
fn names_are_checked() {
    let project = Project::new(4);
    let mut caller = project.caller();
    let long = format!("reserve {}", "a".repeat(65));
    for bad in [
        "reserve",
        "reserve Web",
        "reserve 1a",
        "reserve a b",
        "reserve a.b",
        "reserve ä",
        &long,
    ] {
        assert_says(&caller.ask(bad), &["InvalidName", "is not a name"]);
    }
    port(caller.ask(format!("reserve {}", "a".repeat(64))));
    let db = port(caller.ask("reserve my-db"));
    assert_says(
        &caller.ask("reserve my_db"),
        &["InvalidName", "my-db", "MY_DB_PORT"],
    );
    assert_eq!(caller.ask("unreserve my-db"), "done");
    port(caller.ask("reserve my_db"));
    assert_ne!(db, "");
}

#[test]
fn a_root_must_be_a_directory_and_not_too_long() {
    let mut project = Project::new(4);
    let root = project.root.clone();
    project.root = root.join("missing");
    let said = project.caller().ask("reserve web");
    assert_says(&said, &["InvalidName", "missing", "No such file"]);
    fs::write(root.join("file"), "").expect("our own");
    project.root = root.join("file");
    assert_says(
        &project.caller().ask("reserve web"),
        &["InvalidName", "file"],
    );
    // Each of these bytes is three in a lock file, which has 4096.
    let mut deep = root;
    for _ in 0..4 {
        deep.push("ä".repeat(120));
    }
    fs::create_dir_all(&deep).expect("our own");
    project.root = deep.clone();
    port(project.caller().ask("reserve web"));
    deep.push("ä".repeat(120));
    fs::create_dir_all(&deep).expect("our own");
    project.root = deep;
    assert_says(
        &project.caller().ask("reserve web"),
        &["InvalidName", "too long"],
    );
}

#[test]
fn a_root_is_the_same_by_every_path() {
    let mut project = Project::new(4);
    let web = port(project.caller().ask("reserve web"));
    let link = project.parent.path().join("link");
    std::os::unix::fs::symlink(&project.root, &link).expect("our own");
    project.root = link;
    assert_eq!(project.caller().ask("reserve web"), web);
    project.root = project.root.join("..").join("shop");
    assert_eq!(project.caller().ask("reserve web"), web);
}

#[test]
fn a_removed_reservation_is_not_restored() {
    let project = Project::new(4);
    let (mut caller, mut other) = (project.caller(), project.caller());
    let web = port(caller.ask("lease web"));
    assert_eq!(project.copies(), 1);
    assert_says(
        &other.ask("unreserve web"),
        &["Lock", &format!("pid {}", caller.id())],
    );
    assert_eq!(caller.ask("end"), "done");
    assert_eq!(other.ask("unreserve web"), "done");
    assert_eq!((project.copies(), len(&project.lock_file(&web))), (0, 256));
    assert_eq!(other.ask(format!("port {web}")), web);
    assert_eq!(other.ask("end"), "done");
    project.reboot();
    assert_eq!(project.caller().ask(format!("port {web}")), web);
    // A delegated lease goes on.
    assert_eq!(caller.ask("delegate web"), web);
    assert_eq!(other.ask("unreserve web"), "done");
    assert_eq!(len(&project.lock_file(&web)), 512);
    assert_says(&other.ask(format!("port {web}")), &["1 leased"]);
}

#[test]
fn a_torn_line_reserves_the_port_until_it_is_removed() {
    let project = Project::new(4);
    let mut caller = project.caller();
    let web = port(caller.ask("reserve web"));
    let path = project.lock_file(&web);
    let whole = fs::read(&path).expect("a lock file");
    for torn in [512 + 1, 512 + 9, whole.len() - 1] {
        fs::write(&path, &whole[..torn]).expect("our own");
        assert_says(
            &caller.ask(format!("port {web}")),
            &["1 reserved", "unknown name"],
        );
        assert_eq!(caller.ask("clean"), "0 1");
        assert_eq!(caller.ask("list"), format!("{web}  Unreadable"));
    }
    fs::write(&path, &whole).expect("our own");
    assert_eq!(caller.ask("list"), format!("{web} web Present"));
    assert_eq!(caller.ask("lease web"), web);
}

#[test]
fn an_unreserved_port_has_a_short_file() {
    let project = Project::new(1);
    let mut caller = project.caller();
    let only = port(caller.ask("any"));
    assert_eq!(len(&project.lock_file(&only)), 256);
    // Neither the lock of all names nor a mark.
    assert_eq!(
        fs::read_dir(project.locks.path()).expect("our own").count(),
        1
    );
}

// ---------------------------------------------------------------------------
// Directories that are gone, or only seem so.

#[test]
fn a_reservation_ends_with_its_root() {
    let project = Project::new(4);
    let (mut caller, mut other) = (project.caller(), project.caller());
    let (web, api) = (
        port(caller.ask("reserve web")),
        port(caller.ask("reserve api")),
    );
    fs::remove_dir(&project.root).expect("our own");
    assert_eq!(caller.ask("look web"), format!("{web} RootGone"));
    assert_eq!(other.ask(format!("port {web}")), web);
    assert_eq!(len(&project.lock_file(&web)), 256);
    assert_eq!(other.ask("clean"), "1 1");
    assert!(!project.lock_file(&api).exists());
    assert_eq!(other.ask("list"), format!("{web} web RootGone"), "its copy");
    assert_eq!(other.ask("clean-copies"), "1");
    assert_eq!(project.copies(), 0);
    assert_says(&caller.ask("reserve web"), &["InvalidName", "No such file"]);
}

#[test]
fn a_root_that_cannot_be_found_counts() {
    let project = Project::new(4);
    let mut caller = project.caller();
    let web = port(caller.ask("reserve web"));
    // As on a disk that is not mounted, or where another one is: another directory is above it.
    let elsewhere = project.parent.path().with_extension("elsewhere");
    fs::rename(project.parent.path(), &elsewhere).expect("our own");
    for is_empty in [false, true] {
        if is_empty {
            fs::create_dir(project.parent.path()).expect("our own");
        }
        assert_eq!(caller.ask("clean"), "0 1");
        assert_eq!(caller.ask("clean-copies"), "0");
        assert_eq!(caller.ask("list"), format!("{web} web RootNotFound"));
        assert_says(&caller.ask(format!("port {web}")), &["1 reserved"]);
    }
    fs::remove_dir(project.parent.path()).expect("our own");
    fs::rename(&elsewhere, project.parent.path()).expect("our own");
    assert_eq!(caller.ask("look web"), format!("{web} Present"));
    assert_eq!(caller.ask("lease web"), web);
}

#[test]
fn the_default_root_is_the_worktree() {
    let git = |dir: &Path, arguments: &[&str]| {
        let mut command = Command::new("git");
        command
            .args(arguments)
            .current_dir(dir)
            .stdout(Stdio::null());
        let own = [
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_CONFIG_SYSTEM", "/dev/null"),
        ];
        command.envs(own).env("HOME", dir);
        for who in ["GIT_AUTHOR", "GIT_COMMITTER"] {
            command
                .env(format!("{who}_NAME"), "x")
                .env(format!("{who}_EMAIL"), "x@example.com");
        }
        command
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    let project = Project::new(6);
    if !git(&project.root, &["init", "-q"]) {
        eprintln!("left out: git is not installed");
        return;
    }
    assert!(git(
        &project.root,
        &["commit", "-q", "--allow-empty", "-m", "first"]
    ));
    let second = project.parent.path().join("second");
    assert!(git(
        &project.root,
        &["worktree", "add", "-q", text(&second)]
    ));
    let below = second.join("src").join("bin");
    fs::create_dir_all(&below).expect("our own");
    // A sandbox may leave this.
    fs::create_dir(below.join(".git")).expect("our own");
    let start = |dir: &Path| {
        let mut command = project.command("namer", &["default"]);
        command.current_dir(dir);
        Peer::start_command(command)
    };
    let said = |dir: &Path| start(dir).hear();
    let root = fs::canonicalize(&second).expect("our own");
    assert!(said(&below).ends_with(&format!(" {}", root.display())));
    assert_eq!(said(&below), said(&second));
    assert_ne!(said(&project.root), said(&second));
    assert!(said(project.parent.path()).contains(text(project.parent.path())));
    let reserved = said(&second);
    let (web, _) = reserved.split_once(' ').expect("a port and a root");
    let mut caller = project.caller();
    assert_says(&caller.ask(format!("port {web}")), &["1 reserved"]);
    assert!(git(
        &project.root,
        &["worktree", "remove", "--force", text(&second)]
    ));
    assert_eq!(caller.ask(format!("port {web}")), web);
}

// ---------------------------------------------------------------------------
// A lock directory that was lost.

#[test]
fn a_name_has_the_same_port_after_the_directory_was_lost() {
    // So few that the next choice would often be another.
    let project = Project::new(8);
    let mut caller = project.caller();
    let names = ["web", "api", "db", "mail"];
    let before: Vec<String> = names
        .iter()
        .map(|name| port(caller.ask(format!("reserve {name}"))))
        .collect();
    for first in ["any", "reserve", "homeless"] {
        project.reboot();
        match first {
            // A caller that wants any port.
            "any" => {
                let mut any = project.caller();
                for _ in 0..4 {
                    assert!(!before.contains(&port(any.ask("any"))));
                }
                assert_says(&any.ask("any"), &["4 leased", "4 reserved"]);
            }
            "homeless" => {
                let mut homeless = project.homeless_caller();
                let taken = port(homeless.ask("any"));
                assert_eq!(homeless.ask("end"), "done");
                let said = project.caller().ask(format!("port {taken}"));
                assert_eq!(
                    before.contains(&taken),
                    said.contains("1 reserved"),
                    "{said}"
                );
            }
            _ => {}
        }
        let mut caller = project.caller();
        for (name, port) in names.iter().zip(&before) {
            assert_eq!(&caller.ask(format!("reserve {name}")), port, "{first}");
            assert_eq!(&caller.ask(format!("lease {name}")), port, "{first}");
        }
    }
}

#[test]
fn a_port_that_was_leased_since_is_waited_for() {
    let project = Project::new(4);
    let web = port(project.caller().ask("reserve web"));
    project.reboot();
    let mut homeless = project.homeless_caller();
    assert_eq!(homeless.ask(format!("port {web}")), web);
    let mut caller = project.caller();
    let holder = format!("pid {}", homeless.id());
    assert_says(&caller.ask("reserve web"), &["Exhausted", "lost", &holder]);
    assert_says(&caller.ask("try web"), &["Exhausted", &holder]);
    caller.say("lease web");
    assert_eq!(caller.hear_within(Duration::from_millis(200)), None);
    assert_eq!(homeless.ask("end"), "done");
    assert_eq!(caller.hear(), web);
    assert_says(&homeless.ask(format!("port {web}")), &["1 leased"]);
}

#[test]
fn a_lost_line_is_written_again_and_a_lost_copy_too() {
    let project = Project::new(4);
    let mut caller = project.caller();
    let web = port(caller.ask("reserve web"));
    fs::remove_file(project.lock_file(&web)).expect("our own");
    assert_eq!(caller.ask("list"), format!("{web} web Present"), "its copy");
    assert_eq!(caller.ask("reserve web"), web);
    assert!(len(&project.lock_file(&web)) > 512);
    fs::remove_dir_all(project.state.path().join("portlock")).expect("our own");
    assert_eq!(caller.ask("reserve web"), web);
    assert_eq!(project.copies(), 1);
    // One that a caller without a state directory made.
    let api = port(project.homeless_caller().ask("reserve api"));
    assert_eq!(project.copies(), 1);
    assert_eq!(caller.ask("reserve api"), api);
    assert_eq!(project.copies(), 2);
}

#[test]
fn a_reservation_without_a_state_directory_is_kept_in_the_lock_directory() {
    let project = Project::new(4);
    let web = port(project.homeless_caller().ask("reserve web"));
    assert_eq!(project.homeless_caller().ask("lease web"), web);
    assert_says(
        &project.homeless_caller().ask(format!("port {web}")),
        &["1 reserved"],
    );
    assert_eq!(project.copies(), 0);
}

// ---------------------------------------------------------------------------
// Many at the same time.

/// Arguments: lock directory, root, ports, how many names, or `default`. Reserves them in a random order,
/// says each with its port, and then leases some.
fn namer(parent: &Parent) {
    let all = builder(parent);
    let many: String = parent.argument(3);
    if many == "default" {
        let root = Reservation::default_root().expect("a directory");
        let reserved = all.name("web").root(&root).reserve();
        parent.say(reserved.map_or_else(
            |error| said(&error),
            |web| format!("{} {}", web.port, web.root.display()),
        ));
        parent.hear();
        return;
    }
    let many: usize = many.parse().expect("a number");
    let mut random: SmallRng = rand::make_rng();
    // Most ask for the same name at the same time.
    let offset = random.random_range(0..2);
    for index in 0..many {
        let name = format!("name-{}", (index + offset) % many);
        let named = all.clone().name(&name);
        let reserved = named.reserve().unwrap_or_else(|error| panic!("{error}"));
        parent.say(format!("{name} {}", reserved.port));
        if random.random_range(0..4) == 0 {
            let lease = named.acquire().unwrap_or_else(|error| panic!("{error}"));
            parent.say(format!("{name} {}", lease.port()));
        }
    }
    parent.say("done");
}

/// Arguments: lock directory, root, ports. Leases any ports until it is told to end, and says which.
fn taker(parent: &Parent) {
    let all = builder(parent).timeout(Duration::ZERO);
    let mut taken = BTreeSet::new();
    let path = parent.argument::<PathBuf>(3);
    while path.exists() {
        if let Ok(lease) = all.acquire() {
            taken.insert(lease.port());
            // Only while it holds the port: it may be reserved later.
            let locks = LockDir::open(parent.argument::<PathBuf>(0)).expect("our own");
            let entry = locks
                .entry(lease.port())
                .expect("our own")
                .expect("its file");
            assert_eq!(entry.reservation, None, "leased {lease}, which is reserved");
        }
    }
    parent.say(taken.len());
}

#[test]
fn many_processes_reserve_the_same_names_and_some_are_killed() {
    let names = stress(8);
    let takers = 8;
    let project = Project::new(u16::try_from(names + 40).expect("not so many"));
    let goes_on = project.parent.path().join("goes on");
    fs::write(&goes_on, "").expect("our own");
    let start_taker = || Peer::start_command(project.command("taker", &[text(&goes_on)]));
    let takers: Vec<Peer> = (0..takers).map(|_| start_taker()).collect();
    let many = names.to_string();
    let start = || Peer::start_command(project.command("namer", &[&many]));
    let mut namers: Vec<Peer> = (0..16).map(|_| start()).collect();
    let mut ports = BTreeMap::<String, String>::new();
    let mut note = |said: &str| {
        let (name, port) = said.split_once(' ').expect("a name and a port");
        let known = ports
            .entry(name.to_owned())
            .or_insert_with(|| port.to_owned());
        assert_eq!(known, port, "{name}");
    };
    let mut random: SmallRng = rand::make_rng();
    let mut kills = stress(8);
    while !namers.is_empty() {
        namers.retain_mut(|namer| {
            match namer.hear_last().as_deref() {
                Some("done") => return false,
                Some(said) => note(said),
                None => panic!("a caller failed"),
            }
            if kills > 0 && random.random_range(0..names) < 2 {
                kills -= 1;
                namer.kill();
                while let Some(said) = namer.hear_last() {
                    if said != "done" {
                        note(&said);
                    }
                }
                *namer = start();
            }
            true
        });
    }
    fs::remove_file(&goes_on).expect("our own");
    for taker in takers {
        assert!(taker.hear().parse::<usize>().expect("a number") > 0);
    }
    assert_eq!(ports.len(), names);
    let distinct: BTreeSet<&String> = ports.values().collect();
    assert_eq!(distinct.len(), names, "a port has two names");
    // Nothing was lost, here or in the copies.
    let mut caller = project.caller();
    for is_rebooted in [false, true] {
        if is_rebooted {
            project.reboot();
        }
        let listed = caller.ask("list");
        assert_eq!(listed.split(", ").count(), names, "{listed}");
        for (name, port) in &ports {
            assert_eq!(
                &caller.ask(format!("look {name}")),
                &format!("{port} Present")
            );
        }
    }
    assert_eq!(&caller.ask("reserve name-0"), &ports["name-0"]);
    assert_eq!(&caller.ask("list").split(", ").count(), &names);
}

// ---------------------------------------------------------------------------
// Killed at any call.

/// The calls that another process can notice.
#[cfg(target_os = "linux")]
const CALLS: [&str; 12] = [
    "openat",
    "close",
    "flock",
    "pwrite64",
    "ftruncate",
    "fchmod",
    "renameat2",
    "unlinkat",
    "mkdir",
    "write",
    "rename",
    "unlink",
];

#[cfg(target_os = "linux")]
impl Project {
    fn traced_caller(&self, options: &[&str]) -> Peer {
        let strace = ["strace", "-f", "-qq"];
        let binary = env::current_exe().expect("this test binary");
        let plain = self.command("caller", &[]);
        let mut command = command(&[&strace[..], options].concat(), &binary, "", &[]);
        let variables = plain
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?)));
        command.envs(variables);
        Peer::start_command(command)
    }

    /// Returns the calls that a caller makes when it is told to do something, each with how many
    /// of its name there were before.
    fn calls_of(&self, order: &str, check: impl FnOnce(String)) -> Vec<(String, usize)> {
        let trace = self.parent.path().join("trace");
        let mut caller = self.traced_caller(&["-o", text(&trace)]);
        check(caller.ask(order));
        caller.say("bye");
        assert!(caller.finish().success());
        let text = fs::read_to_string(&trace).expect("strace has ended");
        let mut counts = BTreeMap::<String, usize>::new();
        let mut calls = Vec::new();
        // Before that, it starts.
        let mut has_begun = false;
        for line in text.lines() {
            let Some((name, rest)) = line.split_once('(') else {
                continue;
            };
            let name = name.split_whitespace().last().unwrap_or_default();
            has_begun |= rest.contains(self.locks.path().to_str().expect("UTF-8"));
            let count = counts.entry(name.to_owned()).or_default();
            *count += 1;
            if has_begun && CALLS.contains(&name) {
                calls.push((name.to_owned(), *count));
            }
        }
        calls
    }
}

/// Whatever the caller was about to do, there is one port, and no other is lost.
#[cfg(target_os = "linux")]
fn must_be_whole(project: &Project, what: &str) {
    let mut caller = project.caller();
    let web = caller.ask("reserve web");
    assert!(web.parse::<u16>().is_ok(), "{what}: {web}");
    assert_eq!(caller.ask("list"), format!("{web} web Present"), "{what}");
    assert_eq!(project.copies(), 1, "{what}");
    let others = project.ports.ports.len() - 1;
    for _ in 0..others {
        port(caller.ask("any"));
    }
    assert_says(
        &caller.ask("any"),
        &[&format!("{others} leased"), "1 reserved"],
    );
    assert_eq!(caller.ask("lease web"), web, "{what}");
    assert_eq!(caller.ask("end"), "done");
    project.reboot();
    assert_eq!(project.caller().ask("reserve web"), web, "{what}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_caller_that_is_killed_at_any_call_loses_nothing() {
    if !portlock_testkit::have_strace() {
        return;
    }
    // A new name; one that is restored into a directory that was lost; and one that is removed.
    for order in ["reserve web", "reserve web again", "unreserve web"] {
        let prepare = |project: &Project| match order {
            "reserve web" => {}
            "unreserve web" => drop(port(project.caller().ask("reserve web"))),
            _ => {
                port(project.caller().ask("reserve web"));
                project.reboot();
            }
        };
        let (ask, is_removed) = match order {
            "unreserve web" => ("unreserve web", true),
            _ => ("reserve web", false),
        };
        let first = Project::new(3);
        prepare(&first);
        let calls = match is_removed {
            true => first.calls_of(ask, |said| assert_eq!(said, "done")),
            false => first.calls_of(ask, |said| drop(port(said))),
        };
        assert!(calls.len() > 10, "{calls:?}");
        for (name, nth) in calls {
            if stress(1) == 1 && !rand::random_ratio(1, 3) {
                continue;
            }
            let project = Project::new(3);
            prepare(&project);
            let inject = format!("inject={name}:signal=SIGKILL:when={nth}");
            let mut caller = project.traced_caller(&["-o", "/dev/null", "-e", &inject]);
            caller.say(ask);
            // It may be killed when it has answered.
            let _ = caller.hear_last();
            caller.kill();
            must_be_whole(&project, &format!("{order}: killed at {name} {nth}"));
        }
    }
}
