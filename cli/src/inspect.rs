//! The commands that look at ports and at the lock directory, and tidy up.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

use portlock::{
    Builder, ErrorKind, Exhaustion, FreePort, Lease, LockDir, Owner, PortSet, ephemeral_port_range,
    wait_until_listening,
};
use serde_json::{Value, json};

use crate::{
    args::{Check, Ports, Release, Wait},
    failure::{Failure, TIMED_OUT},
    lease::is_busy,
    listing::heir,
    output::{print, print_json},
};

const LEASED: u8 = 1;
const BOUND: u8 = 3;

/// "Free" means that it could be leased.
pub(crate) fn check(args: &Check, dir: Option<&Path>) -> Result<u8, Failure> {
    let locks = LockDir::locate(dir)?;
    let (mut status, mut text, mut rows) = (0, String::new(), Vec::new());
    for &port in &args.ports {
        let mut builder = FreePort::builder().ports(port..=port);
        if let Some(dir) = dir {
            builder = builder.lock_dir(dir);
        }
        let strict = busy(&builder.clone().reuse_address(false))?;
        let in_time_wait = strict.is_some_and(|why| why.lingering > 0) && busy(&builder)?.is_none();
        let (state, this_status) = match in_time_wait {
            true => state(None),
            false => state(strict),
        };
        status = status.max(this_status);
        let lease = locks.lease(port)?.filter(|_| this_status == LEASED);
        let owner = lease
            .as_ref()
            .and_then(|lease: &Lease| lease.owner.as_ref());
        let holder = lease.as_ref().and_then(Lease::holder);
        let by = holder
            .map(|holder| format!(" by {holder}"))
            .unwrap_or_default();
        let note = if in_time_wait { ", in TIME_WAIT" } else { "" };
        let _ = writeln!(text, "{port} {state}{note}{by}");
        rows.push(json!({
            "port": port,
            "state": state,
            "time_wait": in_time_wait,
            "pid": owner.map(Owner::pid),
            "program": owner.and_then(Owner::program),
            "label": owner.and_then(Owner::label),
            "heir": lease.as_ref().and_then(heir),
        }));
    }
    if args.json.json {
        print_json(&Value::from(rows))?;
    } else {
        print(&text)?;
    }
    Ok(status)
}

/// Why the port could not be leased now, or `None` if it could.
fn busy(builder: &Builder) -> Result<Option<Exhaustion>, Failure> {
    match builder.check() {
        Ok(()) => Ok(None),
        Err(error) if is_busy(&error) => Ok(Some(error.exhaustion().unwrap_or_default())),
        Err(error) => Err(error.into()),
    }
}

fn state(busy: Option<Exhaustion>) -> (&'static str, u8) {
    match busy {
        None => ("free", 0),
        Some(busy) if busy.leased > 0 => ("leased", LEASED),
        Some(busy) if busy.not_permitted > 0 => ("not permitted", BOUND),
        Some(busy) if busy.lingering > 0 => ("bound, and not listening", BOUND),
        Some(_) => ("bound", BOUND),
    }
}

pub(crate) fn wait(args: &Wait, dir: Option<&Path>) -> Result<u8, Failure> {
    let start = Instant::now();
    let mut failures = Vec::new();
    for &port in &args.ports {
        let left = args.timeout.saturating_sub(start.elapsed());
        let waited = if args.free {
            wait_until_free(port, args, left, dir)
        } else {
            wait_for_server(port, args, left)
        };
        match waited {
            Ok(()) => {}
            // The others are still checked, so that one run names all that are missing.
            Err(error) if matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Exhausted) => {
                failures.push(error.to_string());
            }
            Err(error) => return Err(error.into()),
        }
    }
    if failures.is_empty() {
        return Ok(0);
    }
    Err(Failure::new(TIMED_OUT, failures.join("; ")))
}

fn wait_for_server(port: u16, args: &Wait, timeout: Duration) -> portlock::Result<()> {
    let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let hosts = args.host.as_ref().map_or(&loopback[..], |host| &host.0);
    let addresses: Vec<SocketAddr> = hosts
        .iter()
        .map(|&host| SocketAddr::new(host, port))
        .collect();
    wait_until_listening(&addresses[..], timeout)
}

fn wait_until_free(
    port: u16,
    args: &Wait,
    timeout: Duration,
    dir: Option<&Path>,
) -> portlock::Result<()> {
    let mut builder = FreePort::builder().ports(port..=port).timeout(timeout);
    for &host in args.host.iter().flat_map(|host| &host.0) {
        builder = builder.host(host);
    }
    if let Some(dir) = dir {
        builder = builder.lock_dir(dir);
    }
    builder.wait_until_free()
}

pub(crate) fn release(args: &Release, dir: Option<&Path>) -> Result<u8, Failure> {
    let locks = LockDir::locate(dir)?;
    for &port in &args.ports {
        locks.release(port, args.force)?;
    }
    Ok(0)
}

pub(crate) fn clean(dir: Option<&Path>) -> Result<u8, Failure> {
    let cleaned = LockDir::locate(dir)?.clean()?;
    let files = if cleaned.removed == 1 {
        "file"
    } else {
        "files"
    };
    print(&format!(
        "{} lock {files} removed, {} kept\n",
        cleaned.removed, cleaned.kept
    ))?;
    Ok(0)
}

pub(crate) fn ports(args: &Ports) -> Result<u8, Failure> {
    let ports = match &args.set {
        Some(ports) => ports.clone(),
        None if args.ephemeral => ephemeral_port_range()?.into(),
        None => PortSet::server_ports()?,
    };
    if args.json.json {
        let text = ports.to_string();
        let ranges: Vec<Value> = text.split_terminator(',').map(range).collect();
        print_json(&json!({ "ports": text, "count": ports.len(), "ranges": ranges }))?;
    } else {
        print(&format!("{ports}\n"))?;
    }
    Ok(0)
}

/// `[first, last]` out of `first-last`, or `[port, port]`.
fn range(text: &str) -> Value {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.parse::<u16>().ok();
    json!([number(first), number(last)])
}
