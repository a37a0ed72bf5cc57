//! The mark on Linux: a number in a page that the kernel clears in a forked child.
//!
//! A pid is not enough: after unshare(2) or setns(2) with a pid namespace, a forked child can
//! have the same pid as its parent, as when process 1 of a container starts another container.
//! The kernel clears a page marked `MADV_WIPEONFORK` in each child (madvise(2), since Linux
//! 4.14). A process that finds the page cleared takes the next number.
//!
//! QEMU's user mode, which runs programs for another architecture, may ignore all advice and report
//! success (as BoringSSL's fork_detect.c found). The kernel rejects `MADV_REMOVE` for memory that is
//! not shared. If that succeeds, the pid has to do.
//!
//! Reading it takes no system call, whereas getpid(2) takes two hundredths of the time of a
//! lease.

#![allow(
    unsafe_code,
    reason = "memory that fork clears can be had in no other way"
)]

use std::{
    process, ptr,
    sync::atomic::{AtomicPtr, AtomicU32, Ordering},
};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use super::Mark;

/// The page with the mark of this process, which is 0 until the first call. Null before the first
/// call.
static PAGE: AtomicPtr<AtomicU32> = AtomicPtr::new(ptr::null_mut());

/// Used instead of a page if the kernel does not support the advice: always 0.
static NO_PAGE: AtomicU32 = AtomicU32::new(0);

/// The last assigned mark, in this process or one from which it was forked.
static LAST: AtomicU32 = AtomicU32::new(0);

/// Returns the mark of this process.
#[inline]
pub(crate) fn current() -> Mark {
    let page = PAGE.load(Ordering::Acquire);
    if !page.is_null() {
        // SAFETY: a non-null pointer is to `NO_PAGE` or to a mapping that is readable and
        // writable, large enough, zeroed or written only by this module, and never unmapped.
        let mark = unsafe { &*page }.load(Ordering::Relaxed);
        if mark != 0 {
            return mark;
        }
    }
    take(page)
}

#[cold]
fn take(mut page: *mut AtomicU32) -> Mark {
    if page.is_null() {
        page = map();
    }
    if ptr::eq(page, &raw const NO_PAGE) {
        return process::id();
    }
    // Incremented before it is stored, so that a child forked in between takes a later mark.
    let mark = LAST.fetch_add(1, Ordering::Relaxed).wrapping_add(1).max(1);
    // SAFETY: as in `current`.
    let page = unsafe { &*page };
    match page.compare_exchange(0, mark, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => mark,
        // Another thread was faster.
        Err(theirs) => theirs,
    }
}

/// Maps the page, or returns the one that another thread has just mapped.
fn map() -> *mut AtomicU32 {
    let len = rustix::param::page_size();
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address that the kernel chooses, zeroed and page-aligned.
    let mapped = unsafe { mmap_anonymous(ptr::null_mut(), len, access, MapFlags::PRIVATE) };
    let unmap = |page| {
        // SAFETY: only this function has its address.
        let _ = unsafe { munmap(page, len) };
    };
    let cleared = mapped.ok().filter(|&page| {
        // SAFETY: the advice changes only what a forked child finds there.
        let advised = unsafe { madvise(page, len, Advice::LinuxWipeOnFork) };
        // SAFETY: the page is still zeroed, and nothing has been stored in it.
        let ignored = unsafe { madvise(page, len, Advice::LinuxRemove) };
        let is_cleared = advised.is_ok() && ignored.is_err();
        if !is_cleared {
            unmap(page);
        }
        is_cleared
    });
    let page = match cleared {
        Some(page) => page.cast(),
        None => (&raw const NO_PAGE).cast_mut(),
    };
    match PAGE.compare_exchange(ptr::null_mut(), page, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => page,
        Err(theirs) => {
            if let Some(page) = cleared {
                unmap(page);
            }
            theirs
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn all_threads_have_one_mark() {
        let marks = [(); 8].map(|()| thread::spawn(current));
        let marks = marks.map(|thread| thread.join().expect("no panic"));
        assert!(marks.iter().all(|&mark| mark == current() && mark != 0));
    }
}
