//! `release`: ends leases that were picked.

use std::path::Path;

use crate::{args::Release, exit_status::ExitStatus, failure::Failure, lock_dir::lock_dir};

pub(crate) fn release(args: &Release, dir: Option<&Path>) -> Result<ExitStatus, Failure> {
    let locks = lock_dir(dir)?;
    for &port in &args.ports {
        match args.force {
            true => locks.force_release(port)?,
            false => locks.release(port)?,
        }
    }
    Ok(ExitStatus::Success)
}
