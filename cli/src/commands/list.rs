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
use portlock::{BelongsTo, EntryState, Owner, PortEntry, PortSet, Server};
use serde_json::{Value, json};

use crate::{
    args::List,
    exit_status::ExitStatus,
    failure::Failure,
    lock_dir::lock_dir,
    output::{add_server, heir, json_line, json_text, print_to_somebody, unprintable},
    sys,
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
        if args.watch && to_terminal && !args.json.json {
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
        let label = entry.owner.as_ref().and_then(Owner::label);
        ports.is_none_or(|ports| ports.contains(entry.port))
            && (args.label.is_none() || args.label.as_deref() == label)
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
        if args.watch {
            let time = SystemTime::now().duration_since(UNIX_EPOCH);
            let time = time.unwrap_or_default().as_secs();
            return json_line(&json!({ "time": time, "ports": rows }));
        }
        return json_text(&Value::from(rows));
    }
    let mut text = if shown.is_empty() {
        "no port is leased\n".to_owned()
    } else {
        table(&shown, snapshot)
    };
    if args.all && !stale.is_empty() {
        let files = if stale.len() == 1 {
            "file is"
        } else {
            "files are"
        };
        let _ = writeln!(
            text,
            "{} lock {files} left from earlier leases",
            stale.len()
        );
    }
    text
}

fn table(entries: &[&PortEntry], snapshot: &Snapshot) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["PORT", "STATE", "PID", "PROGRAM", "AGE", "LABEL"]);
    for entry in entries {
        let server = snapshot.servers.get(&entry.port);
        let state = match (entry.state, server) {
            (EntryState::Held, server) => format!("leased, {}", served(server)),
            (EntryState::Inherited, server) => format!("inherited, {}", served(server)),
            (EntryState::Delegated, server) => format!("delegated, {}", served(server)),
            (EntryState::Unknown, Some(_)) => "unknown, bound".to_owned(),
            (EntryState::Unknown, None) => "unknown".to_owned(),
            (_, Some(server)) => format!("not leased, {}", served(Some(server))),
            (_, None) => "stale file".to_owned(),
        };
        let owner = entry.owner.as_ref();
        // What others wrote must not drive the terminal.
        let text = |text: Option<&str>| text.unwrap_or_default().escape_debug().to_string();
        // The process that has the port now; of one that has ended and whose heir cannot be seen,
        // nothing that could be taken for a living one.
        let (pid, program) = match (entry.state, &entry.heir) {
            (EntryState::Inherited, heir) => (
                heir.as_ref().map(|heir| heir.pid),
                heir.as_ref().map(|heir| heir.program.clone()),
            ),
            _ => (owner.map(Owner::pid), program(entry)),
        };
        table.add_row([
            entry.port.to_string(),
            state,
            pid.map(|pid| pid.to_string()).unwrap_or_default(),
            text(program.as_deref()),
            owner.and_then(since).unwrap_or_default(),
            text(owner.and_then(Owner::label)),
        ]);
    }
    let lines = table.lines().map(|line| format!("{}\n", line.trim()));
    lines.collect()
}

/// Whether a port is bound, and by whom if that is not the holder.
fn served(server: Option<&Server>) -> String {
    let Some(server) = server else {
        return "not bound yet".to_owned();
    };
    match (server.belongs_to, &server.process) {
        (None | Some(BelongsTo::Holder), _) => "bound".to_owned(),
        (Some(BelongsTo::Other), _) => format!("served by {server}"),
        (_, Some(process)) => format!("server unknown: {process}"),
        (_, None) => "server unknown".to_owned(),
    }
}

/// The program that the process in the record runs now, or else the one that it ran when it leased the
/// port.
fn program(entry: &PortEntry) -> Option<String> {
    let now = entry.process().map(|process| process.program);
    let then = entry.owner.as_ref().and_then(Owner::program);
    now.filter(|now| !now.is_empty())
        .or_else(|| then.map(str::to_owned))
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
    let server = snapshot.servers.get(&entry.port);
    let program = match entry.state {
        EntryState::Inherited => owner.and_then(Owner::program).map(str::to_owned),
        _ => program(entry),
    };
    let process = entry.process();
    let mut row = json!({
        "port": entry.port,
        "state": state,
        "bound": server.is_some(),
        "pid": owner.map(Owner::pid),
        "program": program,
        "cwd": process.and_then(|process| sys::current_dir(process.pid)),
        "since": since.map(|since| since.as_secs()),
        "label": owner.and_then(Owner::label),
        "heir": heir(entry),
    });
    add_server(&mut row, server);
    row
}
