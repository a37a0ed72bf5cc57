//! What several test binaries need: child processes that speak over pipes,
//! ports to test with, and an oracle of who holds what.

#![allow(dead_code, unreachable_pub, reason = "no test binary uses all of it")]
#![allow(
    clippy::incompatible_msrv,
    reason = "tests need a newer Rust than the library"
)]

use std::{
    env,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    net::{Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    str::FromStr,
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::Duration,
};

use socket2::{Domain, Socket, Type};

#[cfg(target_os = "linux")]
mod file_systems;
#[cfg(target_os = "linux")]
#[allow(unused_imports, reason = "no test binary uses all of it")]
pub use file_systems::*;
#[cfg(unix)]
mod unix;
#[cfg(unix)]
#[allow(unused_imports, reason = "no test binary uses all of it")]
pub use unix::*;

/// Longer than anything takes on a crowded machine; a test that waits so long has failed.
pub const LONG: Duration = Duration::from_secs(60);

const ROLE: &str = "PORTLOCK_TEST_ROLE";
const ARGUMENTS: &str = "PORTLOCK_TEST_ARGUMENTS";

const STRESS: &str = "PORTLOCK_STRESS";

/// How much longer than by default the stress tests run: `PORTLOCK_STRESS`, 1 if unset.
fn stress_factor() -> f64 {
    env::var(STRESS).map_or(1.0, |factor| {
        factor.parse().expect("PORTLOCK_STRESS is a number")
    })
}

pub fn stress(times: usize) -> usize {
    ((times as f64 * stress_factor()) as usize).max(1)
}

// ---------------------------------------------------------------------------
// Children: this test binary again, running the one test named `child`.

/// The other end of a [`Peer`], in the child.
pub struct Parent {
    arguments: Vec<String>,
}

impl Parent {
    /// The argument at `index`, as given to [`Peer::start`].
    pub fn argument<T: FromStr<Err: std::fmt::Debug>>(&self, index: usize) -> T {
        self.arguments[index].parse().expect("a valid argument")
    }

    pub fn say(&self, line: impl std::fmt::Display) {
        // On a line of its own and marked, for the test harness prints too.
        let mut out = io::stdout().lock();
        // If the parent is gone, `hear` ends this process.
        let _ = writeln!(out, "\n@{line}").and_then(|()| out.flush());
    }

    /// Waits for the parent's next line. Ends the process if the parent is gone.
    pub fn hear(&self) -> String {
        let mut line = String::new();
        match io::stdin().read_line(&mut line) {
            Ok(len) if len > 0 => line.trim_end().to_owned(),
            _ => std::process::exit(0),
        }
    }
}

/// What a child does.
pub type Role = fn(&Parent);

/// Runs one of `roles` if this process was started as a child, else nothing.
/// The body of the test `child` in every binary that has children.
pub fn run_child(roles: &[(&str, Role)]) {
    let Ok(role) = env::var(ROLE) else { return };
    if role == "cat" {
        let parent = Parent {
            arguments: Vec::new(),
        };
        parent.say("here");
        loop {
            parent.hear();
        }
    }
    let arguments = env::var(ARGUMENTS).expect("set together with the role");
    let arguments = arguments.split('\n').map(str::to_owned).collect();
    let (_, run) = roles
        .iter()
        .find(|(name, _)| *name == role)
        .expect("a known role");
    run(&Parent { arguments });
}

/// A command that runs `role` in a child; `prefix` is put before it, such as
/// `["strace", "-f"]`.
pub fn command(prefix: &[&str], binary: &Path, role: &str, arguments: &[&str]) -> Command {
    let own = ["child", "--exact", "--nocapture", "--test-threads=1"];
    let mut command = match prefix {
        [] => Command::new(binary),
        [program, rest @ ..] => {
            let mut command = Command::new(program);
            command.args(rest).arg(binary);
            command
        }
    };
    command
        .args(own)
        .env(ROLE, role)
        .env(ARGUMENTS, arguments.join("\n"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

/// A command that ends at once, and well.
pub fn nothing() -> Command {
    if cfg!(windows) {
        let mut command = Command::new("cmd");
        command.args(["/C", "exit"]);
        command
    } else {
        Command::new("true")
    }
}

/// What the system says of a path at which there is nothing.
pub const NOT_FOUND: &str = if cfg!(windows) {
    "os error 2)"
} else {
    "No such file"
};

/// Starts a command whose program may just have been copied: a child that another
/// thread is starting can have it open for writing, until it executes its own.
fn spawn(command: &mut Command) -> Child {
    for _ in 0..1000 {
        match command.spawn() {
            Ok(child) => return child,
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(error) => panic!("cannot start {command:?}: {error}"),
        }
    }
    panic!("cannot start {command:?}: its program is being written to");
}

/// A child process that has a role. Killed and waited for when dropped.
pub struct Peer {
    child: Child,
    to: Option<ChildStdin>,
    from: Receiver<String>,
}

impl Peer {
    pub fn start(role: &str, arguments: &[&str]) -> Self {
        let binary = env::current_exe().expect("this test binary");
        Self::start_command(command(&[], &binary, role, arguments))
    }

    pub fn start_command(mut command: Command) -> Self {
        let mut child = spawn(&mut command);
        let to = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let (sender, from) = mpsc::channel();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some((_, line)) = line.split_once('@') {
                    let _ = sender.send(line.to_owned());
                }
            }
        });
        Self { child, to, from }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn say(&mut self, line: &str) {
        let to = self.to.as_mut().expect("not closed");
        writeln!(to, "{line}").expect("the child listens");
    }

    /// The child's next line.
    pub fn hear(&self) -> String {
        self.hear_within(LONG).expect("the child says something")
    }

    /// The child's next line, or `None` if it says nothing for so long.
    pub fn hear_within(&self, at_most: Duration) -> Option<String> {
        match self.from.recv_timeout(at_most) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("the child ended without a word"),
        }
    }

    /// The child's answer.
    pub fn ask(&mut self, line: impl std::fmt::Display) -> String {
        self.say(&line.to_string());
        self.hear()
    }

    /// The child's next line, or `None` if it has ended without one.
    pub fn hear_last(&self) -> Option<String> {
        match self.from.recv_timeout(LONG) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("the child neither speaks nor ends"),
        }
    }

    /// SIGKILL, and wait until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }

    /// Closes the child's input and waits for its end.
    pub fn finish(mut self) -> ExitStatus {
        self.to = None;
        self.child.wait().expect("our own child")
    }
}

impl Peer {
    /// Waits until the child says "done" and ends.
    pub fn finish_well(self) {
        assert_eq!(self.hear(), "done");
        assert!(self.finish().success());
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that ends when its input is closed: this test binary, for a program that
/// every system has is not to be found.
pub struct Cat(pub Child);

impl Cat {
    pub fn start() -> Self {
        let binary = env::current_exe().expect("this test binary");
        let mut child = spawn(&mut command(&[], &binary, "cat", &[]));
        // Once it answers, it has executed its program.
        let stdout = child.stdout.as_mut().expect("piped");
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        assert!(lines.any(|line| line == "@here"), "it answers");
        Self(child)
    }

    /// What its program is called.
    pub fn program() -> String {
        let binary = env::current_exe().expect("this test binary");
        let name = binary.file_name().expect("a file");
        name.to_str().expect("UTF-8").to_owned()
    }

    pub fn end(mut self) {
        self.0.kill().expect("our own child");
        self.0.wait().expect("our own child");
    }
}

impl Drop for Cat {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// ---------------------------------------------------------------------------
// Ports to test with.

/// A contiguous block of free ports that no other test of this crate uses as
/// long as it lives, in this process or another.
pub struct Block {
    pub ports: RangeInclusive<u16>,
    _reservation: File,
}

impl Block {
    /// The `n` ports, 128 at most.
    ///
    /// Each was free on every address when the block was taken.
    #[expect(
        clippy::disallowed_methods,
        reason = "must not depend on what is tested"
    )]
    pub fn new(n: u16) -> Self {
        const SIZE: u16 = 128;
        assert!((1..=SIZE).contains(&n));
        let reservations = Path::new(env!("CARGO_TARGET_TMPDIR")).join("port-blocks");
        fs::create_dir_all(&reservations).expect("the target directory");
        for _ in 0..1000 {
            let first = rand::random_range(10_000 / SIZE..32_000 / SIZE) * SIZE;
            let path = reservations.join(first.to_string());
            let reservation = File::create(&path).expect("the target directory");
            let ports = first..=first + n - 1;
            if reservation.try_lock().is_ok() && ports.clone().all(is_free) {
                return Self {
                    ports,
                    _reservation: reservation,
                };
            }
        }
        panic!("no block of {n} free ports on this machine");
    }

    pub fn first(&self) -> u16 {
        *self.ports.start()
    }
}

/// Whether a strict bind succeeds. What a child that another test is just starting
/// has of it must not keep the test from leasing the port; on Windows it has nothing.
fn is_free(port: u16) -> bool {
    bind_strictly(port).is_ok_and(|socket| cfg!(windows) || socket.set_reuse_address(true).is_ok())
}

/// A TCP socket bound to `port` on every address, without `SO_REUSEADDR`. On Windows that
/// is not strict, but fails at least if somebody else has every address.
pub fn bind_strictly(port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    socket.set_only_v6(false)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    Ok(socket)
}

/// The same, and listening.
pub fn listen_strictly(port: u16) -> io::Result<Socket> {
    let socket = bind_strictly(port)?;
    socket.listen(8)?;
    Ok(socket)
}

/// A lock directory of its own for a test.
pub fn lock_dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// Whether `outcome` is an error of `kind` whose message has every one of `parts`.
#[track_caller]
pub fn assert_error<T>(outcome: portlock::Result<T>, kind: portlock::ErrorKind, parts: &[&str]) {
    let Err(error) = outcome else {
        panic!("no error, but should be {kind:?}")
    };
    assert_eq!(error.kind(), kind, "{error}");
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "no {part:?} in: {message}");
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

// ---------------------------------------------------------------------------
// The oracle.

/// Knows which ports are held, over all processes, and knows nothing of
/// portlock: a held port is a file made with O_EXCL.
pub struct Oracle(PathBuf);

impl Oracle {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self(dir.into())
    }

    /// Notes that the caller holds `port`; false if somebody else does.
    #[must_use]
    pub fn take(&self, port: u16) -> bool {
        let path = self.0.join(port.to_string());
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(_) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }

    pub fn give_back(&self, port: u16) {
        fs::remove_file(self.0.join(port.to_string())).expect("taken before");
    }
}
