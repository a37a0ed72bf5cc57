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

/// musl's allocator touches more pages, each of which costs a page fault whenever the program
/// starts, and `serve` answers 30 % fewer requests with it.
///
/// A forked child of a process with threads must not use this one before exec. Ours do not allocate
/// there.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

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
