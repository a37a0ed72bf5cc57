//! What is known of the ports at one moment.

use std::collections::HashSet;

use portlock::{LockDir, PortEntry};

use crate::{failure::Failure, sys::ports_in_use};

pub(crate) struct Snapshot {
    pub(crate) entries: Vec<PortEntry>,
    /// Ports with a server, leased or not.
    pub(crate) in_use: HashSet<u16>,
}

impl Snapshot {
    pub(crate) fn take(dir: &LockDir) -> Result<Self, Failure> {
        Ok(Self {
            entries: dir.entries()?,
            in_use: ports_in_use()?,
        })
    }
}
