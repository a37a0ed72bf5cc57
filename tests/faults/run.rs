//! One run with a fault, and whether its outcome is right.

use std::{
    fmt, fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use portlock::ErrorKind;
use portlock_testkit::{Block, Peer};
use rustix::io::Errno;

use crate::{
    expected::{Expect::*, expected},
    scenario::{
        OTHER, PORTS,
        Scenario::{self, *},
        Stage, root_of,
    },
    trace::{Call, Object::*, Paths, Tracer, calls},
};

/// Number of repeated interruptions: more than the retries of any call.
const MANY: usize = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fault {
    /// SIGKILL on entering the call, which is then not made: the kernel checks for a fatal signal
    /// after notifying the tracer (`ptrace_report_syscall_entry` in linux/ptrace.h). Being killed
    /// *after* a call is the same as being killed before the next one, including the marker after
    /// the last call. So the test covers every state that a killed process can leave behind.
    Kill,
    Error(&'static str),
    /// EINTR from here on.
    Interrupted,
}

impl Fault {
    fn inject(self, call: &Call) -> String {
        let Call { name, nth, .. } = call;
        match self {
            Self::Kill => format!("{name}:signal=SIGKILL:when={nth}"),
            Self::Error(error) => format!("{name}:error={error}:when={nth}"),
            Self::Interrupted => format!("{name}:error=EINTR:when={nth}..{}", nth + MANY - 1),
        }
    }

    fn errno(self) -> i32 {
        let errno = match self {
            Self::Error("EMFILE") => Errno::MFILE,
            Self::Error("ENFILE") => Errno::NFILE,
            Self::Error("ENOSPC") => Errno::NOSPC,
            Self::Error("EIO") => Errno::IO,
            Self::Error("EACCES") => Errno::ACCESS,
            Self::Error("EROFS") => Errno::ROFS,
            Self::Error("ENOLCK") => Errno::NOLCK,
            Self::Error("ENOMEM") => Errno::NOMEM,
            Self::Error("EINTR") | Self::Interrupted => Errno::INTR,
            _ => unreachable!("one of ERRORS"),
        };
        errno.raw_os_error()
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kill => "KILL",
            Self::Error(name) => name,
            Self::Interrupted => "EINTR…",
        })
    }
}

/// The child's report about one part of the cycle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done(String),
    Failed {
        kind: String,
        errno: i32,
        message: String,
    },
}

impl Outcome {
    fn parse(line: &str) -> Self {
        let mut parts = line.splitn(4, '|');
        let mut part = || parts.next().unwrap_or_default().to_owned();
        if part() == "done" {
            return Self::Done(part());
        }
        Self::Failed {
            kind: part(),
            errno: part().parse().expect("a number"),
            message: part(),
        }
    }

    fn is_done(&self) -> bool {
        matches!(self, Self::Done(_))
    }

    fn is_error(&self, expected: ErrorKind) -> bool {
        matches!(self, Self::Failed { kind, .. } if *kind == format!("{expected:?}"))
    }

    /// Returns whether the outcome is the same, except for the ports.
    fn is_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Failed { kind: one, .. }, Self::Failed { kind: other, .. }) => one == other,
            (Self::Done(one), Self::Done(other)) if one.parse::<u16>().is_ok() => {
                other.parse::<u16>().is_ok()
            }
            _ => self == other,
        }
    }
}

/// The outcome of a run.
pub(crate) struct Run {
    calls: Vec<Call>,
    /// The outcomes of leasing and of releasing, as far as the child lived to report them.
    outcomes: Vec<Outcome>,
    /// Number of descriptors that the child had open before the cycle, after it, and after it had
    /// leased without a fault; `None` if it did not live that long.
    descriptors: Option<[usize; 3]>,
    /// Problems that are independent of the fault.
    pub(crate) problems: Vec<String>,
}

impl Run {
    /// Returns the calls of the cycle, with the marker at the end of each part, except calls that
    /// change nothing outside the process and that it does not control: without memory the
    /// allocator ends the process, and in debug builds std checks each descriptor that it closes.
    pub(crate) fn cycle(&self) -> Vec<&Call> {
        let is_ours = |call: &&Call| {
            call.part.is_some()
                && !matches!(
                    &*call.label,
                    "brk" | "madvise" | "mmap" | "mprotect" | "mremap" | "munmap" | "fcntl F_GETFD"
                )
        };
        self.calls.iter().filter(is_ours).collect()
    }

    /// Returns where the fault hit the cycle.
    pub(crate) fn place_of(&self, fault: Fault) -> Option<usize> {
        let cycle = self.cycle();
        if fault != Fault::Kill {
            cycle.iter().position(|call| call.injected)
        } else if self.descriptors.is_none() {
            cycle.len().checked_sub(1)
        } else {
            None
        }
    }

    /// Returns whether a port was unavailable because a child that was being spawned still had a
    /// socket of an earlier probe, for longer than the call waits.
    pub(crate) fn was_disturbed(&self) -> bool {
        self.outcomes.iter().any(|outcome| {
            matches!(outcome, Outcome::Failed { message, .. } if message.contains("SO_REUSEADDR")
                && outcome.is_error(ErrorKind::Exhausted))
        })
    }
}

/// Runs a scenario, with a fault if there is one. The error says why strace cannot attach.
pub(crate) fn run(
    scenario: Scenario,
    block: &Block,
    fault: Option<(Fault, &Call)>,
) -> Result<Run, String> {
    let mut stage = Stage::new(scenario, block);
    let mut problems = Vec::new();
    let mut child = stage.start();
    let thread = child.hear();
    let number = |child: &Peer| child.hear().parse().expect("a number");
    let before = number(&child);

    let blocker = Arc::clone(&stage.blocker);
    let inject = fault.map(|(fault, call)| fault.inject(call));
    let mut rescans = 0;
    let tracer = Tracer::attach(&thread, inject, move |line| {
        if !line.starts_with("flock(") || !line.contains("EAGAIN") {
            return;
        }
        let is_line = line.contains("/.waiting.");
        rescans += usize::from(!is_line);
        // It has seen that another process is the leader; or it has rescanned with its watch set
        // up, and the port is still leased.
        if scenario == Behind && is_line || matches!(scenario, Behind | Wait) && rescans == 2 {
            blocker.lock().expect("no panic").take();
        }
    })?;
    child.say("go");
    let hear_outcome = |child: &Peer| child.hear_last().map(|line| Outcome::parse(&line));
    let mut outcomes = Vec::from_iter(hear_outcome(&child));
    if let [Outcome::Done(got)] = &outcomes[..] {
        if let Ok(port) = got.parse() {
            problems.extend(stage.what_is_wrong_with_lease_of(port));
        }
        child.say("on");
        outcomes.extend(hear_outcome(&child));
    }

    let given_back = matches!(&outcomes[..], [Outcome::Done(_), Outcome::Done(_)]);
    let lives = given_back || outcomes.iter().any(|outcome| !outcome.is_done());
    let lines = if lives {
        tracer.detach()
    } else {
        tracer.wait()
    };
    let paths = Paths {
        dir: &stage.dir_of_child(),
        state: &stage.state_dir(),
        root: &root_of(&stage.dir),
    };
    let calls = calls(&lines, &paths);
    let mut descriptors = None;
    if lives {
        let mut free = stage.free();
        // Leasing by the name would reserve it again.
        let is_removed = scenario == Unreserve && given_back;
        if calls.iter().any(leaves_a_socket) || scenario == Delegate && given_back || is_removed {
            free.clear();
        }
        // Only other callers have to handle an unfinished default directory.
        let is_free = scenario != First && !scenario.is_of_name();
        for &port in free.iter().filter(|_| is_free) {
            if let Err(error) = stage.lease(port) {
                problems.push(format!("while the process lives, {port} is lost: {error}"));
            }
        }
        let mut ports: String = free.iter().map(|port| format!("{port} ")).collect();
        ports.push('|');
        if stage.other.is_some() {
            ports += &(stage.first + OTHER).to_string();
        }
        child.say(&ports);
        descriptors = Some([before, number(&child), number(&child)]);
        problems.extend(child.hear().split("; ").skip(1).map(str::to_owned));
    }
    child.kill();

    let is_delegation = |call: &Call| call.arguments.contains("\"delegated ") && call.succeeded;
    let delegated = given_back || !lives && calls.iter().any(is_delegation);
    let is_removed = scenario == Unreserve && given_back;
    problems.extend(what_is_wrong_afterwards(&mut stage, delegated, is_removed));
    // A process that is killed, or that cannot remove the file, may leave a file that was being
    // created.
    let is_removal = |call: &Call| call.injected && call.name.starts_with("unlink");
    if lives && scenario != Clean && !calls.iter().any(is_removal) {
        let strays = stage.strays();
        problems.extend(strays.iter().map(|stray| format!("left behind: {stray:?}")));
    }
    Ok(Run {
        calls,
        outcomes,
        descriptors,
        problems,
    })
}

/// strace makes a call fail by skipping it, but on Linux close(2) closes the descriptor whatever it
/// returns. Here it stays open, and the probe bound, as long as the process lives.
pub(crate) fn leaves_a_socket(call: &Call) -> bool {
    call.injected && call.name == "close" && call.object == Socket
}

/// Returns violations of what must hold once the process is gone.
fn what_is_wrong_afterwards(stage: &mut Stage, delegated: bool, is_removed: bool) -> Vec<String> {
    let mut problems = Vec::new();
    if stage.other.is_some() && !stage.is_locked(stage.first + OTHER) {
        problems.push("another process's lease has ended".to_owned());
    }
    if stage.scenario == Delegate {
        match stage.lease(stage.first) {
            Ok(_) if delegated => problems.push("it was delegated, and is free".to_owned()),
            Err(error) if !delegated => {
                problems.push(format!("it was not delegated, and is not free: {error}"));
            }
            _ => {}
        }
    }
    stage.clear();
    if stage.scenario == First {
        // Other callers can use the default directory, finished or not.
        let mut child = stage.start();
        let (_thread, _descriptors) = (child.hear(), child.hear());
        child.say("go");
        let outcome = Outcome::parse(&child.hear());
        if !outcome.is_done() {
            problems.push(format!("afterwards: {outcome:?}"));
        }
    }
    if stage.scenario.is_of_name() {
        problems.extend(stage.what_is_wrong_with_name(is_removed));
    } else {
        for port in stage.ports() {
            if let Err(error) = stage.lease(port) {
                problems.push(format!("{port} is lost: {error}"));
            }
        }
    }
    let (root, dir) = (&stage.root, &stage.dir);
    for path in walk(root.path()) {
        let is_of_name = stage.scenario.is_of_name()
            && (path.starts_with(stage.state_dir()) || path == root_of(dir));
        let is_known = path == *dir || Some(&*path) == dir.parent() || is_of_name;
        if !(is_known || is_as_it_should_be(&path, stage)) {
            problems.push(format!("left behind: {}", path.display()));
        }
    }
    let mode = fs::metadata(dir).expect("made").mode() & 0o7777;
    if mode != stage.mode() {
        problems.push(format!("the directory has mode {mode:04o}"));
    }
    problems
}

/// Returns whether it is a lock file of the scenario or a wait queue, or one that was being
/// created.
fn is_as_it_should_be(path: &Path, stage: &Stage) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let metadata = fs::symlink_metadata(path).expect("our own");
    let mode = if stage.scenario == Shared {
        0o666
    } else {
        0o600
    };
    let ports = stage.first..stage.first + PORTS;
    let is_of_name = stage.scenario.is_of_name();
    let is_mark = is_of_name && name.starts_with(".restored.");
    let is_lock_file = name.parse().is_ok_and(|port| ports.contains(&port) || is_of_name && port == 0)
        && metadata.nlink() == 1
        // Without the sticky bit if that was refused.
        && metadata.mode() & 0o6777 == mode;
    let is_line = name.starts_with(".waiting.") && metadata.mode() & 0o7777 == mode;
    let (is_file, is_fifo) = (metadata.is_file(), metadata.file_type().is_fifo());
    path.parent() == Some(&stage.dir)
        && (is_file && (is_lock_file || is_mark)
            || is_fifo && is_line
            || (is_file || is_fifo) && name.starts_with(".new."))
}

/// Returns everything below `dir`.
fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).expect("our own").flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            paths.extend(walk(&entry.path()));
        }
        paths.push(entry.path());
    }
    paths
}

/// Returns the letter for the outcome of a fault at `call`, or what is wrong with it.
pub(crate) fn judge(
    scenario: Scenario,
    run: &Run,
    clean: &Run,
    call: &Call,
    fault: Fault,
) -> Result<char, String> {
    let outcomes = &run.outcomes;
    if let Some(problem) = run.problems.first() {
        return Err(format!("{problem} ({outcomes:?})"));
    }
    if fault == Fault::Kill {
        return Ok('k');
    }
    let (Some([before, after, last]), Some([clean_before, _, clean_last])) =
        (run.descriptors, clean.descriptors)
    else {
        return Err(format!("the process ended after {outcomes:?}"));
    };
    // A descriptor that could not be closed stays open; see above.
    let growth = clean_last - clean_before + usize::from(call.name == "close");
    if after.max(last) > before + growth {
        return Err(format!("{before} descriptors became {after}, then {last}"));
    }
    let injected = run.calls.iter().filter(|call| call.injected).count();
    // A timed wait is repeated only for the remaining time.
    let waits = ["futex", "clock_nanosleep", "poll", "ppoll"];
    let is_wait = waits.contains(&&*call.label) || call.label.starts_with("epoll_");
    if injected >= MANY && !is_wait {
        return Err(format!("it was made {injected} times"));
    }
    let part = call.part.expect("in the cycle");
    let Some(outcome) = outcomes.get(part) else {
        return Err(format!("the only outcome was {outcomes:?}"));
    };
    let Some(expect) = expected(scenario, call, fault) else {
        return Err(format!("it is not listed; the outcome was {outcomes:?}"));
    };
    let is_same = outcomes.len() == clean.outcomes.len()
        && outcomes
            .iter()
            .zip(&clean.outcomes)
            .all(|(a, b)| a.is_as(b));
    let is_before_same = outcomes[..part].iter().all(Outcome::is_done);
    let fails = |expected: ErrorKind, operations: &[&str]| {
        let Outcome::Failed { errno, message, .. } = outcome else {
            return false;
        };
        let is_named = |operation: &&str| message.starts_with(&format!("cannot {operation} "));
        let names_object = match &call.object {
            Socket => message.contains("]:") || message.contains("port "),
            Process if expected == ErrorKind::Process => message.contains("process "),
            _ => message.contains('/'),
        };
        outcome.is_error(expected)
            && *errno == fault.errno()
            && operations.iter().any(is_named)
            && names_object
    };
    let is_missed = [ErrorKind::PermissionDenied, ErrorKind::Exhausted]
        .iter()
        .any(|&kind| outcome.is_error(kind))
        || outcome.is_done() && matches!(
                scenario,
                Held | Bound | Wait | Behind | Clean | Leases | ServerPorts | Reserve
            )
        // A second bind is made only if the first was permitted.
        || outcome.is_error(ErrorKind::Probe) && scenario == Bound;
    match expect {
        Works | WorksOrFails(..) if is_same => Ok('o'),
        Fails(kind, operations) | WorksOrFails(kind, operations)
            if is_before_same && fails(kind, operations) =>
        {
            Ok(match kind {
                ErrorKind::LockDir => 'D',
                ErrorKind::Lock => 'L',
                ErrorKind::Probe => 'P',
                ErrorKind::Process => 'R',
                ErrorKind::InvalidName => 'N',
                _ => 'U',
            })
        }
        Missed if is_before_same && is_missed => Ok('m'),
        _ => Err(format!(
            "{outcomes:?} instead of {expect:?} (hit was {call})"
        )),
    }
}
