//! `wait`: until ports have their servers, or are free.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

use portlock::{
    BelongsTo, Error, ErrorKind, FreePort, LockDir, PortEntry, Server, wait_until_listening,
};
use serde_json::{Value, json};

use crate::{
    args::Wait,
    exit_status::ExitStatus,
    failure::Failure,
    lock_dir::lock_dir,
    notice::{announce_waits, announced},
    output::{add_server, holder, note, print_json},
};

pub(crate) fn wait(args: &Wait, dir: Option<&Path>) -> Result<ExitStatus, Failure> {
    let start = Instant::now();
    let (mut failures, mut rows) = (Vec::new(), Vec::new());
    let mut status = ExitStatus::TimedOut;
    for &port in &args.ports {
        let left = args.timeout.saturating_sub(start.elapsed());
        let waited = if args.free {
            wait_until_free(port, args, left, dir).map(|()| None)
        } else {
            wait_for_server(port, args, left, dir)
        };
        let mut row = json!({ "port": port, "ready": waited.is_ok() });
        match &waited {
            Ok(server) => add_server(&mut row, server.as_ref()),
            Err(error) => add_server(&mut row, error.server()),
        }
        rows.push(row);
        match waited {
            Ok(server) => {
                if let Some(server) = server {
                    note_unknown(&server);
                }
            }
            // The others are still checked, so that one run names all that are missing.
            Err(error) if matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Exhausted) => {
                failures.push(error.to_string());
            }
            Err(error) if error.kind() == ErrorKind::OtherServer => {
                status = ExitStatus::Bound;
                failures.push(with_way_out(&error, args));
            }
            Err(error) => return Err(error.into()),
        }
    }
    if args.json.json {
        print_json(&Value::from(rows))?;
    }
    if failures.is_empty() {
        return Ok(ExitStatus::Success);
    }
    Err(Failure::new(status, failures.join("; ")))
}

fn wait_for_server(
    port: u16,
    args: &Wait,
    timeout: Duration,
    dir: Option<&Path>,
) -> portlock::Result<Option<Server>> {
    let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let hosts = args.host.as_ref().map_or(&loopback[..], |host| &host.0);
    let addresses: Vec<SocketAddr> = hosts
        .iter()
        .map(|&host| SocketAddr::new(host, port))
        .collect();
    if args.any {
        let wait = || wait_until_listening(&addresses[..], timeout);
        announced(wait, || format!("for any server on port {port}"))?;
        // It is asked for as JSON alone, and does not depend on a lock directory otherwise.
        return match args.json.json {
            true => lock_dir(dir)?.server(port),
            false => Ok(None),
        };
    }
    let dir = lock_dir(dir)?;
    let wait = || dir.wait_for_server(&addresses[..], args.pid, timeout);
    announced(wait, || describe(port, args, &dir)).map(Some)
}

/// Returns what is waited for, and who has it.
fn describe(port: u16, args: &Wait, dir: &LockDir) -> String {
    if let Some(pid) = args.pid {
        return format!("for the server of process {pid} on port {port}");
    }
    let entry = dir.entry(port).ok().flatten().filter(PortEntry::is_leased);
    match entry.map(|entry| holder(&entry)) {
        Some(Some(holder)) => format!("for a server on port {port}, leased by {holder}"),
        Some(None) => format!("for a server on port {port}, which is leased"),
        None => format!("for a server on port {port}, which is not leased"),
    }
}

/// Prints a note if nobody can tell whose server it is.
fn note_unknown(server: &Server) {
    let why = match (server.belongs_to, &server.process) {
        (Some(BelongsTo::Unknown), None) => "its process cannot be seen".to_owned(),
        (Some(BelongsTo::Unknown), Some(process)) => {
            format!("{process} may have daemonized, or cannot be inspected")
        }
        _ => return,
    };
    note(&format!(
        "the server on port {} may be another process's than the one waited for: {why}",
        server.port
    ));
}

fn with_way_out(error: &Error, args: &Wait) -> String {
    let process = error.server().and_then(|server| server.process.as_ref());
    match (args.pid, process) {
        (None, Some(process)) => format!(
            "{error} (to wait for that process's server, say --pid {}; for any, --any)",
            process.pid
        ),
        _ => format!("{error} (to wait for any server, say --any)"),
    }
}

fn wait_until_free(
    port: u16,
    args: &Wait,
    timeout: Duration,
    dir: Option<&Path>,
) -> portlock::Result<()> {
    let mut builder = FreePort::builder().ports(port).timeout(timeout);
    for &host in args.host.iter().flat_map(|host| &host.0) {
        builder = builder.host(host);
    }
    if let Some(dir) = dir {
        builder = builder.lock_dir(dir);
    }
    announce_waits(builder).wait_until_free()
}
