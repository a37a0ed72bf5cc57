//! Becoming the program.

#[cfg(unix)]
use std::{os::unix::process::CommandExt, process::Command};

use napi_derive::napi;

/// Replaces this process by `program`, which keeps its pid, parent and open descriptors. Returns
/// only if that fails, why; and where a process cannot be replaced, as on Windows, nothing.
#[napi]
pub fn exec(program: String, arguments: Vec<String>) -> Option<String> {
    #[cfg(unix)]
    return Some(Command::new(program).args(arguments).exec().to_string());
    #[cfg(not(unix))]
    {
        let _ = (program, arguments);
        None
    }
}
