//! The error type of every call.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use crate::server::Server;

/// What to do if the lock directory cannot be used.
pub(crate) const USE_VARIABLE: &str = "set PORTLOCK_DIR to a directory that can be written to";

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a port could not be leased, probed or released.
///
/// The message names the operation, the path or port, and the cause. Use [`kind`](Error::kind) to
/// distinguish cases in code, and [`raw_os_error`](Error::raw_os_error) to get the system's error
/// number.
///
/// The cause is part of the message, so [`source`](std::error::Error::source) does not repeat it:
/// a report that prints the whole chain says everything once.
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
    /// What to do about it, if known.
    hint: &'static str,
    counts: Option<PortCounts>,
    /// Some leased ports, and who has each.
    holders: Vec<(u16, Option<String>)>,
    server: Option<Server>,
    path: Option<PathBuf>,
}

/// Numbers of ports that could not be leased, by reason: [`Error::counts`].
///
/// A port is counted once, even if several ports were requested together. Ports that were not
/// tried, because another port of their group could not be leased, are not counted.
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
    /// Leased by another caller.
    pub leased: u32,
    /// Reserved for a name other than the caller's.
    pub reserved: u32,
    /// Bound by programs without a lease.
    pub bound: u32,
    /// In TIME_WAIT, or bound with `SO_REUSEADDR` and not listening.
    pub lingering: u32,
    /// Not permitted for this process.
    pub not_permitted: u32,
    /// Free, but fewer than requested.
    pub not_enough: u32,
}

/// The category of an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The requested set has no port: an empty or reversed range, or only port 0.
    InvalidPorts,
    /// The name or the root directory of a reservation cannot be used: the name is malformed, another
    /// name of that root has the same variable, or the root is not a directory or too long.
    InvalidName,
    /// Every requested port is leased, bound by another program or not permitted, and the time to
    /// wait for one is over.
    Exhausted,
    /// The lock directory is missing, cannot be created, or cannot be trusted.
    LockDir,
    /// A lock file, or the copy of a reservation, could not be opened, created, locked, read,
    /// written, unlocked or removed.
    Lock,
    /// A socket could not be created, bound or listened on, for a reason other than that the port
    /// is in use.
    Probe,
    /// A port server cannot be reached, does not answer, or refuses.
    PortServer,
    /// The awaited event did not happen in time.
    Timeout,
    /// The server that answers belongs to a process other than the expected one:
    /// [`Error::server`] returns it.
    OtherServer,
    /// The callback of [`Builder::on_wait`](crate::Builder::on_wait) stopped the wait.
    Stopped,
    /// The process that a lease should belong to does not exist, or the system cannot identify
    /// it.
    Process,
    /// The system permits this process to bind none of the requested ports.
    PermissionDenied,
    /// The request is not supported on this system, or not in this combination.
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
            holders: Vec::new(),
            server: None,
            path: None,
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
            holders: Vec::new(),
            server: None,
            path: None,
        }))
    }

    /// Returns the same error with a hint that names the variable of another directory than the
    /// lock directory, if it has a hint at all.
    pub(crate) fn with_hint_instead(mut self, hint: &'static str) -> Self {
        if !self.0.hint.is_empty() {
            self.0.hint = hint;
        }
        self
    }

    /// Returns the same error with a hint on what to do about it.
    pub(crate) fn with_hint(mut self, hint: &'static str) -> Self {
        self.0.hint = hint;
        self
    }

    /// Returns the same error, prefixed with its origin.
    pub(crate) fn of(mut self, origin: &str) -> Self {
        self.0.message = format!("{origin}: {}", self.0.message);
        self
    }

    /// The same error, about the file or directory at `path`.
    pub(crate) fn at(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.path = Some(path.into());
        self
    }

    pub(crate) fn with_holders(mut self, holders: Vec<(u16, Option<String>)>) -> Self {
        self.0.holders = holders;
        self
    }

    pub(crate) fn with_counts(mut self, counts: PortCounts) -> Self {
        self.0.counts = Some(counts);
        self
    }

    /// Returns the category of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns whether no port was free in time: the kind is [`Exhausted`](ErrorKind::Exhausted). Only after such an error can the same
    /// call succeed later because others have released their ports.
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

    /// Returns why no port could be leased, if that is the error:
    /// [`Exhausted`](ErrorKind::Exhausted), [`Stopped`](ErrorKind::Stopped) or
    /// [`PermissionDenied`](ErrorKind::PermissionDenied).
    #[must_use]
    pub fn counts(&self) -> Option<PortCounts> {
        self.0.counts
    }

    /// Returns some of the leased ports, in ascending order, and for each a description of who has the
    /// lease, as [`PortEntry::holder`](crate::PortEntry::holder) does. Empty if no leased port was the
    /// reason.
    ///
    /// The message names the same ports and holders.
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::FreePort;
    ///
    /// let port = FreePort::new(4000..=6000)?;
    /// let error = FreePort::try_new(port.port()).unwrap_err();
    /// let [(number, holder)] = error.holders() else { unreachable!() };
    /// assert_eq!(*number, port.port());
    /// println!("{number} is leased by {}", holder.as_deref().unwrap_or("an unknown process"));
    /// # Ok::<(), portlock::Error>(())
    /// ```
    #[must_use]
    pub fn holders(&self) -> &[(u16, Option<String>)] {
        &self.0.holders
    }

    pub(crate) fn with_server(mut self, server: Server) -> Self {
        self.0.server = Some(server);
        self
    }

    /// Returns the server that answered, if it belongs to a process other than the expected one:
    /// [`OtherServer`](ErrorKind::OtherServer).
    #[must_use]
    pub fn server(&self) -> Option<&Server> {
        self.0.server.as_ref()
    }

    /// Returns the lock file, the lock directory or the copy of a reservation that the message is about.
    ///
    /// # Examples
    ///
    /// ```
    /// let error = portlock::LockDir::open("/no/such/directory").unwrap_err();
    /// let path = error.path().expect("that of the directory");
    /// assert!(path.ends_with("no/such/directory"));
    /// ```
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// Returns whether the cause was a missing permission of this process.
    pub(crate) fn is_denied(&self) -> bool {
        let cause = self.0.cause.as_ref().map(io::Error::kind);
        cause == Some(io::ErrorKind::PermissionDenied)
    }

    /// Returns the operating system's error number, if the cause was a failed system call.
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
            // Not `Interrupted`: callers in the standard library retry after it.
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
        // EACCES or ERROR_ACCESS_DENIED.
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
