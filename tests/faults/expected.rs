//! What a call can give, and what is to come of it: two tables, by call and object. A
//! new call or a new kind of file wants a line in each, and some thought.

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

/// All kinds of faults: each of the errors, an interruption again and again, and death.
pub(crate) fn faults() -> impl Iterator<Item = Fault> {
    let errors = ERRORS.into_iter().map(Fault::Error);
    errors.chain([Fault::Interrupted, Fault::Kill])
}

/// Which of [`ERRORS`] a call can give, by its manual page in section 2; or `None`
/// for a call that nobody has thought about yet.
///
/// POSIX adds EIO for every call that goes to a file system, and network file
/// systems give it; and ENOMEM, "insufficient memory is available", for sockets.
pub(crate) fn can_give(call: &Call) -> Option<&'static [&'static str]> {
    Some(match (&*call.label, &call.object) {
        ("openat to write", Stray) => &[
            "EACCES", "EINTR", "EIO", "EMFILE", "ENFILE", "ENOMEM", "ENOSPC", "EROFS",
        ],
        ("openat to write", LockFile | Line) => &[
            "EACCES", "EINTR", "EIO", "EMFILE", "ENFILE", "ENOMEM", "EROFS",
        ],
        ("openat to create", _) => &[
            "EACCES", "EINTR", "EIO", "EMFILE", "ENFILE", "ENOMEM", "ENOSPC", "EROFS",
        ],
        // Of another user's process: then the list of all locks alone decides, which
        // leaves some out while many come and go.
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
        // A FIFO and the rest are the kernel's own; EIO is only for thoroughness.
        ("write", Line) => &["EIO"],
        ("utimensat", Line) => &["EACCES", "EIO", "EROFS"],
        ("inotify_init1" | "epoll_create1", _) => &["EMFILE", "ENFILE", "ENOMEM"],
        ("inotify_rm_watch", _) => &[],
        ("inotify_add_watch", _) => &["EACCES", "ENOMEM", "ENOSPC"],
        ("epoll_ctl", _) => &["ENOMEM", "ENOSPC"],
        ("poll" | "ppoll", Watch) => &["EINTR", "ENOMEM"],
        ("epoll_wait" | "epoll_pwait" | "epoll_pwait2", Bell) => &["EINTR"],
        // EIO and ENOSPC are of what was written before.
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

/// What comes of a fault.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expect {
    /// An error of this kind and number, whose message has one of these operations,
    /// and the path or port.
    Fails(ErrorKind, &'static [&'static str]),
    /// The same as without the fault: the call is made again, or is not needed.
    Works,
    /// One or the other.
    WorksOrFails(ErrorKind, &'static [&'static str]),
    /// It is a reason not to take this port, and to look at the next.
    Missed,
}

/// What is not possible if nothing is known of a root.
const FOR_ROOT: &str = "reserve a port for the directory";

/// What is to come of a fault at a call; or `None` if nobody has thought about it
/// yet.
pub(crate) fn expected(scenario: Scenario, call: &Call, fault: Fault) -> Option<Expect> {
    let error = match fault {
        Fault::Error(error) => error,
        Fault::Interrupted | Fault::Kill => "",
    };
    Some(match (&*call.label, &call.object, error) {
        // It only refuses threads.
        ("pidfd_open", ..) => Works,
        // Nothing that waits is ended by a signal.
        ("getrandom" | "futex" | "clock_nanosleep", ..) => Works,
        // There is nothing that could be done, nor need be.
        ("close", ..) => Works,

        // It only makes waiting cheaper: without it a waiter looks from time to time.
        (_, Watch | Bell | LineStray, _) => Works,
        // Here also what was interrupted before, and then failed.
        ("unlock", Line, "") => WorksOrFails(ErrorKind::Lock, &["lock"]),
        ("unlock", LockFile, "") if scenario.is_of_name() => {
            WorksOrFails(ErrorKind::Lock, &["lock", "unlock"])
        }
        ("unlock" | "write", Line, _) => Works,
        (_, Line, _) if scenario != Clean => Works,
        ("statx", Line, _) => Fails(ErrorKind::LockDir, &["read"]),
        // A line that cannot be looked at is kept, and so is another user's.
        ("unlinkat", Line, "EACCES") => Missed,
        ("unlinkat", Line, _) => Fails(ErrorKind::Lock, &["remove"]),
        ("flock", Line, "EINTR") => Works,
        (_, Line, _) => Missed,

        ("readlink", Root | Tmp, _) => Fails(ErrorKind::InvalidName, &[FOR_ROOT]),
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
        // To find out whether the lock is only that of a check; and to say who has it.
        ("openat", LockFile, _) if matches!(scenario, Exhausted | Vain) => {
            WorksOrFails(ErrorKind::Lock, &["open"])
        }
        ("pread64", LockFile, _) if matches!(scenario, Exhausted | Vain) => {
            WorksOrFails(ErrorKind::Lock, &["read owner record of"])
        }
        ("newfstatat", LockFile, _) if matches!(scenario, Exhausted | Vain) => Works,
        // It is another user's, who has closed it to others.
        ("openat", LockFile, "EACCES") if matches!(scenario, Clean | Leases) => Missed,
        ("openat" | "openat to write", LockFile, _) => Fails(ErrorKind::Lock, &["open"]),
        ("flock", LockFile, _) => Fails(ErrorKind::Lock, &["lock"]),
        // Then the lock itself is asked.
        ("newfstatat", LockFile, _) if scenario == Leases => Works,
        ("fstat" | "newfstatat", LockFile, _) => Fails(ErrorKind::Lock, &["stat"]),
        ("pread64", LockFile, _) => Fails(ErrorKind::Lock, &["read owner record of"]),
        ("pwrite64" | "ftruncate", LockFile, _) => {
            Fails(ErrorKind::Lock, &["write owner record to"])
        }
        // It is another user's, and kept.
        ("unlinkat", LockFile | Stray, "EACCES") if scenario == Clean => Missed,
        ("unlinkat", LockFile, _) => Fails(ErrorKind::Lock, &["remove"]),
        ("unlinkat", Stray, _) => Fails(ErrorKind::Lock, &["remove", "create"]),
        // Closing ends the lock too. Who releases is told all the same.
        ("unlock", LockFile, _) if call.part == Some(1) && scenario != Delegate => {
            Fails(ErrorKind::Lock, &["unlock"])
        }
        ("unlock", LockFile, _) => Works,
        // Perhaps it is the sticky bit that is refused, without which it goes too.
        ("fchmod", Stray, _) => Works,
        ("openat to write" | "fstat" | "renameat2", Stray, _) => {
            Fails(ErrorKind::Lock, &["create"])
        }

        (_, Mark | Copies, "EINTR") => Works,
        ("statx", Mark, _) => Fails(ErrorKind::Lock, &["inspect"]),
        (_, Mark, _) => Fails(ErrorKind::Lock, &["create"]),
        // One that is left there would restore what was removed.
        ("unlink", Copies, _) => Fails(ErrorKind::Lock, &["remove"]),
        ("rmdir", Copies, _) => Works,
        // As without a state directory.
        (_, Copies, "EACCES" | "EROFS") => Works,
        // Whether it is this user's, and whether it says for which lock directory it is.
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

        // Only a hint at how much there is to read.
        ("statx", Process | Proc, _) => Works,
        ("openat" | "pread64", Settings, "EINTR") => Works,
        // As in a container that hides the setting: the kernel's default is used.
        ("openat", Settings, "EACCES") => Missed,
        ("openat" | "pread64", Settings, _) => Fails(ErrorKind::Unsupported, &["read"]),
        // Whether a process lives, or which it is that the lease shall belong to.
        // Exclusive comes before available.
        // The call tries again, because nothing shows that the lock is more than that of a check.
        (_, Process, "EACCES") => Works,
        ("openat", Process, "EINTR") => Works,
        (_, Process, _) if scenario == Dead => {
            Fails(ErrorKind::Lock, &["find the process that owns"])
        }
        (_, Process, _) if scenario == Delegate => Fails(ErrorKind::Process, &["find process"]),
        // If it is only to say whether a lock is held, the lock itself can be asked.
        (_, Process, _) if scenario == Leases => {
            WorksOrFails(ErrorKind::Lock, &["find the process that owns"])
        }
        // It only informs.
        (_, Process | Proc, _) => Works,
        _ => return None,
    })
}

/// Whether this fault can come of this call.
pub(crate) fn is_possible(call: &Call, fault: Fault) -> bool {
    if fault == Fault::Kill || call.is_marker {
        return fault == Fault::Kill;
    }
    let errors = can_give(call).unwrap_or_default();
    match fault {
        Fault::Error(error) => errors.contains(&error),
        // Nobody closes again; and what the kernel makes up on the spot takes no
        // time in which signal after signal could come.
        _ => {
            errors.contains(&"EINTR")
                && !matches!(&*call.name, "close" | "getrandom")
                && !matches!(call.object, Process | Proc | Settings)
        }
    }
}
