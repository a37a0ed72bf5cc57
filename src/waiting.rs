//! Waits for a port: in a wait queue, and woken by the kernel.
//!
//! Of all threads and processes that wait for the same ports, only the leader watches; the others
//! wait behind it in the wait queue. So a hundred waiters cost hardly more than one while nothing
//! is released, and a release wakes one of them. How the wait queue works, and what wakes the
//! leader, depends on the system: Linux has both (`waiting/linux.rs`). The other systems have no
//! wait queue (`waiting/unsupported.rs`), so every waiter is a leader, and they use another watch
//! (`waiting/lock_watch.rs`).
//!
//! The kernel does not report everything: not when a server closes a port that it had bound
//! without a lease, when a delegated lease ends with its process, or, on Linux, when a lease ends
//! whose descriptor a child has inherited. So the leader also rescans all ports from time to
//! time. Without a watch, it only rescans.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{jitter::random, lock::PortLock, lock_dir::OpenDir, logging::debug, ports::PortSet};

#[cfg(all(target_os = "linux", not(lock_watch)))]
mod linux;
#[cfg(any(test, lock_watch, not(target_os = "linux")))]
mod lock_watch;
#[cfg(any(lock_watch, not(target_os = "linux")))]
mod unsupported;

// With `--cfg lock_watch`, a test on Linux uses the code of the other systems.
#[cfg(all(target_os = "linux", not(lock_watch)))]
use linux::{WaitQueue, Watch};
#[cfg(any(lock_watch, not(target_os = "linux")))]
use {lock_watch::Watch, unsupported::WaitQueue};

#[cfg(all(target_os = "linux", not(lock_watch)))]
pub(crate) use linux::remove_wait_queue;
#[cfg(any(lock_watch, not(target_os = "linux")))]
pub(crate) use unsupported::remove_wait_queue;

/// The pause of the leader before it rescans all ports. It doubles from the minimum up to
/// [`MAX_RESCAN_INTERVAL_IN_SCANS`] times the duration of a scan, which is at least
/// [`LONG_RESCAN_INTERVAL`] and at most [`MAX_RESCAN_INTERVAL`]; half of it is random.
const MIN_RESCAN_INTERVAL: Duration = Duration::from_millis(1);
const LONG_RESCAN_INTERVAL: Duration = Duration::from_millis(100);
const MAX_RESCAN_INTERVAL: Duration = Duration::from_secs(2);
const MAX_RESCAN_INTERVAL_IN_SCANS: u32 = 200;

/// The pause after a scan that a wakeup by the kernel caused, as a multiple of the duration of
/// that scan, so that callers that retry and fail all the time cannot keep the leader busy.
/// Callers that want several ports each release what they have if there are not enough; if they
/// retried simultaneously, they would block each other.
const PAUSE_AFTER_WAKEUP_IN_SCANS: u32 = 8;

/// The longest single wait, a year: `Instant` and the system's calls overflow with
/// `Duration::MAX`.
const MAX_WAIT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// What to scan after a wait.
#[derive(Debug)]
pub(crate) enum WakeReason {
    /// These ports were released, or tried by another caller.
    Released(PortSet),
    /// The port with this lock, which was released.
    Locked(PortLock),
    /// All ports.
    Due,
    /// Nothing yet: the wait was interrupted and has to be continued.
    Interrupted,
}

/// An event that a watch reports.
#[derive(Debug)]
#[allow(dead_code, reason = "each system has its own")]
enum Event {
    /// The files of these ports were closed.
    Closed(Vec<u16>),
    /// More files were closed than the kernel's queue holds.
    Overflow,
    /// A lock has ended, and this waiter has taken it.
    Locked(PortLock),
}

/// One caller's wait for some ports.
#[derive(Debug)]
pub(crate) struct Wait<'a> {
    /// `None` if it does not exist: then nothing is leased, and no waiter can be woken.
    dir: Option<OpenDir>,
    ports: &'a PortSet,
    queue: Option<WaitQueue>,
    /// Whether it is the leader, has no queue, or overtook a stopped leader. If so, it has a
    /// watch, if there can be one.
    is_ahead: bool,
    watch: Option<Watch>,
    rescan_interval: Duration,
    due: Instant,
    was_event: bool,
    /// The end of the pause after a scan that a wakeup by the kernel caused.
    quiet_until: Instant,
    was_interrupted: bool,
}

impl<'a> Wait<'a> {
    pub(crate) fn new(dir: Option<&OpenDir>, ports: &'a PortSet) -> Self {
        let queue = dir.map(|dir| WaitQueue::join(dir, ports.digest()));
        let queue = queue.and_then(|queue| {
            queue
                .inspect_err(|error| debug!("no wait queue for {}: {error}", ports.brief()))
                .ok()
        });
        Self {
            dir: dir.cloned(),
            ports,
            queue,
            is_ahead: false,
            watch: None,
            rescan_interval: MIN_RESCAN_INTERVAL,
            due: Instant::now(),
            was_event: false,
            quiet_until: Instant::now(),
            was_interrupted: false,
        }
    }

    /// Returns whether it waits for ports of this directory.
    pub(crate) fn is_in(&self, dir: Option<&OpenDir>) -> bool {
        match (&self.dir, dir) {
            (Some(ours), Some(dir)) => ours.is(dir),
            (ours, dir) => ours.is_none() && dir.is_none(),
        }
    }

    /// Also watches these ports, which the last scan found leased.
    pub(crate) fn watch_for(&mut self, leased: &[u16]) {
        if let Some(watch) = &mut self.watch {
            watch.watch_for(leased);
        }
    }

    /// Waits until there is something to scan, for at most `left`, or until `interrupt`. The last
    /// scan of the ports took `scan`.
    pub(crate) fn wait(
        &mut self,
        scan: Duration,
        left: Duration,
        interrupt: Option<Instant>,
    ) -> WakeReason {
        let now = Instant::now();
        let end = now + left.min(MAX_WAIT);
        let until = interrupt.map_or(end, |interrupt| interrupt.min(end));
        let is_interrupted = || until < end && Instant::now() >= until;
        if !self.is_ahead {
            if let Some(queue) = &mut self.queue {
                match queue.wait_for_leadership(until) {
                    Ok(()) if !queue.is_leader() && is_interrupted() => {
                        return WakeReason::Interrupted;
                    }
                    Ok(()) => {}
                    Err(error) => debug!(
                        "not waiting in the queue for {}: {error}",
                        self.ports.brief()
                    ),
                }
            }
            self.is_ahead = true;
            self.watch = self.dir.as_ref().and_then(|dir| {
                Watch::begin(dir)
                    .inspect_err(|error| debug!("no watch on {}: {error}", dir.path().display()))
                    .ok()
            });
            return WakeReason::Due;
        }
        // Only the leader sends heartbeats. A heartbeat on behalf of a stopped leader would make
        // the waiters behind it believe that it is awake, so they would keep waiting after this
        // waiter leaves, which wakes no waiter.
        if let Some(queue) = &self.queue
            && queue.is_leader()
        {
            queue.heartbeat();
        }
        if self.was_interrupted {
            self.was_interrupted = false;
        } else if self.was_event {
            self.quiet_until = now + random(scan * PAUSE_AFTER_WAKEUP_IN_SCANS);
        } else {
            self.due = now + random(self.rescan_interval);
            let longest = (scan * MAX_RESCAN_INTERVAL_IN_SCANS)
                .clamp(LONG_RESCAN_INTERVAL, MAX_RESCAN_INTERVAL);
            self.rescan_interval = (self.rescan_interval * 2).min(longest);
        }
        if self.quiet_until > now {
            thread::sleep(self.quiet_until.min(until).saturating_duration_since(now));
        }
        let woken = self.watch_until(self.due.min(until));
        let is_due = matches!(woken, WakeReason::Due);
        let next = self.due.max(self.quiet_until);
        if is_due && is_interrupted() && Instant::now() < next {
            self.was_interrupted = true;
            return WakeReason::Interrupted;
        }
        self.was_event = !is_due;
        woken
    }

    /// Returns the ports that were released, or a scan of all ports if none were released until
    /// `end` or the kernel does not report it.
    fn watch_until(&mut self, end: Instant) -> WakeReason {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Some(watch) = &mut self.watch else {
                thread::sleep(left);
                return WakeReason::Due;
            };
            if left.is_zero() {
                return WakeReason::Due;
            }
            match watch.wait(left) {
                Ok(None) => {}
                Ok(Some(Event::Overflow)) => return WakeReason::Due,
                Ok(Some(Event::Closed(ports))) => {
                    let released: PortSet = ports
                        .into_iter()
                        .filter(|&port| self.ports.contains(port))
                        .collect();
                    if !released.is_empty() {
                        return WakeReason::Released(released);
                    }
                }
                Ok(Some(Event::Locked(lock))) => return WakeReason::Locked(lock),
                Err(error) => {
                    debug!("no watch for {} any more: {error}", self.ports.brief());
                    self.watch = None;
                }
            }
        }
    }
}

// The other systems have no wait queue, and another watch, which has its own tests.
#[cfg(all(test, target_os = "linux", not(lock_watch)))]
mod tests {
    use std::{fs, mem::MaybeUninit, sync::mpsc, time::SystemTime};

    use rustix::event::epoll;

    use tempfile::TempDir;

    use super::{
        linux::{
            timespec,
            wait_queue::{LEADER_STALE_AFTER, NAME_PREFIX},
        },
        *,
    };
    use crate::{
        clock::since_1970,
        lock::{Access, PortLock},
        mark, registry,
    };

    // Nothing here binds: the ports are only numbers, each used by one test.

    /// Longer than anything takes on a busy machine.
    const LONG: Duration = Duration::from_secs(60);

    fn lock_dir() -> (TempDir, OpenDir) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let locks = OpenDir::locate_at(Some(dir.path()), since_1970()).expect("our own");
        (dir, locks)
    }

    fn hold(dir: &OpenDir, port: u16) -> PortLock {
        let claim = registry::claim(port, mark::current()).expect("of this test alone");
        PortLock::try_acquire(dir, claim, None).expect("our own directory, and not locked")
    }

    /// Returns a waiter that watches, and does not rescan by itself.
    fn watcher<'a>(dir: &OpenDir, ports: &'a PortSet) -> Wait<'a> {
        let mut waiting = Wait::new(Some(dir), ports);
        assert!(matches!(
            waiting.wait(Duration::ZERO, LONG, None),
            WakeReason::Due
        ));
        assert!(waiting.is_ahead && waiting.watch.is_some());
        waiting.rescan_interval = LONG * 2;
        waiting
    }

    fn released(woken: &WakeReason) -> Vec<u16> {
        match woken {
            WakeReason::Released(ports) => ports.iter().collect(),
            WakeReason::Locked(_) | WakeReason::Due | WakeReason::Interrupted => Vec::new(),
        }
    }

    #[test]
    fn a_watcher_is_notified_of_releases() {
        let (_dir, dir) = lock_dir();
        let (first, second, other) = (hold(&dir, 11), hold(&dir, 12), hold(&dir, 13));
        let ports = PortSet::from(11..=12);
        let mut waiting = watcher(&dir, &ports);
        drop(other);
        drop(first);
        assert_eq!(released(&waiting.wait(Duration::ZERO, LONG, None)), [11]);
        second.release().expect("our own");
        assert_eq!(released(&waiting.wait(Duration::ZERO, LONG, None)), [12]);
        // When the watcher is notified, the port can already be claimed.
        assert!(registry::claim(12, mark::current()).is_some());
    }

    #[test]
    fn a_check_wakes_no_waiter() {
        let (_dir, dir) = lock_dir();
        drop(hold(&dir, 14));
        let ports = PortSet::from(14..=14);
        let mut waiting = watcher(&dir, &ports);
        let check = PortLock::try_check(&dir, 14, mark::current(), None).expect("our own");
        drop(check.expect("not removed"));
        drop(PortLock::try_existing(&dir, 14, Access::Lock).expect("our own"));
        let woken = waiting.wait(Duration::ZERO, Duration::from_millis(20), None);
        assert!(released(&woken).is_empty());
    }

    #[test]
    fn each_waiter_becomes_the_leader_in_turn() {
        let (_dir, dir) = lock_dir();
        let ports = PortSet::from(15..=16);
        let leader = watcher(&dir, &ports);
        let (sender, ahead) = mpsc::channel();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut waiting = Wait::new(Some(&dir), &ports);
                    waiting.wait(Duration::ZERO, LONG, None);
                    let is_leader = waiting.queue.as_ref().is_some_and(|queue| queue.is_leader);
                    sender.send(is_leader).expect("received below");
                });
            }
            assert!(ahead.recv_timeout(Duration::from_millis(20)).is_err());
            drop(leader);
            for _ in 0..4 {
                assert!(ahead.recv_timeout(LONG).expect("its turn comes"));
            }
        });
    }

    #[test]
    fn a_leader_that_leaves_wakes_a_waiter() {
        let (_dir, dir) = lock_dir();
        let ports = PortSet::from(17..=18);
        let behind = WaitQueue::join(&dir, ports.digest()).expect("our own directory");
        let wakeup = behind.wakeup().expect("descriptors are left");
        let woken = || {
            let mut events = [MaybeUninit::uninit(); 1];
            let now = timespec(Duration::ZERO);
            let (woken, _) = epoll::wait(&wakeup, &mut events[..], Some(&now)).expect("our own");
            woken.len()
        };
        // A waiter that is not the leader wakes no other waiter.
        drop(WaitQueue::join(&dir, ports.digest()).expect("our own directory"));
        assert_eq!(woken(), 0);
        drop(watcher(&dir, &ports));
        assert_eq!(woken(), 1);
    }

    #[test]
    fn waiters_do_not_wait_for_a_leader_that_was_killed_or_stopped() {
        let (dir, locks) = lock_dir();
        let ports = PortSet::from(19..=19);
        let join = || WaitQueue::join(&locks, ports.digest()).expect("our own directory");
        let end = || Instant::now() + LONG;

        let mut leader = join();
        leader.wait_for_leadership(end()).expect("no other");
        // This simulates a kill: it wakes no waiter when it is dropped.
        leader.is_leader = false;
        drop(leader);
        let mut leader = join();
        leader.wait_for_leadership(end()).expect("no other");
        assert!(leader.is_leader);

        let mut behind = join();
        let now = SystemTime::now();
        // Long ago; or the clock was set back since then.
        for time in [now - 10 * LEADER_STALE_AFTER, now + 10 * LONG] {
            leader.fifo.set_modified(time).expect("our own");
            let start = Instant::now();
            behind.wait_for_leadership(end()).expect("no error");
            assert!(!behind.is_leader && start.elapsed() < LONG);
            leader.heartbeat();
            assert!(!behind.leader_is_stopped());
        }

        // A waiter that overtakes it does not make it seem awake.
        leader
            .fifo
            .set_modified(now - 10 * LEADER_STALE_AFTER)
            .expect("our own");
        let mut ahead = Wait::new(Some(&locks), &ports);
        for _ in 0..2 {
            ahead.wait(Duration::ZERO, LONG, None);
        }
        assert!(behind.leader_is_stopped());
        assert_eq!(fs::read_dir(dir.path()).expect("our own").count(), 1);
    }

    #[test]
    fn without_a_wait_queue_every_waiter_watches() {
        let (dir, locks) = lock_dir();
        let ports = PortSet::from(20..=20);
        let name = format!("{NAME_PREFIX}{:016x}", ports.digest());
        fs::write(dir.path().join(name), "not a FIFO").expect("our own directory");
        assert!(WaitQueue::join(&locks, ports.digest()).is_err());
        let held = hold(&locks, 20);
        let mut both = [watcher(&locks, &ports), watcher(&locks, &ports)];
        drop(held);
        for waiting in &mut both {
            assert_eq!(released(&waiting.wait(Duration::ZERO, LONG, None)), [20]);
        }
    }

    #[test]
    fn the_longest_timeout_is_a_wait_like_any_other() {
        let (_dir, dir) = lock_dir();
        let ports = PortSet::from(23..=23);
        let held = hold(&dir, 23);
        let mut waiting = Wait::new(Some(&dir), &ports);
        assert!(matches!(
            waiting.wait(Duration::ZERO, Duration::MAX, None),
            WakeReason::Due
        ));
        // On a busy machine, the first rescan is due before the event is read.
        waiting.rescan_interval = LONG * 2;
        drop(held);
        assert_eq!(
            released(&waiting.wait(Duration::ZERO, Duration::MAX, None)),
            [23]
        );
    }

    #[test]
    fn an_empty_wait_queue_is_removed() {
        let (dir, locks) = lock_dir();
        let ports = PortSet::from(21..=21);
        let clean = || {
            let locks = crate::LockDir::open(dir.path()).expect("our own");
            locks.clean().expect("our own").removed
        };
        let leader = watcher(&locks, &ports);
        assert_eq!(clean(), 0);
        drop(leader);
        assert_eq!(clean(), 1);
        assert_eq!(fs::read_dir(dir.path()).expect("our own").count(), 0);
    }

    #[test]
    fn a_wait_queue_that_was_created_again_is_not_removed() {
        let (dir, locks) = lock_dir();
        let ports = PortSet::from(22..=22);
        let name = format!("{NAME_PREFIX}{:016x}", ports.digest());
        let join = || WaitQueue::join(&locks, ports.digest()).expect("our own directory");
        let (first, second) = (join(), join());
        first
            .remove(&locks, &name)
            .expect("nobody waits")
            .expect("ours");
        assert!(second.remove(&locks, &name).is_none(), "already removed");
        let opened = join();
        assert!(remove_wait_queue(&locks, &name).is_some());
        let _new = join();
        assert!(opened.remove(&locks, &name).is_none(), "made again");
        assert_eq!(fs::read_dir(dir.path()).expect("our own").count(), 1);
    }

    #[test]
    fn a_wait_can_be_interrupted_at_any_point_and_continues() {
        let (_dir, dir) = lock_dir();
        let ports = PortSet::from(24);
        let held = hold(&dir, 24);
        let mut leader = watcher(&dir, &ports);
        let mut behind = Wait::new(Some(&dir), &ports);
        let soon = || Some(Instant::now() + Duration::from_millis(20));
        for _ in 0..2 {
            // In the queue, and at the watch.
            for waiting in [&mut behind, &mut leader] {
                let woken = waiting.wait(Duration::ZERO, LONG, soon());
                assert!(matches!(woken, WakeReason::Interrupted));
            }
        }
        drop(held);
        assert_eq!(released(&leader.wait(Duration::ZERO, LONG, soon())), [24]);
        // In the pause after a scan that a wakeup caused, although the next scan is due.
        leader.due = Instant::now();
        let start = Instant::now();
        let woken = leader.wait(LONG, LONG, soon());
        assert!(matches!(woken, WakeReason::Interrupted));
        assert!(start.elapsed() < LONG / 2);
        // The end of the wait is not an interruption.
        let end = Duration::from_millis(20);
        let late = Some(Instant::now() + LONG);
        assert!(matches!(leader.wait(LONG, end, late), WakeReason::Due));
        drop(leader);
        let woken = behind.wait(Duration::ZERO, LONG, late);
        assert!(matches!(woken, WakeReason::Due) && behind.is_ahead);
    }
}
