//! Processes on macOS, as proc_pidinfo shows them (`libproc.h`; bsd/kern/proc_info.c in XNU).

use std::{
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt as _,
    process,
    time::{SystemTime, UNIX_EPOCH},
};

use proc_pidinfo::{Pid, ProcBSDInfo, ProcBSDShortInfo, proc_pidinfo};
use rustix::io::Errno;

use super::{Evidence, Identity, NamedProcess, ProcessInfo, file_name};

pub(crate) use super::unix::{exists, no_such_process};

/// Where a process can be seen: its user, if the system shows it.
pub(crate) type Place = Option<u32>;

/// `SZOMB` in sys/proc.h: it has ended, and its parent has not reaped it yet.
const ZOMBIE: u32 = 5;

/// Returns the identity of this process, and the error that kept the system from showing all of
/// it.
pub(crate) fn this() -> (NamedProcess, io::Result<()>) {
    let shown = show(process::id());
    let identity = Identity {
        pid: process::id(),
        start: shown.as_ref().ok().and_then(Shown::start),
        namespace: None,
    };
    let program = std::env::args_os().next().unwrap_or_default();
    ((identity, file_name(&program)), shown.map(drop))
}

/// Returns the process that has `pid`, or `None` if there is none, or it has ended and was not
/// reaped.
pub(crate) fn find(pid: u32, _: &Identity) -> io::Result<Option<ProcessInfo>> {
    if !exists(pid) {
        return Ok(None);
    }
    Ok(match show(pid)? {
        Shown::Ended => None,
        Shown::Hidden => Some(ProcessInfo {
            start: None,
            program: Vec::new(),
        }),
        Shown::Process(info) => Some(ProcessInfo {
            start: Some(start(&info)),
            program: program(&info),
        }),
    })
}

/// Returns an error if other readers of the record cannot prove the end of the process. On macOS
/// they can.
pub(crate) fn can_be_recorded(_: &Identity) -> Result<(), &'static str> {
    Ok(())
}

/// Returns what can be determined about a process.
pub(crate) fn evidence(process: &Identity, _: &Identity) -> io::Result<Evidence> {
    if !exists(process.pid) {
        return Ok(Evidence::Gone);
    }
    let is_another = |info| process.start.is_some_and(|of_it| of_it != start(info));
    Ok(match show(process.pid)? {
        Shown::Ended => Evidence::Gone,
        Shown::Process(info) if is_another(&info) => Evidence::Gone,
        Shown::Process(info) => Evidence::Alive(Some(info.pbi_uid)),
        Shown::Hidden => Evidence::Alive(None),
    })
}

/// Returns whether the process that was seen there runs as this process's user.
pub(crate) fn is_of_this_user(place: &Place) -> io::Result<bool> {
    Ok(*place == Some(rustix::process::geteuid().as_raw()))
}

/// Whether a process whose parent has ended is adopted, so that every process has a parent.
pub(crate) const ADOPTS: bool = true;

/// The origin of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lineage {
    pid: u32,
    pub(crate) parent: u32,
    start: Option<u64>,
}

impl Lineage {
    /// Returns `None` if there is no such process, or it has ended.
    pub(crate) fn read(pid: u32) -> io::Result<Option<Self>> {
        Ok(match show(pid)? {
            Shown::Process(info) => Some(Self {
                pid,
                parent: info.pbi_ppid.0,
                start: Some(start(&info)),
            }),
            // The system shows less of another user's process.
            Shown::Hidden => proc_pidinfo::<ProcBSDShortInfo>(Pid(pid))?.map(|info| Self {
                pid,
                parent: info.pbsi_ppid.0,
                start: None,
            }),
            Shown::Ended => None,
        })
    }

    /// Returns `true`: the process may be the parent of `child`. Start times are times of day,
    /// and a clock can be set, so they prove nothing.
    pub(crate) fn is_no_younger_than(&self, _: &Self) -> bool {
        true
    }

    /// Returns whether the process may have adopted `child`, its current child, instead of
    /// starting it: only process 1 adopts.
    pub(crate) fn may_have_adopted(&self, _: &Self) -> bool {
        self.pid == 1
    }

    /// Returns whether the process is proven to have started before `time`.
    pub(crate) fn started_before(&self, time: SystemTime) -> io::Result<bool> {
        let time = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(self
            .start
            .is_some_and(|start| u128::from(start) < time.as_micros()))
    }

    /// Returns `false`: macOS has no pid namespaces.
    pub(crate) fn is_elsewhere(&self) -> io::Result<bool> {
        Ok(false)
    }
}

/// Returns the pid that a process has here, if it can be seen.
pub(crate) fn pid_at(process: &Identity, _: &Place) -> io::Result<Option<u32>> {
    Ok(Some(process.pid))
}

/// Returns the effective user id of a process, if it may be seen.
pub(crate) fn user_of(pid: u32) -> Option<u32> {
    match show(pid).ok()? {
        Shown::Process(info) => Some(info.pbi_uid),
        Shown::Hidden | Shown::Ended => None,
    }
}

/// Returns the file name of a process's program, empty if it may not be seen.
pub(crate) fn program_of(pid: u32) -> Vec<u8> {
    match show(pid) {
        Ok(Shown::Process(info)) => program(&info),
        _ => Vec::new(),
    }
}

enum Shown {
    Process(Box<ProcBSDInfo>),
    /// It exists and may not be inspected.
    Hidden,
    Ended,
}

impl Shown {
    fn start(&self) -> Option<u64> {
        match self {
            Self::Process(info) => Some(start(info)),
            Self::Hidden | Self::Ended => None,
        }
    }
}

/// Returns what the system shows of a process that exists.
fn show(pid: u32) -> io::Result<Shown> {
    match proc_pidinfo::<ProcBSDInfo>(Pid(pid))? {
        Some(info) if info.pbi_status == ZOMBIE => Ok(Shown::Ended),
        Some(info) => Ok(Shown::Process(Box::new(info))),
        // In this case it has set errno, and no call has been made since.
        None => match io::Error::last_os_error() {
            error if is(&error, Errno::SRCH) => Ok(Shown::Ended),
            error if is(&error, Errno::PERM) => Ok(Shown::Hidden),
            error => Err(error),
        },
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    Errno::from_io_error(error) == Some(errno)
}

/// Returns the start time in microseconds since 1970.
fn start(info: &ProcBSDInfo) -> u64 {
    info.pbi_start_tvsec
        .saturating_mul(1_000_000)
        .saturating_add(info.pbi_start_tvusec)
}

/// Returns the file name of the program, of which the system keeps 31 bytes.
fn program(info: &ProcBSDInfo) -> Vec<u8> {
    let name: Vec<u8> = info
        .pbi_name
        .iter()
        .map(|&byte| byte.cast_unsigned())
        .take_while(|&byte| byte != 0)
        .collect();
    file_name(OsStr::from_bytes(&name))
}
