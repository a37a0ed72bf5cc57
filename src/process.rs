//! The identity of a process, which no other process with the same pid has, and the evidence that
//! it is alive or gone.
//!
//! A pid alone is not enough because it is reused. With the start time it is unique
//! (proc_pid_stat(5), field 22; a time of day on macOS and Windows). And a pid is valid only in
//! its own pid namespace (pid_namespaces(7)), which only Linux has.
//!
//! **Gone needs proof.** A port that is leased to a process must not be leased again because a
//! caller cannot see that process. So a process is [`Evidence::Gone`] only if the system proves
//! it; `process/linux.rs` and its siblings say what proves it. Everything else is undetermined.

use std::{
    ffi::OsStr,
    fmt, io,
    path::Path,
    sync::{Arc, RwLock},
};

use crate::{
    error::{Error, ErrorKind, Result},
    mark::{self, Mark},
    server::Process,
};

#[cfg(target_os = "linux")]
pub(crate) mod linux;
#[cfg(target_os = "macos")]
mod macos;
#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(target_os = "linux")]
use linux as system;
#[cfg(target_os = "macos")]
use macos as system;
#[cfg(unix)]
pub(crate) use unix::is_recordable;
#[cfg(windows)]
use windows as system;

pub(crate) use system::{ADOPTS, Lineage};

/// The text for an unknown value in a record.
pub(crate) const UNKNOWN: &str = "-";

/// The identity of a process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    /// The pid in the pid namespace [`namespace`](Self::namespace).
    pub(crate) pid: u32,
    /// In clock ticks since boot on Linux, elsewhere as a time of day.
    pub(crate) start: Option<u64>,
    /// The inode number of the pid namespace of the process that wrote the record. The process's
    /// own namespace may be nested deeper.
    pub(crate) namespace: Option<u64>,
}

/// What can be determined about a process from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Evidence {
    /// It is alive, or nothing proves that its pid was reused.
    Alive(system::Place),
    /// It is proven to have ended.
    Gone,
    /// It cannot be seen from here, as from another container.
    #[allow(dead_code, reason = "only Linux has processes that cannot be seen")]
    Undetermined,
}

/// A process, with the name of its program.
pub(crate) type NamedProcess = (Identity, Vec<u8>);

/// The process that has a pid now.
pub(crate) struct ProcessInfo {
    pub(crate) start: Option<u64>,
    pub(crate) program: Vec<u8>,
}

/// Returns the identity of this process, as far as the system shows it.
pub(crate) fn this() -> Arc<NamedProcess> {
    this_as(mark::current())
}

/// Returns the same for a caller that knows its own mark.
pub(crate) fn this_as(mark: Mark) -> Arc<NamedProcess> {
    read_once(mark).0
}

/// Returns the identity of this process, and the error that kept the system from showing all of
/// it. It is read until that has succeeded once, because reading it would cost more than the rest
/// of a lease. A forked child, which has another mark, reads its own.
fn read_once(mark: Mark) -> (Arc<NamedProcess>, io::Result<()>) {
    // Never waits: a forked child would wait forever for a lock that another thread of its parent
    // held during the fork. It reads the same values again instead.
    static FIRST: RwLock<Option<(Mark, Arc<NamedProcess>)>> = RwLock::new(None);
    if let Ok(first) = FIRST.try_read()
        && let Some((of, first)) = &*first
        && *of == mark
    {
        return (Arc::clone(first), Ok(()));
    }
    let (this, outcome) = system::this();
    let this = Arc::new(this);
    if outcome.is_ok()
        && let Ok(mut first) = FIRST.try_write()
    {
        *first = Some((mark, Arc::clone(&this)));
    }
    (this, outcome)
}

/// Returns the file name of a program, as arbitrary bytes.
pub(crate) fn file_name(path: &OsStr) -> Vec<u8> {
    let name = Path::new(path).file_name();
    name.unwrap_or_default().as_encoded_bytes().to_vec()
}

/// Returns the process that has `pid` now, with the name of its program, for a record.
///
/// # Errors
///
/// If there is no such process, or the system does not show what a record needs so that other
/// callers can prove that the process has ended.
pub(crate) fn find(pid: u32) -> Result<NamedProcess> {
    let (this, outcome) = read_once(mark::current());
    outcome.map_err(|error| not_found(pid, error))?;
    if pid == this.0.pid {
        system::can_be_recorded(&this.0).map_err(|why| cannot_record(pid, why))?;
        return Ok(NamedProcess::clone(&this));
    }
    let found = system::find(pid, &this.0).map_err(|error| not_found(pid, error))?;
    let ProcessInfo { start, program } = found.ok_or_else(|| no_such(pid))?;
    let identity = Identity {
        pid,
        start,
        namespace: this.0.namespace,
    };
    system::can_be_recorded(&identity).map_err(|why| cannot_record(pid, why))?;
    Ok((identity, program))
}

/// Returns whether no process has `pid`, or only one that has ended and was not reaped.
pub(crate) fn has_ended(pid: u32) -> bool {
    let any = Identity {
        pid,
        start: None,
        namespace: this().0.namespace,
    };
    matches!(any.evidence(), Ok(Evidence::Gone))
}

/// Returns what can be seen of the process that has `pid` here.
pub(crate) fn describe(pid: u32) -> Process {
    Process {
        pid,
        program: String::from_utf8_lossy(&system::program_of(pid)).into_owned(),
        user_id: system::user_of(pid),
    }
}

/// Checks that a process has `pid`, without identifying it.
///
/// # Errors
///
/// If there is none.
pub(crate) fn check(pid: u32) -> Result<()> {
    if system::exists(pid) {
        Ok(())
    } else {
        Err(no_such(pid))
    }
}

fn no_such(pid: u32) -> Error {
    not_found(pid, system::no_such_process())
}

fn not_found(pid: u32, cause: io::Error) -> Error {
    let message = format!("cannot find process {pid}");
    Error::with_cause(ErrorKind::Process, message, cause)
}

fn cannot_record(pid: u32, why: &str) -> Error {
    let message = format!("cannot transfer a lease to process {pid}: {why}");
    Error::new(ErrorKind::Process, message)
}

impl Identity {
    /// Returns whether the process is alive, as far as that can be determined from here.
    ///
    /// # Errors
    ///
    /// If the system fails to report it, for example because no descriptors are left.
    pub(crate) fn evidence(&self) -> io::Result<Evidence> {
        system::evidence(self, &this().0)
    }

    /// Returns whether the process is proven to have ended, or is known to run as this process's
    /// user.
    ///
    /// # Errors
    ///
    /// As for [`evidence`](Self::evidence).
    pub(crate) fn is_gone_or_of_this_user(&self) -> io::Result<bool> {
        match self.evidence()? {
            Evidence::Gone => Ok(true),
            Evidence::Undetermined => Ok(false),
            Evidence::Alive(place) => system::is_of_this_user(&place),
        }
    }

    /// Returns the pid that the process has here, or `None` if it is not known to be alive.
    ///
    /// # Errors
    ///
    /// As for [`evidence`](Self::evidence).
    pub(crate) fn pid_here(&self) -> io::Result<Option<u32>> {
        match self.evidence()? {
            Evidence::Alive(place) => system::pid_at(self, &place),
            Evidence::Gone | Evidence::Undetermined => Ok(None),
        }
    }

    /// Parses the three words that [`Display`](fmt::Display) writes.
    pub(crate) fn parse<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<Self> {
        let pid = words.next()?.parse().ok()?;
        let mut known = || {
            words
                .next()
                .map(|word| Some(word).filter(|&word| word != UNKNOWN))
        };
        let (start, namespace) = (known()?, known()?);
        Some(Self {
            pid,
            start: start.map(str::parse).transpose().ok()?,
            namespace: namespace.map(str::parse).transpose().ok()?,
        })
    }
}

/// Writes `<pid> <start time> <pid namespace>`.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |f: &mut fmt::Formatter<'_>, number: Option<u64>| match number {
            Some(number) => write!(f, " {number}"),
            None => write!(f, " {UNKNOWN}"),
        };
        write!(f, "{}", self.pid)?;
        number(f, self.start)?;
        number(f, self.namespace)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        env,
        io::Read as _,
        process::{self, Child, Command, Stdio},
        thread,
        time::{Duration, Instant},
    };

    use super::*;

    #[test]
    fn this_process_is_alive_and_known() {
        let identity = &this().0;
        assert_eq!(identity.pid, process::id());
        assert!(identity.start.is_some());
        assert!(is_alive(identity));
        assert!(identity.is_gone_or_of_this_user().expect("seen"));
        let text = identity.to_string();
        assert_eq!(Identity::parse(text.split(' ')).as_ref(), Some(identity));
    }

    #[test]
    fn this_process_is_read_once() {
        // Another thread can be writing it, or have read it first.
        assert!((0..1000).any(|_| Arc::ptr_eq(&this(), &this())));
    }

    #[test]
    fn a_program_has_the_name_of_its_file() {
        for (path, name) in [
            ("/usr/bin/server", "server"),
            ("server", "server"),
            ("", ""),
        ] {
            assert_eq!(file_name(OsStr::new(path)), name.as_bytes());
        }
    }

    fn is_alive(identity: &Identity) -> bool {
        matches!(identity.evidence().expect("seen"), Evidence::Alive(_))
    }

    fn is_gone(identity: &Identity) -> bool {
        identity.evidence().expect("seen") == Evidence::Gone
    }

    const CHILD: &str = "PORTLOCK_TEST_CHILD";

    /// If started as a child, runs until its input ends.
    #[test]
    fn child() {
        if env::var_os(CHILD).is_some() {
            let _ = io::stdin().read(&mut [0]);
        }
    }

    /// Starts a process that runs until its input is closed.
    pub(crate) fn start_child() -> Child {
        let binary = env::current_exe().expect("this test binary");
        Command::new(binary)
            .args(["--exact", "process::tests::child", "--nocapture"])
            .env(CHILD, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("this test binary")
    }

    #[test]
    fn a_child_is_alive_until_it_ends_reaped_or_not() {
        let mut child = start_child();
        let (identity, program) = find(child.id()).expect("it runs");
        // Before exec, the child has this program's arguments.
        assert!(!program.is_empty());
        assert!(is_alive(&identity));
        drop(child.stdin.take());
        // Until it is reaped, it is a zombie, and no other process can have its pid.
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is_gone(&identity) {
            assert!(Instant::now() < deadline);
            thread::yield_now();
        }
        assert!(find(child.id()).is_err());
        child.wait().expect("our own child");
        assert!(is_gone(&identity));
    }

    #[test]
    fn a_different_start_time_means_a_different_process() {
        let this = this().0.clone();
        let started = |later: i64| Identity {
            start: this.start.map(|start| start.saturating_add_signed(later)),
            ..this.clone()
        };
        for later in [-1000, 1000] {
            assert!(is_gone(&started(later)));
        }
        // A start time in ticks is rounded.
        let rounded = started(1);
        assert_eq!(is_alive(&rounded), cfg!(target_os = "linux"));
        let of_unknown_start = Identity {
            start: None,
            ..this.clone()
        };
        assert!(is_alive(&of_unknown_start));
        let little_known = Identity {
            start: None,
            namespace: None,
            ..this
        };
        assert_eq!(little_known.to_string(), format!("{} - -", process::id()));
        assert!(!is_gone(&little_known));
    }

    #[test]
    fn pids_that_no_process_has_are_not_found() {
        // Beyond the largest that Linux assigns (PID_MAX_LIMIT).
        for pid in [0, 1 << 23, u32::MAX] {
            let error = find(pid).expect_err("no such process");
            assert_eq!(error.kind(), ErrorKind::Process);
            assert!(error.to_string().contains(&pid.to_string()), "{error}");
        }
    }
}
