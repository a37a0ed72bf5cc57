//! The default lock directory on Linux.
//!
//! It does not depend on anything that a session changes. `/run/user/<uid>` appears with a user's
//! first login and disappears with the last logout, while the user's services, cron jobs and
//! terminal multiplexers keep running. A caller that sees it and one that does not would lease
//! the same port.

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FileType, Mode, Stat},
    io::Errno,
    process::Uid,
};

use super::{Origin, cannot, refuse};
use crate::error::{Error, ErrorKind, Result, USE_VARIABLE};

/// The directory of all users, if root has created it.
const MACHINE: &str = "/run/portlock";
const TMP: &str = "/tmp";
const NAME: &str = "portlock";

/// Returns the default directory: `/run/portlock` if root has created it, else
/// `/tmp/portlock-<uid>`, else `portlock` in the runtime directory if there is no `/tmp`.
///
/// `TMPDIR` is ignored: test runners and build systems set it, and two callers would not see each
/// other's leases.
///
/// # Errors
///
/// If the system does not determine which directory it is. Skipping a directory because of an
/// error would give this caller a different directory than all others.
pub(crate) fn default_dir(us: Uid) -> Result<(PathBuf, Origin)> {
    if is_of_machine()? {
        return Ok((MACHINE.into(), Origin::Machine));
    }
    let is_dir = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    // Links are followed because /tmp may be one.
    let tmp = present(Path::new(TMP), rustix::fs::stat(TMP))?;
    if tmp.as_ref().is_some_and(is_dir) {
        return Ok((in_tmp(us), Origin::Tmp));
    }
    let Some(runtime) = dirs::runtime_dir() else {
        let message = "there is neither /tmp nor a runtime directory (XDG_RUNTIME_DIR)";
        return Err(Error::new(ErrorKind::LockDir, message).with_hint(USE_VARIABLE));
    };
    // After su(1), the variable may still name another user's directory.
    let found = present(&runtime, rustix::fs::lstat(&runtime))?;
    if !found.is_some_and(|found| is_dir(&found) && found.st_uid == us.as_raw()) {
        let message = format!(
            "there is no /tmp, and {} is not a directory of user {}",
            runtime.display(),
            us.as_raw()
        );
        return Err(Error::new(ErrorKind::LockDir, message).with_hint(USE_VARIABLE));
    }
    Ok((runtime.join(NAME), Origin::RuntimeDir))
}

/// Returns every path at which a caller of this user has its default directory, now or in another
/// session, or had it under earlier rules.
pub(crate) fn default_dirs(us: Uid) -> Vec<PathBuf> {
    let by_uid = PathBuf::from(format!("/run/user/{}", us.as_raw()));
    let mut runtime = Vec::from_iter(dirs::runtime_dir());
    if !runtime.contains(&by_uid) {
        runtime.push(by_uid);
    }
    let runtime = runtime.into_iter().map(|dir| dir.join(NAME));
    [MACHINE.into(), in_tmp(us)]
        .into_iter()
        .chain(runtime)
        .collect()
}

fn in_tmp(us: Uid) -> PathBuf {
    format!("{TMP}/{NAME}-{}", us.as_raw()).into()
}

/// Returns whether root has created the directory of all users.
///
/// A file of another user at that path is skipped, because every caller skips it. If root's
/// directory is not as it should be, that is an error: root meant to share it, and when its mode
/// is corrected, callers before and after would use different directories.
fn is_of_machine() -> Result<bool> {
    let path = Path::new(MACHINE);
    let Some(found) = present(path, rustix::fs::lstat(path))? else {
        return Ok(false);
    };
    // If root is not mapped, its directory appears to belong to the overflow user.
    if found.st_uid != 0 && !is_unmapped(found.st_uid) {
        return Ok(false);
    }
    let mode = Mode::from_raw_mode(found.st_mode).as_raw_mode();
    match FileType::from_raw_mode(found.st_mode) {
        FileType::Directory if mode == 0o1777 => Ok(true),
        FileType::Directory => Err(refuse(
            path,
            &format!(
                "its mode is {mode:04o}, and all users share it only with mode 1777 (root can \
                 set that: chmod 1777 {MACHINE})"
            ),
        )),
        FileType::Symlink => Err(refuse(path, "it is a symbolic link")),
        _ => Err(refuse(path, "it is not a directory")),
    }
}

/// Returns what was found at `path`, or `None` if nothing is there.
fn present(path: &Path, found: rustix::io::Result<Stat>) -> Result<Option<Stat>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => {
            Err(cannot("check for the default", path, error.into()).with_hint(USE_VARIABLE))
        }
    }
}

/// The mode bit that keeps a lock file from being removed because of its age: systemd-tmpfiles
/// skips regular files with the sticky bit (XDG Base Directory Specification, tmpfiles.d(5)), and
/// otherwise removes files in /tmp that were not used for ten days, leased or not.
pub(crate) const KEPT: Mode = Mode::SVTX;

/// Returns whether this may be the owner of files whose real owner is not mapped into our user
/// namespace, as root is not in a rootless container: all of them appear to belong to the
/// overflow user (user_namespaces(7)).
///
/// In a container that also maps the overflow user, its files cannot be distinguished from those.
/// In a namespace that maps every user, such as the initial one, such files do belong to the
/// overflow user.
pub(crate) fn is_unmapped(uid: u32) -> bool {
    let read = |path| fs::read_to_string(path).ok();
    let is_overflow = || {
        let overflow = read("/proc/sys/kernel/overflowuid")?;
        Some(overflow.trim() == uid.to_string())
    };
    let all_are_mapped = || {
        let map = read("/proc/self/uid_map")?;
        let count = |line: &str| line.split_ascii_whitespace().nth(2)?.parse().ok();
        let counts: Option<Vec<u64>> = map.lines().map(count).collect();
        // 2^32 - 1 is not a user.
        Some(counts?.iter().sum::<u64>() >= u64::from(u32::MAX))
    };
    is_overflow() == Some(true) && all_are_mapped() == Some(false)
}

/// Returns whether the file system is one of the tested ones.
///
/// On NFS, and usually on FUSE, a file that is removed while it is open is only renamed and keeps
/// its link (`.nfsXXXX`, `.fuse_hiddenXXXX`). The numbers are from the kernel's linux/magic.h.
pub(crate) fn is_local(dir: &OwnedFd) -> rustix::io::Result<bool> {
    const TMPFS: u64 = 0x0102_1994;
    const EXT: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    const BTRFS: u64 = 0x9123_683e;
    const OVERLAYFS: u64 = 0x794c_7630;
    let kind = rustix::fs::fstatfs(dir)?.f_type;
    let local = [TMPFS, EXT, XFS, BTRFS, OVERLAYFS];
    Ok(u64::try_from(kind).is_ok_and(|kind| local.contains(&kind)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock_dir::unix::{Dir, user};

    #[test]
    fn a_file_system_that_was_not_tested_does_not_count_as_local() {
        let procfs = Dir::open(Path::new("/proc/self/fd"), Origin::Given, user());
        assert!(!procfs.expect("only this user's").is_local());
    }

    #[test]
    fn every_path_of_a_default_directory_is_listed_once() {
        let us = user();
        let dirs = default_dirs(us);
        let by_uid = format!("/run/user/{}/{NAME}", us.as_raw());
        for place in [MACHINE.into(), in_tmp(us), by_uid.into()] {
            let times = dirs.iter().filter(|dir| **dir == place).count();
            assert_eq!(times, 1, "{} in {dirs:?}", place.display());
        }
    }
}
