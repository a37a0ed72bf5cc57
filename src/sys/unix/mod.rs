//! What Linux and macOS have in common.

pub(crate) mod dir;
pub(crate) mod lock_file;
pub(crate) mod portserver;
pub(crate) mod probe;
pub(crate) mod process;
