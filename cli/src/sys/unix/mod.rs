//! Unix: commands replace this process and inherit descriptors.

mod command;
mod endpoint;

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
};

use nix::unistd::{Uid, User};
use rustix::{
    io::Errno,
    process::{Pid, test_kill_process},
};

#[cfg(target_os = "linux")]
use super::linux as system;
#[cfg(target_os = "macos")]
use super::macos as system;

pub(crate) use command::{PASSES_LISTENERS, RUN_HELP, execute, program};
pub(crate) use endpoint::{
    Connection, Endpoint, PassedListeners, SERVE_HELP, Wishes, check_client, check_peer, finish,
    notify_ready, notify_stopping, passed_listeners, raise_descriptor_limit,
};
pub(crate) use system::{CAN_STOP, PICK_HELP, Process, STOP_HELP, caller, processes};
pub(crate) const ADDRESS_HELP: &str = system::ADDRESS_HELP;
pub(crate) const DEFAULT_ADDRESS: Option<&str> = system::DEFAULT_ADDRESS;
/// Returns an example of --pid that names the calling shell, and where it works.
pub(crate) fn own_pid() -> &'static str {
    "--pid $$ in a shell script"
}

/// Returns whether it is certain, without checking any port, that no process has this pid.
pub(crate) fn is_no_process(pid: u32) -> bool {
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
    process.is_none_or(|process| test_kill_process(process) == Err(Errno::SRCH))
}

/// Returns the name of a user, or its number if it has no name.
pub(crate) fn user_name(id: u32) -> String {
    match User::from_uid(Uid::from_raw(id)) {
        Ok(Some(user)) => user.name,
        _ => id.to_string(),
    }
}

/// The unit of a program argument: a byte.
pub(crate) type Unit = u8;

/// Returns the units of an argument, which need not be UTF-8.
pub(crate) fn units(text: &OsStr) -> Vec<Unit> {
    text.as_bytes().to_vec()
}

pub(crate) fn from_units(units: Vec<Unit>) -> OsString {
    OsString::from_vec(units)
}
