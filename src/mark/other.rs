//! The mark where a forked child always has another pid than its parent: the pid.

use super::Mark;

/// Returns the mark of this process.
#[inline]
pub(crate) fn current() -> Mark {
    std::process::id()
}
