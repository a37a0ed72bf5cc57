//! File systems for lock directories, each mounted in a separate namespace.

use std::{
    env,
    path::Path,
    process::{Command, ExitStatus, Stdio},
};

use crate::{
    am_root, lock_dir,
    stress::{STRESS, stress_factor},
    text,
};

/// The tested file systems, and how to mount each at `mnt`, from an empty directory on a tmpfs.
pub const FILE_SYSTEMS: [(&str, &str); 4] = [
    ("tmpfs", "mount -t tmpfs none mnt"),
    (
        "ext4",
        "truncate -s 64M image && mkfs.ext4 -q -F image && mount -o loop image mnt",
    ),
    (
        "overlayfs",
        "mkdir lower upper work &&
         mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work none mnt",
    ),
    BINDFS,
];

/// A FUSE file system: it has no `RENAME_NOREPLACE`, and removed files may keep a link.
pub const BINDFS: (&str, &str) = ("bindfs", "mkdir source && bindfs source mnt");

/// Returns a command that runs a shell script while a file system is mounted at `$TMPDIR`, or `None`
/// if it cannot be mounted. Daemons that the file system needs end with the script.
pub fn on_file_system(
    (name, mount): (&str, &str),
    script: &str,
    scratch: &Path,
) -> Option<Command> {
    let prepare = format!(
        "mount -t tmpfs -o mode=755 none . && cd \"$PWD\" && mkdir mnt && {mount} &&
         chmod 1777 mnt && export TMPDIR=\"$PWD/mnt\""
    );
    let run = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        if !am_root() {
            command.args(["--user", "--map-root-user"]);
        }
        // Without exec: process 1 is a shell, which ignores processes that it adopts.
        command.args(["sh", "-c", &format!("{prepare} && {{ {script}\n}}")]);
        command.current_dir(scratch);
        command
    };
    let can = run("true")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !can.is_ok_and(|status| status.success()) {
        eprintln!("skipped: {name} cannot be mounted here");
        return None;
    }
    Some(run(script))
}

/// Runs all tests of this binary except `this` with their lock directories on each kind of file
/// system, for `share` of their usual time.
pub fn run_on_each_file_system(this: &str, share: f64) {
    let binary = env::current_exe().expect("this test binary");
    let stress = (share * stress_factor()).to_string();
    for file_system in FILE_SYSTEMS {
        let scratch = lock_dir();
        let script = format!("\"{}\" --skip {this}; exit $?", text(&binary));
        let Some(mut command) = on_file_system(file_system, &script, scratch.path()) else {
            continue;
        };
        let output = command
            .env(STRESS, &stress)
            .output()
            .expect("it was run before");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            is_well(output.status, &said),
            "on {}: {}\n{said}\n{}",
            file_system.0,
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

fn is_well(status: ExitStatus, said: &str) -> bool {
    status.success() && said.contains("test result: ok. ") && !said.contains("ok. 0 passed")
}
