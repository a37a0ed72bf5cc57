//! The errors that a call can return, and the expected outcomes: two tables, by call and object.
//! A new call or a new kind of file needs a line in each.

use portlock::ErrorKind;

use crate::{
    run::Fault,
    scenario::Scenario::{self, *},
    trace::{Call, Object::*},
};
use Expect::*;

const ERRORS: [&str; 9] = [
    "EMFILE", "ENFILE", "ENOSPC", "EIO", "EINTR", "EACCES", "EROFS", "ENOLCK", "ENOMEM",
];

/// Returns all kinds of faults: each of the errors, repeated interruptions, and death.
pub(crate) fn faults() -> impl Iterator<Item = Fault> {
    let errors = ERRORS.into_iter().map(Fault::Error);
    errors.chain([Fault::Interrupted, Fault::Kill])
}

/// Returns which of [`ERRORS`] a call can return, according to its manual page in section 2; or
/// `None` for a call that is not listed yet.
///
/// POSIX adds EIO for every call on a file system, and network file systems return it; and
/// ENOMEM, "insufficient memory is available", for sockets.
pub(crate) fn can_give(call: &Call) -> Option<&'static [&'static str]> {
    Some(match (&*call.label, &call.object) {
        ("openat to write", Stray) => &[
            "EACCES", "EINTR", "EIO", "EMFILE", "ENFILE", "ENOMEM", "ENOSPC", "EROFS",
        ],
        ("openat to write", LockFile | WaitQueue) => &[
            "EACCES", "EINTR", "EIO", "EMFILE", "ENFILE", "ENOMEM", "EROFS",
        ],
        ("openat to create", _) => &[
            "EACCES", "EINTR", "EIO", "EMFILE", "ENFILE", "ENOMEM", "ENOSPC", "EROFS",
        ],
        // For another user's process: then only the kernel's list of locks decides, which omits
        // some while many locks change.
        ("openat", Proc) => &["EINTR", "EIO", "EMFILE", "ENFILE", "ENOMEM"],
        ("openat", _) => &["EACCES", "EINTR", "EIO", "EMFILE", "ENFILE", "ENOMEM"],
        ("statx", Proc) => &["EIO", "ENOMEM"],
        ("newfstatat" | "statx" | "readlink", _) => &["EACCES", "EIO", "ENOMEM"],
        ("fstat" | "getdents64", _) => &["EIO", "ENOMEM"],
        ("fstatfs", _) => &["EINTR", "EIO", "ENOMEM"],
        ("flock" | "unlock", _) => &["EINTR", "EIO", "ENOLCK"],
        ("read", _) => &["EINTR", "EIO", "ENOMEM"],
        ("pread64", _) => &["EINTR", "EIO"],
        ("ftruncate", _) => &["EINTR", "EIO"],
        ("pwrite64", _) => &["EINTR", "EIO", "ENOSPC"],
        ("mkdirat" | "mkdir" | "mknodat" | "renameat2" | "rename", _) => {
            &["EACCES", "EIO", "ENOMEM", "ENOSPC", "EROFS"]
        }
        ("fchmodat" | "fchmod" | "unlinkat" | "unlink" | "rmdir", _) => {
            &["EACCES", "EIO", "ENOMEM", "EROFS"]
        }
        // A FIFO and the others exist only in the kernel; EIO is only for thoroughness.
        ("write", WaitQueue) => &["EIO"],
        ("utimensat", WaitQueue) => &["EACCES", "EIO", "EROFS"],
        ("inotify_init1" | "epoll_create1", _) => &["EMFILE", "ENFILE", "ENOMEM"],
        ("inotify_rm_watch", _) => &[],
        ("inotify_add_watch", _) => &["EACCES", "ENOMEM", "ENOSPC"],
        ("epoll_ctl", _) => &["ENOMEM", "ENOSPC"],
        ("poll" | "ppoll", Watch) => &["EINTR", "ENOMEM"],
        ("epoll_wait" | "epoll_pwait" | "epoll_pwait2", Wakeup) => &["EINTR"],
        // EIO and ENOSPC are about earlier writes.
        ("close", LockFile | Stray) => &["EINTR", "EIO", "ENOSPC"],
        ("close", Copies) if call.arguments.contains("/.new.") => &["EINTR", "EIO", "ENOSPC"],
        ("close", _) => &["EINTR"],
        ("socket", _) => &["EACCES", "EMFILE", "ENFILE", "ENOMEM"],
        ("setsockopt IPV6_V6ONLY" | "setsockopt SO_REUSEADDR", _) => &["ENOMEM"],
        ("bind" | "listen", _) => &["EACCES", "ENOMEM"],
        ("fcntl F_DUPFD_CLOEXEC", _) => &["EMFILE"],
        ("pidfd_open", _) => &["EMFILE", "ENFILE", "ENOMEM"],
        ("getrandom" | "futex" | "clock_nanosleep", _) => &["EINTR"],
        ("lseek" | "kill" | "getpid" | "geteuid" | "capget" | "prctl" | "prlimit64", _) => &[],
        _ => return None,
    })
}

/// The expected outcome of a fault.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expect {
    /// An error of this kind and number, whose message contains one of these operations, and the
    /// path or port.
    Fails(ErrorKind, &'static [&'static str]),
    /// The same as without the fault: the call is retried, or is not needed.
    Works,
    /// Either of the two.
    WorksOrFails(ErrorKind, &'static [&'static str]),
    /// It is a reason to skip this port and try the next.
    Missed,
}

/// The operation that fails if nothing is known about a root.
const FOR_ROOT: &str = "reserve a port for the directory";

/// Returns the expected outcome of a fault at a call; or `None` if it is not listed yet.
pub(crate) fn expected(scenario: Scenario, call: &Call, fault: Fault) -> Option<Expect> {
    let error = match fault {
        Fault::Error(error) => error,
        Fault::Interrupted | Fault::Kill => "",
    };
    Some(match (&*call.label, &call.object, error) {
        // It only rules out threads.
        ("pidfd_open", ..) => Works,
        // A signal does not end a wait.
        ("getrandom" | "futex" | "clock_nanosleep", ..) => Works,
        // The caller cannot do anything about it, and does not need to.
        ("close", ..) => Works,

        // It only makes waiting cheaper: without it, a waiter rescans from time to time.
        (_, Watch | Wakeup | WaitQueueStray, _) => Works,
        // Includes a call that was interrupted before, and then failed.
        ("unlock", WaitQueue, "") => WorksOrFails(ErrorKind::Lock, &["lock"]),
        ("unlock", LockFile, "") if scenario.is_of_name() => {
            WorksOrFails(ErrorKind::Lock, &["lock", "unlock"])
        }
        ("unlock" | "write", WaitQueue, _) => Works,
        (_, WaitQueue, _) if scenario != Clean => Works,
        ("statx", WaitQueue, _) => Fails(ErrorKind::LockDir, &["read"]),
        // A wait queue that cannot be inspected is kept, and so is another user's.
        ("unlinkat", WaitQueue, "EACCES") => Missed,
        ("unlinkat", WaitQueue, _) => Fails(ErrorKind::Lock, &["remove"]),
        ("flock", WaitQueue, "EINTR") => Works,
        (_, WaitQueue, _) => Missed,

        ("readlink", Root | Tmp, _) => Fails(ErrorKind::InvalidName, &["use the root directory"]),
        // What cannot be inspected is not proven to be gone.
        ("statx", Root, _) => WorksOrFails(ErrorKind::InvalidName, &[FOR_ROOT]),
        ("statx", Dir, _) => Works,
        // The lock directory may have been removed: then it is created again.
        ("openat" | "fstat" | "getdents64", Dir, _) | ("statx", LockFile, _)
            if scenario == Reserve =>
        {
            Works
        }

        ("newfstatat", Machine | Tmp, _) => Fails(ErrorKind::LockDir, &["check for the default"]),
        ("newfstatat", Dir, _) => Fails(ErrorKind::LockDir, &["use", "create"]),
        ("mkdirat" | "fchmodat", Dir, _) => Fails(ErrorKind::LockDir, &["create"]),
        ("openat", Dir, _) => Fails(ErrorKind::LockDir, &["open", "read"]),
        ("fstat" | "fstatfs", Dir, _) => Fails(ErrorKind::LockDir, &["stat", "read"]),
        ("getdents64", Dir, _) => Fails(ErrorKind::LockDir, &["read"]),
        ("statx", LockFile | Stray, _) => Fails(ErrorKind::LockDir, &["read"]),

        (_, LockFile, "EINTR") => Works,
        // To find out whether the lock is only that of a check, and to name the holder.
        ("openat", LockFile, _) if matches!(scenario, Exhausted | Vain) => {
            WorksOrFails(ErrorKind::Lock, &["open"])
        }
        ("pread64", LockFile, _) if matches!(scenario, Exhausted | Vain) => {
            WorksOrFails(ErrorKind::Lock, &["read owner record of"])
        }
        ("newfstatat", LockFile, _) if matches!(scenario, Exhausted | Vain) => Works,
        // It belongs to another user, who made it unreadable for others.
        ("openat", LockFile, "EACCES") if matches!(scenario, Clean | Leases) => Missed,
        ("openat" | "openat to write", LockFile, _) => Fails(ErrorKind::Lock, &["open"]),
        ("flock", LockFile, _) => Fails(ErrorKind::Lock, &["lock"]),
        // Then the lock itself is tried.
        ("newfstatat", LockFile, _) if scenario == Leases => Works,
        ("fstat" | "newfstatat", LockFile, _) => Fails(ErrorKind::Lock, &["stat"]),
        ("pread64", LockFile, _) => Fails(ErrorKind::Lock, &["read owner record of"]),
        ("pwrite64" | "ftruncate", LockFile, _) => {
            Fails(ErrorKind::Lock, &["write owner record to"])
        }
        // It belongs to another user, and is kept.
        ("unlinkat", LockFile | Stray, "EACCES") if scenario == Clean => Missed,
        ("unlinkat", LockFile, _) => Fails(ErrorKind::Lock, &["remove"]),
        ("unlinkat", Stray, _) => Fails(ErrorKind::Lock, &["remove", "create"]),
        // Closing ends the lock too. A caller of `release` still gets the error.
        ("unlock", LockFile, _) if call.part == Some(1) && scenario != Delegate => {
            Fails(ErrorKind::Lock, &["unlock"])
        }
        ("unlock", LockFile, _) => Works,
        // Perhaps the sticky bit is refused, which is not required.
        ("fchmod", Stray, _) => Works,
        ("openat to write" | "fstat" | "renameat2", Stray, _) => {
            Fails(ErrorKind::Lock, &["create"])
        }

        (_, Mark | Copies, "EINTR") => Works,
        ("statx", Mark, _) => Fails(ErrorKind::Lock, &["inspect"]),
        (_, Mark, _) => Fails(ErrorKind::Lock, &["create"]),
        // A copy that is left would restore the removed reservation.
        ("unlink", Copies, _) => Fails(ErrorKind::Lock, &["remove"]),
        ("rmdir", Copies, _) => Works,
        // As without a state directory.
        (_, Copies, "EACCES" | "EROFS") => Works,
        // Whether it belongs to this user, and whether it names its lock directory.
        ("statx", Copies, _) => WorksOrFails(ErrorKind::Lock, &["use"]),
        ("openat to create" | "pwrite64" | "mkdir" | "rename", Copies, _) => {
            Fails(ErrorKind::Lock, &["write"])
        }
        (_, Copies, _) => Fails(ErrorKind::Lock, &["read"]),

        ("bind", Socket, "EACCES") => Missed,
        ("socket" | "bind" | "setsockopt IPV6_V6ONLY", Socket, _) => {
            Fails(ErrorKind::Probe, &["bind"])
        }
        ("setsockopt SO_REUSEADDR", Socket, _) => {
            Fails(ErrorKind::Probe, &["set SO_REUSEADDR", "bind"])
        }
        ("listen", Socket, _) => Fails(ErrorKind::Probe, &["listen"]),

        // Only a hint about the length to read.
        ("statx", Process | Proc, _) => Works,
        ("openat" | "pread64", Settings, "EINTR") => Works,
        // As in a container that hides the setting: the kernel's default is used.
        ("openat", Settings, "EACCES") => Missed,
        ("openat" | "pread64", Settings, _) => Fails(ErrorKind::Unsupported, &["read"]),
        // Whether a process is alive, or which process the lease will belong to.
        // Exclusion takes priority over availability.
        // The call retries, because nothing shows that the lock is more than that of a check.
        (_, Process, "EACCES") => Works,
        ("openat", Process, "EINTR") => Works,
        (_, Process, _) if scenario == Dead => {
            Fails(ErrorKind::Lock, &["find the process that owns"])
        }
        (_, Process, _) if scenario == Delegate => Fails(ErrorKind::Process, &["find process"]),
        // If it is only to report whether a lock is held, the lock itself can be tried.
        (_, Process, _) if scenario == Leases => {
            WorksOrFails(ErrorKind::Lock, &["find the process that owns"])
        }
        // It is only informative.
        (_, Process | Proc, _) => Works,
        _ => return None,
    })
}

/// Returns whether this fault can occur at this call.
pub(crate) fn is_possible(call: &Call, fault: Fault) -> bool {
    if fault == Fault::Kill || call.is_marker {
        return fault == Fault::Kill;
    }
    let errors = can_give(call).unwrap_or_default();
    match fault {
        Fault::Error(error) => errors.contains(&error),
        // No caller closes again; and a text that the kernel generates immediately takes no time
        // in which repeated signals could arrive.
        _ => {
            errors.contains(&"EINTR")
                && !matches!(&*call.name, "close" | "getrandom")
                && !matches!(call.object, Process | Proc | Settings)
        }
    }
}
