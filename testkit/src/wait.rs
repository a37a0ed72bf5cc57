//! Bounded waiting.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Time after which a test has failed, even on a crowded machine.
pub const LONG: Duration = Duration::from_secs(60);

/// Calls `check` until it returns a value, and returns that. Panics after [`LONG`].
#[track_caller]
pub fn until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LONG;
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {LONG:?}");
        thread::sleep(Duration::from_millis(2));
    }
}
