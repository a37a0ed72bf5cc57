//! `list`: who holds which port.

mod map;
mod snapshot;

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _},
    path::Path,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use comfy_table::{Table, presets};
use portlock::{EntryState, Owner, PortEntry, PortSet};
use serde_json::{Value, json};

use crate::{
    args::List,
    exit_status::ExitStatus,
    failure::Failure,
    lock_dir::lock_dir,
    output::{heir, json_text, print_to_somebody, unprintable},
};

use snapshot::Snapshot;

pub(crate) fn list(args: &List, dir: Option<&Path>) -> Result<ExitStatus, Failure> {
    let dir = lock_dir(dir)?;
    let to_terminal = io::stdout().is_terminal();
    loop {
        let snapshot = Snapshot::take(&dir)?;
        let mut text = if args.map {
            let ports = match &args.ports {
                Some(ports) => ports.clone(),
                None => PortSet::server_ports()?,
            };
            map::draw(&ports, &snapshot)?
        } else {
            rows(args, &snapshot)
        };
        if args.watch && to_terminal {
            // Cursor home, and clear what is below (ECMA-48: CUP, ED).
            text.insert_str(0, "\x1b[H\x1b[J");
        }
        match print_to_somebody(&text) {
            Ok(()) if args.watch => thread::sleep(Duration::from_secs(1)),
            Ok(()) => return Ok(ExitStatus::Success),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return Ok(ExitStatus::Success);
            }
            Err(error) => return Err(unprintable(&error)),
        }
    }
}

fn rows(args: &List, snapshot: &Snapshot) -> String {
    let is_asked_for = |entry: &&PortEntry| {
        let ports = args.ports.as_ref();
        ports.is_none_or(|ports| ports.contains(entry.port))
    };
    let (stale, mut shown): (Vec<&PortEntry>, Vec<&PortEntry>) = snapshot
        .entries
        .iter()
        .filter(is_asked_for)
        .partition(|entry| entry.state == EntryState::Stale);
    if args.all {
        shown.extend(&stale);
        shown.sort_unstable_by_key(|entry| entry.port);
    }

    if args.json.json {
        let rows: Vec<Value> = shown.iter().map(|entry| row(entry, snapshot)).collect();
        return json_text(&Value::from(rows));
    }
    let mut text = if shown.is_empty() {
        "no port is leased\n".to_owned()
    } else {
        table(&shown, snapshot)
    };
    if !args.all && !stale.is_empty() {
        let files = if stale.len() == 1 {
            "file is"
        } else {
            "files are"
        };
        let _ = writeln!(
            text,
            "{} lock {files} left from earlier leases (--all shows them)",
            stale.len()
        );
    }
    text
}

fn table(entries: &[&PortEntry], snapshot: &Snapshot) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["PORT", "STATE", "PID", "PROGRAM", "SINCE", "LABEL"]);
    for entry in entries {
        let bound = snapshot.in_use.contains(&entry.port);
        let state = match (entry.state, bound) {
            (EntryState::Held, true) => "leased, bound",
            (EntryState::Held, false) => "leased, not bound yet",
            (EntryState::Inherited, true) => "inherited, bound",
            (EntryState::Inherited, false) => "inherited, not bound yet",
            (EntryState::Delegated, true) => "delegated, bound",
            (EntryState::Delegated, false) => "delegated, not bound yet",
            (EntryState::Unknown, true) => "unknown, bound",
            (EntryState::Unknown, false) => "unknown",
            (_, true) => "not leased, bound",
            (_, false) => "stale file",
        };
        let owner = entry.owner.as_ref();
        // What others wrote must not drive the terminal.
        let text = |text: Option<&str>| text.unwrap_or_default().escape_debug().to_string();
        // The process that has the port now; of one that has ended and whose heir cannot be seen,
        // nothing that could be taken for a living one.
        let (pid, program) = match (entry.state, &entry.heir) {
            (EntryState::Inherited, heir) => (
                heir.as_ref().map(|heir| heir.pid),
                heir.as_ref().map(|heir| &heir.program[..]),
            ),
            _ => (owner.map(Owner::pid), owner.and_then(Owner::program)),
        };
        table.add_row([
            entry.port.to_string(),
            state.to_owned(),
            pid.map(|pid| pid.to_string()).unwrap_or_default(),
            text(program),
            owner.and_then(since).unwrap_or_default(),
            text(owner.and_then(Owner::label)),
        ]);
    }
    let lines = table.lines().map(|line| format!("{}\n", line.trim()));
    lines.collect()
}

/// How long ago, such as `3m 12s`.
fn since(owner: &Owner) -> Option<String> {
    let age = SystemTime::now()
        .duration_since(owner.since()?)
        .unwrap_or_default();
    let seconds = Duration::from_secs(age.as_secs());
    Some(humantime::format_duration(seconds).to_string())
}

fn row(entry: &PortEntry, snapshot: &Snapshot) -> Value {
    let state = match entry.state {
        EntryState::Held => "leased",
        EntryState::Inherited => "inherited",
        EntryState::Delegated => "delegated",
        EntryState::Unknown => "unknown",
        _ => "stale",
    };
    let owner = entry.owner.as_ref();
    let since = owner.and_then(Owner::since);
    let since = since.and_then(|since| since.duration_since(UNIX_EPOCH).ok());
    json!({
        "port": entry.port,
        "state": state,
        "bound": snapshot.in_use.contains(&entry.port),
        "pid": owner.map(Owner::pid),
        "program": owner.and_then(Owner::program),
        "since": since.map(|since| since.as_secs()),
        "label": owner.and_then(Owner::label),
        "heir": heir(entry),
    })
}
