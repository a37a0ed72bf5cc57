//! `release`: ends picked leases and reservations.

use std::path::Path;

use portlock::{LockDir, ReservationState};

use crate::{
    args::{Release, Target},
    exit_status::ExitStatus,
    failure::Failure,
    lock_dir::lock_dir,
    names::existing,
};

pub(crate) fn release(args: &Release, dir: Option<&Path>) -> Result<ExitStatus, Failure> {
    let locks = lock_dir(dir)?;
    let mut failure: Option<Failure> = None;
    for target in &args.targets {
        // The other targets are released all the same.
        if let Err(error) = release_one(&locks, target, args) {
            failure = Some(match failure {
                Some(first) => first.and(error),
                None => error,
            });
        }
    }
    failure.map_or(Ok(ExitStatus::Success), Err)
}

fn release_one(locks: &LockDir, target: &Target, args: &Release) -> Result<(), Failure> {
    match target {
        Target::Name(name) => {
            let reservation = existing(locks, name, args.root.root.as_deref())?;
            locks.unreserve(&reservation)?;
        }
        Target::Port(port) => release_port(locks, *port, args.force)?,
    }
    Ok(())
}

fn release_port(locks: &LockDir, port: u16, force: bool) -> portlock::Result<()> {
    if let Some(entry) = locks.entry(port)?
        && let Some(reservation) = &entry.reservation
        && reservation.state == ReservationState::Unreadable
        && !entry.is_leased()
    {
        return locks.unreserve(reservation);
    }
    match force {
        true => locks.force_release(port),
        false => locks.release(port),
    }
}
