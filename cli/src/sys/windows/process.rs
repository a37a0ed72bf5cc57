//! A process that is identified by a handle: while the handle is open, its pid is not reused.

use std::io;

use winsafe::{HPROCESS, HPROCESSLIST, SysResult, co, guard::CloseHandleGuard};

use super::{super::Listed, caller::start};

/// One process, running or ended.
pub(crate) struct Process {
    pid: u32,
    handle: CloseHandleGuard<HPROCESS>,
}

impl Process {
    /// Returns the process that has `pid` now, or `None` if there is none.
    pub(crate) fn open(pid: u32) -> io::Result<Option<Self>> {
        let rights = co::PROCESS::QUERY_LIMITED_INFORMATION
            | co::PROCESS::TERMINATE
            | co::PROCESS::SYNCHRONIZE;
        match HPROCESS::OpenProcess(rights, false, pid) {
            Ok(handle) => Ok(Some(Self { pid, handle })),
            Err(co::ERROR::INVALID_PARAMETER) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn has_ended(&self) -> io::Result<bool> {
        let waited = self.handle.WaitForSingleObject(Some(0)).map_err(failed)?;
        Ok(waited == co::WAIT::OBJECT_0)
    }

    /// Returns whether it is a child of `parent`.
    pub(crate) fn is_child_of(&self, parent: &Self) -> io::Result<bool> {
        // The list names the parent's pid, which may have belonged to another process before. A process
        // that is older than the current one is the child of that earlier process.
        let is_younger = match (start(&self.handle), start(&parent.handle)) {
            (Some(own), Some(of_parent)) => own >= of_parent,
            _ => false,
        };
        let is_listed = |listed: &Listed| listed.pid == self.pid && listed.parent == parent.pid;
        Ok(is_younger && processes()?.iter().any(is_listed))
    }

    /// Ends the process. Windows has no way to ask one that has no window or its own console.
    pub(crate) fn ask_to_end(&self) -> io::Result<()> {
        self.kill()
    }

    pub(crate) fn kill(&self) -> io::Result<()> {
        match self.handle.TerminateProcess(1) {
            // The process has ended already.
            Err(_) if self.has_ended()? => Ok(()),
            ended => ended.map_err(failed),
        }
    }
}

/// Returns all processes.
pub(crate) fn processes() -> io::Result<Vec<Listed>> {
    let list = HPROCESSLIST::CreateToolhelp32Snapshot(co::TH32CS::SNAPPROCESS, None);
    let mut list = list.map_err(failed)?;
    let all = list.iter_processes().map_while(SysResult::ok);
    let listed = all.map(|entry| Listed {
        pid: entry.th32ProcessID,
        parent: entry.th32ParentProcessID,
        program: entry.szExeFile(),
    });
    Ok(listed.collect())
}

fn failed(error: co::ERROR) -> io::Error {
    io::Error::from_raw_os_error(error.raw().cast_signed())
}
