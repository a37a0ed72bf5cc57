//! A command runs as a child of this process, which holds the leases, waits, and
//! ends as it does.

use std::{
    ffi::{OsStr, OsString},
    io,
    net::TcpListener,
    process::{self, Command},
};

use portlock::FreePort;
use tokio::signal::windows::{ctrl_break, ctrl_c, ctrl_close};
use win32job::{ExtendedLimitInfo, Job, JobError};

use crate::{exit_status::ExitStatus, failure::Failure};

/// There is no custom on Windows by which a program takes listening sockets.
pub(crate) const PASSES_LISTENERS: bool = false;
pub(crate) const RUN_HELP: &str = "\
portlock stays as long as CMD runs, leaves Ctrl-C and Ctrl-Break to it, and ends with
its exit status, and so does the lease. If portlock is ended from outside, CMD and all
that it has started are ended too, but what was started to break away from its job
(CREATE_BREAKAWAY_FROM_JOB).";

/// The program of that name as cmd.exe finds it: with the endings of PATHEXT too, as
/// in npm.cmd.
pub(crate) fn program(name: &OsStr) -> OsString {
    which::which(name).map_or_else(|_| name.to_owned(), Into::into)
}

/// Runs the command, and ends this process as it does. Returns only if that fails,
/// with the inner error if it could not be executed.
pub(crate) fn execute(
    command: &mut Command,
    _: &[(String, u16)],
    leases: Vec<FreePort>,
    _: Vec<TcpListener>,
) -> Result<io::Error, Failure> {
    // The console tells the command too, which may take its time. What somebody
    // listens to here does not end this process (SetConsoleCtrlHandler).
    let _ignored = (ctrl_c(), ctrl_break(), ctrl_close());
    // This process joins before there is a child: none is ever outside. No other has
    // a handle of it: when this process ends, whatever ends it, so do all others.
    let job = Job::create()
        .and_then(|job| job.assign_current_process().map(|()| job))
        .map_err(|error| cannot_tie(&error))?;
    let limit = |limits: &ExtendedLimitInfo| {
        job.set_extended_limit_info(limits)
            .map_err(|error| cannot_tie(&error))
    };
    // What the command starts with CREATE_BREAKAWAY_FROM_JOB, as some build tools, browsers and
    // installers do with daemons, cannot be started at all where a job does not permit that.
    limit(
        ExtendedLimitInfo::new()
            .limit_kill_on_job_close()
            .limit_breakaway_ok(),
    )?;
    let ended = command.spawn().map(|mut child| child.wait());
    // From here on, what the command has left running may go on as it does elsewhere.
    limit(ExtendedLimitInfo::new().limit_breakaway_ok())?;
    let status = match ended {
        Err(error) => return Ok(error),
        Ok(status) => status.map_err(|error| {
            Failure::new(
                ExitStatus::Failed,
                format!("cannot wait for the command: {error}"),
            )
        })?,
    };
    drop(leases);
    // An `ExitCode` has eight bits, the command's status 32.
    process::exit(status.code().unwrap_or(ExitStatus::Failed.code().into()))
}

fn cannot_tie(error: &JobError) -> Failure {
    let message = format!("cannot tie the command's end to that of portlock: {error}");
    Failure::new(ExitStatus::Failed, message)
}
