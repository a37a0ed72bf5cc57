//! `check`: reports whether ports are free, leased or bound, and who has them.

use std::{fmt::Write as _, path::Path};

use portlock::{
    BelongsTo, Builder, EntryState, FreePort, LockDir, Owner, PortCounts, PortEntry, Process,
    Reservation, ReservationState, Server,
};
use serde_json::{Value, json};

use crate::{
    args::{Check, Target},
    exit_status::ExitStatus,
    failure::{Failure, is_busy},
    lock_dir::lock_dir,
    names::{add_reservation, describe, existing, of_port},
    output::{add_server, heir, holder, print, print_json},
    sys,
};

/// Checks ports. "Free" means that a port could be leased.
pub(crate) fn check(args: &Check, dir: Option<&Path>) -> Result<ExitStatus, Failure> {
    let locks = lock_dir(dir)?;
    let (mut status, mut text, mut rows) = (ExitStatus::Success, String::new(), Vec::new());
    for target in &args.targets {
        let found = Found::find(target, args.root.root.as_deref(), &locks, dir)?;
        status = status.max(found.status);
        let _ = writeln!(text, "{} {}", found.port, found.text());
        rows.push(found.row());
    }
    if args.json.json {
        print_json(&Value::from(rows))?;
    } else {
        print(&text)?;
    }
    Ok(status)
}

const BOUND: &str = "bound";
const LEASED: &str = "leased";
const RESERVED: &str = "reserved";

/// What was found out about one port.
struct Found {
    port: u16,
    state: &'static str,
    status: ExitStatus,
    in_time_wait: bool,
    /// Set if the port is leased.
    entry: Option<PortEntry>,
    server: Option<Server>,
    reservation: Option<Reservation>,
}

impl Found {
    fn find(
        target: &Target,
        root: Option<&Path>,
        locks: &LockDir,
        dir: Option<&Path>,
    ) -> Result<Self, Failure> {
        let (port, reservation) = match target {
            Target::Port(port) => (*port, of_port(locks, *port)?),
            Target::Name(name) => {
                let reservation = existing(locks, name, root)?;
                (reservation.port, Some(reservation))
            }
        };
        let by_name = matches!(target, Target::Name(_));
        let builder = FreePort::builder();
        // Without the name, a check ends at the reservation, and does not find out whether the port is bound.
        let mut builder = match &reservation {
            Some(it) if by_name || it.state == ReservationState::Present => {
                builder.name(&it.name).root(&it.root)
            }
            _ => builder.ports(port),
        };
        if let Some(dir) = dir {
            builder = builder.lock_dir(dir);
        }
        let strict = busy(&builder.clone().reuse_address(false))?;
        let in_time_wait = strict.is_some_and(|why| why.lingering > 0) && busy(&builder)?.is_none();
        let is_reserved = strict.is_some_and(|why| why.reserved > 0 && why.leased == 0);
        let (mut state, mut status) = match in_time_wait {
            true => state(None),
            false => state(strict),
        };
        let entry = locks.entry(port)?;
        let server = match status {
            ExitStatus::Success => None,
            _ => locks.server(port)?,
        };
        if is_reserved {
            // A port that was picked by name is leased by the record alone.
            let is_leased = entry.as_ref().is_some_and(PortEntry::is_leased);
            (state, status) = match server {
                _ if is_leased => (LEASED, ExitStatus::Leased),
                Some(_) => (BOUND, ExitStatus::Bound),
                None => (RESERVED, ExitStatus::Leased),
            };
        } else if reservation.is_some() && status == ExitStatus::Success {
            state = RESERVED;
            if !by_name {
                status = ExitStatus::Leased;
            }
        }
        Ok(Self {
            port,
            state,
            status,
            in_time_wait,
            entry: entry.filter(|_| state == LEASED),
            server,
            reservation,
        })
    }

    /// Returns the process that has the port: the holder of the lease or, without a lease, the server.
    fn process(&self) -> Option<Process> {
        match &self.entry {
            Some(entry) => entry.process(),
            None => self.server.as_ref()?.process.clone(),
        }
    }

    fn user(&self) -> Option<String> {
        let of_process = self.process().and_then(|process| process.user_id);
        let of_socket = || self.server.as_ref()?.user_id;
        let id = match self.entry {
            Some(_) => of_process,
            None => of_process.or_else(of_socket),
        };
        id.map(sys::user_name)
    }

    fn text(&self) -> String {
        let mut text = self.state.to_owned();
        if let (RESERVED, Some(reservation)) = (self.state, &self.reservation) {
            let _ = write!(text, " {}", describe(reservation));
        }
        if self.in_time_wait {
            text.push_str(", in TIME_WAIT");
        }
        let by = match &self.entry {
            Some(entry) => holder(entry),
            None => self.process().map(|process| process.to_string()),
        };
        if let Some(by) = by {
            let bound = match self.status {
                ExitStatus::Bound if self.state != BOUND => ", bound",
                _ => "",
            };
            let _ = write!(text, "{bound} by {by}");
        }
        if let Some(user) = self.user() {
            let _ = write!(text, ", user {}", user.escape_debug());
        }
        let server = self.server.as_ref();
        if let Some((belongs_to, server)) = server.and_then(|it| Some((it.belongs_to?, it))) {
            let _ = match belongs_to {
                BelongsTo::Holder => write!(text, "; served by {server}"),
                BelongsTo::Other => write!(text, "; served by {server}, not by the holder"),
                _ => write!(text, "; served by {server}, which may not be the holder's"),
            };
        }
        if let Some(reservation) = self.reservation.as_ref().filter(|_| self.state != RESERVED) {
            let _ = write!(text, "; reserved {}", describe(reservation));
        }
        text
    }

    fn row(&self) -> Value {
        let owner = self.entry.as_ref().and_then(|entry| entry.owner.as_ref());
        let process = self.process();
        let is_inherited = |entry: &PortEntry| entry.state == EntryState::Inherited;
        // The process that inherited the lease is shown as the heir.
        let recorded = self.entry.as_ref().is_some_and(is_inherited) || process.is_none();
        let (pid, program) = match &process {
            Some(process) if !recorded => (Some(process.pid), Some(process.program.clone())),
            _ => (
                owner.map(Owner::pid),
                owner.and_then(Owner::program).map(str::to_owned),
            ),
        };
        let here = process.as_ref().map(|process| process.pid);
        let mut row = json!({
            "port": self.port,
            "state": self.state,
            "time_wait": self.in_time_wait,
            "pid": pid,
            "program": program,
            "user": self.user(),
            "command": here.and_then(sys::command_line),
            "cwd": here.and_then(sys::current_dir),
            "label": owner.and_then(Owner::label),
            "heir": self.entry.as_ref().and_then(heir),
        });
        add_server(&mut row, self.server.as_ref());
        add_reservation(&mut row, self.reservation.as_ref());
        row
    }
}

/// Returns why the port could not be leased now, or `None` if it could.
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
        Some(busy) if busy.leased > 0 => (LEASED, ExitStatus::Leased),
        Some(busy) if busy.not_permitted > 0 => ("not permitted", ExitStatus::Bound),
        Some(busy) if busy.lingering > 0 => ("bound, and not listening", ExitStatus::Bound),
        Some(_) => (BOUND, ExitStatus::Bound),
    }
}
