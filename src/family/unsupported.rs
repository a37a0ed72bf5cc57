//! The descriptor of a lease, on systems that do not show which processes have it.

use std::io;

use crate::lock_dir::OpenDir;

pub(super) const SHOWS_DESCRIPTORS: bool = false;

pub(super) struct LockFile;

impl LockFile {
    /// Returns `None`.
    pub(super) fn find(_: &OpenDir, _: u16) -> io::Result<Option<Self>> {
        Ok(None)
    }

    pub(super) fn is_open_in(&self, _: u32) -> io::Result<bool> {
        Ok(false)
    }
}
