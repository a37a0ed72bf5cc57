//! The identity of a directory on Linux.

use std::{
    io,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

/// Returns its inode number and, if the file system stores it, its creation time. The standard
/// library reads that time only in programs that are linked with glibc.
pub(super) fn inode_and_creation(dir: &Path) -> io::Result<(u64, Option<SystemTime>)> {
    let wanted = StatxFlags::INO | StatxFlags::BTIME;
    let file = statx(CWD, dir, AtFlags::empty(), wanted)?;
    let time = file.stx_btime;
    let is_stored = StatxFlags::from_bits_retain(file.stx_mask).contains(StatxFlags::BTIME);
    let seconds = u64::try_from(time.tv_sec).ok().filter(|_| is_stored);
    let created =
        seconds.and_then(|seconds| UNIX_EPOCH.checked_add(Duration::new(seconds, time.tv_nsec)));
    Ok((file.stx_ino, created))
}
