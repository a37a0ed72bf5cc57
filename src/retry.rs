//! Retries system calls that a signal interrupted.

use std::io;

/// Largest number of times that an interrupted call is made. Only a bound; it is not reached in
/// practice.
const TRIES: usize = 100;

/// Runs a call, and repeats it if a signal interrupted it, within bounds.
pub(crate) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..TRIES {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
    call()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_interrupted_call_is_retried_and_not_forever() {
        let calls_of = |interruptions: usize, then: io::Result<u32>| {
            let (mut calls, mut then) = (0, Some(then));
            let outcome = retry(|| {
                calls += 1;
                match calls <= interruptions {
                    true => Err(io::ErrorKind::Interrupted.into()),
                    false => then.take().expect("not made again"),
                }
            });
            (outcome.map_err(|error| error.kind()), calls)
        };
        assert_eq!(calls_of(0, Ok(7)), (Ok(7), 1));
        assert_eq!(calls_of(TRIES, Ok(7)), (Ok(7), 1 + TRIES));
        let denied = io::ErrorKind::PermissionDenied;
        assert_eq!(calls_of(3, Err(denied.into())), (Err(denied), 4));
        let interrupted = Err(io::ErrorKind::Interrupted);
        assert_eq!(calls_of(usize::MAX, Ok(7)), (interrupted, 1 + TRIES));
    }
}
