//! What only Linux has, where the system is another one.

/// Returns why `/tmp` is not the one that other processes have: only Linux can have several.
pub(crate) fn private_tmp() -> Option<String> {
    None
}

/// Returns `None`: no library that we know shows the arguments of a process here.
pub(crate) fn command_line(_: u32) -> Option<Vec<String>> {
    None
}

/// Returns `None`: no library that we know shows the directory of a process here.
pub(crate) fn current_dir(_: u32) -> Option<String> {
    None
}
