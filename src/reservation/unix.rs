//! The identity of a directory on Unix.

use std::{fs::Metadata, os::unix::fs::MetadataExt as _};

/// Returns its inode number.
pub(super) fn inode(metadata: &Metadata) -> String {
    metadata.ino().to_string()
}
