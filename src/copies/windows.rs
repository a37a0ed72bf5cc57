//! Whose files they are: those in this user's profile are this user's.

use std::{
    fs::{self, File, Metadata},
    io,
    path::Path,
};

/// Returns the name of the mark in a lock directory.
pub(super) fn mark() -> String {
    ".restored".to_owned()
}

/// Returns that it is this user's.
pub(super) fn is_own(_: &Metadata) -> bool {
    true
}

/// Creates the mark.
pub(super) fn create_mark(path: &Path) -> io::Result<()> {
    File::create_new(path)?;
    Ok(())
}

/// Creates a directory, and those above it.
pub(super) fn create_private(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)
}
