//! `run` and `pick`: the commands that lease.

use std::{env, io, net::TcpListener, path::Path, process};

use portlock::{Builder, ErrorKind, FreePort, LockDir};
use serde_json::json;

use crate::{
    args::{Pick, Run, Selection},
    failure::{FAILED, Failure, NOT_EXECUTABLE, NOT_FOUND},
    output::{print_to_somebody, unprintable},
    sys,
    template::{self, Names},
};

fn builder(selection: &Selection, dir: Option<&Path>) -> Result<Builder, Failure> {
    let mut builder = FreePort::builder()
        .protocol(selection.protocol())
        .timeout(selection.timeout);
    if let Some(reuse_address) = selection.reuse_address {
        builder = builder.reuse_address(reuse_address);
    }
    if let Some(ports) = &selection.ports {
        builder = builder.ports(ports.clone());
    }
    for &host in selection.hosts.iter().flat_map(|host| &host.0) {
        builder = builder.host(host);
    }
    if let Some(name) = &selection.prefer {
        builder = builder.prefer(name);
    }
    if let Some(label) = &selection.label {
        builder = builder.label(label);
    }
    if let Some(dir) = dir {
        builder = builder.lock_dir(dir);
    }
    // Ports that were named are taken as they are; that they are ephemeral may
    // not have been meant. Where the system does not tell, nobody can be warned.
    let is_ephemeral = || match builder.overlaps_ephemeral() {
        Err(error) if error.kind() == ErrorKind::Unsupported => Ok(false),
        outcome => outcome,
    };
    if selection.ports.is_some() && is_ephemeral()? {
        eprint(
            "portlock: warning: some of these ports are ephemeral: the system may give them to \
             clients although they are leased\n",
        );
    }
    Ok(builder)
}

/// Unlike `eprint!`, this does not panic when standard error is closed.
fn eprint(text: &str) {
    use io::Write as _;
    let _ = io::stderr().write_all(text.as_bytes());
}

fn acquire(builder: &Builder, selection: &Selection, n: usize) -> portlock::Result<Vec<FreePort>> {
    if selection.contiguous {
        builder.acquire_block(n)
    } else {
        builder.acquire_many(n)
    }
}

/// Leases, and runs the command. Returns only if that fails.
pub(crate) fn run(args: &Run, dir: Option<&Path>) -> Result<u8, Failure> {
    let [program, arguments @ ..] = &args.command[..] else {
        return Err(Failure::new(FAILED, "no command was given"));
    };
    let mut names = args.env.iter().enumerate();
    if let Some((_, twice)) = names.find(|(i, name)| args.env[..*i].contains(name)) {
        let message = format!("--env names the variable {twice} twice");
        return Err(Failure::new(FAILED, message));
    }
    if args.listen && !sys::PASSES_LISTENERS {
        let message = format!(
            "run --listen does not work on {}, where a command cannot inherit listening sockets",
            env::consts::OS
        );
        return Err(Failure::new(FAILED, message));
    }
    let selection = &args.selection;
    let n = match args.env.len() {
        0 => selection.number(),
        named => named,
    };
    let names = Names::new(&args.env, n);
    let arguments = arguments
        .iter()
        .map(|argument| template::parse(argument, &names))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|message| Failure::new(FAILED, message))?;
    let mut builder = builder(selection, dir)?;
    if selection.label.is_none() {
        // By its record, the lease is portlock's.
        let name = Path::new(program).file_name().unwrap_or(program);
        builder = builder.label(name.to_string_lossy());
    }
    let (leases, listeners): (Vec<FreePort>, Vec<TcpListener>) = if args.listen {
        builder.listen_many(n)?.into_iter().unzip()
    } else {
        (acquire(&builder, selection, n)?, Vec::new())
    };

    let ports: Vec<u16> = leases.iter().map(FreePort::port).collect();
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
        io::ErrorKind::NotFound => NOT_FOUND,
        _ => NOT_EXECUTABLE,
    };
    let message = format!("cannot execute {}: {error}", Path::new(program).display());
    Err(Failure::new(status, message))
}

/// Leases for another process, and prints the ports.
pub(crate) fn pick(args: &Pick, dir: Option<&Path>) -> Result<u8, Failure> {
    let pid = match args.pid {
        Some(pid) => pid,
        None => caller()?,
    };
    let selection = &args.selection;
    let leases = acquire(&builder(selection, dir)?, selection, selection.number())?;
    let mut ports = Vec::with_capacity(leases.len());
    let given = leases.into_iter().try_for_each(|lease| {
        ports.push(lease.delegate_to(pid)?);
        Ok::<(), Failure>(())
    });
    let printed = given.and_then(|()| {
        let text = if args.json.json {
            format!("{:#}\n", json!({ "pid": pid, "ports": ports }))
        } else {
            ports.iter().map(|port| format!("{port}\n")).collect()
        };
        print_to_somebody(&text).map_err(|error| unprintable(&error))
    });
    if printed.is_err() {
        // All or none; and of what nobody is told, nobody can make use.
        let dir = LockDir::locate(dir)?;
        for port in ports {
            dir.release(port, true)?;
        }
    }
    printed.map(|()| 0)
}

/// Returns the process that will use the ports.
fn caller() -> Result<u32, Failure> {
    let caller = sys::caller().map_err(|why| {
        let message = format!(
            "cannot tell which process will use the port: {why}; name that process with --pid, \
             such as --pid {} in a shell script",
            sys::OWN_PID
        );
        Failure::new(FAILED, message)
    })?;
    let pid = caller.pid;
    if !caller.is_certain {
        // It may be a messenger, such as sudo -u, and then the lease ends too early.
        eprint(&format!(
            "portlock: warning: process {pid} may not be inspected and is taken to be the user of \
             the port: the lease ends with it; name another process with --pid\n",
        ));
    }
    Ok(pid)
}

/// Whether an error says that ports are busy rather than that something failed.
pub(crate) fn is_busy(error: &portlock::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Exhausted | ErrorKind::PermissionDenied
    )
}
