//! Names: reserving, printing, leasing, finding and releasing them. The commands need a Unix shell.

#![cfg(unix)]

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};

use assert_cmd::assert::Assert;
use portlock_testkit::{
    BOUND, EXHAUSTED, FAILED, LEASED, Running, Said, Scene, TIMED_OUT, answer, bind_strictly,
    bind_udp, is_installed, leave_in_time_wait, listen_strictly, until,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A project in its own directory.
struct Project {
    scene: Scene,
    dir: TempDir,
}

impl Project {
    fn new(ports: u16) -> Self {
        Self {
            scene: Scene::new(ports),
            dir: tempfile::tempdir().expect("a temporary directory"),
        }
    }

    /// Returns the project's directory, with symbolic links resolved.
    fn root(&self) -> PathBuf {
        fs::canonicalize(self.dir.path()).expect("our own")
    }

    fn create(&self, dir: &str) -> PathBuf {
        let path = self.root().join(dir);
        fs::create_dir_all(&path).expect("our own directory");
        path
    }

    fn command_in(&self, dir: &Path, args: &[&str]) -> Command {
        let mut command = self.scene.program(args);
        command.current_dir(dir);
        command
    }

    fn command(&self, args: &[&str]) -> Command {
        self.command_in(self.dir.path(), args)
    }

    #[track_caller]
    fn portlock(&self, args: &[&str]) -> Assert {
        answer(self.command(args))
    }

    #[track_caller]
    fn portlock_in(&self, dir: &Path, args: &[&str]) -> Assert {
        answer(self.command_in(dir, args))
    }

    #[track_caller]
    fn port(&self, name: &str) -> u16 {
        let port = self.portlock(&["port", name]).code(0).warns_of_nothing();
        port.ports()[0]
    }

    /// Starts a command that leases these names until its input is closed.
    #[track_caller]
    fn hold(&self, names: &[&str]) -> Running {
        let names: Vec<String> = names.iter().map(|name| format!("--name={name}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let line = ["--", "sh", "-c", "echo leased; exec cat"];
        let holder = Running::start(self.command(&[&["run"], &names[..], &line].concat()));
        assert_eq!(holder.hear(), "leased");
        holder
    }

    #[track_caller]
    fn list(&self, options: &[&str]) -> Vec<Value> {
        let list = self.portlock(&[&["list", "--json"], options].concat());
        let list = list.code(0).json();
        list.as_array().expect("an array").clone()
    }

    /// Returns the number of reserved names.
    fn reserved(&self) -> usize {
        self.list(&[]).len()
    }
}

// ---------------------------------------------------------------------------
// Copies of reservations.

#[test]
fn a_new_reservation_without_a_copy_is_reported_once() {
    let project = Project::new(5);
    let home = project.root().join("no home");
    let portlock = |args: &[&str]| {
        let mut command = project.command(args);
        command.env("HOME", &home).env_remove("XDG_STATE_HOME");
        answer(command).code(0)
    };
    let why = format!("the home directory {} does not exist\n", home.display());
    for (args, what) in [
        (&["port", "web"][..], "a new reservation has"),
        (&["env", "api", "db"], "2 new reservations have"),
        (&["run", "--name=cache", "true"], "a new reservation has"),
    ] {
        let said = portlock(args);
        let dir = project.scene.dir().display();
        let lost = format!(
            "portlock: warning: {what} no copy, and would be lost with the lock directory {dir}: "
        );
        assert!(said.err().starts_with(&lost), "{}", said.err());
        assert!(said.err().ends_with(&why), "{}", said.err());
        assert_eq!(said.err().lines().count(), 1, "{}", said.err());
        portlock(args).warns_of_nothing();
    }
    // Root could have created it.
    assert!(!home.exists());
    portlock(&["env", "web", "api"]).warns_of_nothing();
}

#[test]
fn the_error_for_a_state_directory_that_is_full_or_read_only_names_its_variable() {
    let project = Project::new(5);
    let hint = "(set XDG_STATE_HOME to a directory that can be written to)";
    let in_namespace = |script: &str| {
        let mut command = project.scene.in_namespace("--mount", script)?;
        command.current_dir(project.dir.path());
        Some(answer(command))
    };
    let full = "mount -t tmpfs -o size=16k none $XDG_STATE_HOME &&
        mkdir -p $XDG_STATE_HOME/portlock/reservations &&
        { cat /dev/zero >$XDG_STATE_HOME/fill 2>/dev/null; portlock env web api; }";
    let Some(full) = in_namespace(full) else {
        return;
    };
    let full = full.code(FAILED).prints_just("");
    drop(full.warns("No space left on device").warns(hint));
    // Nothing is reserved by a command that fails.
    assert_eq!(project.list(&[]), Vec::<Value>::new());
    project.port("web");
    let read_only = "mount --bind $XDG_STATE_HOME $XDG_STATE_HOME &&
        mount -o remount,bind,ro $XDG_STATE_HOME &&
        portlock port api && portlock release web";
    let read_only = in_namespace(read_only).expect("as before");
    let read_only = read_only.code(FAILED).warns("Read-only file system");
    read_only.warns("a new reservation has no copy").warns(hint);
}

// ---------------------------------------------------------------------------
// `env` and `port`.

#[test]
fn a_name_always_has_the_same_reserved_port() {
    let project = Project::new(20);
    let web = project
        .portlock(&["port", "web"])
        .code(0)
        .warns_of_nothing();
    let port = web.ports()[0];
    assert!(project.scene.ports().contains(&port));
    web.prints_just(&format!("{port}\n"));
    let api = project.port("api");
    assert_ne!(port, api);
    assert_eq!(project.port("web"), port);
    // Another root has another port, wherever portlock is called.
    let other = project.create("other");
    let elsewhere = project.portlock_in(&other, &["port", "web"]).code(0);
    assert!(![port, api].contains(&elsewhere.ports()[0]));
    let root = project.root();
    let root = root.to_str().expect("UTF-8");
    let by_root = project.portlock_in(&other, &["port", "web", "--root", root]);
    assert_eq!(by_root.code(0).ports(), [port]);
    assert_eq!(
        project
            .portlock_in(&other, &["port", "web", "--root=.."])
            .code(0)
            .ports(),
        [port]
    );
    // Lose the lock directory, as after a reboot.
    for file in fs::read_dir(project.scene.dir()).expect("our own directory") {
        fs::remove_file(file.expect("our own directory").path()).expect("our own");
    }
    assert_eq!(project.list(&[]).len(), 3);
    assert_eq!(project.port("web"), port);
    assert_eq!(project.port("api"), api);
}

#[test]
fn the_root_is_that_of_the_git_worktree() {
    let project = Project::new(20);
    if !is_installed("git") {
        return;
    }
    let main = project.create("main");
    let git = |args: &[&str]| {
        let mut git = project.scene.command("git");
        git.current_dir(&main).args(args);
        git.env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1");
        answer(git).code(0);
    };
    git(&["init", "--quiet"]);
    let commit = ["commit", "--quiet", "--allow-empty", "--message=First"];
    git(&[
        &["-c", "user.name=a", "-c", "user.email=a@example.com"],
        &commit[..],
    ]
    .concat());
    git(&["worktree", "add", "--quiet", "../feature"]);
    let feature = project.root().join("feature");
    let sub = feature.join("sub");
    fs::create_dir(&sub).expect("our own directory");
    let port = |dir: &Path| project.portlock_in(dir, &["port", "web"]).code(0).ports()[0];
    let (in_main, in_feature) = (port(&main), port(&feature));
    assert_ne!(in_main, in_feature);
    assert_eq!(port(&sub), in_feature);
    // The reservation ends with the worktree.
    git(&["worktree", "remove", "--force", "../feature"]);
    assert_eq!(project.list(&["--name=web"]).len(), 1);
    project.scene.assert_leasable(in_feature);
    let clean = project.portlock(&["clean", "--all"]).code(0);
    clean.prints_just("1 lock file removed, 1 kept\n1 copy of a reservation removed\n");
}

#[test]
fn an_error_says_that_the_current_directory_has_been_removed() {
    let project = Project::new(5);
    let (root, locks) = (project.create("removed"), project.scene.dir());
    let in_removed = |args: &str| {
        let mut command = project
            .scene
            .script("sh", &format!("rmdir \"$PWD\"; portlock {args}"));
        command.current_dir(project.create("removed"));
        answer(command)
    };
    let cause = "from the current directory, which has been removed: ";
    let help = "(change to another directory, or name the root directory by an absolute path)";
    for args in [
        "port web",
        "env",
        "check web",
        "release web",
        "stop --all",
        "run --name=web true",
    ] {
        let refused = in_removed(args).code(FAILED).prints_just("");
        let refused = refused.warns("cannot determine the default root directory ");
        refused.warns(cause).warns(help);
    }
    for args in ["list --root .", "port web --root sub", "env --root ."] {
        let refused = in_removed(args).code(FAILED).prints_just("");
        let named = args.split(' ').next_back().expect("a word");
        let refused = refused.warns(&format!("cannot use the root directory {named} {cause}"));
        refused.warns(help);
    }
    // An absolute path does not depend on it.
    let root = root.to_str().expect("UTF-8");
    in_removed(&format!("list --root {root}"))
        .code(0)
        .warns_of_nothing();
    assert_eq!(fs::read_dir(locks).expect("our own").count(), 0);
}

#[test]
fn variables_are_printed_in_each_format() {
    let project = Project::new(20);
    let note = format!(
        "portlock: note: no port is reserved in {}\n",
        project.root().display()
    );
    let env = project.portlock(&["env"]).code(0).prints_just("");
    assert_eq!(env.err(), note);
    let (web, api) = (project.port("web"), project.port("api-v2"));
    let dotenv = format!("WEB_PORT={web}\nAPI_V2_PORT={api}\n");
    let names = ["web", "api-v2"];
    let env = |args: &[&str]| {
        project
            .portlock(&[&["env"], args].concat())
            .code(0)
            .warns_of_nothing()
    };
    env(&names).prints_just(&dotenv);
    let format = |format: &str| env(&[&names[..], &["--format", format]].concat());
    format("dotenv").prints_just(&dotenv);
    format("export").prints_just(&format!(
        "export WEB_PORT={web}\nexport API_V2_PORT={api}\n"
    ));
    format("fish").prints_just(&format!(
        "set -gx WEB_PORT {web}\nset -gx API_V2_PORT {api}\n"
    ));
    assert_eq!(
        format("json").json(),
        json!({ "WEB_PORT": web, "API_V2_PORT": api })
    );
    // Without names, all names of this root, in alphabetical order.
    let sub = project.create("sub");
    project.portlock_in(&sub, &["port", "db"]).code(0);
    env(&[]).prints_just(&format!("API_V2_PORT={api}\nWEB_PORT={web}\n"));
    env(&["web"]).prints_just(&format!("WEB_PORT={web}\n"));
}

#[test]
fn a_step_of_github_actions_passes_variables_on() {
    let project = Project::new(5);
    let refused = project.portlock(&["env", "web", "--format=github"]);
    refused
        .code(FAILED)
        .prints_just("")
        .warns("GITHUB_ENV is not set");
    let file = project.root().join("github env");
    fs::write(&file, "A=b\n").expect("our own directory");
    let mut command = project.command(&["env", "web", "--format=github"]);
    command.env("GITHUB_ENV", &file);
    answer(command).code(0).prints_just("").warns_of_nothing();
    let text = fs::read_to_string(&file).expect("our own");
    assert_eq!(text, format!("A=b\nWEB_PORT={}\n", project.port("web")));
    let mut command = project.command(&["env", "web", "--format=github"]);
    command.env("GITHUB_ENV", project.root());
    answer(command)
        .code(FAILED)
        .warns("the value of GITHUB_ENV");
}

#[test]
fn shells_accept_the_printed_variables() {
    let project = Project::new(5);
    let web = project.port("web");
    for (shell, line) in [
        ("sh", "eval \"$(portlock env web)\"; echo $WEB_PORT"),
        (
            "sh",
            "eval \"$(portlock env --format export)\"; sh -c 'echo $WEB_PORT'",
        ),
        ("bash", ". <(portlock env web); echo $WEB_PORT"),
        (
            "fish",
            "portlock env --format fish | source; sh -c 'echo $WEB_PORT'",
        ),
    ] {
        if !is_installed(shell) {
            continue;
        }
        let mut script = project.scene.script(shell, line);
        script.current_dir(project.dir.path());
        answer(script).code(0).prints_just(&format!("{web}\n"));
    }
}

#[test]
fn two_names_with_the_same_variable_are_refused() {
    let project = Project::new(10);
    let web = project.port("web-app");
    for args in [
        &["port", "web_app"][..],
        &["env", "web-app", "web_app"],
        &["run", "--name=web_app", "true"],
        &["run", "--name=web-app", "--name=web_app", "true"],
    ] {
        let refused = project.portlock(args).code(FAILED);
        refused
            .prints_just("")
            .warns("the same variable WEB_APP_PORT");
    }
    // Neither name has a port yet, and after the error neither has one.
    for command in ["run", "pick"] {
        let names = [command, "--name=a_db", "--name=a-db"];
        let end = ["--", "true"];
        let end = if command == "run" { &end[..] } else { &[] };
        let refused = project.portlock(&[&names[..], end].concat());
        refused.code(FAILED).warns("the same variable A_DB_PORT");
    }
    assert_eq!(project.reserved(), 1);
    // Another root may use the same variable.
    let sub = project.create("sub");
    project.portlock_in(&sub, &["port", "web_app"]).code(0);
    assert_eq!(project.port("web-app"), web);
}

#[test]
fn a_port_for_a_new_name_is_chosen_from_a_set() {
    let project = Project::new(5);
    let only = project.scene.ports().nth(3).expect("five").to_string();
    let port = project.portlock(&["port", "web", "--ports", &only]).code(0);
    port.prints_just(&format!("{only}\n"));
    // A name that has a port keeps it.
    let first = project.scene.port().to_string();
    let port = project
        .portlock(&["port", "web", "--ports", &first])
        .code(0);
    port.prints_just(&format!("{only}\n"));
    let full = project.portlock(&["env", "api", "--ports", &only]);
    drop(full.code(EXHAUSTED).prints_just("").warns("1 reserved"));
    let env = project.portlock(&["env", "db", "--ports", &first]).code(0);
    env.prints_just(&format!("DB_PORT={first}\n"));
}

#[test]
fn env_reserves_ports_for_all_names_or_for_none() {
    let project = Project::new(3);
    let web = project.port("web");
    let three = &["env", "api", "web", "db", "cache", "--timeout=0"];
    let full = project.portlock(three).code(EXHAUSTED).prints_just("");
    full.warns("fewer than 3 ports to reserve are free in ")
        .warns(": 1 reserved (")
        .warns("), 2 free");
    // The name that had a port keeps it, and the ports of the others are free.
    let list = project.list(&[]);
    let reserved: Vec<&Value> = list.iter().filter(|row| row["name"].is_string()).collect();
    assert_eq!(reserved.len(), 1, "{list:?}");
    assert_eq!(project.port("web"), web);
    let copies = project.portlock(&["env"]).code(0);
    copies.prints_just(&format!("WEB_PORT={web}\n"));
    let two = project
        .portlock(&["env", "api", "web", "api", "db"])
        .code(0);
    let [api, db] = ["api", "db"].map(|name| project.port(name));
    two.prints_just(&format!(
        "API_PORT={api}\nWEB_PORT={web}\nAPI_PORT={api}\nDB_PORT={db}\n"
    ));
}

#[test]
fn env_and_port_wait_for_a_free_port_until_their_timeout() {
    let project = Project::new(1);
    let (holder, port) = project.scene.hold(&[]);
    for args in [["env", "web"], ["port", "web"]] {
        let args = [&args[..], &["--timeout=0.1"]].concat();
        let full = project.portlock(&args).code(EXHAUSTED).prints_just("");
        full.warns(" after 0.").warns("1 leased");
    }
    let mut waiting = Running::start(project.command(&["port", "web", "--timeout=1m"]));
    drop(holder);
    assert_eq!(waiting.hear(), port.to_string());
    assert!(waiting.wait().success());
}

#[test]
fn only_commands_that_need_its_port_reserve_a_name() {
    let project = Project::new(5);
    for (args, code) in [
        (&["list", "--name=web"][..], 0),
        (&["check", "web"], FAILED),
        (&["wait", "--timeout=0", "web"], TIMED_OUT),
        (&["wait", "--free", "web"], FAILED),
        (&["release", "web"], FAILED),
        (&["stop", "web"], FAILED),
        (&["stop", "--all"], 0),
        (&["env"], 0),
    ] {
        project.portlock(args).code(code);
    }
    assert_eq!(project.scene.lock_files(), 0);
    for args in [
        &["env", "a"][..],
        &["port", "b"],
        &["run", "--name=c", "true"],
        &["pick", "--name=d"],
    ] {
        project.portlock(args).code(0);
    }
    assert_eq!(project.reserved(), 4);
}

// ---------------------------------------------------------------------------
// `run` and `pick`.

#[test]
fn a_command_receives_the_ports_of_its_names() {
    let project = Project::new(10);
    let line = "echo $PORT $WEB_PORT $API_V2_PORT $0 $1 ${PORT_1-none}";
    let run = [
        "run",
        "--name=web",
        "--name=api-v2",
        "--",
        "sh",
        "-c",
        line,
        "{web}",
        "{api-v2}:{port2}",
    ];
    let run = project.portlock(&run).code(0).warns_of_nothing();
    let (web, api) = (project.port("web"), project.port("api-v2"));
    run.prints_just(&format!("{web} {web} {api} {web} {api}:{api} none\n"));
    let refused = project.portlock(&["run", "--name=web", "--", "echo", "{wep}"]);
    drop(refused.code(0).prints_just("{wep}\n"));
    let refused = project.portlock(&["run", "--name=frontend", "--", "echo", "{frontemd}"]);
    refused
        .code(FAILED)
        .prints_just("")
        .warns("did you mean {frontend}?");
    assert_eq!(project.reserved(), 2);
}

#[test]
fn a_command_waits_for_a_leased_name_and_names_its_holder() {
    let project = Project::new(5);
    let holder = project.hold(&["web"]);
    let port = project.port("web");
    let refused = project.portlock(&["run", "--name=web", "--timeout=0", "true"]);
    let by = format!("1 leased ({port} by pid {}", holder.id());
    refused.code(EXHAUSTED).warns(&by);
    let mut next =
        Running::start(project.command(&["run", "--name=web", "--", "sh", "-c", "echo $PORT"]));
    assert!(!next.has_ended());
    holder.kill();
    assert_eq!(next.hear(), port.to_string());
    assert!(next.wait().success());
}

#[test]
fn a_command_holds_no_name_while_it_waits_for_another_one() {
    let project = Project::new(5);
    // The alphabetically first name, and the last one.
    for leased in ["api", "web"] {
        let holder = project.hold(&[leased]);
        let both = ["run", "--name=web", "--name=api"];
        let line = ["--", "sh", "-c", "echo $WEB_PORT $API_PORT"];
        let mut waiting = Running::start(project.command(&[&both[..], &line].concat()));
        let now = [&both[..], &["--timeout=0", "true"]].concat();
        for _ in 0..5 {
            project.portlock(&now).code(EXHAUSTED).warns("1 leased");
            // The other name can be leased.
            let other = if leased == "api" {
                "--name=web"
            } else {
                "--name=api"
            };
            project
                .portlock(&["run", other, "--timeout=5", "true"])
                .code(0);
        }
        assert!(!waiting.has_ended());
        holder.kill();
        let ports = format!("{} {}", project.port("web"), project.port("api"));
        assert_eq!(waiting.hear(), ports);
        assert!(waiting.wait().success());
    }
}

#[test]
fn commands_that_want_the_same_names_in_any_order_all_get_them() {
    let project = Project::new(5);
    let orders = [
        ["--name=a", "--name=b", "--name=c"],
        ["--name=c", "--name=b", "--name=a"],
    ];
    let mut running: Vec<Running> = (0..8)
        .map(|i| {
            let args = [
                &["run", "--timeout=60"],
                &orders[i % 2][..],
                &["--", "sleep", "0.01"],
            ];
            Running::start(project.command(&args.concat()))
        })
        .collect();
    for running in &mut running {
        assert!(running.wait().success());
    }
}

#[test]
fn a_port_that_another_program_has_bound_is_an_error_or_replaced() {
    let project = Project::new(10);
    let (web, api) = (project.port("web"), project.port("api"));
    let server = listen_strictly(web).expect("free");
    let own = format!("pid {}", std::process::id());
    let bound = [
        &["run", "--name=web", "true"][..],
        &["run", "--name=web", "--name=api", "true"],
        &["pick", "--name=web"],
    ];
    for args in bound {
        project
            .portlock(args)
            .code(EXHAUSTED)
            .prints_just("")
            .warns(&own);
    }
    let echo = ["--", "sh", "-c", "echo $WEB_PORT; echo ${API_PORT-0}"];
    for names in [&["--name=web"][..], &["--name=api", "--name=web"]] {
        let args = [&["run", "--or-any"], names, &echo].concat();
        let run = project.portlock(&args).code(0);
        let [other, second] = run.ports()[..] else {
            panic!("two")
        };
        assert!(other != web && other != api);
        assert_eq!(second, if names.len() == 1 { 0 } else { api });
        let note = format!(
            "portlock: note: port {web}, which is reserved as web in {}, is bound by {own} (",
            project.root().display()
        );
        assert!(run.err().starts_with(&note), "{}", run.err());
        assert!(
            run.err()
                .ends_with(&format!("); port {other} is leased instead\n"))
        );
    }
    drop(server);
    let args = [&["run", "--or-any", "--name=web"], &echo[..]].concat();
    let run = project.portlock(&args).code(0).warns_of_nothing();
    run.prints_just(&format!("{web}\n0\n"));
}

#[test]
fn connections_in_time_wait_do_not_prevent_leasing_a_name() {
    let project = Project::new(5);
    let web = project.port("web");
    leave_in_time_wait(web);
    let run = project.portlock(&["run", "--name=web", "--timeout=0", "--", "echo", "{web}"]);
    run.code(0).prints_just(&format!("{web}\n"));
}

#[test]
fn a_picked_name_is_leased_and_released_by_its_number() {
    let project = Project::new(10);
    let web = project.port("web");
    let pick = project.portlock(&["pick", "--name=web"]).code(0);
    pick.prints_just(&format!("{web}\n"));
    project
        .portlock(&["check", "web"])
        .code(LEASED)
        .prints(&format!("{web} leased by pid "));
    let both = project
        .portlock(&["pick", "--name=db", "--name=api", "--json"])
        .code(0)
        .json();
    assert_eq!(
        both["ports"],
        json!([project.port("db"), project.port("api")])
    );
    project
        .portlock(&["pick", "--name=web", "--timeout=0"])
        .code(EXHAUSTED);
    // Releasing the number ends the lease, and the reservation stays.
    project
        .portlock(&["release", &web.to_string()])
        .code(0)
        .prints_just("");
    project.portlock(&["check", "web"]).code(0);
    assert_eq!(project.port("web"), web);
    // Releasing the name ends the reservation, and the lease stays.
    project
        .portlock(&["release", "db", "web"])
        .code(0)
        .prints_just("");
    assert_eq!(project.list(&["--name=web"]).len(), 0);
    project.scene.assert_leasable(web);
    let list = project.list(&[]);
    let states: Vec<_> = list
        .iter()
        .map(|row| (&row["state"], &row["name"]))
        .collect();
    assert_eq!(states.len(), 2);
    assert!(states.contains(&(&json!("delegated"), &json!("api"))));
    assert!(states.contains(&(&json!("delegated"), &json!(null))));
    let refused = project.portlock(&["release", "web"]).code(FAILED);
    refused.warns("no port is reserved as web in ");
}

#[test]
fn a_reservation_whose_port_is_held_is_not_released() {
    let project = Project::new(5);
    let holder = project.hold(&["web"]);
    let refused = project.portlock(&["release", "web"]).code(FAILED);
    refused.warns(&format!("by pid {}", holder.id()));
    holder.kill();
    project.portlock(&["release", "web"]).code(0);
}

#[test]
fn a_failure_does_not_keep_other_names_and_ports_from_being_released() {
    let project = Project::new(5);
    let (web, api) = (project.port("web"), project.port("api"));
    let picked = project.scene.pick().to_string();
    let missing = format!("{}", project.port("db"));
    let release = ["release", "web", "missing", &missing, &picked, "api"];
    let release = project.portlock(&release).code(FAILED).prints_just("");
    let lines: Vec<&str> = release.err().lines().collect();
    let [first, second] = lines[..] else {
        panic!("{lines:?}");
    };
    assert!(first.starts_with("portlock: no port is reserved as missing in "));
    assert!(second.starts_with(&format!("portlock: cannot release port {missing} (")));
    for port in [web, api] {
        project.portlock(&["check", &port.to_string()]).code(0);
    }
    project.portlock(&["check", &picked]).code(0);
    assert_eq!(project.list(&[]).len(), 1);
}

#[test]
fn a_reservation_that_cannot_be_read_is_released_by_its_number() {
    let project = Project::new(5);
    let port = project.scene.port();
    let torn = [&[b' '; 512][..], b"reserved web /ho"].concat();
    fs::write(project.scene.dir().join(port.to_string()), torn).expect("our own directory");
    let check = project.scene.check(port).code(LEASED);
    check.prints_just(&format!("{port} reserved for a name that cannot be read\n"));
    let list = project.portlock(&["list"]).code(0);
    assert!(
        list.out().contains("reserved, name unreadable"),
        "{}",
        list.out()
    );
    project.portlock(&["release", &port.to_string()]).code(0);
    project.scene.assert_leasable(port);
    // The list also shows it while the port is leased.
    let web = project.portlock(&["pick", "--name=web"]).code(0).ports()[0];
    let file = project.scene.dir().join(web.to_string());
    let file = fs::File::options().write(true).open(file);
    let torn = file.and_then(|file| file.set_len(512 + 16));
    torn.expect("our own file");
    let list = project
        .portlock(&["list", "--ports", &web.to_string()])
        .code(0);
    let out = list.out();
    assert!(
        out.contains("delegated, ") && out.contains("(unreadable)"),
        "{out}"
    );
}

#[test]
fn a_restarted_server_waits_until_the_old_one_has_ended() {
    let project = Project::new(3);
    if !is_installed("python3") {
        return;
    }
    let server = "import http.server as h, signal, sys, time\n\
                  def end(*_):\n time.sleep(0.3); sys.exit()\n\
                  signal.signal(signal.SIGTERM, end)\n\
                  s = h.HTTPServer(('127.0.0.1', int(sys.argv[1])), h.SimpleHTTPRequestHandler)\n\
                  print(s.server_port, flush=True); s.serve_forever()";
    let start = || {
        let args = ["run", "--name=web", "--", "python3", "-c", server, "{web}"];
        Running::start(project.command(&args))
    };
    let mut old = start();
    let port = old.hear();
    old.signal(rustix::process::Signal::TERM);
    let new = start();
    assert_eq!(new.hear(), port);
    old.wait();
    project.portlock(&["wait", "web"]).code(0);
}

// ---------------------------------------------------------------------------
// `list`, `check` and `wait`.

#[test]
fn check_prints_the_name_for_which_a_port_is_reserved() {
    let project = Project::new(10);
    let web = project.port("web");
    let reserved = format!("reserved as web in {}\n", project.root().display());
    let by_name = |code| {
        project
            .portlock(&["check", "web"])
            .code(code)
            .warns_of_nothing()
    };
    let by_number = |code| project.scene.check(web).code(code);
    by_name(0).prints_just(&format!("{web} {reserved}"));
    by_number(LEASED).prints_just(&format!("{web} {reserved}"));
    let row = project.portlock(&["check", "web", "--json"]).code(0).json();
    assert_eq!(row[0]["state"], "reserved");
    assert_eq!(row[0]["name"], "web");
    assert_eq!(row[0]["root"], project.root().to_str().expect("UTF-8"));
    assert_eq!(row[0]["reservation"], "present");

    let holder = project.hold(&["web"]);
    for check in [by_name(LEASED), by_number(LEASED)] {
        let check = check.prints(&format!("{web} leased by pid {} \"cat\"", holder.id()));
        assert!(
            check.out().ends_with(&format!("; {reserved}")),
            "{}",
            check.out()
        );
    }
    holder.kill();
    let server = listen_strictly(web).expect("free");
    for check in [by_name(BOUND), by_number(BOUND)] {
        let check = check.prints(&format!("{web} bound by pid {}", std::process::id()));
        assert!(
            check.out().ends_with(&format!("; {reserved}")),
            "{}",
            check.out()
        );
    }
    drop(server);
    // A picked port is leased by its record alone.
    let user = project.scene.idle();
    let pid = user.id().to_string();
    project
        .portlock(&["pick", "--name=web", "--pid", &pid])
        .code(0);
    for check in [by_name(LEASED), by_number(LEASED)] {
        check.prints(&format!("{web} leased by pid {pid} "));
    }
    // With several ports, the highest status.
    project.portlock(&["port", "api"]).code(0);
    let _holder = project.hold(&["api"]);
    project.portlock(&["check", "web", "api"]).code(LEASED);
}

#[test]
fn a_check_of_a_reserved_port_by_number_finds_the_sockets_that_it_finds_by_name() {
    let project = Project::new(10);
    let same_line = |name: &str, port: u16, by_name: i32, by_number: i32| {
        let number = project.scene.check(port).code(by_number);
        let name = project.portlock(&["check", name]).code(by_name);
        name.prints_just(number.out());
        number.out().to_owned()
    };
    let reserved = |name: &str| format!("reserved as {name} in {}", project.root().display());
    // `check` is for TCP.
    let web = project.port("web");
    let udp = bind_udp(("127.0.0.1", web));
    let line = format!("{web} {}\n", reserved("web"));
    assert_eq!(same_line("web", web, 0, LEASED), line);
    drop(udp);
    let _not_listening = bind_strictly(web).expect("free");
    let line = same_line("web", web, BOUND, BOUND);
    assert!(line.starts_with(&format!("{web} bound")), "{line}");
    let end = format!("; {}\n", reserved("web"));
    assert!(line.ends_with(&end), "{line}");
    // macOS does not show which sockets are in TIME_WAIT.
    #[cfg(target_os = "linux")]
    {
        // Not the same port: until it calls exec, a child of another test has that socket too.
        let api = project.port("api");
        leave_in_time_wait(api);
        let line = format!("{api} {}, in TIME_WAIT\n", reserved("api"));
        assert_eq!(same_line("api", api, 0, LEASED), line);
    }
}

#[test]
fn reserved_ports_are_listed_with_their_names_and_roots() {
    let project = Project::new(20);
    let sub = project.create("sub");
    let (web, api) = (project.port("web"), project.port("api"));
    let other = project.portlock_in(&sub, &["port", "web"]).code(0).ports()[0];
    let holder = project.hold(&["api"]);
    let root = project.root();
    let root = root.to_str().expect("UTF-8");
    let list = project.portlock(&["list"]).code(0).warns_of_nothing();
    let mut lines = list.out().lines();
    let words = |line: &str| {
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let header = [
        "PORT", "STATE", "PID", "PROGRAM", "AGE", "LABEL", "NAME", "ROOT",
    ];
    assert_eq!(words(lines.next().expect("a header")), header);
    let line = |port: u16| {
        let line = list
            .out()
            .lines()
            .find(|line| line.starts_with(&port.to_string()));
        words(line.unwrap_or_else(|| panic!("{port}: {}", list.out())))
    };
    assert_eq!(line(web), [&web.to_string(), "reserved", "web", root]);
    let held = line(api);
    assert_eq!(
        held[1..7],
        [
            "leased,",
            "not",
            "bound",
            "yet",
            &holder.id().to_string(),
            "cat"
        ]
    );
    assert_eq!(held[held.len() - 2..], ["api", root]);

    let ports = |options: &[&str]| -> Vec<u64> {
        let rows = project.list(options);
        rows.iter()
            .map(|row| row["port"].as_u64().expect("a port"))
            .collect()
    };
    let sorted = |ports: &[u16]| {
        let mut ports: Vec<u64> = ports.iter().map(|&port| port.into()).collect();
        ports.sort_unstable();
        ports
    };
    assert_eq!(ports(&[]), sorted(&[web, api, other]));
    assert_eq!(ports(&["--name=web"]), sorted(&[web, other]));
    assert_eq!(ports(&["--root=."]), sorted(&[web, api]));
    assert_eq!(ports(&["--root", root, "--name=api"]), sorted(&[api]));
    assert_eq!(ports(&["--root=sub"]), sorted(&[other]));
    assert_eq!(ports(&["--label=sh"]), sorted(&[api]));
    assert_eq!(ports(&["--name=nothing"]), sorted(&[]));
    let rows = project.list(&["--name=api"]);
    let row = &rows[0];
    assert_eq!(
        (&row["state"], &row["name"], &row["root"]),
        (&json!("leased"), &json!("api"), &json!(root))
    );
    if cfg!(target_os = "linux") {
        assert_eq!(row["cwd"], root);
    }
    // The last holder is not shown.
    holder.kill();
    let list = project.portlock(&["list", "--name=api"]).code(0);
    let line = list.out().lines().nth(1).expect("a line");
    assert_eq!(words(line), [&api.to_string(), "reserved", "api", root]);
    let row = &project.list(&["--name=api"])[0];
    assert_eq!(
        (&row["state"], &row["pid"], &row["label"]),
        (&json!("reserved"), &json!(null), &json!(null))
    );
    // A port that another program has bound.
    let _server = listen_strictly(web).expect("free");
    let list = project
        .portlock(&["list", "--name=web", "--root=."])
        .code(0);
    let served = format!("reserved, served by pid {} (", std::process::id());
    assert!(list.out().contains(&served), "{}", list.out());
    // One object per line, repeatedly.
    let watch = Running::start(project.command(&["list", "--watch", "--json", "--name=api"]));
    for _ in 0..2 {
        let line: Value = serde_json::from_str(&watch.hear()).expect("an object");
        assert_eq!(line["ports"][0]["name"], "api");
    }
}

#[test]
fn reservations_whose_root_is_gone_or_not_found_are_shown_as_such() {
    let project = Project::new(20);
    let (gone, disk) = (project.create("gone"), project.create("disk/shop"));
    let port = |dir: &Path| project.portlock_in(dir, &["port", "web"]).code(0).ports()[0];
    let (of_gone, of_disk) = (port(&gone), port(&disk));
    fs::remove_dir(&gone).expect("our own");
    // Move the directory away, as if its disk was not mounted.
    let mounted = project.root().join("disk");
    fs::rename(&mounted, project.root().join("elsewhere")).expect("our own");
    let list = project.portlock(&["list"]).code(0);
    assert!(!list.out().contains(&of_gone.to_string()), "{}", list.out());
    assert!(
        list.out().contains("reserved, root not found"),
        "{}",
        list.out()
    );
    let list = project.portlock(&["list", "--all"]).code(0);
    assert!(
        list.out().contains("stale file, root gone"),
        "{}",
        list.out()
    );
    // A caller that leases that port by its number has not leased the name.
    let lease = ["pick", "--ports", &of_gone.to_string()];
    project.portlock(&lease).code(0);
    let list = project.portlock(&["list"]).code(0);
    let leased = list.out().lines().find(|line| line.contains("delegated"));
    let leased = leased.expect("it is leased");
    assert!(
        leased.contains("delegated, not bound yet, root gone "),
        "{leased}"
    );
    project.portlock(&["release", &of_gone.to_string()]).code(0);
    let check = project.scene.check(of_disk).code(LEASED);
    let named = format!(
        "reserved as web in {}, which cannot be found\n",
        disk.display()
    );
    check.prints_just(&format!("{of_disk} {named}"));
    project
        .scene
        .check(of_gone)
        .code(0)
        .prints_just(&format!("{of_gone} free\n"));
    let kept = format!(
        "{of_disk} kept, reserved as web in {}: root not found\n",
        disk.display()
    );
    let clean = project.portlock(&["clean"]).code(0);
    clean.prints_just(&format!("1 lock file removed, 1 kept\n{kept}"));
    // It can still be released.
    let root = disk.to_str().expect("UTF-8");
    project
        .portlock(&["release", "web", "--root", root])
        .code(0);
    project
        .portlock(&["clean"])
        .code(0)
        .prints_just("1 lock file removed, 0 kept\n");
}

#[test]
fn copies_of_other_lock_directories_are_removed_only_with_all() {
    let project = Project::new(5);
    let locks = tempfile::tempdir().expect("a temporary directory");
    let other = locks.path().join("locks");
    fs::create_dir(&other).expect("our own directory");
    portlock_testkit::set_mode(&other, 0o700);
    let dir = other.to_str().expect("UTF-8");
    project
        .portlock(&["port", "web", "--lock-dir", dir])
        .code(0);
    fs::remove_dir_all(&other).expect("our own");
    project
        .portlock(&["clean"])
        .code(0)
        .prints_just("0 lock files removed, 0 kept\n");
    let clean = project.portlock(&["clean", "--all"]).code(0);
    clean.prints_just("0 lock files removed, 0 kept\n1 copy of a reservation removed\n");
    let clean = project.portlock(&["clean", "--all"]).code(0);
    clean.prints_just("0 lock files removed, 0 kept\n0 copies of reservations removed\n");
}

#[test]
fn the_map_shows_reserved_ports() {
    let project = Project::new(5);
    let second = project.scene.ports().nth(1).expect("five").to_string();
    project
        .portlock(&["port", "web", "--ports", &second])
        .code(0);
    let map = project.portlock(&["list", "--map"]).code(0);
    assert!(
        map.out()
            .starts_with(&format!("{:>5} .r...\n", project.scene.port())),
        "{}",
        map.out()
    );
    assert!(
        map.out().contains("  r reserved for a name: 1\n"),
        "{}",
        map.out()
    );
}

/// A server that announces its port on its standard output.
const SERVER: &str = "import http.server as h, os\n\
    s = h.HTTPServer(('127.0.0.1', int(os.environ['WEB_PORT'])), h.SimpleHTTPRequestHandler)\n\
    print('listens', flush=True); s.serve_forever()";

#[test]
fn wait_waits_until_a_name_is_reserved_leased_and_served() {
    let project = Project::new(5);
    if !is_installed("python3") {
        return;
    }
    let wait = || Running::start(project.command(&["wait", "web", "--timeout=60", "--json"]));
    let timed_out = |why: &str| {
        let wait = project.portlock(&["wait", "web", "--timeout=0.1"]);
        drop(wait.code(TIMED_OUT).prints_just("").warns(why));
    };
    let (mut first, mut second) = (wait(), wait());
    timed_out("no port is reserved as web in ");
    let web = project.port("web");
    timed_out(&format!("port {web}, which is reserved as web in "));
    // Another process's server is not accepted.
    let stranger = TcpListener::bind(("127.0.0.1", web)).expect("a free port");
    timed_out(&format!("(it is served by pid {} (", std::process::id()));
    let by_number = project.portlock(&["wait", "--timeout=0.1", &web.to_string()]);
    by_number
        .code(TIMED_OUT)
        .warns("which is reserved as web in ");
    project.portlock(&["wait", "--any", "web"]).code(0);
    drop(stranger);
    // A lease without a server is not enough.
    let holder = project.hold(&["web"]);
    timed_out(&web.to_string());
    assert!(!first.has_ended() && !second.has_ended());
    holder.kill();
    let server =
        Running::start(project.command(&["run", "--name=web", "--", "python3", "-c", SERVER]));
    assert_eq!(server.hear(), "listens");
    for waiting in [&mut first, &mut second] {
        assert!(waiting.wait().success());
        let mut text = String::new();
        while let Some(line) = waiting.hear_or_end() {
            text += &line;
        }
        let row: Value = serde_json::from_str(&text).expect("JSON");
        let row = &row[0];
        assert_eq!(
            (&row["port"], &row["name"], &row["server"]),
            (&json!(web), &json!("web"), &json!("holder"))
        );
        assert_eq!(row["server_pid"], server.id());
    }
    project
        .portlock(&["wait", "--free", "--timeout=0", "web"])
        .code(TIMED_OUT)
        .warns("1 leased");
    server.kill();
    project
        .portlock(&["wait", "--free", "--timeout=5", "web"])
        .code(0);
}

#[test]
fn another_process_that_binds_the_port_after_the_lease_is_not_its_server() {
    let project = Project::new(5);
    let holder = project.hold(&["web"]);
    let web = project.port("web");
    let mut waiting = Running::start(project.command(&["wait", "web", "--timeout=60"]));
    // Meanwhile the first command starts to wait for the holder's server.
    project
        .portlock(&["wait", "web", "--timeout=1"])
        .code(TIMED_OUT);
    holder.kill();
    let stranger = TcpListener::bind(("127.0.0.1", web)).expect("a free port");
    stranger.set_nonblocking(true).expect("it can be");
    until("a connection of the waiting command", || {
        stranger.accept().ok()
    });
    project
        .portlock(&["wait", "web", "--timeout=0.5"])
        .code(TIMED_OUT);
    assert!(!waiting.has_ended());
    drop(stranger);
    let echo = ["--", "sh", "-c", "echo leased; exec cat"];
    let holder = Running::start(project.command(&[&["run", "--name=web"], &echo[..]].concat()));
    assert_eq!(holder.hear(), "leased");
    assert!(!waiting.has_ended());
}

#[test]
fn another_process_on_a_leased_name_is_not_its_server() {
    let project = Project::new(5);
    let holder = project.hold(&["web"]);
    let web = project.port("web");
    let _stranger = TcpListener::bind(("127.0.0.1", web)).expect("a free port");
    let wait = project
        .portlock(&["wait", "web", "--timeout=30"])
        .code(BOUND);
    let own = format!("is served by pid {}", std::process::id());
    wait.prints_just("")
        .warns(&own)
        .warns(&format!("pid {}", holder.id()));
}

#[test]
fn a_wait_on_a_terminal_prints_what_it_waits_for() {
    let project = Project::new(5);
    let web = project.port("web");
    let _holder = project.hold(&["web"]);
    let root = project.root();
    let root = root.to_str().expect("UTF-8");
    for (line, says) in [
        (
            format!("portlock run --name web --root {root} --timeout 1.5 true"),
            format!("{web} by pid "),
        ),
        (
            format!("portlock run --name api --name web --root {root} --timeout 1.5 true"),
            format!("{web} by pid "),
        ),
        (
            format!("portlock wait web --root {root} --timeout 1.5"),
            format!("for a server on port {web}, leased by pid "),
        ),
        (
            format!("portlock wait new --root {root} --timeout 1.5"),
            "no port is reserved as new in ".to_owned(),
        ),
    ] {
        let Some(command) = project.scene.on_terminal(&line) else {
            return;
        };
        let waited = answer(command);
        let notices = waited
            .out()
            .lines()
            .filter(|line| line.contains("portlock: waiting: "));
        let notices: Vec<&str> = notices.collect();
        assert!(
            matches!(notices[..], [only] if only.contains(&says)),
            "{}",
            waited.out()
        );
    }
}
