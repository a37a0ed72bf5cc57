//! The program `portlock`: leases for shells, other languages and people.

#![forbid(unsafe_code)]

mod args;
mod commands;
mod exit_status;
mod failure;
mod lock_dir;
mod names;
mod notice;
mod output;
mod selection;
mod sys;
mod warnings;

use std::process::ExitCode;

use crate::exit_status::ExitStatus;

fn main() -> ExitCode {
    let args = match args::parse() {
        Ok(args) => args,
        Err(error) => {
            let status = if error.use_stderr() {
                ExitStatus::Failed
            } else {
                ExitStatus::Success
            };
            // If it cannot be printed, there is no reader.
            let _ = error.print();
            return status.into();
        }
    };
    warnings::print();
    match commands::execute(&args) {
        Ok(status) => status.into(),
        Err(failure) => {
            failure.report();
            failure.status().into()
        }
    }
}
