//! What several test binaries need: the program with a lock directory and ports
//! of its own, processes that speak over pipes, other users and namespaces.

#![allow(dead_code, unreachable_pub, reason = "no test binary uses all of it")]
#![allow(
    clippy::incompatible_msrv,
    reason = "tests need a newer Rust than the program"
)]

use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
    hash::{BuildHasher, RandomState},
    io::{self, BufRead, BufReader, Write},
    net::{Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use assert_cmd::assert::Assert;
use portlock::socket2::{Domain, Socket, Type};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// The program under test.
pub const PORTLOCK: &str = env!("CARGO_BIN_EXE_portlock");

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

    /// A script, run by `shell`.
    pub fn script(&self, shell: &str, script: &str) -> Command {
        let mut command = self.command(shell);
        command.args(["-c", script]);
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
        let run = [
            "run",
            "--timeout=0",
            "--ports",
            &port,
            "--",
            "echo",
            "{port}",
        ];
        self.portlock(run).code(0).prints(&format!("{port}\n"));
    }

    /// The port cannot be leased, for somebody else has.
    #[track_caller]
    pub fn assert_leased(&self, port: u16) {
        let state = format!("{port} leased");
        self.check(port).code(LEASED).prints(&state);
        let port = port.to_string();
        let run = ["run", "--timeout=0", "--ports", &port, "--", "true"];
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
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").expect("Linux");
    let mut ends = text.split_ascii_whitespace().map(|end| end.parse());
    let mut end = || ends.next().expect("two ends").expect("a port");
    end()..=end()
}

/// Whether any port below 1024 is for privileged processes only.
pub fn low_ports_are_privileged() -> bool {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    text.is_ok_and(|text| text.trim_end() == "1024")
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

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.id()).expect("a pid");
        let pid = Pid::from_raw(pid).expect("not 0");
        kill_process(pid, signal).expect("our own child");
    }

    /// SIGKILL, and wait until it is gone.
    #[track_caller]
    pub fn kill(mut self) -> ExitStatus {
        self.signal(Signal::KILL);
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
        Running::start(self.command("cat"))
    }

    /// portlock, with the rest of the command line for something that lives until
    /// its input is closed. Gives the port too.
    #[track_caller]
    pub fn hold(&self, options: &[&str]) -> (Running, u16) {
        let script = ["--", "sh", "-c", "echo {port}; exec cat"];
        let options = ["run"].iter().chain(options).chain(&script);
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
// Other users, namespaces, terminals, and programs that may not be there.

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

/// An ordinary user: "nobody".
const NOBODY: u32 = 65534;

pub fn am_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A user without privileges, whoever runs the tests.
pub struct OrdinaryUser {
    /// The build directory may be closed to others.
    copy: TempDir,
}

impl OrdinaryUser {
    pub fn new() -> Self {
        let copy = tempfile::tempdir().expect("a temporary directory");
        open_to_all(copy.path(), 0o755);
        // Not by this process: what another thread is just starting would inherit
        // the file open for writing, and it could not be executed (ETXTBSY).
        let mut cp = Command::new("cp");
        let status = cp.arg(PORTLOCK).arg(copy.path()).status();
        assert!(status.expect("cp is installed").success());
        Self { copy }
    }

    pub fn program(&self, scene: &Scene, args: &[&str]) -> Command {
        let mut command = scene.command(self.copy.path().join("portlock"));
        command.args(args).current_dir("/");
        if am_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    pub fn portlock(&self, scene: &Scene, args: &[&str]) -> Assert {
        answer(self.program(scene, args))
    }

    /// Makes something this user's own.
    pub fn give(&self, path: &Path) {
        if am_root() {
            chown(path, Some(NOBODY), Some(NOBODY)).expect("root may");
        }
    }
}

/// Sets the mode of a file or directory of ours.
pub fn open_to_all(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("our own");
}

impl Scene {
    /// A script in a namespace of the given kind, such as `--net`, or `None` where
    /// namespaces cannot be had.
    pub fn in_namespace(&self, kind: &str, script: &str) -> Option<Command> {
        let unshare = |command: &mut Command| {
            command.args(kind.split(' '));
            if !am_root() {
                command.args(["--user", "--map-root-user"]);
            }
        };
        let mut works = Command::new("unshare");
        unshare(&mut works);
        works.arg("true").stderr(Stdio::null());
        if !works.status().is_ok_and(|status| status.success()) {
            eprintln!("left out: a namespace by {kind} is not permitted here");
            return None;
        }
        let mut command = self.command("unshare");
        unshare(&mut command);
        command.args(["sh", "-c", script]);
        Some(command)
    }

    /// A shell's command line on a terminal of its own, or `None` where
    /// script(1) of util-linux is not installed. What it says on either output is
    /// on standard output.
    pub fn on_terminal(&self, line: &str) -> Option<Command> {
        let version = Command::new("script").arg("--version").output();
        let version = version.map(|version| version.stdout).unwrap_or_default();
        if !String::from_utf8_lossy(&version).contains("util-linux") {
            eprintln!("left out: script(1) of util-linux is not installed");
            return None;
        }
        let mut command = self.command("script");
        command
            .args(["--quiet", "--return", "--command", line, "/dev/null"])
            .env("TERM", "xterm")
            .env("SHELL", "/bin/sh");
        Some(command)
    }

    /// The lock file of a port.
    pub fn lock_file(&self, port: u16) -> PathBuf {
        self.dir().join(port.to_string())
    }

    /// Writes the record of a port, as somebody else might.
    pub fn forge(&self, port: u16, record: impl AsRef<[u8]>) {
        fs::write(self.lock_file(port), record).expect("our own directory");
    }

    /// Replaces the word at `index` of a port's record.
    pub fn forge_word(&self, port: u16, index: usize, word: &str) {
        let record = fs::read_to_string(self.lock_file(port)).expect("a lock file");
        let mut words: Vec<&str> = record.split_ascii_whitespace().collect();
        words[index] = word;
        self.forge(port, format!("{:511}\n", words.join(" ")));
    }

    /// How many lock files there are.
    pub fn lock_files(&self) -> usize {
        fs::read_dir(self.dir()).expect("our own directory").count()
    }
}
