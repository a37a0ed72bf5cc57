//! The watch on systems that do not report closed files: threads that wait for the locks of
//! leased ports.
//!
//! Each of these threads blocks in flock(2) or LockFileEx until it gets one lock. When a lock
//! ends, the system passes it to one of the threads that wait for it, in any process, so a
//! release wakes one waiter. The thread hands the file, still locked, to a waiter of its process.
//! A waiter that cannot use the lock ends it, which wakes the next thread.
//!
//! Only the lock ends the wait of such a thread: when a waiter leaves, its threads remain. There
//! is at most one thread for each port, which serves all waiters of this process, and at most
//! [`MAX_WATCHED`] in total. A thread that gets a lock for which no waiter is left ends the lock
//! and then itself. For that moment the port counts as leased, as it does for a check.
//!
//! A stopped process (SIGSTOP, a debugger) can get a lock too, and has it until it continues.

use std::{
    io, mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    thread,
    time::{Duration, Instant},
};

use super::Event;
use crate::{
    lock::{Access, PortLock},
    lock_dir::OpenDir,
    mark::{self, Mark},
    per_process::PerProcess,
    registry,
    unavailable::Failure,
};

/// Largest number of ports that a process watches, each with a thread and an open file. If there
/// are more ports, a random choice is watched, and the others are found by rescans.
///
/// A lock that ends is passed to each waiting thread in turn, including those whose waiter has
/// left. Under Wine, 32 threads of 8 processes that lease 24 ports all the time took four times
/// as long with 16 as with 4, and with 4 no longer than without.
const MAX_WATCHED: usize = 4;

/// Time for which a waiter only rescans. In a range where ports are released all the time, a
/// rescan soon finds one.
const UNWATCHED: Duration = Duration::from_millis(50);

/// Stack size in bytes. The threads make few calls and do not recurse.
const STACK_SIZE: usize = 256 << 10;

/// Largest number of times that a waiter checks whether a lease of its own process, whose lock
/// has ended and was handed to it, has been dropped completely, and the pause before each check.
/// That takes microseconds.
const MAX_CLAIM_CHECKS: u32 = 50;
const CLAIM_CHECK_INTERVAL: Duration = Duration::from_micros(100);

/// The ports whose locks threads of this process wait for.
static WATCHED: PerProcess<Vec<Watched>> = PerProcess::new();

#[derive(Debug)]
struct Watched {
    dir: OpenDir,
    port: u16,
    /// The waiters for the port, in order of arrival. Some may have left.
    waiters: Vec<Weak<Waiter>>,
}

/// The place where a lock is handed to one waiter.
#[derive(Debug, Default)]
struct Waiter {
    state: Mutex<State>,
    handed: Condvar,
}

#[derive(Debug, Default)]
enum State {
    /// It scans, pauses or has left. No lock is kept for it in the meantime.
    #[default]
    Away,
    Wait,
    Handed(PortLock),
}

/// One waiter's watch on the locks of some ports.
#[derive(Debug)]
pub(crate) struct Watch {
    dir: OpenDir,
    waiter: Arc<Waiter>,
    wanted: Vec<u16>,
    begun: Instant,
}

impl Watch {
    pub(crate) fn begin(dir: &OpenDir) -> io::Result<Self> {
        Ok(Self {
            dir: dir.clone(),
            waiter: Arc::default(),
            wanted: Vec::new(),
            begun: Instant::now(),
        })
    }

    /// Also watches these ports, which the last scan found leased.
    pub(crate) fn watch_for(&mut self, leased: &[u16]) {
        for &port in leased {
            if self.wanted.len() == MAX_WATCHED {
                return;
            }
            if !self.wanted.contains(&port) {
                self.wanted.push(port);
            }
        }
    }

    /// Waits until the lock of a port has ended and belongs to this waiter, but not longer than
    /// `at_most`; after that, all ports must be scanned.
    pub(crate) fn wait(&mut self, at_most: Duration) -> io::Result<Option<Event>> {
        if self.begun.elapsed() < UNWATCHED {
            thread::sleep(at_most);
            self.wanted.clear();
            return Ok(None);
        }
        let mark = mark::current();
        // Before searching for threads: a thread that finds no waiter ends.
        *self.waiter.state() = State::Wait;
        let found = self.wanted.iter().find_map(|&port| self.watch(port, mark));
        let lock = match found {
            Some(lock) => {
                // A lock of another port that was just handed over ends here.
                drop(self.waiter.leave(Duration::ZERO));
                Some(lock)
            }
            None => self.waiter.leave(at_most),
        };
        let Some(lock) = lock else {
            self.wanted.clear();
            return Ok(None);
        };
        self.wanted.retain(|&port| port != lock.port());
        for _ in 0..MAX_CLAIM_CHECKS {
            if !registry::is_claimed(lock.port(), mark) {
                break;
            }
            thread::sleep(CLAIM_CHECK_INTERVAL);
        }
        Ok(Some(Event::Locked(lock)))
    }

    /// Starts a thread that waits for the lock of this port, or returns the lock if it is free.
    fn watch(&self, port: u16, mark: Mark) -> Option<PortLock> {
        let mut table = WATCHED.lock()?;
        let table = table.get_or_insert_default();
        if let Some(watched) = find(table, &self.dir, port) {
            let waiters = &mut table[watched].waiters;
            let this = Arc::downgrade(&self.waiter);
            if !waiters.iter().any(|other| other.ptr_eq(&this)) {
                waiters.retain(|other| other.strong_count() > 0);
                waiters.push(this);
            }
            return None;
        }
        match PortLock::try_existing(&self.dir, port, Access::Write) {
            Ok(lock) => {
                // A port that its record keeps, or that this process leases in another directory,
                // has no lock to wait for.
                let lock = lock?.unless_kept_by_its_record().ok()?;
                (!registry::is_claimed(port, mark)).then_some(lock)
            }
            // The next scan of all ports meets this error too, and reports it.
            Err(Failure::Error(_)) => None,
            Err(Failure::Unavailable(_)) => {
                if table.len() < MAX_WATCHED {
                    let waiters = vec![Arc::downgrade(&self.waiter)];
                    let dir = self.dir.clone();
                    table.push(Watched { dir, port, waiters });
                    let dir = self.dir.clone();
                    let started = thread::Builder::new()
                        .name(format!("portlock-{port}"))
                        .stack_size(STACK_SIZE)
                        .spawn(move || hand_over(&dir, port));
                    if started.is_err() {
                        table.pop();
                    }
                }
                None
            }
        }
    }
}

fn find(table: &[Watched], dir: &OpenDir, port: u16) -> Option<usize> {
    table
        .iter()
        .position(|watched| watched.port == port && watched.dir.is(dir))
}

/// Waits for the lock of a port and hands it to a waiter, as long as there is one.
fn hand_over(dir: &OpenDir, port: u16) {
    loop {
        let lock = PortLock::wait_for_existing(dir, port)
            .and_then(|lock| lock.map(PortLock::unless_kept_by_its_record).transpose());
        // Without a lock, as when the file was removed, a scan of all ports finds the cause.
        let lock = lock.ok().flatten();
        let Some(mut table) = WATCHED.lock() else {
            return;
        };
        let table = table.get_or_insert_default();
        let Some(watched) = find(table, dir, port) else {
            return;
        };
        let waiters = &mut table[watched].waiters;
        let handed_over = lock.map(|lock| offer(lock, waiters));
        if !matches!(handed_over, Some(Ok(()))) || waiters.is_empty() {
            // The lock ends after this if it was not taken: a waiter that finds no thread starts
            // a new one.
            table.swap_remove(watched);
            return;
        }
    }
}

/// Hands the lock to the first of these waiters that waits, and returns it if none does.
fn offer(lock: PortLock, waiters: &mut Vec<Weak<Waiter>>) -> Result<(), PortLock> {
    let mut lock = Some(lock);
    waiters.retain(|waiter| match (waiter.upgrade(), lock.take()) {
        (Some(waiter), Some(offered)) => {
            lock = waiter.take(offered).err();
            lock.is_some()
        }
        (waiter, untouched) => {
            lock = untouched;
            waiter.is_some()
        }
    });
    lock.map_or(Ok(()), Err)
}

impl Waiter {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the lock if this waiter does not wait.
    fn take(&self, lock: PortLock) -> Result<(), PortLock> {
        let mut state = self.state();
        if !matches!(*state, State::Wait) {
            return Err(lock);
        }
        *state = State::Handed(lock);
        self.handed.notify_one();
        Ok(())
    }

    /// Waits for a lock, and then stops waiting.
    fn leave(&self, at_most: Duration) -> Option<PortLock> {
        let waits = |state: &mut State| matches!(state, State::Wait);
        let waited = self.handed.wait_timeout_while(self.state(), at_most, waits);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match mem::take(&mut *state) {
            State::Handed(lock) => Some(lock),
            State::Away | State::Wait => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use serial_test::serial;
    use tempfile::TempDir;

    use super::*;
    use crate::{
        clock::since_1970,
        owner::{self, Kind},
        process,
    };

    // Nothing here binds: the ports are only numbers, each used by one test. But the number of
    // threads is bounded, so these tests run one after the other.

    /// Longer than anything takes on a busy machine.
    const LONG: Duration = Duration::from_secs(60);

    /// Long enough for a thread to get a lock.
    const MOMENT: Duration = Duration::from_millis(20);

    fn lock_dir() -> (TempDir, OpenDir) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let locks = OpenDir::locate_at(Some(dir.path()), since_1970()).expect("our own");
        (dir, locks)
    }

    fn hold(dir: &OpenDir, port: u16) -> PortLock {
        let claim = registry::claim(port, mark::current()).expect("of this test alone");
        PortLock::try_acquire(dir, claim, None).expect("our own directory, and not locked")
    }

    /// Holds a port as another process would.
    fn hold_elsewhere(dir: &OpenDir, port: u16) -> PortLock {
        drop(hold(dir, port));
        let lock = PortLock::try_existing(dir, port, Access::Write).expect("not locked");
        lock.expect("created")
    }

    fn watch(dir: &OpenDir, ports: &[u16]) -> Watch {
        let mut watch = Watch::begin(dir).expect("nothing to fail");
        watch.begun -= UNWATCHED;
        watch.watch_for(ports);
        watch
    }

    /// Returns what is handed over within `at_most`.
    fn handed(watch: &mut Watch, at_most: Duration) -> Option<PortLock> {
        match watch.wait(at_most).expect("nothing to fail") {
            Some(Event::Locked(lock)) => Some(lock),
            None => None,
            other => panic!("{other:?}"),
        }
    }

    fn is_locked(dir: &OpenDir, port: u16) -> bool {
        PortLock::try_existing(dir, port, Access::Lock).is_err()
    }

    /// Waits until the port is not locked.
    fn until_unlocked(dir: &OpenDir, port: u16) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while is_locked(dir, port) {
            assert!(Instant::now() < deadline);
            thread::yield_now();
        }
    }

    /// Returns whether a thread of this process waits for the lock of this port.
    fn is_watched(dir: &OpenDir, port: u16) -> bool {
        let table = WATCHED.lock().expect("no fork here");
        table
            .as_ref()
            .is_some_and(|table| find(table, dir, port).is_some())
    }

    #[serial(watched_locks)]
    #[test]
    fn a_lock_that_ends_is_handed_over() {
        let (_dir, dir) = lock_dir();
        let held = [hold(&dir, 31), hold(&dir, 32)];
        let mut watch = watch(&dir, &[31, 32]);
        let (first, second) = held.into();
        let released = thread::spawn(move || {
            thread::sleep(MOMENT);
            drop(second);
        });
        let lock = handed(&mut watch, LONG).expect("released");
        assert_eq!(lock.port(), 32);
        released.join().expect("no panic");
        assert!(is_locked(&dir, 32), "it was handed over locked");
        let claim = registry::claim(32, mark::current()).expect("no longer claimed");
        let lock = lock.claimed(claim);
        lock.write_owner(&owner::nobody())
            .expect("open for writing");
        lock.release().expect("our own");
        assert!(!is_locked(&dir, 32));
        drop(first);
        let lock = handed(&mut watch, LONG).expect("released while no one waited");
        assert_eq!(lock.port(), 31);
    }

    #[serial(watched_locks)]
    #[test]
    fn one_waiter_at_a_time_is_handed_a_lock() {
        let (_dir, dir) = lock_dir();
        let held = hold_elsewhere(&dir, 33);
        let (sender, received) = mpsc::channel();
        thread::scope(|scope| {
            for _ in 0..4 {
                let (sender, dir) = (sender.clone(), &dir);
                scope.spawn(move || {
                    let mut watch = watch(dir, &[33]);
                    let lock = handed(&mut watch, LONG).expect("its turn comes");
                    sender.send(lock).expect("received below");
                });
            }
            assert!(received.recv_timeout(MOMENT).is_err());
            drop(held);
            for _ in 0..4 {
                let lock = received.recv_timeout(LONG).expect("its turn comes");
                assert!(received.recv_timeout(MOMENT).is_err(), "two at a time");
                drop(lock);
            }
        });
    }

    #[serial(watched_locks)]
    #[test]
    fn a_waiter_that_has_left_keeps_no_lock() {
        let (_dir, dir) = lock_dir();
        let held = hold_elsewhere(&dir, 34);
        let mut left = watch(&dir, &[34]);
        assert!(handed(&mut left, MOMENT).is_none());
        assert!(is_watched(&dir, 34));
        drop(left);
        // The same thread serves the next waiter, and the lock is not kept for a pausing waiter.
        let mut pausing = watch(&dir, &[34]);
        assert!(handed(&mut pausing, MOMENT).is_none());
        drop(held);
        let deadline = Instant::now() + LONG;
        while is_watched(&dir, 34) {
            assert!(Instant::now() < deadline);
            thread::yield_now();
        }
        until_unlocked(&dir, 34);
        pausing.watch_for(&[34]);
        assert_eq!(handed(&mut pausing, LONG).map(|lock| lock.port()), Some(34));
    }

    #[serial(watched_locks)]
    #[test]
    fn a_port_without_a_lock_to_wait_for_is_not_handed_over() {
        let (_dir, dir) = lock_dir();
        // Its record keeps port 35, and this process leases port 36 elsewhere.
        let this = process::this();
        let delegated = hold_elsewhere(&dir, 35);
        let record = owner::of_process(Kind::Delegated, &this, None);
        delegated.write_long(&record).expect("our own");
        drop(delegated);
        drop(hold_elsewhere(&dir, 36));
        let _elsewhere = registry::claim(36, mark::current()).expect("of this test alone");
        // Port 37 has no file.
        let mut watch = watch(&dir, &[35, 36, 37]);
        for _ in 0..2 {
            watch.watch_for(&[35, 36, 37]);
            assert!(handed(&mut watch, MOMENT).is_none());
        }
        assert!([35, 36, 37].iter().all(|&port| !is_watched(&dir, port)));
        // A port that is delegated while a thread waits for its lock.
        let held = hold_elsewhere(&dir, 38);
        watch.watch_for(&[38]);
        assert!(handed(&mut watch, MOMENT).is_none());
        held.write_long(&record).expect("our own");
        drop(held);
        watch.watch_for(&[38]);
        assert!(handed(&mut watch, MOMENT).is_none());
    }

    #[serial(watched_locks)]
    #[test]
    fn a_file_that_was_removed_is_not_handed_over() {
        let (dir, locks) = lock_dir();
        let held = hold_elsewhere(&locks, 39);
        let mut watch = watch(&locks, &[39]);
        assert!(handed(&mut watch, MOMENT).is_none());
        // Removed by a user who does not lock it. On Windows nobody can do that.
        if std::fs::remove_file(dir.path().join("39")).is_ok() {
            let again = hold(&locks, 39);
            drop(held);
            watch.watch_for(&[39]);
            assert!(handed(&mut watch, MOMENT).is_none());
            drop(again);
            watch.watch_for(&[39]);
            assert!(handed(&mut watch, LONG).is_some());
        }
    }

    #[serial(watched_locks)]
    #[test]
    fn the_number_of_threads_is_bounded() {
        let (_dir, dir) = lock_dir();
        let ports: Vec<u16> = (40..80).collect();
        let held: Vec<_> = ports
            .iter()
            .map(|&port| hold_elsewhere(&dir, port))
            .collect();
        let mut watches: Vec<Watch> = ports.iter().map(|&port| watch(&dir, &[port])).collect();
        for watch in &mut watches {
            assert!(handed(watch, Duration::ZERO).is_none());
        }
        let watched = || ports.iter().filter(|&&port| is_watched(&dir, port)).count();
        assert!((1..=MAX_WATCHED).contains(&watched()));
        drop(watches);
        drop(held);
        let deadline = Instant::now() + LONG;
        while watched() > 0 {
            assert!(Instant::now() < deadline);
            thread::yield_now();
        }
    }
}
