//! Failures of the program: the message and the exit status.

use std::io::{self, Write as _};

use portlock::{Error, ErrorKind};

use crate::exit_status::ExitStatus;

/// A failure, with its messages and exit status.
#[derive(Debug)]
pub(crate) struct Failure {
    status: ExitStatus,
    messages: Vec<String>,
}

impl Failure {
    pub(crate) fn new(status: ExitStatus, message: impl Into<String>) -> Self {
        Self {
            status,
            messages: vec![message.into()],
        }
    }

    /// Adds a later failure. The exit status stays that of this one.
    pub(crate) fn and(mut self, later: Self) -> Self {
        self.messages.extend(later.messages);
        self
    }

    pub(crate) fn status(&self) -> ExitStatus {
        self.status
    }

    pub(crate) fn report(&self) {
        for message in &self.messages {
            // If standard error is closed, the message cannot be reported anywhere.
            let _ = writeln!(io::stderr(), "portlock: {message}");
        }
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

/// Returns whether the error means that ports are busy or not permitted, and not that an operation
/// failed.
pub(crate) fn is_busy(error: &Error) -> bool {
    error.is_busy() || error.kind() == ErrorKind::PermissionDenied
}
