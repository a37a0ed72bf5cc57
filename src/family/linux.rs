//! Finds the processes that have the descriptor of a lease, which they can inherit.

use std::{fs, io, os::unix::ffi::OsStrExt as _};

use rustix::fs::{AtFlags, CWD, Statx, StatxFlags, statx};

use crate::{lock_dir::OpenDir, process::linux::if_shown};

/// Whether the system shows which processes have a lock file open.
pub(super) const SHOWS_DESCRIPTORS: bool = true;

/// A lock file.
pub(super) struct LockFile {
    name: String,
    file: Statx,
}

impl LockFile {
    /// Returns the lock file, or `None` if it does not exist.
    pub(super) fn find(dir: &OpenDir, port: u16) -> io::Result<Option<Self>> {
        let name = port.to_string();
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let file = statx(dir.sys().fd(), &*name, flags, StatxFlags::INO);
        let file = if_shown(file.map_err(io::Error::from))?;
        Ok(file.map(|file| Self { name, file }))
    }

    /// Returns whether the process has the file open, as far as this process may see. Only
    /// processes that lease the port, or inherited the lease, have it open for longer than a
    /// moment.
    pub(super) fn is_open_in(&self, pid: u32) -> io::Result<bool> {
        let Some(descriptors) = if_shown(fs::read_dir(format!("/proc/{pid}/fd")))? else {
            return Ok(false);
        };
        for descriptor in descriptors {
            let Some(path) = if_shown(descriptor.map(|descriptor| descriptor.path()))? else {
                continue;
            };
            // Compare the name first: other open files may be on a file server that does not
            // respond.
            let link = if_shown(fs::read_link(&path))?;
            let is_named_so = link.is_some_and(|link| {
                let link = link.as_os_str().as_bytes();
                let link = link.strip_suffix(b" (deleted)").unwrap_or(link);
                link.rsplit(|&byte| byte == b'/').next() == Some(self.name.as_bytes())
            });
            if !is_named_so {
                continue;
            }
            let flags = AtFlags::STATX_DONT_SYNC;
            let file = statx(CWD, &path, flags, StatxFlags::INO).map_err(io::Error::from);
            let id = |file: &Statx| (file.stx_dev_major, file.stx_dev_minor, file.stx_ino);
            if if_shown(file)?.is_some_and(|file| id(&file) == id(&self.file)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
