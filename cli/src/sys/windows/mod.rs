//! Windows: nothing takes the place of another process, and locks are not inherited.

mod caller;
mod command;
mod endpoint;
mod process;

use std::{
    ffi::{OsStr, OsString},
    os::windows::ffi::{OsStrExt, OsStringExt},
};

use winsafe::{HPROCESS, co};

pub(crate) use caller::{caller, own_pid};
pub(crate) use command::{PASSES_LISTENERS, RUN_HELP, execute, program};
pub(crate) use endpoint::{
    ADDRESS_HELP, Connection, DEFAULT_ADDRESS, Endpoint, PassedListeners, SERVE_HELP, Wishes,
    check_client, check_peer, finish, notify_ready, notify_stopping, passed_listeners,
    raise_descriptor_limit,
};
pub(crate) use process::{Process, processes};
pub(crate) const CAN_STOP: bool = true;
pub(crate) const STOP_HELP: &str = "\
Each process is ended immediately (TerminateProcess): Windows has no signal that asks for it. \
With `portlock run`, that is portlock itself, and CMD ends with it. A process is named by a \
handle, so that it is never another one that has got its pid.";
pub(crate) const PICK_HELP: &str = "\
The lease is for the parent of portlock. Where that only waits for portlock and ends with
it, portlock fails and asks for --pid.

  Called from                       The lease is for
  $port = portlock pick in          that PowerShell
    PowerShell
  portlock pick >FILE in a batch    that cmd.exe
    file, or at its prompt
  for /f of a batch file            another cmd.exe, which ends right
                                    away: say --pid
  a subprocess of Python, Node.js   the interpreter
  portlock run CMD, where CMD runs  CMD, if it starts portlock itself
    portlock pick
  P=$(portlock pick) in Git Bash,   nobody, an error: say
    or any command there, also        --pid \"$(cat /proc/$$/winpid)\"
    behind env, timeout or xargs
  Cygwin, another Unix shell        nobody, an error: say --pid with
                                    the shell's own Windows pid
  a shim of Scoop or Chocolatey     nobody, an error: in PowerShell say
    in portlock's place               --pid $PID, or call portlock by
                                      the path of the program itself
";
/// Whether it is certain, before any port is looked at, that there is no such process.
pub(crate) fn is_no_process(pid: u32) -> bool {
    let opened = HPROCESS::OpenProcess(co::PROCESS::QUERY_LIMITED_INFORMATION, false, pid);
    matches!(opened, Err(co::ERROR::INVALID_PARAMETER))
}

/// Returns the number as text. There is none for a user on Windows.
pub(crate) fn user_name(id: u32) -> String {
    id.to_string()
}

/// What the system's arguments are made of.
pub(crate) type Unit = u16;

/// An argument in the units that the system has it in, well-formed or not.
pub(crate) fn units(text: &OsStr) -> Vec<Unit> {
    text.encode_wide().collect()
}

pub(crate) fn from_units(units: Vec<Unit>) -> OsString {
    OsString::from_wide(&units)
}
