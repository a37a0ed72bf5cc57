//! Parses the output of strace, and injects faults with it.

use std::{
    collections::HashMap,
    fmt,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::Duration,
};

use portlock_testkit::LONG;
use rustix::process::{Pid, Signal, kill_process};

use Object::*;

use crate::scenario::MARKERS;

/// The object of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Object {
    Dir,
    LockFile,
    /// A lock file that is not at its path yet.
    Stray,
    /// The wait queue.
    WaitQueue,
    /// A wait queue that is not at its path yet.
    WaitQueueStray,
    /// The mark that reservations have been restored.
    Mark,
    /// Copies of reservations.
    Copies,
    /// The root directory of a name, or its parent.
    Root,
    /// The kernel's notifications of releases, for the leader.
    Watch,
    /// The notification of a waiter behind the leader that it is its turn.
    Wakeup,
    /// The path of the directory of all users.
    Machine,
    /// The parent of the default directory.
    Tmp,
    /// The kernel's information about a process, and its identity.
    Process,
    /// The kernel's other information about processes and locks.
    Proc,
    /// The kernel's settings of ports.
    Settings,
    Socket,
    Nothing,
    Other(String),
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dir => "directory",
            LockFile => "lock file",
            Stray => "new lock file",
            WaitQueue => "wait queue",
            WaitQueueStray => "new wait queue",
            Mark => "mark",
            Copies => "copies",
            Root => "root",
            Watch => "watch",
            Wakeup => "wakeup",
            Machine => "/run/portlock",
            Tmp => "/tmp",
            Process => "process",
            Proc => "/proc",
            Settings => "/proc/sys",
            Socket => "socket",
            Nothing => "",
            Other(path) => path,
        })
    }
}

/// A system call as strace prints it.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) name: String,
    /// The name, and the operation if the call has several.
    pub(crate) label: String,
    pub(crate) object: Object,
    pub(crate) arguments: String,
    /// It has returned without an error.
    pub(crate) succeeded: bool,
    pub(crate) injected: bool,
    /// The ordinal number among calls of that name, from 1.
    pub(crate) nth: usize,
    /// The part of the cycle that it is in, if any; includes the marker at its end.
    pub(crate) part: Option<usize>,
    pub(crate) is_marker: bool,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Enough to identify it; records are long.
        write!(f, "{}({:.150})", self.name, self.arguments)
    }
}

/// strace, attached.
pub(crate) struct Tracer {
    strace: Child,
    lines: JoinHandle<Vec<String>>,
}

impl Tracer {
    /// Attaches to one waiting thread only, and passes each line to `see`. The error says why it
    /// cannot attach.
    pub(crate) fn attach(
        thread: &str,
        inject: Option<String>,
        mut see: impl FnMut(&str) + Send + 'static,
    ) -> Result<Self, String> {
        let mut command = Command::new("strace");
        command.args(["-y", "-s", "300", "-e", "signal=none"]);
        if let Some(inject) = inject {
            command.args(["-e", &format!("inject={inject}")]);
        }
        command.args(["-p", thread]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut strace = command
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace is installed");
        let stderr = BufReader::new(strace.stderr.take().expect("piped"));
        let (sender, attached) = mpsc::channel();
        let lines = thread::spawn(move || {
            let mut lines = Vec::new();
            for line in stderr.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                if lines.is_empty() {
                    let _ = sender.send(line.clone());
                }
                see(&line);
                lines.push(line);
            }
            lines
        });
        match attached.recv_timeout(LONG) {
            Ok(line) if line.contains(" attached") => Ok(Self { strace, lines }),
            Ok(line) => {
                let _ = strace.kill().and_then(|()| strace.wait());
                Err(line)
            }
            Err(_) => Err("it prints nothing".to_owned()),
        }
    }

    /// Detaches from the process.
    pub(crate) fn detach(mut self) -> Vec<String> {
        let pid = Pid::from_child(&self.strace);
        // strace misses a signal that arrives just before it waits for the process, until the
        // next signal.
        while self.strace.try_wait().expect("our own child").is_none() {
            kill_process(pid, Signal::TERM).expect("not waited for yet");
            thread::sleep(Duration::from_millis(1));
        }
        self.wait()
    }

    /// Waits for the end of strace, after that of the process.
    pub(crate) fn wait(mut self) -> Vec<String> {
        self.strace.wait().expect("our own child");
        self.lines.join().expect("no panic")
    }
}

/// The directories of a run.
pub(crate) struct Paths<'a> {
    /// The lock directory.
    pub(crate) dir: &'a Path,
    /// The state directory.
    pub(crate) state: &'a Path,
    /// The root of a name.
    pub(crate) root: &'a Path,
}

/// Returns the calls of a trace, except the markers at the beginning of a part.
pub(crate) fn calls(lines: &[String], paths: &Paths<'_>) -> Vec<Call> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    let mut part = None;
    let mut calls = Vec::new();
    for line in lines {
        let is_part_of_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let Some((name, rest)) = line.split_once('(') else {
            continue;
        };
        if !name.chars().all(is_part_of_name) {
            continue;
        }
        let (arguments, result) = rest.rsplit_once(" = ").unwrap_or((rest, "?"));
        let arguments = arguments.trim_end_matches([' ', ')']);
        let nth = counts.entry(name).or_default();
        *nth += 1;
        let marker = MARKERS.iter().position(|marker| arguments.contains(marker));
        if let Some(begins) = marker.filter(|marker| marker % 2 == 0) {
            part = Some(begins / 2);
            continue;
        }
        calls.push(Call {
            name: name.to_owned(),
            label: marker.map_or_else(|| label(name, arguments), |_| "(the end)".to_owned()),
            object: marker.map_or_else(|| object(name, arguments, paths), |_| Nothing),
            arguments: arguments.to_owned(),
            succeeded: !result.starts_with(['-', '?']),
            injected: result.ends_with("(INJECTED)"),
            nth: *nth,
            part,
            is_marker: marker.is_some(),
        });
        part = part.filter(|_| marker.is_none());
    }
    calls
}

/// Returns the name of a call, and its operation if it has several.
fn label(name: &str, arguments: &str) -> String {
    match name {
        "setsockopt" => {
            let option = arguments.split(", ").nth(2).unwrap_or_default();
            format!("{name} {option}")
        }
        "fcntl" => {
            let operation = arguments
                .split([',', ' '])
                .find(|word| word.starts_with("F_"));
            format!("{name} {}", operation.unwrap_or_default())
        }
        "flock" if arguments.contains("LOCK_UN") => "unlock".to_owned(),
        "newfstatat" if arguments.contains("AT_EMPTY_PATH") => "fstat".to_owned(),
        "openat" if arguments.contains("O_RDWR") => "openat to write".to_owned(),
        "openat" if arguments.contains("O_CREAT") => "openat to create".to_owned(),
        _ => name.to_owned(),
    }
}

/// Returns the object of a call: the path, relative to the directory's descriptor if there is
/// one, or the object of the descriptor.
fn object(name: &str, arguments: &str, paths: &Paths<'_>) -> Object {
    let dir = paths.dir;
    let between = |text: &str, open: char, close: char| {
        let (_, text) = text.split_once(open)?;
        Some(text.split_once(close)?.0.to_owned())
    };
    let first = arguments.split(", ").next().unwrap_or_default();
    let descriptor = between(first, '<', '>');
    let takes_descriptor_and_path = name.ends_with("at") && name != "fstat"
        || matches!(name, "statx" | "renameat2" | "inotify_add_watch");
    let path = match &descriptor {
        // Other text in quotes is data.
        Some(_) if !takes_descriptor_and_path => None,
        _ => between(arguments, '"', '"').filter(|path| !path.is_empty()),
    };
    let path = match (name, descriptor, path) {
        ("socket", ..) => return Socket,
        ("inotify_init1" | "inotify_add_watch" | "inotify_rm_watch", ..) => return Watch,
        ("epoll_create1", ..) => return Wakeup,
        ("getrandom", ..) | (_, None, None) => return Nothing,
        (_, None, Some(path)) => PathBuf::from(path),
        (_, Some(descriptor), None) => PathBuf::from(descriptor),
        (_, Some(descriptor), Some(path)) => Path::new(&descriptor).join(path),
    };
    let named = path.file_name().unwrap_or_default().to_string_lossy();
    let is_in_dir = path.parent() == Some(dir);
    let is_number = named.chars().all(|c| c.is_ascii_digit());
    if path == dir {
        Dir
    } else if is_in_dir && named.starts_with(".new.waiting.") {
        WaitQueueStray
    } else if is_in_dir && named.starts_with(".waiting.") {
        WaitQueue
    } else if is_in_dir && named.starts_with(".new.") {
        Stray
    } else if is_in_dir && named.starts_with(".restored.") {
        Mark
    } else if path.starts_with(paths.state) {
        Copies
    } else if paths.root.ancestors().any(|at| at == path) && path != Path::new("/tmp") {
        Root
    } else if is_in_dir && is_number {
        LockFile
    } else if path == Path::new("/run/portlock") {
        Machine
    } else if path == Path::new("/tmp") {
        Tmp
    } else if path.starts_with("/proc/sys/net") {
        Settings
    } else if path.starts_with("/proc") && ["stat", "pid", "time"].contains(&&*named) {
        Process
    } else if path.starts_with("/proc") {
        Proc
    } else if named.contains("inotify") {
        Watch
    } else if named.contains("[eventpoll]") {
        Wakeup
    } else if named.contains(":[") {
        Socket
    } else {
        Other(path.display().to_string())
    }
}
