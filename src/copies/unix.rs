//! Whose files they are.

use std::{
    fs::{DirBuilder, File, Metadata},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use rustix::process::geteuid;

/// Returns the name of this user's mark in a lock directory, which users may share.
pub(super) fn mark() -> String {
    format!(".restored.{}", geteuid().as_raw())
}

/// Returns whether it is this user's.
pub(super) fn is_own(metadata: &Metadata) -> bool {
    metadata.uid() == geteuid().as_raw()
}

/// Creates the mark. With the sticky bit it is not removed for its age, as lock files are not.
pub(super) fn create_mark(path: &Path) -> io::Result<()> {
    let mut options = File::options();
    options
        .write(true)
        .create_new(true)
        .mode(0o1600)
        .open(path)?;
    Ok(())
}

/// Creates a directory that only this user can use, and those above it.
pub(super) fn create_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}
