//! Stand-ins on other systems for what only Linux has.

use std::path::Path;

/// Returns `None`: only Linux can have several `/tmp` directories.
pub(crate) fn private_tmp() -> Option<String> {
    None
}

/// Returns `None`: we know no library that reads the arguments of a process here.
pub(crate) fn command_line(_: u32) -> Option<Vec<String>> {
    None
}

/// Returns `None`: we know no library that reads the current directory of a process here.
pub(crate) fn current_dir(_: u32) -> Option<String> {
    None
}

/// Returns `false`: no process inherits a lease on Windows, and macOS has no `stop`.
pub(crate) fn has_open(_: u32, _: &Path) -> bool {
    false
}
