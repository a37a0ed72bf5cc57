//! How the program fails: what is printed, and with which exit status it ends.

use std::io::{self, Write as _};

use portlock::{Error, ErrorKind};

use crate::exit_status::ExitStatus;

/// A failure, with what is printed of it and its exit status.
#[derive(Debug)]
pub(crate) struct Failure {
    status: ExitStatus,
    message: String,
}

impl Failure {
    pub(crate) fn new(status: ExitStatus, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    pub(crate) fn status(&self) -> ExitStatus {
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
            ErrorKind::Exhausted => ExitStatus::Exhausted,
            ErrorKind::Timeout => ExitStatus::TimedOut,
            ErrorKind::OtherServer => ExitStatus::Bound,
            _ => ExitStatus::Failed,
        };
        Self::new(status, error.to_string())
    }
}

/// Whether an error says that ports are busy or not permitted rather than that something failed.
pub(crate) fn is_busy(error: &Error) -> bool {
    error.is_busy() || error.kind() == ErrorKind::PermissionDenied
}
