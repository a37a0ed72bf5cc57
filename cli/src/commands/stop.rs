//! `stop`: ends the processes that have leased the ports reserved for names.

use std::{
    collections::HashSet,
    fmt::Write as _,
    io,
    path::Path,
    process, thread,
    time::{Duration, Instant},
};

use portlock::{EntryState, LockDir, PortEntry, Reservation};

use crate::{
    args::Stop,
    exit_status::ExitStatus,
    failure::Failure,
    lock_dir::lock_dir,
    names::{counts, existing, root},
    output::{holder, print},
    sys,
};

/// The pause between checks for processes that are still running.
const INTERVAL: Duration = Duration::from_millis(20);

/// Number of checks after which an heir that is not stopped is reported. One that is ending may
/// keep the lease for a moment without being seen.
const HEIR_CHECKS: u32 = 10;

/// How long a killed process may take to end.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) fn stop(args: &Stop, dir: Option<&Path>) -> Result<ExitStatus, Failure> {
    if !sys::CAN_STOP {
        return Err(failed(sys::STOP_HELP));
    }
    let locks = lock_dir(dir)?;
    let named_root = args.root.root.as_deref();
    let mut reservations: Vec<Reservation> = if args.all {
        locks.reservations_in(root(named_root)?)?
    } else {
        let names = args.names.iter();
        names
            .map(|name| existing(&locks, name, named_root))
            .collect::<Result<_, _>>()?
    };
    reservations.retain(counts);
    let mut stop = Stopping::new(&locks, reservations);
    stop.find_holders()?;
    stop.find_descendants()?;
    match args.dry_run {
        true => stop.find_later_heirs()?,
        false => stop.end_all(args.timeout)?,
    }
    print(&stop.text(args.dry_run))?;
    let left = stop.left(args.dry_run);
    if left.is_empty() {
        return Ok(ExitStatus::Success);
    }
    Err(Failure::new(ExitStatus::TimedOut, left.join("; ")))
}

fn failed(message: impl Into<String>) -> Failure {
    Failure::new(ExitStatus::Failed, message)
}

fn cannot_see(error: io::Error) -> Failure {
    failed(format!("cannot list processes: {error}"))
}

/// A process to stop.
struct Target {
    process: sys::Process,
    program: String,
    /// The index of the reservation whose port it has leased.
    of: usize,
    is_asked: bool,
    has_ended: bool,
    error: Option<io::Error>,
}

impl Target {
    fn text(&self) -> String {
        let pid = self.process.pid();
        format!("pid {pid} ({})", self.program.escape_debug())
    }
}

struct Stopping<'a> {
    locks: &'a LockDir,
    reservations: Vec<Reservation>,
    /// For each reservation, the process that has its port but is not stopped, and why.
    spared: Vec<Option<String>>,
    /// The same for processes that inherited the lease. They are found again on each check, because
    /// for a moment no process may be seen to have it.
    spared_heirs: Vec<Option<String>>,
    targets: Vec<Target>,
    /// This process and its ancestors.
    ancestors: HashSet<u32>,
}

impl<'a> Stopping<'a> {
    fn new(locks: &'a LockDir, reservations: Vec<Reservation>) -> Self {
        Self {
            locks,
            spared: vec![None; reservations.len()],
            spared_heirs: vec![None; reservations.len()],
            reservations,
            targets: Vec::new(),
            ancestors: HashSet::new(),
        }
    }

    /// Finds the processes that have leased the ports.
    fn find_holders(&mut self) -> Result<(), Failure> {
        self.ancestors = ancestors(&sys::processes().map_err(cannot_see)?);
        for of in 0..self.reservations.len() {
            if let Some(entry) = self.entry(of)?
                && entry.is_leased()
                && entry.state != EntryState::Inherited
            {
                self.spared[of] = self.find_holder(of, &entry)?;
            }
        }
        self.find_heirs()
    }

    /// Finds the processes that inherited a lease from one that has ended. It ignores newer leases,
    /// such as that of a restarted server.
    fn find_heirs(&mut self) -> Result<(), Failure> {
        for of in 0..self.reservations.len() {
            let entry = self.entry(of)?;
            self.spared_heirs[of] = match entry {
                Some(entry) if entry.state == EntryState::Inherited => {
                    self.find_holder(of, &entry)?
                }
                _ => None,
            };
        }
        Ok(())
    }

    /// Finds the processes that will be the heirs when the holder has ended. For a dry run only:
    /// another process can have a lock file open for a moment.
    fn find_later_heirs(&mut self) -> Result<(), Failure> {
        let listed = sys::processes().map_err(cannot_see)?;
        for of in 0..self.reservations.len() {
            let is_held = |entry: PortEntry| entry.state == EntryState::Held;
            if self.spared(of).is_some() || !self.entry(of)?.is_some_and(is_held) {
                continue;
            }
            let port = self.reservations[of].port;
            let file = self.locks.path().join(port.to_string());
            for listed in &listed {
                if listed.pid == 1
                    || self.ancestors.contains(&listed.pid)
                    || self.targets.iter().any(|target| target.is(listed.pid))
                    || !sys::has_open(listed.pid, &file)
                {
                    continue;
                }
                if let Some(process) = sys::Process::open(listed.pid).map_err(cannot_see)? {
                    self.add(process, listed.program.clone(), of);
                }
            }
        }
        self.find_descendants()
    }

    /// Returns the entry of a reserved port, if the reservation is in its lock file. If only its copy
    /// is left, another caller may have leased the port.
    fn entry(&self, of: usize) -> portlock::Result<Option<PortEntry>> {
        let reservation = &self.reservations[of];
        let entry = self.locks.entry(reservation.port)?;
        let is_same = |other: &Reservation| {
            (&other.name, &other.root) == (&reservation.name, &reservation.root)
        };
        Ok(entry.filter(|entry| entry.reservation.as_ref().is_some_and(is_same)))
    }

    /// Adds the process that has a port to the targets, or returns why it is not stopped.
    fn find_holder(&mut self, of: usize, entry: &PortEntry) -> Result<Option<String>, Failure> {
        let by = holder(entry).unwrap_or_else(|| "a process that cannot be seen".to_owned());
        // There, another user can write any pid of this user into a record.
        if self.locks.is_shared() {
            return Ok(Some(format!(
                "{by}; other users can write to lock directory {}, so its records do not prove whose \
                 processes these are (end them yourself)",
                self.locks.path().display()
            )));
        }
        let Some(found) = entry.process() else {
            return Ok(Some(format!("{by}, which cannot be seen from here")));
        };
        // It adopts orphans that have nothing to do with the lease.
        if found.pid == 1 {
            return Ok(Some(format!("{by}, which is process 1")));
        }
        if self.ancestors.contains(&found.pid) {
            return Ok(Some(format!("{by}, an ancestor of this portlock")));
        }
        if self.targets.iter().any(|target| target.is(found.pid)) {
            return Ok(None);
        }
        let process = match sys::Process::open(found.pid) {
            Ok(Some(process)) => process,
            // The process has just ended.
            Ok(None) => return Ok(None),
            Err(error) => return Ok(Some(format!("{by}, which cannot be stopped: {error}"))),
        };
        // The record, read again, still names this pid, and the process opened above has not ended
        // since. So the pid was not reused, and that process has the lease.
        let again = self.entry(of)?.and_then(|entry| entry.process());
        let is_still = again.is_some_and(|again| again.pid == found.pid);
        if is_still && !process.has_ended().map_err(cannot_see)? {
            self.add(process, found.program, of);
        }
        Ok(None)
    }

    fn add(&mut self, process: sys::Process, program: String, of: usize) {
        self.targets.push(Target {
            process,
            program,
            of,
            is_asked: false,
            has_ended: false,
            error: None,
        });
    }

    /// Finds the descendants of the targets that have not ended.
    fn find_descendants(&mut self) -> Result<(), Failure> {
        loop {
            let listed = sys::processes().map_err(cannot_see)?;
            let before = self.targets.len();
            for listed in listed {
                self.find_child(listed).map_err(cannot_see)?;
            }
            if self.targets.len() == before {
                return Ok(());
            }
        }
    }

    fn find_child(&mut self, listed: sys::Listed) -> io::Result<()> {
        let is_parent = |target: &&Target| target.is(listed.parent);
        let Some(parent) = self.targets.iter().find(is_parent) else {
            return Ok(());
        };
        // An ancestor can be a child of a target only if the target has adopted it.
        if self.ancestors.contains(&listed.pid)
            || self.targets.iter().any(|target| target.is(listed.pid))
        {
            return Ok(());
        }
        let Some(process) = sys::Process::open(listed.pid)? else {
            return Ok(());
        };
        if process.is_child_of(&parent.process)? {
            let of = parent.of;
            self.add(process, listed.program, of);
        }
        Ok(())
    }

    /// Asks all targets to end and, after the timeout, kills those that have not.
    fn end_all(&mut self, timeout: Duration) -> Result<(), Failure> {
        let start = Instant::now();
        let mut heir_checks = 0;
        loop {
            let is_late = start.elapsed() >= timeout;
            for target in self.targets.iter_mut().filter(|target| !target.has_ended) {
                let sent = match (is_late, target.is_asked) {
                    (true, _) => target.process.kill(),
                    (false, false) => target.process.ask_to_end(),
                    (false, true) => continue,
                };
                target.is_asked = true;
                target.error = sent.err();
            }
            for target in &mut self.targets {
                target.has_ended = target.process.has_ended().map_err(cannot_see)?;
            }
            // A target may have started another process, or left its lease to one, meanwhile.
            let before = self.targets.len();
            self.find_heirs()?;
            self.find_descendants()?;
            let have_ended =
                self.targets.len() == before && self.targets.iter().all(|target| target.has_ended);
            let has_heir = self.spared_heirs.iter().any(Option::is_some);
            heir_checks += u32::from(have_ended && has_heir);
            let is_over = have_ended && (!has_heir || heir_checks >= HEIR_CHECKS);
            if is_over || start.elapsed() >= timeout.saturating_add(KILL_TIMEOUT) {
                return Ok(());
            }
            thread::sleep(INTERVAL);
        }
    }

    fn spared(&self, of: usize) -> Option<&String> {
        self.spared[of].as_ref().or(self.spared_heirs[of].as_ref())
    }

    /// Describes what was stopped or, in a dry run, would be.
    fn text(&self, is_dry_run: bool) -> String {
        let verb = if is_dry_run { "would stop" } else { "stopped" };
        let mut text = String::new();
        for (of, reservation) in self.reservations.iter().enumerate() {
            let is_shown = |target: &&Target| target.of == of && (is_dry_run || target.has_ended);
            let targets: Vec<String> = self
                .targets
                .iter()
                .filter(is_shown)
                .map(Target::text)
                .collect();
            let what = match (&targets[..], self.spared(of)) {
                ([], None) => "nothing to stop".to_owned(),
                ([], Some(_)) => "not stopped".to_owned(),
                (targets, _) => format!("{verb} {}", targets.join(", ")),
            };
            let (name, port) = (&reservation.name, reservation.port);
            let _ = writeln!(text, "{name} {port}: {what}");
        }
        text
    }

    /// Describes what is still running or, in a dry run, would be.
    fn left(&self, is_dry_run: bool) -> Vec<String> {
        let mut left = Vec::new();
        for (of, reservation) in self.reservations.iter().enumerate() {
            if let Some(spared) = self.spared(of) {
                let (name, port) = (&reservation.name, reservation.port);
                left.push(format!("{name} {port} is leased by {spared}"));
            }
        }
        for target in self.targets.iter().filter(|_| !is_dry_run) {
            if target.has_ended {
                continue;
            }
            let name = &self.reservations[target.of].name;
            let why = match &target.error {
                Some(error) => format!(": {error}"),
                None => String::new(),
            };
            left.push(format!("{} of {name} has not ended{why}", target.text()));
        }
        left
    }
}

impl Target {
    /// Returns whether it is the process that has `pid` now.
    fn is(&self, pid: u32) -> bool {
        self.process.pid() == pid && !self.process.has_ended().unwrap_or(true)
    }
}

/// Returns this process and its ancestors.
fn ancestors(all: &[sys::Listed]) -> HashSet<u32> {
    let mut ancestors = HashSet::new();
    let mut next = Some(process::id());
    while let Some(pid) = next {
        if !ancestors.insert(pid) {
            break;
        }
        let listed = all.iter().find(|listed| listed.pid == pid);
        next = listed
            .map(|listed| listed.parent)
            .filter(|&parent| parent != 0);
    }
    ancestors
}
