//! What is known of the ports at one moment.

use std::collections::HashSet;

use portlock::{Lease, LockDir};

use crate::{failure::Failure, sys::ports_in_use};

pub(crate) struct Snapshot {
    pub(crate) leases: Vec<Lease>,
    /// Ports with a server, leased or not.
    pub(crate) in_use: HashSet<u16>,
}

impl Snapshot {
    pub(crate) fn take(dir: &LockDir) -> Result<Self, Failure> {
        Ok(Self {
            leases: dir.leases()?,
            in_use: ports_in_use()?,
        })
    }
}
