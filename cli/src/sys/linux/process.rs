//! A process that is identified by a descriptor (pidfd_open(2)), which, unlike a pid, is never reused
//! for another process.

use std::{io, os::fd::OwnedFd};

use procfs::process;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use super::super::Listed;

/// One process, running or ended.
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    fd: OwnedFd,
}

impl Process {
    /// Returns the process that has `pid` now, or `None` if there is none.
    pub(crate) fn open(pid: u32) -> io::Result<Option<Self>> {
        let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        match pidfd_open(number, PidfdFlags::empty()) {
            Ok(fd) => Ok(Some(Self { pid, fd })),
            Err(Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns whether it has ended, even if its parent has not waited for it yet.
    pub(crate) fn has_ended(&self) -> io::Result<bool> {
        loop {
            let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
            match poll(&mut fds, Some(&Timespec::default())) {
                Err(Errno::INTR) => {}
                ready => return Ok(ready? > 0),
            }
        }
    }

    /// Returns whether it is a child of `parent`, and neither has ended.
    pub(crate) fn is_child_of(&self, parent: &Self) -> io::Result<bool> {
        let Some(found) = parent_of(self.pid) else {
            return Ok(false);
        };
        // Neither had ended when the parent was read, so neither pid had been reused.
        Ok(found == parent.pid && !self.has_ended()? && !parent.has_ended()?)
    }

    /// Asks it to end (SIGTERM).
    pub(crate) fn ask_to_end(&self) -> io::Result<()> {
        self.send(Signal::TERM)
    }

    pub(crate) fn kill(&self) -> io::Result<()> {
        self.send(Signal::KILL)
    }

    fn send(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.fd, signal) {
            // The process has ended.
            Err(Errno::SRCH) => Ok(()),
            sent => Ok(sent?),
        }
    }
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = process::Process::new(i32::try_from(pid).ok()?)
        .and_then(|process| process.stat())
        .ok()?;
    u32::try_from(stat.ppid).ok()
}

/// Returns all visible processes.
pub(crate) fn processes() -> io::Result<Vec<Listed>> {
    let all = process::all_processes().map_err(io::Error::other)?;
    // Skip processes that have ended meanwhile.
    let all = all.filter_map(|process| process.ok()?.stat().ok());
    let listed = |stat: process::Stat| {
        Some(Listed {
            pid: u32::try_from(stat.pid).ok()?,
            parent: u32::try_from(stat.ppid).ok()?,
            program: stat.comm,
        })
    };
    Ok(all.filter_map(listed).collect())
}
