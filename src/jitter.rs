//! Random pauses.

use std::time::Duration;

use rand::{RngExt, rngs::SmallRng};

/// Returns a random duration between half of `pause` and `pause`, so that waiters do not wake in
/// lockstep.
pub(crate) fn random(pause: Duration) -> Duration {
    rand::make_rng::<SmallRng>().random_range(pause / 2..=pause)
}
