//! macOS.

pub(crate) mod default_dir;
pub(crate) mod ports;
pub(crate) mod probe;
pub(crate) mod process;

use std::os::fd::OwnedFd;

use rustix::fs::Mode;

/// What keeps a lock file from being removed for its age: nothing need be. Only root may
/// set the sticky bit of a file (chmod(2), EFTYPE), and no cleaner looks at it.
pub(crate) const KEPT: Mode = Mode::empty();

/// Whether it is the user that unmapped owners appear to be: macOS has no user namespaces.
pub(crate) fn is_unmapped(_: u32) -> bool {
    false
}

/// Whether the file system of a directory is one of those that were tried: none was.
pub(crate) fn is_local(_: &OwnedFd) -> rustix::io::Result<bool> {
    Ok(false)
}
