//! `clean`: removes the lock files of ports that are not leased.

use std::path::Path;

use portlock::LockDir;

use crate::{exit_status::ExitStatus, failure::Failure, output::print};

pub(crate) fn clean(dir: Option<&Path>) -> Result<ExitStatus, Failure> {
    let cleaned = LockDir::locate(dir)?.clean()?;
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
