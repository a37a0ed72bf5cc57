//! A running process never loses its port: in containers, with other clocks, with a foreign or missing
//! /proc, with other users, and if a command closes the descriptors that it inherited.

#![cfg(target_os = "linux")]

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use portlock_testkit::{
    EXHAUSTED, FAILED, LEASED, OrdinaryUser, Running, Said, Scene, am_root, answer,
    in_initial_namespace, is_installed, set_mode, until,
};
use rustix::process::Signal;

const CONTAINER: &str = "--pid --fork --kill-child --mount-proc";

/// Returns every file in the lock directory, with its bytes and all metadata that a write changes.
fn snapshot(scene: &Scene) -> Vec<(PathBuf, Vec<u8>, u64, i64, i64)> {
    let entries = fs::read_dir(scene.dir()).expect("ours");
    let mut files: Vec<_> = entries
        .map(|entry| {
            let path = entry.expect("ours").path();
            let metadata = fs::symlink_metadata(&path).expect("ours");
            let bytes = match metadata.is_file() {
                true => fs::read(&path).expect("ours"),
                false => Vec::new(),
            };
            let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
            (path, bytes, metadata.ino(), seconds, nanoseconds)
        })
        .collect();
    files.sort();
    files
}

/// Returns the words of a port's record.
fn record(scene: &Scene, port: u16) -> Vec<String> {
    let bytes = fs::read(scene.dir().join(port.to_string())).expect("a lock file");
    let text = String::from_utf8(bytes).expect("ASCII");
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

/// Starts a script in namespaces. Its output is read line by line.
fn start(scene: &Scene, kind: &str, script: &str) -> Option<Running> {
    scene.in_namespace(kind, script).map(Running::start)
}

/// Asserts that a delegated lease is visible here and in namespaces of this kind.
#[track_caller]
fn assert_delegated_from(scene: &Scene, kind: &str, before: &str) {
    let (port, old) = (scene.port(), snapshot(scene));
    let script = format!(
        "{before} portlock check {port}; echo $?
        portlock pick --timeout 0 --ports {port} --pid $$; echo $?
        portlock run --timeout 0 --ports {port} true; echo $?
        portlock list | grep -c delegated; portlock clean"
    );
    let Some(observer) = scene.in_namespace(kind, &script) else {
        return;
    };
    let said = answer(observer).code(0);
    let lines: Vec<&str> = said.out().lines().collect();
    let [check, code, pick, run, listed, cleaned] = lines[..] else {
        panic!("{lines:?}");
    };
    assert!(
        check.starts_with(&format!("{port} leased by pid")),
        "{check}"
    );
    assert_eq!((code, pick, run), ("1", "75", "75"));
    assert_eq!((listed, cleaned), ("1", "0 lock files removed, 1 kept"));
    assert_eq!(snapshot(scene), old);
    scene.assert_leased(port);
}

#[test]
fn a_container_with_another_boot_id_does_not_take_a_port() {
    let scene = Scene::new(1);
    let idle = scene.idle();
    scene
        .portlock(["pick", "--pid", &idle.id().to_string()])
        .code(0);
    let boot = "/proc/sys/kernel/random/boot_id";
    let other = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(other.path(), "6e1f7a4e-0c55-4f3e-a1d0-3e9b3c1f0a77\n").expect("ours");
    let bind = format!("mount --bind {} {boot} &&", other.path().display());
    assert_delegated_from(&scene, &format!("--mount {CONTAINER}"), &bind);
    idle.finish();
    scene.assert_leasable(scene.port());
}

#[test]
fn a_container_cannot_release_a_lease_of_an_invisible_process() {
    let scene = Scene::new(1);
    let (port, idle) = (scene.port(), scene.idle());
    scene
        .portlock(["pick", "--pid", &idle.id().to_string()])
        .code(0);
    let Some(release) = scene.in_namespace(CONTAINER, &format!("portlock release {port}")) else {
        return;
    };
    answer(release)
        .code(FAILED)
        .warns("cannot be seen from here");
    scene.assert_leased(port);
    if am_root() {
        set_mode(scene.dir(), 0o1777);
        set_mode(&scene.dir().join(port.to_string()), 0o666);
        let user = OrdinaryUser::new();
        let release = user.portlock(&scene, &["release", &port.to_string()]);
        release.code(FAILED).warns("not this user's");
        set_mode(scene.dir(), 0o700);
        scene.assert_leased(port);
    }
    idle.finish();
}

#[test]
fn a_process_is_recognized_under_another_clock() {
    let scene = Scene::new(1);
    let clock = "--time --boottime 86400 --fork";
    let idle = scene.idle();
    scene
        .portlock(["pick", "--pid", &idle.id().to_string()])
        .code(0);
    assert_delegated_from(&scene, clock, "");
    idle.finish();
    scene.assert_leasable(scene.port());

    // The reverse: recorded under the other clock.
    let script = "portlock pick --pid $$; read line";
    let Some(holder) = start(&scene, clock, script) else {
        return;
    };
    assert_eq!(holder.hear(), scene.port().to_string());
    assert_delegated_from(&scene, CONTAINER, "");
    assert_delegated_from(&scene, clock, "");
    holder.finish();
    scene.assert_leasable(scene.port());
}

#[test]
fn nothing_from_a_foreign_proc_is_recorded_or_believed() {
    let scene = Scene::new(1);
    let port = scene.port();
    // /proc is still that of the outer namespace.
    let kind = "--pid --fork --kill-child";
    // At the end no process here has that pid, but /proc shows another process with it.
    let script = format!(
        "tail -f /dev/null & portlock pick --pid $!; read line; kill $!; wait
        portlock check {port}; echo ended; read line"
    );
    let Some(mut holder) = start(&scene, kind, &script) else {
        return;
    };
    assert_eq!(holder.hear(), port.to_string());
    let words = record(&scene, port);
    assert_eq!(
        (&words[0][..], &words[2][..], &words[5][..]),
        ("delegated", "-", "-")
    );
    scene.assert_leased(port);
    let script = format!("portlock check {port}; echo $?; portlock clean");
    let observer = scene.in_namespace(kind, &script).expect("as before");
    let said = answer(observer).code(0);
    assert!(
        said.out().contains("\n1\n0 lock files removed"),
        "{}",
        said.out()
    );
    holder.say("end it");
    assert_eq!(holder.hear(), format!("{port} free"));
    assert_eq!(holder.hear(), "ended");
    if in_initial_namespace() {
        scene.assert_leasable(port);
    }
    holder.finish();
}

#[test]
fn the_user_of_a_process_is_not_read_from_a_foreign_proc() {
    if !am_root() {
        eprintln!("skipped: only root can run this as two users");
        return;
    }
    let scene = Scene::new(1);
    let port = scene.port();
    // The pid is small, and in the outer /proc it belongs to a kernel thread of root.
    let script = format!(
        "setpriv --reuid 65534 --regid 65534 --clear-groups tail -f /dev/null &
        portlock pick --pid $!; portlock release {port}; echo $?"
    );
    let Some(container) = scene.in_namespace("--pid --fork --kill-child", &script) else {
        return;
    };
    let said = answer(container).code(0).warns("not this user's");
    said.prints_just(&format!("{port}\n{FAILED}\n"));
}

#[test]
fn without_proc_nothing_is_delegated() {
    let scene = Scene::new(1);
    let port = scene.port();
    let script = format!(
        "mount -t tmpfs none /proc && portlock pick --pid $$; echo $?
        portlock run --ports {port} sh -c 'echo $PORT'; echo $?"
    );
    let Some(container) = scene.in_namespace(&format!("--mount {CONTAINER}"), &script) else {
        return;
    };
    let said = answer(container).code(0).warns("/proc does not show");
    // `run` relies only on its lock.
    said.prints_just(&format!("{FAILED}\n{port}\n0\n"));
    scene.assert_leasable(port);
}

#[test]
fn an_observer_that_may_inspect_only_some_processes_counts_the_others() {
    if !am_root() {
        eprintln!("skipped: only root can run this as two users");
        return;
    }
    let scene = Scene::new(1);
    let port = scene.port();
    set_mode(scene.dir(), 0o1777);
    // The delegate is root's; another process in there is the observer's own.
    let script = "tail -f /dev/null & holder=$!
        setpriv --reuid 65534 --regid 65534 --clear-groups tail -f /dev/null &
        portlock pick --pid $holder; read line; kill $holder; wait $holder; echo ended; read line";
    let Some(mut holder) = start(&scene, CONTAINER, script) else {
        return;
    };
    assert_eq!(holder.hear(), port.to_string());
    let user = OrdinaryUser::new();
    let ports = port.to_string();
    let leased = |check: assert_cmd::assert::Assert| {
        check.code(LEASED).prints(&format!("{port} leased by pid"))
    };
    leased(user.portlock(&scene, &["check", &ports]));
    leased(scene.check(port));
    let run = user.portlock(&scene, &["run", "--timeout=0", "true"]);
    run.code(EXHAUSTED).warns("1 leased");
    user.portlock(&scene, &["clean"])
        .code(0)
        .prints("0 lock files removed");
    holder.say("end it");
    assert_eq!(holder.hear(), "ended");
    if in_initial_namespace() {
        user.portlock(&scene, &["check", &ports])
            .code(0)
            .prints(&format!("{port} free"));
    }
    holder.finish();
}

#[test]
fn an_observer_with_a_restricted_proc_cannot_take_a_port() {
    if !am_root() {
        eprintln!("skipped: only root can mount /proc with hidepid here");
        return;
    }
    let scene = Scene::new(1);
    let port = scene.port();
    set_mode(scene.dir(), 0o1777);
    let script = "portlock pick --pid $$; read line";
    let Some(holder) = start(&scene, CONTAINER, script) else {
        return;
    };
    assert_eq!(holder.hear(), port.to_string());
    let user = OrdinaryUser::new();
    for how in ["hidepid=2", "hidepid=1", "subset=pid,hidepid=2"] {
        // The observer is in the pid namespace of these tests.
        let script = format!(
            "mount -t proc -o {how} proc /proc || exit 9
            setpriv --reuid 65534 --regid 65534 --clear-groups {} check {port}",
            user.path().display()
        );
        let observer = scene.in_namespace("--mount", &script).expect("root may");
        let said = answer(observer);
        if said.get_output().status.code() == Some(9) {
            eprintln!("skipped: /proc cannot be mounted with {how}");
            continue;
        }
        said.code(LEASED).prints(&format!("{port} leased by pid"));
    }
    holder.finish();
}

#[test]
fn a_process_nested_deeper_than_the_record_is_found() {
    let scene = Scene::new(1);
    let port = scene.port();
    let script = "unshare --pid --fork --kill-child tail -f /dev/null & unshare=$!
        until x=$(cat /proc/$unshare/task/$unshare/children) && [ $x ] \
            && [ $(cat /proc/${x% }/comm) = tail ]; do :; done
        portlock pick --pid $x; read line; kill -9 $x; wait $unshare; echo ended; read line";
    let Some(mut holder) = start(&scene, CONTAINER, script) else {
        return;
    };
    assert_eq!(holder.hear(), port.to_string());
    scene.assert_leased(port);
    scene
        .portlock(["clean"])
        .code(0)
        .prints("0 lock files removed");
    if am_root() {
        set_mode(scene.dir(), 0o1777);
        set_mode(&scene.dir().join(port.to_string()), 0o666);
        let user = OrdinaryUser::new();
        let run = user.portlock(&scene, &["run", "--timeout=0", "true"]);
        run.code(EXHAUSTED).warns("1 leased");
        set_mode(scene.dir(), 0o700);
    }
    scene.assert_leased(port);
    holder.say("end it");
    assert_eq!(holder.hear(), "ended");
    scene.assert_leasable(port);
    holder.finish();
}

#[test]
fn a_process_of_an_ended_container_keeps_no_port() {
    let scene = Scene::new(1);
    let port = scene.port();
    let ended = format!("portlock run --ports {port} true; echo $?");
    let Some(container) = scene.in_namespace(CONTAINER, &ended) else {
        return;
    };
    answer(container).code(0).prints_just("0\n");
    assert_eq!(record(&scene, port)[0], "passed");
    let next = format!("portlock run --timeout 0 --ports {port} true; echo $?");
    let next = || answer(scene.in_namespace(CONTAINER, &next).expect("as before"));
    next().code(0).prints_just("0\n");

    // Kill the container with all of its processes.
    let script = format!("portlock run --ports {port} sh -c 'echo $PORT; read line'");
    let container = start(&scene, CONTAINER, &script).expect("as before");
    assert_eq!(container.hear(), port.to_string());
    next().code(0).prints_just(&format!("{EXHAUSTED}\n"));
    container.kill();
    until("the container ends", || {
        (next().code(0).out() == "0\n").then_some(())
    });
}

#[test]
fn an_exiting_process_keeps_no_port() {
    if !is_installed("nsenter") {
        return;
    }
    let scene = Scene::new(1);
    let mut unshare = scene.command("unshare");
    unshare.args(["--pid", "--fork", "--kill-child", "cat"]);
    if !am_root() {
        eprintln!("skipped: only root can enter a pid namespace");
        return;
    }
    let unshare = Running::start(unshare);
    let child_of = |pid: u32, program: &str| {
        until("it has a child", || {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            let child: u32 = children.ok()?.trim().parse().ok()?;
            let comm = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
            (comm.trim() == program).then_some(child)
        })
    };
    let first = child_of(unshare.id(), "cat");
    // The first process of a namespace ends only after all others have been reaped. The parent of one
    // of them is outside, and is stopped, so it does not reap it.
    let mut nsenter = scene.command("nsenter");
    nsenter.args([
        "--target",
        &first.to_string(),
        "--pid",
        "tail",
        "-f",
        "/dev/null",
    ]);
    let nsenter = Running::start(nsenter);
    child_of(nsenter.id(), "tail");
    nsenter.signal(Signal::STOP);
    scene
        .portlock(["pick", "--pid", &first.to_string()])
        .code(0);
    scene.assert_leased(scene.port());
    answer(scene.script("sh", &format!("kill -9 {first}"))).code(0);
    let flags = || {
        let stat = fs::read_to_string(format!("/proc/{first}/stat")).expect("not waited for");
        let (_, fields) = stat.rsplit_once(')').expect("its name ends");
        let fields: Vec<String> = fields.split_whitespace().map(str::to_owned).collect();
        (
            fields[0].clone(),
            fields[9 - 3].parse::<u64>().expect("flags"),
        )
    };
    until("it is ending", || (flags().1 & 4 != 0).then_some(()));
    assert_ne!(flags().0, "Z", "not a zombie yet");
    scene.assert_leasable(scene.port());
    nsenter.signal(Signal::CONT);
    nsenter.kill();
    unshare.finish();
}

#[test]
fn a_process_of_which_only_the_first_thread_has_ended_keeps_its_port() {
    if !is_installed("python3") {
        return;
    }
    let scene = Scene::new(1);
    let script = "import ctypes, sys, threading
threading.Thread(target=sys.stdin.read).start()
print('ready', flush=True)
ctypes.CDLL(None).pthread_exit(None)";
    let mut python = scene.command("python3");
    python.args(["-c", script]);
    let python = Running::start(python);
    assert_eq!(python.hear(), "ready");
    let stat = || fs::read_to_string(format!("/proc/{}/stat", python.id())).expect("it runs");
    until("its first thread ends", || {
        stat().contains(") Z ").then_some(())
    });
    let pick = ["pick", "--pid", &python.id().to_string()];
    scene.portlock(pick).code(0);
    scene.assert_leased(scene.port());
    scene
        .portlock(["clean"])
        .code(0)
        .prints("0 lock files removed");
    python.kill();
    scene.assert_leasable(scene.port());
}

/// Leases a port for a command that closes inherited descriptors. Waits until `is_closed`.
#[track_caller]
fn a_command_that_closes_its_descriptors_keeps_its_port(scene: &Scene, command: &[&str]) {
    let port = scene.port();
    let mut run = scene.program(["run", "--"]);
    run.args(command);
    let running = Running::start(run);
    // Until then the lock is held.
    until("it closes its descriptors", || {
        let list = scene.list();
        (list.first()?["state"] == "delegated").then_some(())
    });
    scene.assert_leased(port);
    assert_eq!(scene.list()[0]["pid"], running.id());
    scene
        .portlock(["clean"])
        .code(0)
        .prints("0 lock files removed");
    running.kill();
    scene.assert_leasable(port);
}

#[test]
fn ssh_keeps_its_port_under_run() {
    if !is_installed("ssh") {
        return;
    }
    // It ends when its input pipe is closed.
    let proxy = "ProxyCommand=cat";
    a_command_that_closes_its_descriptors_keeps_its_port(
        &Scene::new(1),
        &[
            "ssh",
            "-N",
            "-L",
            "{port}:localhost:1",
            "-o",
            proxy,
            "nowhere",
        ],
    );
}

#[test]
fn python_keeps_its_port_under_run_and_can_release_it() {
    if !is_installed("python3") {
        return;
    }
    let scene = Scene::new(1);
    let script = "import os, sys; os.closerange(3, 1024); sys.stdin.read()";
    a_command_that_closes_its_descriptors_keeps_its_port(&scene, &["python3", "-c", script]);

    let script =
        "import os, sys; os.closerange(3, 1024); print('closed', flush=True); sys.stdin.read()";
    let run = scene.program(["run", "--", "python3", "-c", script]);
    let running = Running::start(run);
    assert_eq!(running.hear(), "closed");
    scene.assert_leased(scene.port());
    scene
        .portlock(["release", &scene.port().to_string()])
        .code(0);
    scene.assert_leasable(scene.port());
    running.finish();
}

#[test]
fn a_child_that_outlives_the_command_keeps_the_port_and_is_named() {
    let scene = Scene::new(1);
    let port = scene.port();
    let script = "exec 9<&0; cat <&9 >/dev/null & echo $!";
    let run = scene.program(["run", "--label", "handed down", "--", "sh", "-c", script]);
    let mut shell = Running::start(run);
    let shell_pid = shell.id();
    let heir: u32 = shell.hear().parse().expect("a pid");
    shell.wait();
    let is_cat = || fs::read_to_string(format!("/proc/{heir}/comm")).is_ok_and(|it| it == "cat\n");
    until("the child runs", || is_cat().then_some(()));

    let list = scene.list();
    assert_eq!(list[0]["state"], "inherited", "{list:?}");
    assert_eq!(list[0]["heir"]["pid"], heir);
    assert_eq!(list[0]["heir"]["program"], "cat");
    assert_eq!(list[0]["pid"], shell_pid);
    let named = format!(
        "pid {heir} \"cat\", which inherited it from pid {shell_pid} \"portlock\" (handed down)"
    );
    scene
        .check(port)
        .code(LEASED)
        .prints(&format!("{port} leased by {named}"));
    let row = scene.portlock(["list"]).code(0);
    assert!(row.out().contains(&format!("{heir} ")), "{}", row.out());
    assert!(!row.out().contains(&shell_pid.to_string()), "{}", row.out());
    let run = scene.portlock(["run", "--timeout=0", "true"]);
    run.code(EXHAUSTED).warns(&format!("{port} by {named}"));
    let release = scene.portlock(["release", &port.to_string()]);
    release
        .code(FAILED)
        .warns(&format!("it is held by {named}"));

    if am_root() {
        set_mode(scene.dir(), 0o1777);
        set_mode(&scene.dir().join(port.to_string()), 0o666);
        let user = OrdinaryUser::new();
        let check = user.portlock(&scene, &["check", &port.to_string()]);
        check.code(LEASED).prints(&format!(
            "{port} leased by a process that inherited it from pid {shell_pid}"
        ));
        set_mode(scene.dir(), 0o700);
    }
    // The child's input is this test's.
    shell.close();
    until("the child ends", || {
        let check = scene.portlock(["check", &port.to_string()]);
        (check.out() == format!("{port} free\n")).then_some(())
    });
    scene.assert_leasable(port);
}

#[test]
fn read_only_commands_never_write() {
    let scene = Scene::new(5);
    let ports: Vec<u16> = scene.ports().collect();
    let [stale, delegated, of_nobody, held, unused] = ports[..] else {
        unreachable!("there are five");
    };
    let ports = |port: u16| ["--ports".to_owned(), port.to_string()];
    let run =
        |port| scene.portlock([&["run".to_owned()], &ports(port)[..], &["true".into()]].concat());
    run(stale).code(0);
    run(of_nobody).code(0);
    // Records that a caller could mistake for those of ended processes.
    scene.forge(
        of_nobody,
        format!("{:511}\n", "delegated 8388608 1 1 1763683200 - -"),
    );
    let idle = scene.idle();
    let pick = [
        "pick",
        "--pid",
        &idle.id().to_string(),
        "--ports",
        &delegated.to_string(),
    ];
    scene.portlock(pick).code(0);
    let (holder, _) = scene.hold(&["--ports", &held.to_string()]);

    let before = snapshot(&scene);
    for port in [stale, delegated, of_nobody, held, unused].map(|port| port.to_string()) {
        let _ = scene.portlock(["check", &port]);
        let _ = scene.portlock(["check", "--json", &port]);
        let _ = scene.portlock(["wait", "--timeout", "0", &port]);
    }
    for args in [
        &["list"][..],
        &["list", "--all"],
        &["list", "--json"],
        &["list", "--map"],
        &["dir"],
        &["dir", "--json"],
    ] {
        scene.portlock(args).code(0);
    }
    assert_eq!(snapshot(&scene), before);
    assert!(!scene.dir().join(unused.to_string()).exists());

    // Except for the wait queue.
    for port in [stale, held, unused].map(|port| port.to_string()) {
        let _ = scene.portlock(["wait", "--free", "--timeout", "0.1", &port]);
    }
    let is_queue = |path: &Path| path.to_string_lossy().contains("/.waiting.");
    let mut after = snapshot(&scene);
    after.retain(|(path, ..)| !is_queue(path));
    assert_eq!(after, before);
    holder.finish();
    idle.finish();
}

#[test]
fn a_check_of_a_port_without_a_lock_file_names_the_process_that_has_bound_it() {
    let scene = Scene::new(1);
    let port = scene.port();
    scene
        .check(port)
        .code(0)
        .prints_just(&format!("{port} free\n"));
    let bound = portlock_testkit::bind_strictly(port).expect("free");
    scene
        .check(port)
        .code(portlock_testkit::BOUND)
        .prints(&format!("{port} bound"));
    drop(bound);
    assert_eq!(fs::read_dir(scene.dir()).expect("ours").count(), 0);
}

#[test]
fn a_read_only_lock_directory_can_be_listed_and_checked() {
    if !is_installed("unshare") {
        return;
    }
    let scene = Scene::new(1);
    let port = scene.port();
    let idle = scene.idle();
    scene
        .portlock(["pick", "--pid", &idle.id().to_string()])
        .code(0);
    let dir = scene.dir().display();
    let script = format!(
        "mount --bind -o ro {dir} {dir} && portlock check {port}; echo $?; portlock list | grep -c {port}"
    );
    let Some(observer) = scene.in_namespace("--mount", &script) else {
        return;
    };
    let said = answer(observer).code(0);
    let lines: Vec<&str> = said.out().lines().collect();
    assert!(lines[0].contains("leased by pid"), "{lines:?}");
    assert_eq!(lines[1..], ["1", "1"]);
    idle.finish();
}
