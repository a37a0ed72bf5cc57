//! The locks that are held, as the kernel lists them (proc_locks(5),
//! proc_pid_fdinfo(5)).

use std::{collections::HashSet, fs, io};

use rustix::{
    fs::{AtFlags, Stat, major, minor},
    io::Errno,
};

use super::process::{in_first_namespace, is_of_this_namespace};
use crate::{
    lock_dir::OpenDir,
    owner::Owner,
    process::{Identity, Liveness},
};

/// The locks by flock(2) that the kernel lists, read as far as they are needed.
#[derive(Default)]
pub(crate) struct ListedLocks {
    /// Each as device, inode number and pid of the process that took it.
    locks: HashSet<(u32, u32, u64, u32)>,
    /// Whether the list of all locks was read, and could be.
    all: Option<bool>,
    /// The processes whose own lists were read.
    processes: HashSet<u32>,
}

impl ListedLocks {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Whether the file of `port` is locked, or `None` if the lists do not tell.
    pub(crate) fn has(&mut self, dir: &OpenDir, port: u16, owner: Option<&Owner>) -> Option<bool> {
        let name = port.to_string();
        let stat = rustix::fs::statat(dir.sys().fd(), &name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let process = owner.map(|owner| &owner.process);
        let readable = *self.all.get_or_insert_with(|| {
            let text = fs::read_to_string("/proc/locks");
            self.locks.extend(
                text.iter()
                    .flat_map(|text| text.lines())
                    .filter_map(Self::parse),
            );
            text.is_ok()
        });
        if self.lists(&stat, process) {
            return Some(true);
        }
        if !readable || !process.is_none_or(is_of_this_namespace) {
            return None;
        }
        // While many locks come and go, the list leaves some out: it is read a
        // page at a time, and an entry that moves across is missed (seq_file).
        // That of a process has its own locks only, each with its descriptor.
        if process.is_some_and(|process| self.read_process(process.pid).is_err()) {
            return None;
        }
        if self.lists(&stat, process) {
            return Some(true);
        }
        // In a pid namespace below the first, locks are listed only while the
        // process that took them lives, and not if others have inherited them
        // (`locks_translate_pid` in fs/locks.c).
        let may_be_hidden = |process: &Identity| {
            !matches!(process.liveness(), Ok(Liveness::Alive | Liveness::Unseen))
                && !in_first_namespace()
        };
        (!process.is_some_and(may_be_hidden)).then_some(false)
    }

    fn lists(&self, stat: &Stat, process: Option<&Identity>) -> bool {
        let device = (major(stat.st_dev), minor(stat.st_dev));
        // Some file systems (btrfs, overlayfs) have another device number in the
        // list than stat tells; the pid in the record then has to agree.
        let pid = process.map(|process| process.pid);
        self.locks.iter().any(|&(major, minor, inode, holder)| {
            inode == stat.st_ino && ((major, minor) == device || Some(holder) == pid)
        })
    }

    /// Adds the locks on the files that a process has open (proc_pid_fdinfo(5)).
    ///
    /// # Errors
    ///
    /// There may be more. That it has ended, or is another user's, is none.
    fn read_process(&mut self, pid: u32) -> io::Result<()> {
        if !self.processes.insert(pid) {
            return Ok(());
        }
        let read = self
            .read_descriptors(pid)
            .or_else(|error| match Errno::from_io_error(&error) {
                Some(Errno::NOENT | Errno::SRCH | Errno::ACCESS | Errno::PERM) => Ok(()),
                _ => Err(error),
            });
        if read.is_err() {
            self.processes.remove(&pid);
        }
        read
    }

    fn read_descriptors(&mut self, pid: u32) -> io::Result<()> {
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
            let text = match fs::read_to_string(entry?.path()) {
                // It was closed in the meantime.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                text => text?,
            };
            let locks = text.lines().filter_map(|line| line.strip_prefix("lock:"));
            self.locks.extend(locks.filter_map(Self::parse));
        }
        Ok(())
    }

    /// A line such as `1: FLOCK  ADVISORY  WRITE 812 fe:00:5505 0 EOF`.
    fn parse(line: &str) -> Option<(u32, u32, u64, u32)> {
        let mut words = line.split_ascii_whitespace().skip(1);
        if words.next()? != "FLOCK" {
            return None;
        }
        let pid = words.nth(2)?.parse().ok()?;
        let mut file = words.next()?.split(':');
        let major = u32::from_str_radix(file.next()?, 16).ok()?;
        let minor = u32::from_str_radix(file.next()?, 16).ok()?;
        Some((major, minor, file.next()?.parse().ok()?, pid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_list_is_read() {
        let parse = ListedLocks::parse;
        let line = "1: FLOCK  ADVISORY  WRITE 812 fe:0a:5505 0 EOF";
        assert_eq!(parse(line), Some((0xfe, 0x0a, 5505, 812)));
        assert_eq!(
            parse("2: POSIX  ADVISORY  WRITE 812 fe:00:5505 0 EOF"),
            None
        );
        assert_eq!(
            parse("1: -> FLOCK  ADVISORY  WRITE 812 fe:00:5505 0 EOF"),
            None
        );
        assert_eq!(parse("1: FLOCK"), None);
        assert_eq!(parse(""), None);
    }
}
