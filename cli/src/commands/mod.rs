//! The commands, one module each.

mod check;
mod clean;
mod completions;
mod dir;
mod env;
mod list;
mod man;
mod pick;
mod port;
mod ports;
mod release;
mod run;
mod serve;
mod stop;
mod wait;

use crate::{
    args::{Args, Command},
    exit_status::ExitStatus,
    failure::Failure,
};

/// Executes the command in the arguments.
pub(crate) fn execute(args: &Args) -> Result<ExitStatus, Failure> {
    let dir = args.lock_dir.as_deref();
    match &args.command {
        Command::Run(run) => run::run(run, dir),
        Command::Pick(pick) => pick::pick(pick, dir),
        Command::Env(env) => env::env(env, dir),
        Command::Port(port) => port::port(port, dir),
        Command::Stop(stop) => stop::stop(stop, dir),
        Command::List(list) => list::list(list, dir),
        Command::Check(check) => check::check(check, dir),
        Command::Wait(wait) => wait::wait(wait, dir),
        Command::Release(release) => release::release(release, dir),
        Command::Clean(clean) => clean::clean(clean, dir),
        Command::Ports(ports) => ports::ports(ports),
        Command::Dir(json) => dir::dir(json, dir),
        Command::Serve(serve) => serve::serve(serve, dir),
        Command::Completions { shell } => completions::completions(*shell),
        Command::Man { dir } => man::man(dir.as_deref()),
    }
}
