//! Linux.

pub(crate) mod default_dir;
pub(crate) mod held;
pub(crate) mod line;
pub(crate) mod mark;
pub(crate) mod ports;
pub(crate) mod probe;
pub(crate) mod process;
pub(crate) mod watch;

use std::{fs, os::fd::OwnedFd, time::Duration};

use rustix::{event::Timespec, fs::Mode};

/// What keeps a lock file from being removed for its age: systemd-tmpfiles passes over
/// regular files with the sticky bit (XDG Base Directory Specification, tmpfiles.d(5)),
/// and otherwise removes files in /tmp that were not used for ten days, leased or not.
pub(crate) const KEPT: Mode = Mode::SVTX;

/// Returns whether this may be the owner of files whose real owner is not mapped into our
/// user namespace, as root is not in a rootless container: they all appear to be the
/// overflow user's (user_namespaces(7)).
///
/// In a container that maps that user too, its files cannot be told from those. In a
/// namespace that maps every user, as the initial one does, they are its own.
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
        // 2^32 - 1 is no user.
        Some(counts?.iter().sum::<u64>() >= u64::from(u32::MAX))
    };
    is_overflow() == Some(true) && all_are_mapped() == Some(false)
}

pub(crate) fn timespec(duration: Duration) -> Timespec {
    // No wait is as long as the largest that this has room for.
    Timespec::try_from(duration).unwrap_or_default()
}

/// Whether the file system is one of those that were tried.
///
/// On NFS, and as a rule on FUSE, a file that is removed while it is open is only
/// renamed and keeps its link (`.nfsXXXX`, `.fuse_hiddenXXXX`). The numbers are from
/// the kernel's linux/magic.h.
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
