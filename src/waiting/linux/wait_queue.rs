//! The wait queue for a set of ports: a FIFO in the lock directory,
//! `.waiting.<hash of the ports>`.
//!
//! The waiter that has locked it is the leader. A leader that leaves unlocks it and writes a
//! byte, and the kernel wakes one of the waiters that wait to read it (`EPOLLEXCLUSIVE` in
//! epoll_ctl(2)). The lock decides, and the byte is only a wakeup: a leader that is killed writes
//! none, so the others also check now and then whether the lock is free.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    mem::MaybeUninit,
    os::fd::OwnedFd,
    process,
    time::{Duration, Instant, SystemTime},
};

use rustix::{
    event::epoll,
    fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_NOW},
    io::Errno,
};

use super::timespec;
use crate::{
    jitter::random,
    lock::{
        self,
        unix::{OPEN, PublishOutcome, check_umask, publish, stray_name},
    },
    lock_dir::{
        OpenDir,
        unix::{Dir, identity},
    },
};

/// Interval at which the waiters behind the leader check whether it has left without a wakeup, as
/// a killed leader does; half of it is random. For a hundred waiters, these checks take 0.5 % of
/// a core.
const LEADER_CHECK_INTERVAL: Duration = Duration::from_millis(400);

/// Age of the last heartbeat from which a leader counts as stopped (SIGSTOP, a debugger). Waiters
/// do not wait for a stopped leader.
pub(crate) const LEADER_STALE_AFTER: Duration = Duration::from_secs(10);

/// A waiter's membership in the queue for a set of ports.
#[derive(Debug)]
pub(crate) struct WaitQueue {
    pub(crate) fifo: File,
    pub(crate) is_leader: bool,
}

/// Prefix of the file names of wait queues.
pub(crate) const NAME_PREFIX: &str = ".waiting.";

/// Removes a wait queue without waiters. Returns `None` if it has a waiter, or the file is not a
/// wait queue.
pub(crate) fn remove_wait_queue(dir: &OpenDir, name: &str) -> Option<io::Result<()>> {
    if !name.starts_with(NAME_PREFIX) {
        return None;
    }
    let removed = WaitQueue::open(dir, name).ok()?.remove(dir, name)?;
    Some(removed.map_err(Into::into))
}

impl WaitQueue {
    /// Returns the wait queue for the ports of this digest, and creates it if there is none.
    pub(crate) fn join(dir: &OpenDir, digest: u64) -> io::Result<Self> {
        let name = format!("{NAME_PREFIX}{digest:016x}");
        match Self::open(dir, &name) {
            Err(Errno::NOENT) => {}
            opened => return Ok(opened?),
        }
        Self::make(dir, &name)?;
        Ok(Self::open(dir, &name)?)
    }

    /// Returns whether this waiter is the leader.
    pub(crate) fn is_leader(&self) -> bool {
        self.is_leader
    }

    /// Creates a wait queue unless another process was faster.
    ///
    /// Like a lock file, it gets its name only after its mode is set: if the umask removed
    /// permissions, there would never be a wait queue for these ports, for other users or even
    /// for its owner.
    fn make(dir: &OpenDir, name: &str) -> io::Result<()> {
        let dir = dir.sys();
        let stray = stray_name(&name[1..], process::id());
        rustix::fs::mkfifoat(dir.fd(), &stray, dir.permissions())?;
        let published =
            set_mode(dir, &stray).and_then(|created| Ok((created, publish(dir, &stray, name)?)));
        if let Ok((_, PublishOutcome::Done)) = published {
            return Ok(());
        }
        rustix::fs::unlinkat(dir.fd(), &stray, AtFlags::empty())?;
        let (created, published) = published?;
        if published == PublishOutcome::Exists {
            return Ok(());
        }
        check_umask(dir, created)?;
        match rustix::fs::mkfifoat(dir.fd(), name, dir.permissions()) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn open(dir: &OpenDir, name: &str) -> rustix::io::Result<Self> {
        // Open for reading and writing: a FIFO without a reader cannot be opened for writing
        // (fifo(7)).
        let flags = OPEN | OFlags::RDWR;
        let fifo = rustix::fs::openat(dir.sys().fd(), name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&fifo)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
            return Err(Errno::EXIST);
        }
        if stat.st_nlink > 1 {
            // As with lock files, the other name could be that of any FIFO of ours.
            return Err(Errno::MLINK);
        }
        Ok(Self {
            fifo: fifo.into(),
            is_leader: false,
        })
    }

    /// Removes the wait queue unless it has a leader, or has already been removed.
    pub(crate) fn remove(mut self, dir: &OpenDir, name: &str) -> Option<rustix::io::Result<()>> {
        self.is_leader = lock::try_lock(&self.fifo).ok()?;
        if !self.is_leader {
            return None;
        }
        // Since it was opened, another cleaner may have removed it, and a waiter may have created
        // a new one, which we must not remove.
        let locked = rustix::fs::fstat(&self.fifo).ok()?;
        let at_path = rustix::fs::statat(dir.sys().fd(), name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let is_at_its_path = identity(&locked) == identity(&at_path);
        is_at_its_path.then(|| rustix::fs::unlinkat(dir.sys().fd(), name, AtFlags::empty()))
    }

    /// Waits until this waiter is the leader, the leader turns out to be stopped, or `end` is
    /// reached.
    pub(crate) fn wait_for_leadership(&mut self, end: Instant) -> io::Result<()> {
        let mut wakeup = None;
        loop {
            self.is_leader = lock::try_lock(&self.fifo)?;
            let left = end.saturating_duration_since(Instant::now());
            if self.is_leader || left.is_zero() || self.leader_is_stopped() {
                return Ok(());
            }
            let wakeup = match &wakeup {
                Some(wakeup) => wakeup,
                None => wakeup.insert(self.wakeup()?),
            };
            let at_most = timespec(random(LEADER_CHECK_INTERVAL).min(left));
            let mut events = [MaybeUninit::uninit(); 1];
            match epoll::wait(wakeup, &mut events[..], Some(&at_most)) {
                Ok(([], _)) | Err(Errno::INTR) => {}
                Ok(_) => match (&self.fifo).read(&mut [0; 1]) {
                    // Another waiter was faster.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // Do not retry until the end.
                    Err(error) => return Err(error),
                    Ok(_) => {}
                },
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Returns an epoll instance on which the kernel wakes one waiter, where poll(2) would wake all.
    pub(crate) fn wakeup(&self) -> rustix::io::Result<OwnedFd> {
        let wakeup = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::EXCLUSIVE;
        epoll::add(&wakeup, &self.fifo, epoll::EventData::new_u64(0), flags)?;
        Ok(wakeup)
    }

    /// Shows the waiters behind the leader that the leader is awake.
    pub(crate) fn heartbeat(&self) {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        };
        let times = Timestamps {
            last_access: now,
            last_modification: now,
        };
        // If this fails, the others stop waiting for this leader, which is harmless.
        let _ = rustix::fs::futimens(&self.fifo, &times);
    }

    pub(crate) fn leader_is_stopped(&self) -> bool {
        let heartbeat = self
            .fifo
            .metadata()
            .and_then(|metadata| metadata.modified());
        // A time in the future was set before the clock was set back, and the leader has sent no
        // heartbeat since.
        let age = |time: SystemTime| time.elapsed().unwrap_or_else(|ahead| ahead.duration());
        heartbeat.is_ok_and(|time| age(time) > LEADER_STALE_AFTER)
    }
}

/// Sets the mode of a new FIFO unless the umask has not changed it, and returns the mode that it
/// was created with.
///
/// By name, because its mode may keep us from opening it. No other user may replace it: the
/// directory is private or sticky.
fn set_mode(dir: &Dir, name: &str) -> rustix::io::Result<Mode> {
    let stat = rustix::fs::statat(dir.fd(), name, AtFlags::SYMLINK_NOFOLLOW)?;
    let created = Mode::from_raw_mode(stat.st_mode);
    if created != dir.permissions() {
        rustix::fs::chmodat(dir.fd(), name, dir.permissions(), AtFlags::empty())?;
    }
    Ok(created)
}

impl Drop for WaitQueue {
    fn drop(&mut self) {
        if self.is_leader && lock::unlock(&self.fifo).is_ok() {
            // It is full only if no waiter has read it for a long time.
            let _ = (&self.fifo).write(b"\n");
        }
    }
}
