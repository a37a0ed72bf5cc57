//! What is known of the ports at one moment.

use std::collections::HashMap;

use portlock::{LockDir, PortEntry, Server};

use crate::failure::Failure;

pub(crate) struct Snapshot {
    pub(crate) entries: Vec<PortEntry>,
    /// The servers of ports, leased or not.
    pub(crate) servers: HashMap<u16, Server>,
}

impl Snapshot {
    pub(crate) fn take(dir: &LockDir) -> Result<Self, Failure> {
        let servers = dir.servers()?.into_iter();
        Ok(Self {
            entries: dir.entries()?,
            servers: servers.map(|server| (server.port, server)).collect(),
        })
    }
}
