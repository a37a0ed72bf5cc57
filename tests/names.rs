//! Ports that are reserved by name.
//!
//! All calls are made in children, whose state directory belongs to the test.

#[cfg(target_os = "linux")]
#[path = "names/linux.rs"]
mod linux;
#[cfg(unix)]
#[path = "names/unix.rs"]
mod unix;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    ffi::OsStr,
    fs,
    net::TcpListener,
    ops::ControlFlow,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use portlock::{Builder, Error, FreePort, LockDir, PortSet, Reservation};
use portlock_testkit::{
    Block, LONG, Parent, Peer, Role, command, is_wine, lock_dir, run_child, set, stress, text,
};
use rand::{RngExt as _, rngs::SmallRng};
use tempfile::TempDir;

#[test]
fn child() {
    let roles: [(&str, Role); 3] = [("caller", caller), ("namer", namer), ("taker", taker)];
    #[cfg(target_os = "linux")]
    let roles = [&roles[..], &linux::ROLES].concat();
    run_child(&roles);
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

    fn reboot(&self) {
        for entry in fs::read_dir(self.locks.path()).expect("our own") {
            fs::remove_file(entry.expect("our own").path()).expect("our own");
        }
    }
}

impl Drop for Project {
    /// Windows has one state directory for each user, which does not belong to the test.
    fn drop(&mut self) {
        if !cfg!(windows) {
            return;
        }
        let all = LockDir::open(self.locks.path()).and_then(|locks| {
            let all = locks.reservations()?;
            Ok((locks, all))
        });
        if let Ok((locks, all)) = all {
            for reservation in all {
                let _ = locks.unreserve(&reservation);
            }
        }
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

/// Arguments: lock directory, root, ports. Follows orders, one per line.
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
            "reserve-many" => any
                .clone()
                .timeout(Duration::ZERO)
                .reserve_many(argument.split(' '))
                .map(|all| {
                    let ports = all.iter().map(|reservation| reservation.port.to_string());
                    ports.collect::<Vec<_>>().join(" ")
                }),
            "reserve-many-by-name" => named.reserve_many(["api"]).map(|_| "done".to_owned()),
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
            "show" => locks()
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

// ---------------------------------------------------------------------------
// Properties of a reservation.

#[test]
fn a_name_has_the_same_port_every_time_and_no_other_caller_gets_it() {
    let project = Project::new(8);
    let (mut caller, mut other) = (project.caller(), project.caller());
    assert_eq!(caller.ask("show web"), "none");
    let web = port(caller.ask("reserve web"));
    let api = port(other.ask("reserve api"));
    assert_ne!(web, api);
    for _ in 0..3 {
        assert_eq!(caller.ask("lease web"), web);
        assert_eq!(caller.ask("end"), "done");
        assert_eq!(other.ask("lease web"), web);
        assert_eq!(other.ask("end"), "done");
    }
    assert_eq!(other.ask("show web"), format!("{web} Present"));
    let refused = other.ask(format!("port {web}"));
    assert_says(
        &refused,
        &[
            "Exhausted",
            "1 reserved",
            &format!("({web} as web in "),
            "shop)",
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
fn several_names_are_reserved_together_or_not_at_all() {
    let project = Project::new(6);
    let (mut caller, mut other) = (project.caller(), project.caller());
    let web = port(caller.ask("reserve web"));
    let three = caller.ask("reserve-many api web db api");
    let [api, own, db, again] = three.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{three}");
    };
    assert_eq!((own, again), (&*web, api));
    let ports = BTreeSet::from([&web, api, db]);
    assert_eq!(ports.len(), 3, "{three}");
    // They are leased like any other, and can be restored.
    assert_eq!(other.ask("lease api"), api);
    assert_eq!(other.ask("end"), "done");
    project.reboot();
    let (mut caller, mut other) = (project.caller(), project.caller());
    assert_eq!(other.ask("lease db"), db);
    assert_eq!(other.ask("end"), "done");
    // There are three ports left for four names.
    let before = caller.ask("list");
    assert_says(
        &caller.ask("reserve-many cache web queue mail docs"),
        &[
            "Exhausted fewer than 4 ports to reserve are free in ",
            "3 reserved",
            "3 free",
        ],
    );
    assert_eq!(caller.ask("list"), before);
    for refused in ["reserve-many cache a_b a-b", "reserve-many cache A"] {
        assert_says(&caller.ask(refused), &["InvalidName"]);
        assert_eq!(caller.ask("list"), before);
    }
    assert_says(&caller.ask("reserve-many-by-name web"), &["Unsupported"]);
    port(other.ask("any"));
}

#[test]
fn every_end_of_a_lease_keeps_the_reservation() {
    let project = Project::new(4);
    let (mut other, mut caller) = (project.caller(), project.caller());
    let web = port(other.ask("reserve web"));
    let assert_reserved = |other: &mut Peer| {
        assert_says(&other.ask(format!("port {web}")), &["1 reserved"]);
        assert_eq!(other.ask("show web"), format!("{web} Present"));
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
fn a_name_is_leased_by_one_caller_after_the_other() {
    let project = Project::new(4);
    let (mut caller, mut other) = (project.caller(), project.caller());
    let web = port(caller.ask("lease web"));
    let said = other.ask("try web");
    let holder = format!("{web} by pid {}", caller.id());
    assert_says(&said, &["Exhausted", "reserved as web in", &holder]);
    // The server is restarted while the old one is still ending: first its lease ends, then its
    // socket closes.
    let socket = TcpListener::bind(format!("127.0.0.1:{web}")).expect("it is not bound");
    other.say("lease web");
    assert_eq!(other.hear_within(Duration::from_millis(300)), None);
    assert_eq!(caller.ask("end"), "done");
    assert_eq!(other.hear_within(Duration::from_millis(100)), None);
    drop(socket);
    assert_eq!(other.hear(), web);
}

#[test]
fn a_reserved_port_that_is_bound_is_an_error_or_another_port() {
    let project = Project::new(4);
    let mut caller = project.caller();
    let web = port(caller.ask("reserve web"));
    let address = format!("127.0.0.1:{web}");
    let stranger = TcpListener::bind(address).expect("it is not bound");
    let start = Instant::now();
    let said = caller.ask("lease web");
    let headline = format!("port {web}, which is reserved as web in ");
    let server = match is_wine("the table of sockets names no process") {
        true => " s: 1 bound by another program".to_owned(),
        false => format!(" s: bound by pid {} (", std::process::id()),
    };
    assert_says(&said, &["Exhausted", &headline, &server]);
    assert!(start.elapsed() < LONG / 2, "it fails soon");
    // A stopped wait does not lease another port instead.
    assert_says(&caller.ask("stopped web"), &["Stopped", "1 bound"]);
    let other = port(caller.ask("or-any web"));
    assert_ne!(other, web);
    // A server that ends: first its lease, and a moment later its socket.
    caller.say("lease web");
    assert_eq!(caller.hear_within(Duration::from_millis(100)), None);
    drop(stranger);
    assert_eq!(caller.hear(), web);
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
fn a_name_that_is_checked_while_it_is_restored_is_free() {
    let project = Project::new(4);
    let (mut checker, mut restorer) = (project.caller(), project.caller());
    let web = port(restorer.ask("reserve web"));
    for _ in 0..stress(300) {
        project.reboot();
        restorer.say("reserve web");
        for _ in 0..3 {
            assert_eq!(checker.ask("check web"), "free");
        }
        assert_eq!(restorer.hear(), web);
    }
}

#[test]
fn a_reservation_outlives_the_lock_directory_and_ends_with_its_root() {
    let project = Project::new(4);
    let mut caller = project.caller();
    let web = port(caller.ask("reserve web"));
    caller.say("bye");
    assert!(caller.finish().success());
    project.reboot();
    let mut caller = project.caller();
    assert_eq!(caller.ask("list"), format!("{web} web Present"));
    assert_eq!(caller.ask("lease web"), web);
    assert_eq!(caller.ask("end"), "done");
    fs::remove_dir(&project.root).expect("our own");
    let said = caller.ask("show web");
    // Wine reports no creation time, so nothing is proven there.
    if cfg!(windows) && said == format!("{web} RootNotFound") {
        assert_says(&caller.ask(format!("port {web}")), &["1 reserved"]);
        assert_eq!(caller.ask("unreserve web"), "done");
    } else {
        assert_eq!(said, format!("{web} RootGone"));
    }
    assert_eq!(caller.ask(format!("port {web}")), web);
}

// ---------------------------------------------------------------------------
// Concurrency.

/// Arguments: lock directory, root, ports, number of names, a directory; or `default`. Reserves
/// them in a random order, creates a file for each port in the directory, reports each with its
/// port, and leases some.
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
    // Most request the same name at the same time.
    let offset = random.random_range(0..2);
    for index in 0..many {
        let name = format!("name-{}", (index + offset) % many);
        let named = all.clone().name(&name);
        let reserved = named.reserve().unwrap_or_else(|error| panic!("{error}"));
        let known = parent.argument::<PathBuf>(4);
        fs::write(known.join(reserved.port.to_string()), "").expect("our own");
        parent.say(format!("{name} {}", reserved.port));
        if random.random_range(0..4) == 0 {
            let lease = named.acquire().unwrap_or_else(|error| panic!("{error}"));
            parent.say(format!("{name} {}", lease.port()));
        }
    }
    parent.say("done");
}

/// Arguments: lock directory, root, ports, a file, and the directory of a namer. Leases any ports
/// as long as the file exists, and reports how often.
fn taker(parent: &Parent) {
    let all = builder(parent).timeout(Duration::ZERO);
    let mut leases = 0;
    let path = parent.argument::<PathBuf>(3);
    while path.exists() {
        let known = fs::read_dir(parent.argument::<PathBuf>(4)).expect("our own");
        let known: BTreeSet<_> = known
            .map(|file| file.expect("our own").file_name())
            .collect();
        if let Ok(lease) = all.acquire() {
            leases += 1;
            // A port that is reserved later may be leased before.
            let is_reserved = known.contains(OsStr::new(&lease.to_string()));
            assert!(!is_reserved, "leased {lease}, which was reserved before");
        }
    }
    parent.say(leases);
}

#[test]
fn many_processes_reserve_the_same_names_and_some_are_killed() {
    let names = stress(8);
    let takers = 8;
    let project = Project::new(u16::try_from(names + 40).expect("few names"));
    let goes_on = project.parent.path().join("goes on");
    fs::write(&goes_on, "").expect("our own");
    let known = project.parent.path().join("known");
    fs::create_dir(&known).expect("our own");
    let start_taker =
        || Peer::start_command(project.command("taker", &[text(&goes_on), text(&known)]));
    let takers: Vec<Peer> = (0..takers).map(|_| start_taker()).collect();
    let many = names.to_string();
    let start = || Peer::start_command(project.command("namer", &[&many, text(&known)]));
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
    let mut leases = 0;
    for taker in takers {
        let taken: usize = taker.hear().parse().expect("a number");
        assert!(taken > 0);
        leases += taken;
    }
    assert_eq!(ports.len(), names);
    let distinct: BTreeSet<&String> = ports.values().collect();
    assert_eq!(distinct.len(), names, "a port has two names");
    // Nothing was lost, in the lock files or in the copies.
    let mut caller = project.caller();
    for is_rebooted in [false, true] {
        if is_rebooted {
            project.reboot();
        }
        let listed = caller.ask("list");
        assert_eq!(listed.split(", ").count(), names, "{listed}");
        for (name, port) in &ports {
            assert_eq!(
                &caller.ask(format!("show {name}")),
                &format!("{port} Present")
            );
            if !is_rebooted {
                let said = caller.ask(format!("check-port {port}"));
                assert_says(&said, &["1 reserved"]);
            }
        }
    }
    println!(
        "{names} names by 16 processes, {} of them killed, beside {leases} leases of other ports",
        stress(8) - kills
    );
    assert_eq!(&caller.ask("reserve name-0"), &ports["name-0"]);
    assert_eq!(&caller.ask("list").split(", ").count(), &names);
}
