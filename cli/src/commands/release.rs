//! `release`: ends leases that were picked.

use std::path::Path;

use portlock::LockDir;

use crate::{args::Release, exit_status::ExitStatus, failure::Failure};

pub(crate) fn release(args: &Release, dir: Option<&Path>) -> Result<ExitStatus, Failure> {
    let locks = LockDir::locate(dir)?;
    for &port in &args.ports {
        locks.release(port, args.force)?;
    }
    Ok(ExitStatus::Success)
}
