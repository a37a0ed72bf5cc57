//! How long the stress tests run: `PORTLOCK_STRESS` times as long as by default.

use std::env;

pub(crate) const STRESS: &str = "PORTLOCK_STRESS";

/// Returns the factor, 1 if it is unset.
pub(crate) fn stress_factor() -> f64 {
    env::var(STRESS).map_or(1.0, |factor| {
        factor.parse().expect("PORTLOCK_STRESS is a number")
    })
}

/// Returns how many times a test does what it does `times` times by default, at least 1.
pub fn stress(times: usize) -> usize {
    ((times as f64 * stress_factor()) as usize).max(1)
}
