//! The time of day.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Returns how long it has been since 1970. A clock that shows an earlier time counts as 1970.
///
/// It reads the standard library's clock. rustix's clock crashes under valgrind (rustix issue 1559).
pub(crate) fn since_1970() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}
