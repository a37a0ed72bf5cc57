//! The identity of a directory on macOS.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path, time::SystemTime};

/// Returns its inode number and its creation time.
pub(super) fn inode_and_creation(dir: &Path) -> io::Result<(u64, Option<SystemTime>)> {
    let metadata = fs::metadata(dir)?;
    Ok((metadata.ino(), metadata.created().ok()))
}
