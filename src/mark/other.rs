//! The mark on systems where a forked child never has its parent's pid: the pid.

use super::Mark;

/// Returns the mark of this process.
#[inline]
pub(crate) fn current() -> Mark {
    std::process::id()
}
