//! `wait`: waits until ports have their servers, or are free.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use portlock::{
    BelongsTo, Error, ErrorKind, FreePort, LockDir, PortEntry, Reservation, Server,
    wait_until_listening,
};
use serde_json::{Value, json};

use crate::{
    args::{Target, Wait},
    exit_status::ExitStatus,
    failure::Failure,
    lock_dir::lock_dir,
    names::{self, existing, find, not_reserved, of_port},
    notice::{announce_waits, announced},
    output::{add_server, holder, note, print_json},
};

/// The pause between checks of whether a reserved port is leased, or a name has a port.
const INTERVAL: Duration = Duration::from_millis(50);

pub(crate) fn wait(args: &Wait, dir: Option<&Path>) -> Result<ExitStatus, Failure> {
    let waiting = Waiting {
        args,
        dir,
        start: Instant::now(),
    };
    let (mut failures, mut rows) = (Vec::new(), Vec::new());
    let mut status = ExitStatus::TimedOut;
    for target in &args.targets {
        let mut row = json!({ "port": null, "ready": false });
        let waited = waiting.wait(target, &mut row);
        row["ready"] = waited.is_ok().into();
        match &waited {
            Ok(server) => add_server(&mut row, server.as_ref()),
            Err(Missing::Error(error)) => add_server(&mut row, error.server()),
            Err(_) => add_server(&mut row, None),
        }
        rows.push(row);
        match waited {
            Ok(server) => {
                if let Some(server) = server {
                    note_unknown(&server);
                }
            }
            // The other ports are still checked, so that one run reports all that are not ready.
            Err(Missing::TimedOut(message)) => failures.push(message),
            Err(Missing::Error(error))
                if matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Exhausted) =>
            {
                failures.push(error.to_string());
            }
            Err(Missing::Error(error)) if error.kind() == ErrorKind::OtherServer => {
                status = ExitStatus::Bound;
                failures.push(with_hint(&error, args));
            }
            Err(Missing::Error(error)) => return Err(error.into()),
            Err(Missing::Failure(failure)) => return Err(failure),
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

/// Why a port is not ready.
enum Missing {
    TimedOut(String),
    Error(Error),
    Failure(Failure),
}

impl From<Error> for Missing {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<Failure> for Missing {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

/// Waits for several ports, one after the other, with one timeout for all.
struct Waiting<'a> {
    args: &'a Wait,
    dir: Option<&'a Path>,
    start: Instant,
}

impl Waiting<'_> {
    fn left(&self) -> Duration {
        self.args.timeout.saturating_sub(self.start.elapsed())
    }

    /// Sleeps for a moment. Returns `false` if the timeout has expired.
    fn sleep(&self) -> bool {
        let left = self.left();
        thread::sleep(INTERVAL.min(left));
        !left.is_zero()
    }

    fn wait(&self, target: &Target, row: &mut Value) -> Result<Option<Server>, Missing> {
        if let Target::Name(name) = target {
            row["name"] = (&**name).into();
        }
        let port = match target {
            Target::Port(port) => *port,
            Target::Name(name) => self.port_of(name)?,
        };
        row["port"] = port.into();
        match self.args.free {
            true => Ok(self.wait_until_free(target).map(|()| None)?),
            false => self.wait_for_server(port, matches!(target, Target::Name(_))),
        }
    }

    fn root(&self) -> Option<&Path> {
        self.args.root.root.as_deref()
    }

    /// Returns the port reserved for a name. Waits until it is reserved, because a process that is
    /// started at the same time may be about to reserve it.
    fn port_of(&self, name: &str) -> Result<u16, Missing> {
        let dir = lock_dir(self.dir)?;
        if self.args.free {
            return Ok(existing(&dir, name, self.root())?.port);
        }
        let missing = not_reserved(name, self.root())?;
        let wait = || {
            loop {
                // A default directory may not exist before the first lease.
                let dir = lock_dir(self.dir)?;
                if let Some(reservation) = find(&dir, name, self.root())? {
                    return Ok(reservation.port);
                }
                if !self.sleep() {
                    return Err(Missing::TimedOut(format!(
                        "{missing}: waited for {:.1} s",
                        self.start.elapsed().as_secs_f64()
                    )));
                }
            }
        };
        announced(wait, || missing.clone())
    }

    fn wait_for_server(&self, port: u16, is_named: bool) -> Result<Option<Server>, Missing> {
        let args = self.args;
        let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let hosts = args.host.as_ref().map_or(&loopback[..], |host| &host.0);
        let addresses: Vec<SocketAddr> = hosts
            .iter()
            .map(|&host| SocketAddr::new(host, port))
            .collect();
        if args.any {
            let wait = || wait_until_listening(&addresses[..], self.left());
            announced(wait, || format!("for any server on port {port}"))?;
            // Only the JSON output names the server. Without it, --any needs no lock directory.
            return match args.json.json {
                true => Ok(lock_dir(self.dir)?.server(port)?),
                false => Ok(None),
            };
        }
        let dir = lock_dir(self.dir)?;
        let reservation = match args.pid {
            Some(_) => None,
            None => of_port(&dir, port)?,
        };
        // Asked for by its number, a port is its holder's, also if that has leased it without the name.
        let is_leased_otherwise = |reservation: &Reservation| {
            let entry = dir.entry(port)?.filter(PortEntry::is_leased);
            let is_other = |entry: PortEntry| entry.reservation.as_ref() != Some(reservation);
            Ok::<_, Error>(!is_named && entry.is_some_and(is_other))
        };
        let reservation = match reservation {
            Some(reservation) if is_leased_otherwise(&reservation)? => None,
            reservation => reservation,
        };
        let wait = || match &reservation {
            Some(reservation) => self.wait_for_holder(reservation, &addresses, &dir),
            None => Ok(dir.wait_for_server(&addresses[..], args.pid, self.left())?),
        };
        announced(wait, || describe(port, args, &dir, reservation.as_ref())).map(Some)
    }

    /// Waits until a reserved port is leased and has the server of the lease's holder.
    fn wait_for_holder(
        &self,
        reservation: &Reservation,
        addresses: &[SocketAddr],
        dir: &LockDir,
    ) -> Result<Server, Missing> {
        let port = reservation.port;
        loop {
            // If only the copy of the reservation is left, another caller may have leased the port.
            let is_its_lease = |entry: &PortEntry| {
                entry.is_leased() && entry.reservation.as_ref() == Some(reservation)
            };
            if dir.entry(port)?.as_ref().is_some_and(is_its_lease) {
                let server = dir.wait_for_server(addresses, None, self.left())?;
                // The lease may have ended meanwhile.
                if server.belongs_to.is_some() {
                    return Ok(server);
                }
            }
            if self.sleep() {
                continue;
            }
            let mut message = format!(
                "port {port}, which is reserved {}, is not leased after {:.1} s",
                names::describe(reservation),
                self.start.elapsed().as_secs_f64()
            );
            if let Some(server) = dir.server(port)? {
                message += &format!(" (it is served by {server} without a lease)");
            }
            return Err(Missing::TimedOut(message));
        }
    }

    fn wait_until_free(&self, target: &Target) -> portlock::Result<()> {
        let mut builder = FreePort::builder().timeout(self.left());
        builder = match target {
            Target::Port(port) => builder.ports(*port),
            Target::Name(name) => builder.name(name),
        };
        if let Some(root) = self.root() {
            builder = builder.root(root);
        }
        for &host in self.args.host.iter().flat_map(|host| &host.0) {
            builder = builder.host(host);
        }
        if let Some(dir) = self.dir {
            builder = builder.lock_dir(dir);
        }
        announce_waits(builder).wait_until_free()
    }
}

/// Describes what is being waited for, and who has it.
fn describe(port: u16, args: &Wait, dir: &LockDir, reservation: Option<&Reservation>) -> String {
    if let Some(pid) = args.pid {
        return format!("for the server of process {pid} on port {port}");
    }
    let entry = dir.entry(port).ok().flatten().filter(PortEntry::is_leased);
    match (entry.map(|entry| holder(&entry)), reservation) {
        (Some(Some(holder)), _) => format!("for a server on port {port}, leased by {holder}"),
        (Some(None), _) => format!("for a server on port {port}, which is leased"),
        (None, Some(reservation)) => format!(
            "for a lease of port {port}, which is reserved {}, and its server",
            names::describe(reservation)
        ),
        (None, None) => format!("for a server on port {port}, which is not leased"),
    }
}

/// Prints a note if it cannot be determined whose server it is.
fn note_unknown(server: &Server) {
    let why = match (server.belongs_to, &server.process) {
        (Some(BelongsTo::Unknown), None) => "its process cannot be seen".to_owned(),
        (Some(BelongsTo::Unknown), Some(process)) => {
            format!("{process} may have daemonized, or cannot be inspected")
        }
        _ => return,
    };
    note(&format!(
        "the server on port {} may belong to another process: {why}",
        server.port
    ));
}

fn with_hint(error: &Error, args: &Wait) -> String {
    let process = error.server().and_then(|server| server.process.as_ref());
    match (args.pid, process) {
        (None, Some(process)) => format!(
            "{error} (to wait for that process's server, use --pid {}; to accept any server, --any)",
            process.pid
        ),
        _ => format!("{error} (to accept any server, use --any)"),
    }
}
