//! Runs a command: it replaces this process, and inherits the locks.

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
portlock replaces itself with CMD (exec), which keeps the locks. So signals and the exit
status are CMD's own. The lease ends when CMD and every process that inherited its
descriptors have ended. If CMD closes them, its ports stay leased for callers that
can see CMD: not in another container, and not without /proc.";

/// The first descriptor passed by the socket activation protocol
/// (`SD_LISTEN_FDS_START` in sd_listen_fds(3)).
const FIRST_PASSED: i32 = 3;

/// Returns the name unchanged: exec searches PATH.
pub(crate) fn program(name: &OsStr) -> OsString {
    name.to_owned()
}

/// Replaces this process with the command. Returns only on failure, with the inner error if the
/// command could not be executed.
pub(crate) fn execute(
    command: &mut Command,
    variables: &[(String, u16)],
    leases: Vec<FreePort>,
    listeners: Vec<TcpListener>,
) -> Result<io::Error, Failure> {
    pass_on(command, variables, leases, listeners)?;
    Ok(command.exec())
}

/// Prepares the command to inherit the locks, and the listeners by the socket activation protocol.
fn pass_on(
    command: &mut Command,
    variables: &[(String, u16)],
    leases: Vec<FreePort>,
    listeners: Vec<TcpListener>,
) -> Result<(), Failure> {
    let after_passed = FIRST_PASSED + i32::try_from(listeners.len()).unwrap_or(i32::MAX);
    let mut locks = Vec::with_capacity(leases.len());
    for lease in leases {
        // exec keeps the pid. Also record the lease as this process's, so that a command that closes
        // inherited descriptors keeps its ports.
        let fd = lease.pass_to(process::id())?;
        // The locks must not have the descriptors at which the command expects listeners.
        let fd = rustix::io::fcntl_dupfd_cloexec(fd.as_fd(), after_passed);
        locks.push(fd.map_err(|error| cannot_pass(&error))?);
    }
    command.preserved_fds(locks);
    if listeners.is_empty() {
        return Ok(());
    }

    // `PORT` and `PORT_1` may name the same port, so use only the last variables.
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
