//! A number that distinguishes a process from its ancestors by fork.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod other;

#[cfg(target_os = "linux")]
pub(crate) use linux::current;
#[cfg(not(target_os = "linux"))]
pub(crate) use other::current;

/// The mark of a process: never 0, and different from the mark of every process from which it was
/// forked.
pub(crate) type Mark = u32;
