//! Errors of the library.

/// Asserts that `outcome` is an error of `kind` whose message contains all `parts`.
#[track_caller]
pub(crate) fn assert_error<T>(
    outcome: portlock::Result<T>,
    kind: portlock::ErrorKind,
    parts: &[&str],
) {
    let Err(error) = outcome else {
        panic!("no error, but should be {kind:?}")
    };
    assert_eq!(error.kind(), kind, "{error}");
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "no {part:?} in: {message}");
    }
}
