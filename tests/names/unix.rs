//! State directory, lock files and roots as on Unix.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use portlock_testkit::{Peer, text};

use super::{Project, assert_says, port};

impl Project {
    /// Returns a caller without a state directory.
    pub(crate) fn homeless_caller(&self) -> Peer {
        let mut command = self.command("caller", &[]);
        let none = self.parent.path().join("none").join("none");
        fs::write(self.parent.path().join("none"), "a file").expect("our own");
        command.env("XDG_STATE_HOME", &none).env("HOME", &none);
        Peer::start_command(command)
    }

    pub(crate) fn lock_file(&self, port: &str) -> PathBuf {
        self.locks.path().join(port)
    }

    pub(crate) fn copies(&self) -> usize {
        let all = self.state.path().join("portlock").join("reservations");
        let dirs = fs::read_dir(all).into_iter().flatten().flatten();
        dirs.flat_map(|dir| fs::read_dir(dir.path()).into_iter().flatten())
            .filter(|file| {
                let name = file.as_ref().expect("our own").file_name();
                // A file that a killed process was about to write is not a copy.
                name != "lock-dir" && !text(name.as_ref()).starts_with(".new.")
            })
            .count()
    }
}

fn len(path: &Path) -> u64 {
    fs::metadata(path).expect("a lock file").len()
}

#[test]
fn time_wait_does_not_block_the_port_of_a_name() {
    let project = Project::new(4);
    let mut caller = project.caller();
    let web = port(caller.ask("lease web"));
    portlock_testkit::leave_in_time_wait(web.parse().expect("a port"));
    assert_eq!(caller.ask("end"), "done");
    assert_eq!(caller.ask("try web"), web);
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
    // Each of these bytes takes three in a lock file, which has 4096.
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
fn a_root_is_the_same_through_every_path() {
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
    // A delegated lease continues.
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
    // There is neither a lock for all names nor a mark.
    assert_eq!(
        fs::read_dir(project.locks.path()).expect("our own").count(),
        1
    );
}

#[test]
fn a_reservation_ends_with_its_root() {
    let project = Project::new(4);
    let (mut caller, mut other) = (project.caller(), project.caller());
    let (web, api) = (
        port(caller.ask("reserve web")),
        port(caller.ask("reserve api")),
    );
    fs::remove_dir(&project.root).expect("our own");
    assert_eq!(caller.ask("show web"), format!("{web} RootGone"));
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
    // As if its disk was not mounted, or another disk was mounted instead: the parent is another
    // directory.
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
    assert_eq!(caller.ask("show web"), format!("{web} Present"));
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
        eprintln!("skipped: git is not installed");
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
    // A sandbox may leave this behind.
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

#[test]
fn a_name_has_the_same_port_after_the_directory_was_lost() {
    // So few ports that the next choice would often be another.
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
fn a_call_waits_for_a_port_that_was_leased_in_the_meantime() {
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
    // A directory that a caller without a state directory created.
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
