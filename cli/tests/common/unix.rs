//! What only Unix has: signals, other users, namespaces and terminals.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use assert_cmd::assert::Assert;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{PORTLOCK, Running, Scene, answer};

impl Running {
    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.id()).expect("a pid");
        let pid = Pid::from_raw(pid).expect("not 0");
        kill_process(pid, signal).expect("our own child");
    }
}

/// Whether the tests were started with this signal ignored, as nohup(1) and a shell's `&`
/// start programs; what they start ignores it too. Only Linux tells.
pub fn is_ignored(signal: Signal) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let is_ignored = mask.is_some_and(|mask| mask >> (signal.as_raw() - 1) & 1 == 1);
    if is_ignored {
        eprintln!("left out: {signal:?} is ignored here");
    }
    is_ignored
}

/// An ordinary user: "nobody".
const NOBODY: u32 = 65534;

pub fn am_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A user without privileges, whoever runs the tests.
pub struct OrdinaryUser {
    /// The build directory may be closed to others.
    copy: TempDir,
}

impl OrdinaryUser {
    pub fn new() -> Self {
        let copy = tempfile::tempdir().expect("a temporary directory");
        open_to_all(copy.path(), 0o755);
        // Not by this process: what another thread is just starting would inherit
        // the file open for writing, and it could not be executed (ETXTBSY).
        let mut cp = Command::new("cp");
        let status = cp.arg(PORTLOCK).arg(copy.path()).status();
        assert!(status.expect("cp is installed").success());
        Self { copy }
    }

    /// Where the program is for this user.
    pub fn path(&self) -> PathBuf {
        self.copy.path().join("portlock")
    }

    pub fn program(&self, scene: &Scene, args: &[&str]) -> Command {
        let mut command = self.command(scene, self.path());
        command.args(args);
        command
    }

    /// Any program, run by this user.
    pub fn command(&self, scene: &Scene, program: impl AsRef<OsStr>) -> Command {
        let mut command = scene.command(program);
        command.current_dir("/");
        if am_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    pub fn portlock(&self, scene: &Scene, args: &[&str]) -> Assert {
        answer(self.program(scene, args))
    }

    /// Makes something this user's own.
    pub fn give(&self, path: &Path) {
        if am_root() {
            chown(path, Some(NOBODY), Some(NOBODY)).expect("root may");
        }
    }
}

/// Sets the mode of a file or directory of ours.
pub fn open_to_all(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("our own");
}

impl Scene {
    /// A script, run by `shell`.
    pub fn script(&self, shell: &str, script: &str) -> Command {
        let mut command = self.command(shell);
        command.args(["-c", script]);
        command
    }

    /// A script in a namespace of the given kind, such as `--net`, or `None` where
    /// namespaces cannot be had.
    pub fn in_namespace(&self, kind: &str, script: &str) -> Option<Command> {
        let unshare = |command: &mut Command| {
            command.args(kind.split(' '));
            if !am_root() {
                command.args(["--user", "--map-root-user"]);
            }
        };
        let mut works = Command::new("unshare");
        unshare(&mut works);
        works.arg("true").stderr(Stdio::null());
        if !works.status().is_ok_and(|status| status.success()) {
            eprintln!("left out: a namespace by {kind} is not permitted here");
            return None;
        }
        let mut command = self.command("unshare");
        unshare(&mut command);
        command.args(["sh", "-c", script]);
        Some(command)
    }

    /// A shell's command line on a terminal of its own, or `None` where
    /// script(1) of util-linux is not installed. What it says on either output is
    /// on standard output.
    pub fn on_terminal(&self, line: &str) -> Option<Command> {
        let version = Command::new("script").arg("--version").output();
        let version = version.map(|version| version.stdout).unwrap_or_default();
        if !String::from_utf8_lossy(&version).contains("util-linux") {
            eprintln!("left out: script(1) of util-linux is not installed");
            return None;
        }
        let mut command = self.command("script");
        command
            .args(["--quiet", "--return", "--command", line, "/dev/null"])
            .env("TERM", "xterm")
            .env("SHELL", "/bin/sh");
        Some(command)
    }
}
