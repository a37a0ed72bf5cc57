//! The operating system: all that one of them does in another way than the rest.
//!
//! Each has the same modules with the same functions, one for each noun:
//!
//! | module       | what differs |
//! |--------------|--------------|
//! | `default_dir` | where the default lock directory is |
//! | `dir`        | what makes a lock directory trustworthy |
//! | `lock_file`  | how a lock file is opened, made and removed, and where its record stands |
//! | `process`    | what distinguishes a process from a later one with its pid, and what proves that it has ended |
//! | `mark`       | what distinguishes a process from those it was forked from |
//! | `ports`      | which ports the system sets aside |
//! | `probe`      | what a strict bind is, and which addresses it has to look at |
//! | `held`       | whether the system lists the locks that are held |
//! | `line`, `watch` | what waiters can wait in, and what wakes them |
//! | `portserver` | the stream to a port server |
//!
//! Nothing outside this module asks which system it is on.

#[cfg(not(any(target_os = "linux", target_os = "macos", windows)))]
compile_error!(
    "portlock runs on Linux, macOS and Windows: another system needs its own modules in src/sys"
);

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;
#[cfg(not(target_os = "linux"))]
#[path = "pid_mark.rs"]
pub(crate) mod mark;
#[cfg(unix)]
mod unix;
#[cfg(not(target_os = "linux"))]
mod unwatched;
#[cfg(windows)]
mod windows;

#[cfg(all(test, target_os = "linux"))]
pub(crate) use linux::timespec;
#[cfg(target_os = "linux")]
pub(crate) use linux::{
    KEPT, default_dir, held, is_local, is_unmapped, line, mark, ports, probe, process, watch,
};
#[cfg(target_os = "macos")]
pub(crate) use macos::{KEPT, default_dir, is_local, is_unmapped, ports, probe, process};
#[cfg(unix)]
pub(crate) use unix::{dir, lock_file, portserver};
#[cfg(not(target_os = "linux"))]
pub(crate) use unwatched::{held, line, watch};
#[cfg(windows)]
pub(crate) use windows::{default_dir, dir, lock_file, ports, portserver, probe, process};
