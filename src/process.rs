//! A process, told from every later one that has the same pid.
//!
//! A pid alone is not enough: it is given out again. With the start time it
//! is unique until the next boot (on Linux proc_pid_stat(5), field 22), with the boot
//! id (`/proc/sys/kernel/random/boot_id`, proc_sys_kernel(5)) after that too. Where the
//! start is a time of day, as on macOS and Windows, no boot id is needed. And a pid
//! means something only in its own pid namespace (pid_namespaces(7)), of which other
//! systems than Linux have one.

use std::{borrow::Cow, ffi::OsStr, fmt, io, path::Path, process, sync::OnceLock};

use crate::{
    error::{Error, ErrorKind, Result},
    sys::process as sys,
};

/// What is written of a process where something is not known.
pub(crate) const UNKNOWN: &str = "-";

/// Which process it is. Parts that the system does not tell are unknown, and are
/// then not compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) pid: u32,
    /// In clock ticks since boot on Linux, elsewhere as a time of day.
    pub(crate) start: Option<u64>,
    pub(crate) boot: Option<String>,
    /// The inode number of its pid namespace.
    pub(crate) namespace: Option<u64>,
}

/// Whether a process lives, as far as it can be told from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Liveness {
    Alive,
    Gone,
    /// It is in a pid namespace that cannot be seen from this one.
    Unseen,
}

/// Where a process is to be seen.
pub(crate) enum Seen {
    At(sys::Place),
    Gone,
    /// In a pid namespace that cannot be seen from this one.
    #[allow(dead_code, reason = "only Linux has these")]
    Nowhere,
}

/// A process, with the name of its program.
pub(crate) type Named = (Identity, Vec<u8>);

/// What has a pid now.
pub(crate) struct Found {
    pub(crate) start: Option<u64>,
    pub(crate) program: Vec<u8>,
}

/// This process, as far as it can be told.
pub(crate) fn this() -> Cow<'static, Named> {
    this_as(process::id())
}

/// The same for a caller that knows its own pid, and need not ask again.
pub(crate) fn this_as(pid: u32) -> Cow<'static, Named> {
    read_once(pid).0
}

/// This process, and what kept the system from telling all of it. Read until that
/// has gone well once: it would cost more than the whole rest of a lease. A forked
/// child, told by its pid, reads its own.
fn read_once(pid: u32) -> (Cow<'static, Named>, io::Result<()>) {
    static FIRST: OnceLock<Named> = OnceLock::new();
    if let Some(first) = FIRST.get().filter(|first| first.0.pid == pid) {
        return (Cow::Borrowed(first), Ok(()));
    }
    let (this, outcome) = sys::this();
    if outcome.is_ok() {
        let _ = FIRST.set(this.clone());
    }
    (Cow::Owned(this), outcome)
}

/// The file name of a program, in bytes of any kind.
pub(crate) fn file_name(path: &OsStr) -> Vec<u8> {
    let name = Path::new(path).file_name();
    name.unwrap_or_default().as_encoded_bytes().to_vec()
}

/// The process that has `pid` now, with the name of its program.
///
/// # Errors
///
/// There is none, or the system fails to tell which it is.
pub(crate) fn find(pid: u32) -> Result<Named> {
    let (this, outcome) = read_once(process::id());
    outcome.map_err(|error| not_found(pid, error))?;
    if pid == this.0.pid {
        return Ok(this.into_owned());
    }
    check(pid)?;
    let found = sys::find(pid).map_err(|error| not_found(pid, error))?;
    let Found { start, program } = found.ok_or_else(|| no_such(pid))?;
    let identity = Identity {
        pid,
        start,
        ..this.0.clone()
    };
    Ok((identity, program))
}

/// Whether there is a process that has `pid`, without a look at it.
///
/// # Errors
///
/// There is none.
pub(crate) fn check(pid: u32) -> Result<()> {
    if sys::exists(pid) {
        Ok(())
    } else {
        Err(no_such(pid))
    }
}

fn no_such(pid: u32) -> Error {
    not_found(pid, sys::no_such_process())
}

fn not_found(pid: u32, cause: io::Error) -> Error {
    let message = format!("cannot find process {pid}");
    Error::with_cause(ErrorKind::Process, message, cause)
}

impl Identity {
    /// Whether the process still lives.
    ///
    /// # Errors
    ///
    /// The system fails to tell, for example for want of a descriptor.
    pub(crate) fn liveness(&self) -> io::Result<Liveness> {
        Ok(match self.look()? {
            Seen::At(_) => Liveness::Alive,
            Seen::Gone => Liveness::Gone,
            Seen::Nowhere => Liveness::Unseen,
        })
    }

    /// Whether the process has ended, or can be seen to run as this process's user.
    ///
    /// # Errors
    ///
    /// As for [`liveness`](Self::liveness).
    pub(crate) fn is_gone_or_of_this_user(&self) -> io::Result<bool> {
        match self.look()? {
            Seen::Gone => Ok(true),
            Seen::Nowhere => Ok(false),
            Seen::At(place) => sys::is_of_this_user(&place),
        }
    }

    fn look(&self) -> io::Result<Seen> {
        if differ(&self.boot, &this().0.boot) {
            return Ok(Seen::Gone);
        }
        sys::look(self)
    }

    /// Reads it back from the four words that [`Display`](fmt::Display) writes.
    pub(crate) fn parse<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<Self> {
        let pid = words.next()?.parse().ok()?;
        let mut known = || {
            words
                .next()
                .map(|word| Some(word).filter(|&word| word != UNKNOWN))
        };
        let (start, boot, namespace) = (known()?, known()?, known()?);
        Some(Self {
            pid,
            start: start.map(str::parse).transpose().ok()?,
            boot: boot.map(str::to_owned),
            namespace: namespace.map(str::parse).transpose().ok()?,
        })
    }
}

/// `<pid> <start time> <boot id> <pid namespace>`
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |f: &mut fmt::Formatter<'_>, number: Option<u64>| match number {
            Some(number) => write!(f, " {number}"),
            None => write!(f, " {UNKNOWN}"),
        };
        write!(f, "{}", self.pid)?;
        number(f, self.start)?;
        write!(f, " {}", self.boot.as_deref().unwrap_or(UNKNOWN))?;
        number(f, self.namespace)
    }
}

/// Whether both are known, and not the same.
pub(crate) fn differ<T: PartialEq>(a: &Option<T>, b: &Option<T>) -> bool {
    matches!((a, b), (Some(a), Some(b)) if a != b)
}

#[cfg(test)]
mod tests {
    use std::{
        env,
        io::Read as _,
        process::{Command, Stdio},
        thread,
        time::{Duration, Instant},
    };

    use super::*;

    #[test]
    fn this_process_is_alive_and_known() {
        let identity = &this().0;
        assert_eq!(identity.pid, process::id());
        assert!(identity.start.is_some());
        assert_eq!(identity.liveness().expect("seen"), Liveness::Alive);
        assert!(identity.is_gone_or_of_this_user().expect("seen"));
        let text = identity.to_string();
        assert_eq!(Identity::parse(text.split(' ')).as_ref(), Some(identity));
    }

    const CHILD: &str = "PORTLOCK_TEST_CHILD";

    /// Lives until its input ends, where it is started as a child.
    #[test]
    fn child() {
        if env::var_os(CHILD).is_some() {
            let _ = io::stdin().read(&mut [0]);
        }
    }

    #[test]
    fn a_child_is_alive_until_it_ends_waited_for_or_not() {
        let binary = env::current_exe().expect("this test binary");
        let mut child = Command::new(binary)
            .args(["--exact", "process::tests::child", "--nocapture"])
            .env(CHILD, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("this test binary");
        let (identity, program) = find(child.id()).expect("it runs");
        // Before exec, the child has this program's arguments.
        assert!(!program.is_empty());
        assert_eq!(identity.liveness().expect("seen"), Liveness::Alive);
        drop(child.stdin.take());
        // Not waited for, it ends as a zombie: nobody can have its pid yet.
        let deadline = Instant::now() + Duration::from_secs(60);
        while identity.liveness().expect("seen") != Liveness::Gone {
            assert!(Instant::now() < deadline);
            thread::yield_now();
        }
        assert!(find(child.id()).is_err());
        child.wait().expect("our own child");
        assert_eq!(identity.liveness().expect("seen"), Liveness::Gone);
    }

    #[test]
    fn another_start_or_boot_is_another_process() {
        let this = this().0.clone();
        let recycled = Identity {
            start: this.start.map(|start| start + 1),
            ..this.clone()
        };
        assert_eq!(recycled.liveness().expect("seen"), Liveness::Gone);
        if this.boot.is_some() {
            let before_boot = Identity {
                boot: Some("6e1f7a4e-0c55-4f3e-a1d0-3e9b3c1f0a77".into()),
                ..this.clone()
            };
            assert_eq!(before_boot.liveness().expect("seen"), Liveness::Gone);
        }
        let little_known = Identity {
            start: None,
            boot: None,
            namespace: None,
            ..this
        };
        assert_eq!(little_known.to_string(), format!("{} - - -", process::id()));
        assert_eq!(little_known.liveness().expect("seen"), Liveness::Alive);
    }

    #[test]
    fn pids_that_nobody_has_are_not_found() {
        // Beyond the largest that Linux gives (PID_MAX_LIMIT).
        for pid in [0, 1 << 23, u32::MAX] {
            let error = find(pid).expect_err("no such process");
            assert_eq!(error.kind(), ErrorKind::Process);
            assert!(error.to_string().contains(&pid.to_string()), "{error}");
        }
    }
}
