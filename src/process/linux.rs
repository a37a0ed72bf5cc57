//! Processes on Linux, as kill(2) and /proc show them, and the proof that one has ended.
//!
//! A record names a process by its pid in the pid namespace of the process that *wrote* the
//! record. This proves that the process is gone:
//!
//! | the record's namespace | proof |
//! |---|---|
//! | unknown | none |
//! | this process's own | kill(2) reports `ESRCH`; or /proc shows the process dead, or with another start time |
//! | another one | a complete view of all processes that does not include it |
//!
//! /proc proves something only if it is *ours*: it may be mounted for another pid namespace,
//! where the same numbers are other processes. A view that may be incomplete proves nothing. Boot
//! ids prove nothing either, because a container can have its own boot id.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read as _},
    os::{unix::ffi::OsStrExt as _, unix::fs::MetadataExt as _},
    path::Path,
    process, str,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::SystemTime,
};

use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::{Evidence, Identity, NamedProcess, ProcessInfo, file_name};
use crate::mark;

pub(crate) use super::unix::{exists, no_such_process};

/// Where a process can be seen: its directory in /proc.
pub(crate) type Place = String;

/// Inode numbers of the namespaces that the system started with. They are fixed
/// (`PROC_PID_INIT_INO` and `PROC_TIME_INIT_INO` in the kernel's linux/proc_ns.h).
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;
const FIRST_TIME_NAMESPACE: u64 = 0xEFFF_FFFA;

/// Largest number of times to read an entry that shows a thread which is no longer the process's
/// first one.
///
/// When another thread calls exec, it replaces the first one and takes its pid (`de_thread` in
/// the kernel's fs/exec.c). A reader that has just found the old first thread then sees a zombie
/// without threads, with other pids. The next read finds the new one, or nothing if the process
/// has ended. The number is only a bound.
const TRIES: usize = 100;

/// Returns the identity of this process, and the error that kept the system from showing all of
/// it.
pub(crate) fn this() -> (NamedProcess, io::Result<()>) {
    let namespace = namespace("self", "pid");
    let start = start_of_self();
    let identity = Identity {
        pid: process::id(),
        start: *start.as_ref().unwrap_or(&None),
        namespace: *namespace.as_ref().unwrap_or(&None),
    };
    let program = std::env::args_os().next().unwrap_or_default();
    let outcome = namespace.and(start).map(drop);
    ((identity, file_name(&program)), outcome)
}

/// Returns the start time of this process, which is `self` in any /proc that shows it.
fn start_of_self() -> io::Result<Option<u64>> {
    let Some(stat) = if_shown(Stat::read("self"))? else {
        return Ok(None);
    };
    Ok(TimeOffset::read()?.map(|offset| offset.remove_from(stat.start)))
}

/// Returns the process that has `pid`, or `None` if there is none, or it has ended and was not
/// reaped.
///
/// `us` is this process. If it was once found in the first pid namespace, it is assumed to be
/// there still: a port server calls this for each of its clients.
pub(crate) fn find(pid: u32, us: &Identity) -> io::Result<Option<ProcessInfo>> {
    // In another namespace's /proc, the pid is another process.
    let is_ours = us.namespace == Some(FIRST_PID_NAMESPACE) || View::take()?.is_ours;
    if !is_ours {
        let unseen = ProcessInfo {
            start: None,
            program: Vec::new(),
        };
        return Ok(is_process(pid).then_some(unseen));
    }
    let mut program = None;
    let start = match if_shown(Stat::read(&pid.to_string()))? {
        // Opening a pidfd for every process would add 6 % to the cost of a grant.
        Some(stat) if !stat.leads && !is_process(pid) => return Ok(None),
        Some(stat) if stat.has_ended(&pid.to_string())? => return Ok(None),
        Some(stat) => {
            program = program_by_link(pid, &stat.name);
            TimeOffset::read_once()?.map(|offset| offset.remove_from(stat.start))
        }
        None if !is_process(pid) => return Ok(None),
        None => None,
    };
    let program = program.unwrap_or_else(|| program_of(pid));
    Ok(Some(ProcessInfo { start, program }))
}

/// Returns whether the number is the pid of a process, and not of a thread other than its first
/// one. kill(2) accepts such a number for the process, but no list of processes contains it, and
/// it ends with that thread.
fn is_process(pid: u32) -> bool {
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return false;
    };
    match pidfd_open(number, PidfdFlags::empty()) {
        Ok(_) => true,
        // No process; or a thread, reported as `ENOENT` since Linux 6.16 (pidfd_prepare in
        // kernel/fork.c).
        Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => false,
        // The call is not permitted or does not exist, or no descriptors are left.
        Err(_) => exists(pid),
    }
}

/// Returns an error if other readers of the record cannot prove the end of the process.
pub(crate) fn can_be_recorded(process: &Identity) -> Result<(), &'static str> {
    match process.namespace {
        Some(_) => Ok(()),
        None => Err(
            "/proc does not show this process's pid namespace, so no caller could \
             determine when the lease ends (mount -t proc proc /proc)",
        ),
    }
}

/// Returns what can be determined about a process from here, where this process is `us`.
pub(crate) fn evidence(process: &Identity, us: &Identity) -> io::Result<Evidence> {
    match (process.namespace, us.namespace) {
        (Some(its), Some(ours)) if its == ours => in_own_namespace(process),
        (Some(its), Some(_)) => in_another_namespace(process, its),
        _ => Ok(Evidence::Undetermined),
    }
}

fn in_own_namespace(process: &Identity) -> io::Result<Evidence> {
    // This is true whatever is mounted at /proc.
    if !exists(process.pid) {
        return Ok(Evidence::Gone);
    }
    let place = process.pid.to_string();
    let Some(stat) = if_shown(Stat::read(&place))? else {
        // It has ended in the meantime, or may not be inspected (hidepid in proc(5)).
        return Ok(match exists(process.pid) {
            true => Evidence::Alive(place),
            false => Evidence::Gone,
        });
    };
    // The usual case, which needs no proof and is the cheapest.
    let is_same = process.start.is_none_or(|start| start == stat.start);
    if is_same && !stat.is_ending {
        return Ok(Evidence::Alive(place));
    }
    let is_proven =
        View::take()?.is_ours && (stat.has_ended(&place)? || started_otherwise(process, &stat)?);
    Ok(match is_proven {
        true => Evidence::Gone,
        false => Evidence::Alive(place),
    })
}

/// Searches for a process of another pid namespace. The processes of a namespace below ours are
/// in our /proc, each with its pids in all namespaces from ours down to its own.
fn in_another_namespace(process: &Identity, namespace_of_record: u64) -> io::Result<Evidence> {
    let view = View::take()?;
    if !view.is_ours {
        return Ok(Evidence::Undetermined);
    }
    let Some(entries) = if_shown(fs::read_dir("/proc"))? else {
        return Ok(Evidence::Undetermined);
    };
    let mut is_complete = shows_every_process()?;
    // Number of levels by which the record's namespace is below ours, if one of its members can
    // be seen.
    let mut level = None;
    // Processes with the levels at which they have the pid of the record.
    let mut candidates = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let Some(name) = name.to_str().filter(|name| is_number(name)) else {
            continue;
        };
        let pids = match pids_of(name) {
            Ok(pids) => pids,
            Err(error) if is_end(&error) => continue,
            Err(error) => if_shown(Err(error))?,
        };
        let Some(pids) = pids else {
            is_complete = false;
            continue;
        };
        // The first pid is that of our own namespace.
        let innermost = pids.len() - 1;
        if innermost == 0 {
            continue;
        }
        let own = namespace(name, "pid")?;
        if own == Some(namespace_of_record) {
            level = Some(innermost);
        }
        let is_in_record = |&at: &usize| {
            let is_elsewhere = at == innermost && own.is_some_and(|own| own != namespace_of_record);
            pids[at] == process.pid && !is_elsewhere
        };
        let levels: Vec<usize> = (1..=innermost).filter(is_in_record).collect();
        if !levels.is_empty() {
            candidates.push((name.to_owned(), levels));
        }
    }
    for (name, levels) in candidates {
        if level.is_some_and(|level| !levels.contains(&level)) {
            continue;
        }
        let stat = match Stat::read(&name) {
            Ok(stat) => stat,
            Err(error) if is_end(&error) => continue,
            Err(error) => match if_shown(Err(error))? {
                Some(stat) => stat,
                // Without its start time, nothing shows that it is another process.
                None => return Ok(Evidence::Alive(name)),
            },
        };
        if !stat.has_ended(&name)? && !started_otherwise(process, &stat)? {
            return Ok(Evidence::Alive(name));
        }
    }
    // From a namespace that is not the first, only those below it are seen.
    let is_above = view.namespace == Some(FIRST_PID_NAMESPACE) || level.is_some();
    Ok(match is_complete && is_above {
        true => Evidence::Gone,
        false => Evidence::Undetermined,
    })
}

/// Returns whether the process with this entry in our /proc started at a different time than the
/// one in the record, and so is another process.
fn started_otherwise(process: &Identity, stat: &Stat) -> io::Result<bool> {
    let Some(start) = process.start else {
        return Ok(false);
    };
    // Both are rounded down to a tick, and one or both are shifted and rounded again.
    let differs = |offset: TimeOffset| offset.remove_from(stat.start).abs_diff(start) > 1;
    Ok(TimeOffset::read()?.is_some_and(differs))
}

/// Returns whether the process that can be seen there runs as this process's user.
pub(crate) fn is_of_this_user(place: &Place) -> io::Result<bool> {
    let process = if_shown(fs::metadata(format!("/proc/{place}")))?;
    let is_ours = process.is_some_and(|it| it.uid() == rustix::process::geteuid().as_raw());
    Ok(is_ours && View::take()?.is_ours)
}

/// The view that this process has of others.
#[derive(Clone, Copy)]
pub(crate) struct View {
    /// This process's own pid namespace.
    namespace: Option<u64>,
    /// Whether /proc shows processes by their pids in this namespace.
    pub(crate) is_ours: bool,
}

impl View {
    /// Read for each use: a mount can change, and the proof must be valid now.
    pub(crate) fn take() -> io::Result<Self> {
        let namespace = namespace("self", "pid")?;
        let is_ours = match namespace {
            // A /proc of a namespace below the first does not contain this process, and there is
            // none above.
            Some(FIRST_PID_NAMESPACE) => true,
            // The /proc of a namespace above ours has a pid for each level down to ours.
            Some(_) => if_shown(pids_of("self"))?
                .flatten()
                .is_some_and(|pids| pids.len() == 1),
            None => false,
        };
        Ok(Self { namespace, is_ours })
    }

    /// Returns whether the process has the same pid here as in its record.
    pub(crate) fn is_of(&self, process: &Identity) -> bool {
        self.is_ours && process.namespace.is_some() && process.namespace == self.namespace
    }

    /// Returns whether this /proc contains every process of the machine, if it hides none.
    pub(crate) fn is_of_first_namespace(&self) -> bool {
        self.is_ours && self.namespace == Some(FIRST_PID_NAMESPACE)
    }
}

/// Offset of this process's `CLOCK_BOOTTIME` from that of the first time namespace
/// (time_namespaces(7)). The kernel adds it to the start times that this process reads
/// (`do_task_stat` in fs/proc/array.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TimeOffset {
    ticks: i64,
}

impl TimeOffset {
    /// Returns the same as [`read`](Self::read), but assumes that a process that was once in the
    /// first time namespace is still there.
    fn read_once() -> io::Result<Option<Self>> {
        static IN_FIRST: AtomicU32 = AtomicU32::new(0);
        let mark = mark::current();
        if IN_FIRST.load(Ordering::Relaxed) == mark {
            return Ok(Some(Self { ticks: 0 }));
        }
        let offset = Self::read()?;
        if offset == Some(Self { ticks: 0 }) {
            IN_FIRST.store(mark, Ordering::Relaxed);
        }
        Ok(offset)
    }

    /// Returns `None` if it cannot be determined.
    fn read() -> io::Result<Option<Self>> {
        let none = Some(Self { ticks: 0 });
        let own = match fs::read_link("/proc/self/ns/time") {
            // A kernel without time namespaces.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(none),
            own => if_shown(own)?,
        };
        if own.as_deref().and_then(|own| inode_of(own, "time")) == Some(FIRST_TIME_NAMESPACE) {
            return Ok(none);
        }
        // The file has the offsets for future children (`proc_timens_show_offsets`).
        let of_children = if_shown(fs::read_link("/proc/self/ns/time_for_children"))?;
        if own.is_none() || own != of_children {
            return Ok(None);
        }
        let text = if_shown(fs::read_to_string("/proc/self/timens_offsets"))?;
        Ok(text.and_then(|text| Self::parse(&text, rustix::param::clock_ticks_per_second())))
    }

    /// Parses `boottime <seconds> <nanoseconds>`.
    fn parse(text: &str, ticks_per_second: u64) -> Option<Self> {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("boottime"))?;
        let mut words = line.split_ascii_whitespace();
        let seconds: i64 = words.next()?.parse().ok()?;
        let nanoseconds: i64 = words.next()?.parse().ok()?;
        let per_second = i64::try_from(ticks_per_second).ok().filter(|&n| n > 0)?;
        let ticks = seconds.checked_mul(per_second)?;
        let ticks = ticks.checked_add(nanoseconds.div_euclid(1_000_000_000 / per_second))?;
        Some(Self { ticks })
    }

    fn remove_from(self, start: u64) -> u64 {
        start.saturating_add_signed(self.ticks.saturating_neg())
    }
}

/// Returns whether no mount option hides processes from the readers of /proc (proc(5)).
fn shows_every_process() -> io::Result<bool> {
    let mounts = if_shown(fs::read_to_string("/proc/self/mountinfo"))?;
    Ok(mounts.is_some_and(|mounts| hides_no_process(&mounts)))
}

/// Returns the same for the text of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
fn hides_no_process(mounts: &str) -> bool {
    let mut at_proc = mounts.lines().filter_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, at) = (mount.next()?, mount.next()?);
        (at == "/proc").then_some((root, file_system))
    });
    // If several are mounted, one hides the others, and all of them must show every process.
    let shows_all = |(root, file_system): (&str, &str)| {
        let mut words = file_system.split(' ');
        let (kind, options) = (words.next(), words.nth(1).unwrap_or_default());
        let hides = |option: &str| match option.split_once('=') {
            Some(("hidepid", how)) => !matches!(how, "0" | "off"),
            Some(("subset", _)) => true,
            _ => false,
        };
        root == "/" && kind == Some("proc") && !options.split(',').any(hides)
    };
    at_proc
        .next()
        .is_some_and(|first| shows_all(first) && at_proc.all(shows_all))
}

/// Returns the pids of a process in the pid namespaces from that of /proc down to its own, or
/// `None` if they are not shown (before Linux 4.1). All users may read them (proc_pid_status(5)).
fn pids_of(process: &str) -> io::Result<Option<Vec<u32>>> {
    for _ in 0..TRIES {
        let status = fs::read(format!("/proc/{process}/status"))?;
        let Some(pids) = parse_pids(&status) else {
            return Ok(None);
        };
        // Otherwise it is the entry of a thread that was replaced: see `TRIES`.
        if process.parse().ok().is_none_or(|pid: u32| pids[0] == pid) {
            return Ok(Some(pids));
        }
    }
    Ok(None)
}

/// Parses the line `NSpid` of a process's `status`, which has at least one pid.
fn parse_pids(status: &[u8]) -> Option<Vec<u32>> {
    // The name, in the first line, has arbitrary bytes except a newline.
    let line = status
        .split(|&byte| byte == b'\n')
        .find_map(|line| line.strip_prefix(b"NSpid:"))?;
    let line = str::from_utf8(line).ok()?;
    let pids: Result<Vec<u32>, _> = line.split_ascii_whitespace().map(str::parse).collect();
    pids.ok().filter(|pids| !pids.is_empty())
}

/// Returns what /proc shows, or `None` if it shows nothing to this process, or nothing valid. It
/// is an error only if the system failed to show it.
pub(crate) fn if_shown<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(shown) => Ok(Some(shown)),
        Err(error) if is_end(&error) => Ok(None),
        Err(error) => match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidData => Ok(None),
            _ => Err(error),
        },
    }
}

/// Returns whether the error means that the process has ended: `ENOENT`, or `ESRCH` if it ended
/// during the read.
fn is_end(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || Errno::from_io_error(error) == Some(Errno::SRCH)
}

/// Returns what [`program_of`] returns for most processes, at half the cost: the name that the kernel
/// keeps of the process, if its program's file has that name too. Returns `None` for a script, and for a
/// process that has renamed itself.
fn program_by_link(pid: u32, name: &[u8]) -> Option<Vec<u8>> {
    /// The kernel keeps no more (`TASK_COMM_LEN`, with the NUL at the end).
    const MAX_LEN: usize = 15;
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let file = file_name(path.as_os_str());
    let file = file.strip_suffix(b" (deleted)").unwrap_or(&file);
    if name.is_empty() || !file.starts_with(name) {
        return None;
    }
    Some(if name.len() < MAX_LEN { name } else { file }.to_vec())
}

/// Returns the file name from the process's first argument, or the process's own name if it has
/// no arguments, as during exec.
pub(crate) fn program_of(pid: u32) -> Vec<u8> {
    // The end of a longer path would be missing, and with it the file name.
    let mut arguments = [0; 4096];
    let read =
        File::open(format!("/proc/{pid}/cmdline")).and_then(|mut file| file.read(&mut arguments));
    let arguments = &arguments[..read.unwrap_or(0)];
    let first = arguments
        .split(|&byte| byte == 0)
        .next()
        .unwrap_or_default();
    match file_name(OsStr::from_bytes(first)) {
        name if name.is_empty() => {
            let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim_ascii().to_vec()
        }
        name => name,
    }
}

fn is_number(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns the inode number of a namespace of a process, or `None` if this process may not see
/// it.
fn namespace(process: &str, kind: &str) -> io::Result<Option<u64>> {
    let link = if_shown(fs::read_link(format!("/proc/{process}/ns/{kind}")))?;
    Ok(link.as_deref().and_then(|link| inode_of(link, kind)))
}

/// Parses the number in `pid:[4026531836]`.
fn inode_of(link: &Path, kind: &str) -> Option<u64> {
    let number = link.to_str()?.strip_prefix(kind)?;
    number.strip_prefix(":[")?.strip_suffix(']')?.parse().ok()
}

/// Whether a process whose parent has ended is adopted, so that every process has a parent.
pub(crate) const ADOPTS: bool = true;

/// The origin of a process: its parent, and which processes may have adopted it since.
///
/// The pids are those of this /proc, which must be ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lineage {
    pid: u32,
    /// 0 if its parent is not in this pid namespace.
    pub(crate) parent: u32,
    start: u64,
    group: u32,
    session: u32,
}

impl Lineage {
    /// Returns `None` if there is no such process, it has ended, or it may not be seen.
    pub(crate) fn read(pid: u32) -> io::Result<Option<Self>> {
        let process = pid.to_string();
        Ok(match if_shown(Stat::read(&process))? {
            Some(stat) if !stat.has_ended(&process)? => Some(Self {
                pid,
                parent: stat.parent,
                start: stat.start,
                group: stat.group,
                session: stat.session,
            }),
            _ => None,
        })
    }

    /// Returns whether the process may be the parent of `child` according to their start times: a
    /// child is never older.
    pub(crate) fn is_no_younger_than(&self, child: &Self) -> bool {
        self.start <= child.start
    }

    /// Returns whether the process may have adopted `child`, its current child, instead of
    /// starting it.
    ///
    /// Process 1 adopts, and so does a subreaper (prctl(2), `PR_SET_CHILD_SUBREAPER`), which
    /// /proc does not show. A child is in the session and process group of the process that
    /// started it, unless it became the leader of its own. So a different session or group shows
    /// an adopted child. The leader of a session may be either, because a daemon is one.
    pub(crate) fn may_have_adopted(&self, child: &Self) -> bool {
        self.pid == 1
            || child.session != self.session
            || (child.group != self.group && child.group != child.pid)
    }

    /// Returns whether the process is proven to have started before `time`.
    pub(crate) fn started_before(&self, time: SystemTime) -> io::Result<bool> {
        // The same clock as for the start time: a time namespace shifts both alike, and a
        // container that hides the machine's time (lxcfs) makes the process seem too young.
        let Some(uptime) = if_shown(fs::read_to_string("/proc/uptime"))? else {
            return Ok(false);
        };
        let Some(uptime) = uptime
            .split(' ')
            .next()
            .and_then(|word| word.parse::<f64>().ok())
        else {
            return Ok(false);
        };
        let tick = 1.0 / rustix::param::clock_ticks_per_second() as f64;
        let age = uptime - self.start as f64 * tick;
        // In this order, a delay in between makes the other age larger. A time in the future has
        // no age and proves nothing.
        let Ok(age_of_time) = SystemTime::now().duration_since(time) else {
            return Ok(false);
        };
        // Both the uptime and the start time are rounded.
        Ok(age > age_of_time.as_secs_f64() + 2.0 * tick + 0.01)
    }

    /// Returns whether the process is or may be in a pid namespace below ours.
    pub(crate) fn is_elsewhere(&self) -> io::Result<bool> {
        let pids = if_shown(pids_of(&self.pid.to_string()))?.flatten();
        Ok(pids.is_none_or(|pids| pids.len() > 1))
    }
}

/// Returns the pid that a process has here, if it can be seen.
pub(crate) fn pid_at(_: &Identity, place: &Place) -> io::Result<Option<u32>> {
    Ok(View::take()?.is_ours.then(|| place.parse().ok()).flatten())
}

/// Returns the effective user id of a process (proc_pid_status(5)).
pub(crate) fn user_of(pid: u32) -> Option<u32> {
    let status = fs::read(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .split(|&byte| byte == b'\n')
        .find_map(|line| line.strip_prefix(b"Uid:"))?;
    let mut ids = str::from_utf8(line).ok()?.split_ascii_whitespace();
    ids.nth(1)?.parse().ok()
}

/// The required fields of `/proc/<pid>/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    /// Name that the kernel keeps of the process: the program's, cut after 15 bytes, or one that the process has set.
    name: Vec<u8>,
    /// Start time as this process reads it: see [`TimeOffset`].
    start: u64,
    /// The thread has ended and was not reaped yet, or it is about to end and may still have open
    /// descriptors.
    is_ending: bool,
    /// Number of threads that the process has.
    threads: u64,
    /// Whether it is the first thread of its process, unless that thread is being replaced
    /// (`thread_group_leader` in the kernel's linux/sched/signal.h): only the first thread sends
    /// a signal when it ends.
    leads: bool,
    /// The process that started or adopted it, its process group and its session: 0 if they are
    /// not in the pid namespace of this /proc.
    parent: u32,
    group: u32,
    session: u32,
}

impl Stat {
    /// `PF_EXITING` in the kernel's linux/sched.h.
    const EXITING: u64 = 0x4;

    fn read(process: &str) -> io::Result<Self> {
        for _ in 0..TRIES {
            // A single read returns all of it: the kernel generates the text at that moment, and
            // it has about 300 bytes.
            let mut text = [0; 1024];
            let len = File::open(format!("/proc/{process}/stat"))?.read(&mut text)?;
            if let Some(stat) = Self::parse(&text[..len]) {
                return Ok(stat);
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    }

    /// Parses the text. The program's name, field 2, may itself contain spaces and parentheses.
    /// Returns `None` also for a thread that was replaced: see [`TRIES`].
    fn parse(text: &[u8]) -> Option<Self> {
        let name_start = text.iter().position(|&byte| byte == b'(')? + 1;
        let name_end = text.iter().rposition(|&byte| byte == b')')?;
        let after_name = str::from_utf8(&text[name_end + 1..]).ok()?;
        let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).copied();
        let flags: u64 = field(9)?.parse().ok()?;
        // A first thread that has ended is a zombie or exiting while other threads are alive.
        let threads: u64 = field(20)?.parse().ok()?;
        let is_ending = matches!(field(3)?, "Z" | "X" | "x") || flags & Self::EXITING != 0;
        let start = field(22)?.parse().ok()?;
        let has_exit_signal = field(38).is_none_or(|signal| !signal.starts_with('-'));
        let number = |text: &str| text.parse().unwrap_or(0);
        (threads > 0).then_some(Self {
            name: text.get(name_start..name_end)?.to_vec(),
            start,
            is_ending,
            threads,
            leads: has_exit_signal,
            parent: number(field(4)?),
            group: number(field(5)?),
            session: number(field(6)?),
        })
    }

    /// Returns whether the process in this entry, whose first thread this is, has ended.
    ///
    /// A killed process closes its files, which ends its locks, a moment before the last of its
    /// threads is gone. Only then does the process count as ended. A process of which only the
    /// first thread has ended is alive.
    ///
    /// Only the first thread's entry with a count of one thread proves the end, because the
    /// kernel shows both together. Two lists of threads prove nothing: a process that repeatedly
    /// calls exec has another first thread each time, and the old one shows as ended.
    fn has_ended(&self, process: &str) -> io::Result<bool> {
        let (mut is_ending, mut threads) = (self.is_ending, self.threads);
        for _ in 0..TRIES {
            if !is_ending || threads == 1 {
                return Ok(is_ending);
            }
            let Some(others) = if_shown(threads_of(process))? else {
                return Ok(false);
            };
            for thread in &others {
                match Self::read(&format!("{process}/task/{thread}")) {
                    Ok(stat) if stat.is_ending => {}
                    Ok(_) => return Ok(false),
                    Err(error) if is_end(&error) => {}
                    Err(error) => return if_shown::<()>(Err(error)).map(|_| false),
                }
            }
            thread::yield_now();
            let Some(first) = if_shown(Self::read(process))? else {
                return Ok(true);
            };
            (is_ending, threads) = (first.is_ending, first.threads);
        }
        Ok(false)
    }
}

/// Returns the threads of a process, by their names in its directory.
fn threads_of(process: &str) -> io::Result<Vec<String>> {
    let threads = fs::read_dir(format!("/proc/{process}/task"))?;
    threads
        .map(|thread| Ok(thread?.file_name().to_string_lossy().into_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::this as this_process;

    #[test]
    fn this_process_is_known_in_full() {
        let identity = &this_process().0;
        assert!(identity.start.is_some() && identity.namespace.is_some());
    }

    #[test]
    fn a_thread_is_not_a_process() {
        assert!(is_process(process::id()));
        let (says, hears) = std::sync::mpsc::channel();
        let (end, ends) = std::sync::mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            says.send(rustix::thread::gettid()).expect("received below");
            let _ = ends.recv();
        });
        let tid = hears.recv().expect("sent above").as_raw_nonzero().get();
        assert!(!is_process(tid.cast_unsigned()));
        let us = &this_process().0;
        assert!(find(tid.cast_unsigned(), us).expect("seen").is_none());
        drop(end);
        thread.join().expect("no panic");
    }

    #[test]
    fn the_program_is_known_by_its_link_where_that_is_the_same() {
        // The name of this test binary is longer than what the kernel keeps of it.
        let own = process::id();
        let stat = Stat::read("self").expect("shown");
        let by_link = program_by_link(own, &stat.name);
        assert!(by_link.is_none_or(|name| name == program_of(own)));
        let mut child = process::Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("started");
        // Until it executes its program, it is a copy of this process.
        while program_of(child.id()) != b"sleep" {
            thread::yield_now();
        }
        let by_link = program_by_link(child.id(), b"sleep");
        let other = program_by_link(child.id(), b"wake");
        child.kill().expect("our own child");
        child.wait().expect("our own child");
        // In BusyBox, the file has another name.
        assert!(by_link.is_none_or(|name| name == b"sleep"));
        assert_eq!(other, None);
        assert_eq!(program_by_link(child.id(), b"sleep"), None, "it has ended");
    }

    const AGAIN: &str = "PORTLOCK_TEST_EXECUTE_AGAIN";

    /// If started as a child, this test's thread, which is not the first one, executes the same
    /// program repeatedly until it is killed.
    #[test]
    fn execute_again() {
        use std::os::unix::process::CommandExt as _;
        if std::env::var_os(AGAIN).is_some() {
            let mut same = process::Command::new("/proc/self/exe");
            let error = same.args(std::env::args_os().skip(1)).exec();
            panic!("cannot execute this test binary: {error}");
        }
    }

    #[test]
    fn a_process_is_alive_while_one_of_its_threads_calls_exec() {
        struct Killed(process::Child);
        impl Drop for Killed {
            fn drop(&mut self) {
                let _ = self.0.kill();
                let _ = self.0.wait();
            }
        }
        let binary = std::env::current_exe().expect("this test binary");
        let child = process::Command::new(binary)
            .args(["--exact", "process::linux::tests::execute_again"])
            .env(AGAIN, "1")
            .stdout(process::Stdio::null())
            .spawn();
        // Also if this test fails, because the child would not end by itself.
        let child = Killed(child.expect("this test binary"));
        let pid = child.0.id();
        let (identity, _) = crate::process::find(pid).expect("it runs");
        for _ in 0..20_000 {
            let evidence = identity.evidence().expect("seen");
            assert_ne!(evidence, Evidence::Gone);
            let pids = pids_of(&pid.to_string()).expect("seen").expect("shown");
            assert_eq!(pids[0], pid);
        }
    }

    #[test]
    fn the_fields_of_a_process_are_found_after_any_name() {
        let text = |name: &str, state: &str, flags: u32, threads: u32| {
            format!(
                "7 {name} {state} 1 2 3 4 5 {flags} 7 8 9 10 11 12 13 14 15 16 {threads} 18 4242 20"
            )
        };
        let parse = |text: String| Stat::parse(text.as_bytes());
        let stat = |is_ending, threads| {
            Some(Stat {
                name: b"a".to_vec(),
                start: 4242,
                is_ending,
                threads,
                leads: true,
                parent: 1,
                group: 2,
                session: 3,
            })
        };
        let odd = parse(text("(a) b (c)", "S", 0x40_0000, 1)).expect("complete");
        assert_eq!(odd.name, b"a) b (c");
        assert_eq!(parse(text("(a)", "S", 0x40_0000, 1)), stat(false, 1));
        assert_eq!(parse(text("(a)", "Z", 0x40_0000, 1)), stat(true, 1));
        assert_eq!(parse(text("(a)", "Z", 0x40_0000, 2)), stat(true, 2));
        // It is exiting, but not a zombie yet.
        assert_eq!(parse(text("(a)", "R", 0x40_0004, 1)), stat(true, 1));
        // Fields 24 to 37, and the signal that the thread sends when it ends.
        let rest =
            |signal: i32| text("(a)", "S", 0x40_0000, 2) + &" 0".repeat(14) + &format!(" {signal}");
        assert_eq!(parse(rest(17)), stat(false, 2));
        assert_eq!(parse(rest(0)), stat(false, 2));
        assert!(parse(rest(-1)).is_some_and(|stat| !stat.leads));
        // The old first thread, after another one has called exec.
        assert_eq!(parse(text("(a)", "Z", 0x40_0000, 0)), None);
        assert_eq!(parse("7 (a) S 1".into()), None);
        assert_eq!(parse(String::new()), None);
    }

    #[test]
    fn hidden_entries_are_distinguished_from_failed_reads() {
        const SHOWN: u32 = 812;
        assert_eq!(if_shown(Ok(SHOWN)).expect("shown"), Some(SHOWN));
        for (error, has_ended) in [
            (Errno::NOENT.into(), true),
            (Errno::SRCH.into(), true),
            (Errno::ACCESS.into(), false),
            (Errno::PERM.into(), false),
            (io::ErrorKind::InvalidData.into(), false),
        ] {
            assert_eq!(is_end(&error), has_ended, "{error}");
            let shown = if_shown::<u32>(Err(error));
            assert_eq!(shown.expect("not shown"), None);
        }
        for error in [Errno::MFILE, Errno::NOMEM, Errno::IO] {
            assert!(!is_end(&error.into()), "{error}");
            if_shown::<u32>(Err(error.into())).expect_err("it may be there");
        }
    }

    #[test]
    fn a_program_is_named_by_its_first_argument_or_its_own_name() {
        let own = std::env::args_os().next().expect("cargo passes one");
        assert_eq!(program_of(process::id()), file_name(&own));
        // A process that was not reaped has no arguments left.
        let mut child = process::Command::new("true").spawn().expect("installed");
        let has_ended = || {
            let stat = Stat::read(&child.id().to_string()).expect("not waited for");
            stat.is_ending
        };
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !has_ended() {
            assert!(std::time::Instant::now() < deadline);
            thread::yield_now();
        }
        assert_eq!(program_of(child.id()), b"true");
        let pid = child.id();
        child.wait().expect("our own child");
        assert_ne!(program_of(pid), b"true");
    }

    #[test]
    fn processes_and_namespaces_are_recognized_by_their_names_in_proc() {
        for (name, is) in [("1", true), ("812", true), ("self", false), ("8a", false)] {
            assert_eq!(is_number(name), is, "{name}");
        }
        let inode = |link: &str| inode_of(Path::new(link), "pid");
        assert_eq!(inode("pid:[4026531836]"), Some(4_026_531_836));
        for other in ["time:[4026531836]", "pid:4026531836", "pid:[-]", "pid"] {
            assert_eq!(inode(other), None, "{other}");
        }
        let own = fs::metadata("/proc/self/ns/pid").expect("Linux has it");
        assert_eq!(namespace("self", "pid").expect("seen"), Some(own.ino()));
        assert_eq!(namespace("8388608", "pid").expect("seen"), None);

        let pids = |status: &[u8]| parse_pids(status);
        assert_eq!(
            pids(b"Name:\ta\nNSpid:\t812\t7\nNSpgid:\t1\n"),
            Some(vec![812, 7])
        );
        // Before Linux 4.1; and text that no kernel writes.
        for none in [
            &b"Name:\ta\nPid:\t812\n"[..],
            b"NSpid:\n",
            b"NSpid:\ta\n",
            b"",
        ] {
            assert_eq!(pids(none), None);
        }
        assert_eq!(
            pids_of("self").expect("seen"),
            pids_of(&process::id().to_string()).expect("seen")
        );
    }

    #[test]
    fn a_view_is_of_one_namespace_and_only_if_proc_is_its_own() {
        let this = this_process().0.clone();
        let of = |namespace| Identity {
            namespace,
            ..this.clone()
        };
        let view = |namespace, is_ours| View { namespace, is_ours };
        assert!(view(Some(7), true).is_of(&of(Some(7))));
        for (view, process) in [
            (view(Some(7), false), of(Some(7))),
            (view(Some(7), true), of(Some(8))),
            (view(Some(7), true), of(None)),
            (view(None, true), of(None)),
            (view(None, false), of(None)),
        ] {
            assert!(!view.is_of(&process), "{process:?}");
        }
        assert!(view(Some(FIRST_PID_NAMESPACE), true).is_of_first_namespace());
        for other in [
            view(Some(FIRST_PID_NAMESPACE), false),
            view(Some(7), true),
            view(None, true),
        ] {
            assert!(!other.is_of_first_namespace());
        }
        let here = View::take().expect("seen");
        assert_eq!(here.namespace, this.namespace);
        assert_eq!(here.is_of(&this), here.is_ours);
    }

    #[test]
    fn a_process_ends_with_its_last_thread() {
        let own = process::id().to_string();
        assert!(threads_of(&own).expect("seen").contains(&own));
        let stat = |is_ending, threads| Stat {
            name: Vec::new(),
            start: 1,
            is_ending,
            threads,
            leads: true,
            parent: 1,
            group: 1,
            session: 1,
        };
        for (stat, has_ended) in [
            (stat(false, 1), false),
            (stat(false, 2), false),
            (stat(true, 1), true),
            // Other threads are alive, such as this one.
            (stat(true, 2), false),
        ] {
            assert_eq!(stat.has_ended(&own).expect("seen"), has_ended, "{stat:?}");
        }
        // Nothing shows that the other threads have ended too.
        assert!(!stat(true, 2).has_ended("8388608").expect("not seen"));
        let is_recordable = can_be_recorded(&this_process().0).is_ok();
        assert_eq!(crate::process::is_recordable(), is_recordable);
    }

    #[test]
    fn the_offset_that_is_read_once_is_that_of_each_reading() {
        let offset = TimeOffset::read().expect("seen");
        for _ in 0..2 {
            assert_eq!(TimeOffset::read_once().expect("seen"), offset);
        }
    }

    #[test]
    fn a_process_of_an_unknown_namespace_cannot_be_recorded() {
        let this = this_process().0.clone();
        assert_eq!(can_be_recorded(&this), Ok(()));
        let of_unknown = Identity {
            namespace: None,
            ..this
        };
        let why = can_be_recorded(&of_unknown).expect_err("no caller could determine when it ends");
        assert!(why.contains("pid namespace"), "{why}");
    }

    #[test]
    fn the_offset_of_a_time_namespace_is_in_ticks() {
        let parse = |text: &str| TimeOffset::parse(text, 100).map(|offset| offset.ticks);
        let text = |boottime: &str| format!("monotonic        7         0\nboottime {boottime}\n");
        assert_eq!(parse(&text("        0         0")), Some(0));
        assert_eq!(parse(&text("    86400         0")), Some(8_640_000));
        assert_eq!(parse(&text("-10 990000000")), Some(-901));
        assert_eq!(parse(&text("1")), None);
        assert_eq!(parse("monotonic 1 0"), None);
        assert_eq!(TimeOffset::parse("boottime 1 0", 0), None);
        assert_eq!(TimeOffset { ticks: 100 }.remove_from(142), 42);
        assert_eq!(TimeOffset { ticks: -100 }.remove_from(142), 242);
    }

    #[test]
    fn a_proc_that_hides_processes_is_recognized_by_its_mounts() {
        let mount = |root: &str, at: &str, kind: &str, options: &str| {
            format!("24 30 0:22 {root} {at} rw,relatime shared:12 - {kind} proc {options}\n")
        };
        let root = mount("/", "/", "ext4", "rw");
        let proc = mount("/", "/proc", "proc", "rw");
        assert!(hides_no_process(&(root.clone() + &proc)));
        assert!(hides_no_process(&mount(
            "/",
            "/proc",
            "proc",
            "rw,hidepid=off,gid=4"
        )));
        for hiding in [
            mount("/", "/proc", "proc", "rw,hidepid=invisible"),
            mount("/", "/proc", "proc", "rw,gid=4,hidepid=2"),
            mount("/", "/proc", "proc", "rw,subset=pid"),
            mount("/1", "/proc", "proc", "rw"),
            mount("/", "/proc", "fuse.lxcfs", "rw"),
        ] {
            assert!(!hides_no_process(&hiding), "{hiding}");
            assert!(!hides_no_process(&(hiding.clone() + &proc)), "{hiding}");
            assert!(!hides_no_process(&(proc.clone() + &hiding)), "{hiding}");
        }
        assert!(!hides_no_process(&root), "not mounted");
        assert!(!hides_no_process(""));
    }

    #[test]
    fn a_process_of_an_unseen_namespace_is_gone_only_for_the_first_namespace() {
        let of_nowhere = Identity {
            namespace: Some(1),
            start: Some(1),
            ..this_process().0.clone()
        };
        let evidence = of_nowhere.evidence().expect("seen");
        let is_proof = View::take().expect("seen").is_of_first_namespace()
            && shows_every_process().expect("seen");
        assert_eq!(evidence == Evidence::Gone, is_proof, "{evidence:?}");
        // The local process with this pid is another one, whenever it started.
        let of_unknown_start = Identity {
            start: None,
            ..of_nowhere.clone()
        };
        assert_eq!(of_unknown_start.evidence().expect("seen"), evidence);
        let of_unknown = Identity {
            namespace: None,
            ..of_nowhere
        };
        let evidence = of_unknown.evidence().expect("seen");
        assert_eq!(evidence, Evidence::Undetermined);
    }
}
