//! Other users and their permissions.

use std::{
    env,
    ffi::OsStr,
    fs,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
};

use assert_cmd::assert::Assert;
use tempfile::TempDir;

use crate::{Peer, Scene, answer, command, lock_dir, portlock};

/// The user id of an ordinary user, "nobody".
pub const NOBODY: u32 = 65534;

/// Whether the tests run as root.
pub fn am_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Sets the mode of a file or directory that we own.
pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("our own");
}

/// Changes the owner of a file or directory to [`NOBODY`], if the tests run as root.
pub fn give_to_ordinary_user(path: &Path) {
    if am_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).expect("root may");
    }
}

/// Sets `command` to run as the user `uid`, if the tests run as root.
pub fn as_user(uid: u32, command: &mut Command) {
    if am_root() {
        command.uid(uid).gid(uid);
    }
}

/// Creates a copy of this test binary that every user can execute.
pub fn open_copy() -> (TempDir, PathBuf) {
    open_copy_of(&env::current_exe().expect("this test binary"))
}

/// Creates a copy of a program that every user can execute; other users may not have access
/// to the build directory.
pub fn open_copy_of(program: &Path) -> (TempDir, PathBuf) {
    let dir = lock_dir();
    set_mode(dir.path(), 0o755);
    let copy = dir.path().join(program.file_name().expect("a file"));
    // In another process: a child that another thread is spawning would otherwise inherit the
    // file open for writing, and the copy could not be executed (ETXTBSY).
    let status = Command::new("cp").args([program, &copy]).status();
    assert!(status.expect("cp is installed").success());
    (dir, copy)
}

/// Starts a child that is an ordinary user, whichever user runs the tests. It must write "started".
pub fn start_unprivileged(role: &str, arguments: &[&str]) -> Peer {
    start_as(NOBODY, role, arguments)
}

/// Starts a child that is the user `uid`, or the current user if the tests do not run as root.
/// It must write "started".
pub fn start_as(uid: u32, role: &str, arguments: &[&str]) -> Peer {
    let (_dir, copy) = open_copy();
    let mut command = command(&[], &copy, role, arguments);
    as_user(uid, &mut command);
    let peer = Peer::start_command(command);
    assert_eq!(peer.hear(), "started");
    peer
}

/// A user without privileges, whichever user runs the tests, with a copy of the program.
pub struct OrdinaryUser {
    _dir: TempDir,
    copy: PathBuf,
}

impl OrdinaryUser {
    /// Copies the program.
    #[expect(clippy::new_without_default, reason = "it creates a file")]
    pub fn new() -> Self {
        let (_dir, copy) = open_copy_of(&portlock());
        Self { _dir, copy }
    }

    /// Returns the path of this user's copy of the program.
    pub fn path(&self) -> PathBuf {
        self.copy.clone()
    }

    /// Returns a command that runs portlock as this user.
    pub fn program(&self, scene: &Scene, args: &[&str]) -> Command {
        let mut command = self.command(scene, self.path());
        command.args(args);
        command
    }

    /// Returns a command that runs any program as this user.
    pub fn command(&self, scene: &Scene, program: impl AsRef<OsStr>) -> Command {
        let mut command = scene.command(program);
        command.current_dir("/");
        as_user(NOBODY, &mut command);
        command
    }

    /// Runs portlock to its end as this user.
    #[track_caller]
    pub fn portlock(&self, scene: &Scene, args: &[&str]) -> Assert {
        answer(self.program(scene, args))
    }

    /// Changes the owner of a file or directory to this user.
    pub fn give(&self, path: &Path) {
        give_to_ordinary_user(path);
    }
}
