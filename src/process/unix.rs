//! Pids on Unix, as kill(2) reports them.

use std::io;

use rustix::{
    io::Errno,
    process::{Pid, test_kill_process},
};

use super::{system, this};

/// Returns whether any process has this pid here, including one that has ended but was not
/// reaped.
pub(crate) fn exists(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    // EPERM means that the process belongs to another user (kill(2)).
    pid.is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH))
}

/// Returns whether this process can write records from which others can prove that a process has
/// ended.
pub(crate) fn is_recordable() -> bool {
    system::can_be_recorded(&this().0).is_ok()
}

/// Returns the error of kill(2) for a pid that no process has.
pub(crate) fn no_such_process() -> io::Error {
    Errno::SRCH.into()
}
