//! A process, told from every later one that has the same pid.
//!
//! A pid alone is not enough: it is given out again. With the start time it
//! is unique until the next boot (proc_pid_stat(5), field 22), with the boot id
//! (`/proc/sys/kernel/random/boot_id`, proc_sys_kernel(5)) after that too. And it
//! means something only in its own pid namespace (pid_namespaces(7)).

use std::{
    borrow::Cow,
    ffi::OsStr,
    fmt,
    fs::{self, File},
    io::{self, Read as _},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
    process, str,
    sync::OnceLock,
};

use rustix::{
    io::Errno,
    process::{Pid, test_kill_process},
};

use crate::error::{Error, ErrorKind, Result};

/// What is written of a process where something is not known.
const UNKNOWN: &str = "-";

/// Which process it is. Parts that the system does not tell are unknown, and are
/// then not compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) pid: u32,
    /// In clock ticks since boot.
    start: Option<u64>,
    boot: Option<String>,
    /// The inode number of its pid namespace.
    namespace: Option<u64>,
}

/// Whether a process lives, as far as it can be told from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Liveness {
    Alive,
    Gone,
    /// It is in a pid namespace that cannot be seen from this one.
    Unseen,
}

/// Where a process is to be seen in /proc.
enum Seen {
    At(String),
    Gone,
    Nowhere,
}

/// A process, with the name of its program.
type Named = (Identity, Vec<u8>);

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
    let (this, outcome) = read_this();
    if outcome.is_ok() {
        let _ = FIRST.set(this.clone());
    }
    (Cow::Owned(this), outcome)
}

fn read_this() -> (Named, io::Result<()>) {
    let boot = if_there(fs::read_to_string("/proc/sys/kernel/random/boot_id"));
    let start = if_there(Stat::read("self"));
    let namespace = namespace("self");

    let word = boot.as_ref().ok().and_then(Option::as_ref);
    let word = word.map(|text| text.trim()).filter(|&word| {
        !word.is_empty() && word != UNKNOWN && word.bytes().all(|byte| byte.is_ascii_graphic())
    });
    let identity = Identity {
        pid: process::id(),
        start: start
            .as_ref()
            .ok()
            .and_then(|stat| Some(stat.as_ref()?.start)),
        boot: word.map(str::to_owned),
        namespace: *namespace.as_ref().unwrap_or(&None),
    };
    let program = std::env::args_os().next().unwrap_or_default();
    let outcome = boot.and(start).and(namespace).map(drop);
    ((identity, file_name(program.as_bytes())), outcome)
}

/// What /proc shows, or `None` where it shows nothing to this process, or nothing
/// that makes sense. It is an error only if the system failed to show it.
fn if_there<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(shown) => Ok(Some(shown)),
        Err(error) => match (error.kind(), Errno::from_io_error(&error)) {
            // A process that ended while it was looked at is ESRCH.
            (
                io::ErrorKind::NotFound
                | io::ErrorKind::PermissionDenied
                | io::ErrorKind::InvalidData,
                _,
            )
            | (_, Some(Errno::SRCH)) => Ok(None),
            _ => Err(error),
        },
    }
}

fn file_name(path: &[u8]) -> Vec<u8> {
    let name = Path::new(OsStr::from_bytes(path)).file_name();
    name.unwrap_or_default().as_bytes().to_vec()
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
    let stat = if_there(Stat::read(&pid.to_string())).map_err(|error| not_found(pid, error))?;
    let start = match stat {
        Some(stat) if stat.has_ended => return Err(not_found(pid, Errno::SRCH.into())),
        stat => stat.map(|stat| stat.start),
    };
    let identity = Identity {
        pid,
        start,
        ..this.0.clone()
    };
    Ok((identity, program_of(pid)))
}

/// Whether there is a process that has `pid`, without a look at it.
///
/// # Errors
///
/// There is none.
pub(crate) fn check(pid: u32) -> Result<()> {
    if exists(pid) {
        Ok(())
    } else {
        Err(not_found(pid, Errno::SRCH.into()))
    }
}

fn not_found(pid: u32, cause: io::Error) -> Error {
    let message = format!("cannot find process {pid}");
    Error::with_cause(ErrorKind::Process, message, cause)
}

/// The file name of what the process was started as, or what it calls itself if it
/// has no arguments, as in the moment when it executes another program.
fn program_of(pid: u32) -> Vec<u8> {
    // Of a longer path the end would be missing, and with it the file name.
    let mut arguments = [0; 4096];
    let read =
        File::open(format!("/proc/{pid}/cmdline")).and_then(|mut file| file.read(&mut arguments));
    let arguments = &arguments[..read.unwrap_or(0)];
    let first = arguments
        .split(|&byte| byte == 0)
        .next()
        .unwrap_or_default();
    match file_name(first) {
        name if name.is_empty() => {
            let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim_ascii().to_vec()
        }
        name => name,
    }
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
        let name = match self.look()? {
            Seen::Gone => return Ok(true),
            Seen::Nowhere => return Ok(false),
            Seen::At(name) => name,
        };
        let process = if_there(fs::metadata(format!("/proc/{name}")))?;
        Ok(process.is_some_and(|process| process.uid() == rustix::process::geteuid().as_raw()))
    }

    fn look(&self) -> io::Result<Seen> {
        if differ(&self.boot, &this().0.boot) {
            return Ok(Seen::Gone);
        }
        if !self.is_of_this_namespace() {
            return self.look_below();
        }
        if !exists(self.pid) {
            return Ok(Seen::Gone);
        }
        let name = self.pid.to_string();
        Ok(match if_there(Stat::read(&name))? {
            Some(stat) if !self.is(&stat) => Seen::Gone,
            // Also where it may not be looked at: it exists (proc_pid(5), hidepid).
            _ => Seen::At(name),
        })
    }

    /// Looks for a process of another pid namespace. If that is below ours, its
    /// processes are in our /proc, each with its pid in either.
    fn look_below(&self) -> io::Result<Seen> {
        let mut visible = false;
        for entry in if_there(fs::read_dir("/proc"))?.into_iter().flatten() {
            let name = entry?.file_name();
            let Some(name) = name.to_str().filter(|name| is_number(name)) else {
                continue;
            };
            if namespace(name)? != self.namespace {
                continue;
            }
            visible = true;
            let status = fs::read_to_string(format!("/proc/{name}/status"));
            let status = if_there(status)?.unwrap_or_default();
            let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            let pid = pids.and_then(|pids| pids.split_whitespace().last()?.parse().ok());
            if pid == Some(self.pid)
                && if_there(Stat::read(name))?.is_some_and(|stat| self.is(&stat))
            {
                return Ok(Seen::At(name.to_owned()));
            }
        }
        Ok(if visible { Seen::Gone } else { Seen::Nowhere })
    }

    /// Whether what now has the pid is this process, and has not ended.
    fn is(&self, stat: &Stat) -> bool {
        !stat.has_ended && !differ(&self.start, &Some(stat.start))
    }

    /// Whether its pid means the same here. If our own namespace is not known, only
    /// that of a process whose own is not known either.
    pub(crate) fn is_of_this_namespace(&self) -> bool {
        self.namespace.is_none() || self.namespace == this().0.namespace
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

/// Whether this process is in the pid namespace that the system started with, whose
/// inode number is fixed (PROC_PID_INIT_INO in the kernel's linux/proc_ns.h).
pub(crate) fn in_first_namespace() -> bool {
    this().0.namespace == Some(0xEFFF_FFFC)
}

fn differ<T: PartialEq>(a: &Option<T>, b: &Option<T>) -> bool {
    matches!((a, b), (Some(a), Some(b)) if a != b)
}

fn is_number(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether any process has this pid here, one that has ended but was not waited
/// for included.
fn exists(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    // EPERM means that it is another user's (kill(2)).
    pid.is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH))
}

/// The inode number out of `pid:[4026531836]`.
fn namespace(process: &str) -> io::Result<Option<u64>> {
    let link = if_there(fs::read_link(format!("/proc/{process}/ns/pid")))?;
    let number = |link: &Path| {
        let number = link.to_str()?.strip_prefix("pid:[")?.strip_suffix(']')?;
        number.parse().ok()
    };
    Ok(link.as_deref().and_then(number))
}

/// What is needed out of `/proc/<pid>/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    start: u64,
    /// It has ended, and its parent has not waited for it yet.
    has_ended: bool,
}

impl Stat {
    fn read(process: &str) -> io::Result<Self> {
        // One read gets all of it: the kernel makes it up at that moment, and it
        // has about 300 bytes.
        let mut text = [0; 1024];
        let len = File::open(format!("/proc/{process}/stat"))?.read(&mut text)?;
        Self::parse(&text[..len]).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The program's name, field 2, may itself contain spaces and parentheses.
    fn parse(text: &[u8]) -> Option<Self> {
        let name_end = text.iter().rposition(|&byte| byte == b')')?;
        let after_name = str::from_utf8(&text[name_end + 1..]).ok()?;
        let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).copied();
        // A first thread that has ended is a zombie while others go on.
        let threads: u64 = field(20)?.parse().ok()?;
        Some(Self {
            start: field(22)?.parse().ok()?,
            has_ended: matches!(field(3)?, "Z" | "X" | "x") && threads <= 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn this_process_is_alive_and_known_in_full() {
        let identity = &this().0;
        assert_eq!(identity.pid, process::id());
        assert!(identity.start.is_some() && identity.boot.is_some());
        assert!(identity.namespace.is_some());
        assert_eq!(identity.liveness().expect("seen"), Liveness::Alive);
        assert!(identity.is_gone_or_of_this_user().expect("seen"));
        let text = identity.to_string();
        assert_eq!(Identity::parse(text.split(' ')).as_ref(), Some(identity));
    }

    #[test]
    fn a_child_is_alive_until_it_ends_waited_for_or_not() {
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .spawn()
            .expect("cat is installed");
        let (identity, program) = find(child.id()).expect("it runs");
        // Before exec, the child has this program's arguments.
        assert!(!program.is_empty());
        assert_eq!(identity.liveness().expect("seen"), Liveness::Alive);
        drop(child.stdin.take());
        // Not waited for, it ends as a zombie: nobody can have its pid yet.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while identity.liveness().expect("seen") != Liveness::Gone {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
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
        let before_boot = Identity {
            boot: Some("6e1f7a4e-0c55-4f3e-a1d0-3e9b3c1f0a77".into()),
            ..this.clone()
        };
        assert_eq!(before_boot.liveness().expect("seen"), Liveness::Gone);
        let little_known = Identity {
            start: None,
            boot: None,
            namespace: None,
            ..this.clone()
        };
        assert_eq!(little_known.to_string(), format!("{} - - -", this.pid));
        assert_eq!(little_known.liveness().expect("seen"), Liveness::Alive);
        let of_nowhere = Identity {
            namespace: Some(1),
            ..this
        };
        assert_eq!(of_nowhere.liveness().expect("seen"), Liveness::Unseen);
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

    #[test]
    fn the_start_is_found_behind_any_program_name() {
        let text = |name: &str, state: &str, threads: u32| {
            format!("7 {name} {state} 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 {threads} 18 4242 20")
        };
        let parse = |text: String| Stat::parse(text.as_bytes());
        let stat = |has_ended| {
            Some(Stat {
                start: 4242,
                has_ended,
            })
        };
        assert_eq!(parse(text("(a) b (c)", "S", 1)), stat(false));
        assert_eq!(parse(text("(a)", "Z", 1)), stat(true));
        assert_eq!(parse(text("(a)", "Z", 2)), stat(false));
        assert_eq!(parse("7 (a) S 1".into()), None);
        assert_eq!(parse(String::new()), None);
    }
}
