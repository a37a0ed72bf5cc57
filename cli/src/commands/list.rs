//! `list`: lists leases and reservations.

mod map;
mod snapshot;

use std::{
    collections::HashSet,
    fmt::Write as _,
    io::{self, IsTerminal as _},
    path::Path,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use comfy_table::{Table, presets};
use portlock::{BelongsTo, Owner, PortEntry, PortSet, Reservation, ReservationState, Server};
use serde_json::{Value, json};

use crate::{
    args::List,
    exit_status::ExitStatus,
    failure::Failure,
    lock_dir::lock_dir,
    names::add_reservation,
    output::{add_server, heir, json_line, json_text, print_to_reader, unprintable},
    sys,
};

use snapshot::{Known, Snapshot, State};

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
            let in_root = args.root.as_ref().map(|root| dir.reservations_in(root));
            let in_root = in_root.transpose()?;
            let ports = |all: Vec<Reservation>| all.iter().map(|it| it.port).collect();
            let filter = Filter {
                args,
                in_root: in_root.map(ports),
            };
            rows(&filter, &snapshot)
        };
        if args.watch && to_terminal && !args.json.json {
            // Move the cursor home and clear the screen below it (CUP and ED in ECMA-48).
            text.insert_str(0, "\x1b[H\x1b[J");
        }
        match print_to_reader(&text) {
            Ok(()) if args.watch => thread::sleep(Duration::from_secs(1)),
            Ok(()) => return Ok(ExitStatus::Success),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return Ok(ExitStatus::Success);
            }
            Err(error) => return Err(unprintable(&error)),
        }
    }
}

/// Which ports are shown.
struct Filter<'a> {
    args: &'a List,
    /// The ports reserved in the root directory named by the user.
    in_root: Option<HashSet<u16>>,
}

impl Filter<'_> {
    /// Returns whether there may be leases that are not shown.
    fn is_set(&self) -> bool {
        let args = self.args;
        args.ports.is_some() || args.label.is_some() || args.name.is_some() || args.root.is_some()
    }

    fn passes(&self, known: &Known) -> bool {
        let args = self.args;
        let owner = known.entry.as_ref().and_then(|entry| entry.owner.as_ref());
        let label = owner.and_then(Owner::label);
        let name = known.reservation.as_ref().map(|it| &*it.name);
        let is_in = |ports: &PortSet| ports.contains(known.port);
        args.ports.as_ref().is_none_or(is_in)
            && (args.label.is_none() || args.label.as_deref() == label)
            && (args.name.is_none() || args.name.as_deref() == name)
            && (self.in_root.as_ref()).is_none_or(|ports| ports.contains(&known.port))
    }
}

fn rows(filter: &Filter<'_>, snapshot: &Snapshot) -> String {
    let args = filter.args;
    let (stale, mut shown): (Vec<&Known>, Vec<&Known>) = snapshot
        .ports
        .iter()
        .filter(|known| filter.passes(known))
        .partition(|known| known.state() == State::Stale);
    if args.all {
        shown.extend(&stale);
        shown.sort_unstable_by_key(|known| known.port);
    }

    if args.json.json {
        let rows: Vec<Value> = shown.iter().map(|known| row(known, snapshot)).collect();
        if args.watch {
            let time = SystemTime::now().duration_since(UNIX_EPOCH);
            let time = time.unwrap_or_default().as_secs();
            return json_line(&json!({ "time": time, "ports": rows }));
        }
        return json_text(&Value::from(rows));
    }
    let mut text = if !shown.is_empty() {
        table(&shown, snapshot)
    } else if filter.is_set() {
        "no port that matches the options is leased or reserved\n".to_owned()
    } else {
        "no port is leased\n".to_owned()
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

fn table(shown: &[&Known], snapshot: &Snapshot) -> String {
    let has_names = shown.iter().any(|known| known.reservation.is_some());
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let mut header = vec!["PORT", "STATE", "PID", "PROGRAM", "AGE", "LABEL"];
    if has_names {
        header.extend(["NAME", "ROOT"]);
    }
    table.set_header(header);
    for known in shown {
        let entry = known.entry.as_ref();
        let owner = entry.and_then(|entry| entry.owner.as_ref());
        // Text written by other users must not control the terminal.
        let text = |text: Option<&str>| text.unwrap_or_default().escape_debug().to_string();
        // Show only the process that has the port now. If the holder has ended and its heir cannot be
        // seen, show none. A reserved port's last holder no longer has it.
        let (pid, program) = match (known.state(), entry) {
            (State::Inherited, Some(entry)) => (
                entry.heir.as_ref().map(|heir| heir.pid),
                entry.heir.as_ref().map(|heir| heir.program.clone()),
            ),
            (State::Reserved, _) | (_, None) => (None, None),
            (_, Some(entry)) => (owner.map(Owner::pid), program(entry)),
        };
        let owner = owner.filter(|_| known.state() != State::Reserved);
        let mut row = vec![
            known.port.to_string(),
            state(known, snapshot.servers.get(&known.port)),
            pid.map(|pid| pid.to_string()).unwrap_or_default(),
            text(program.as_deref()),
            owner.and_then(since).unwrap_or_default(),
            text(owner.and_then(Owner::label)),
        ];
        if has_names {
            let reservation = known.reservation.as_ref();
            let root = reservation.map(|it| it.root.to_string_lossy());
            row.push(text(reservation.map(|it| match it.state {
                // Not a possible name.
                ReservationState::Unreadable => "(unreadable)",
                _ => &*it.name,
            })));
            row.push(text(root.as_deref()));
        }
        table.add_row(row);
    }
    let lines = table.lines().map(|line| format!("{}\n", line.trim()));
    lines.collect()
}

/// Describes the state of a port.
fn state(known: &Known, server: Option<&Server>) -> String {
    let reservation = known.reservation.as_ref().map(|it| it.state);
    // The port may be leased without the name, and `stop` does not end the holder.
    let gone = match reservation {
        Some(ReservationState::RootGone) => ", root gone",
        _ => "",
    };
    match (known.state(), server) {
        (State::Held, server) => format!("leased, {}{gone}", served(server)),
        (State::Inherited, server) => format!("inherited, {}{gone}", served(server)),
        (State::Delegated, server) => format!("delegated, {}{gone}", served(server)),
        (State::Unknown, Some(_)) => "unknown, bound".to_owned(),
        (State::Unknown, None) => "unknown".to_owned(),
        (State::Reserved, Some(server)) => format!("reserved, served by {server}"),
        (State::Reserved, None) => match reservation {
            Some(ReservationState::RootNotFound) => "reserved, root not found".to_owned(),
            Some(ReservationState::Unreadable) => "reserved, name unreadable".to_owned(),
            _ => "reserved".to_owned(),
        },
        (State::Stale, Some(server)) => format!("not leased, {}", served(Some(server))),
        (State::Stale, None) => match reservation {
            Some(ReservationState::RootGone) => "stale file, root gone".to_owned(),
            _ => "stale file".to_owned(),
        },
    }
}

/// Describes whether a port is bound, and by which process if not by the holder.
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

/// Returns the program that the process in the record runs now, or else the one that it ran when it
/// leased the port.
fn program(entry: &PortEntry) -> Option<String> {
    let now = entry.process().map(|process| process.program);
    let then = entry.owner.as_ref().and_then(Owner::program);
    now.filter(|now| !now.is_empty())
        .or_else(|| then.map(str::to_owned))
}

/// Returns the age of the lease, such as `3m 12s`.
fn since(owner: &Owner) -> Option<String> {
    let age = SystemTime::now()
        .duration_since(owner.since()?)
        .unwrap_or_default();
    let seconds = Duration::from_secs(age.as_secs());
    Some(humantime::format_duration(seconds).to_string())
}

fn row(known: &Known, snapshot: &Snapshot) -> Value {
    let entry = known.entry.as_ref();
    let state = match known.state() {
        State::Held => "leased",
        State::Inherited => "inherited",
        State::Delegated => "delegated",
        State::Unknown => "unknown",
        State::Reserved => "reserved",
        State::Stale => "stale",
    };
    let entry = entry.filter(|_| known.state() != State::Reserved);
    let owner = entry.and_then(|entry| entry.owner.as_ref());
    let since = owner.and_then(Owner::since);
    let since = since.and_then(|since| since.duration_since(UNIX_EPOCH).ok());
    let server = snapshot.servers.get(&known.port);
    let program = match known.state() {
        State::Inherited => owner.and_then(Owner::program).map(str::to_owned),
        _ => entry.and_then(program),
    };
    let process = entry.and_then(PortEntry::process);
    let mut row = json!({
        "port": known.port,
        "state": state,
        "bound": server.is_some(),
        "pid": owner.map(Owner::pid),
        "program": program,
        "cwd": process.and_then(|process| sys::current_dir(process.pid)),
        "since": since.map(|since| since.as_secs()),
        "label": owner.and_then(Owner::label),
        "heir": entry.and_then(heir),
    });
    add_server(&mut row, server);
    add_reservation(&mut row, known.reservation.as_ref());
    row
}
