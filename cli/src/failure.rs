//! How the program fails, and the exit status that says so.

use std::io::{self, Write as _};

use portlock::{Error, ErrorKind};

/// What was waited for did not happen in time, as with timeout(1).
pub(crate) const TIMED_OUT: u8 = 124;
/// No port could be had in time (EX_TEMPFAIL of sysexits.h: try again later).
pub(crate) const EXHAUSTED: u8 = 75;
/// portlock itself failed, as with env(1).
pub(crate) const FAILED: u8 = 125;
/// The command was found and could not be executed.
pub(crate) const NOT_EXECUTABLE: u8 = 126;
/// The command was not found.
pub(crate) const NOT_FOUND: u8 = 127;

/// A failure, with what is printed of it and its exit status.
#[derive(Debug)]
pub(crate) struct Failure {
    status: u8,
    message: String,
}

impl Failure {
    pub(crate) fn new(status: u8, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    pub(crate) fn status(&self) -> u8 {
        self.status
    }

    pub(crate) fn report(&self) {
        // With standard error closed, there is nobody to tell.
        let _ = writeln!(io::stderr(), "portlock: {}", self.message);
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match error.kind() {
            ErrorKind::Exhausted => EXHAUSTED,
            ErrorKind::Timeout => TIMED_OUT,
            _ => FAILED,
        };
        Self::new(status, error.to_string())
    }
}
