//! Waiting for a port: in line, and woken by the kernel.
//!
//! Of all who wait for the same ports, threads or processes, only one watches; the
//! others stand in line behind it. So a hundred waiters cost hardly more than one
//! while nothing is released, and a release wakes one of them.
//!
//! * **The line** is a FIFO in the lock directory, `.waiting.<hash of the ports>`.
//!   Whoever has it locked is at the head. Who leaves the head unlocks it and
//!   writes a byte, and the kernel wakes one of those who wait to read it
//!   (`EPOLLEXCLUSIVE` in epoll_ctl(2)). The lock is the truth and the byte only
//!   a bell: a head that is killed rings none, so the others also look now and
//!   then whether the lock is free.
//! * **The watch** is an inotify(7) instance on the lock directory. The end of a
//!   lease closes a file that was open for writing, and the kernel tells its name.
//!   Waiters that look at a port open its file for reading only, and so wake
//!   nobody.
//!
//! The kernel does not tell everything: not that a server leaves a port it had
//! bound without a lease, that a delegated lease ends with its process, or that a
//! lease ends whose descriptor a child has inherited. So the head also looks at
//! all ports from time to time. Where there can be no watch, that alone is left;
//! where there can be no line, everybody is at the head.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    mem::MaybeUninit,
    os::fd::OwnedFd,
    process,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime},
};

use log::debug;
use rand::RngExt;
use rustix::{
    event::{PollFd, PollFlags, Timespec, epoll, poll},
    fs::{
        AtFlags, FileType, Mode, OFlags, RenameFlags, Timestamps, UTIME_NOW,
        inotify::{self, ReadFlags, WatchFlags},
    },
    io::Errno,
};

use crate::{
    lock,
    lock_dir::{LockDir, identity},
    ports::PortSet,
};

/// The pause of the head before it looks at all ports again. It doubles from the
/// shortest up to [`LOOKS_PER_PAUSE`] times what a look takes, within the other two
/// bounds; half of it is random.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONG_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
const LOOKS_PER_PAUSE: u32 = 200;

/// The pause after a look that the kernel called for, in times of what it took, so
/// that callers who try and fail all the time cannot keep the head busy. Callers
/// that want several ports each undo what they have when there are not enough;
/// those who try at the same time would keep each other from success.
const LOOKS_PER_EVENT: u32 = 8;

/// How often those behind look whether the head has gone; half of it is random.
const LOOK_AHEAD: Duration = Duration::from_millis(200);

/// A head that has not stirred for so long is stopped (SIGSTOP, a debugger), and
/// not waited for.
const STOPPED: Duration = Duration::from_secs(10);

/// What there is to look at after a wait.
#[derive(Debug)]
pub(crate) enum Woken {
    /// These ports were released, or tried by somebody.
    Released(PortSet),
    /// All of them.
    Due,
}

/// One caller's wait for some ports.
#[derive(Debug)]
pub(crate) struct Waiting<'a> {
    dir: LockDir,
    ports: &'a PortSet,
    line: Option<Line>,
    /// At the head, or on its own. With a watch, if there can be one.
    is_ahead: bool,
    watch: Option<Watch>,
    pause: Duration,
    due: Instant,
    was_event: bool,
}

impl<'a> Waiting<'a> {
    pub(crate) fn new(dir: &LockDir, ports: &'a PortSet) -> Self {
        let line = Line::join(dir, ports)
            .inspect_err(|error| debug!("no line for {}: {error}", ports.brief()));
        Self {
            dir: dir.clone(),
            ports,
            line: line.ok(),
            is_ahead: false,
            watch: None,
            pause: SHORTEST_PAUSE,
            due: Instant::now(),
            was_event: false,
        }
    }

    /// Whether it is a wait for ports of this directory.
    pub(crate) fn is_in(&self, dir: &LockDir) -> bool {
        self.dir.is(dir)
    }

    /// Waits until there is something to look at, or for `left`. The last look at
    /// the ports took `look`.
    pub(crate) fn wait(&mut self, look: Duration, left: Duration) -> Woken {
        let now = Instant::now();
        let end = now + left;
        if !self.is_ahead {
            if let Some(line) = &mut self.line
                && let Err(error) = line.wait_for_head(end)
            {
                debug!("not waiting in line for {}: {error}", self.ports.brief());
            }
            self.is_ahead = true;
            self.watch = Watch::begin(&self.dir)
                .inspect_err(|error| debug!("no watch on {}: {error}", self.dir.path().display()))
                .ok();
            return Woken::Due;
        }
        // Not in the place of a head that is stopped: who waits behind would take it for
        // awake, and go on waiting when this one leaves without a word.
        if let Some(line) = &self.line
            && line.is_head
        {
            line.stir();
        }
        if self.was_event {
            thread::sleep(random(look * LOOKS_PER_EVENT).min(left));
        } else {
            self.due = now + random(self.pause);
            let longest = (look * LOOKS_PER_PAUSE).clamp(LONG_PAUSE, LONGEST_PAUSE);
            self.pause = (self.pause * 2).min(longest);
        }
        let released = self.watch_until(self.due.min(end));
        self.was_event = released.is_some();
        released.map_or(Woken::Due, Woken::Released)
    }

    /// The ports of ours that were released, or `None` if there were none until `end`,
    /// or the kernel cannot tell.
    fn watch_until(&mut self, end: Instant) -> Option<PortSet> {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Some(watch) = &self.watch else {
                thread::sleep(left);
                return None;
            };
            if left.is_zero() {
                return None;
            }
            match watch.wait(left) {
                Ok(closed) => {
                    let released: PortSet = closed
                        .into_iter()
                        .filter(|&port| self.ports.contains(port))
                        .collect();
                    if !released.is_empty() {
                        return Some(released);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::OVERFLOW) => return None,
                Err(error) => {
                    debug!(
                        "no watch on {} any more: {error}",
                        self.dir.path().display()
                    );
                    self.watch = None;
                }
            }
        }
    }
}

/// So long, or up to half of it less, so that waiters spread out.
fn random(pause: Duration) -> Duration {
    rand::rng().random_range(pause / 2..=pause)
}

fn timespec(duration: Duration) -> Timespec {
    // No wait is as long as the largest that this has room for.
    Timespec::try_from(duration).unwrap_or_default()
}

/// A place in the line of those who wait for the same ports.
#[derive(Debug)]
struct Line {
    fifo: File,
    is_head: bool,
}

/// What the names of lines begin with.
const LINE_PREFIX: &str = ".waiting.";

/// Removes a line in which nobody waits. Gives `None` if somebody does, or it is none.
pub(crate) fn remove_line(dir: &LockDir, name: &str) -> Option<rustix::io::Result<()>> {
    if !name.starts_with(LINE_PREFIX) {
        return None;
    }
    Line::open(dir, name).ok()?.remove(dir, name)
}

impl Line {
    /// The line for these ports, made if there is none.
    fn join(dir: &LockDir, ports: &PortSet) -> rustix::io::Result<Self> {
        let name = format!("{LINE_PREFIX}{:016x}", ports.digest());
        match Self::open(dir, &name) {
            Err(Errno::NOENT) => {}
            opened => return opened,
        }
        Self::make(dir, &name)?;
        Self::open(dir, &name)
    }

    /// Makes a line, if nobody was faster.
    ///
    /// As for lock files, it has its name only once its mode is right: with one that
    /// the umask has taken bits from there would never be a line for these ports, for
    /// other users or even for its owner.
    fn make(dir: &LockDir, name: &str) -> rustix::io::Result<()> {
        let stray = lock::stray_name(&name[1..], process::id());
        rustix::fs::mkfifoat(dir.fd(), &stray, dir.file_mode())?;
        // By name, for its mode may keep us from opening it. Nobody else may replace it:
        // the directory is private or sticky.
        let made = rustix::fs::chmodat(dir.fd(), &stray, dir.file_mode(), AtFlags::empty())
            .and_then(|()| {
                rustix::fs::renameat_with(dir.fd(), &stray, dir.fd(), name, RenameFlags::NOREPLACE)
            });
        let Err(error) = made else { return Ok(()) };
        rustix::fs::unlinkat(dir.fd(), &stray, AtFlags::empty())?;
        if error == Errno::EXIST {
            Ok(())
        } else {
            Err(error)
        }
    }

    fn open(dir: &LockDir, name: &str) -> rustix::io::Result<Self> {
        // For both: a FIFO without a reader cannot be opened for writing (fifo(7)).
        let flags = lock::OPEN | OFlags::RDWR;
        let fifo = rustix::fs::openat(dir.fd(), name, flags, Mode::empty())?;
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
    fn remove(mut self, dir: &LockDir, name: &str) -> Option<rustix::io::Result<()>> {
        self.is_head = lock::try_lock(&self.fifo).ok()?;
        if !self.is_head {
            return None;
        }
        // Since it was opened, another cleaner may have removed it, and a waiter made
        // a new one, which is not ours to remove.
        let locked = rustix::fs::fstat(&self.fifo).ok()?;
        let at_path = rustix::fs::statat(dir.fd(), name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let is_at_its_path = identity(&locked) == identity(&at_path);
        is_at_its_path.then(|| rustix::fs::unlinkat(dir.fd(), name, AtFlags::empty()))
    }

    /// Waits until this is the head of the line, the head turns out to be stopped,
    /// or it is `end`.
    fn wait_for_head(&mut self, end: Instant) -> io::Result<()> {
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
                Ok(([], _)) => {}
                Ok(_) => {
                    // Somebody else may have been faster, which is as well.
                    let _ = (&self.fifo).read(&mut [0; 1]);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Wakes one of those who wait for it, where poll(2) would wake all.
    fn bell(&self) -> rustix::io::Result<OwnedFd> {
        let bell = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::EXCLUSIVE;
        epoll::add(&bell, &self.fifo, epoll::EventData::new_u64(0), flags)?;
        Ok(bell)
    }

    /// Shows those behind that the head is awake.
    fn stir(&self) {
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

    fn head_is_stopped(&self) -> bool {
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

impl Drop for Line {
    fn drop(&mut self) {
        if self.is_head && lock::unlock(&self.fifo).is_ok() {
            // It is full only if nobody has listened for long.
            let _ = (&self.fifo).write(b"\n");
        }
    }
}

/// Is told by the kernel of files in a directory that are closed after they were
/// open for writing.
#[derive(Debug)]
struct Watch {
    instance: Option<OwnedFd>,
    /// Its name for the directory.
    directory: i32,
}

/// The inotify instance of this process, by its pid, while nobody waits. One is kept,
/// for to close it takes the kernel some 10 ms, and whoever has just been given a port
/// would wait for that. A forked child must not read its parent's events, and makes
/// its own.
static SPARE: Mutex<Option<(u32, OwnedFd)>> = Mutex::new(None);

fn spare() -> MutexGuard<'static, Option<(u32, OwnedFd)>> {
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Watch {
    fn drop(&mut self) {
        let Some(instance) = self.instance.take() else {
            return;
        };
        // If the directory was removed, its watch was too.
        let _ = inotify::remove_watch(&instance, self.directory);
        spare().get_or_insert((process::id(), instance));
    }
}

impl Watch {
    fn begin(dir: &LockDir) -> rustix::io::Result<Self> {
        if !dir.is_local() {
            // There a look is not told from the end of a lease, and would wake its
            // own maker; and of other machines nothing would be heard.
            return Err(Errno::OPNOTSUPP);
        }
        let spare = spare().take().filter(|(pid, _)| *pid == process::id());
        let instance = match spare {
            Some((_, instance)) => instance,
            None => {
                let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
                inotify::init(flags)?
            }
        };
        let what = WatchFlags::CLOSE_WRITE | WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW;
        let directory = inotify::add_watch(&instance, dir.path(), what)?;
        Ok(Self {
            instance: Some(instance),
            directory,
        })
    }

    /// The ports whose files were closed since the last call, once there are any
    /// or after so long.
    ///
    /// # Errors
    ///
    /// `OVERFLOW` if there were more than the kernel keeps; `NOENT` if the directory
    /// is gone.
    fn wait(&self, at_most: Duration) -> rustix::io::Result<Vec<u16>> {
        let mut ports = Vec::new();
        let Some(instance) = &self.instance else {
            return Ok(ports);
        };
        let mut fds = [PollFd::new(instance, PollFlags::IN)];
        if poll(&mut fds, Some(&timespec(at_most)))? == 0 {
            return Ok(ports);
        }
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(instance, &mut buffer);
        // So many in one go at most: others may add to them all the time.
        while ports.len() < usize::from(u16::MAX) {
            let event = match events.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error),
            };
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                return Err(Errno::OVERFLOW);
            }
            if event.wd() != self.directory {
                // Of an earlier wait.
                continue;
            }
            if event.events().contains(ReadFlags::IGNORED) {
                return Err(Errno::NOENT);
            }
            let name = event.file_name().and_then(|name| name.to_str().ok());
            ports.extend(name.and_then(|name| name.parse::<u16>().ok()));
        }
        Ok(ports)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::mpsc};

    use tempfile::TempDir;

    use super::*;
    use crate::{
        lock::{PortLock, Try},
        registry,
    };

    // Nothing here binds: the ports are only numbers, each used by one test alone.

    /// Longer than anything takes on a crowded machine.
    const LONG: Duration = Duration::from_secs(60);

    fn lock_dir() -> (TempDir, LockDir) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let locks = LockDir::locate(Some(dir.path())).expect("our own");
        (dir, locks)
    }

    fn hold(dir: &LockDir, port: u16) -> PortLock {
        let claim = registry::claim(port, process::id()).expect("of this test alone");
        let lock = PortLock::try_acquire(dir, claim).expect("our own directory");
        lock.expect("not locked")
    }

    /// A waiter that watches, and does not look by itself.
    fn watcher<'a>(dir: &LockDir, ports: &'a PortSet) -> Waiting<'a> {
        let mut waiting = Waiting::new(dir, ports);
        assert!(matches!(waiting.wait(Duration::ZERO, LONG), Woken::Due));
        assert!(waiting.is_ahead && waiting.watch.is_some());
        waiting.pause = LONG * 2;
        waiting
    }

    fn released(woken: &Woken) -> Vec<u16> {
        match woken {
            Woken::Released(ports) => ports.iter().collect(),
            Woken::Due => Vec::new(),
        }
    }

    #[test]
    fn a_watcher_is_told_of_what_is_released() {
        let (_dir, dir) = lock_dir();
        let (first, second, other) = (hold(&dir, 11), hold(&dir, 12), hold(&dir, 13));
        let ports = PortSet::from(11..=12);
        let mut waiting = watcher(&dir, &ports);
        drop(other);
        drop(first);
        assert_eq!(released(&waiting.wait(Duration::ZERO, LONG)), [11]);
        second.release().expect("our own");
        assert_eq!(released(&waiting.wait(Duration::ZERO, LONG)), [12]);
        // When it hears of it, the port can be claimed already.
        assert!(registry::claim(12, process::id()).is_some());
    }

    #[test]
    fn a_look_is_not_heard() {
        let (_dir, dir) = lock_dir();
        drop(hold(&dir, 14));
        let ports = PortSet::from(14..=14);
        let mut waiting = watcher(&dir, &ports);
        let claim = || registry::claim(14, process::id()).expect("of this test alone");
        let look = PortLock::try_look(&dir, claim()).expect("our own");
        assert!(matches!(look, Try::Locked(_)));
        drop(look);
        drop(PortLock::try_existing(&dir, 14).expect("our own"));
        let woken = waiting.wait(Duration::ZERO, Duration::from_millis(20));
        assert_eq!(released(&woken), []);
    }

    #[test]
    fn one_after_the_other_comes_to_the_head() {
        let (_dir, dir) = lock_dir();
        let ports = PortSet::from(15..=16);
        let head = watcher(&dir, &ports);
        let (sender, ahead) = mpsc::channel();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut waiting = Waiting::new(&dir, &ports);
                    waiting.wait(Duration::ZERO, LONG);
                    let is_head = waiting.line.as_ref().is_some_and(|line| line.is_head);
                    sender.send(is_head).expect("received below");
                });
            }
            assert!(ahead.recv_timeout(Duration::from_millis(20)).is_err());
            drop(head);
            for _ in 0..4 {
                assert!(ahead.recv_timeout(LONG).expect("its turn comes"));
            }
        });
    }

    #[test]
    fn who_leaves_the_head_rings() {
        let (_dir, dir) = lock_dir();
        let ports = PortSet::from(17..=18);
        let behind = Line::join(&dir, &ports).expect("our own directory");
        let bell = behind.bell().expect("descriptors are left");
        let rung = || {
            let mut events = [MaybeUninit::uninit(); 1];
            let now = timespec(Duration::ZERO);
            let (rung, _) = epoll::wait(&bell, &mut events[..], Some(&now)).expect("our own");
            rung.len()
        };
        // Of others than the head nothing is heard.
        drop(Line::join(&dir, &ports).expect("our own directory"));
        assert_eq!(rung(), 0);
        drop(watcher(&dir, &ports));
        assert_eq!(rung(), 1);
    }

    #[test]
    fn a_head_that_was_killed_or_stopped_is_not_waited_for() {
        let (dir, locks) = lock_dir();
        let ports = PortSet::from(19..=19);
        let join = || Line::join(&locks, &ports).expect("our own directory");
        let end = || Instant::now() + LONG;

        let mut head = join();
        head.wait_for_head(end()).expect("no other");
        // It does not ring any more.
        head.is_head = false;
        drop(head);
        let mut head = join();
        head.wait_for_head(end()).expect("no other");
        assert!(head.is_head);

        let mut behind = join();
        let now = SystemTime::now();
        // Long ago; or the clock was set back since.
        for time in [now - 10 * STOPPED, now + 10 * LONG] {
            head.fifo.set_modified(time).expect("our own");
            let start = Instant::now();
            behind.wait_for_head(end()).expect("no error");
            assert!(!behind.is_head && start.elapsed() < LONG);
            head.stir();
            assert!(!behind.head_is_stopped());
        }

        // Who goes ahead of it does not make it seem awake.
        head.fifo.set_modified(now - 10 * STOPPED).expect("our own");
        let mut ahead = Waiting::new(&locks, &ports);
        for _ in 0..2 {
            ahead.wait(Duration::ZERO, LONG);
        }
        assert!(behind.head_is_stopped());
        assert_eq!(fs::read_dir(dir.path()).expect("our own").count(), 1);
    }

    #[test]
    fn where_there_can_be_no_line_everybody_watches() {
        let (dir, locks) = lock_dir();
        let ports = PortSet::from(20..=20);
        let name = format!("{LINE_PREFIX}{:016x}", ports.digest());
        fs::write(dir.path().join(name), "not a FIFO").expect("our own directory");
        assert!(Line::join(&locks, &ports).is_err());
        let held = hold(&locks, 20);
        let mut both = [watcher(&locks, &ports), watcher(&locks, &ports)];
        drop(held);
        for waiting in &mut both {
            assert_eq!(released(&waiting.wait(Duration::ZERO, LONG)), [20]);
        }
    }

    #[test]
    fn a_line_is_removed_when_nobody_waits() {
        let (dir, locks) = lock_dir();
        let ports = PortSet::from(21..=21);
        let clean = || locks.clean().expect("our own").removed;
        let head = watcher(&locks, &ports);
        assert_eq!(clean(), 0);
        drop(head);
        assert_eq!(clean(), 1);
        assert_eq!(fs::read_dir(dir.path()).expect("our own").count(), 0);
    }

    #[test]
    fn a_line_that_was_made_again_is_not_removed() {
        let (dir, locks) = lock_dir();
        let ports = PortSet::from(22..=22);
        let name = format!("{LINE_PREFIX}{:016x}", ports.digest());
        let join = || Line::join(&locks, &ports).expect("our own directory");
        let (first, second) = (join(), join());
        first
            .remove(&locks, &name)
            .expect("nobody waits")
            .expect("ours");
        assert!(second.remove(&locks, &name).is_none(), "already removed");
        let opened = join();
        assert!(remove_line(&locks, &name).is_some());
        let _new = join();
        assert!(opened.remove(&locks, &name).is_none(), "made again");
        assert_eq!(fs::read_dir(dir.path()).expect("our own").count(), 1);
    }
}
