//! Ownership of the files, and how they are read and written. The files in this user's profile
//! belong to this user.

use std::{
    fs::{self, File, Metadata},
    io::{self, Write as _},
    path::Path,
};

/// Returns the name of the mark in a lock directory.
pub(super) fn mark() -> String {
    ".restored".to_owned()
}

/// Returns `true`: the file is in this user's profile.
pub(super) fn is_own(_: &Metadata) -> bool {
    true
}

/// Creates the mark.
pub(super) fn create_mark(path: &Path) -> io::Result<()> {
    File::create_new(path)?;
    Ok(())
}

/// Reads a file.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    fs::read(path)
}

/// Writes a file that does not exist yet.
pub(super) fn write_new(path: &Path, text: &[u8]) -> io::Result<()> {
    File::create_new(path)?.write_all(text)
}

/// Creates a directory and its parents.
pub(super) fn create_private(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)
}
