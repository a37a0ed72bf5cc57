//! Unix: commands take the place of this process and inherit descriptors.

mod command;
mod endpoint;

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
};

use rustix::{
    io::Errno,
    process::{Pid, getppid, test_kill_process},
};

#[cfg(target_os = "linux")]
use super::linux as system;
#[cfg(target_os = "macos")]
use super::macos as system;

pub(crate) use command::{PASSES_LISTENERS, RUN_HELP, execute, program};
pub(crate) use endpoint::{
    Connection, Endpoint, SERVE_HELP, Wishes, check_client, raise_descriptor_limit,
};
pub(crate) use system::ports_in_use;
pub(crate) const ADDRESS_HELP: &str = system::ADDRESS_HELP;
pub(crate) const DEFAULT_ADDRESS: Option<&str> = system::DEFAULT_ADDRESS;
pub(crate) const PICK_HELP: &str = "\
In a shell script, TEST_PORT=$(portlock pick) is leased until the script ends. In a
pipeline or in a subshell in parentheses, the caller is that subshell, which may end
at once: there, say --pid $$.";

/// The process that called this one, unless it has ended: orphans are given to
/// another, and a lease for that one would live until the machine goes down.
pub(crate) fn caller() -> Option<u32> {
    let parent = getppid()?.as_raw_nonzero().get();
    u32::try_from(parent).ok().filter(|&pid| pid != 1)
}

/// Whether it is certain, before any port is looked at, that there is no such process.
pub(crate) fn is_no_process(pid: u32) -> bool {
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
    process.is_none_or(|process| test_kill_process(process) == Err(Errno::SRCH))
}

/// An argument in the units that the system has it in, UTF-8 or not.
pub(crate) fn units(text: &OsStr) -> Vec<u8> {
    text.as_bytes().to_vec()
}

pub(crate) fn from_units(units: Vec<u8>) -> OsString {
    OsString::from_vec(units)
}
