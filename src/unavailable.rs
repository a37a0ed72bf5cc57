//! Why an attempt fails: the port is unavailable, or an error ends the call.

use std::io;

use crate::error::Error;

/// Why a port is unavailable now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unavailable {
    /// Another caller holds a lease on it, or on this other port that was requested with it.
    Leased(u16),
    /// It is reserved for a name other than the caller's, or not reserved for the caller's name.
    Reserved(u16),
    /// Another program has bound it.
    Bound,
    /// No socket listens on it or has bound it strictly, and yet a strict bind fails. The cause
    /// is the neutralized probe of an earlier lease in a child that is being spawned, a
    /// connection in TIME_WAIT, or a socket that was bound with `SO_REUSEADDR` and does not
    /// listen yet.
    Lingering,
    /// This process may not bind it.
    NotPermitted,
    /// It is available, but not enough others are.
    NotEnough,
}

/// Why an attempt failed.
#[derive(Debug)]
pub(crate) enum Failure<U = Unavailable, E = Error> {
    /// Another port may be available, or the same port later.
    Unavailable(U),
    /// The error ends the call.
    Error(E),
}

/// The outcome of an attempt on a port, or with another `U` on a set of ports.
pub(crate) type Attempt<T, U = Unavailable, E = Error> = Result<T, Failure<U, E>>;

impl<U, E> Failure<U, E> {
    pub(crate) fn map_error<F>(self, f: impl FnOnce(E) -> F) -> Failure<U, F> {
        match self {
            Self::Unavailable(why) => Failure::Unavailable(why),
            Self::Error(error) => Failure::Error(f(error)),
        }
    }
}

impl<E> From<Unavailable> for Failure<Unavailable, E> {
    fn from(why: Unavailable) -> Self {
        Self::Unavailable(why)
    }
}

impl<U> From<Error> for Failure<U> {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl<U> From<io::Error> for Failure<U, io::Error> {
    fn from(error: io::Error) -> Self {
        Self::Error(error)
    }
}
