//! `clean`: removes the lock files of ports that are not leased.

use std::path::Path;

use crate::{exit_status::ExitStatus, failure::Failure, lock_dir::lock_dir, output::print};

pub(crate) fn clean(dir: Option<&Path>) -> Result<ExitStatus, Failure> {
    let cleaned = lock_dir(dir)?.clean()?;
    let files = if cleaned.removed == 1 {
        "file"
    } else {
        "files"
    };
    print(&format!(
        "{} lock {files} removed, {} kept\n",
        cleaned.removed, cleaned.kept
    ))?;
    Ok(ExitStatus::Success)
}
