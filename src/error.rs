//! What can go wrong, in one opaque type.

use std::{fmt, io};

use crate::server::Server;

/// What to do where the lock directory cannot be used.
pub(crate) const USE_VARIABLE: &str = "set PORTLOCK_DIR to a directory that can be written to";

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a port could not be leased, probed or released.
///
/// The message names the operation, the path or port it was done on, and the
/// cause. [`kind`](Error::kind) is for code that must tell the cases apart,
/// [`raw_os_error`](Error::raw_os_error) for code that needs the system's own
/// number.
///
/// The cause is part of the message, and so it is not repeated by
/// [`source`](std::error::Error::source): a report that prints the whole chain
/// says everything once.
///
/// # Examples
///
/// ```
/// use portlock::{ErrorKind, FreePort};
///
/// let error = FreePort::new(0).unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::InvalidPorts);
/// println!("{error}");
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    cause: Option<io::Error>,
    /// What to do about it, where that is known.
    hint: &'static str,
    counts: Option<PortCounts>,
    server: Option<Server>,
}

/// How many ports could not be leased, by reason: [`Error::counts`].
///
/// A port is counted once, also where several ports were wanted together. Ports that
/// were not tried, because one that was wanted with them could not be leased, are not
/// counted.
///
/// # Examples
///
/// ```
/// use portlock::FreePort;
///
/// let port = FreePort::new(4000..=6000)?;
/// let error = FreePort::try_new(port.port()).unwrap_err();
/// let why = error.counts().expect("that is the error");
/// assert_eq!((why.leased, why.bound), (1, 0));
/// # Ok::<(), portlock::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PortCounts {
    /// Leased by somebody.
    pub leased: u32,
    /// Reserved for a name that the caller does not ask for.
    pub reserved: u32,
    /// Bound by programs outside any lease.
    pub bound: u32,
    /// In TIME_WAIT, or bound with `SO_REUSEADDR` and not listening.
    pub lingering: u32,
    /// Not permitted to this process.
    pub not_permitted: u32,
    /// Free, but not enough of them.
    pub not_enough: u32,
}

/// The case an [`Error`] belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The ports asked for are none at all: an empty or reversed range, or
    /// nothing but port 0.
    InvalidPorts,
    /// The name or the root directory of a reservation cannot be used: the name is malformed, another
    /// name of that root has the same variable, or the root is not a directory or too long.
    InvalidName,
    /// Every port asked for is leased, bound by another program or not
    /// permitted, and the time to wait for one is over.
    Exhausted,
    /// The lock directory is missing, cannot be made, or cannot be trusted.
    LockDir,
    /// A lock file, or the copy of a reservation, could not be opened, made, locked, read, written,
    /// unlocked or removed.
    Lock,
    /// A socket could not be made, bound or listened on, for another reason
    /// than that the port is in use.
    Probe,
    /// A port server cannot be reached, does not answer, or refuses.
    PortServer,
    /// What was waited for did not happen in time.
    Timeout,
    /// The server that answers is another process's than the one that was waited for:
    /// [`Error::server`] says which.
    OtherServer,
    /// The callback of [`Builder::on_wait`](crate::Builder::on_wait) stopped the wait.
    Stopped,
    /// The process that a lease should belong to does not exist, or the system fails
    /// to tell which it is.
    Process,
    /// The system permits this process none of the ports asked for.
    PermissionDenied,
    /// What was asked for cannot be done on this system, or not in this
    /// combination.
    Unsupported,
}

impl Error {
    #[cold]
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            cause: None,
            hint: "",
            counts: None,
            server: None,
        }))
    }

    #[cold]
    pub(crate) fn with_cause(
        kind: ErrorKind,
        message: impl Into<String>,
        cause: impl Into<io::Error>,
    ) -> Self {
        let cause = cause.into();
        let hint = match (kind, cause.kind()) {
            (ErrorKind::LockDir, io::ErrorKind::PermissionDenied)
            | (
                ErrorKind::LockDir | ErrorKind::Lock,
                io::ErrorKind::ReadOnlyFilesystem
                | io::ErrorKind::StorageFull
                | io::ErrorKind::QuotaExceeded,
            ) => USE_VARIABLE,
            _ => "",
        };
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            cause: Some(cause),
            hint,
            counts: None,
            server: None,
        }))
    }

    /// The same error, with what to do about it.
    pub(crate) fn with_hint(mut self, hint: &'static str) -> Self {
        self.0.hint = hint;
        self
    }

    /// The same error, as that of `origin`.
    pub(crate) fn of(mut self, origin: &str) -> Self {
        self.0.message = format!("{origin}: {}", self.0.message);
        self
    }

    pub(crate) fn with_counts(mut self, counts: PortCounts) -> Self {
        self.0.counts = Some(counts);
        self
    }

    /// Which case this error is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns whether the ports were busy, leased or in use, and nothing else went wrong: the kind
    /// is [`Exhausted`](ErrorKind::Exhausted). Only after such an error may the same call succeed
    /// later because others have released their ports.
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::FreePort;
    ///
    /// let port = FreePort::new(4000..=6000)?;
    /// let error = FreePort::try_new(port.port()).unwrap_err();
    /// assert!(error.is_busy());
    /// assert!(!FreePort::try_new(0).unwrap_err().is_busy());
    /// # Ok::<(), portlock::Error>(())
    /// ```
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.kind() == ErrorKind::Exhausted
    }

    /// Returns why no port could be leased, where that is the error:
    /// [`Exhausted`](ErrorKind::Exhausted), [`Stopped`](ErrorKind::Stopped) or
    /// [`PermissionDenied`](ErrorKind::PermissionDenied).
    #[must_use]
    pub fn counts(&self) -> Option<PortCounts> {
        self.0.counts
    }

    pub(crate) fn with_server(mut self, server: Server) -> Self {
        self.0.server = Some(server);
        self
    }

    /// Returns the server that answered, where it is another process's than the one that was waited for:
    /// [`OtherServer`](ErrorKind::OtherServer).
    #[must_use]
    pub fn server(&self) -> Option<&Server> {
        self.0.server.as_ref()
    }

    /// Whether the cause was that this process may not.
    pub(crate) fn is_denied(&self) -> bool {
        let cause = self.0.cause.as_ref().map(io::Error::kind);
        cause == Some(io::ErrorKind::PermissionDenied)
    }

    /// The operating system's error number, where the cause was a failed
    /// system call.
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        self.0.cause.as_ref()?.raw_os_error()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        if let Some(cause) = &self.0.cause {
            write!(f, ": {cause}")?;
        }
        match self.0.hint {
            "" => Ok(()),
            hint => write!(f, " ({hint})"),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("message", &self.0.message)
            .field("cause", &self.0.cause)
            .finish()
    }
}

impl std::error::Error for Error {}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let cause = error.0.cause.as_ref().map(io::Error::kind);
        let kind = match error.kind() {
            ErrorKind::InvalidName | ErrorKind::InvalidPorts => io::ErrorKind::InvalidInput,
            ErrorKind::Exhausted => io::ErrorKind::AddrInUse,
            ErrorKind::PermissionDenied => io::ErrorKind::PermissionDenied,
            ErrorKind::OtherServer => io::ErrorKind::AddrInUse,
            ErrorKind::Timeout => io::ErrorKind::TimedOut,
            ErrorKind::Unsupported => io::ErrorKind::Unsupported,
            // Not `Interrupted`: what gets that from the standard library tries again.
            ErrorKind::Stopped => io::ErrorKind::Other,
            ErrorKind::LockDir
            | ErrorKind::Lock
            | ErrorKind::PortServer
            | ErrorKind::Probe
            | ErrorKind::Process => cause.unwrap_or(io::ErrorKind::Other),
        };
        io::Error::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_says_operation_object_and_cause_once() {
        // EACCES, or ERROR_ACCESS_DENIED.
        let denied = if cfg!(windows) { 5 } else { 13 };
        let cause = io::Error::from_raw_os_error(denied);
        let text = cause.to_string();
        let error = Error::with_cause(ErrorKind::Lock, "cannot open lock file /x/4000", cause);
        assert_eq!(
            error.to_string(),
            format!("cannot open lock file /x/4000: {text}")
        );
        assert_eq!(error.raw_os_error(), Some(denied));
        assert!(std::error::Error::source(&error).is_none());

        let io = io::Error::from(error);
        assert_eq!(io.kind(), io::ErrorKind::PermissionDenied);
        assert!(io.to_string().contains("/x/4000"));
    }

    #[test]
    fn error_is_one_pointer_and_crosses_threads() {
        fn is_send_sync<T: Send + Sync + 'static>() {}
        is_send_sync::<Error>();
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }
}
