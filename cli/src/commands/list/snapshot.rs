//! What is known about the ports at one moment.

use std::collections::{BTreeMap, HashMap};

use portlock::{EntryState, LockDir, PortEntry, Reservation, Server};

use crate::{failure::Failure, names::counts};

pub(crate) struct Snapshot {
    /// The ports that are leased, reserved or have a lock file, in ascending order.
    pub(crate) ports: Vec<Known>,
    /// The servers on all ports, leased or not.
    pub(crate) servers: HashMap<u16, Server>,
}

/// A port that is leased, reserved or has a lock file.
pub(crate) struct Known {
    pub(crate) port: u16,
    /// Its lock file, if it has one.
    pub(crate) entry: Option<PortEntry>,
    pub(crate) reservation: Option<Reservation>,
}

/// The state of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Held,
    Inherited,
    Delegated,
    Unknown,
    /// Reserved for a name and not leased.
    Reserved,
    Stale,
}

impl Known {
    pub(crate) fn state(&self) -> State {
        match self.entry.as_ref().map(|entry| entry.state) {
            Some(EntryState::Held) => State::Held,
            Some(EntryState::Inherited) => State::Inherited,
            Some(EntryState::Delegated) => State::Delegated,
            Some(EntryState::Unknown) => State::Unknown,
            _ if self.reservation.as_ref().is_some_and(counts) => State::Reserved,
            _ => State::Stale,
        }
    }
}

impl Snapshot {
    pub(crate) fn take(dir: &LockDir) -> Result<Self, Failure> {
        let servers = dir.servers()?.into_iter();
        let mut ports = BTreeMap::new();
        // If the lock directory was lost, reservations have no lock files.
        for reservation in dir.reservations()? {
            let port = reservation.port;
            let reservation = Some(reservation);
            let entry = None;
            ports.insert(
                port,
                Known {
                    port,
                    entry,
                    reservation,
                },
            );
        }
        for entry in dir.entries()? {
            let port = entry.port;
            // The lock file is authoritative, but this user may not be able to read another user's.
            let copy = ports.remove(&port).and_then(|known| known.reservation);
            let reservation = entry.reservation.clone().or(copy);
            let entry = Some(entry);
            ports.insert(
                port,
                Known {
                    port,
                    entry,
                    reservation,
                },
            );
        }
        Ok(Self {
            ports: ports.into_values().collect(),
            servers: servers.map(|server| (server.port, server)).collect(),
        })
    }
}
