//! `run`: leases ports, and becomes the command or waits for it.

mod template;

use std::{env, io, net::TcpListener, path::Path, process};

use portlock::{Builder, FreePort};

use crate::{args::Run, exit_status::ExitStatus, failure::Failure, sys};

use template::Names;

/// Leases ports, and runs the command. Returns only if that fails.
pub(crate) fn run(args: &Run, dir: Option<&Path>) -> Result<ExitStatus, Failure> {
    let [program, arguments @ ..] = &args.command[..] else {
        return Err(Failure::new(ExitStatus::Failed, "no command was given"));
    };
    let mut names = args.env.iter().enumerate();
    if let Some((_, twice)) = names.find(|(i, name)| args.env[..*i].contains(name)) {
        let message = format!("--env names the variable {twice} twice");
        return Err(Failure::new(ExitStatus::Failed, message));
    }
    if args.listen && !sys::PASSES_LISTENERS {
        let message = format!(
            "run --listen does not work on {}, where a command cannot inherit listening sockets",
            env::consts::OS
        );
        return Err(Failure::new(ExitStatus::Failed, message));
    }
    let selection = &args.selection;
    let n = match args.env.len() {
        0 => selection.number(),
        named => named,
    };
    let names = match &selection.names[..] {
        [] => Names::new(&args.env, n),
        names => Names::reserved(names),
    };
    let arguments = arguments
        .iter()
        .map(|argument| template::parse(argument, &names))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|message| Failure::new(ExitStatus::Failed, message))?;
    let mut builder = selection.builder(dir)?;
    if selection.label.is_none() {
        // The record names portlock as the program, so the label names the command.
        let name = Path::new(program).file_name().unwrap_or(program);
        builder = builder.label(name.to_string_lossy());
    }
    let (leases, listeners): (Vec<FreePort>, Vec<TcpListener>) = if args.listen {
        let listening = match selection.names.is_empty() {
            true => builder.listen_many(n)?,
            false => selection.lease_named(&builder, Builder::listen)?,
        };
        listening.into_iter().unzip()
    } else {
        (selection.acquire(&builder, n)?, Vec::new())
    };

    let ports: Vec<u16> = leases.iter().map(FreePort::port).collect();
    selection.note_other_ports(&ports, dir)?;
    let variables: Vec<(String, u16)> = names
        .variables()
        .iter()
        .filter_map(|(name, index)| Some((name.clone(), *ports.get(*index)?)))
        .collect();
    let mut command = process::Command::new(sys::program(program));
    command
        .args(
            arguments
                .iter()
                .map(|argument| template::fill(argument, &ports)),
        )
        .envs(
            variables
                .iter()
                .map(|(name, port)| (name, port.to_string())),
        );
    let error = sys::execute(&mut command, &variables, leases, listeners)?;
    let status = match error.kind() {
        io::ErrorKind::NotFound => ExitStatus::NotFound,
        _ => ExitStatus::NotExecutable,
    };
    let message = format!("cannot execute {}: {error}", Path::new(program).display());
    Err(Failure::new(status, message))
}
