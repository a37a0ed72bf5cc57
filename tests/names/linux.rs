//! A disk that is not mounted, and callers that are killed at any system call.

use std::{collections::BTreeMap, env, fs, process::Command};

use portlock_testkit::{Parent, Peer, Role, command, start_in_namespace, stress, text};

use super::{Project, assert_says, port};

pub(crate) const ROLES: [(&str, Role); 1] = [("home on a disk", home_on_a_disk)];

#[test]
fn a_home_on_a_disk_that_is_not_mounted_keeps_its_reservations() {
    if let Some(peer) = start_in_namespace("--mount", "true", "home on a disk", &[]) {
        peer.finish_well();
    }
}

/// Keeps a root and the copies in a home directory on a separate disk.
fn home_on_a_disk(parent: &Parent) {
    let mut project = Project::new(4);
    let [disk, home] = ["disk", "home"].map(|name| project.parent.path().join(name));
    fs::create_dir_all(disk.join("shop")).expect("our own");
    fs::create_dir(&home).expect("our own");
    let run = |program: &str, arguments: &[&str]| {
        let status = Command::new(program).args(arguments).status();
        assert!(status.expect("it is installed").success(), "{program}");
    };
    let mount = || run("mount", &["--bind", text(&disk), text(&home)]);
    mount();
    // The parent of the root is the mount point of the disk, which exists even if the disk is not
    // mounted.
    project.root = home.join("shop");
    project.state = tempfile::tempdir_in(&home).expect("our own");
    let web = port(project.caller().ask("reserve web"));
    assert_eq!(project.copies(), 1);

    run("umount", &[text(&home)]);
    assert!(home.exists() && !project.root.exists());
    let mut caller = project.caller();
    for _ in 0..2 {
        assert_eq!(caller.ask("list"), format!("{web} web RootNotFound"));
        assert_eq!(caller.ask("clean"), "0 1");
        assert_eq!(caller.ask("clean-copies"), "0");
        assert_says(&caller.ask(format!("port {web}")), &["1 reserved"]);
    }
    for _ in 1..4 {
        assert_ne!(port(caller.ask("any")), web);
    }
    assert_says(&caller.ask("any"), &["3 leased", "1 reserved"]);

    mount();
    assert_eq!(project.caller().ask("show web"), format!("{web} Present"));
    assert_eq!(project.caller().ask("lease web"), web);
    fs::remove_dir(&project.root).expect("our own");
    assert_eq!(project.caller().ask("show web"), format!("{web} RootGone"));
    parent.say("done");
}

// ---------------------------------------------------------------------------
// Killed at any system call.

/// The system calls that another process can notice.
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

    /// Returns the calls that a caller makes for an order, each with the number of earlier calls
    /// of the same name.
    fn calls_of(&self, order: &str, check: impl FnOnce(String)) -> Vec<(String, usize)> {
        let trace = self.parent.path().join("trace");
        let mut caller = self.traced_caller(&["-o", text(&trace)]);
        check(caller.ask(order));
        caller.say("bye");
        assert!(caller.finish().success());
        let text = fs::read_to_string(&trace).expect("strace has ended");
        let mut counts = BTreeMap::<String, usize>::new();
        let mut calls = Vec::new();
        // The calls before that are from its start.
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

/// Asserts that the name has one port, whatever the killed caller was doing, and that no other
/// reservation is lost.
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

#[test]
fn a_caller_that_is_killed_at_any_system_call_loses_nothing() {
    if !portlock_testkit::have_strace() {
        return;
    }
    // A new name; one that is restored into a lost directory; and one that is removed.
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
            // It may be killed after it has answered.
            let _ = caller.hear_last();
            caller.kill();
            must_be_whole(&project, &format!("{order}: killed at {name} {nth}"));
        }
    }
}
