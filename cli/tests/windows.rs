//! The differences on Windows: `portlock run` runs the command as a child, and `portlock serve`
//! listens on a named pipe. The other tests cover the rest.

#![cfg(windows)]

use std::{
    env,
    fs::OpenOptions,
    io::{self, Read, Write},
    os::windows::process::CommandExt as _,
    path::PathBuf,
    process::{Command, Stdio, id},
};

use portlock::compat::portpicker::get_port_from_port_server;
use portlock_testkit::{
    AND, EXHAUSTED, FAILED, Running, Said, Scene, TRUE, WAIT, answer, shell, stress, until, value,
};

/// Returns `portlock run` with this shell command line.
fn run(scene: &Scene, options: &[&str], line: &str) -> Command {
    let shell = shell(line);
    scene.program(["run"].iter().chain(options).chain(&["--"]).chain(&shell))
}

// ---------------------------------------------------------------------------
// `run`: how CMD receives its ports, and how its status is reported.

#[test]
fn the_ports_are_in_the_environment_and_in_the_arguments() {
    let scene = Scene::new(3);
    let (a, b, c) = (scene.port(), scene.port() + 1, scene.port() + 2);
    let all = ["-n", "3", "--contiguous"];
    let of = |name: &str| format!("echo {}", value(name));
    for (options, line, printed) in [
        (&all[..], of("PORT"), a.to_string()),
        (&all, of("PORT_1"), a.to_string()),
        (&all, of("PORT_3"), c.to_string()),
        (
            &all,
            "echo {port}:{port2}{PORT_3}".into(),
            format!("{a}:{b}{c}"),
        ),
        (&all, "echo {other} {}{".into(), "{other} {}{".into()),
    ] {
        let run = answer(run(&scene, options, &line))
            .code(0)
            .warns_of_nothing();
        assert_eq!(run.out().trim_end(), printed, "{line}");
    }
    let line = format!("echo {} {}", value("HTTP"), value("ADMIN"));
    let printed = answer(run(&scene, &["--env=HTTP", "--env=ADMIN"], &line)).code(0);
    let ports: Vec<u16> = printed
        .out()
        .split_whitespace()
        .map(|port| port.parse().expect("a port"))
        .collect();
    assert!(ports.len() == 2 && ports[0] != ports[1], "{ports:?}");
    scene.assert_no_lease();
}

#[test]
fn the_exit_status_is_the_commands() {
    let scene = Scene::new(1);
    // Exit statuses have 32 bits on Windows, and those of crashes appear negative.
    for status in [0, 1, 3, 42, 75, 125, 255, 256, 1_000_000, -1_073_741_819] {
        let line = format!("exit {status}");
        answer(run(&scene, &[], &line))
            .code(status)
            .warns_of_nothing();
    }
    scene.assert_leasable(scene.port());
}

#[test]
fn a_missing_command_is_reported() {
    let scene = Scene::new(1);
    for program in ["no-such-program-anywhere", r"C:\no\such\program.exe"] {
        let run = scene.portlock(["run", "--", program]).code(127);
        let says = format!("portlock: cannot execute {program}");
        run.prints_just("").warns(&says);
    }
    let file = scene.dir().join("file");
    std::fs::write(&file, "no program").expect("our own directory");
    let file = file.to_str().expect("UTF-8");
    scene.portlock(["run", "--", file]).code(126).warns(file);
    scene.assert_leasable(scene.port());
}

#[test]
fn a_script_is_found_without_its_extension() {
    let scene = Scene::new(1);
    let script = "@echo %PORT% %1\r\n@exit /b 7\r\n";
    std::fs::write(scene.dir().join("a-script.cmd"), script).expect("our own directory");
    let mut command = scene.program(["run", "--", "a-script", "{port}"]);
    command.env(
        "PATH",
        format!(
            "{};{}",
            scene.dir().display(),
            env::var("PATH").expect("set")
        ),
    );
    let printed = answer(command).code(7);
    let expected = format!("{0} {0}", scene.port());
    assert_eq!(printed.out().trim_end(), expected);
}

#[test]
fn listening_sockets_cannot_be_passed_and_the_help_does_not_offer_it() {
    let scene = Scene::new(1);
    let refused = scene.portlock(["run", "--listen", TRUE]).code(FAILED);
    refused.prints_just("").warns("windows");
    let help = scene.portlock(["run", "--help"]).code(0);
    assert!(!help.out().contains("listen"), "{}", help.out());
    assert!(!help.out().contains("replaces itself"), "{}", help.out());
}

// ---------------------------------------------------------------------------
// `run`: the lease, and the end.

#[test]
fn the_lease_is_portlocks_and_ends_with_the_command() {
    let scene = Scene::new(1);
    let (holder, port) = scene.hold(&["--label=api"]);
    scene.assert_leased(port);
    let lease = &scene.list()[0];
    assert_eq!(
        (&lease["pid"], &lease["label"]),
        (&holder.id().into(), &"api".into())
    );
    assert!(holder.finish().success());
    scene.assert_leasable(port);
}

/// Processes started by the command end with portlock too.
#[test]
fn killing_portlock_kills_the_command_and_its_descendants() {
    let scene = Scene::new(1);
    for line in [
        format!("echo {{port}}{AND}{WAIT}"),
        format!("echo {{port}}{AND}cmd /c \"cmd /c \"{WAIT}\"\""),
        format!("start /b cmd /c \"{WAIT}\"{AND}echo {{port}}{AND}{WAIT}"),
    ] {
        for _ in 0..stress(3) {
            let mut portlock = Running::start(run(&scene, &[], &line));
            assert_eq!(portlock.hear().trim_end(), scene.port().to_string());
            portlock.kill_only();
            // Their output ends when all of them have ended, although their input is open.
            while let Some(line) = portlock.hear_or_end() {
                assert_eq!(line, "");
            }
            scene.assert_leasable(scene.port());
        }
    }
}

const ROLE: &str = "PORTLOCK_TEST_ROLE";

/// A command that starts another one and ends. Both are this test binary, running this test.
#[test]
fn starter() {
    match env::var(ROLE).as_deref() {
        Ok("starter") => {
            let started = as_role(Command::new(own()), "started").spawn();
            drop(started.expect("this test binary"));
        }
        // Runs until it is terminated together with portlock.
        Ok("separator") => {
            let mut started = as_role(Command::new(own()), "started");
            started.creation_flags(CREATE_BREAKAWAY_FROM_JOB);
            started.status().expect("this test binary");
        }
        Ok("started") => {
            // On separate lines, after the line that the test harness has started to print.
            println!("\nstarted");
            let mut line = String::new();
            let read = io::stdin().read_line(&mut line);
            println!("\nread {read:?} {line:?}");
        }
        Ok("messenger") => {
            let line = env::var(PICK).expect("set together with the role");
            let mut line = line.lines();
            let program = line.next().expect("a program");
            let status = Command::new(program).args(line).status();
            std::process::exit(status.expect("portlock").code().expect("no signal"));
        }
        _ => {}
    }
}

/// The program that the intermediate process runs, and its arguments, one per line.
const PICK: &str = "PORTLOCK_TEST_PICK";

/// Runs `pick` through this test binary under another name.
fn pick_behind(scene: &Scene, name: &str, options: &[&str]) -> Command {
    let messenger = scene.dir().join(name);
    std::fs::create_dir_all(messenger.parent().expect("below")).expect("our own directory");
    // Not a link, because Wine would report the original name.
    std::fs::copy(own(), &messenger).expect("our own directory");
    let pick = scene.program(["pick"].iter().chain(options));
    let words = [pick.get_program()].into_iter().chain(pick.get_args());
    let words: Vec<&str> = words.map(|word| word.to_str().expect("UTF-8")).collect();
    let mut command = as_role(Command::new(messenger), "messenger");
    for (name, value) in pick.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.env(PICK, words.join("\n")).env_remove("MSYSTEM");
    command
}

fn own() -> PathBuf {
    env::current_exe().expect("this test binary")
}

/// Lets `command`, which runs this test binary, run [`starter`] in this role.
fn as_role(mut command: Command, role: &str) -> Command {
    command
        .args(["starter", "--exact", "--nocapture", "--test-threads=1"])
        .env(ROLE, role);
    command
}

#[test]
fn processes_that_the_command_leaves_keep_running() {
    let scene = Scene::new(1);
    let mut run = scene.program(["run", "--"]);
    run.arg(own());
    let mut portlock = Running::start(as_role(run, "starter"));
    while portlock.hear() != "started" {}
    assert!(portlock.wait().success());
    scene.assert_leasable(scene.port());
    portlock.say("a line");
    while portlock.hear() != "read Ok(7) \"a line\\n\"" {}
}

/// From winbase.h.
const CREATE_BREAKAWAY_FROM_JOB: u32 = 0x0100_0000;

#[test]
fn a_process_that_breaks_away_from_the_job_survives_when_portlock_is_killed() {
    let scene = Scene::new(1);
    let mut run = scene.program(["run", "--"]);
    run.arg(own());
    let mut portlock = Running::start(as_role(run, "separator"));
    while portlock.hear() != "started" {}
    portlock.kill_only();
    scene.assert_leasable(scene.port());
    portlock.say("a line");
    while portlock.hear() != "read Ok(7) \"a line\\n\"" {}
}

#[test]
fn a_server_that_has_leased_a_name_is_stopped_with_its_command() {
    let scene = Scene::new(5);
    let project = tempfile::tempdir().expect("a temporary directory");
    let root = project.path().to_str().expect("UTF-8");
    let named = |args: &[&str]| scene.portlock([args, &["--root", root]].concat());
    let web = named(&["port", "web"]).code(0).ports()[0];
    let env = named(&["env", "web"]).code(0);
    assert_eq!(env.out().trim_end(), format!("WEB_PORT={web}"));
    let (mut other, _) = scene.hold(&["--name=api", "--root", root]);
    let (mut holder, port) = scene.hold(&["--name=web", "--root", root]);
    assert_eq!(port, web);
    named(&["check", "web"]).code(1).warns_of_nothing();
    let would = named(&["stop", "web", "--dry-run"]).code(0);
    would.prints(&format!("web {web}: would stop pid {} (", holder.id()));
    assert!(!holder.has_ended());
    let stop = named(&["stop", "web"]).code(0).warns_of_nothing();
    stop.prints(&format!("web {web}: stopped pid {} (", holder.id()));
    holder.wait();
    named(&["check", "web"]).code(0);
    assert!(!other.has_ended());
    drop(other);
    // The state directory is this user's, not the test's.
    until("the end of the lease", || {
        let release = named(&["release", "web", "api"]);
        let is_done = release.get_output().status.success() || release.err().contains("no port");
        is_done.then_some(())
    });
}

#[test]
fn a_waiting_command_gets_the_lease() {
    let scene = Scene::new(1);
    let (holder, port) = scene.hold(&[]);
    let refused = scene.portlock(["run", "--timeout=0", TRUE]).code(EXHAUSTED);
    refused.prints_just("").warns("1 leased (");
    let waiting = Running::start(run(&scene, &["--timeout=60"], "echo {port}"));
    holder.kill();
    assert_eq!(waiting.hear(), port.to_string());
}

// ---------------------------------------------------------------------------
// `pick`: the process that it leases for.

#[test]
fn a_parent_that_ends_with_portlock_is_not_the_caller() {
    let scene = Scene::new(1);
    let powershell = "for example --pid $PID in PowerShell";
    let git_bash = "for example --pid \"$(cat /proc/$$/winpid)\" in Git Bash";
    for (name, msystem, kind, says) in [
        (r"shims\pl.exe", None, "is a shim", powershell),
        (r"bin\portlock.exe", Some("UCRT64"), "is a shim", git_bash),
        (
            r"bin\bash.exe",
            Some("MINGW64"),
            "of a Unix shell",
            git_bash,
        ),
        (r"bin\sh.exe", None, "of a Unix shell", powershell),
    ] {
        let mut pick = pick_behind(&scene, name, &[]);
        pick.envs(msystem.map(|name| ("MSYSTEM", name)));
        let refused = answer(pick).code(FAILED);
        refused.warns(says).warns(name).warns(kind);
        assert!(scene.list().is_empty(), "{name}");
    }
    let pid = id().to_string();
    answer(pick_behind(&scene, r"shims\pl.exe", &["--pid", &pid])).code(0);
    scene.assert_leased(scene.port());
    let port = scene.port().to_string();
    scene.portlock(["release", &port]).code(0);
    // An interpreter, also when started from Git Bash.
    let mut pick = pick_behind(&scene, r"bin\python.exe", &[]);
    pick.env("MSYSTEM", "MINGW64");
    answer(pick).code(0);
}

// ---------------------------------------------------------------------------
// `serve`.

struct Server {
    _process: Running,
    address: String,
}

impl Server {
    fn start(scene: &Scene, name: &str) -> Self {
        let address = format!("@portlock-test-{}-{name}", id());
        let mut serve = scene.program(["serve", "--address", &address, "--ports", &scene.set()]);
        serve.stderr(Stdio::null());
        let server = Self {
            _process: Running::start(serve),
            address,
        };
        until("it listens", || server.answer("\n").ok());
        server
    }

    /// Sends a request as portpicker does, with one write and one read, and returns the answer.
    fn answer(&self, request: &str) -> io::Result<String> {
        let path = format!(r"\\.\pipe\{}", &self.address[1..]);
        let mut pipe = OpenOptions::new().read(true).write(true).open(path)?;
        pipe.write_all(request.as_bytes())?;
        let mut answer = [0; 6];
        let len = match pipe.read(&mut answer) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            len => len?,
        };
        Ok(String::from_utf8_lossy(&answer[..len]).into_owned())
    }

    fn ask(&self, pid: u32) -> Option<u16> {
        let answer = self.answer(&format!("{pid}\n")).expect("it listens");
        let port = answer.strip_suffix('\n')?.parse();
        Some(port.expect("a port"))
    }
}

#[test]
fn a_port_is_granted_until_its_client_ends() {
    let scene = Scene::new(2);
    let server = Server::start(&scene, "granted");
    let idle = scene.idle();
    let port = server.ask(idle.id()).expect("one is free");
    assert!(scene.ports().contains(&port));
    scene.assert_leased(port);
    assert_eq!(scene.list()[0]["pid"], idle.id());
    let other = get_port_from_port_server(&server.address, id()).expect("one is free");
    assert_ne!(other, port);
    assert_eq!(server.ask(id()), None, "both are leased");
    idle.kill();
    assert_eq!(until("a port", || server.ask(id())), port);
}

#[test]
fn an_invalid_request_gets_no_answer() {
    let scene = Scene::new(1);
    let server = Server::start(&scene, "malformed");
    for request in ["99Z\n", "0\n", "1\n", "-5\n", "1\n2\n", "4294967294\n"] {
        assert_eq!(
            server.answer(request).expect("it listens"),
            "",
            "{request:?}"
        );
    }
    assert_eq!(server.ask(id()), Some(scene.port()), "it is still there");
}

#[test]
fn many_concurrent_clients_each_get_a_port() {
    const CLIENTS: usize = 16;
    let scene = Scene::new(64);
    let server = Server::start(&scene, "many");
    let mut ports: Vec<u16> = std::thread::scope(|scope| {
        let address = &server.address;
        let ask = || get_port_from_port_server(address, id()).expect("there are enough");
        let four = move || [(); 4].map(|()| ask());
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(four)).collect();
        let joined = clients.into_iter().map(|client| client.join());
        joined.flat_map(|ports| ports.expect("no panic")).collect()
    });
    ports.sort_unstable();
    assert!(ports.iter().copied().eq(scene.ports()), "{ports:?}");
}
