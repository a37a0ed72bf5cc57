//! `portlock list` and `portlock check`: which process has which port.

mod ephemeral;

use std::{
    collections::HashMap,
    fs,
    process::id,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ephemeral::{ephemeral, reports_ephemeral};
use portlock_testkit::{
    BOUND, LEASED, LONG, NAME, Running, Said, Scene, TRUE, cat_program, is_wine, listen,
    listen_strictly, set,
};
#[cfg(target_os = "linux")]
use portlock_testkit::{OrdinaryUser, am_root, answer, set_mode};
use serde_json::{Value, json};

/// What Wine lacks.
const NO_PROCESS: &str = "the process of an IPv6 socket is not shown";

/// Whether the command line and the current directory of a process can be read.
const SHOWS_DIRECTORIES: bool = cfg!(target_os = "linux");

/// The programs that a holder may be running: on Unix a shell may replace itself with its last command.
const HOLDERS: [&str; 2] = if cfg!(windows) {
    [NAME; 2]
} else {
    ["sh", "cat"]
};

/// Returns what `check` prints about the user that runs these tests: nothing if users have no numbers.
fn user() -> String {
    let name = std::process::Command::new("id").arg("-un").output();
    match name {
        Ok(name) if cfg!(unix) => {
            format!(", user {}", String::from_utf8_lossy(&name.stdout).trim())
        }
        _ => String::new(),
    }
}

/// Returns the nonempty cells of a table row. They are separated by two spaces.
fn cells(line: &str) -> Vec<&str> {
    let cells = line.split("  ").map(str::trim);
    cells.filter(|cell| !cell.is_empty()).collect()
}

/// Returns the row of a port.
#[track_caller]
fn line_of(table: &str, port: u16) -> Vec<&str> {
    let port = port.to_string();
    let mut lines = table.lines().map(cells);
    let line = lines.find(|cells| cells.first() == Some(&port.as_str()));
    line.unwrap_or_else(|| panic!("no {port}: {table}"))
}

/// One port in each state. The children live as long as this.
struct Crowd {
    scene: Scene,
    held: u16,
    held_and_bound: u16,
    delegated: u16,
    delegated_and_bound: u16,
    stale: u16,
    stale_and_bound: u16,
    /// Without a lock file.
    only_bound: u16,
    children: Vec<Running>,
    _servers: Vec<socket2::Socket>,
}

impl Crowd {
    fn new() -> Self {
        let scene = Scene::new(20);
        let mut ports = scene.ports();
        let mut next = || ports.next().expect("enough");
        let (held, held_and_bound) = (next(), next());
        let (delegated, delegated_and_bound) = (next(), next());
        let (stale, stale_and_bound, only_bound) = (next(), next(), next());
        let mut children = Vec::new();
        for port in [held, held_and_bound] {
            let port = port.to_string();
            let options = ["--label=a server", "--ports", &port];
            children.push(scene.hold(&options).0);
        }
        for port in [delegated, delegated_and_bound] {
            let port = port.to_string();
            let pick = scene.portlock(["pick", "--label=größe", "--ports", &port]);
            pick.code(0);
        }
        for port in [stale, stale_and_bound] {
            let port = port.to_string();
            let run = ["run", "--label=past", "--ports", &port, TRUE];
            scene.portlock(run).code(0);
        }
        let bound = [
            held_and_bound,
            delegated_and_bound,
            stale_and_bound,
            only_bound,
        ];
        let _servers = bound
            .map(|port| listen_strictly(port).expect("free"))
            .into();
        Self {
            scene,
            held,
            held_and_bound,
            delegated,
            delegated_and_bound,
            stale,
            stale_and_bound,
            only_bound,
            children,
            _servers,
        }
    }
}

#[test]
fn the_table_shows_every_lease() {
    if is_wine(NO_PROCESS) {
        return;
    }
    let crowd = Crowd::new();
    let list = crowd.scene.portlock(["list"]).code(0).warns_of_nothing();
    let mut lines = list.out().lines();
    let header = lines.next().map(cells).expect("a header");
    assert_eq!(header, ["PORT", "STATE", "PID", "PROGRAM", "AGE", "LABEL"]);
    let pid = |n: usize| crowd.children[n].id().to_string();
    let us = id().to_string();
    // A child has its lease.
    let served = format!("leased, served by pid {us} ({})", cat_program());
    for (port, state, pid, label) in [
        (crowd.held, "leased, not bound yet", &pid(0), "a server"),
        (crowd.held_and_bound, &served, &pid(1), "a server"),
        (crowd.delegated, "delegated, not bound yet", &us, "größe"),
        (crowd.delegated_and_bound, "delegated, bound", &us, "größe"),
    ] {
        let line = line_of(list.out(), port);
        assert_eq!((line[1], line[2], line[5]), (state, &pid[..], label));
        assert!(line[4].ends_with('s'), "{line:?}");
    }
    assert_eq!(lines.count(), 4, "{}", list.out());
}

#[test]
fn the_table_shows_stale_files_only_with_all() {
    let crowd = Crowd::new();
    for option in ["--all", "-a"] {
        let list = crowd.scene.portlock(["list", option]).code(0);
        for (port, state) in [
            (crowd.stale, "stale file"),
            (crowd.stale_and_bound, "not leased, bound"),
        ] {
            let line = line_of(list.out(), port);
            assert_eq!((line[1], line[5]), (state, "past"));
        }
        let rows = list
            .out()
            .strip_suffix("\n2 lock files are left from earlier leases\n")
            .expect("a footer");
        let ports: Vec<&str> = rows.lines().skip(1).map(|line| cells(line)[0]).collect();
        let expected: Vec<String> = crowd.scene.ports().take(6).map(|p| p.to_string()).collect();
        assert_eq!(ports, expected);
    }
}

#[test]
fn the_table_shows_only_the_requested_ports() {
    let crowd = Crowd::new();
    let scene = &crowd.scene;
    let ports = format!("{},{}", crowd.held, crowd.stale);
    let list = scene.portlock(["list", "--ports", &ports]).code(0);
    assert_eq!(list.out().lines().count(), 2, "{}", list.out());
    line_of(list.out(), crowd.held);
    let list = scene.portlock(["list", "--all", "--ports", &ports]).code(0);
    assert_eq!(list.out().lines().count(), 4, "{}", list.out());
    line_of(list.out(), crowd.stale);
    let footer = "\n1 lock file is left from earlier leases\n";
    assert!(list.out().ends_with(footer), "{}", list.out());
    // A set of other ports, and an empty set, are valid.
    for ports in ["1-9", ""] {
        let list = scene.portlock(["list", "--ports", ports]).code(0);
        list.prints_just("no port that matches the options is leased or reserved\n");
    }
}

#[test]
fn the_list_shows_the_leases_with_a_label() {
    let crowd = Crowd::new();
    for (label, ports) in [
        ("größe", &[crowd.delegated, crowd.delegated_and_bound][..]),
        ("a server", &[crowd.held, crowd.held_and_bound]),
        ("a", &[]),
        ("", &[]),
    ] {
        let args = ["list", "--json", "--label", label];
        let list = crowd.scene.portlock(args).code(0).json();
        let rows = list.as_array().expect("an array").iter();
        let found: Vec<&Value> = rows.map(|row| &row["port"]).collect();
        assert_eq!(found, ports.iter().collect::<Vec<_>>(), "{label}");
        let table = crowd.scene.portlock(["list", "--label", label]).code(0);
        let lines = ports.len() + 1;
        assert_eq!(table.out().lines().count(), lines, "{}", table.out());
    }
}

#[test]
fn the_list_can_be_printed_as_json() {
    if is_wine(NO_PROCESS) {
        return;
    }
    let crowd = Crowd::new();
    let list = crowd
        .scene
        .portlock(["list", "--json", "--all"])
        .code(0)
        .json();
    let list = list.as_array().expect("an array");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("later");
    let row = |port: u16| -> Value {
        let mut rows = list.iter();
        let row = rows.find(|row| row["port"] == port).expect("a row");
        let since = row["since"].as_u64().expect("seconds");
        assert!(now.as_secs().abs_diff(since) < 600, "{since}");
        let mut row = row.clone();
        assert!(row["program"].take().is_string());
        row["since"].take();
        let cwd = row["cwd"].take();
        let is_leased = row["state"] != "stale";
        assert_eq!(cwd.is_string(), is_leased && SHOWS_DIRECTORIES, "{cwd}");
        if row["server_pid"] == id() {
            assert_eq!(row["server_program"].take(), cat_program());
        }
        row
    };
    let expected = |port: u16, state: &str, server: Option<&str>, pid: Value, label: &str| {
        json!({
            "port": port, "state": state, "bound": server.is_some(), "pid": pid, "cwd": null,
            "program": null, "since": null, "label": label, "heir": null, "server": server,
            "server_pid": server.map(|_| id()), "server_program": null,
            "name": null, "root": null, "reservation": null,
        })
    };
    let pid = |n: usize| crowd.children[n].id().into();
    for row_expected in [
        expected(crowd.held, "leased", None, pid(0), "a server"),
        expected(
            crowd.held_and_bound,
            "leased",
            Some("other"),
            pid(1),
            "a server",
        ),
        expected(crowd.delegated, "delegated", None, id().into(), "größe"),
        expected(
            crowd.delegated_and_bound,
            "delegated",
            Some("holder"),
            id().into(),
            "größe",
        ),
    ] {
        let port = row_expected["port"].as_u64().expect("a port");
        assert_eq!(row(u16::try_from(port).expect("a port")), row_expected);
    }
    for (port, bound) in [(crowd.stale, false), (crowd.stale_and_bound, true)] {
        let row = row(port);
        assert_eq!(
            (&row["state"], &row["bound"]),
            (&json!("stale"), &json!(bound))
        );
    }
    assert_eq!(list.len(), 6);
    let leased = crowd.scene.list();
    assert_eq!(leased.len(), 4);
    let only = crowd.held.to_string();
    let list = crowd.scene.portlock(["list", "--json", "--ports", &only]);
    assert_eq!(list.json().as_array().map(Vec::len), Some(1));
}

#[test]
fn an_empty_list_says_so() {
    let scene = Scene::new(1);
    scene
        .portlock(["list"])
        .code(0)
        .prints_just("no port is leased\n");
    scene
        .portlock(["list", "--json"])
        .code(0)
        .prints_just("[]\n");
}

#[test]
fn the_list_is_refreshed_until_interrupted() {
    let scene = Scene::new(1);
    let mut watch = Running::start(scene.program(["list", "--watch"]));
    assert_eq!(watch.hear(), "no port is leased");
    let port = scene.pick().to_string();
    while !watch.hear().starts_with(&port) {}
    scene.portlock(["release", &port]).code(0);
    while !watch.hear().starts_with("no port is leased") {}
    assert!(!watch.has_ended());
    #[cfg(unix)]
    {
        use std::os::unix::process::ExitStatusExt as _;

        use rustix::process::Signal;
        if !portlock_testkit::is_ignored(Signal::INT) {
            watch.signal(Signal::INT);
            assert_eq!(watch.wait().signal(), Some(2));
        }
    }

    let scene = Scene::new(1);
    let none = "no port that matches the options is leased or reserved";
    for (option, line) in [("--all", none), ("--map", "  . free: 1")] {
        if option == "--map" && !reports_ephemeral() {
            continue;
        }
        let watch = Running::start(scene.program(["list", "--ports", &scene.set(), option, "-w"]));
        for _ in 0..2 {
            while watch.hear() != line {}
        }
    }
    let port = scene.pick();
    let watch = Running::start(scene.program(["list", "--json", "--watch"]));
    for _ in 0..2 {
        // One object per line, without control sequences for a terminal.
        let line: Value = serde_json::from_str(&watch.hear()).expect("JSON");
        assert_eq!(line["ports"][0]["port"], port, "{line}");
        let time = UNIX_EPOCH + Duration::from_secs(line["time"].as_u64().expect("seconds"));
        assert!(time.elapsed().expect("not later") < LONG);
    }
}

/// Returns the counts in the legend of a map, by mark.
fn legend(map: &str) -> HashMap<char, u32> {
    let (_, legend) = map.split_once("\n\n").expect("a legend");
    let line = |line: &str| {
        let mark = line.trim_start().chars().next().expect("a mark");
        let (_, count) = line.rsplit_once(": ").expect("a number");
        (mark, count.parse().expect("a number"))
    };
    legend.lines().skip(1).map(line).collect()
}

/// Returns how often each mark occurs in a map.
fn marks(map: &str) -> HashMap<char, u32> {
    let (rows, _) = map.split_once("\n\n").expect("a legend");
    let mut marks = HashMap::new();
    for row in rows.lines() {
        let (_, cells) = row
            .trim_start()
            .split_once(' ')
            .expect("a port and its row");
        assert!(cells.chars().count() <= 64, "{row}");
        for mark in cells.chars() {
            *marks.entry(mark).or_default() += 1;
        }
    }
    marks
}

#[test]
fn the_map_shows_the_state_of_each_port() {
    if !reports_ephemeral() {
        return;
    }
    let crowd = Crowd::new();
    let set = crowd.scene.set();
    for args in [&["list", "--map", "--ports", &set][..], &["list", "--map"]] {
        let map = crowd.scene.portlock(args).code(0).warns_of_nothing();
        let row = format!("{:>5} o#o#.xx.............\n\n20 ports; ", crowd.held);
        assert!(map.out().starts_with(&row), "{}", map.out());
        let expected = [('#', 2), ('o', 2), ('x', 2), ('~', 0), ('.', 14)];
        assert_eq!(legend(map.out()), HashMap::from(expected));
    }
}

/// This simulates a system that does not list held locks.
#[cfg(target_os = "linux")]
#[test]
fn an_unreadable_lock_file_is_unknown_if_no_list_of_locks_shows_it() {
    if !am_root() {
        eprintln!("skipped: only root can hide /proc/locks from another user");
        return;
    }
    let (scene, user) = (Scene::new(2), OrdinaryUser::new());
    set_mode(scene.dir(), 0o1777);
    let (closed, stale) = (*scene.ports().start(), *scene.ports().end());
    let closed_file = scene.dir().join(closed.to_string());
    fs::File::create(&closed_file).expect("our own directory");
    set_mode(&closed_file, 0o000);
    let run = ["run", "--ports", &stale.to_string(), "--", TRUE];
    user.portlock(&scene, &run).code(0);
    let hidden = |args: &str| {
        let script = format!(
            "mount --bind {} /proc/locks && exec setpriv --reuid 65534 --regid 65534 \
             --clear-groups {} {args}",
            closed_file.display(),
            user.path().display()
        );
        scene.in_namespace("--mount", &script).map(answer)
    };
    let Some(list) = hidden("list --all --json") else {
        return;
    };
    let rows = list.code(0).json();
    let states = [&rows[0], &rows[1]].map(|row| (row["port"].clone(), row["state"].clone()));
    let expected = [(closed, "unknown"), (stale, "stale")];
    assert_eq!(
        states,
        expected.map(|(port, state)| (port.into(), state.into()))
    );
    let list = hidden("list").expect("as before").code(0);
    assert_eq!(
        line_of(list.out(), closed),
        [&closed.to_string(), "unknown"]
    );
    let map = hidden("list --map").expect("as before").code(0);
    let map = map.out();
    assert_eq!(legend(map).get(&'?'), Some(&1), "{map}");
    let clean = hidden("clean").expect("as before").code(0);
    clean.prints("1 lock file removed, 1 kept");
    assert!(closed_file.exists());
}

#[test]
fn the_map_of_many_ports_fits_on_a_screen() {
    if !reports_ephemeral() {
        return;
    }
    let scene = Scene::new(300);
    scene.portlock(["pick", "-n", "7"]).code(0);
    let map = scene.portlock(["list", "--map"]).code(0);
    let (legend_of_all, marks_of_all) = (legend(map.out()), marks(map.out()));
    assert_eq!(legend_of_all[&'o'], 7);
    assert_eq!(marks_of_all[&'o'], 7);
    assert_eq!(legend_of_all.values().sum::<u32>(), 300);
    assert_eq!(marks_of_all.values().sum::<u32>(), 300);
    assert!(map.out().contains("each character is one port"));
    assert_eq!(map.out().lines().position(str::is_empty), Some(5));

    let map = scene.portlock(["list", "--map", "--ports=1-65535"]).code(0);
    assert!(
        map.out()
            .contains("65535 ports; each character is 32 ports")
    );
    assert_eq!(map.out().lines().position(str::is_empty), Some(32));
    let (legend, marks) = (legend(map.out()), marks(map.out()));
    assert_eq!(legend[&'o'], 7);
    assert!((1..=7).contains(&marks[&'o']), "{marks:?}");
    assert_eq!(legend.values().sum::<u32>(), 65535);
    assert_eq!(marks.values().sum::<u32>(), 2048);
    let ephemeral = u32::try_from(ephemeral().count()).expect("at most 65535");
    assert!((1..=ephemeral).contains(&legend[&'~']));
}

#[test]
fn the_map_distinguishes_ephemeral_ports_from_others() {
    if !reports_ephemeral() {
        return;
    }
    let scene = Scene::new(1);
    let (first, last) = ephemeral().into_inner();
    let (from, to) = (first.saturating_sub(1).max(1), last.saturating_add(1));
    let map = scene.portlock(["list", "--map", "--ports", &set(from..=to)]);
    let legend = legend(map.code(0).out());
    // Some of them may be bound.
    let ephemeral = u32::from(last - first) + 1;
    assert!(legend[&'~'] <= ephemeral && legend[&'~'] >= ephemeral / 2);
    assert!(legend[&'.'] <= 2);
    // A leased ephemeral port is shown as leased.
    let port = scene
        .portlock(["pick", "--ports", &set(first..=last)])
        .ports()[0];
    let map = scene.portlock(["list", "--map", "--ports", &port.to_string()]);
    assert_eq!(
        map.out()
            .trim_start()
            .chars()
            .nth(port.to_string().len() + 1),
        Some('o')
    );
}

// ---------------------------------------------------------------------------
// Text written by other users.

/// Asserts that the text cannot control a terminal.
#[track_caller]
fn assert_harmless(text: &str) {
    let control = |c: &char| {
        // Characters that change the direction of text, or are invisible.
        let unseen = matches!(
            c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
                | '\u{e0000}'..='\u{e007f}'
        );
        c.is_control() && *c != '\n' || unseen
    };
    assert_eq!(text.chars().find(control), None, "{text:?}");
}

/// Returns a command line for each command that prints ports. `check` gets the first `n` ports.
#[cfg(target_os = "linux")]
fn command_lines(scene: &Scene, n: usize) -> Vec<Vec<String>> {
    let ports: Vec<String> = scene.ports().take(n).map(|port| port.to_string()).collect();
    let set = scene.set();
    let words = |args: &[&str]| args.iter().map(|&arg| arg.to_owned()).collect::<Vec<_>>();
    vec![
        words(&["list"]),
        words(&["list", "--all"]),
        words(&["list", "--all", "--json"]),
        words(&["list", "--map", "--ports", &set]),
        [words(&["check"]), ports.clone()].concat(),
        [words(&["check", "--json"]), ports].concat(),
        words(&["wait", "--free", "--timeout=0", &scene.port().to_string()]),
        words(&["run", "--timeout=0", TRUE]),
        words(&["release", &scene.port().to_string()]),
        words(&["clean"]),
    ]
}

// The start time is read from /proc.
#[cfg(target_os = "linux")]
#[test]
fn hostile_records_cannot_control_the_terminal() {
    let scene = Scene::new(3);
    let start = fs::read_to_string("/proc/self/stat").expect("Linux");
    let start = start
        .rsplit(") ")
        .next()
        .expect("fields")
        .split(' ')
        .nth(19);
    let start = start.expect("a start time");
    // ESC, BEL, newline, CR, DEL; and the same as C1 controls, CSI, OSC and ST.
    for text in [
        "a%1B]0;x%07 b%0Ac%0D%1B[31m%7F%00",
        "a%C2%9B31m%C2%9D0;x%C2%9C b%C2%85%7F",
        "%FF%1B%ZZ%1 %",
        // Right-to-left marks, embeddings, overrides and isolates; a soft hyphen; zero-width
        // spaces and joiners; a byte order mark; a tag.
        "a%E2%80%AEb%E2%80%AAc%E2%81%A6d%E2%81%A9e%E2%80%8Ff%D8%9C a%E2%80%AE%C2%ADb%E2%80%8B\
         c%E2%80%8Dd%E2%81%A0e%EF%BB%BFf%F3%A0%81%81",
    ] {
        for record in [
            format!("delegated {} {start} - 1763683200 {text}", id()),
            format!("held 7 - - 1763683200 {text}"),
        ] {
            for port in scene.ports() {
                scene.forge(port, format!("{record:511}\n"));
            }
            let leased = record.starts_with("delegated");
            let check = scene.check(scene.port());
            check.code(if leased { LEASED } else { 0 });
            for args in command_lines(&scene, 3) {
                let shown = scene.portlock(&args);
                assert_harmless(shown.out());
                assert_harmless(shown.err());
            }
        }
    }
}

#[test]
fn json_preserves_hostile_records() {
    let scene = Scene::new(1);
    let pick = [
        "pick",
        "--label",
        "a\u{1b}[31m\u{7f}\u{9b}31m\u{85}\"\\\u{fffd}\u{202e}\u{200b}\u{e0041}zÄ",
    ];
    scene.portlock(pick).code(0);
    let port = scene.port().to_string();
    for args in [&["list", "--json"][..], &["check", "--json", &port]] {
        let shown = scene.portlock(args);
        assert_harmless(shown.out());
        assert_eq!(shown.json()[0]["label"], pick[2]);
    }
}

#[test]
fn garbage_is_not_a_lease_and_is_harmless() {
    let scene = Scene::new(8);
    let garbage: [&[u8]; 8] = [
        b"",
        b"\n",
        b"garbage \x1b[31m\x07\xff\n",
        b"delegated 1",
        b"delegated -1 0 - - 0 - -\n",
        b"delegated 99999999999999999999 1 - - 1 a b\n",
        &[0; 256],
        &[b'%'; 70_000],
    ];
    for (port, garbage) in scene.ports().zip(garbage) {
        scene.forge(port, garbage);
    }
    // On Windows, file names cannot contain control characters.
    let control = if cfg!(windows) { "[31m" } else { "\x1b[31m" };
    for name in ["0", "65536", "04000", "-1", "4000x", control] {
        fs::write(scene.dir().join(name), "garbage").expect("our own directory");
    }
    scene
        .portlock(["list"])
        .code(0)
        .prints_just("no port is leased\n");
    let list = scene.portlock(["list", "--all", "--json"]).code(0).json();
    let list = list.as_array().expect("an array");
    assert_eq!(list.len(), 8);
    for lease in list {
        assert_eq!(
            (&lease["state"], &lease["pid"]),
            (&json!("stale"), &Value::Null)
        );
    }
    let table = scene.portlock(["list", "--all"]).code(0);
    assert!(table.out().contains("\n8 lock files"), "{}", table.out());
    assert_harmless(table.out());
    for port in scene.ports() {
        assert_eq!(line_of(table.out(), port)[1], "stale file");
        scene.assert_leasable(port);
    }
}

#[test]
fn times_out_of_range_are_printed_or_omitted() {
    let scene = Scene::new(1);
    for since in [
        "0",
        "9223372036854775807",
        "18446744073709551615",
        "99999999999999999999",
        "-1",
        "x",
    ] {
        let record = format!("delegated {} - - {since} a b", id());
        scene.forge(scene.port(), format!("{record:511}\n"));
        let list = scene.portlock(["list"]).code(0);
        assert_eq!(
            line_of(list.out(), scene.port())[1],
            "delegated, not bound yet"
        );
        assert_eq!(scene.list().len(), 1);
    }
}

// ---------------------------------------------------------------------------
// In a container.

// Uses a pid namespace.
#[cfg(target_os = "linux")]
#[test]
fn a_lease_that_a_grandchild_keeps_is_also_listed_in_a_container() {
    let scene = Scene::new(1);
    // In a container the kernel does not list the locks of processes that have ended.
    let script = "portlock run -- sh -c 'sleep 1000 >/dev/null & echo $PORT'
        portlock list --json; portlock check {}; portlock list --map";
    let script = script.replace("{}", &scene.port().to_string());
    let kind = "--pid --fork --kill-child --mount-proc";
    let Some(shell) = scene.in_namespace(kind, &script) else {
        return;
    };
    let shell = answer(shell).code(0);
    let expected = format!("{0}\n[\n  {{\n", scene.port());
    let printed = shell.prints(&expected);
    assert!(
        printed.out().contains("\"state\": \"inherited\""),
        "{}",
        printed.out()
    );
    let leased = format!("\n{} leased by pid ", scene.port());
    assert!(printed.out().contains(&leased), "{}", printed.out());
    assert!(
        printed.out().contains("leased, not bound yet: 1"),
        "{}",
        printed.out()
    );
}

// ---------------------------------------------------------------------------
// `check`.

#[test]
fn check_prints_the_state_of_each_port() {
    if is_wine(NO_PROCESS) {
        return;
    }
    let crowd = Crowd::new();
    let scene = &crowd.scene;
    let free = crowd.only_bound + 1;
    let (held, user) = (crowd.children[0].id(), user());
    let held = HOLDERS.map(|name| format!("leased by pid {held} \"{name}\" (a server){user}"));
    let us = format!("pid {} ({})", id(), cat_program());
    let held_and_bound = format!("; served by {us}, not by the holder");
    let delegated_and_bound = format!("; served by {us}");
    let bound = format!("bound by {us}{user}");
    for (port, status, printed) in [
        (free, 0, "free"),
        (crowd.stale, 0, "free"),
        (crowd.held, LEASED, "leased by pid "),
        (crowd.delegated, LEASED, "leased by pid "),
        (crowd.held_and_bound, LEASED, &held_and_bound),
        (crowd.delegated_and_bound, LEASED, "leased by pid "),
        (crowd.delegated_and_bound, LEASED, &delegated_and_bound),
        (crowd.stale_and_bound, BOUND, &bound),
        (crowd.only_bound, BOUND, &bound),
    ] {
        let check = scene.check(port).code(status).warns_of_nothing();
        if printed.starts_with(';') {
            let line = format!("{printed}\n");
            assert!(check.out().ends_with(&line), "{}", check.out());
            continue;
        }
        let line = format!("{port} {printed}");
        let line = if printed.ends_with(' ') {
            line
        } else {
            line + "\n"
        };
        check.prints(&line);
    }
    let check = scene.check(crowd.held).code(LEASED);
    let printed = check.out().trim_end().split_once(' ');
    let (_, printed) = printed.expect("a port and what it is");
    assert!(held.iter().any(|held| held == printed), "{printed}");
    // Checking has not changed any lease.
    scene.assert_leased(crowd.held);
    scene.assert_leased(crowd.delegated);
    assert_eq!(scene.list().len(), 4);
}

#[test]
fn check_of_several_ports_exits_with_the_highest_status() {
    let crowd = Crowd::new();
    let free = crowd.only_bound + 1;
    for (ports, status) in [
        (&[free, crowd.stale][..], 0),
        (&[free, crowd.held], LEASED),
        (&[crowd.held, free], LEASED),
        (&[crowd.only_bound, free], BOUND),
        (&[crowd.held, crowd.only_bound, free], BOUND),
        (&[crowd.only_bound, crowd.held], BOUND),
        (&[free, free], 0),
    ] {
        let names: Vec<String> = ports.iter().map(u16::to_string).collect();
        let args = ["check"]
            .into_iter()
            .chain(names.iter().map(String::as_str));
        let check = crowd.scene.portlock(args).code(status);
        let printed = check
            .out()
            .lines()
            .map(|line| line.split_once(' ').expect("words").0);
        assert!(printed.eq(&names), "{}", check.out());
    }
}

#[test]
fn check_can_print_json() {
    if is_wine(NO_PROCESS) {
        return;
    }
    let crowd = Crowd::new();
    let ports = [crowd.held, crowd.delegated, crowd.only_bound, crowd.stale].map(|p| p.to_string());
    let args = ["check", "--json"]
        .into_iter()
        .chain(ports.iter().map(String::as_str));
    let mut check = crowd.scene.portlock(args).code(BOUND).json();
    assert!(check[1]["program"].take().is_string());
    let holder = check[0]["program"].take();
    assert!(HOLDERS.iter().any(|&name| holder == name), "{holder}");
    for row in 0..3 {
        let [cwd, command] = ["cwd", "command"].map(|field| check[row][field].take());
        assert_eq!(cwd.is_string(), SHOWS_DIRECTORIES, "{cwd}");
        assert_eq!(command.is_array(), SHOWS_DIRECTORIES, "{command}");
    }
    let here = std::env::current_dir().expect("it is there");
    let user = user().strip_prefix(", user ").map(str::to_owned);
    let row = |port: u16, state: &str, pid: Option<u32>, program: Option<&str>, label| {
        json!({
            "port": port, "state": state, "pid": pid, "program": program, "label": label,
            "heir": null, "time_wait": false, "user": pid.and(user.as_deref()), "cwd": null,
            "command": null, "server": null, "server_pid": null, "server_program": null,
            "name": null, "root": null, "reservation": null,
        })
    };
    let (child, program) = (crowd.children[0].id(), cat_program());
    let mut expected = json!([
        row(crowd.held, "leased", Some(child), None, Some("a server")),
        row(crowd.delegated, "leased", Some(id()), None, Some("größe")),
        row(crowd.only_bound, "bound", Some(id()), Some(&program), None),
        row(crowd.stale, "free", None, None, None),
    ]);
    expected[2]["server_pid"] = id().into();
    expected[2]["server_program"] = program.into();
    assert_eq!(check, expected);
    if SHOWS_DIRECTORIES {
        let own = crowd.only_bound.to_string();
        let own = crowd.scene.portlock(["check", "--json", &own]).json();
        assert_eq!(own[0]["cwd"], here.to_str().expect("UTF-8"));
        let arguments: Vec<String> = std::env::args().collect();
        assert_eq!(own[0]["command"], json!(arguments));
    }
}

#[test]
fn a_port_that_is_bound_on_one_address_is_bound() {
    let scene = Scene::new(1);
    let server = listen(("127.0.0.1", scene.port()));
    let check = scene.check(scene.port()).code(BOUND);
    let us = format!("pid {} ({})", id(), cat_program());
    let printed = format!("{} bound by {us}{}\n", scene.port(), user());
    check.prints_just(&printed);
    drop(server);
}
