//! The line of those who wait for the same ports: a FIFO in the lock directory,
//! `.waiting.<hash of the ports>`.
//!
//! Whoever has it locked is at the head. Who leaves the head unlocks it and writes a
//! byte, and the kernel wakes one of those who wait to read it (`EPOLLEXCLUSIVE` in
//! epoll_ctl(2)). The lock is the truth and the byte only a bell: a head that is
//! killed rings none, so the others also look now and then whether the lock is free.

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
    lock,
    lock_dir::OpenDir,
    sys::unix::{
        dir::{Dir, identity},
        lock_file::{OPEN, Published, check_umask, publish, stray_name},
    },
    waiting::random,
};

/// How often those behind look whether the head has gone without ringing, as one that
/// was killed does; half of it is random. A hundred of them do so for half a hundredth
/// of a core.
const LOOK_AHEAD: Duration = Duration::from_millis(400);

/// A head that has not stirred for so long is stopped (SIGSTOP, a debugger), and
/// not waited for.
pub(crate) const STOPPED: Duration = Duration::from_secs(10);

/// A place in the line of those who wait for the same ports.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) fifo: File,
    pub(crate) is_head: bool,
}

/// What the names of lines begin with.
pub(crate) const LINE_PREFIX: &str = ".waiting.";

/// Removes a line in which nobody waits. Gives `None` if somebody does, or it is none.
pub(crate) fn remove_line(dir: &OpenDir, name: &str) -> Option<io::Result<()>> {
    if !name.starts_with(LINE_PREFIX) {
        return None;
    }
    let removed = Line::open(dir, name).ok()?.remove(dir, name)?;
    Some(removed.map_err(Into::into))
}

impl Line {
    /// Returns the line for the ports of this digest, created if there is none.
    pub(crate) fn join(dir: &OpenDir, digest: u64) -> io::Result<Self> {
        let name = format!("{LINE_PREFIX}{digest:016x}");
        match Self::open(dir, &name) {
            Err(Errno::NOENT) => {}
            opened => return Ok(opened?),
        }
        Self::make(dir, &name)?;
        Ok(Self::open(dir, &name)?)
    }

    /// Whether this is the head.
    pub(crate) fn is_head(&self) -> bool {
        self.is_head
    }

    /// Creates a line unless another process was faster.
    ///
    /// As a lock file, it gets its name only once its mode is right: with one from which
    /// the umask has taken permissions there would never be a line for these ports, for
    /// other users or even for its owner.
    fn make(dir: &OpenDir, name: &str) -> io::Result<()> {
        let dir = dir.sys();
        let stray = stray_name(&name[1..], process::id());
        rustix::fs::mkfifoat(dir.fd(), &stray, dir.permissions())?;
        let published =
            set_mode(dir, &stray).and_then(|created| Ok((created, publish(dir, &stray, name)?)));
        if let Ok((_, Published::Done)) = published {
            return Ok(());
        }
        rustix::fs::unlinkat(dir.fd(), &stray, AtFlags::empty())?;
        let (created, published) = published?;
        if published == Published::Exists {
            return Ok(());
        }
        check_umask(dir, created)?;
        match rustix::fs::mkfifoat(dir.fd(), name, dir.permissions()) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn open(dir: &OpenDir, name: &str) -> rustix::io::Result<Self> {
        // For both: a FIFO without a reader cannot be opened for writing (fifo(7)).
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
            is_head: false,
        })
    }

    /// Removes the line unless somebody is at its head, or it has already been removed.
    pub(crate) fn remove(mut self, dir: &OpenDir, name: &str) -> Option<rustix::io::Result<()>> {
        self.is_head = lock::try_lock(&self.fifo).ok()?;
        if !self.is_head {
            return None;
        }
        // Since it was opened, another cleaner may have removed it, and a waiter made
        // a new one, which is not ours to remove.
        let locked = rustix::fs::fstat(&self.fifo).ok()?;
        let at_path = rustix::fs::statat(dir.sys().fd(), name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let is_at_its_path = identity(&locked) == identity(&at_path);
        is_at_its_path.then(|| rustix::fs::unlinkat(dir.sys().fd(), name, AtFlags::empty()))
    }

    /// Waits until this is the head of the line, the head turns out to be stopped,
    /// or it is `end`.
    pub(crate) fn wait_for_head(&mut self, end: Instant) -> io::Result<()> {
        let mut bell = None;
        loop {
            self.is_head = lock::try_lock(&self.fifo)?;
            let left = end.saturating_duration_since(Instant::now());
            if self.is_head || left.is_zero() || self.head_is_stopped() {
                return Ok(());
            }
            let bell = match &bell {
                Some(bell) => bell,
                None => bell.insert(self.bell()?),
            };
            let at_most = timespec(random(LOOK_AHEAD).min(left));
            let mut events = [MaybeUninit::uninit(); 1];
            match epoll::wait(bell, &mut events[..], Some(&at_most)) {
                Ok(([], _)) | Err(Errno::INTR) => {}
                Ok(_) => match (&self.fifo).read(&mut [0; 1]) {
                    // Somebody else was faster, which is as well.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // And not again and again until the end.
                    Err(error) => return Err(error),
                    Ok(_) => {}
                },
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Wakes one of those who wait for it, where poll(2) would wake all.
    pub(crate) fn bell(&self) -> rustix::io::Result<OwnedFd> {
        let bell = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::EXCLUSIVE;
        epoll::add(&bell, &self.fifo, epoll::EventData::new_u64(0), flags)?;
        Ok(bell)
    }

    /// Shows those behind that the head is awake.
    pub(crate) fn stir(&self) {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        };
        let times = Timestamps {
            last_access: now,
            last_modification: now,
        };
        // If it fails, others will not wait for this one: no harm.
        let _ = rustix::fs::futimens(&self.fifo, &times);
    }

    pub(crate) fn head_is_stopped(&self) -> bool {
        let stirred = self
            .fifo
            .metadata()
            .and_then(|metadata| metadata.modified());
        // A time that is yet to come is of a clock that was set back since, and of a head
        // that has not stirred after that.
        let away = |stirred: SystemTime| stirred.elapsed().unwrap_or_else(|ahead| ahead.duration());
        stirred.is_ok_and(|stirred| away(stirred) > STOPPED)
    }
}

/// Sets the mode of a new FIFO unless the umask has left it as it should be, and returns
/// the mode that it was created with.
///
/// By name, because its mode may keep us from opening it. Nobody else may replace it: the
/// directory is private or sticky.
fn set_mode(dir: &Dir, name: &str) -> rustix::io::Result<Mode> {
    let stat = rustix::fs::statat(dir.fd(), name, AtFlags::SYMLINK_NOFOLLOW)?;
    let created = Mode::from_raw_mode(stat.st_mode);
    if created != dir.permissions() {
        rustix::fs::chmodat(dir.fd(), name, dir.permissions(), AtFlags::empty())?;
    }
    Ok(created)
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.is_head && lock::unlock(&self.fifo).is_ok() {
            // It is full only if nobody has listened for long.
            let _ = (&self.fifo).write(b"\n");
        }
    }
}
