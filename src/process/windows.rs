//! Processes on Windows, as the system's handles show them.

use std::{
    ffi::OsStr,
    io, process,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use winsafe::{FILETIME, HPROCESS, HPROCESSLIST, SysResult, co, guard::CloseHandleGuard};

use super::{Evidence, Identity, NamedProcess, ProcessInfo, file_name};

/// Where a process can be seen: its pid.
pub(crate) type Place = u32;

/// Returns the identity of this process, and the error that kept the system from showing all of
/// it.
pub(crate) fn this() -> (NamedProcess, io::Result<()>) {
    let start = start(&HPROCESS::GetCurrentProcess());
    let identity = Identity {
        pid: process::id(),
        start: start.as_ref().ok().copied(),
        namespace: None,
    };
    let program = std::env::args_os().next().unwrap_or_default();
    ((identity, file_name(&program)), start.map(drop))
}

/// Returns whether a process has `pid`, including one that has ended but to which another process
/// has a handle.
pub(crate) fn exists(pid: u32) -> bool {
    !matches!(open(pid), Ok(PidOwner::Nobody))
}

/// Returns the error for a pid that no process has. The system's own error is about an invalid
/// parameter.
pub(crate) fn no_such_process() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "no such process")
}

/// Returns the process that has `pid`, or `None` if there is none, or it has ended.
pub(crate) fn find(pid: u32, _: &Identity) -> io::Result<Option<ProcessInfo>> {
    Ok(match open(pid)? {
        PidOwner::Nobody => None,
        PidOwner::Hidden => Some(ProcessInfo {
            start: None,
            program: Vec::new(),
        }),
        PidOwner::Process(process) if has_ended(&process)? => None,
        PidOwner::Process(process) => Some(ProcessInfo {
            start: Some(start(&process)?),
            program: program(&process),
        }),
    })
}

/// Returns an error if other readers of the record cannot prove the end of the process. On
/// Windows they can.
pub(crate) fn can_be_recorded(_: &Identity) -> Result<(), &'static str> {
    Ok(())
}

/// Returns what can be determined about a process.
pub(crate) fn evidence(process: &Identity, _: &Identity) -> io::Result<Evidence> {
    Ok(match open(process.pid)? {
        PidOwner::Nobody => Evidence::Gone,
        PidOwner::Hidden => Evidence::Alive(process.pid),
        PidOwner::Process(found) => {
            let started = start(&found)?;
            let is_another = process.start.is_some_and(|start| start != started);
            if is_another || has_ended(&found)? {
                Evidence::Gone
            } else {
                Evidence::Alive(process.pid)
            }
        }
    })
}

/// Returns whether this process may end the process that was seen there, which is usually so for
/// processes of its user.
pub(crate) fn is_of_this_user(pid: &Place) -> io::Result<bool> {
    match HPROCESS::OpenProcess(co::PROCESS::TERMINATE, false, *pid) {
        Ok(_) | Err(co::ERROR::INVALID_PARAMETER) => Ok(true),
        Err(co::ERROR::ACCESS_DENIED) => Ok(false),
        Err(error) => Err(io_error(error)),
    }
}

/// Whether a process whose parent has ended is adopted, so that every process has a parent.
pub(crate) const ADOPTS: bool = false;

/// The origin of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lineage {
    /// The process that started it. It may have ended, and its pid may have been reused.
    pub(crate) parent: u32,
    start: u64,
}

impl Lineage {
    /// Returns `None` if there is no such process, it has ended, or it may not be seen.
    pub(crate) fn read(pid: u32) -> io::Result<Option<Self>> {
        let PidOwner::Process(process) = open(pid)? else {
            return Ok(None);
        };
        if has_ended(&process)? {
            return Ok(None);
        }
        let start = start(&process)?;
        let mut list = HPROCESSLIST::CreateToolhelp32Snapshot(co::TH32CS::SNAPPROCESS, None)
            .map_err(io_error)?;
        for entry in list.iter_processes() {
            let entry = entry.map_err(io_error)?;
            if entry.th32ProcessID == pid {
                let parent = entry.th32ParentProcessID;
                return Ok(Some(Self { parent, start }));
            }
        }
        Ok(None)
    }

    /// Returns whether the process may be the parent of `child`: a child is never older, and the
    /// pid of a parent that has ended is reused.
    pub(crate) fn is_no_younger_than(&self, child: &Self) -> bool {
        self.start <= child.start
    }

    /// Returns `false`: no process is adopted.
    pub(crate) fn may_have_adopted(&self, _: &Self) -> bool {
        false
    }

    /// Returns whether the process is proven to have started before `time`.
    pub(crate) fn started_before(&self, time: SystemTime) -> io::Result<bool> {
        /// Time between the epochs of Windows and Unix.
        const BEFORE_1970: Duration = Duration::from_secs(11_644_473_600);
        let time = time.duration_since(UNIX_EPOCH).unwrap_or_default() + BEFORE_1970;
        Ok(u128::from(self.start) < time.as_nanos() / 100)
    }

    /// Returns `false`: Windows has no pid namespaces.
    pub(crate) fn is_elsewhere(&self) -> io::Result<bool> {
        Ok(false)
    }
}

/// Returns the pid that a process has here, if it can be seen.
pub(crate) fn pid_at(_: &Identity, place: &Place) -> io::Result<Option<u32>> {
    Ok(Some(*place))
}

/// Returns `None`: users have no numbers on Windows.
pub(crate) fn user_of(_: u32) -> Option<u32> {
    None
}

/// Returns the file name of a process's program, empty if it may not be seen.
pub(crate) fn program_of(pid: u32) -> Vec<u8> {
    match open(pid) {
        Ok(PidOwner::Process(process)) => program(&process),
        _ => Vec::new(),
    }
}

enum PidOwner {
    Process(CloseHandleGuard<HPROCESS>),
    /// It exists and may not be inspected.
    Hidden,
    Nobody,
}

fn open(pid: u32) -> io::Result<PidOwner> {
    match HPROCESS::OpenProcess(co::PROCESS::QUERY_LIMITED_INFORMATION, false, pid) {
        // The system ignores the two lowest bits of the pid, which is not documented.
        Ok(process) if process.GetProcessId().map_err(io_error)? != pid => Ok(PidOwner::Nobody),
        Ok(process) => Ok(PidOwner::Process(process)),
        // A pid that no process has, or 0, which is not a process.
        Err(co::ERROR::INVALID_PARAMETER) => Ok(PidOwner::Nobody),
        Err(co::ERROR::ACCESS_DENIED) => Ok(PidOwner::Hidden),
        Err(error) => Err(io_error(error)),
    }
}

/// Returns whether it has ended, although another process still has a handle to it.
///
/// A process that ended with exit code 259, which means "not ended" (`STILL_ACTIVE`), counts as
/// alive until the last handle is closed.
fn has_ended(process: &HPROCESS) -> io::Result<bool> {
    const STILL_ACTIVE: u32 = 259;
    let code = process.GetExitCodeProcess().map_err(io_error)?;
    Ok(code != STILL_ACTIVE)
}

/// Returns the start time in units of 100 ns since 1601.
fn start(process: &HPROCESS) -> io::Result<u64> {
    let times = process.GetProcessTimes();
    times.map(|(created, ..)| number(created)).map_err(io_error)
}

fn number(time: FILETIME) -> u64 {
    u64::from(time.dwHighDateTime) << 32 | u64::from(time.dwLowDateTime)
}

fn program(process: &HPROCESS) -> Vec<u8> {
    let path: SysResult<String> = process.QueryFullProcessImageName(co::PROCESS_NAME::WIN32);
    file_name(OsStr::new(&path.unwrap_or_default()))
}

fn io_error(error: co::ERROR) -> io::Error {
    io::Error::from_raw_os_error(error.raw().cast_signed())
}
