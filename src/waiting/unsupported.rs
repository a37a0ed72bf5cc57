//! The wait queue, which only Linux has. On other systems every waiter is a leader.

use std::{io, time::Instant};

use crate::lock_dir::OpenDir;

/// The wait queue, which has no values on this system.
#[derive(Debug)]
pub(crate) enum WaitQueue {}

impl WaitQueue {
    pub(crate) fn join(_: &OpenDir, _: u64) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn wait_for_leadership(&mut self, _: Instant) -> io::Result<()> {
        match *self {}
    }

    pub(crate) fn is_leader(&self) -> bool {
        match *self {}
    }

    pub(crate) fn heartbeat(&self) {
        match *self {}
    }
}

pub(crate) fn remove_wait_queue(_: &OpenDir, _: &str) -> Option<io::Result<()>> {
    None
}
