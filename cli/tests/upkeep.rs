//! The commands `wait`, `release`, `clean`, `ports`, `completions` and `man`.

mod ephemeral;

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};
#[cfg(unix)]
use std::{io::Write, os::unix::process::CommandExt};

use ephemeral::{ephemeral, reports_ephemeral};
use portlock_testkit::{
    FAILED, NAME, Running, Said, Scene, TIMED_OUT, TRUE, answer, has_second_loopback, is_wine, set,
};
#[cfg(unix)]
use portlock_testkit::{OrdinaryUser, am_root, is_installed, set_mode};
use serde_json::json;

// ---------------------------------------------------------------------------
// `wait`.

#[test]
fn wait_ends_when_the_server_listens() {
    let scene = Scene::new(1);
    let port = scene.port().to_string();
    let mut waiting = Running::start(scene.program(["wait", "--timeout=60", &port]));
    for _ in 0..10 {
        let wait = scene.portlock(["wait", "--timeout=0", &port]);
        wait.code(TIMED_OUT).prints_just("");
        assert!(!waiting.has_ended());
    }
    let server = TcpListener::bind(("127.0.0.1", scene.port())).expect("a free port");
    assert!(waiting.wait().success());
    for args in [
        &["wait", &port][..],
        &["wait", "--timeout=0", &port],
        &["wait", "--host=127.0.0.1", &port],
        &["wait", "--host=0.0.0.0", &port],
    ] {
        let wait = scene.portlock(args).code(0);
        wait.prints_just("").warns_of_nothing();
    }
    // Another address has no server.
    let other = ["wait", "--host=127.0.0.2", "--timeout=0", &port];
    scene.portlock(other).code(TIMED_OUT).warns("127.0.0.2");
    drop(server);
    assert_eq!(scene.lock_files(), 0);
}

#[test]
fn without_a_host_a_server_on_either_loopback_address_is_accepted() {
    let scene = Scene::new(1);
    let port = scene.port().to_string();
    let wait = |options: &[&str]| {
        let args = [&["wait", "--timeout=0"], options, &[&port]].concat();
        scene.portlock(args)
    };
    let both = format!("at 127.0.0.1:{port} or [::1]:{port}");
    wait(&[]).code(TIMED_OUT).warns(&both);
    if let Ok(_server) = TcpListener::bind(("::1", scene.port())) {
        wait(&[]).code(0).warns_of_nothing();
        wait(&["--host=::1"]).code(0);
        wait(&["--host=127.0.0.1"]).code(TIMED_OUT);
    } else {
        eprintln!("skipped: this machine has no IPv6");
    }
    let _server = TcpListener::bind(("127.0.0.1", scene.port())).expect("a free port");
    for options in [&[][..], &["--host=127.0.0.1"], &["--host=localhost"]] {
        wait(options).code(0).warns_of_nothing();
    }
}

#[test]
fn wait_accepts_several_ports() {
    let scene = Scene::new(5);
    let all: Vec<String> = scene.ports().map(|port| port.to_string()).collect();
    let ports = &all[..3];
    let wait = |options: &[&str], ports: &[String]| {
        let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
        scene.program([&["wait"], options, &ports[..]].concat())
    };
    let listen = |n: usize| TcpListener::bind(("127.0.0.1", scene.port() + n as u16));
    // Whichever server starts last.
    let mut waiting = Running::start(wait(&["--timeout=60"], ports));
    let _third = listen(2).expect("a free port");
    let _first = listen(0).expect("a free port");
    let missing = answer(wait(&["--timeout=0"], ports)).code(TIMED_OUT);
    assert!(missing.err().contains(&format!("127.0.0.1:{}", ports[1])));
    assert!(!missing.err().contains(&ports[0]) && !missing.err().contains(&ports[2]));
    assert!(!waiting.has_ended());
    let second = listen(1).expect("a free port");
    assert!(waiting.wait().success());

    // All ports that are not ready are named, and they share one timeout.
    let ports = &[all[3].clone(), all[1].clone(), all[4].clone()];
    let missing = answer(wait(&["--timeout=50ms"], ports)).code(TIMED_OUT);
    // No time was left for the last port.
    assert_eq!(
        missing.err().matches(" after ").count(),
        1,
        "{}",
        missing.err()
    );
    for (port, is_missing) in ports.iter().zip([true, false, true]) {
        assert_eq!(
            missing.err().contains(port),
            is_missing,
            "{}",
            missing.err()
        );
    }

    // The same with --free.
    let (holder, held) = scene.hold(&["--ports", &ports[2]]);
    let busy = answer(wait(&["--free", "--timeout=0"], ports)).code(TIMED_OUT);
    busy.warns(&format!("no free port in {}: 1 bound", ports[1]))
        .warns(&format!("no free port in {held}: 1 leased"));
    let mut waiting = Running::start(wait(&["--free", "--timeout=60"], ports));
    drop(second);
    holder.kill();
    assert!(waiting.wait().success());
}

// Uses a network namespace.
#[cfg(target_os = "linux")]
#[test]
fn wait_continues_while_there_is_no_network() {
    let scene = Scene::new(1);
    let port = scene.port();
    // In a new network namespace, even the loopback interface is down at first.
    let script = format!(
        "exec 2>&1
        portlock wait --host 127.0.0.1 --timeout 10ms {port}; echo $?
        ip link set lo up || {{ echo skipped; exit; }}
        portlock wait --timeout 60 {port} & wait=$!
        portlock run --listen sleep 60 & run=$!
        wait $wait; echo $?
        kill $run"
    );
    let Some(shell) = scene.in_namespace("--net", &script) else {
        return;
    };
    let shell = answer(shell);
    let mut lines = shell.out().lines();
    let first = lines.next().unwrap_or_default();
    // As glibc and musl put it.
    let messages = ["Network is unreachable", "Network unreachable"];
    assert!(
        messages.iter().any(|it| first.contains(it)),
        "{}",
        shell.out()
    );
    assert_eq!(lines.next(), Some("124"));
    if shell.out().contains("skipped") {
        eprintln!(
            "skipped: the loopback interface stays down: {}",
            shell.out()
        );
        return;
    }
    assert_eq!(lines.next(), Some("0"), "{}", shell.out());
}

// Uses a network namespace.
#[cfg(target_os = "linux")]
#[test]
fn a_self_connection_is_not_a_server() {
    let scene = Scene::new(1);
    // With so few ephemeral ports, the kernel is certain to assign port 40002 to a client that connects to
    // it.
    let script = "ip link set lo up && echo '40000 40003' >/proc/sys/net/ipv4/ip_local_port_range \
        || exit
        for host in 127.0.0.1 0.0.0.0; do
            portlock wait --host $host --timeout 1 40002; echo $?
        done";
    let Some(shell) = scene.in_namespace("--net", script) else {
        return;
    };
    let shell = answer(shell);
    if shell.out().is_empty() {
        eprintln!("skipped: {}", shell.err());
        return;
    }
    shell.prints_just(&format!("{TIMED_OUT}\n{TIMED_OUT}\n"));
}

#[test]
fn wait_free_ends_when_the_port_is_free() {
    let scene = Scene::new(1);
    let port = scene.port().to_string();
    let (holder, _) = scene.hold(&[]);
    let line = ["wait", "--free", "--timeout=60", &port];
    let mut waiting = Running::start(scene.program(line));
    for _ in 0..10 {
        scene.assert_leased(scene.port());
        assert!(!waiting.has_ended());
    }
    holder.kill();
    assert!(waiting.wait().success());
    // wait does not keep the port.
    scene.assert_leasable(scene.port());
    let wait = scene.portlock(["wait", "--free", "--timeout=0", &port]);
    wait.code(0).prints_just("").warns_of_nothing();
}

#[test]
fn with_a_host_the_port_must_be_free_on_that_address() {
    if !has_second_loopback() {
        return;
    }
    let scene = Scene::new(1);
    let port = scene.port().to_string();
    let server = TcpListener::bind(("127.0.0.2", scene.port())).expect("a free port");
    let wait = |options: &[&str]| {
        let args = [&["wait", "--free", "--timeout=0"], options, &[&port]].concat();
        scene.portlock(args)
    };
    wait(&[]).code(TIMED_OUT).warns("1 bound");
    wait(&["--host=127.0.0.2"]).code(TIMED_OUT).warns("1 bound");
    if !is_wine("a listener on one address prevents a bind to the wildcard address") {
        wait(&["--host=127.0.0.1"]).code(0);
        wait(&["--host=localhost"]).code(0);
    }
    drop(server);
    let _server = TcpListener::bind(("127.0.0.1", scene.port())).expect("a free port");
    wait(&["--host=localhost"]).code(TIMED_OUT).warns("1 bound");
}

#[test]
fn wait_ends_at_its_timeout() {
    let scene = Scene::new(1);
    let port = scene.port().to_string();
    let (_holder, _) = scene.hold(&[]);
    for args in [
        &["wait", "--timeout=0.5", &port][..],
        &["wait", "--free", "--timeout=0.5", &port],
    ] {
        let start = Instant::now();
        let wait = scene.portlock(args).code(TIMED_OUT);
        let waited = start.elapsed();
        let said = wait.err().split_once(" after ");
        let said = said.and_then(|(_, rest)| rest.split_once(" s"));
        let seconds: f64 = said.expect("it says").0.parse().expect("a number");
        // The message rounds to tenths.
        assert!((0.5..=waited.as_secs_f64() + 0.05).contains(&seconds));
        let bounds = Duration::from_millis(500)..Duration::from_secs(20);
        assert!(bounds.contains(&waited), "{waited:?}");
    }
}

// ---------------------------------------------------------------------------
// `release` and `clean`.

#[test]
fn a_picked_lease_can_be_released() {
    let scene = Scene::new(3);
    let idle = scene.idle();
    let pid = idle.id().to_string();
    let pick = scene.portlock(["pick", "-n3", "--pid", &pid]).code(0);
    let ports: Vec<String> = pick.ports().iter().map(u16::to_string).collect();
    let release = scene.portlock(["release", &ports[0]]).code(0);
    release.prints_just("").warns_of_nothing();
    scene.assert_leasable(pick.ports()[0]);
    scene.assert_leased(pick.ports()[1]);
    scene.portlock(["release", &ports[1], &ports[2]]).code(0);
    scene.assert_no_lease();
    // It can also be released with --force.
    let port = scene.portlock(["pick"]).code(0).ports()[0].to_string();
    scene.portlock(["release", "--force", &port]).code(0);
    scene.assert_no_lease();
}

#[test]
fn a_port_that_is_not_leased_cannot_be_released() {
    let scene = Scene::new(1);
    let port = scene.port().to_string();
    for make in [&["list"][..], &["run", TRUE], &["pick"]] {
        scene.portlock(make).code(0);
        scene.release_all();
        for options in [&[][..], &["--force"]] {
            let args = [&["release"], options, &[&port]].concat();
            let release = scene.portlock(args).code(FAILED).prints_just("");
            release.warns(&port).warns("it is not leased");
        }
    }
}

#[test]
fn a_held_lease_ends_only_with_its_holder() {
    let scene = Scene::new(1);
    let (holder, port) = scene.hold(&["--label=api"]);
    let port = port.to_string();
    for options in [&[][..], &["--force"]] {
        let args = [&["release"], options, &[&port]].concat();
        let release = scene.portlock(args).code(FAILED).prints_just("");
        let owner = format!("it is held by pid {} \"{NAME}\" (api)", holder.id());
        release.warns(&owner);
        scene.assert_leased(scene.port());
    }
}

// Runs as two Unix users.
#[cfg(unix)]
#[test]
fn force_releases_the_lease_of_another_user() {
    if !am_root() {
        eprintln!("skipped: only root can run this as two users");
        return;
    }
    let (scene, user) = (Scene::new(1), OrdinaryUser::new());
    set_mode(scene.dir(), 0o1777);
    let port = scene.pick().to_string();
    let release = user.portlock(&scene, &["release", &port]).code(FAILED);
    release.prints_just("").warns("not this user's");
    scene.assert_leased(scene.port());
    user.portlock(&scene, &["release", "--force", &port])
        .code(0);
    scene.assert_leasable(scene.port());
    // Root may release any user's lease, except for processes that it cannot see.
    let idle = Running::start(user_cat());
    let pid = idle.id().to_string();
    scene.portlock(["pick", "--pid", &pid]).code(0);
    scene.portlock(["release", &port]).code(FAILED);
    scene.portlock(["release", "--force", &port]).code(0);
}

/// Returns an idle process of another user.
#[cfg(unix)]
fn user_cat() -> Command {
    let mut cat = Command::new("cat");
    cat.uid(65534).gid(65534).current_dir("/");
    cat
}

#[test]
fn clean_removes_the_lock_files_of_ports_that_are_not_leased() {
    let scene = Scene::new(6);
    let mut ports = scene.ports().map(|port| port.to_string());
    let mut next = || ports.next().expect("enough");
    let (held, picked) = (next(), next());
    let _holder = scene.hold(&["--ports", &held]);
    scene.portlock(["pick", "--ports", &picked]).code(0);
    for _ in 0..3 {
        let run = ["run", "--ports", &next(), TRUE];
        scene.portlock(run).code(0);
    }
    // Other files in the directory are not removed.
    for name in ["notes", "04000", "70000"] {
        fs::write(scene.dir().join(name), "").expect("our own directory");
    }
    for removed in [3, 0] {
        let clean = scene.portlock(["clean"]).code(0).warns_of_nothing();
        clean.prints_just(&format!("{removed} lock files removed, 2 kept\n"));
        assert_eq!(scene.lock_files(), 5);
        scene.assert_leased(held.parse().expect("a port"));
        scene.assert_leased(picked.parse().expect("a port"));
    }
    scene.portlock(["release", &picked]).code(0);
    let clean = scene.portlock(["clean"]).code(0);
    clean.prints_just("1 lock file removed, 1 kept\n");
}

// ---------------------------------------------------------------------------
// `ports`.

/// Returns `portlock ports`, without port variables in its environment.
fn ports(scene: &Scene, args: &[&str]) -> Command {
    let mut ports = scene.program(["ports"]);
    ports.args(args).env_remove("PORTLOCK_PORTS");
    ports
}

#[test]
fn a_set_is_validated_and_printed_in_order() {
    let scene = Scene::new(1);
    for (text, written) in [
        ("4000", "4000"),
        ("7000,4000-4999,!4045", "4000-4044,4046-4999,7000"),
        ("4001 4000\n4002 # a comment", "4000-4002"),
        ("1-65535", "1-65535"),
        ("!4000,4000", ""),
        ("", ""),
    ] {
        let printed = answer(ports(&scene, &[text])).code(0).warns_of_nothing();
        printed.prints_just(&format!("{written}\n"));
    }
    for (text, expected) in [
        (
            "7000,4000-4001",
            json!({"ports": "4000-4001,7000", "count": 3, "ranges": [[4000, 4001], [7000, 7000]]}),
        ),
        ("", json!({"ports": "", "count": 0, "ranges": []})),
    ] {
        let printed = answer(ports(&scene, &["--json", text])).code(0);
        assert_eq!(printed.json(), expected);
    }
}

#[test]
fn the_ports_of_this_machine_are_printed() {
    if !reports_ephemeral() {
        return;
    }
    let scene = Scene::new(1);
    let range = set(ephemeral());
    let printed = answer(ports(&scene, &["--ephemeral"])).code(0);
    printed.prints_just(&format!("{range}\n"));
    let printed = answer(ports(&scene, &["--ephemeral", "--json"])).code(0);
    let (first, last) = ephemeral().into_inner();
    assert_eq!(printed.json()["ranges"], json!([[first, last]]));

    let default = answer(ports(&scene, &[])).code(0);
    let server = answer(ports(&scene, &["--server"])).code(0);
    assert_eq!(server.out(), default.out());
    let json = answer(ports(&scene, &["--json"])).code(0).json();
    assert_eq!(json["ports"], default.out().trim_end());
    let mut count = 0;
    for range in json["ranges"].as_array().expect("an array") {
        let end = |n: usize| range[n].as_u64().expect("a port");
        let (from, to) = (end(0), end(1));
        assert!(1024 <= from && from <= to && to <= 65535);
        assert!(to < first.into() || from > last.into(), "{range}");
        count += to - from + 1;
    }
    assert_eq!(json["count"], count);
}

#[test]
fn the_environment_names_ports() {
    let scene = Scene::new(1);
    let file = scene.dir().join("ports");
    fs::write(&file, "# ours\n4100-4109\n!4105\n").expect("our own directory");
    let of_file = "4100-4104,4106-4109\n";
    for (variable, in_file, printed) in [
        (Some("4001,4000"), None, Some("4000-4001\n")),
        (Some("4001,4000"), Some(file.as_path()), Some("4000-4001\n")),
        (Some(""), Some(&file), Some(of_file)),
        (None, Some(&file), Some(of_file)),
        (None, Some(Path::new("")), None),
        (Some(""), None, None),
    ] {
        let default = answer(ports(&scene, &[])).code(0);
        for args in [&[][..], &["--server"]] {
            let mut ports = ports(&scene, args);
            ports.envs(variable.map(|value| ("PORTLOCK_PORTS", value)));
            ports.envs(in_file.map(|path| ("PORTLOCK_PORTS_FILE", path)));
            let ports = answer(ports).code(0);
            ports.prints_just(printed.unwrap_or(default.out()));
        }
    }
    // Commands that do not use these variables ignore them.
    let mut ports = ports(&scene, &["4000"]);
    ports.env("PORTLOCK_PORTS", "nonsense");
    answer(ports).code(0).prints_just("4000\n");
}

#[test]
fn an_invalid_variable_is_refused_and_named() {
    let scene = Scene::new(1);
    let file = |name: &str, text: &[u8]| -> String {
        let path = scene.dir().join(name);
        fs::write(&path, text).expect("our own directory");
        path.to_str().expect("UTF-8").to_owned()
    };
    let missing = scene.dir().join("missing");
    let missing = missing.to_str().expect("UTF-8");
    let [text, empty, binary] = [
        file("text", b"4000\nnonsense\n"),
        file("empty", b"# nothing\n"),
        file("binary", b"4000\xff"),
    ];
    for (variable, value, why) in [
        ("PORTLOCK_PORTS", "nonsense", "nonsense"),
        ("PORTLOCK_PORTS", "0", "0"),
        ("PORTLOCK_PORTS", "9-1", "reversed"),
        ("PORTLOCK_PORTS", "!4000", "excluded from nothing"),
        ("PORTLOCK_PORTS", "4000,!4000", "names no port"),
        ("PORTLOCK_PORTS_FILE", missing, "os error 2"),
        ("PORTLOCK_PORTS_FILE", "/", "directory"),
        ("PORTLOCK_PORTS_FILE", &text, "line 2"),
        ("PORTLOCK_PORTS_FILE", &empty, "names no port"),
        ("PORTLOCK_PORTS_FILE", &binary, "UTF-8"),
    ] {
        for args in [
            &["ports"][..],
            &["run", TRUE],
            &["pick"],
            &["list", "--map"],
        ] {
            let mut command = scene.program(args);
            command.env_remove("PORTLOCK_PORTS").env(variable, value);
            let refused = answer(command).code(FAILED).prints_just("");
            refused.warns(&format!("{variable}=")).warns(why);
        }
    }
}

// ---------------------------------------------------------------------------
// `completions` and `man`.

// Uses scripts of Unix shells.
#[cfg(unix)]
#[test]
fn shells_accept_their_completions() {
    let scene = Scene::new(1);
    for (shell, options) in [
        ("bash", &["-n"][..]),
        ("zsh", &["-n"]),
        ("fish", &["--no-execute"]),
    ] {
        let printed = scene.portlock(["completions", shell]).code(0);
        for word in ["portlock", "release", "contiguous"] {
            assert!(printed.out().contains(word), "{shell}: {word}");
        }
        if !is_installed(shell) {
            continue;
        }
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(printed.out().as_bytes()).expect("room");
        let mut check = scene.command(shell);
        check.args(options).arg(file.path());
        answer(check).code(0).prints_just("").warns_of_nothing();
    }
}

// Uses scripts of Unix shells.
#[cfg(unix)]
#[test]
fn bash_completes_commands_and_options() {
    if !is_installed("bash") {
        return;
    }
    let scene = Scene::new(1);
    for (words, completed) in [
        ("portlock che", "check"),
        ("portlock re", "release"),
        ("portlock pick --cont", "--contiguous"),
        ("portlock completions fi", "fish"),
    ] {
        let script = format!(
            "eval \"$(portlock completions bash)\"
            COMP_WORDS=({words}) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
            _portlock portlock \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD - 1]}}\"
            echo \"${{COMPREPLY[@]}}\""
        );
        let shell = answer(scene.script("bash", &script)).code(0);
        shell.prints_just(&format!("{completed}\n"));
    }
}

#[test]
fn the_man_page_is_printed() {
    let scene = Scene::new(1);
    let man = scene.portlock(["man"]).code(0).warns_of_nothing();
    assert!(man.out().contains("\n.TH portlock 1 "), "{}", man.out());
    for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "SUBCOMMANDS"] {
        assert!(
            man.out().contains(&format!("\n.SH {section}\n")),
            "{section}"
        );
    }
    assert!(man.out().contains("PORTLOCK_DIR"));
}

#[test]
fn the_man_pages_are_written_into_a_directory() {
    let scene = Scene::new(1);
    let pages = tempfile::tempdir().expect("a temporary directory");
    let dir = pages.path().to_str().expect("UTF-8");
    // The second time, it overwrites existing pages.
    for _ in 0..2 {
        let man = scene.portlock(["man", dir]).code(0);
        man.prints_just("").warns_of_nothing();
    }
    let page = |name: &str| fs::read_to_string(pages.path().join(name)).expect("a page");
    let commands = [
        "run", "pick", "list", "check", "wait", "release", "clean", "ports", "dir",
    ];
    for command in commands.into_iter().chain(["completions", "man"]) {
        let page = page(&format!("portlock-{command}.1"));
        assert!(
            page.contains(&format!("\n.TH portlock-{command} 1 ")),
            "{page}"
        );
    }
    // The printed page refers to the same pages.
    assert_eq!(page("portlock.1"), scene.portlock(["man"]).out());
    assert_eq!(page("portlock-run.1").contains("LISTEN_FDS"), cfg!(unix));
}

// Runs as two Unix users.
#[cfg(unix)]
#[test]
fn man_pages_that_cannot_be_written_are_an_error() {
    let (scene, user) = (Scene::new(1), OrdinaryUser::new());
    let pages = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| pages.path().join(name).to_str().expect("UTF-8").to_owned();
    fs::write(path("file"), "").expect("our own directory");
    for dir in [path("missing"), path("file")] {
        let man = scene.portlock(["man", &dir]).code(FAILED).prints_just("");
        man.warns(&format!("cannot write man pages to {dir}: "));
    }
    fs::remove_file(path("file")).expect("our own directory");
    set_mode(pages.path(), 0o555);
    let man = user.portlock(&scene, &["man", &path("")]).code(FAILED);
    man.prints_just("").warns("Permission denied");
    assert_eq!(fs::read_dir(pages.path()).expect("ours").count(), 0);
}
