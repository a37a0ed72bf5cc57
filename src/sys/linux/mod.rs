//! Linux.

pub(crate) mod held;
pub(crate) mod line;
pub(crate) mod mark;
pub(crate) mod ports;
pub(crate) mod probe;
pub(crate) mod process;
pub(crate) mod watch;

use std::{os::fd::OwnedFd, time::Duration};

use rustix::event::Timespec;

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
