//! The duration of the stress tests: `PORTLOCK_STRESS` times the default.

use std::env;

pub(crate) const STRESS: &str = "PORTLOCK_STRESS";

/// Returns the factor; the default is 1.
pub(crate) fn stress_factor() -> f64 {
    env::var(STRESS).map_or(1.0, |factor| {
        factor.parse().expect("PORTLOCK_STRESS is a number")
    })
}

/// Returns the number of repetitions of a test whose default is `times`, at least 1.
pub fn stress(times: usize) -> usize {
    ((times as f64 * stress_factor()) as usize).max(1)
}
