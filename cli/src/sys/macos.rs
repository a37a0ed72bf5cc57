//! What macOS has instead of Linux's lists of sockets and /proc, and what it lacks.

use std::{io, os::unix::net::SocketAddr};

use rustix::process::{Pid, geteuid, getpid, getppid, getsid, test_kill_process};

use super::{Caller, Listed};

pub(super) const DEFAULT_ADDRESS: Option<&str> = None;
pub(super) const ADDRESS_HELP: &str = "Where to listen: a path";

pub(crate) const PICK_HELP: &str = "\
The lease is for the parent of portlock. In a shell script, TEST_PORT=$(portlock pick)
is leased until the script ends. Where the parent is a process that ends right away, say
--pid $$: in a pipeline, in a subshell in parentheses, behind timeout, env or sh -c, and in
what /bin/sh and /bin/bash of macOS run by -c, eval or source.";

/// The most descriptors that a process may ask for: a higher soft limit is refused even where the
/// hard limit is infinite (setrlimit(2), `OPEN_MAX`).
pub(super) const OPEN_MAX: Option<u64> = Some(10_240);

/// Returns the parent: macOS has no /proc to tell a caller from a subshell by.
///
/// # Errors
///
/// The process that started portlock has ended. Orphans are adopted by a process that is in
/// another session, where a parent never is unless the child has begun a session of its own.
pub(crate) fn caller() -> Result<Caller, String> {
    let orphan = || "the process that started portlock has ended".to_owned();
    let parent = getppid().filter(|parent| !parent.is_init());
    let parent = parent.ok_or_else(orphan)?;
    let session = getsid(None).map_err(|error| format!("cannot find the session: {error}"))?;
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
    let message = "only Linux has an abstract namespace for sockets: name a path";
    Err(io::Error::new(io::ErrorKind::Unsupported, message))
}

/// Only Linux has such names.
pub(super) fn abstract_name(_: &SocketAddr) -> Option<&[u8]> {
    None
}

/// There are no pid namespaces.
pub(super) fn check_namespace(_: Option<u32>) -> Result<(), String> {
    Ok(())
}

/// Whether the process may have a port that this user asks for. Whose another
/// user's process is cannot be asked without privileges; so only this server's
/// own user is served, for processes that may be sent a signal (kill(2)).
pub(super) fn check_user(pid: u32, user: u32) -> Result<(), String> {
    let server = geteuid();
    if server.is_root() || server.as_raw() != user {
        return Err(format!("user {user}, who is not this server's"));
    }
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
    match process.map(test_kill_process) {
        Some(Ok(())) => Ok(()),
        _ => Err(format!("process {pid}, which is not of user {user}")),
    }
}

pub(crate) const CAN_STOP: bool = false;
pub(crate) const STOP_HELP: &str = "\
stop does not work on macOS, where a process can be named by its pid alone, which another one may have \
by the time that a signal is sent";

/// A process that is named for certain. There is no way to do that.
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
