//! What several test binaries need: the program with a lock directory and ports
//! of its own, commands that every system has, and processes that speak over pipes.

#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "no test binary uses all of it"
)]
#![allow(
    clippy::incompatible_msrv,
    reason = "tests need a newer Rust than the program"
)]

#[cfg(unix)]
mod unix;

use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
    hash::{BuildHasher, RandomState},
    io::{self, BufRead, BufReader, Write},
    net::{Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use assert_cmd::assert::Assert;
use portlock::socket2::{Domain, Socket, Type};
use serde_json::Value;
use tempfile::TempDir;
#[cfg(unix)]
pub use unix::*;

/// The program under test.
pub const PORTLOCK: &str = env!("CARGO_BIN_EXE_portlock");

/// Its name as processes are named, which is with an ending where programs have one.
pub const NAME: &str = if cfg!(windows) {
    "portlock.exe"
} else {
    "portlock"
};

/// Longer than anything takes on a crowded machine; a test that waits so long has failed.
pub const LONG: Duration = Duration::from_secs(60);

/// Its exit statuses.
pub const LEASED: i32 = 1;
pub const BOUND: i32 = 3;
pub const EXHAUSTED: i32 = 75;
pub const TIMED_OUT: i32 = 124;
pub const FAILED: i32 = 125;

/// How much longer than by default the stress tests run: `PORTLOCK_STRESS`, 1 if unset.
pub fn stress(times: usize) -> usize {
    let factor = env::var("PORTLOCK_STRESS").map_or(1, |factor| {
        factor.parse().expect("PORTLOCK_STRESS is a number")
    });
    times * factor
}

/// Looks again and again until there is something to see.
#[track_caller]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LONG;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

// ---------------------------------------------------------------------------
// The program, in surroundings of its own.

/// A lock directory and a block of ports for one test.
///
/// Every command has both in its environment. A test that chose from all ports
/// would, for a moment, probe the ports of another test.
pub struct Scene {
    dir: TempDir,
    block: Block,
}

impl Scene {
    /// With `n` ports to choose from.
    pub fn new(n: u16) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let block = Block::new(n);
        Self { dir, block }
    }

    /// The lock directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The ports, in ascending order.
    pub fn ports(&self) -> RangeInclusive<u16> {
        self.block.ports.clone()
    }

    /// The first port.
    pub fn port(&self) -> u16 {
        *self.block.ports.start()
    }

    /// The ports as text, such as `20000-20009`.
    pub fn set(&self) -> String {
        set(self.ports())
    }

    /// Any program, with portlock in its PATH.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let own = Path::new(PORTLOCK).parent().expect("in a directory");
        let path = env::var_os("PATH").unwrap_or_default();
        // With one that may not be searched, what is not found anywhere would be
        // "not permitted" (execve(2), EACCES).
        let path = [own.to_owned()]
            .into_iter()
            .chain(env::split_paths(&path))
            .filter(|dir| dir.is_absolute() && dir.join(".").exists());
        let mut command = Command::new(program);
        for variable in [
            "PORTLOCK_PORTS_FILE",
            "NO_COLOR",
            "CLICOLOR",
            "CLICOLOR_FORCE",
            // With it, colours are taken to be wanted on any terminal.
            "CI",
            "PORT",
            "LISTEN_FDS",
            "LISTEN_FDNAMES",
            "LISTEN_PID",
        ] {
            command.env_remove(variable);
        }
        command
            .env("PATH", env::join_paths(path).expect("as it was"))
            .env("PORTLOCK_DIR", self.dir())
            .env("PORTLOCK_PORTS", self.set());
        command
    }

    /// portlock itself.
    pub fn program<T: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = T>) -> Command {
        let mut command = self.command(PORTLOCK);
        command.args(args);
        command
    }

    /// Runs portlock to its end.
    #[track_caller]
    pub fn portlock<T: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = T>) -> Assert {
        answer(self.program(args))
    }

    /// `portlock check` of one port.
    #[track_caller]
    pub fn check(&self, port: u16) -> Assert {
        self.portlock(["check", &port.to_string()])
    }

    /// The port can be leased at once.
    #[track_caller]
    pub fn assert_leasable(&self, port: u16) {
        self.check(port).code(0).prints(&format!("{port} free"));
        let port = port.to_string();
        let run = ["run", "--timeout=0", "--ports", &port, "--"];
        let shell = shell("echo {port}");
        let run = run.iter().chain(&shell);
        assert_eq!(self.portlock(run).code(0).out().trim_end(), port);
    }

    /// The port cannot be leased, for somebody else has.
    #[track_caller]
    pub fn assert_leased(&self, port: u16) {
        let state = format!("{port} leased");
        self.check(port).code(LEASED).prints(&state);
        let port = port.to_string();
        let run = ["run", "--timeout=0", "--ports", &port, "--", TRUE];
        self.portlock(run)
            .code(EXHAUSTED)
            .warns("1 leased (")
            .prints_just("");
    }

    /// Nothing is leased.
    #[track_caller]
    pub fn assert_no_lease(&self) {
        assert_eq!(self.list(), Vec::<Value>::new());
    }

    /// `portlock list --json`.
    #[track_caller]
    pub fn list(&self) -> Vec<Value> {
        let list = self.portlock(["list", "--json"]).code(0);
        list.json().as_array().expect("an array").clone()
    }

    /// Ends every lease that was picked.
    #[track_caller]
    pub fn release_all(&self) {
        for lease in self.list() {
            let port = lease["port"].to_string();
            self.portlock(["release", &port]).code(0);
        }
    }

    /// A port that is leased to this process from now on.
    #[track_caller]
    pub fn pick(&self) -> u16 {
        let pick = self.portlock(["pick", "--timeout=0"]).code(0);
        pick.out().trim_end().parse().expect("a port")
    }
}

/// `first-last`.
pub fn set(ports: RangeInclusive<u16>) -> String {
    format!("{}-{}", ports.start(), ports.end())
}

/// Runs a command to its end. Whatever it is about, it must not panic.
#[track_caller]
pub fn answer(command: Command) -> Assert {
    let assert = assert_cmd::Command::from_std(command)
        .timeout(LONG)
        .assert();
    assert!(!assert.err().contains("panicked"), "{}", assert.err());
    assert
}

/// What a command has said.
pub trait Said: Sized {
    /// Its standard output.
    fn out(&self) -> &str;
    /// Its standard error.
    fn err(&self) -> &str;
    /// Its standard output begins with this.
    #[track_caller]
    fn prints(self, start: &str) -> Self {
        assert!(self.out().starts_with(start), "{start:?}: {:?}", self.out());
        self
    }
    /// Its standard output is this and no more.
    #[track_caller]
    fn prints_just(self, text: &str) -> Self {
        assert_eq!(self.out(), text);
        self
    }
    /// Its standard error has this in it.
    #[track_caller]
    fn warns(self, part: &str) -> Self {
        assert!(self.err().contains(part), "{part:?}: {:?}", self.err());
        self
    }
    /// Its standard error is empty.
    #[track_caller]
    fn warns_of_nothing(self) -> Self {
        assert_eq!(self.err(), "");
        self
    }
    /// Its standard output as JSON.
    #[track_caller]
    fn json(&self) -> Value {
        let out = self.out();
        serde_json::from_str(out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }
    /// Its standard output, one port in each line.
    #[track_caller]
    fn ports(&self) -> Vec<u16> {
        let lines = self.out().lines();
        lines.map(|line| line.parse().expect("a port")).collect()
    }
}

impl Said for Assert {
    fn out(&self) -> &str {
        str::from_utf8(&self.get_output().stdout).expect("UTF-8")
    }

    fn err(&self) -> &str {
        str::from_utf8(&self.get_output().stderr).expect("UTF-8")
    }
}

/// The kernel's range of ports for clients.
pub fn ephemeral() -> RangeInclusive<u16> {
    if !cfg!(target_os = "linux") {
        return portlock::ephemeral_port_range().expect("the system tells");
    }
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").expect("Linux");
    let mut ends = text.split_ascii_whitespace().map(|end| end.parse());
    let mut end = || ends.next().expect("two ends").expect("a port");
    end()..=end()
}

/// Whether the system tells that range; says so if it does not, as under Wine.
pub fn tells_ephemeral() -> bool {
    let tells = portlock::ephemeral_port_range();
    if let Err(error) = &tells {
        eprintln!("left out: {error}");
    }
    cfg!(target_os = "linux") || tells.is_ok()
}

/// Whether any port below 1024 is for privileged processes only.
pub fn low_ports_are_privileged() -> bool {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    text.is_ok_and(|text| text.trim_end() == "1024")
}

// ---------------------------------------------------------------------------
// Commands that every system has.

/// Does nothing, and does it well.
pub const TRUE: &str = if cfg!(windows) { "hostname" } else { "true" };

/// A shell's line that waits for its input to be closed.
pub const WAIT: &str = if cfg!(windows) {
    "set /p line=& exit 0"
} else {
    "exec cat"
};

/// What joins two commands in a shell's line.
pub const AND: &str = if cfg!(windows) { "&" } else { "; " };

/// A line for the shell. `echo` and `exit` are much the same everywhere.
pub fn shell(line: &str) -> [&str; 3] {
    if cfg!(windows) {
        ["cmd", "/c", line]
    } else {
        ["sh", "-c", line]
    }
}

/// The value of a variable in a shell's line.
pub fn value(variable: &str) -> String {
    if cfg!(windows) {
        format!("%{variable}%")
    } else {
        format!("${variable}")
    }
}

// ---------------------------------------------------------------------------
// Processes that live for a while.

/// A process that is spoken to. Killed and waited for when dropped.
pub struct Running {
    child: Child,
    to: Option<ChildStdin>,
    from: Receiver<String>,
}

impl Running {
    #[track_caller]
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let to = child.stdin.take();
        let mut lines = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, from) = mpsc::channel();
        thread::spawn(move || {
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line).is_ok_and(|len| len > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                line.clear();
                if sender.send(text).is_err() {
                    break;
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
        writeln!(to, "{line}").expect("it listens");
    }

    /// Its next line.
    #[track_caller]
    pub fn hear(&self) -> String {
        self.hear_or_end().expect("it says something")
    }

    /// Its next line, or `None` at the end of its output.
    #[track_caller]
    pub fn hear_or_end(&self) -> Option<String> {
        match self.from.recv_timeout(LONG) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("it says nothing"),
        }
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("our own child").is_some()
    }

    /// Waits for its end, but not for ever.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        until("the child's end", || {
            self.child.try_wait().expect("our own child")
        })
    }

    /// Closes its input and waits for its end.
    #[track_caller]
    pub fn finish(mut self) -> ExitStatus {
        self.to = None;
        self.wait()
    }

    /// Closes its input, whoever reads from it by now.
    pub fn close(&mut self) {
        self.to = None;
    }

    /// SIGKILL or TerminateProcess, and wait until it is gone.
    #[track_caller]
    pub fn kill(mut self) -> ExitStatus {
        self.kill_only()
    }

    /// The same, but its input stays open, for those that have it from it.
    #[track_caller]
    pub fn kill_only(&mut self) -> ExitStatus {
        self.child.kill().expect("our own child");
        self.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Scene {
    /// A process that does nothing until its input is closed.
    pub fn idle(&self) -> Running {
        // On Unix not by way of a shell, which would become `cat` a moment later.
        let words: &[&str] = if cfg!(windows) {
            &shell(WAIT)
        } else {
            &["cat"]
        };
        let mut command = self.command(words[0]);
        command.args(&words[1..]);
        Running::start(command)
    }

    /// portlock, with the rest of the command line for something that lives until
    /// its input is closed. Gives the port too.
    #[track_caller]
    pub fn hold(&self, options: &[&str]) -> (Running, u16) {
        let line = format!("echo {{port}}{AND}{WAIT}");
        let shell = shell(&line);
        let options = ["run"].iter().chain(options).chain(&["--"]).chain(&shell);
        let holder = Running::start(self.program(options));
        let port = holder.hear().parse().expect("a port");
        (holder, port)
    }
}

// ---------------------------------------------------------------------------
// Sockets.

/// A TCP socket bound to `port` on every address, without `SO_REUSEADDR`.
pub fn bind_strictly(port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    socket.set_only_v6(false)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    Ok(socket)
}

/// The same, and listening.
#[track_caller]
pub fn listen_strictly(port: u16) -> Socket {
    let socket = bind_strictly(port).expect("a free port");
    socket.listen(8).expect("bound");
    socket
}

/// A contiguous block of free ports that no other test of this workspace uses as
/// long as it lives, in this process or another.
struct Block {
    ports: RangeInclusive<u16>,
    _reservations: Vec<File>,
}

impl Block {
    /// The `n` ports, 1024 at most.
    ///
    /// Each was free on every address when the block was taken.
    #[expect(
        clippy::disallowed_methods,
        reason = "must not depend on what is tested"
    )]
    fn new(n: u16) -> Self {
        /// The library's tests reserve in the same steps and the same directory.
        const SIZE: u16 = 128;
        assert!((1..=1024).contains(&n));
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("port-blocks");
        fs::create_dir_all(&directory).expect("the target directory");
        let random = RandomState::new();
        for attempt in 0..1000 {
            let (from, to) = (10_000 / SIZE, 31_000 / SIZE);
            let hash = random.hash_one(attempt) % u64::from(to - from);
            let first = (from + u16::try_from(hash).expect("less")) * SIZE;
            let ports = first..=first + n - 1;
            let reserve = |first: u16| {
                let file = File::create(directory.join(first.to_string()));
                let file = file.expect("the target directory");
                file.try_lock().is_ok().then_some(file)
            };
            let reservations: Option<Vec<File>> =
                ports.clone().step_by(SIZE.into()).map(reserve).collect();
            let Some(_reservations) = reservations else {
                continue;
            };
            // What a child that is just starting has of the sockets must not keep the
            // ports from being leased.
            let is_free = |port| {
                bind_strictly(port).is_ok_and(|socket| socket.set_reuse_address(true).is_ok())
            };
            if ports.clone().all(is_free) {
                return Self {
                    ports,
                    _reservations,
                };
            }
        }
        panic!("no block of {n} free ports on this machine");
    }
}

// ---------------------------------------------------------------------------
// Lock files, and programs that may not be there.

/// Whether this is Windows as Wine has it; says what of a test is left out then.
pub fn is_wine(what: &str) -> bool {
    let is_wine = cfg!(windows) && env::var_os("WINECONFIGDIR").is_some();
    if is_wine {
        eprintln!("left out: under Wine, {what}");
    }
    is_wine
}

/// Whether a program can be started; says so if it cannot.
pub fn is_installed(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null());
    let installed = command.output().is_ok();
    if !installed {
        eprintln!("left out: {program} is not installed");
    }
    installed
}

impl Scene {
    /// The file with the record of a port: its lock file, or on Windows, where nobody
    /// else can read a file that is locked, one beside it.
    fn record(&self, port: u16) -> PathBuf {
        let beside = if cfg!(windows) { ".owner" } else { "" };
        self.dir().join(format!("{port}{beside}"))
    }

    /// Writes the record of a port, as somebody else might.
    pub fn forge(&self, port: u16, record: impl AsRef<[u8]>) {
        fs::write(self.record(port), record).expect("our own directory");
    }

    /// Replaces the word at `index` of a port's record.
    pub fn forge_word(&self, port: u16, index: usize, word: &str) {
        let record = fs::read_to_string(self.record(port)).expect("a record");
        let mut words: Vec<&str> = record.split_ascii_whitespace().collect();
        words[index] = word;
        self.forge(port, format!("{:511}\n", words.join(" ")));
    }

    /// How many files there are, without the records that stand beside them.
    pub fn lock_files(&self) -> usize {
        let files = fs::read_dir(self.dir()).expect("our own directory");
        let names = files.map(|file| file.expect("our own directory").path());
        names
            .filter(|name| name.extension() != Some(OsStr::new("owner")))
            .count()
    }
}
