//! macOS: replacements for what Linux reads from /proc, and what macOS lacks.

use std::{io, os::unix::net::SocketAddr};

use rustix::process::{Pid, geteuid, getpid, getppid, getsid, test_kill_process};

use super::{Caller, Listed};

pub(super) const DEFAULT_ADDRESS: Option<&str> = None;
pub(super) const ADDRESS_HELP: &str = "Where to listen: a path";

pub(crate) const PICK_HELP: &str = "\
The lease is for the parent of portlock. In a shell script, TEST_PORT=$(portlock pick)
is leased until the script ends. If the parent is a process that ends right away, use
--pid $$: in a pipeline, in a subshell in parentheses, behind timeout, env or sh -c, and in
what the /bin/sh and /bin/bash of macOS run with -c, eval or source.";

/// Maximum number of open descriptors: a higher soft limit is refused even if the hard limit is
/// infinite (`OPEN_MAX` in setrlimit(2)).
pub(super) const OPEN_MAX: Option<u64> = Some(10_240);

/// Returns the parent: macOS has no /proc that would distinguish a caller from a subshell.
///
/// # Errors
///
/// Fails if the process that started portlock has ended. Orphans are adopted by a process in another
/// session. A real parent never is in one, unless the child has started its own session.
pub(crate) fn caller() -> Result<Caller, String> {
    let orphan = || "the process that started portlock has ended".to_owned();
    let parent = getppid().filter(|parent| !parent.is_init());
    let parent = parent.ok_or_else(orphan)?;
    let session =
        getsid(None).map_err(|error| format!("cannot determine portlock's session: {error}"))?;
    let is_adopted = getsid(Some(parent)).is_ok_and(|other| other != session);
    if is_adopted && session != getpid() {
        return Err(orphan());
    }
    let pid = parent.as_raw_nonzero().get();
    let pid = u32::try_from(pid).map_err(|_| orphan())?;
    Ok(Caller {
        pid,
        is_certain: true,
    })
}

pub(super) fn abstract_address(_: &str) -> io::Result<SocketAddr> {
    let message = "only Linux has an abstract socket namespace: name a path instead";
    Err(io::Error::new(io::ErrorKind::Unsupported, message))
}

/// Returns `None`: only Linux has abstract socket names.
pub(super) fn abstract_name(_: &SocketAddr) -> Option<&[u8]> {
    None
}

/// Accepts every peer: macOS has no pid namespaces.
pub(super) fn check_namespace(_: Option<u32>) -> Result<(), String> {
    Ok(())
}

/// Checks that this user may request a port for the process. The owner of another user's process
/// cannot be queried without privileges. So only this server's own user is served, for processes
/// that it may send a signal to (kill(2)).
pub(super) fn check_user(pid: u32, user: u32) -> Result<(), String> {
    let server = geteuid();
    if server.is_root() || server.as_raw() != user {
        return Err(format!("user {user}, which is not this server's user"));
    }
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
    match process.map(test_kill_process) {
        Some(Ok(())) => Ok(()),
        _ => Err(format!(
            "process {pid}, which does not belong to user {user}"
        )),
    }
}

pub(crate) const CAN_STOP: bool = false;
pub(crate) const STOP_HELP: &str = "\
stop is not available on macOS: a process can be identified only by its pid, which another process may \
reuse before a signal is sent";

/// A process that is identified reliably, which macOS does not support.
#[derive(Debug)]
pub(crate) enum Process {}

impl Process {
    pub(crate) fn open(_: u32) -> io::Result<Option<Self>> {
        Err(io::Error::new(io::ErrorKind::Unsupported, STOP_HELP))
    }

    pub(crate) fn pid(&self) -> u32 {
        match *self {}
    }

    pub(crate) fn has_ended(&self) -> io::Result<bool> {
        match *self {}
    }

    pub(crate) fn is_child_of(&self, _: &Self) -> io::Result<bool> {
        match *self {}
    }

    pub(crate) fn ask_to_end(&self) -> io::Result<()> {
        match *self {}
    }

    pub(crate) fn kill(&self) -> io::Result<()> {
        match *self {}
    }
}

pub(crate) fn processes() -> io::Result<Vec<Listed>> {
    Err(io::Error::new(io::ErrorKind::Unsupported, STOP_HELP))
}
