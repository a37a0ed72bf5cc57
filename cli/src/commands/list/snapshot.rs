//! What is known of the ports at one moment.

use std::collections::{BTreeMap, HashMap};

use portlock::{EntryState, LockDir, PortEntry, Reservation, Server};

use crate::{failure::Failure, names::counts};

pub(crate) struct Snapshot {
    /// The ports that are leased, reserved or have a lock file, in ascending order.
    pub(crate) ports: Vec<Known>,
    /// The servers of ports, leased or not.
    pub(crate) servers: HashMap<u16, Server>,
}

/// A port of which something is known.
pub(crate) struct Known {
    pub(crate) port: u16,
    /// Its lock file, if it has one.
    pub(crate) entry: Option<PortEntry>,
    pub(crate) reservation: Option<Reservation>,
}

/// What is known of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Held,
    Inherited,
    Delegated,
    Unknown,
    /// It is not leased.
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
        // Those of a lock directory that was lost have no lock file.
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
            // A lock file has the last word, but another user's can be closed to this one.
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
