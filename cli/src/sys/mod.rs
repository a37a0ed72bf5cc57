//! Platform layer: how a command receives a lease, which process called, what is visible of a
//! process, and where the port server listens.
//!
//! Every platform has the same items here, so that no other module depends on the platform. What a
//! platform lacks is hidden in the help and refused with an error.

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
pub(crate) use linux::{command_line, current_dir, has_open, private_tmp};
#[cfg(unix)]
pub(crate) use unix::*;
#[cfg(not(target_os = "linux"))]
pub(crate) use unsupported::{command_line, current_dir, has_open, private_tmp};
#[cfg(windows)]
pub(crate) use windows::*;

/// The process that will use a picked port, unless another one is named.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    pub(crate) pid: u32,
    /// Whether it is known not to merely pass the output on.
    pub(crate) is_certain: bool,
}

/// A request to a running server, by a signal or a console event.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wish {
    Stop,
    Statistics,
}

/// A visible process.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) pid: u32,
    /// The pid of the process that started or adopted it.
    pub(crate) parent: u32,
    pub(crate) program: String,
}
