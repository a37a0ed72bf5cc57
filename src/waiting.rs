//! Waiting for a port: in line, and woken by the kernel.
//!
//! Of all who wait for the same ports, threads or processes, only one watches; the
//! others stand in line behind it. So a hundred waiters cost hardly more than one
//! while nothing is released, and a release wakes one of them. What the line is made
//! of, and what wakes the one at its head, is the system's: see `sys::line` and
//! `sys::watch`. Linux has both, the others neither.
//!
//! The kernel does not tell everything: not that a server leaves a port it had
//! bound without a lease, that a delegated lease ends with its process, or that a
//! lease ends whose descriptor a child has inherited. So the head also looks at
//! all ports from time to time. Where there can be no watch, that alone is left;
//! where there can be no line, everybody is at the head.

use std::{
    thread,
    time::{Duration, Instant},
};

use log::debug;
use rand::RngExt;

use crate::{
    lock_dir::OpenDir,
    ports::PortSet,
    sys::{line::Line, watch::Watch},
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

/// The longest single wait, a year: `Instant` and the system's calls overflow with
/// `Duration::MAX`.
const LONGEST_WAIT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

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
    /// `None` if it does not exist: then nothing is leased, and nobody can be woken.
    dir: Option<OpenDir>,
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
    pub(crate) fn new(dir: Option<&OpenDir>, ports: &'a PortSet) -> Self {
        let line = dir.map(|dir| Line::join(dir, ports.digest()));
        let line = line.and_then(|line| {
            line.inspect_err(|error| debug!("no wait queue for {}: {error}", ports.brief()))
                .ok()
        });
        Self {
            dir: dir.cloned(),
            ports,
            line,
            is_ahead: false,
            watch: None,
            pause: SHORTEST_PAUSE,
            due: Instant::now(),
            was_event: false,
        }
    }

    /// Whether it is a wait for ports of this directory.
    pub(crate) fn is_in(&self, dir: Option<&OpenDir>) -> bool {
        match (&self.dir, dir) {
            (Some(ours), Some(dir)) => ours.is(dir),
            (ours, dir) => ours.is_none() && dir.is_none(),
        }
    }

    /// Waits until there is something to look at, or for `left`. The last look at
    /// the ports took `look`.
    pub(crate) fn wait(&mut self, look: Duration, left: Duration) -> Woken {
        let left = left.min(LONGEST_WAIT);
        let now = Instant::now();
        let end = now + left;
        if !self.is_ahead {
            if let Some(line) = &mut self.line
                && let Err(error) = line.wait_for_head(end)
            {
                debug!("not waiting in line for {}: {error}", self.ports.brief());
            }
            self.is_ahead = true;
            self.watch = self.dir.as_ref().and_then(|dir| {
                Watch::begin(dir)
                    .inspect_err(|error| debug!("no watch on {}: {error}", dir.path().display()))
                    .ok()
            });
            return Woken::Due;
        }
        // Not in the place of a head that is stopped: who waits behind would take it for
        // awake, and go on waiting when this one leaves without a word.
        if let Some(line) = &self.line
            && line.is_head()
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
                // More than the kernel keeps.
                Ok(None) => return None,
                Ok(Some(closed)) => {
                    let released: PortSet = closed
                        .into_iter()
                        .filter(|&port| self.ports.contains(port))
                        .collect();
                    if !released.is_empty() {
                        return Some(released);
                    }
                }
                Err(error) => {
                    debug!("no watch for {} any more: {error}", self.ports.brief());
                    self.watch = None;
                }
            }
        }
    }
}

/// So long, or up to half of it less, so that waiters spread out.
pub(crate) fn random(pause: Duration) -> Duration {
    rand::rng().random_range(pause / 2..=pause)
}

// Elsewhere there is neither a line nor a watch.
#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::{fs, mem::MaybeUninit, sync::mpsc, time::SystemTime};

    use rustix::event::epoll;

    use tempfile::TempDir;

    use super::*;
    use crate::{
        lock::{PortLock, Try},
        owner::since_1970,
        registry,
        sys::{
            line::{LINE_PREFIX, STOPPED, remove_line},
            mark, timespec,
        },
    };

    // Nothing here binds: the ports are only numbers, each used by one test alone.

    /// Longer than anything takes on a crowded machine.
    const LONG: Duration = Duration::from_secs(60);

    fn lock_dir() -> (TempDir, OpenDir) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let locks = OpenDir::locate_at(Some(dir.path()), since_1970()).expect("our own");
        (dir, locks)
    }

    fn hold(dir: &OpenDir, port: u16) -> PortLock {
        let claim = registry::claim(port, mark::current()).expect("of this test alone");
        let lock = PortLock::try_acquire(dir, claim).expect("our own directory");
        lock.expect("not locked")
    }

    /// A waiter that watches, and does not look by itself.
    fn watcher<'a>(dir: &OpenDir, ports: &'a PortSet) -> Waiting<'a> {
        let mut waiting = Waiting::new(Some(dir), ports);
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
        assert!(registry::claim(12, mark::current()).is_some());
    }

    #[test]
    fn a_look_is_not_heard() {
        let (_dir, dir) = lock_dir();
        drop(hold(&dir, 14));
        let ports = PortSet::from(14..=14);
        let mut waiting = watcher(&dir, &ports);
        let look = PortLock::try_look(&dir, 14, mark::current()).expect("our own");
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
                    let mut waiting = Waiting::new(Some(&dir), &ports);
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
        let behind = Line::join(&dir, ports.digest()).expect("our own directory");
        let bell = behind.bell().expect("descriptors are left");
        let rung = || {
            let mut events = [MaybeUninit::uninit(); 1];
            let now = timespec(Duration::ZERO);
            let (rung, _) = epoll::wait(&bell, &mut events[..], Some(&now)).expect("our own");
            rung.len()
        };
        // Of others than the head nothing is heard.
        drop(Line::join(&dir, ports.digest()).expect("our own directory"));
        assert_eq!(rung(), 0);
        drop(watcher(&dir, &ports));
        assert_eq!(rung(), 1);
    }

    #[test]
    fn a_head_that_was_killed_or_stopped_is_not_waited_for() {
        let (dir, locks) = lock_dir();
        let ports = PortSet::from(19..=19);
        let join = || Line::join(&locks, ports.digest()).expect("our own directory");
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
        let mut ahead = Waiting::new(Some(&locks), &ports);
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
        assert!(Line::join(&locks, ports.digest()).is_err());
        let held = hold(&locks, 20);
        let mut both = [watcher(&locks, &ports), watcher(&locks, &ports)];
        drop(held);
        for waiting in &mut both {
            assert_eq!(released(&waiting.wait(Duration::ZERO, LONG)), [20]);
        }
    }

    #[test]
    fn the_longest_timeout_is_a_wait_like_any_other() {
        let (_dir, dir) = lock_dir();
        let ports = PortSet::from(23..=23);
        let held = hold(&dir, 23);
        let mut waiting = Waiting::new(Some(&dir), &ports);
        assert!(matches!(
            waiting.wait(Duration::ZERO, Duration::MAX),
            Woken::Due
        ));
        drop(held);
        assert_eq!(released(&waiting.wait(Duration::ZERO, Duration::MAX)), [23]);
    }

    #[test]
    fn a_line_is_removed_when_nobody_waits() {
        let (dir, locks) = lock_dir();
        let ports = PortSet::from(21..=21);
        let clean = || {
            let locks = crate::LockDir::locate(Some(dir.path())).expect("our own");
            locks.clean().expect("our own").removed
        };
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
        let join = || Line::join(&locks, ports.digest()).expect("our own directory");
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
