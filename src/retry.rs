//! System calls that a signal interrupted.

use std::io;

/// How often an interrupted call is made again. Far beyond what happens; only a bound.
const TRIES: usize = 100;

/// Makes a call, and makes it again if a signal interrupted it, within bounds.
pub(crate) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..TRIES {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
    call()
}
