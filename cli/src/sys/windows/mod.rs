//! Windows: no process can replace itself with another program, and locks are not inherited.

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
Each process is ended immediately (TerminateProcess): Windows has no signal that asks a process to end. \
With `portlock run`, that process is portlock itself, and CMD ends with it. Processes are identified by \
handles, so another process that reuses the pid is never ended.";
pub(crate) const PICK_HELP: &str = "\
The lease is for the parent of portlock. If the parent only waits for portlock and ends
with it, portlock fails and asks for --pid.

  Called from                       The lease is for
  $port = portlock pick in          that PowerShell
    PowerShell
  portlock pick >FILE in a batch    that cmd.exe
    file, or at its prompt
  for /f of a batch file            another cmd.exe, which ends right
                                    away: use --pid
  a subprocess of Python, Node.js   the interpreter
  portlock run CMD, where CMD runs  CMD, if it starts portlock itself
    portlock pick
  P=$(portlock pick) in Git Bash,   none, an error: use
    or any command there, also        --pid \"$(cat /proc/$$/winpid)\"
    behind env, timeout or xargs
  Cygwin, another Unix shell        none, an error: use --pid with
                                    the shell's own Windows pid
  a shim of Scoop or Chocolatey     none, an error: in PowerShell use
                                    --pid $PID, or run the program
                                    itself by its path
";
/// Returns whether it is certain, without checking any port, that no process has this pid.
pub(crate) fn is_no_process(pid: u32) -> bool {
    let opened = HPROCESS::OpenProcess(co::PROCESS::QUERY_LIMITED_INFORMATION, false, pid);
    matches!(opened, Err(co::ERROR::INVALID_PARAMETER))
}

/// Returns the number as text. Windows users have no numbers.
pub(crate) fn user_name(id: u32) -> String {
    id.to_string()
}

/// The unit of a program argument: a UTF-16 code unit.
pub(crate) type Unit = u16;

/// Returns the units of an argument, which need not be valid UTF-16.
pub(crate) fn units(text: &OsStr) -> Vec<Unit> {
    text.encode_wide().collect()
}

pub(crate) fn from_units(units: Vec<Unit>) -> OsString {
    OsString::from_wide(&units)
}
