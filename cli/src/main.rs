//! The program `portlock`: leases for shells, other languages and people.

#![forbid(unsafe_code)]

mod args;
mod dir;
mod failure;
mod inspect;
mod lease;
mod listing;
mod map;
mod output;
mod pool;
mod request;
mod seldom;
mod serve;
mod snapshot;
mod static_pool;
mod sys;
mod template;

use std::process::ExitCode;

use clap::Parser as _;

use crate::{
    args::{Args, Command},
    failure::{FAILED, Failure},
};

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // As with env(1), a status that CMD is unlikely to give itself.
            let failed = error.use_stderr();
            // If it cannot be printed, nobody wants to read it.
            let _ = error.print();
            return if failed { FAILED } else { 0 }.into();
        }
    };
    match run(&args) {
        Ok(status) => status.into(),
        Err(failure) => {
            failure.report();
            failure.status().into()
        }
    }
}

fn run(args: &Args) -> Result<u8, Failure> {
    let dir = args.lock_dir.as_deref();
    match &args.command {
        Command::Run(run) => lease::run(run, dir),
        Command::Pick(pick) => lease::pick(pick, dir),
        Command::List(list) => listing::list(list, dir),
        Command::Check(check) => inspect::check(check, dir),
        Command::Wait(wait) => inspect::wait(wait, dir),
        Command::Release(release) => inspect::release(release, dir),
        Command::Clean => inspect::clean(dir),
        Command::Ports(ports) => inspect::ports(ports),
        Command::Dir(json) => dir::dir(json, dir),
        Command::Serve(serve) => serve::serve(serve, dir),
        Command::Completions { shell } => output::completions(*shell),
        Command::Man { dir } => output::man(dir.as_deref()),
    }
}
