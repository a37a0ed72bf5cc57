//! A value that belongs to one process: a forked child gets its own.
//!
//! If another thread of the parent holds a lock during a fork, the child finds the lock held, and
//! no thread to release it. So a process does not lock what its parent may have locked. It takes
//! one of several slots that it finds unlocked and empties it. From then on only its own threads
//! lock that slot, so they may wait for it.
//!
//! The parent's value in that slot is neither used nor dropped. The kernel copies the descriptor
//! table before the memory (`copy_process` in kernel/fork.c), and other threads continue in
//! between. A descriptor that the memory names can be closed in the child, or belong to another
//! file.

use std::{
    mem,
    sync::{
        Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::mark::{self, Mark};

/// Number of slots. Each process in a chain of forks can find at most one more of them locked for
/// good.
const SLOTS: usize = 8;

/// Number of bits of [`PerProcess::taken`] that hold the slot's index.
const BITS: u32 = SLOTS.trailing_zeros();

#[derive(Debug)]
pub(crate) struct PerProcess<T> {
    /// The slot of a process and, in the higher bits, the mark of that process. The highest bits
    /// of the mark are cut off: no system has that many pids or nested forks.
    taken: AtomicU32,
    slots: [Mutex<Option<T>>; SLOTS],
}

impl<T> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self {
            taken: AtomicU32::new(0),
            slots: [const { Mutex::new(None) }; SLOTS],
        }
    }

    /// Locks this process's value, which is `None` at first. Waits only for this process's own
    /// threads; returns `None` if no slot can be locked without waiting for others.
    #[inline]
    pub(crate) fn lock(&self) -> Option<MutexGuard<'_, Option<T>>> {
        self.lock_as(mark::current())
    }

    fn lock_as(&self, mark: Mark) -> Option<MutexGuard<'_, Option<T>>> {
        let taken = self.taken.load(Ordering::Acquire);
        if taken >> BITS == mark << BITS >> BITS {
            return Some(self.slot(taken));
        }
        self.take(taken, mark)
    }

    fn slot(&self, taken: u32) -> MutexGuard<'_, Option<T>> {
        let slot = &self.slots[taken as usize % SLOTS];
        slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cold]
    fn take(&self, before: u32, mark: Mark) -> Option<MutexGuard<'_, Option<T>>> {
        let unlocked = (0..).zip(&self.slots).find_map(|(index, slot)| {
            let guard = match slot.try_lock() {
                Ok(guard) => guard,
                Err(TryLockError::Poisoned(error)) => error.into_inner(),
                Err(TryLockError::WouldBlock) => return None,
            };
            Some((index, guard))
        });
        let (index, mut guard): (u32, _) = unlocked?;
        let taken = mark << BITS | index;
        match self
            .taken
            .compare_exchange(before, taken, Ordering::AcqRel, Ordering::Acquire)
        {
            Ok(_) => {
                mem::forget(guard.take());
                Some(guard)
            }
            // Another thread of this process was faster.
            Err(theirs) => {
                drop(guard);
                Some(self.slot(theirs))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Barrier, thread};

    use super::*;

    fn set(values: &PerProcess<u32>, mark: Mark, value: u32) {
        *values.lock_as(mark).expect("a slot") = Some(value);
    }

    fn get(values: &PerProcess<u32>, mark: Mark) -> Option<u32> {
        *values.lock_as(mark).expect("a slot")
    }

    #[test]
    fn a_child_starts_with_nothing_and_keeps_its_own() {
        let values = PerProcess::new();
        set(&values, 1, 10);
        assert_eq!(get(&values, 1), Some(10));
        assert_eq!(get(&values, 2), None);
        set(&values, 2, 20);
        assert_eq!(get(&values, 2), Some(20));
    }

    #[test]
    fn a_process_finds_what_it_left() {
        let values = PerProcess::new();
        *values.lock().expect("a slot") = Some(10);
        assert_eq!(*values.lock().expect("a slot"), Some(10));
        assert_eq!(get(&values, mark::current()), Some(10));
    }

    #[test]
    fn a_process_does_not_wait_for_a_lock_that_its_parent_held() {
        let values = PerProcess::new();
        let mut guards = Vec::new();
        for mark in (1..).take(SLOTS) {
            // This would block forever if it waited for the slot of an earlier process.
            let mut guard = values.lock_as(mark).expect("one more slot");
            assert_eq!(guard.replace(mark), None);
            guards.push(guard);
        }
        assert!(values.lock_as(100).is_none());
        drop(guards.swap_remove(3));
        assert_eq!(get(&values, 101), None);
    }

    #[test]
    fn threads_have_one_value() {
        const THREADS: u32 = 4;
        for mark in 1..500 {
            let (values, start) = (PerProcess::new(), Barrier::new(THREADS as usize));
            thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| {
                        start.wait();
                        let mut guard = values.lock_as(mark).expect("a slot");
                        *guard.get_or_insert(0) += 1;
                    });
                }
            });
            assert_eq!(get(&values, mark), Some(THREADS));
        }
    }
}
