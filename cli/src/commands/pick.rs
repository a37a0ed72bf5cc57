//! `pick`: leases ports for another process, and prints them.

use std::path::Path;

use serde_json::json;

use crate::{
    args::Pick,
    exit_status::ExitStatus,
    failure::Failure,
    lock_dir::lock_dir,
    output::{print_to_reader, unprintable, warn},
    sys,
};

/// Leases ports for another process, and prints them.
pub(crate) fn pick(args: &Pick, dir: Option<&Path>) -> Result<ExitStatus, Failure> {
    let pid = match args.pid {
        Some(pid) => pid,
        None => caller()?,
    };
    let selection = &args.selection;
    let builder = selection.builder(dir)?;
    let mut ports = Vec::new();
    let leased = if selection.names.len() == 1 {
        ports = selection.lease_named(&builder, |builder| builder.acquire_for(pid))?;
        Ok(())
    } else if selection.names.is_empty() && selection.number() == 1 {
        // Unlike delegating a lease afterwards, this can try another port if the record of one cannot
        // be written.
        ports.push(builder.acquire_for(pid)?);
        Ok(())
    } else {
        let leases = selection.acquire(&builder, selection.number())?;
        leases.into_iter().try_for_each(|lease| {
            ports.push(lease.delegate_to(pid)?);
            Ok::<(), Failure>(())
        })
    };
    let printed = leased.and_then(|()| {
        selection.note_other_ports(&ports, dir)?;
        let text = if args.json.json {
            format!("{:#}\n", json!({ "pid": pid, "ports": ports }))
        } else {
            ports.iter().map(|port| format!("{port}\n")).collect()
        };
        print_to_reader(&text).map_err(|error| unprintable(&error))
    });
    if printed.is_err() {
        // The caller did not get the numbers, so nothing can use these ports.
        let dir = lock_dir(dir)?;
        for port in ports {
            dir.force_release(port)?;
        }
    }
    printed.map(|()| ExitStatus::Success)
}

/// Returns the process that will use the ports.
fn caller() -> Result<u32, Failure> {
    let caller = sys::caller().map_err(|why| {
        let message = format!(
            "cannot determine which process will use the port: {why}; name that process with \
             --pid, for example {}",
            sys::own_pid()
        );
        Failure::new(ExitStatus::Failed, message)
    })?;
    let pid = caller.pid;
    if !caller.is_certain {
        // It may only pass the output on, as sudo -u does: then the lease would end too early.
        warn(&format!(
            "process {pid} cannot be inspected and is assumed to use the port: the lease ends \
             with it; to lease for another process, use --pid",
        ));
    }
    Ok(pid)
}
