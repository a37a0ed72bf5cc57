//! Waits on Linux: a FIFO as the wait queue, and inotify(7) as the watch.

pub(super) mod wait_queue;
mod watch;

use std::time::Duration;

use rustix::event::Timespec;

pub(crate) use wait_queue::{WaitQueue, remove_wait_queue};
pub(crate) use watch::Watch;

pub(crate) fn timespec(duration: Duration) -> Timespec {
    // No wait exceeds the maximum of this type.
    Timespec::try_from(duration).unwrap_or_default()
}
