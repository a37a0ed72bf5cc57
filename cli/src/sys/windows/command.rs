//! Runs a command as a child of this process, which holds the leases, waits, and ends with the same
//! status.

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

/// Windows has no convention for passing listening sockets to a program.
pub(crate) const PASSES_LISTENERS: bool = false;
pub(crate) const RUN_HELP: &str = "\
portlock runs as long as CMD, leaves Ctrl-C and Ctrl-Break to it, and exits with its
status. Then the lease ends. If portlock is terminated, CMD and everything that it has
started are terminated too, except processes started with CREATE_BREAKAWAY_FROM_JOB.";

/// Returns the path of the program as cmd.exe finds it: with the extensions in PATHEXT too, as for
/// npm.cmd.
pub(crate) fn program(name: &OsStr) -> OsString {
    which::which(name).map_or_else(|_| name.to_owned(), Into::into)
}

/// Runs the command, and ends this process with the command's status. Returns only on failure, with
/// the inner error if the command could not be executed.
pub(crate) fn execute(
    command: &mut Command,
    _: &[(String, u16)],
    leases: Vec<FreePort>,
    _: Vec<TcpListener>,
) -> Result<io::Error, Failure> {
    // The console sends these events to the command too, which may need time to handle them. An event
    // with a handler does not end this process (SetConsoleCtrlHandler).
    let _ignored = (ctrl_c(), ctrl_break(), ctrl_close());
    // This process joins the job before it has a child, so no child is ever outside of it. Only this
    // process has a handle to the job: when it ends, for any reason, all other members end too.
    let job = Job::create()
        .and_then(|job| job.assign_current_process().map(|()| job))
        .map_err(|error| cannot_tie(&error))?;
    let limit = |limits: &ExtendedLimitInfo| {
        job.set_extended_limit_info(limits)
            .map_err(|error| cannot_tie(&error))
    };
    // Some build tools, browsers and installers start daemons with CREATE_BREAKAWAY_FROM_JOB. That
    // fails in a job that does not permit it.
    limit(
        ExtendedLimitInfo::new()
            .limit_kill_on_job_close()
            .limit_breakaway_ok(),
    )?;
    let ended = command.spawn().map(|mut child| child.wait());
    // From here on, processes that the command left behind may keep running.
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
    // `ExitCode` has 8 bits, but the command's status has 32.
    process::exit(status.code().unwrap_or(ExitStatus::Failed.code().into()))
}

fn cannot_tie(error: &JobError) -> Failure {
    let message =
        format!("cannot create a job that ends the command together with portlock: {error}");
    Failure::new(ExitStatus::Failed, message)
}
