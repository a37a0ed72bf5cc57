//! `check`: whether ports are free, leased or bound.

use std::{fmt::Write as _, path::Path};

use portlock::{Builder, FreePort, Owner, PortCounts, PortEntry};
use serde_json::{Value, json};

use crate::{
    args::Check,
    exit_status::ExitStatus,
    failure::{Failure, is_busy},
    lock_dir::lock_dir,
    output::{heir, print, print_json},
};

/// "Free" means that it could be leased.
pub(crate) fn check(args: &Check, dir: Option<&Path>) -> Result<ExitStatus, Failure> {
    let locks = lock_dir(dir)?;
    let (mut status, mut text, mut rows) = (ExitStatus::Success, String::new(), Vec::new());
    for &port in &args.ports {
        let mut builder = FreePort::builder().ports(port);
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
        let entry = locks
            .entry(port)?
            .filter(|_| this_status == ExitStatus::Leased);
        let owner = entry
            .as_ref()
            .and_then(|entry: &PortEntry| entry.owner.as_ref());
        let holder = entry.as_ref().and_then(PortEntry::holder);
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
            "heir": entry.as_ref().and_then(heir),
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
fn busy(builder: &Builder) -> Result<Option<PortCounts>, Failure> {
    match builder.check() {
        Ok(()) => Ok(None),
        Err(error) if is_busy(&error) => Ok(Some(error.counts().unwrap_or_default())),
        Err(error) => Err(error.into()),
    }
}

fn state(busy: Option<PortCounts>) -> (&'static str, ExitStatus) {
    match busy {
        None => ("free", ExitStatus::Success),
        Some(busy) if busy.leased > 0 => ("leased", ExitStatus::Leased),
        Some(busy) if busy.not_permitted > 0 => ("not permitted", ExitStatus::Bound),
        Some(busy) if busy.lingering > 0 => ("bound, and not listening", ExitStatus::Bound),
        Some(_) => ("bound", ExitStatus::Bound),
    }
}
