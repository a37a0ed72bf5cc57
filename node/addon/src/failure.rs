//! An error on its way to JavaScript.

use napi_derive::napi;
use portlock::{Error, ErrorKind, PortCounts};

use crate::serve::ServerProcess;

/// The data of a `PortlockError`.
#[napi(object)]
pub struct Failure {
    /// Such as `ERR_PORTLOCK_EXHAUSTED`.
    pub code: String,
    /// The library's message.
    pub message: String,
    /// The system's error number, if a system call failed.
    pub errno: Option<i32>,
    /// The lock file or directory that the message is about.
    pub path: Option<String>,
    /// Why no port could be leased.
    pub counts: Option<Counts>,
    /// Some of the leased ports, and their holders.
    pub holders: Option<Vec<PortHolder>>,
    /// The server that answers instead of the expected one.
    pub server: Option<ServerProcess>,
}

/// A leased port, and its holder.
#[napi(object)]
pub struct PortHolder {
    /// The port.
    pub port: u16,
    /// Such as `pid 812 "node" (api)`, if that is known.
    pub holder: Option<String>,
}

/// How many ports could not be leased, by reason.
#[napi(object)]
pub struct Counts {
    /// Leased by a caller of portlock.
    pub leased: u32,
    /// Reserved for a name that the caller did not request.
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

impl From<PortCounts> for Counts {
    fn from(counts: PortCounts) -> Self {
        Self {
            leased: counts.leased,
            reserved: counts.reserved,
            bound: counts.bound,
            lingering: counts.lingering,
            not_permitted: counts.not_permitted,
            not_enough: counts.not_enough,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let holders = error.holders().iter().map(|(port, holder)| PortHolder {
            port: *port,
            holder: holder.clone(),
        });
        Self {
            code: code(error.kind()).to_owned(),
            // A hint names a function of the library.
            message: error
                .to_string()
                .replace("wait_until_listening", "waitUntilListening"),
            errno: error.raw_os_error(),
            path: error.path().map(|path| path.display().to_string()),
            counts: error.counts().map(Counts::from),
            holders: error.counts().map(|_| holders.collect()),
            server: error.server().map(ServerProcess::from),
        }
    }
}

fn code(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::InvalidPorts => "ERR_PORTLOCK_INVALID_PORTS",
        ErrorKind::InvalidName => "ERR_PORTLOCK_INVALID_NAME",
        ErrorKind::OtherServer => "ERR_PORTLOCK_OTHER_SERVER",
        ErrorKind::Exhausted => "ERR_PORTLOCK_EXHAUSTED",
        ErrorKind::LockDir => "ERR_PORTLOCK_LOCK_DIR",
        ErrorKind::Lock => "ERR_PORTLOCK_LOCK",
        ErrorKind::Probe => "ERR_PORTLOCK_PROBE",
        ErrorKind::PortServer => "ERR_PORTLOCK_PORT_SERVER",
        ErrorKind::Timeout => "ERR_PORTLOCK_TIMEOUT",
        ErrorKind::Stopped => "ERR_PORTLOCK_STOPPED",
        ErrorKind::Process => "ERR_PORTLOCK_PROCESS",
        ErrorKind::PermissionDenied => "ERR_PORTLOCK_PERMISSION_DENIED",
        ErrorKind::Unsupported => "ERR_PORTLOCK_UNSUPPORTED",
        // The library may distinguish more cases in a later version.
        _ => "ERR_PORTLOCK",
    }
}

/// Returns the error of an operation that a released lease no longer permits.
pub(crate) fn released() -> Failure {
    failure("ERR_PORTLOCK_RELEASED", "the lease has ended")
}

/// Returns the error of a call that JavaScript has stopped.
pub(crate) fn stopped() -> Failure {
    failure("ERR_PORTLOCK_STOPPED", "the call was stopped")
}

fn failure(code: &str, message: &str) -> Failure {
    Failure {
        code: code.to_owned(),
        message: message.to_owned(),
        errno: None,
        path: None,
        counts: None,
        holders: None,
        server: None,
    }
}
