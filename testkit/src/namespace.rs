//! Linux namespaces, created by unshare(1).

use std::{
    env,
    process::{Command, Stdio},
};

use crate::{Peer, am_root, command};

/// Returns the beginning of a command that runs in new namespaces: `options` for unshare(1),
/// such as `--mount`, and a user namespace as well unless the tests run as root.
pub fn unshare(options: &str) -> Vec<&str> {
    let mut prefix = vec!["unshare"];
    prefix.extend(options.split(' '));
    if !am_root() {
        prefix.extend(["--user", "--map-root-user"]);
    }
    prefix
}

/// Whether commands with this prefix can be run here. If not, reports that a test is skipped.
pub fn is_permitted(prefix: &[&str]) -> bool {
    let status = Command::new(prefix[0])
        .args(&prefix[1..])
        .arg("true")
        .stderr(Stdio::null())
        .status();
    let is_permitted = status.is_ok_and(|status| status.success());
    if !is_permitted {
        eprintln!("skipped: {prefix:?} is not permitted here");
    }
    is_permitted
}

/// Starts a child in a namespace of the given kind, such as `--mount`, in which `script` was
/// run. Returns `None` if namespaces are not permitted.
pub fn start_in_namespace(
    kind: &str,
    script: &str,
    role: &str,
    arguments: &[&str],
) -> Option<Peer> {
    let binary = env::current_exe().expect("this test binary");
    let script = format!("{script} && exec \"$0\" \"$@\"");
    let unshare = unshare(kind);
    if !is_permitted(&unshare) {
        return None;
    }
    let prefix = [&unshare[..], &["sh", "-c", &script]].concat();
    let command = command(&prefix, &binary, role, arguments);
    Some(Peer::start_command(command))
}

/// Whether this process is in the initial pid namespace, and sees all other processes
/// (PROC_PID_INIT_INO in the kernel's include/linux/proc_ns.h). Reports nothing.
pub fn in_initial_namespace() -> bool {
    use std::os::unix::fs::MetadataExt;
    let namespace = std::fs::metadata("/proc/self/ns/pid").expect("/proc is mounted");
    namespace.ino() == 0xEFFF_FFFC
}
