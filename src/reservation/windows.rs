//! What a directory is recognized by.

use std::fs::Metadata;

/// Returns 0: the standard library does not show file numbers, and the creation time has to do.
pub(super) fn inode(_: &Metadata) -> String {
    0.to_string()
}
