//! `man`: prints or writes the man pages.

use std::path::Path;

use clap::CommandFactory as _;

use crate::{
    args::Args,
    exit_status::ExitStatus,
    failure::Failure,
    output::{print, unprintable},
};

pub(crate) fn man(dir: Option<&Path>) -> Result<ExitStatus, Failure> {
    if let Some(dir) = dir {
        clap_mangen::generate_to(Args::command(), dir).map_err(|error| {
            let message = format!("cannot write man pages to {}: {error}", dir.display());
            Failure::new(ExitStatus::Failed, message)
        })?;
        return Ok(ExitStatus::Success);
    }
    let mut page = Vec::new();
    // For consistency with `generate_to`, which does the same.
    clap_mangen::Man::new(Args::command().disable_help_subcommand(true))
        .render(&mut page)
        .map_err(|error| unprintable(&error))?;
    print(&String::from_utf8_lossy(&page))?;
    Ok(ExitStatus::Success)
}
