//! Windows.

pub(crate) mod default_dir;
pub(crate) mod dir;
mod exclusive;
pub(crate) mod lock_file;
pub(crate) mod ports;
pub(crate) mod portserver;
pub(crate) mod probe;
pub(crate) mod process;

use std::io;

/// Whether it is this error of the system.
fn is(error: &io::Error, code: u32) -> bool {
    error.raw_os_error() == Some(code.cast_signed())
}
