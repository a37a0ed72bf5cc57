//! Processes, as /proc shows them.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read as _},
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::Path,
    process, str,
};

use rustix::io::Errno;

use crate::process::{
    Found, Identity, Named, Seen, UNKNOWN, differ, file_name, this as this_process,
};

pub(crate) use crate::sys::unix::process::{exists, no_such_process};

/// Where a process is to be seen: its directory in /proc.
pub(crate) type Place = String;

/// This process, and what kept the system from telling all of it.
pub(crate) fn this() -> (Named, io::Result<()>) {
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
    ((identity, file_name(&program)), outcome)
}

/// What has `pid`, which exists, or `None` if it has ended and was not waited for.
pub(crate) fn find(pid: u32) -> io::Result<Option<Found>> {
    let stat = if_there(Stat::read(&pid.to_string()))?;
    let start = match stat {
        Some(stat) if stat.has_ended => return Ok(None),
        stat => stat.map(|stat| stat.start),
    };
    let program = program_of(pid);
    Ok(Some(Found { start, program }))
}

/// Looks for a process of this boot.
pub(crate) fn look(process: &Identity) -> io::Result<Seen> {
    if !is_of_this_namespace(process) {
        return look_below(process);
    }
    if !exists(process.pid) {
        return Ok(Seen::Gone);
    }
    let name = process.pid.to_string();
    Ok(match if_there(Stat::read(&name))? {
        Some(stat) if !stat.is_of(process) => Seen::Gone,
        // Also where it may not be looked at: it exists (proc_pid(5), hidepid).
        _ => Seen::At(name),
    })
}

/// Whether the process that was seen there runs as this process's user.
pub(crate) fn is_of_this_user(place: &Place) -> io::Result<bool> {
    let process = if_there(fs::metadata(format!("/proc/{place}")))?;
    Ok(process.is_some_and(|process| process.uid() == rustix::process::geteuid().as_raw()))
}

/// Looks for a process of another pid namespace. If that is below ours, its
/// processes are in our /proc, each with its pid in either.
fn look_below(process: &Identity) -> io::Result<Seen> {
    let mut visible = false;
    for entry in if_there(fs::read_dir("/proc"))?.into_iter().flatten() {
        let name = entry?.file_name();
        let Some(name) = name.to_str().filter(|name| is_number(name)) else {
            continue;
        };
        if namespace(name)? != process.namespace {
            continue;
        }
        visible = true;
        let status = fs::read_to_string(format!("/proc/{name}/status"));
        let status = if_there(status)?.unwrap_or_default();
        let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        let pid = pids.and_then(|pids| pids.split_whitespace().last()?.parse().ok());
        if pid == Some(process.pid)
            && if_there(Stat::read(name))?.is_some_and(|stat| stat.is_of(process))
        {
            return Ok(Seen::At(name.to_owned()));
        }
    }
    Ok(if visible { Seen::Gone } else { Seen::Nowhere })
}

/// Whether its pid means the same here. If our own namespace is not known, only
/// that of a process whose own is not known either.
pub(crate) fn is_of_this_namespace(process: &Identity) -> bool {
    process.namespace.is_none() || process.namespace == this_process().0.namespace
}

/// Whether this process is in the pid namespace that the system started with, whose
/// inode number is fixed (PROC_PID_INIT_INO in the kernel's linux/proc_ns.h).
pub(crate) fn in_first_namespace() -> bool {
    this_process().0.namespace == Some(0xEFFF_FFFC)
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
    match file_name(OsStr::from_bytes(first)) {
        name if name.is_empty() => {
            let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim_ascii().to_vec()
        }
        name => name,
    }
}

fn is_number(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
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

    /// Whether what now has the pid is this process, and has not ended.
    fn is_of(&self, process: &Identity) -> bool {
        !self.has_ended && !differ(&process.start, &Some(self.start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_known_in_full() {
        let identity = &this_process().0;
        assert!(identity.start.is_some() && identity.boot.is_some());
        assert!(identity.namespace.is_some());
    }

    #[test]
    fn a_process_of_another_namespace_is_not_seen() {
        let of_nowhere = Identity {
            namespace: Some(1),
            ..this_process().0.clone()
        };
        assert!(matches!(look(&of_nowhere).expect("seen"), Seen::Nowhere));
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
