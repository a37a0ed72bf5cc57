//! What a process does under the tracer, and how it is prepared.

use std::{
    env,
    ffi::OsString,
    fmt,
    fs::{self, File},
    io::{self, IoSliceMut, Read, Write},
    net::TcpListener,
    ops::RangeInclusive,
    os::{fd::AsFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant, SystemTime},
};

use portlock::{Builder, Error, ErrorKind, FreePort, LockDir, PortSet};
use portlock_testkit::{
    Block, Parent, Peer, Process, bind_strictly, cat, command, is_permitted, lock_dir,
    open_descriptors, text, unshare,
};
use rustix::{
    fs::{CWD, Mode, mkfifoat},
    process::{PTracer, Pid, WaitId, WaitIdOptions, set_ptracer, umask, waitid},
    thread::gettid,
};
use socket2::Socket;
use tempfile::TempDir;

use Scenario::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// The lock file exists, and the process has leased before.
    Again,
    /// The lock file must be created.
    Fresh,
    /// The same in a directory shared by users.
    Shared,
    /// The first of two ports is leased by another process.
    Held,
    /// The first of two ports is bound by another program.
    Bound,
    /// The port was delegated to a process that has ended, but was not reaped.
    Dead,
    /// The lease is delegated.
    Delegate,
    Listen,
    /// Every port is leased, and the call does not wait.
    Exhausted,
    /// Every port stays leased for longer than the timeout.
    Vain,
    /// A port is released to a waiter that is the leader.
    Wait,
    /// A port is released to a waiter that is second in the queue.
    Behind,
    Clean,
    Leases,
    ServerPorts,
    /// A port is reserved by name, and leased.
    Reserve,
    /// A port that was reserved before is leased by name.
    Name,
    /// The same after the lock directory was lost.
    Restore,
    /// A reservation is removed.
    Unreserve,
    /// The process's first lease; the default directory must be created, in a `/tmp` of a mount
    /// namespace, with a umask that removes all permissions.
    First,
}

/// All scenarios. The last one is skipped without namespaces.
pub(crate) const SCENARIOS: [Scenario; 20] = [
    Again,
    Fresh,
    Shared,
    Held,
    Bound,
    Dead,
    Delegate,
    Listen,
    Exhausted,
    Vain,
    Wait,
    Behind,
    Clean,
    Leases,
    ServerPorts,
    Reserve,
    Name,
    Restore,
    Unreserve,
    First,
];

/// Number of ports of a scenario: one or two to choose from, one that the test holds in the
/// meantime, and one that the child has leased before.
pub(crate) const PORTS: u16 = 4;
pub(crate) const OTHER: u16 = 2;
const BEFORE: u16 = 3;

impl Scenario {
    fn ports(self, first: u16) -> RangeInclusive<u16> {
        let is_two = matches!(self, Held | Bound) || self.is_of_name();
        first..=first + u16::from(is_two)
    }

    /// Returns whether it is about a reserved port.
    pub(crate) fn is_of_name(self) -> bool {
        matches!(self, Reserve | Name | Restore | Unreserve)
    }

    /// Returns whether its calls vary: how often a waiter rescans depends on timing, and how much
    /// there is to read about locks and processes depends on other activity.
    pub(crate) fn is_loose(self) -> bool {
        matches!(self, Exhausted | Vain | Wait | Behind | Leases)
    }

    fn builder(self, dir: &Path, first: u16) -> Builder {
        let timeout = match self {
            // Shorter than the timeout for its reports, so that a waiter that is not woken
            // reports it.
            Wait | Behind => PATIENCE,
            Vain => Duration::from_millis(5),
            _ => Duration::ZERO,
        };
        let builder = FreePort::builder()
            .ports(self.ports(first))
            .timeout(timeout);
        match self {
            First => builder,
            // In the same order each time. With a single port the order is random, so that random
            // numbers are requested.
            Held | Bound => builder.lock_dir(dir).prefer(""),
            Reserve | Name | Restore | Unreserve => {
                builder.lock_dir(dir).name(NAMED).root(root_of(dir))
            }
            _ => builder.lock_dir(dir),
        }
    }
}

/// The name for which a port is reserved.
const NAMED: &str = "web";

/// The root of that name. See [`Stage`].
pub(crate) fn root_of(dir: &Path) -> PathBuf {
    dir.with_file_name("shop")
}

/// Longer than a child takes to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// Leases, and retries while only a copy of an earlier probe is in the way. A child that is being
/// spawned has that copy, on a busy machine for a long time.
fn acquire_patiently(builder: &Builder) -> Result<FreePort, Error> {
    let is_lingering = |error: &Error| error.counts().is_some_and(|counts| counts.lingering > 0);
    let deadline = Instant::now() + PATIENCE;
    loop {
        match builder.acquire() {
            Err(error) if is_lingering(&error) && Instant::now() < deadline => {}
            outcome => return outcome,
        }
    }
}

// ---------------------------------------------------------------------------
// The child's part.

/// Mark the ends of the two consecutive parts of a cycle: leasing and releasing.
pub(crate) const MARKERS: [&str; 4] = [
    "/portlock-faults/before-leasing",
    "/portlock-faults/after-leasing",
    "/portlock-faults/before-giving-back",
    "/portlock-faults/after-giving-back",
];

fn mark(marker: usize) {
    // A statx(2) call that fails.
    let _ = fs::metadata(MARKERS[marker]);
}

/// Waits for a line with readv(2), which nothing else uses: when the tracer attaches, it interrupts
/// the call, and whether it is then counted twice depends on timing.
fn wait_for_line(mut stdin: &File) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut part = [0; 64];
        match stdin.read_vectored(&mut [IoSliceMut::new(&mut part)]) {
            Ok(len) if len > 0 => line.extend(&part[..len]),
            // The parent is gone.
            _ => std::process::exit(0),
        }
    }
    String::from_utf8_lossy(&line).trim().to_owned()
}

enum Got {
    Lease(FreePort),
    Listening(FreePort, TcpListener),
    Report(String),
}

impl fmt::Display for Got {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lease(port) | Self::Listening(port, _) => port.fmt(f),
            Self::Report(report) => f.write_str(report),
        }
    }
}

fn take(scenario: Scenario, builder: &Builder, dir: &Path) -> Result<Got, Error> {
    Ok(match scenario {
        Listen => builder
            .listen()
            .map(|(port, listener)| Got::Listening(port, listener))?,
        Clean => Got::Report(format!("{:?}", LockDir::open(dir)?.clean()?)),
        Leases => {
            let leases = LockDir::open(dir)?.entries()?;
            let states: Vec<_> = leases.iter().map(|lease| lease.state).collect();
            Got::Report(format!("{states:?}"))
        }
        ServerPorts => Got::Report(PortSet::server_ports()?.to_string()),
        Unreserve => {
            let locks = LockDir::open(dir)?;
            let found = locks.reservation(NAMED, root_of(dir))?;
            let found = found.map(|found| locks.unreserve(&found)).transpose()?;
            Got::Report(format!("{found:?}"))
        }
        _ => Got::Lease(builder.acquire()?),
    })
}

fn give_back(scenario: Scenario, got: Got, target: u32) -> Result<(), Error> {
    match got {
        Got::Lease(port) if scenario == Delegate => port.delegate_to(target).map(drop),
        Got::Lease(port) => port.release(),
        Got::Listening(port, listener) => {
            drop(listener);
            port.release()
        }
        Got::Report(_) => Ok(()),
    }
}

/// Returns `done|<what>`, or `failed|<kind>|<number>|<message>`.
fn describe<T: fmt::Display>(outcome: &Result<T, Error>) -> String {
    match outcome {
        Ok(done) => format!("done|{done}"),
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or_default();
            let message = error.to_string().replace('\n', " ");
            format!("failed|{:?}|{errno}|{message}", error.kind())
        }
    }
}

/// Arguments: number of the scenario, first port, lock directory, pid to delegate to.
pub(crate) fn cycle(parent: &Parent) {
    let scenario = SCENARIOS[parent.argument::<usize>(0)];
    let first: u16 = parent.argument(1);
    let dir = PathBuf::from(parent.argument::<String>(2));
    let target = parent.argument(3);
    let builder = scenario.builder(&dir, first);
    let only_by = |builder: &Builder, port| {
        let builder = builder.clone().timeout(Duration::ZERO);
        acquire_patiently(&builder.ports(port..=port)).map(drop)
    };
    let only = |port| only_by(&builder, port);
    match scenario {
        First => drop(umask(Mode::from_raw_mode(0o777))),
        // Its first lease restores.
        ServerPorts | Restore => {}
        _ if scenario.is_of_name() => {
            let builder = FreePort::builder().lock_dir(&dir);
            only_by(&builder, first + BEFORE).expect("no fault yet");
        }
        _ => only(first + BEFORE).expect("no fault yet"),
    }
    let stdin = io::stdin().as_fd().try_clone_to_owned();
    let stdin = File::from(stdin.expect("descriptors left"));
    // If Yama is in use, only an ancestor may trace without this (ptrace(2)).
    let _ = set_ptracer(PTracer::Any);
    // Before its first statx, std checks whether it exists.
    mark(0);
    parent.say(gettid().as_raw_nonzero());
    parent.say(open_descriptors());
    wait_for_line(&stdin);

    // Whether the directory is checked again depends on timing.
    let other = dir.ancestors().nth(2).expect("see Stage");
    let locate = |dir| LockDir::open(dir).map(drop).expect("no fault yet");
    match scenario {
        First | ServerPorts => {}
        Again => thread::sleep(Duration::from_millis(110)),
        Fresh | Shared => locate(other),
        _ => [other, &dir].into_iter().for_each(locate),
    }
    mark(0);
    let got = take(scenario, &builder, &dir);
    mark(1);
    parent.say(describe(&got));
    if let Ok(got) = got {
        wait_for_line(&stdin);
        mark(2);
        let given_back = give_back(scenario, got, target);
        mark(3);
        parent.say(describe(&given_back.map(|()| "")));
    }

    // The tracer is gone. Which ports are free, and, after the bar, which are leased?
    let ports = wait_for_line(&stdin);
    parent.say(open_descriptors());
    let (free, leased) = ports.split_once('|').expect("two lists");
    let numbers = |list: &str| -> Vec<u16> {
        let numbers = list.split_whitespace().map(str::parse);
        numbers.collect::<Result<_, _>>().expect("ports")
    };
    let mut problems = String::new();
    for port in numbers(free) {
        if let Err(error) = only(port) {
            problems += &format!("; the same process cannot lease {port} again: {error}");
        }
    }
    let any = scenario
        .is_of_name()
        .then(|| FreePort::builder().lock_dir(&dir));
    for port in numbers(leased) {
        if only_by(any.as_ref().unwrap_or(&builder), port).map_err(|error| error.kind())
            != Err(ErrorKind::Exhausted)
        {
            problems += &format!("; the same process can lease {port}, which is leased");
        }
    }
    parent.say(open_descriptors());
    parent.say(problems);
    wait_for_line(&stdin);
}

/// Arguments: lock directory, first port. Follows orders without a fault.
pub(crate) fn namer(parent: &Parent) {
    let dir = PathBuf::from(parent.argument::<String>(0));
    let any = FreePort::builder().timeout(Duration::ZERO).lock_dir(&dir);
    let builder = Name.builder(&dir, parent.argument(1));
    loop {
        let line = parent.hear();
        let outcome = match line.split_once(' ') {
            Some((_, port)) => {
                let port: u16 = port.parse().expect("a port");
                acquire_patiently(&any.clone().ports(port)).map(|port| port.to_string())
            }
            None if line == "reserve" => builder.reserve().map(|found| found.port.to_string()),
            None if line == "lease" => acquire_patiently(&builder).map(|port| port.to_string()),
            None => LockDir::open(&dir).and_then(|locks| {
                let found = locks.reservations()?.into_iter();
                let ports: Vec<_> = found.map(|found| found.port.to_string()).collect();
                Ok(ports.join(" "))
            }),
        };
        parent.say(describe(&outcome));
    }
}

// ---------------------------------------------------------------------------
// Preparation.

/// An obstacle that keeps a port from the child.
pub(crate) enum Blocker {
    Lease {
        _lease: FreePort,
    },
    Socket(Socket),
    /// A lease, and the leadership of the wait queue.
    WaitQueue(Option<FreePort>, File),
}

impl Drop for Blocker {
    fn drop(&mut self) {
        match self {
            Self::Lease { .. } => {}
            Self::Socket(socket) => {
                // A child that the other thread is spawning may have it too.
                let _ = socket.set_reuse_address(true);
            }
            Self::WaitQueue(lease, fifo) => {
                lease.take();
                leave(fifo);
            }
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "acts as another waiter, in this process"
)]
fn lead(line: &Path) -> File {
    let fifo = File::options().read(true).write(true).open(line);
    let fifo = fifo.expect("ours");
    fifo.try_lock().expect("no other process waits");
    fifo
}

#[expect(clippy::disallowed_methods, reason = "as above")]
fn leave(mut fifo: &File) {
    let _ = fifo.unlock();
    let _ = fifo.write(b"\n");
}

/// The parent of the default directory of the user that a child is in a namespace.
const TMP: &str = "/tmp";
const NAME: &str = "portlock-0";

/// Returns the scenarios that are possible here.
pub(crate) fn scenarios() -> &'static [Scenario] {
    let unshare = unshare("--mount");
    let binary = env::current_exe().expect("this test binary");
    if is_permitted(&unshare) && !binary.starts_with(TMP) {
        return &SCENARIOS;
    }
    eprintln!("skipped: the default directory, because no mount namespace can be created");
    &SCENARIOS[..SCENARIOS.len() - 1]
}

/// The environment of the child.
pub(crate) struct Stage {
    pub(crate) scenario: Scenario,
    pub(crate) root: TempDir,
    /// The lock directory.
    pub(crate) dir: PathBuf,
    pub(crate) first: u16,
    /// The port that is not free.
    blocked: Option<u16>,
    pub(crate) blocker: Arc<Mutex<Option<Blocker>>>,
    /// A lease held by the test.
    pub(crate) other: Option<FreePort>,
    /// The process that a lease is delegated to.
    target: Option<Process>,
    /// The port that was reserved before.
    reserved: Option<u16>,
}

impl Stage {
    pub(crate) fn new(scenario: Scenario, block: &Block) -> Self {
        let root = lock_dir();
        let tmp = root.path().join("tmp");
        fs::create_dir(&tmp).expect("our own directory");
        let mut stage = Self {
            scenario,
            dir: tmp.join(NAME),
            root,
            first: block.first(),
            blocked: None,
            blocker: Arc::default(),
            other: None,
            target: None,
            reserved: None,
        };
        if scenario == First {
            return stage;
        }
        if scenario.is_of_name() {
            for dir in [root_of(&stage.dir), stage.state_dir()] {
                fs::create_dir(dir).expect("our own directory");
            }
        }
        fs::create_dir(&stage.dir).expect("our own directory");
        fs::set_permissions(&stage.dir, fs::Permissions::from_mode(stage.mode())).expect("ours");
        stage.other = Some(stage.lease(stage.first + OTHER).expect("free"));
        if !matches!(scenario, Fresh | Shared) {
            for port in stage.ports() {
                stage.lease(port).map(drop).expect("free");
            }
        }
        stage.prepare();
        stage
    }

    fn prepare(&mut self) {
        if self.scenario.is_of_name() {
            if self.scenario != Reserve {
                let said = self.namer().ask("reserve");
                let port = said
                    .strip_prefix("done|")
                    .and_then(|port| port.parse().ok());
                self.reserved = Some(port.unwrap_or_else(|| panic!("{said}")));
            }
            if self.scenario == Restore {
                self.lose();
            }
            return;
        }
        let lease = match self.scenario {
            Held | Bound => acquire_patiently(&self.scenario.builder(&self.dir, self.first)),
            _ => self.lease(self.first),
        };
        let lease = lease.expect("free");
        let port = lease.port();
        match self.scenario {
            Behind => {
                let wait = Vain.builder(&self.dir, self.first).acquire();
                assert_eq!(
                    wait.map_err(|error| error.kind()).err(),
                    Some(ErrorKind::Exhausted)
                );
                let names = fs::read_dir(&self.dir).expect("ours").flatten();
                let mut paths = names.map(|entry| entry.path());
                let line = paths.find(|path| text(path).contains("/.waiting."));
                let fifo = lead(&line.expect("one has waited"));
                *self.blocker.lock().expect("no panic") =
                    Some(Blocker::WaitQueue(Some(lease), fifo));
                self.blocked = Some(port);
            }
            Held | Exhausted | Vain | Wait => {
                *self.blocker.lock().expect("no panic") = Some(Blocker::Lease { _lease: lease });
                self.blocked = Some(port);
            }
            Bound => {
                drop(lease);
                let socket = bind_patiently(port);
                *self.blocker.lock().expect("no panic") = Some(Blocker::Socket(socket));
                self.blocked = Some(port);
            }
            Dead => {
                let mut target = cat();
                lease.delegate_to(target.0.id()).expect("it lives");
                target.0.kill().expect("our own child");
                // Wait until it has ended, but do not reap it.
                let pid = WaitId::Pid(Pid::from_child(&target.0));
                let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
                waitid(pid, options).expect("our own child");
                self.target = Some(target);
            }
            Leases => {
                let target = cat();
                lease.delegate_to(target.0.id()).expect("it lives");
                self.target = Some(target);
                self.blocked = Some(port);
            }
            Delegate => self.target = Some(cat()),
            Clean => {
                let stray = File::create(self.dir.join(".new.1.1.0")).expect("ours");
                let long_ago = SystemTime::now() - Duration::from_secs(7200);
                stray.set_modified(long_ago).expect("ours");
                let line = self.dir.join(".waiting.0000000000000001");
                mkfifoat(CWD, line, Mode::RUSR | Mode::WUSR).expect("ours");
            }
            Fresh | Shared => {
                drop(lease);
                fs::remove_file(self.dir.join(port.to_string())).expect("ours");
            }
            Again | First | Listen | ServerPorts => {}
            Reserve | Name | Restore | Unreserve => unreachable!("see above"),
        }
    }

    /// Removes the lock files, except locked ones, and the mark, as if the directory were lost.
    fn lose(&self) {
        for entry in fs::read_dir(&self.dir).expect("our own").flatten() {
            let name = entry.file_name();
            if text(name.as_ref()).parse() != Ok(self.first + OTHER) {
                fs::remove_file(entry.path()).expect("our own");
            }
        }
    }

    /// Returns the directory of the copies of reservations.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.root.path().join("state")
    }

    /// Starts a child that reserves without a fault.
    fn namer(&self) -> Peer {
        let binary = env::current_exe().expect("this test binary");
        let arguments = [text(&self.dir), &self.first.to_string()];
        let mut command = command(&[], &binary, "namer", &arguments);
        command.env("XDG_STATE_HOME", self.state_dir());
        Peer::start_command(command)
    }

    /// Returns what is wrong with the reservation, after its removal if there was one: the name
    /// has one port, the same as before, which no other caller can lease, even after the
    /// directory was lost.
    pub(crate) fn what_is_wrong_with_name(&self, is_removed: bool) -> Vec<String> {
        let mut problems = Vec::new();
        let mut namer = self.namer();
        let mut must_be = |namer: &mut Peer, order: &str, expected: &str| {
            let said = namer.ask(order);
            if said != expected {
                problems.push(format!("{order}: {said}, and not {expected}"));
            }
        };
        if is_removed {
            must_be(&mut namer, "list", "done|");
            for port in self.ports() {
                must_be(&mut namer, &format!("port {port}"), &format!("done|{port}"));
            }
            return problems;
        }
        let said = namer.ask("reserve");
        let port = said.strip_prefix("done|").unwrap_or_default();
        if self
            .reserved
            .is_some_and(|reserved| port != reserved.to_string())
        {
            return vec![format!("reserve: {said}, and not {:?}", self.reserved)];
        }
        must_be(&mut namer, "lease", &said);
        must_be(&mut namer, "list", &said);
        let refused = namer.ask(format!("port {port}"));
        if !refused.contains("1 reserved") {
            problems.push(format!("{port}, which is reserved: {refused}"));
        }
        for other in self.ports().filter(|other| port != other.to_string()) {
            let only = format!("done|{other}");
            let said = namer.ask(format!("port {other}"));
            if said != only {
                problems.push(format!("{other}, which is not reserved: {said}"));
            }
        }
        self.lose();
        let said_again = self.namer().ask("reserve");
        if said_again != said {
            problems.push(format!(
                "after the directory was lost: {said_again}, and not {said}"
            ));
        }
        problems
    }

    /// Returns the ports that the child may choose from.
    pub(crate) fn ports(&self) -> RangeInclusive<u16> {
        self.scenario.ports(self.first)
    }

    /// Returns the ports that are free now, if the child has none.
    pub(crate) fn free(&self) -> Vec<u16> {
        let is_blocked = self.blocker.lock().expect("no panic").is_some() || self.target.is_some();
        let blocked = self.blocked.filter(|_| is_blocked);
        self.ports().filter(|&port| Some(port) != blocked).collect()
    }

    /// Returns the mode of the lock directory.
    pub(crate) fn mode(&self) -> u32 {
        if self.scenario == Shared {
            0o1777
        } else {
            0o700
        }
    }

    /// Returns the path of the lock directory that the child sees.
    pub(crate) fn dir_of_child(&self) -> PathBuf {
        match self.scenario {
            First => Path::new(TMP).join(NAME),
            _ => self.dir.clone(),
        }
    }

    pub(crate) fn lease(&self, port: u16) -> Result<FreePort, Error> {
        let builder = FreePort::builder().ports(port..=port).lock_dir(&self.dir);
        acquire_patiently(&builder.timeout(Duration::ZERO))
    }

    /// Returns whether the port's file is locked, according to the kernel.
    #[expect(
        clippy::disallowed_methods,
        reason = "must not depend on what is tested"
    )]
    pub(crate) fn is_locked(&self, port: u16) -> bool {
        let file = File::open(self.dir.join(port.to_string()));
        file.is_ok_and(|file| file.try_lock().is_err())
    }

    /// Returns what is wrong with a lease that the child reports.
    pub(crate) fn what_is_wrong_with_lease_of(&self, port: u16) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.ports().contains(&port)
            || !matches!(self.scenario, Wait | Behind) && self.blocked == Some(port)
        {
            problems.push(format!("{port} was leased, but was not available"));
        }
        if !self.is_locked(port) {
            problems.push(format!("{port} was leased, but no process has its lock"));
        }
        if self.lease(port).map_err(|error| error.kind()).err() != Some(ErrorKind::Exhausted) {
            problems.push(format!("{port} was leased twice"));
        }
        problems
    }

    /// Returns files that were being created and are not used.
    pub(crate) fn strays(&self) -> Vec<OsString> {
        let copies = self.state_dir().join("portlock").join("reservations");
        let dirs = fs::read_dir(copies).into_iter().flatten().flatten();
        dirs.map(|entry| entry.path())
            .chain([self.dir.clone()])
            .flat_map(|dir| fs::read_dir(dir).expect("our own").flatten())
            .map(|entry| entry.file_name())
            .filter(|name| name.to_string_lossy().starts_with(".new."))
            .collect()
    }

    /// Ends everything that was prepared, so that every port is free.
    pub(crate) fn clear(&mut self) {
        self.blocker.lock().expect("no panic").take();
        self.target = None;
    }

    pub(crate) fn start(&self) -> Peer {
        let number = SCENARIOS
            .iter()
            .position(|&scenario| scenario == self.scenario);
        let arguments = [
            &number.expect("one of them").to_string(),
            &self.first.to_string(),
            text(&self.dir),
            &self.target.as_ref().map_or(0, |cat| cat.0.id()).to_string(),
        ];
        let binary = env::current_exe().expect("this test binary");
        let script = format!(
            "mount --bind {}/tmp {TMP} && mount -t tmpfs none /run && exec \"$0\" \"$@\"",
            self.root.path().display()
        );
        let prefix = match self.scenario {
            First => [&unshare("--mount")[..], &["sh", "-c", &script]].concat(),
            _ => Vec::new(),
        };
        let mut command = command(&prefix, &binary, "cycle", &arguments);
        for variable in ["PORTLOCK_DIR", "PORTLOCK_PORTS", "PORTLOCK_PORTS_FILE"] {
            command.env_remove(variable);
        }
        command
            .env("TMPDIR", self.root.path())
            .env("HOME", self.root.path())
            .env("XDG_STATE_HOME", self.state_dir())
            .current_dir(self.root.path());
        Peer::start_command(command)
    }
}

/// Binds an unused port, once no copy of an earlier probe is left.
fn bind_patiently(port: u16) -> Socket {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match bind_strictly(port) {
            Ok(socket) => return socket,
            Err(error) => assert!(Instant::now() < deadline, "{port}: {error}"),
        }
        thread::sleep(Duration::from_millis(1));
    }
}
