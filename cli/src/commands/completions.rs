//! `completions`: prints shell completions.

use clap::CommandFactory as _;

use crate::{args::Args, exit_status::ExitStatus, failure::Failure, output::print};

pub(crate) fn completions(shell: clap_complete::Shell) -> Result<ExitStatus, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "portlock", &mut text);
    print(&String::from_utf8_lossy(&text))?;
    Ok(ExitStatus::Success)
}
