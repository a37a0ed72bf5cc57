//! `portlock pick` without `--pid`: the process that it leases for, by where it is called from.

#![cfg(target_os = "linux")]

use std::{
    env, fs,
    process::{Command, Stdio, exit, id},
};

use portlock_testkit::{
    FAILED, OrdinaryUser, Running, Said, Scene, am_root, answer, in_initial_namespace,
    is_installed, set_mode, until,
};
use rustix::process::{WaitOptions, getpid, set_child_subreaper, wait};
use tempfile::TempDir;

/// The kind of standard output of a script.
#[derive(Clone, Copy, Debug)]
enum Output {
    File,
    Pipe,
}

const OUTPUTS: [Output; 2] = [Output::File, Output::Pipe];

/// Starts a program with its standard output on a file or a pipe. It reports on descriptor 3.
struct Script {
    running: Running,
    _files: TempDir,
}

impl Script {
    fn start(scene: &Scene, words: &[&str], output: Output, files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (name, text) in files {
            fs::write(dir.path().join(name), text).expect("our own directory");
        }
        let start = match output {
            Output::File => r#"exec 3>&1; exec "$@" >output"#,
            Output::Pipe => r#"exec 3>&1; "$@" | cat >output"#,
        };
        let mut command = scene.script("sh", start);
        command.arg("sh").args(words).current_dir(dir.path());
        Self {
            running: Running::start(command),
            _files: dir,
        }
    }

    /// Returns the process that the program names, and the port that was leased for it.
    #[track_caller]
    fn hear(&self) -> (u32, u16) {
        let said = self.running.hear();
        let words = said.split_once(' ');
        let words = words.and_then(|(pid, port)| Some((pid.parse().ok()?, port.parse().ok()?)));
        words.unwrap_or_else(|| panic!("no pid and port: {said:?}"))
    }
}

/// Asserts that the program, which prints its pid and port, has the lease until it ends.
#[track_caller]
fn assert_leases_for_itself(words: &[&str], files: &[(&str, &str)]) {
    for output in OUTPUTS {
        let scene = Scene::new(1);
        let script = Script::start(&scene, words, output, files);
        let (pid, port) = script.hear();
        assert_eq!(port, scene.port());
        let list = scene.list();
        assert!(
            list.len() == 1 && list[0]["pid"] == pid,
            "{words:?} to a {output:?}, {pid}: {list:?}"
        );
        scene.assert_leased(port);
        script.running.finish();
        scene.assert_leasable(port);
    }
}

/// Prints pid and port, and waits.
const SAY: &str = "echo $$ $P >&3; read line";

#[track_caller]
fn assert_shells_lease_for_themselves(scripts: &[&str]) {
    for shell in ["bash", "dash", "zsh"] {
        if !is_installed_quietly(shell) {
            continue;
        }
        for script in scripts {
            assert_leases_for_itself(&[shell, "-c", &format!("{script}; {SAY}")], &[]);
        }
    }
}

/// dash has no `--version`, and waits for input.
fn is_installed_quietly(shell: &str) -> bool {
    let status = Command::new(shell).args(["-c", "true"]).status();
    let installed = status.is_ok_and(|status| status.success());
    if !installed {
        eprintln!("skipped: {shell} is not installed");
    }
    installed
}

#[test]
fn a_script_that_captures_the_port_has_the_lease() {
    assert_shells_lease_for_themselves(&[
        "P=$(portlock pick)",
        "P=`portlock pick`",
        "P=$(portlock pick 2>/dev/null)",
        "P=$(portlock pick 2>&1)",
        "P=$(portlock pick) || exit 1",
        "P=$(portlock pick || echo none)",
        "P=$(portlock pick && true)",
        "if P=$(portlock pick); then :; fi",
        "f() { portlock pick; }; P=$(f)",
        "f() { P=$(portlock pick); }; f",
    ]);
}

#[test]
fn programs_that_only_run_portlock_are_skipped() {
    assert_shells_lease_for_themselves(&[
        "P=$(timeout 60 portlock pick)",
        "P=$(timeout 60 portlock pick 2>/dev/null)",
        "P=$(env A=1 sh -c 'portlock pick; true')",
        "P=$(echo pick | xargs timeout 60 portlock)",
        "P=$(cd / && (timeout 60 portlock pick) 2>&1)",
        "P=$(setsid --wait portlock pick)",
    ]);
}

#[test]
fn subshells_whose_output_is_captured_are_skipped() {
    assert_shells_lease_for_themselves(&[
        "P=$(portlock pick | head -n 1)",
        "P=$( ( portlock pick | tail -n 1 ) )",
        "f() ( cd /; portlock pick | tail -n 1 ); P=$(f)",
        "f() ( n=$(portlock pick); echo $n ); P=$(f)",
        "P=$(timeout 60 portlock pick | cat | head -n 1)",
        "f() { n=$(portlock pick); echo $n; }; P=$(f)",
        "f() { n=$(timeout 60 portlock pick); echo $n; }; P=$(f)",
        "f() { n=$(portlock pick); echo $n; }; P=$(f | head -n 1)",
        "f() { n=$(portlock pick); echo $n; }; g() { m=$(f 2>&1); echo $m; }; P=$(g)",
    ]);
}

#[test]
fn a_script_that_reads_from_a_pipeline_or_a_named_pipe_has_the_lease() {
    assert_shells_lease_for_themselves(&[
        "exec 4<&0; portlock pick | { read P; echo $$ $P >&3; read line <&4; }; exec 3>/dev/null",
        "mkfifo fifo; (portlock pick; true) >fifo & read P <fifo",
        "portlock pick >file; read P <file",
    ]);
}

#[test]
fn a_port_that_is_not_captured_is_leased_for_the_process_that_reads_the_output() {
    let scene = Scene::new(1);
    // The script has the pipe from this process.
    for script in ["portlock pick; true", "timeout 60 portlock pick; true"] {
        answer(scene.script("sh", script)).code(0);
        assert_eq!(scene.list()[0]["pid"], id());
        scene.release_all();
    }
    // With a file as output, no process can be seen to pass it on, so the parent has the lease.
    let script = "portlock pick >/dev/null; portlock list --json >&2; timeout 60 true";
    answer(scene.script("sh", script))
        .code(0)
        .warns("delegated");
    scene.assert_leasable(scene.port());
}

#[test]
fn a_background_subshell_has_its_own_leases() {
    // Its input would be /dev/null. Only bash has a variable for the pid of a subshell.
    let script = "exec 4<&0
        ( for i in 1 2; do P=$(portlock pick); done
          echo $(exec sh -c 'echo $PPID') $P >&3; read line <&4 ) &
        wait; echo $$ 0 >&3; read line";
    for shell in ["bash", "dash", "zsh"] {
        if !is_installed_quietly(shell) {
            continue;
        }
        for output in OUTPUTS {
            let scene = Scene::new(2);
            let mut script = Script::start(&scene, &[shell, "-c", script], output, &[]);
            let (subshell, _) = script.hear();
            let list = scene.list();
            assert!(list.len() == 2, "{list:?}");
            assert!(
                list.iter().all(|lease| lease["pid"] == subshell),
                "{list:?}"
            );
            for port in scene.ports() {
                scene.assert_leased(port);
            }
            script.running.say("end");
            let (shell, _) = script.hear();
            assert_ne!(shell, subshell);
            // The script has not ended.
            for port in scene.ports() {
                scene.assert_leasable(port);
            }
            script.running.finish();
        }
    }
}

#[test]
fn make_has_the_lease_of_a_variable_and_the_shell_that_of_a_recipe() {
    if !is_installed("make") {
        return;
    }
    for makefile in [
        "P := $(shell portlock pick 2>/dev/null)\nall:\n\t@echo $$PPID $(P) >&3; read line || :\n",
        "P := $(shell timeout 60 portlock pick)\nall:\n\t@echo $$PPID $(P) >&3; read line || :\n",
        "all:\n\t@P=$$(portlock pick 2>/dev/null); echo $$$$ $$P >&3; read line || :\n",
    ] {
        assert_leases_for_itself(&["make"], &[("Makefile", makefile)]);
    }
}

#[test]
fn an_interpreter_has_the_leases_of_its_subprocesses() {
    if is_installed("python3") {
        for call in [
            "['portlock', 'pick']",
            "'portlock pick 2>/dev/null', shell=True",
            "'timeout 60 portlock pick; true', shell=True",
        ] {
            let script = format!(
                "import os, subprocess, sys\nP = subprocess.check_output({call}).decode()\n\
                 os.write(3, f'{{os.getpid()}} {{P}}'.encode()); sys.stdin.read()"
            );
            assert_leases_for_itself(&["python3", "-c", &script], &[]);
        }
        // A forked worker, as in multiprocessing.
        let script = "import os, subprocess, sys\n\
            if os.fork() == 0:\n  \
              P = subprocess.check_output('timeout 60 portlock pick', shell=True).decode()\n  \
              os.write(3, f'{os.getpid()} {P}'.encode()); sys.stdin.read(); os._exit(0)\n\
            os.wait()";
        assert_leases_for_itself(&["python3", "-c", script], &[]);
    }
    if is_installed("node") {
        // execSync uses a socket where others use a pipe.
        for command in [
            "portlock pick",
            "portlock pick 2>/dev/null; true",
            "timeout 60 portlock pick",
        ] {
            let script = format!(
                "const P = require('child_process').execSync('{command}'), fs = require('fs');\n\
                 fs.writeSync(3, `${{process.pid}} ${{P}}`); fs.readFileSync(0);"
            );
            assert_leases_for_itself(&["node", "-e", &script], &[]);
        }
    }
    if is_installed("fish") {
        for capture in [
            "set P (portlock pick)",
            "set P (timeout 60 portlock pick | head -n 1)",
            "function f; set n (portlock pick); echo $n; end; set P (f)",
        ] {
            let script = format!("{capture}; echo $fish_pid $P >&3; read line");
            assert_leases_for_itself(&["fish", "-c", &script], &[]);
        }
    }
}

/// The help names a pid to use if the caller ends right away.
#[test]
fn the_pids_in_the_help_are_correct() {
    let step = r#"echo "P=$(portlock pick --pid $PPID)" >>"$GITHUB_ENV""#;
    let runner = format!("export GITHUB_ENV=env; bash -e step; . ./env; {SAY}");
    // direnv is a process between the shell and the bash that reads .envrc.
    let envrc = "P=$(portlock pick --pid $(ps -o ppid= $PPID)); echo P=$P";
    let direnv = format!(r#"eval "$(sh -c 'bash .envrc; true')"; {SAY}"#);
    let printer = "#!/bin/sh\ntimeout 60 portlock pick";
    let printed = format!("P=$(sh printer); {SAY}");
    let files = [("step", step), (".envrc", envrc), ("printer", printer)];
    if is_installed("bash") && is_installed("ps") {
        for script in [&runner, &direnv, &printed] {
            assert_leases_for_itself(&["bash", "-c", script], &files);
        }
        let file = format!("timeout 60 portlock pick --pid $$ >file; read P <file; {SAY}");
        assert_leases_for_itself(&["bash", "-c", &file], &[]);
    }
}

// ---------------------------------------------------------------------------
// Namespaces.

/// A shell that is process 1 of a pid namespace.
const CONTAINER: &str = "--pid --fork --kill-child --mount-proc";

/// The lease ends with the container. It cannot be distinguished from a process in another container
/// with the same pid and start time.
#[track_caller]
fn assert_ends(scene: &Scene) {
    until("the end of the lease", || {
        let check = scene.check(scene.port());
        (check.get_output().status.code() == Some(0)).then_some(())
    });
    scene.assert_leasable(scene.port());
}

/// Returns whether this process sees all other processes.
fn is_initial_namespace() -> bool {
    let is_initial = in_initial_namespace();
    if !is_initial {
        eprintln!("skipped: this needs the initial pid namespace");
    }
    is_initial
}

#[test]
fn process_1_of_a_container_is_a_caller() {
    for capture in [
        "portlock pick",
        "timeout 60 portlock pick 2>/dev/null",
        "portlock pick | head -n 1",
    ] {
        let scene = Scene::new(1);
        let script = format!("P=$({capture}); echo $$ $P; read line");
        let Some(command) = scene.in_namespace(CONTAINER, &script) else {
            return;
        };
        let container = Running::start(command);
        assert_eq!(container.hear(), format!("1 {}", scene.port()));
        scene.assert_leased(scene.port());
        assert_eq!(scene.list()[0]["pid"], 1);
        container.finish();
        // From within a container, it cannot be seen that another one has ended.
        if is_initial_namespace() {
            assert_ends(&scene);
        }
    }
}

#[test]
fn process_1_of_a_container_that_passes_the_port_on_must_name_a_process() {
    let scene = Scene::new(1);
    // Its standard output is the same as portlock's.
    let script = "portlock pick; echo $?; portlock pick --pid 1; true";
    let Some(shell) = scene.in_namespace(CONTAINER, script) else {
        return;
    };
    let shell = answer(shell).code(0).warns("namespace").warns("--pid $$");
    shell.prints_just(&format!("{FAILED}\n{}\n", scene.port()));
}

#[test]
fn a_caller_outside_the_container_must_name_a_process() {
    if !am_root() || !is_installed("nsenter") {
        eprintln!("skipped: only root can enter the namespace of a container");
        return;
    }
    let scene = Scene::new(1);
    let Some(command) = scene.in_namespace(CONTAINER, "echo ready; read line") else {
        return;
    };
    let container = Running::start(command);
    assert_eq!(container.hear(), "ready");
    let unshare = container.id();
    let first = until("process 1 of the container", || {
        let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"));
        children.expect("unshare runs").trim().parse::<u32>().ok()
    });
    let enter = |words: &[&str]| {
        let mut command = scene.command("nsenter");
        command.args(["--pid", "--mount", "--target", &first.to_string(), "--"]);
        command.args(words);
        command
    };
    // As `docker exec` does.
    answer(enter(&["portlock", "pick"]))
        .code(FAILED)
        .prints_just("")
        .warns("--pid");
    answer(enter(&["timeout", "60", "portlock", "pick"]))
        .code(FAILED)
        .warns("--pid");
    scene.assert_no_lease();
    let shell = Running::start(enter(&[
        "sh",
        "-c",
        "P=$(portlock pick); echo $P; read line",
    ]));
    assert_eq!(shell.hear(), scene.port().to_string());
    scene.assert_leased(scene.port());
    shell.finish();
    assert_ends(&scene);
    container.finish();
}

#[test]
fn without_its_own_proc_a_caller_must_name_a_process() {
    for (kind, prepare) in [
        // /proc is that of the outer namespace.
        ("--pid --fork --kill-child", ""),
        (
            "--mount --pid --fork --kill-child",
            "mount -t tmpfs none /proc; ",
        ),
    ] {
        let scene = Scene::new(1);
        let script = format!("{prepare}P=$(portlock pick); echo $?$P; true");
        let Some(shell) = scene.in_namespace(kind, &script) else {
            return;
        };
        let shell = answer(shell).code(0).warns("/proc").warns("--pid");
        shell.prints_just(&format!("{FAILED}\n"));
        scene.assert_no_lease();
    }
}

// ---------------------------------------------------------------------------
// Callers about which little is known.

#[test]
fn a_caller_that_cannot_be_inspected_must_be_the_parent() {
    if !am_root() {
        eprintln!("skipped: only root can run this as two users");
        return;
    }
    let (scene, user) = (Scene::new(1), OrdinaryUser::new());
    set_mode(scene.dir(), 0o1777);
    let pick = user.portlock(&scene, &["pick", "--json"]).code(0);
    assert_eq!(pick.json()["pid"], id());
    let warns = format!("warning: process {} cannot be inspected", id());
    pick.warns(&warns).warns("--pid");
    scene
        .portlock(["release", &scene.port().to_string()])
        .code(0);

    let behind_timeout = |args: &[&str]| {
        let pick = user.program(&scene, args);
        let mut timeout = user.command(&scene, "timeout");
        timeout.arg("60").arg(pick.get_program()).args(args);
        answer(timeout)
    };
    let pick = behind_timeout(&["pick"]).code(FAILED).prints_just("");
    pick.warns(&format!("process {} cannot be inspected", id()))
        .warns("--pid $$");
    scene.assert_no_lease();
    behind_timeout(&["pick", "--pid", &id().to_string()])
        .code(0)
        .warns_of_nothing();
    scene.assert_leased(scene.port());
}

const SCRIPT: &str = "PORTLOCK_TEST_SCRIPT";

/// Runs a script in its own session, adopts the orphan that it leaves, and ends with the orphan's exit
/// status. Does nothing unless `orphaned` started it.
#[test]
fn subreaper() {
    let Some(script) = env::var_os(SCRIPT) else {
        return;
    };
    set_child_subreaper(Some(getpid())).expect("every user may");
    let mut shell = Command::new("setsid");
    shell.args(["sh", "-c"]).arg(script).stdin(Stdio::piped());
    let mut shell = shell.spawn().expect("setsid is installed");
    // The orphan continues when its input ends.
    let gate = shell.stdin.take();
    assert!(shell.wait().expect("our own child").success());
    drop(gate);
    let (_, status) = wait(WaitOptions::empty())
        .expect("a child")
        .expect("it has ended");
    exit(status.exit_status().unwrap_or(FAILED + 1));
}

/// Runs commands in a subshell whose shell has ended.
fn orphaned(scene: &Scene, commands: &str) -> Command {
    let mut command = scene.command(env::current_exe().expect("this test binary"));
    command.args(["--exact", "subreaper", "--nocapture"]);
    command.env(SCRIPT, format!("exec 4<&0; (read line <&4; {commands}) &"));
    command
}

#[test]
fn an_orphan_must_name_a_process() {
    for commands in [
        "exec portlock pick --json",
        "exec timeout 60 portlock pick",
        // It can no longer be determined whether a shell reads what the subshell prints.
        "P=$(timeout 60 portlock pick) || exit; echo $P",
    ] {
        let scene = Scene::new(1);
        let pick = answer(orphaned(&scene, commands)).code(FAILED);
        pick.warns("has ended").warns("--pid $$");
        scene.assert_no_lease();
    }
    let scene = Scene::new(1);
    let commands = "P=$(portlock pick) || exit; portlock check $P";
    answer(orphaned(&scene, commands))
        .code(1)
        .warns_of_nothing();
    scene.assert_leasable(scene.port());
}

#[test]
fn init_is_not_the_caller() {
    let scene = Scene::new(1);
    // It is a session leader, like a program that init has started itself.
    let script = r#"setsid --fork sh -c '
        read line; cut -d " " -f 4 /proc/$$/stat; exec portlock pick 2>&1'"#;
    let mut shell = Running::start(scene.script("sh", script));
    shell.wait();
    shell.close();
    let adopter = shell.hear();
    let said = shell.hear();
    if adopter == "1" && is_initial_namespace() {
        assert!(said.contains("init") && said.contains("--pid"), "{said}");
        scene.assert_no_lease();
    } else {
        eprintln!("skipped: process {adopter}, which is not the system's init, adopts orphans");
    }
}
