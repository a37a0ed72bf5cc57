//! What only Unix has, and only tests of it need: modes, users and namespaces.

use std::{
    env, fs,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{Peer, command};

/// How many descriptors this process has open, and the one to look.
pub fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("Linux has it").count()
}

/// Whether strace is installed. If not, it says that the test is left out.
pub fn have_strace() -> bool {
    let version = Command::new("strace")
        .arg("-V")
        .stdout(Stdio::null())
        .status();
    if version.is_err() {
        eprintln!("left out: strace is not installed");
    }
    version.is_ok()
}

// ---------------------------------------------------------------------------
// Other users and namespaces.

/// An ordinary user: "nobody".
pub const NOBODY: u32 = 65534;

pub fn am_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub fn give_to_ordinary_user(path: &Path) {
    if am_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).expect("root may");
    }
}

/// A copy of this test binary that every user can execute; the build directory
/// may be closed to others.
pub fn open_copy() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("our own");
    let copy = dir.path().join("test");
    let binary = env::current_exe().expect("this test binary");
    fs::copy(binary, &copy).expect("a copy of this test binary");
    (dir, copy)
}

/// A child that is an ordinary user, whoever runs the tests. It must say "started".
pub fn start_unprivileged(role: &str, arguments: &[&str]) -> Peer {
    start_as(NOBODY, role, arguments)
}

/// A child that is the user `uid`, or the one who runs the tests if that is not root.
/// It must say "started".
pub fn start_as(uid: u32, role: &str, arguments: &[&str]) -> Peer {
    let (_dir, copy) = open_copy();
    let mut command = command(&[], &copy, role, arguments);
    if am_root() {
        command.uid(uid).gid(uid);
    }
    let peer = Peer::start_command(command);
    assert_eq!(peer.hear(), "started");
    peer
}

/// Starts a child in a namespace of the given kind, such as `--mount`, in which
/// `script` was run, or gives `None` where namespaces cannot be had.
pub fn start_in_namespace(
    kind: &str,
    script: &str,
    role: &str,
    arguments: &[&str],
) -> Option<Peer> {
    let binary = env::current_exe().expect("this test binary");
    let script = format!("{script} && exec \"$0\" \"$@\"");
    let mut unshare = vec!["unshare"];
    unshare.extend(kind.split(' '));
    if !am_root() {
        unshare.extend(["--user", "--map-root-user"]);
    }
    let works = Command::new(unshare[0])
        .args(&unshare[1..])
        .arg("true")
        .stderr(Stdio::null())
        .status();
    if !works.is_ok_and(|status| status.success()) {
        eprintln!("left out: {unshare:?} is not permitted here");
        return None;
    }
    let prefix = [&unshare[..], &["sh", "-c", &script]].concat();
    let command = command(&prefix, &binary, role, arguments);
    Some(Peer::start_command(command))
}

pub fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("our own");
}
