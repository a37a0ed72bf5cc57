//! What differs from system to system: how a command gets a lease, who called, what can be seen
//! of a process, and where the port server listens.
//!
//! Every system has the same items here, so that nothing else has to ask which one
//! it is. What a system lacks is left out of the help and refused in a sentence.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;
#[cfg(unix)]
mod unix;
#[cfg(not(target_os = "linux"))]
mod unsupported;
#[cfg(windows)]
mod windows;

#[cfg(target_os = "linux")]
pub(crate) use linux::{command_line, current_dir, private_tmp};
#[cfg(unix)]
pub(crate) use unix::*;
#[cfg(not(target_os = "linux"))]
pub(crate) use unsupported::{command_line, current_dir, private_tmp};
#[cfg(windows)]
pub(crate) use windows::*;

/// The process that will use a picked port, unless another one is named.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    pub(crate) pid: u32,
    /// It was possible to see that it does not merely pass the output on.
    pub(crate) is_certain: bool,
}

/// What somebody wants of a server that runs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wish {
    Stop,
    Statistics,
}

/// A process that can be seen.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) pid: u32,
    /// The pid of the process that started it or has adopted it.
    pub(crate) parent: u32,
    pub(crate) program: String,
}
