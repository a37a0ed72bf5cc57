//! `portlock stop`: ends the processes that have leased a name, and no other process.

#![cfg(target_os = "linux")]

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use assert_cmd::assert::Assert;
use portlock_testkit::{
    Process, Running, Said, Scene, TIMED_OUT, am_root, answer, is_installed, until,
};
use rustix::process::Signal;
use tempfile::TempDir;

/// A project with servers.
struct Project {
    scene: Scene,
    root: TempDir,
}

impl Project {
    fn new() -> Self {
        Self {
            scene: Scene::new(8),
            root: tempfile::tempdir().expect("a temporary directory"),
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.scene.program(args);
        command.current_dir(self.root.path());
        command
    }

    #[track_caller]
    fn portlock(&self, args: &[&str]) -> Assert {
        answer(self.command(args))
    }

    #[track_caller]
    fn port(&self, name: &str) -> u16 {
        self.portlock(&["port", name]).code(0).ports()[0]
    }

    /// Starts a shell that leases a name.
    fn start(&self, name: &str, script: &str) -> Running {
        let name = format!("--name={name}");
        Running::start(self.command(&["run", &name, "--", "sh", "-c", script]))
    }
}

/// Returns the pids in a line.
fn pids(line: &str) -> Vec<u32> {
    let pids = line.split_whitespace();
    pids.map(|pid| pid.parse().expect("a pid")).collect()
}

/// Returns whether a process is running. A zombie is not.
fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.rsplit(") ").next().expect("a state").starts_with('Z'))
}

#[test]
fn only_the_holder_and_its_descendants_are_stopped() {
    let project = Project::new();
    // A child, a grandchild, and an unrelated process.
    let script = "sh -c 'sleep 100 & echo $$ $!; wait' & wait";
    let mut holder = project.start("web", script);
    let descendants = pids(&holder.hear());
    let mut other = project.start("api", "sleep 100 & echo $!; wait");
    let of_other = pids(&other.hear());
    let mut stranger = Process::start({
        let mut sleep = Command::new("sleep");
        sleep.arg("100").current_dir(project.root.path());
        sleep
    });
    let web = project.port("web");
    let would = project.portlock(&["stop", "--dry-run", "web"]).code(0);
    let start = format!("web {web}: would stop pid {} (sh), pid ", holder.id());
    let would = would.warns_of_nothing().prints(&start);
    for &pid in &descendants {
        assert!(
            would.out().contains(&format!(", pid {pid} (")),
            "{}",
            would.out()
        );
        assert!(lives(pid));
    }
    let stopped = project
        .portlock(&["stop", "web"])
        .code(0)
        .warns_of_nothing();
    assert_eq!(stopped.out(), would.out().replace("would stop", "stopped"));
    assert_eq!(holder.wait().signal(), Some(Signal::TERM.as_raw()));
    assert!(!descendants.iter().any(|&pid| lives(pid)));
    // The port can be leased immediately, and the reservation stays.
    let again = ["run", "--name=web", "--timeout=0", "--", "echo", "{web}"];
    project
        .portlock(&again)
        .code(0)
        .prints_just(&format!("{web}\n"));
    let nothing = project
        .portlock(&["stop", "web"])
        .code(0)
        .warns_of_nothing();
    nothing.prints_just(&format!("web {web}: nothing to stop\n"));
    assert!(!other.has_ended() && of_other.iter().all(|&pid| lives(pid)));
    assert!(!stranger.has_ended());
    // All names, but only of this root.
    let sub = project.root.path().join("sub");
    fs::create_dir(&sub).expect("our own directory");
    let mut all = project.command(&["stop", "--all"]);
    all.current_dir(&sub);
    answer(all).code(0).prints_just("");
    assert!(!other.has_ended());
    let all = project.portlock(&["stop", "--all"]).code(0);
    assert_eq!(all.out().lines().count(), 2, "{}", all.out());
    assert!(other.wait().signal().is_some() && !of_other.iter().any(|&pid| lives(pid)));
    assert!(!stranger.has_ended());
}

#[test]
fn a_process_that_ignores_sigterm_is_killed_after_the_timeout() {
    let project = Project::new();
    let mut stubborn = project.start("web", "trap '' TERM; echo $$; exec sleep 100");
    stubborn.hear();
    let start = Instant::now();
    project
        .portlock(&["stop", "web", "--timeout=0.5"])
        .code(0)
        .warns_of_nothing();
    let took = start.elapsed().as_secs_f64();
    assert!((0.5..10.0).contains(&took), "{took}");
    assert_eq!(stubborn.wait().signal(), Some(Signal::KILL.as_raw()));
    let mut stubborn = project.start("web", "trap '' TERM; echo $$; exec sleep 100");
    stubborn.hear();
    project.portlock(&["stop", "web", "--timeout=0"]).code(0);
    assert_eq!(stubborn.wait().signal(), Some(Signal::KILL.as_raw()));
}

#[test]
fn a_server_has_time_to_shut_down() {
    let project = Project::new();
    let files = tempfile::tempdir().expect("a temporary directory");
    let saved = files.path().join("saved");
    let script = format!(
        "trap 'sleep 0.3; echo yes >{}; exit 5' TERM; echo ready; while :; do sleep 0.05; done",
        saved.display()
    );
    let mut server = project.start("web", &script);
    server.hear();
    project.portlock(&["stop", "web", "--timeout=60"]).code(0);
    assert_eq!(fs::read_to_string(saved).expect("it was saved"), "yes\n");
    assert_eq!(server.wait().code(), Some(5));
}

#[test]
fn processes_that_have_inherited_the_lease_are_stopped() {
    let project = Project::new();
    // Its parent has ended, like that of a server that daemonized.
    let script = "sleep 100 & sleep 101 & echo $! & wait $!; exit";
    let mut parent = project.start("web", script);
    let orphan = pids(&parent.hear());
    assert!(parent.wait().success());
    project.portlock(&["check", "web"]).code(1);
    let stopped = project
        .portlock(&["stop", "web"])
        .code(0)
        .warns_of_nothing();
    assert!(!lives(orphan[0]));
    assert_eq!(
        stopped.out().matches("(sleep)").count(),
        2,
        "{}",
        stopped.out()
    );
    project.portlock(&["check", "web"]).code(0);
}

#[test]
fn a_dry_run_shows_who_will_inherit_the_lease() {
    let project = Project::new();
    // The orphans of a holder that is still running, one with the lease and one without it.
    let closed = "3<&- 4<&- 5<&- 6<&- 7<&- 8<&- 9<&-";
    let script = format!(
        "sh -c 'sleep 100 & echo $!'; sh -c 'sleep 100 {closed} & echo $!'; echo ready; exec cat"
    );
    let mut holder = project.start("web", &script);
    let [heir, other] = [holder.hear(), holder.hear()].map(|line| pids(&line)[0]);
    assert_eq!(holder.hear(), "ready");
    let would = project.portlock(&["stop", "--dry-run", "web"]).code(0);
    let would = would.warns_of_nothing();
    assert!(
        would.out().contains(&format!(", pid {heir} (sleep)")),
        "{}",
        would.out()
    );
    assert!(lives(heir) && !holder.has_ended());
    let stopped = project.portlock(&["stop", "web"]).code(0);
    assert_eq!(stopped.out(), would.out().replace("would stop", "stopped"));
    assert!(!lives(heir) && lives(other));
    holder.wait();
    let other = rustix::process::Pid::from_raw(other.cast_signed()).expect("not 0");
    rustix::process::kill_process(other, Signal::KILL).expect("it is running");
}

#[test]
fn children_that_are_started_during_shutdown_are_stopped_too() {
    let project = Project::new();
    // One that has the lease, and one that has closed its inherited descriptors.
    let closed = "3<&- 4<&- 5<&- 6<&- 7<&- 8<&- 9<&-";
    for descriptors in ["", closed] {
        let script = format!(
            "trap 'sleep 100 {descriptors} & echo $!; wait' TERM; echo ready; \
             while :; do sleep 0.05; done"
        );
        let mut server = project.start("web", &script);
        server.hear();
        let mut stop = Running::start(project.command(&["stop", "web", "--timeout=2"]));
        let last = pids(&server.hear());
        assert!(stop.wait().success());
        assert!(!lives(last[0]));
        assert!(server.wait().signal().is_some());
    }
}

#[test]
fn a_process_that_leases_the_name_later_is_not_stopped() {
    let project = Project::new();
    let mut old = project.start(
        "web",
        "trap 'sleep 0.3; exit' TERM; echo ready; while :; do sleep 0.05; done",
    );
    old.hear();
    // It is waiting for the port.
    let mut new = project.start("web", "echo has it; exec cat");
    project.portlock(&["stop", "web"]).code(0);
    old.wait();
    assert_eq!(new.hear(), "has it");
    assert!(!new.has_ended());
    project.portlock(&["check", "web"]).code(1);
}

#[test]
fn portlock_and_its_ancestors_are_not_stopped() {
    let project = Project::new();
    // The lease is for this process.
    let web = project.portlock(&["pick", "--name=web"]).code(0).ports()[0];
    for options in [&[][..], &["--dry-run"], &["--timeout=0"]] {
        let stop = project
            .portlock(&[&["stop", "web"], options].concat())
            .code(TIMED_OUT);
        let stop = stop.prints_just(&format!("web {web}: not stopped\n"));
        stop.warns(&format!("leased by pid {}", std::process::id()));
    }
    // A command that stops its own name: its children could not be distinguished from portlock's own.
    let script = "sleep 100 & echo $!; portlock stop web; echo $?";
    let mut own = project.command(&["run", "--name=api", "--name=db", "--", "sh", "-c"]);
    own.arg(script.replace("web", "api"));
    let mut own = Running::start(own);
    let sleeper = pids(&own.hear());
    assert!(own.hear().ends_with("not stopped"));
    assert_eq!(own.hear(), TIMED_OUT.to_string());
    assert!(own.wait().success() && lives(sleeper[0]));
    project.portlock(&["stop", "api"]).code(0);
    assert!(!lives(sleeper[0]));
}

/// A caller that has joined the pid namespace is no descendant of its process 1.
#[test]
fn process_1_is_not_stopped() {
    if !am_root() || !is_installed("nsenter") {
        eprintln!("skipped: only root can join a namespace with nsenter(1)");
        return;
    }
    let project = Project::new();
    let root = project.root.path().to_str().expect("UTF-8");
    let script =
        format!("exec portlock run --name=web --root={root} -- sh -c 'echo ready; exec cat'");
    let options = "--pid --fork --kill-child --mount-proc";
    let Some(mut command) = project.scene.in_namespace(options, &script) else {
        return;
    };
    command.stdin(Stdio::piped());
    let mut unshare = Running::start(command);
    assert_eq!(unshare.hear(), "ready");
    let children = format!("/proc/{0}/task/{0}/children", unshare.id());
    let children = pids(&fs::read_to_string(children).expect("it is running"));
    let [process_1] = children[..] else {
        panic!("{children:?}");
    };
    let web = project.port("web");
    for option in ["--dry-run", "--timeout=0"] {
        let mut stop = project.scene.command("nsenter");
        stop.args(["--target", &process_1.to_string(), "--pid", "--mount"]);
        stop.args(["portlock", "stop", "web", "--root", root, option]);
        answer(stop)
            .code(TIMED_OUT)
            .prints_just(&format!("web {web}: not stopped\n"))
            .warns("leased by pid 1 ")
            .warns(", which is process 1\n");
        assert!(lives(process_1) && !unshare.has_ended());
    }
}

#[test]
fn names_of_one_process_are_stopped_together() {
    let project = Project::new();
    let args = [
        "run",
        "--name=web",
        "--name=api",
        "--",
        "sh",
        "-c",
        "echo ready; exec sleep 100",
    ];
    let mut holder = Running::start(project.command(&args));
    holder.hear();
    project.portlock(&["stop", "api"]).code(0);
    assert!(holder.wait().signal().is_some());
    project.portlock(&["check", "web", "api"]).code(0);
}

/// Every user can write any pid into a record there.
#[test]
fn nothing_is_stopped_in_a_directory_that_others_can_write_to() {
    let project = Project::new();
    portlock_testkit::set_mode(project.scene.dir(), 0o1777);
    let victim = project.scene.idle();
    let pid = victim.id().to_string();
    project
        .portlock(&["pick", "--name=web", "--pid", &pid])
        .code(0);
    let mut holder = project.start("api", "echo ready; exec cat");
    holder.hear();
    let (web, api) = (project.port("web"), project.port("api"));
    for dry_run in ["--dry-run", "--timeout=0"] {
        let stop = project.portlock(&["stop", dry_run, "web", "api"]);
        stop.code(TIMED_OUT)
            .prints_just(&format!("web {web}: not stopped\napi {api}: not stopped\n"))
            .warns(&format!("web {web} is leased by pid {pid} "))
            .warns("other users can write to lock directory");
    }
    assert!(lives(victim.id()) && !holder.has_ended());
}

/// The reservation ended with its root, and the port was leased to another process. Its copy counts
/// again when the root is created again.
#[test]
fn a_lease_of_a_port_whose_reservation_is_only_a_copy_is_not_stopped() {
    let project = Project::new();
    let root = project.root.path().join("worktree");
    fs::create_dir(&root).expect("our own directory");
    let root_text = root.to_str().expect("UTF-8");
    let in_root = |args: &[&str]| {
        let mut command = project.command(args);
        command.args(["--root", root_text, "web"]);
        answer(command)
    };
    let port = in_root(&["port"]).code(0).ports()[0].to_string();
    fs::remove_dir(&root).expect("our own directory");
    let args = [
        "run",
        "--ports",
        &port,
        "--",
        "sh",
        "-c",
        "echo ready; exec cat",
    ];
    let mut stranger = Running::start(project.command(&args));
    stranger.hear();
    fs::create_dir(&root).expect("our own directory");
    in_root(&["stop"])
        .code(0)
        .prints_just(&format!("web {port}: nothing to stop\n"));
    in_root(&["wait", "--timeout=0"]).code(TIMED_OUT);
    assert!(!stranger.has_ended());
}

#[test]
fn a_process_that_reuses_the_pid_is_not_signaled() {
    let project = Project::new();
    let mut stranger = project.scene.idle();
    let web = project.port("web");
    // The start time of a process has a resolution of 0.01 s, and times that differ by one unit are
    // treated as equal.
    thread::sleep(Duration::from_millis(100));
    // As if the process that leased it had ended, and this one had reused its pid.
    let mut holder = project.start("web", "echo ready; exec cat");
    holder.hear();
    holder.kill_only();
    let pid = stranger.id().to_string();
    project.scene.forge_word(web, 1, &pid);
    project.portlock(&["stop", "web", "--timeout=0"]).code(0);
    assert!(!stranger.has_ended());
}

#[test]
fn all_of_many_descendants_are_stopped() {
    let project = Project::new();
    let script = "for i in 1 2 3 4 5; do (sleep 100 & sleep 100 & sleep 100 & wait) & done; echo ready; wait";
    let mut holder = project.start("web", script);
    holder.hear();
    until("all descendants", || {
        let would = project.portlock(&["stop", "--dry-run", "web"]).code(0);
        (would.out().matches("(sleep)").count() == 15).then_some(())
    });
    let stop = project.portlock(&["stop", "web"]).code(0);
    assert_eq!(stop.out().matches("(sleep)").count(), 15, "{}", stop.out());
    assert!(holder.wait().signal().is_some());
}
