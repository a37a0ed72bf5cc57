//! Finds the process that will use a picked port.
//!
//! The parent often only passes our output on: the subshell of `$( … )`, timeout(1), env(1), `sh -c`.
//! A lease for it would end as soon as the number has been printed, so the search skips every such
//! process. All evidence comes from /proc. Without it, such a process cannot be distinguished from
//! the caller, and a wrong guess would end the lease early.

use std::{fmt, fs, io, os::unix::fs::MetadataExt as _, process::id};

use procfs::{
    ProcError,
    process::{Process as Entry, Stat},
};
use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};

use super::super::Caller;

/// Maximum number of processes to skip, and of attempts to read one. Real chains have a handful.
const LIMIT: usize = 1000;
/// The inode number of the initial pid namespace (PROC_PID_INIT_INO in the kernel's
/// include/linux/proc_ns.h).
const INITIAL_NAMESPACE: u64 = 0xEFFF_FFFC;
/// Set by fork and cleared by execve (PF_FORKNOEXEC in the kernel's include/linux/sched.h).
const IS_COPY: u32 = 0x40;

/// Finds the process that will use the port.
pub(crate) fn caller() -> Result<Caller, String> {
    let found = check_proc()
        .and_then(|()| is_initial_namespace())
        .and_then(|is_initial| owner(id(), is_initial, inspect));
    found.map_err(|why| why.to_string())
}

/// The facts about a process on which the search is based.
#[derive(Clone, Debug)]
struct Process {
    parent: u32,
    session: u32,
    start: u64,
    /// Whether it was forked and has not executed a program since.
    is_copy: bool,
    output: Output,
}

/// The standard output of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    /// A pipe, a FIFO or a socket, by device and inode.
    Channel(u64, u64),
    /// A file, a terminal, or closed.
    Other,
    /// Not visible to this user.
    Hidden,
}

/// Why the process that will use the port cannot be determined.
#[derive(Debug)]
enum Why {
    /// /proc is missing, or of another pid namespace.
    NoProc(&'static str),
    Unreadable(io::Error),
    /// The parent of this process is not visible in this pid namespace.
    Outside(u32),
    /// The parent of this process is the system's init.
    Init(u32),
    /// The parent of this process has ended.
    Orphan(u32),
    Hidden(u32),
    TooMany,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |pid: u32| match pid {
            _ if pid == id() => "portlock".to_owned(),
            _ => format!("process {pid}"),
        };
        match *self {
            Self::NoProc(why) => f.write_str(why),
            Self::Unreadable(ref error) => write!(f, "cannot read /proc: {error}"),
            Self::Outside(pid) => write!(
                f,
                "{} was started from outside this pid namespace",
                name(pid)
            ),
            Self::Init(pid) => {
                write!(
                    f,
                    "the parent of {} is process 1, the system's init",
                    name(pid)
                )
            }
            Self::Orphan(pid) => write!(f, "the process that started {} has ended", name(pid)),
            Self::Hidden(pid) => write!(f, "process {pid} cannot be inspected"),
            Self::TooMany => write!(f, "more than {LIMIT} processes only pass the output on"),
        }
    }
}

/// Climbs from `own` to the process that will use what `own` prints.
///
/// A skipped process never becomes the owner: it ends before the number is used.
fn owner(
    own: u32,
    is_initial: bool,
    inspect: impl Fn(u32) -> Result<Option<Process>, Why>,
) -> Result<Caller, Why> {
    let parent_of = |pid, process: &Process| parent_of(pid, process, is_initial, &inspect);
    let this = inspect(own)?.ok_or(Why::Hidden(own))?;
    let (mut pid, mut process) = (own, this.clone());
    for passed in 0..LIMIT {
        let (candidate, seen) = parent_of(pid, &process)?;
        // A parent that cannot be inspected is more likely a service that calls portlock itself than
        // a process that only passes the output on. Above a skipped process, neither is more likely.
        let or_parent = |why, is_certain| match passed {
            0 => Ok(Caller {
                pid: candidate,
                is_certain,
            }),
            _ => Err(why),
        };
        let seen = match seen {
            Some(seen) if seen.output != Output::Hidden => seen,
            _ => return or_parent(Why::Hidden(candidate), false),
        };
        let passes_on = match seen.output {
            // It has the same output as we do, so another process reads it.
            Output::Channel(..) if seen.output == this.output => true,
            // A subshell of a command substitution or of a pipeline, as in
            // `$(portlock pick | head -1)`. A copy with the output of its parent is a
            // background subshell or a forked worker, and a caller like any other, unless it is one of
            // several copies in such a subshell, as in `$( ( portlock pick | head -1 ) )`.
            Output::Channel(..) if seen.is_copy => match parent_of(candidate, &seen) {
                Ok((parent, Some(above))) if above.output != Output::Hidden => {
                    let (mut pid, mut above, mut levels) = (parent, above, 0);
                    while above.output == seen.output && above.is_copy && levels < LIMIT {
                        match parent_of(pid, &above) {
                            Ok((parent, Some(next))) => (pid, above) = (parent, next),
                            _ => break,
                        }
                        levels += 1;
                    }
                    above.output != seen.output && above.output != Output::Hidden
                }
                Ok((parent, _)) => return or_parent(Why::Hidden(parent), true),
                Err(why @ (Why::Outside(_) | Why::Init(_) | Why::Orphan(_))) => {
                    return or_parent(why, true);
                }
                Err(why) => return Err(why),
            },
            _ => false,
        };
        if !passes_on {
            return Ok(Caller {
                pid: candidate,
                is_certain: true,
            });
        }
        (pid, process) = (candidate, seen);
    }
    Err(Why::TooMany)
}

/// Returns the parent of a process, and what /proc shows of it.
fn parent_of(
    pid: u32,
    process: &Process,
    is_initial: bool,
    inspect: impl Fn(u32) -> Result<Option<Process>, Why>,
) -> Result<(u32, Option<Process>), Why> {
    let parent = process.parent;
    if parent == 0 {
        return Err(Why::Outside(pid));
    }
    if parent == 1 && is_initial {
        return Err(Why::Init(pid));
    }
    let seen = inspect(parent)?;
    // The parent's pid may have been reused since the child was read. It was not if the child still has
    // this parent: a child whose parent ends gets another one.
    let is_still_its =
        inspect(pid)?.is_some_and(|again| again.start == process.start && again.parent == parent);
    // Orphans are adopted by a process that knows nothing about the port. It is usually in another
    // session. A real parent never is, unless the child has started its own session.
    let is_adopted = seen
        .as_ref()
        .is_some_and(|seen| seen.session != process.session && process.session != pid);
    if !is_still_its || is_adopted {
        return Err(Why::Orphan(pid));
    }
    Ok((parent, seen))
}

/// Reads what /proc shows of a process. Returns `None` if it has ended, or if /proc hides other users'
/// processes (hidepid in proc(5)).
fn inspect(pid: u32) -> Result<Option<Process>, Why> {
    let read = || {
        i32::try_from(pid)
            .map_err(|_| ProcError::NotFound(None))
            .and_then(Entry::new)
            .and_then(|entry| entry.stat())
    };
    // If another thread than the first calls exec, it replaces the first one (`de_thread` in the
    // kernel's fs/exec.c). For a moment the process shows no threads and no parent, so read again.
    let mut readings = (0..LIMIT).map(|_| read());
    let is_whole = |stat: &Result<Stat, _>| stat.as_ref().map_or(true, |it| it.num_threads > 0);
    let stat = readings.find(is_whole).unwrap_or_else(read);
    let stat = match stat {
        Ok(stat) => stat,
        Err(ProcError::NotFound(_) | ProcError::PermissionDenied(_)) => return Ok(None),
        Err(ProcError::Io(error, _)) => return Err(Why::Unreadable(error)),
        Err(error) => return Err(Why::Unreadable(io::Error::other(error))),
    };
    let number = |number| u32::try_from(number).unwrap_or(0);
    Ok(Some(Process {
        parent: number(stat.ppid),
        session: number(stat.session),
        start: stat.starttime,
        is_copy: stat.flags & IS_COPY != 0,
        output: output(pid)?,
    }))
}

fn output(pid: u32) -> Result<Output, Why> {
    let path = format!("/proc/{pid}/fd/1");
    // From the cache, so that an unresponsive file server does not block this call.
    let flags = AtFlags::STATX_DONT_SYNC;
    match statx(CWD, path, flags, StatxFlags::TYPE | StatxFlags::INO) {
        Ok(found) => Ok(match FileType::from_raw_mode(found.stx_mode.into()) {
            FileType::Fifo | FileType::Socket => {
                let device = u64::from(found.stx_dev_major) << 32 | u64::from(found.stx_dev_minor);
                Output::Channel(device, found.stx_ino)
            }
            _ => Output::Other,
        }),
        Err(error) => match io::Error::from(error) {
            error if error.kind() == io::ErrorKind::NotFound => Ok(Output::Other),
            error if error.kind() == io::ErrorKind::PermissionDenied => Ok(Output::Hidden),
            error => Err(Why::Unreadable(error)),
        },
    }
}

/// Checks that the pids in /proc are those of this process's own pid namespace.
fn check_proc() -> Result<(), Why> {
    let status = fs::read_to_string("/proc/self/status").map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            Why::NoProc("/proc does not show this process (mount -t proc proc /proc)")
        }
        _ => Why::Unreadable(error),
    })?;
    // The pid in the namespace of /proc and in each namespace below, down to our own
    // (pid_namespaces(7)). Kernels without namespaces show only the pid.
    let line = |name| status.lines().find_map(|line| line.strip_prefix(name));
    let pids = line("NSpid:").or_else(|| line("Pid:")).unwrap_or_default();
    let mut pids = pids.split_ascii_whitespace().map(str::parse::<u32>);
    match (pids.next(), pids.next()) {
        (Some(Ok(pid)), None) if pid == id() => Ok(()),
        _ => Err(Why::NoProc(
            "/proc is that of another pid namespace (mount -t proc proc /proc)",
        )),
    }
}

fn is_initial_namespace() -> Result<bool, Why> {
    match fs::metadata("/proc/self/ns/pid") {
        Ok(namespace) => Ok(namespace.ino() == INITIAL_NAMESPACE),
        // The kernel has no namespaces, so this is the only one.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(Why::Unreadable(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, collections::HashMap};

    use super::*;

    const OWN: u32 = 90;
    const OURS: Output = Output::Channel(1, 1);
    const ANOTHER: Output = Output::Channel(1, 2);
    const FILE: Output = Output::Other;

    /// Processes of one session. The first is portlock, and each is the child of the next.
    #[derive(Clone)]
    struct Chain {
        pids: Vec<u32>,
        processes: HashMap<u32, Process>,
        is_initial: bool,
    }

    impl Chain {
        /// Creates a chain with pids that descend from `OWN`. The parent of the last one is pid 1, which
        /// is not visible.
        fn new(outputs: &[Output]) -> Self {
            let pids: Vec<u32> = (0..=outputs.len()).map(|n| OWN - n as u32 * 10).collect();
            let process = |(n, &output): (usize, &Output)| {
                let parent = if n + 1 == outputs.len() {
                    1
                } else {
                    pids[n + 1]
                };
                let process = Process {
                    parent,
                    session: 5,
                    start: u64::from(pids[n]),
                    is_copy: false,
                    output,
                };
                (pids[n], process)
            };
            let processes = outputs.iter().enumerate().map(process).collect();
            Self {
                pids,
                processes,
                is_initial: true,
            }
        }

        fn set(mut self, n: usize, set: impl Fn(&mut Process)) -> Self {
            set(self.processes.get_mut(&self.pids[n]).expect("in the chain"));
            self
        }

        fn copy(self, n: usize) -> Self {
            self.set(n, |process| process.is_copy = true)
        }

        /// Hides a process.
        fn unseen(mut self, n: usize) -> Self {
            self.processes.remove(&self.pids[n]);
            self
        }

        fn owner(&self) -> Result<Caller, Why> {
            owner(OWN, self.is_initial, |pid| {
                Ok(self.processes.get(&pid).cloned())
            })
        }

        #[track_caller]
        fn finds(&self, n: usize) {
            let caller = self.owner().expect("it can be determined");
            assert_eq!((caller.pid, caller.is_certain), (self.pids[n], true));
        }

        #[track_caller]
        fn finds_uncertainly(&self, n: usize) {
            let caller = self.owner().expect("it is the parent");
            assert_eq!((caller.pid, caller.is_certain), (self.pids[n], false));
        }

        /// Returns the kind of failure, without its wording.
        #[track_caller]
        fn fails(&self) -> String {
            let why = self.owner().expect_err("it cannot be determined");
            assert!(!why.to_string().is_empty());
            format!("{why:?}")
        }
    }

    #[test]
    fn a_parent_with_another_output_is_the_owner() {
        for output in [FILE, ANOTHER] {
            Chain::new(&[OURS, output, FILE]).finds(1);
        }
        for output in [FILE, OURS] {
            Chain::new(&[FILE, output, FILE]).finds(1);
        }
    }

    #[test]
    fn processes_with_our_pipe_are_skipped() {
        for output in [FILE, ANOTHER] {
            Chain::new(&[OURS, OURS, output, FILE]).finds(2);
            Chain::new(&[OURS, OURS, OURS, OURS, output, FILE]).finds(4);
            Chain::new(&[OURS, OURS, output, FILE]).copy(1).finds(2);
        }
    }

    #[test]
    fn a_forked_copy_with_its_own_pipe_is_skipped() {
        Chain::new(&[OURS, ANOTHER, FILE, FILE]).copy(1).finds(2);
        Chain::new(&[OURS, OURS, ANOTHER, OURS, FILE])
            .copy(2)
            .finds(4);
        let other = Output::Channel(2, 1);
        let nested = Chain::new(&[OURS, ANOTHER, other, FILE, FILE]);
        nested.clone().copy(1).copy(2).finds(3);
        // The second one has executed a program.
        nested.copy(1).finds(2);
    }

    #[test]
    fn forked_copies_within_one_with_its_own_pipe_are_skipped() {
        let nested = Chain::new(&[OURS, ANOTHER, ANOTHER, ANOTHER, FILE, FILE]);
        nested.clone().copy(1).copy(2).copy(3).finds(4);
        // The outermost one has executed a program, and the first two inherited their pipe from it.
        nested.copy(1).copy(2).finds(1);
    }

    #[test]
    fn a_forked_copy_with_the_output_of_its_parent_is_the_owner() {
        Chain::new(&[OURS, ANOTHER, ANOTHER, FILE]).copy(1).finds(1);
        Chain::new(&[OURS, FILE, ANOTHER, FILE]).copy(1).finds(1);
        Chain::new(&[OURS, OURS, ANOTHER, ANOTHER, FILE])
            .copy(2)
            .finds(2);
    }

    #[test]
    fn init_is_never_the_owner_but_process_1_of_a_container_is() {
        for outputs in [&[OURS][..], &[OURS, OURS], &[FILE]] {
            assert!(Chain::new(outputs).fails().starts_with("Init"));
        }
        let container = |outputs| {
            let mut chain = Chain::new(outputs);
            let first = Process {
                parent: 0,
                session: 5,
                start: 1,
                is_copy: false,
                output: FILE,
            };
            chain.processes.insert(1, first);
            *chain.pids.last_mut().expect("one more") = 1;
            chain.is_initial = false;
            chain
        };
        container(&[OURS]).finds(1);
        container(&[OURS, OURS]).finds(2);
        let passes_on = |process: &mut Process| process.output = OURS;
        assert_eq!(container(&[OURS]).set(1, passes_on).fails(), "Outside(1)");
    }

    #[test]
    fn a_parent_in_another_namespace_is_not_the_owner() {
        let outside = |process: &mut Process| process.parent = 0;
        assert_eq!(Chain::new(&[FILE]).set(0, outside).fails(), "Outside(90)");
        let passed = Chain::new(&[OURS, OURS]).set(1, outside);
        assert_eq!(passed.fails(), "Outside(80)");
    }

    #[test]
    fn a_process_that_cannot_be_inspected_is_the_owner_only_if_it_is_the_parent() {
        let hidden = Output::Hidden;
        for output in [OURS, FILE] {
            Chain::new(&[output, hidden, FILE]).finds_uncertainly(1);
            Chain::new(&[output, FILE, FILE])
                .unseen(1)
                .finds_uncertainly(1);
        }
        assert_eq!(
            Chain::new(&[OURS, OURS, hidden, FILE]).fails(),
            "Hidden(70)"
        );
        assert_eq!(
            Chain::new(&[OURS, OURS, FILE]).unseen(2).fails(),
            "Hidden(70)"
        );
    }

    #[test]
    fn orphans_have_no_owner() {
        let elsewhere = |process: &mut Process| process.session = 7;
        let direct = Chain::new(&[FILE, FILE, FILE]);
        assert_eq!(direct.clone().set(1, elsewhere).fails(), "Orphan(90)");
        let passed = Chain::new(&[OURS, OURS, FILE, FILE]);
        assert_eq!(passed.clone().set(2, elsewhere).fails(), "Orphan(80)");
        // setsid(1), sshd and script(1) start session leaders.
        let leads = |process: &mut Process| process.session = OWN;
        direct.set(0, leads).finds(1);
        let leads = |process: &mut Process| process.session = 80;
        passed.set(0, leads).set(1, leads).finds(2);
    }

    #[test]
    fn a_forked_copy_whose_parent_cannot_be_compared_is_the_owner_only_if_it_is_the_parent() {
        let elsewhere = |process: &mut Process| process.session = 7;
        let outside = |process: &mut Process| process.parent = 0;
        let hide = |process: &mut Process| process.output = Output::Hidden;
        let parent = Chain::new(&[OURS, ANOTHER, FILE, FILE]).copy(1);
        let above = Chain::new(&[OURS, OURS, ANOTHER, FILE, FILE]).copy(2);
        for (set, n, why) in [
            (&elsewhere as &dyn Fn(&mut Process), 1, "Orphan(70)"),
            (&outside, 0, "Outside(70)"),
            (&hide, 1, "Hidden(60)"),
        ] {
            parent.clone().set(1 + n, set).finds(1);
            assert_eq!(above.clone().set(2 + n, set).fails(), why);
        }
        parent.unseen(2).finds(1);
        assert_eq!(above.unseen(3).fails(), "Hidden(60)");
        Chain::new(&[OURS, ANOTHER]).copy(1).finds(1);
        let above = Chain::new(&[OURS, OURS, ANOTHER]).copy(2);
        assert_eq!(above.fails(), "Init(70)");
    }

    #[test]
    fn a_parent_that_ends_during_the_search_is_not_the_owner() {
        let chain = Chain::new(&[OURS, OURS, FILE, FILE]);
        let adopted = |process: &mut Process| process.parent = 60;
        let reused = |process: &mut Process| process.start += 1;
        for (n, changed) in [
            (0, chain.clone().set(0, adopted)),
            (1, chain.clone().set(1, adopted)),
            (1, chain.clone().set(1, reused)),
            (1, chain.clone().unseen(1)),
        ] {
            // Between reading the parent's pid and reading the parent.
            let parent = chain.pids[n + 1];
            let has_changed = Cell::new(false);
            let inspect = |pid: u32| {
                has_changed.set(has_changed.get() || pid == parent);
                let now = if has_changed.get() { &changed } else { &chain };
                Ok(now.processes.get(&pid).cloned())
            };
            let why = owner(OWN, true, inspect).expect_err("it has ended");
            assert!(
                matches!(why, Why::Orphan(pid) if pid == chain.pids[n]),
                "{why:?}"
            );
        }
    }

    #[test]
    fn a_search_through_a_cycle_of_parents_ends() {
        let circle = |process: &mut Process| process.parent = OWN;
        let chain = Chain::new(&[OURS, OURS, OURS]).set(2, circle);
        assert_eq!(chain.fails(), "TooMany");
    }

    #[test]
    fn an_unreadable_proc_is_an_error() {
        let chain = Chain::new(&[OURS, ANOTHER, FILE, FILE]).copy(1);
        for broken in [OWN, chain.pids[1], chain.pids[2]] {
            let inspect = |pid: u32| match pid {
                _ if pid == broken => Err(Why::Unreadable(io::Error::other("EMFILE"))),
                _ => Ok(chain.processes.get(&pid).cloned()),
            };
            let why = owner(OWN, true, inspect).expect_err("it cannot be read");
            assert!(matches!(why, Why::Unreadable(_)), "{why:?}");
        }
    }

    #[test]
    fn this_process_is_read_correctly() {
        check_proc().expect("/proc is mounted");
        let this = inspect(id()).expect("/proc").expect("it lives");
        assert_eq!(this.parent, std::os::unix::process::parent_id());
        assert!(!this.is_copy);
        assert_ne!(this.output, Output::Hidden);
        // Larger than any pid on Linux (PID_MAX_LIMIT).
        assert!(inspect(1 << 23).expect("/proc").is_none());
        assert!(inspect(u32::MAX).expect("/proc").is_none());
    }
}
