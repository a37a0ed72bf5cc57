//! A command takes the place of this process, and inherits the locks.

use std::{
    ffi::{OsStr, OsString},
    io,
    net::TcpListener,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{self, Command},
};

use command_fds::{CommandFdExt, FdMapping};
use portlock::FreePort;

use crate::{exit_status::ExitStatus, failure::Failure};

pub(crate) const PASSES_LISTENERS: bool = true;
pub(crate) const RUN_HELP: &str = "\
portlock does not stay: it executes CMD in its place, which keeps the locks. So
signals and exit status are CMD's own. The lease ends when CMD has ended, and every
process that inherited its descriptors. A CMD that closes them keeps its ports too,
but not from callers that cannot see it, such as those in another container, nor where
/proc is missing.";

/// The first descriptor that is passed by the socket activation protocol
/// (SD_LISTEN_FDS_START in sd_listen_fds(3)).
const FIRST_PASSED: i32 = 3;

/// The program of that name: exec looks for it.
pub(crate) fn program(name: &OsStr) -> OsString {
    name.to_owned()
}

/// Becomes the command. Returns only if that fails, with the inner error if it could
/// not be executed.
pub(crate) fn execute(
    command: &mut Command,
    variables: &[(String, u16)],
    leases: Vec<FreePort>,
    listeners: Vec<TcpListener>,
) -> Result<io::Error, Failure> {
    pass_on(command, variables, leases, listeners)?;
    Ok(command.exec())
}

/// Lets the command inherit the locks, and the listeners by the socket activation
/// protocol.
fn pass_on(
    command: &mut Command,
    variables: &[(String, u16)],
    leases: Vec<FreePort>,
    listeners: Vec<TcpListener>,
) -> Result<(), Failure> {
    let after_passed = FIRST_PASSED + i32::try_from(listeners.len()).unwrap_or(i32::MAX);
    let mut locks = Vec::with_capacity(leases.len());
    for lease in leases {
        // exec keeps the pid. By the record too, so that a command that closes what it inherited
        // keeps its ports.
        let fd = lease.pass_to(process::id())?;
        // Where the command expects listeners there must be no lock.
        let fd = rustix::io::fcntl_dupfd_cloexec(fd.as_fd(), after_passed);
        locks.push(fd.map_err(|error| cannot_pass(&error))?);
    }
    command.preserved_fds(locks);
    if listeners.is_empty() {
        return Ok(());
    }

    // `PORT` and `PORT_1` may name the same one.
    let names = &variables[variables.len().saturating_sub(listeners.len())..];
    let names: Vec<&str> = names.iter().map(|(name, _)| name.as_str()).collect();
    command
        .env("LISTEN_FDS", listeners.len().to_string())
        .env("LISTEN_FDNAMES", names.join(":"))
        // exec keeps the pid.
        .env("LISTEN_PID", process::id().to_string());
    let mappings = listeners.into_iter().zip(FIRST_PASSED..);
    let mappings = mappings.map(|(listener, child_fd)| FdMapping {
        parent_fd: OwnedFd::from(listener),
        child_fd,
    });
    let mapped = command.fd_mappings(mappings.collect());
    mapped.map(drop).map_err(|error| cannot_pass(&error))
}

fn cannot_pass(error: &dyn std::error::Error) -> Failure {
    let message = format!("cannot pass the lease on to the command: {error}");
    Failure::new(ExitStatus::Failed, message)
}
