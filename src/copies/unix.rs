//! Ownership of the files, and how they are read and written. Not with std, which retries an
//! interrupted call without a bound.

use std::{
    fs::{DirBuilder, File, Metadata},
    io::{self, Read as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::Path,
};

use rustix::{
    fs::{CWD, Mode, OFlags},
    process::geteuid,
};

use crate::{lock::lock_file, retry::retry};

/// Returns the name of this user's mark in a lock directory, which several users may share.
pub(super) fn mark() -> String {
    format!(".restored.{}", geteuid().as_raw())
}

/// Returns whether the file belongs to this user.
pub(super) fn is_own(metadata: &Metadata) -> bool {
    metadata.uid() == geteuid().as_raw()
}

/// Creates the mark. The sticky bit keeps it from being removed because of its age, as with lock
/// files.
pub(super) fn create_mark(path: &Path) -> io::Result<()> {
    create_new(path, Mode::SVTX | Mode::RUSR | Mode::WUSR).map(drop)
}

/// Reads a file.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = open(path, OFlags::RDONLY, Mode::empty())?;
    let mut text = Vec::new();
    let mut part = [0; 4096];
    loop {
        match retry(|| file.read(&mut part))? {
            0 => return Ok(text),
            len => text.extend_from_slice(&part[..len]),
        }
    }
}

/// Writes a file that does not exist yet.
pub(super) fn write_new(path: &Path, text: &[u8]) -> io::Result<()> {
    lock_file::check_size_limit(text.len() as u64)?;
    let file = create_new(path, Mode::RUSR | Mode::WUSR)?;
    lock_file::write_all(&file, text, 0)
}

fn create_new(path: &Path, mode: Mode) -> io::Result<File> {
    open(path, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, mode)
}

fn open(path: &Path, flags: OFlags, mode: Mode) -> io::Result<File> {
    let open = || {
        Ok(rustix::fs::openat(
            CWD,
            path,
            flags | OFlags::CLOEXEC,
            mode,
        )?)
    };
    Ok(retry(open)?.into())
}

/// Creates a directory that only this user can use, and its parents.
pub(super) fn create_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}
