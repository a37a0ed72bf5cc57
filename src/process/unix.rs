//! Pids, as kill(2) knows them.

use std::io;

use rustix::{
    io::Errno,
    process::{Pid, test_kill_process},
};

use super::{system, this};

/// Whether any process has this pid here, one that has ended but was not waited
/// for included.
pub(crate) fn exists(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    // EPERM means that it is another user's (kill(2)).
    pid.is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH))
}

/// Whether this process can write records from which others can prove that a process has ended.
pub(crate) fn is_recordable() -> bool {
    system::can_be_recorded(&this().0).is_ok()
}

/// What kill(2) says of a pid that nobody has.
pub(crate) fn no_such_process() -> io::Error {
    Errno::SRCH.into()
}
