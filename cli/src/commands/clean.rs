//! `clean`: removes the lock files of ports that are neither leased nor reserved.

use std::{fmt::Write as _, path::Path};

use portlock::{LockDir, ReservationState};

use crate::{
    args::Clean, exit_status::ExitStatus, failure::Failure, lock_dir::lock_dir, output::print,
};

pub(crate) fn clean(args: &Clean, dir: Option<&Path>) -> Result<ExitStatus, Failure> {
    let dir = lock_dir(dir)?;
    let cleaned = dir.clean()?;
    let files = if cleaned.removed == 1 {
        "file"
    } else {
        "files"
    };
    let mut text = format!(
        "{} lock {files} removed, {} kept\n",
        cleaned.removed, cleaned.kept
    );
    if args.all {
        let _ = match LockDir::clean_copies()? {
            1 => writeln!(text, "1 copy of a reservation removed"),
            copies => writeln!(text, "{copies} copies of reservations removed"),
        };
    }
    for reservation in dir.reservations()? {
        if reservation.state == ReservationState::RootNotFound {
            let _ = writeln!(
                text,
                "{} kept, reserved {reservation}: root not found",
                reservation.port
            );
        }
    }
    print(&text)?;
    Ok(ExitStatus::Success)
}
