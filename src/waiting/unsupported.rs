//! Waiting where nothing reports that a file was closed: there is neither a wait queue nor a watch, and
//! every waiter checks all ports from time to time.
//!
//! kqueue on macOS reports changes to files and directories, but not that a file was closed, and neither
//! leasing nor releasing a port changes one.

use std::{
    io,
    time::{Duration, Instant},
};

use crate::lock_dir::OpenDir;

/// The wait queue, which does not exist here: every waiter is a leader.
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

/// The watch for files that are closed, which does not exist here.
#[derive(Debug)]
pub(crate) enum Watch {}

impl Watch {
    pub(crate) fn begin(_: &OpenDir) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn wait(&self, _: Duration) -> io::Result<Option<Vec<u16>>> {
        match *self {}
    }
}
