//! Names of reserved ports: resolving, reserving and describing them.

use std::path::{Path, PathBuf};

use portlock::{Builder, LockDir, Reservation, ReservationState};

use serde_json::Value;

use crate::{
    args::Reserving, exit_status::ExitStatus, failure::Failure, notice::announce_waits,
    selection::warn_of_ephemeral,
};

/// Returns the root directory named by the user, or else the default one.
pub(crate) fn root(named: Option<&Path>) -> portlock::Result<PathBuf> {
    match named {
        Some(root) => Ok(root.to_owned()),
        None => Reservation::default_root(),
    }
}

/// Returns the variable for a name, as [`portlock::Reservation::variable`] does for a reserved one.
pub(crate) fn variable(name: &str) -> String {
    name.to_ascii_uppercase().replace('-', "_") + "_PORT"
}

/// Returns the reservation of a name, if it has a valid one. Does not reserve a port.
pub(crate) fn find(
    locks: &LockDir,
    name: &str,
    named_root: Option<&Path>,
) -> portlock::Result<Option<Reservation>> {
    let found = locks.reservation(name, root(named_root)?)?;
    Ok(found.filter(counts))
}

/// Returns the reservations of names. Reserves ports first for those that have none yet: all or
/// none.
pub(crate) fn reserve(
    names: &[String],
    args: &Reserving,
    dir: Option<&Path>,
) -> Result<Vec<Reservation>, Failure> {
    let mut builder = Builder::new().timeout(args.timeout);
    if let Some(root) = &args.root.root {
        builder = builder.root(root);
    }
    if let Some(ports) = &args.ports {
        builder = builder.ports(ports);
        warn_of_ephemeral(&builder)?;
    }
    if let Some(dir) = dir {
        builder = builder.lock_dir(dir);
    }
    Ok(announce_waits(builder).reserve_many(names)?)
}

/// Returns the reservation of a name, or an error if it has none.
pub(crate) fn existing(
    locks: &LockDir,
    name: &str,
    named_root: Option<&Path>,
) -> Result<Reservation, Failure> {
    match find(locks, name, named_root)? {
        Some(reservation) => Ok(reservation),
        None => Err(Failure::new(
            ExitStatus::Failed,
            not_reserved(name, named_root)?,
        )),
    }
}

/// Returns the reservation of a port, if it has a valid one.
pub(crate) fn of_port(locks: &LockDir, port: u16) -> portlock::Result<Option<Reservation>> {
    let mut all = locks.reservations()?.into_iter();
    Ok(all.find(|reservation| reservation.port == port && counts(reservation)))
}

/// Returns the message that no port is reserved for a name.
pub(crate) fn not_reserved(name: &str, named_root: Option<&Path>) -> portlock::Result<String> {
    let root = root(named_root)?;
    Ok(format!(
        "no port is reserved as {name} in {} (portlock port {name} reserves one)",
        root.to_string_lossy().escape_debug()
    ))
}

/// Describes a reservation, such as `as web in /home/ada/shop`.
pub(crate) fn describe(reservation: &Reservation) -> String {
    match reservation.state {
        ReservationState::Unreadable => "for a name that cannot be read".to_owned(),
        ReservationState::RootNotFound => format!("{reservation}, which cannot be found"),
        ReservationState::RootGone => format!("{reservation}, which is gone"),
        _ => reservation.to_string(),
    }
}

/// Adds the name, root and state of a port's reservation.
pub(crate) fn add_reservation(row: &mut Value, reservation: Option<&Reservation>) {
    let readable = reservation.filter(|it| it.state != ReservationState::Unreadable);
    row["name"] = readable.map(|it| &*it.name).into();
    row["root"] = readable.map(|it| it.root.to_string_lossy()).into();
    row["reservation"] = reservation
        .map(|reservation| match reservation.state {
            ReservationState::RootNotFound => "root not found",
            ReservationState::RootGone => "root gone",
            ReservationState::Unreadable => "unreadable",
            _ => "present",
        })
        .into();
}

/// Returns whether a reservation is valid: its root directory is not known to be gone.
pub(crate) fn counts(reservation: &Reservation) -> bool {
    reservation.state != ReservationState::RootGone
}
