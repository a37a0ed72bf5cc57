//! A number that distinguishes a process from those it was forked from: its pid, where a forked child
//! always has another one.

/// Never 0.
pub(crate) type Mark = u32;

/// The mark of this process.
#[inline]
pub(crate) fn current() -> Mark {
    std::process::id()
}
