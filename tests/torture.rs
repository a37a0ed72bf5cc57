//! Torture test: on a few ports, threads and processes randomly do everything that a caller can
//! do, while they are killed and stopped. A log of who held which port at which time is checked
//! for overlaps.
//!
//! It runs for five seconds, or for `PORTLOCK_TORTURE_SECONDS`. A seed determines the actions; it
//! is printed, and `PORTLOCK_TORTURE_SEED` sets it. The scheduler determines the timing.
//!
//! The parent starts workers, kills and stops them, and reads their reports. A worker reports
//! each lease *after* it began and *before* its end begins, with the time, in one write to a
//! pipe. The leases of a killed worker end at the time that the parent read before the kill. So
//! no interval in the log is longer than the lease was, and if two intervals of one port overlap,
//! the leases did.
//!
//! Possible false alarms, and how they are avoided:
//!
//! * Until it calls exec, a child has its parent's sockets. While it has a probe, another
//!   holder's *strict* bind of that port fails, which is a documented limit. So there are two kinds
//!   of workers, and two blocks of ports. *Strict* workers never start a child; only they use the
//!   first block, and bind its ports without SO_REUSEADDR, repeatedly. *Forking* workers start
//!   children all the time. Both kinds use the second block, and bind its ports with SO_REUSEADDR,
//!   once for each lease, because a child may have the first listener.
//! * A connection in TIME_WAIT keeps its server's port from strict binds. So all connections are
//!   reset, including those of a killed process.
//! * Whether a port can be leased immediately after its release can only be tested where no other
//!   caller wants it: each thread of a forking worker has a port and a lock file for itself.
//!
//! Where unshare(1) is permitted, some workers and some servers (the processes that leases are
//! delegated to) run in separate namespaces:
//!
//! * In a time namespace, the start times of processes are shifted. Only the clock
//!   `CLOCK_BOOTTIME` is shifted, because the log uses `CLOCK_MONOTONIC`.
//! * A *nested* worker is process 1 of a pid namespace, with the /proc of that namespace or of
//!   the first one. It delegates to its own servers inside. Killing it kills the whole namespace,
//!   and the workers outside must then get its ports. A nested worker cannot prove that a process
//!   outside has ended, so it withholds that process's ports until a worker outside has leased
//!   them.
//! * A process that closes the descriptor that was passed to it keeps its port only from callers
//!   that can determine that it is alive: those in its own pid namespace and in the first one. So
//!   that happens only on *private* ports: one block that no nested worker uses, and for each
//!   forking nested worker one block that no other nested worker uses.
//!
//! One thing is omitted: a process that removes the file of a leased port without its lock. By
//! design, nothing can prevent a second lease then. `clean`, which holds the lock, is called all the
//! time.
//!
//! Written for Linux: the test stops processes, reads /proc, and adopts orphans.

#![cfg(target_os = "linux")]
#![allow(
    clippy::incompatible_msrv,
    reason = "tests need a newer Rust than the library"
)]

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    env,
    fmt::{self, Display},
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    mem,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    ops::RangeInclusive,
    os::{
        fd::OwnedFd,
        unix::{fs::MetadataExt, process::CommandExt},
    },
    panic,
    path::{Path, PathBuf},
    process::{self, Child, ChildStdin, Command, Stdio},
    str::SplitWhitespace,
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use portlock::{Builder, Error, ErrorKind, FreePort, LockDir};
use portlock_testkit::{
    Block, LONG, Parent, command, is_permitted, lock_dir, run_child, text, unshare,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rustix::{
    process::{Pid, Signal, WaitOptions, kill_process, set_child_subreaper, wait},
    time::{ClockId, clock_gettime},
};
use socket2::{Domain, SockRef, Socket, Type};

/// Number of ports in each of the two blocks: few, so that they are exhausted.
const PORTS: u16 = 8;
/// Number of ports in each private block.
const PRIVATE: u16 = 3;
const STRICT_WORKERS: usize = 3;
const FORKING_WORKERS: usize = 4;
/// Number of nested workers: the last strict worker, and the last two forking workers.
const NESTED_STRICT: usize = 1;
const NESTED_FORKING: usize = 2;
/// Number of ports of the lock directory that all workers share: the two blocks, the private
/// ports of all workers that are not nested, and of each nested one that forks.
const SHARED_PORTS: u16 = 2 * PORTS + (1 + NESTED_FORKING as u16) * PRIVATE;
const THREADS: u16 = 3;
/// Includes one that cleans all the time.
const WORKERS: usize = STRICT_WORKERS + FORKING_WORKERS + 1;
/// Number of processes that leases are delegated to.
const SERVERS: usize = 2;
/// Longer than the parent's patience, so that it can find waiters that wait in vain.
const IN_VAIN: Duration = Duration::from_secs(10 * LONG.as_secs());
/// Number of actions of each thread between two moments in which its process holds nothing.
const STEPS: usize = 5;

#[test]
fn child() {
    run_child(&[("torture", torture), ("clean", clean), ("pass", pass)]);
}

/// Returns nanoseconds of a clock that all processes share and that is never set.
fn now() -> u64 {
    let now = Duration::try_from(clock_gettime(ClockId::Monotonic));
    nanoseconds(now.expect("after boot"))
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("less than 584 years")
}

// ---------------------------------------------------------------------------
// Processes in separate namespaces.

/// A process that this one has started.
struct Process {
    /// The process, or the `unshare` that started it.
    child: Child,
    /// Whether it is in separate namespaces, below `unshare`.
    is_inside: bool,
}

impl Process {
    /// Starts `command`, whose program is `unshare` if `is_inside`.
    fn start(mut command: Command, is_inside: bool) -> Self {
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self { child, is_inside }
    }

    /// Starts a process that ends when this one does. `prefix` is `unshare` with its options, or
    /// empty.
    fn cat(prefix: &[&str]) -> Self {
        let mut command = Command::new(prefix.first().unwrap_or(&"cat"));
        if let [_, options @ ..] = prefix {
            command.args(options).arg("cat");
        }
        command.stdin(Stdio::piped());
        // `unshare` complains when the process that it started is killed.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Self::start(command, !prefix.is_empty())
    }

    /// Returns its pid, as this process sees it, or `None` if `unshare` has not started it yet or
    /// it has ended.
    fn pid(&self) -> Option<u32> {
        let id = self.child.id();
        if !self.is_inside {
            return Some(id);
        }
        // It is the only child of `unshare`.
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// Returns its pid once it has one.
    fn wait_for_pid(&self) -> u32 {
        for _ in 0..LONG.as_millis() {
            if let Some(pid) = self.pid() {
                return pid;
            }
            thread::sleep(Duration::from_millis(1));
        }
        panic!("unshare does not start its program")
    }

    /// Sends a signal to it, or to `unshare` if that has not started it yet. When the first
    /// process of a pid namespace ends, so do all others, and `unshare`.
    fn signal(&self, signal: Signal) {
        self.send(self.pid().unwrap_or_else(|| self.child.id()), signal);
    }

    fn send(&self, pid: u32, signal: Signal) {
        match kill_process(pid_of(pid), signal) {
            Ok(()) => {}
            // It ended, and `unshare` has reaped it.
            Err(rustix::io::Errno::SRCH) if self.is_inside => {}
            // A child exists, at least as a zombie, until it is reaped.
            Err(error) => panic!("cannot signal process {pid}: {error}"),
        }
    }

    /// Kills it, and first `unshare`, which would complain. Only for a subreaper, which adopts
    /// it.
    fn kill(&mut self) {
        let pid = self.pid();
        self.child.kill().expect("our own child");
        if let Some(pid) = pid {
            self.send(pid, Signal::KILL);
        }
    }

    /// Kills it and waits until it is gone.
    fn end(mut self) {
        self.signal(Signal::KILL);
        self.child.wait().expect("our own child");
    }
}

fn pid_of(pid: u32) -> Pid {
    let pid = i32::try_from(pid).expect("a pid");
    Pid::from_raw(pid).expect("not 0")
}

/// The options of unshare for every nested process.
const NESTED: &str = "--fork --kill-child";

/// The namespaces in which a process can be started.
#[derive(Clone, Copy)]
struct Permitted {
    pid: bool,
    time: bool,
}

impl Permitted {
    fn find_out() -> Self {
        let with = |options: &[&str]| is_permitted(&[&unshare(NESTED)[..], options].concat());
        Self {
            pid: with(&["--pid", "--mount-proc"]),
            time: with(&["--time", "--boottime", "1"]),
        }
    }
}

// ---------------------------------------------------------------------------
// A worker.

struct Worker {
    dir: PathBuf,
    /// A lock directory for this worker alone, if it forks.
    own_dir: Option<PathBuf>,
    strict: RangeInclusive<u16>,
    shared: RangeInclusive<u16>,
    /// Ports that are used only by callers that can determine whether this worker's children are
    /// alive.
    private: RangeInclusive<u16>,
    /// The last port that it may use. A nested worker may use the first two blocks, and its
    /// private block.
    last: u16,
    first_own: u16,
    /// A file with the pids of processes to delegate to.
    servers: PathBuf,
    /// Whether it is in a separate pid namespace, where those pids are not valid.
    is_nested: bool,
    /// The process that it delegates to instead, if it forks.
    own_server: Option<Mutex<OwnServer>>,
}

/// A process that a nested worker delegates leases to.
struct OwnServer {
    process: Process,
    pid: u32,
    ports: Vec<u16>,
}

impl OwnServer {
    /// Starts it in this worker's pid namespace, or in one below it.
    fn start(rng: &mut StdRng) -> Self {
        // In the /proc of another namespace, its pid here cannot be found.
        let process = if is_proc_ours() && rng.random() {
            Process::cat(&["unshare", "--pid", "--fork", "--kill-child"])
        } else {
            Process::cat(&[])
        };
        let pid = process.wait_for_pid();
        Self {
            process,
            pid,
            ports: Vec::new(),
        }
    }

    fn has_leased(&mut self, port: u16) {
        leased(port, "own-server's");
        self.ports.push(port);
    }

    fn end(self) {
        for port in self.ports {
            ending(port);
        }
        self.process.end();
    }
}

/// Returns whether /proc is that of this process's own pid namespace.
fn is_proc_ours() -> bool {
    let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    pids.expect("since Linux 4.1").split_whitespace().count() == 1
}

/// Writes a line to the parent, in one write, so that it arrives completely or not at all, even
/// from a process that is killed.
fn say(line: impl Display) {
    let line: String = line.to_string().replace('\n', " ");
    let line: String = line.chars().take(900).collect();
    // On a separate line and marked, because the test harness prints too.
    if rustix::io::write(io::stdout(), format!("\n@{line}\n").as_bytes()).is_err() {
        process::exit(0);
    }
}

fn leased(port: u16, how: &str) {
    say(format_args!("leased {} {port} {how}", now()));
}

fn ending(port: u16) {
    say(format_args!("ending {} {port}", now()));
}

fn delegated(port: u16, pid: u32) {
    say(format_args!("delegated {} {port} {pid}", now()));
}

fn count(what: &str) {
    say(format_args!("count {what}"));
}

/// Reports something that must not happen.
fn problem(what: &str, details: impl Display) {
    say(format_args!("problem {what}: {details}"));
}

/// Arguments: lock directory, first port, "strict" or the worker's own lock directory, its own
/// first port, the file with pids, seed, first private port, whether it is nested.
fn torture(parent: &Parent) {
    // A thread that panics would leave the others waiting for it.
    panic::set_hook(Box::new(|what| {
        eprintln!("worker {}: {what}", process::id());
        process::exit(101);
    }));
    let first: u16 = parent.argument(1);
    let kind: String = parent.argument(2);
    let first_private: u16 = parent.argument(6);
    let is_nested: bool = parent.argument(7);
    let seed: u64 = parent.argument(5);
    let mut rng = StdRng::seed_from_u64(seed.wrapping_sub(1));
    let own_server = || Mutex::new(OwnServer::start(&mut rng));
    let mut worker = Worker {
        dir: parent.argument(0),
        strict: first..=first + PORTS - 1,
        shared: first + PORTS..=first + 2 * PORTS - 1,
        private: first_private..=first_private + PRIVATE - 1,
        last: first + if is_nested { 2 * PORTS } else { SHARED_PORTS } - 1,
        first_own: parent.argument(3),
        servers: parent.argument(4),
        is_nested,
        own_server: (is_nested && kind != "strict").then(own_server),
        own_dir: (kind != "strict").then(|| kind.into()),
    };
    let stop = end_of_input();
    let barrier = Barrier::new(usize::from(THREADS));
    let (is_over, round) = (AtomicBool::new(false), AtomicUsize::new(0));
    let descriptors = AtomicUsize::new(0);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (worker, barrier, stop) = (&worker, &barrier, &stop);
            let (is_over, round, descriptors) = (&is_over, &round, &descriptors);
            let mut rng = StdRng::seed_from_u64(seed.wrapping_add(u64::from(thread)));
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    for _ in 0..STEPS {
                        worker.step(thread, &mut rng);
                    }
                    // No thread holds a lease, a socket or a child now.
                    if barrier.wait().is_leader() {
                        worker.count_descriptors(round, descriptors);
                        is_over.store(stop.load(Ordering::Relaxed), Ordering::Relaxed);
                    }
                    barrier.wait();
                }
            });
        }
        if let Some(server) = &worker.own_server {
            let is_over = &is_over;
            // In a separate thread, because all others may be waiting for ports that this server
            // has.
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(rng.random_range(1..200)));
                    let mut server = server.lock().expect("not poisoned");
                    mem::replace(&mut *server, OwnServer::start(&mut rng)).end();
                    count("own servers");
                }
            });
        }
    });
    if let Some(server) = worker.own_server.take() {
        server.into_inner().expect("not poisoned").end();
    }
}

/// Leases a port, passes it to itself, and calls exec of a program that keeps or closes the
/// descriptor, and runs until its input ends.
///
/// Arguments: lock directory, first port, last port, whether the program closes the descriptor.
fn pass(parent: &Parent) {
    let dir: PathBuf = parent.argument(0);
    let (first, last): (u16, u16) = (parent.argument(1), parent.argument(2));
    let builder = FreePort::builder().ports(first..=last).lock_dir(dir);
    let port = match builder.timeout(Duration::from_millis(100)).acquire() {
        Err(error) if error.kind() == ErrorKind::Exhausted => return parent.say("wait"),
        port => port.unwrap_or_else(|error| give_up("lease", &error)),
    };
    parent.say(port.port());
    let fd = port
        .pass_to(process::id())
        .unwrap_or_else(|error| give_up("pass on", &error));
    let mut cat = Command::new("cat");
    if parent.argument(3) {
        drop(fd);
        cat.stdout(Stdio::null());
    } else {
        cat.stdout(fd);
    }
    panic!("cannot execute cat: {}", cat.exec());
}

/// Returns a flag that is set when the parent closes its end.
fn end_of_input() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let sets = Arc::clone(&stop);
    thread::spawn(move || {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        sets.store(true, Ordering::Relaxed);
        // If the parent was killed, a nested worker may wait for ports that no process will
        // release.
        thread::sleep(2 * LONG);
        process::exit(1);
    });
    stop
}

/// Arguments: lock directory, seed.
fn clean(parent: &Parent) {
    let dir: PathBuf = parent.argument(0);
    let mut rng = StdRng::seed_from_u64(parent.argument(1));
    let stop = end_of_input();
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..100 {
            let dir = LockDir::open(&dir);
            if let Err(error) = dir.and_then(|dir| dir.clean()) {
                give_up("clean", &error);
            }
            thread::sleep(Duration::from_micros(rng.random_range(0..200)));
        }
        count("hundred cleans");
    }
}

impl Worker {
    fn count_descriptors(&self, round: &AtomicUsize, before: &AtomicUsize) {
        // Keeps the server from being replaced in the meantime, which would open descriptors.
        let _server = self.own_server.as_ref().map(|server| server.lock());
        // The library keeps the last used directory open, and, after a wait, one inotify
        // instance.
        LockDir::open(&self.dir).expect("trusted");
        let entries = fs::read_dir("/proc/self/fd").expect("Linux has it");
        let is_watch = |entry: &io::Result<fs::DirEntry>| {
            let target = entry.as_ref().map(|entry| fs::read_link(entry.path()));
            matches!(target, Ok(Ok(target)) if target.as_os_str() == "anon_inode:inotify")
        };
        let (watches, others): (Vec<_>, Vec<_>) = entries.partition(is_watch);
        let open = others.len();
        for watch in watches.iter().skip(1) {
            problem("descriptor leaked", format_args!("a second {watch:?}"));
        }
        let first = round.fetch_add(1, Ordering::Relaxed) == 0;
        if !first {
            count("quiet");
            let before = before.load(Ordering::Relaxed);
            if open > before {
                for _ in before..open {
                    problem("descriptor leaked", format_args!("{before}, then {open}"));
                }
            }
        }
        before.store(open, Ordering::Relaxed);
    }

    fn step(&self, thread: u16, rng: &mut StdRng) {
        match rng.random_range(0..100) {
            0..40 => self.one(rng),
            40..50 => self.several(rng),
            50..58 => self.listen(rng),
            58..64 => self.hold_socket(rng),
            64..68 => self.hand_on_descriptor(rng),
            68..72 if self.is_nested && self.own_server.is_none() => self.one(rng),
            68..70 => self.delegate(rng),
            70..72 => self.acquire_for(rng),
            72 => self.clean(),
            73 => self.check(rng),
            74 => self.list(),
            _ if self.own_dir.is_none() => self.one(rng),
            75..81 => self.prompt(thread, rng),
            81..83 => self.check_own(thread, rng),
            83..89 => self.fork(rng),
            89..94 => self.spawn(rng),
            94..97 => self.pass(rng),
            _ => self.delegate_to_child(rng),
        }
    }

    /// Returns some of the ports that this worker may use.
    fn some_ports(&self, rng: &mut StdRng) -> RangeInclusive<u16> {
        let first = if self.own_dir.is_some() {
            *self.shared.start()
        } else {
            *self.strict.start()
        };
        if self.own_server.is_some() && rng.random_range(0..4) == 0 {
            return some_of(self.private.clone(), rng);
        }
        some_of(first..=self.last, rng)
    }

    /// Returns a builder for some of the ports that this worker may use, and their number.
    fn some(&self, rng: &mut StdRng) -> (Builder, usize) {
        let ports = self.some_ports(rng);
        let n = ports.len();
        let is_strict = self.strict.contains(ports.start());
        let builder = FreePort::builder().ports(ports).lock_dir(&self.dir);
        let builder = builder.timeout(IN_VAIN);
        // As a last resort, a port with closing connections would be leased, whose strict bind
        // would fail.
        let builder = if is_strict {
            builder.reuse_address(false)
        } else {
            builder
        };
        let builder = if rng.random() {
            builder.label("torture")
        } else {
            builder
        };
        (builder, n)
    }

    /// Leases one of the builder's ports, and waits while others hold them.
    fn acquire(&self, builder: &Builder, how: &str) -> FreePort {
        let port = match builder.try_acquire() {
            Err(error) if error.kind() == ErrorKind::Exhausted => {
                count("wait");
                builder.acquire()
            }
            tried => tried,
        };
        let port = port.unwrap_or_else(|error| give_up("lease", &error));
        leased(port.port(), how);
        port
    }

    fn release(&self, port: FreePort, rng: &mut StdRng) {
        ending(port.port());
        if rng.random() {
            drop(port);
        } else if let Err(error) = port.release() {
            give_up("release", &error);
        }
    }

    fn one(&self, rng: &mut StdRng) {
        let port = self.acquire(&self.some(rng).0, "one");
        self.use_port(port.port(), rng);
        pause(rng);
        self.release(port, rng);
    }

    fn several(&self, rng: &mut StdRng) {
        let (builder, most) = self.some(rng);
        let builder = builder.timeout(Duration::from_millis(rng.random_range(0..300)));
        let n = rng.random_range(1..=most.min(4));
        let (how, all) = if rng.random() {
            ("many", builder.acquire_many(n))
        } else {
            ("block", builder.acquire_block(n))
        };
        let all = match all {
            Err(error) if error.kind() == ErrorKind::Exhausted => return count("wait"),
            all => all.unwrap_or_else(|error| give_up("lease several", &error)),
        };
        for port in &all {
            leased(port.port(), how);
        }
        if all.len() != n {
            problem("wrong number", format_args!("{} for {n}", all.len()));
        }
        for port in all {
            self.use_port(port.port(), rng);
            self.release(port, rng);
        }
    }

    fn listen(&self, rng: &mut StdRng) {
        let (builder, _) = self.some(rng);
        let (port, listener) = builder
            .listen()
            .unwrap_or_else(|error| give_up("listen", &error));
        leased(port.port(), "listen");
        serve(&listener.into(), port.port());
        self.release(port, rng);
    }

    fn hold_socket(&self, rng: &mut StdRng) {
        let port = self.acquire(&self.some(rng).0.hold_socket(true), "held");
        bind_and_serve(port.port(), true, true);
        self.release(port, rng);
    }

    /// Leases a port until its descriptor is closed.
    fn hand_on_descriptor(&self, rng: &mut StdRng) {
        let port = self.acquire(&self.some(rng).0, "descriptor");
        let number = port.port();
        let fd: OwnedFd = port
            .into_fd()
            .unwrap_or_else(|error| give_up("hand on", &error));
        self.use_port(number, rng);
        ending(number);
        drop(fd);
    }

    fn some_server(&self, rng: &mut StdRng) -> u32 {
        let pids = fs::read_to_string(&self.servers).expect("the parent has made it");
        let pids: Vec<&str> = pids.split_whitespace().collect();
        let pid = pids[rng.random_range(0..pids.len())];
        pid.parse().expect("a pid")
    }

    fn delegate(&self, rng: &mut StdRng) {
        let port = self.acquire(&self.some(rng).0, "one");
        let number = port.port();
        self.use_port(number, rng);
        if let Some(server) = &self.own_server {
            let mut server = server.lock().expect("not poisoned");
            ending(number);
            if let Err(error) = port.delegate_to(server.pid) {
                give_up("delegate", &error);
            }
            return server.has_leased(number);
        }
        let pid = self.some_server(rng);
        // If it fails, the lease has ended.
        ending(number);
        match port.delegate_to(pid) {
            Ok(number) => delegated(number, pid),
            Err(error) if error.kind() == ErrorKind::Process => {}
            Err(error) => give_up("delegate", &error),
        }
    }

    fn acquire_for(&self, rng: &mut StdRng) {
        let own_server = self.own_server.as_ref();
        let own_server = || own_server.map(|server| server.lock().expect("not poisoned"));
        let pid = match own_server() {
            Some(server) => server.pid,
            None => self.some_server(rng),
        };
        match self.some(rng).0.acquire_for(pid) {
            Ok(number) => match own_server() {
                Some(mut server) if server.pid == pid => server.has_leased(number),
                // It has been replaced, and so the lease has ended.
                Some(_) => {}
                None => delegated(number, pid),
            },
            Err(error) if error.kind() == ErrorKind::Process => {}
            Err(error) => give_up("lease for another", &error),
        }
    }

    fn clean(&self) {
        let dir = LockDir::open(&self.dir);
        match dir.and_then(|dir| dir.clean()) {
            Ok(_) => count("clean"),
            Err(error) => give_up("clean", &error),
        }
    }

    fn list(&self) {
        let dir = LockDir::open(&self.dir);
        match dir.and_then(|dir| dir.entries()) {
            Ok(_) => count("list"),
            Err(error) => give_up("list", &error),
        }
    }

    /// Checks some of the ports that are bound with SO_REUSEADDR. A strict bind could fail:
    /// without a lock file, as after `clean`, a check can bind a port that is being leased.
    fn check(&self, rng: &mut StdRng) {
        let ports = some_of(*self.shared.start()..=self.last, rng);
        let builder = FreePort::builder().ports(ports).lock_dir(&self.dir);
        match builder.check() {
            Ok(()) => count("check"),
            Err(error) if error.kind() == ErrorKind::Exhausted => count("check"),
            Err(error) => give_up("check", &error),
        }
    }

    /// Checks a port that no other caller wants: while it is held, delegated to a living process,
    /// delegated to one that has ended, or free. A check must be right, and must not write.
    fn check_own(&self, thread: u16, rng: &mut StdRng) {
        let own = self.first_own + thread;
        let dir = self.own_dir.as_ref().expect("of a forking worker");
        let builder = FreePort::builder().ports(own..=own).lock_dir(dir);
        let file = dir.join(own.to_string());
        let check = |state: &str, is_leased: bool| {
            let before = Snapshot::of(&file);
            let outcome = builder.check();
            if Snapshot::of(&file) != before {
                problem("check has written", format_args!("{own}, {state}"));
            }
            let finds_leased = match &outcome {
                Ok(()) => false,
                // If it is not leased, a child has a copy of the probe.
                Err(error) => error.counts().is_none_or(|why| why.leased > 0),
            };
            if finds_leased != is_leased {
                problem("wrong check", format_args!("{own}, {state}: {outcome:?}"));
            }
            count("check of its own");
        };
        let port = builder.clone().timeout(IN_VAIN).acquire();
        let port = port.unwrap_or_else(|error| give_up("lease its own", &error));
        check("held", true);
        // If a nested worker were killed here, its successor could not prove that the child has
        // ended.
        if self.is_nested || rng.random() {
            if let Err(error) = port.release() {
                give_up("release", &error);
            }
            return check("free", false);
        }
        let cat = Process::cat(&[]);
        if let Err(error) = port.delegate_to(cat.child.id()) {
            give_up("delegate its own", &error);
        }
        check("delegated", true);
        cat.end();
        check("of a process that has ended", false);
    }

    /// Checks a port that is leased to a child of this worker.
    fn check_leased(&self, port: u16) {
        let builder = FreePort::builder().ports(port..=port).lock_dir(&self.dir);
        let outcome = builder.check();
        let leased = outcome.as_ref().err().and_then(Error::counts);
        if leased.is_none_or(|why| why.leased == 0) {
            problem("wrong check", format_args!("{port}, passed: {outcome:?}"));
        }
    }

    /// Passes a lease with its descriptor to a child, which may close it.
    fn pass(&self, rng: &mut StdRng) {
        let closes: bool = rng.random();
        let ports = if closes {
            some_of(self.private.clone(), rng)
        } else {
            self.some_ports(rng)
        };
        let arguments = [
            text(&self.dir),
            &ports.start().to_string(),
            &ports.end().to_string(),
            &closes.to_string(),
        ];
        let binary = env::current_exe().expect("this test binary");
        // If this worker is killed, the harness in the child would complain about its output.
        let mut child = command(&[], &binary, "pass", &arguments)
            .stderr(Stdio::null())
            .spawn()
            .expect("this test binary");
        // The output ends just before the child calls exec.
        let mut said = String::new();
        let output = child.stdout.take().expect("piped");
        let read = BufReader::new(output).read_to_string(&mut said);
        read.expect("text");
        let port = said.lines().find_map(|line| line.strip_prefix('@'));
        match port.map(str::parse) {
            Some(Ok(port)) => {
                leased(port, if closes { "passed+closed" } else { "passed" });
                // The child is calling exec.
                for _ in 0..10 {
                    self.check_leased(port);
                }
                pause(rng);
                self.use_port(port, rng);
                ending(port);
            }
            // All of these ports were leased.
            _ if port == Some("wait") => count("wait"),
            _ => problem("error", format_args!("nothing was passed: {said}")),
        }
        child.kill().expect("our own child");
        child.wait().expect("our own child");
    }

    /// Tests that a released port can be leased immediately, whatever children have a copy of its
    /// descriptor. No other caller wants it.
    fn prompt(&self, thread: u16, rng: &mut StdRng) {
        let own = self.first_own + thread;
        let dir = self.own_dir.as_ref().expect("of a forking worker");
        let builder = FreePort::builder().ports(own..=own).lock_dir(dir);
        // A child of the previous worker, which was killed, may still have it.
        let port = builder.clone().timeout(IN_VAIN).acquire();
        let mut port = port.unwrap_or_else(|error| give_up("lease its own", &error));
        let is_leased = |error: &Error| error.counts().is_none_or(|why| why.leased > 0);
        for _ in 0..4 {
            // Another thread starts a child in the meantime.
            thread::sleep(Duration::from_micros(rng.random_range(0..3000)));
            if let Err(error) = port.release() {
                give_up("release", &error);
            }
            port = match builder.try_acquire() {
                Ok(port) => port,
                Err(error) if is_leased(&error) => return problem("not prompt", error),
                // Children may have the probe too.
                Err(_) => return,
            };
            count("prompt");
        }
    }

    /// Drops a copy of a lease in a forked child, which lives for a moment longer.
    fn fork(&self, rng: &mut StdRng) {
        let port = self.acquire(&self.some(rng).0, "one");
        let number = port.port();
        let slot = Arc::new(Mutex::new(Some(port)));
        let moment = Duration::from_micros(rng.random_range(0..5000));
        let mut command = Command::new("true");
        let before_exec = {
            let slot = Arc::clone(&slot);
            move || {
                drop(slot.lock().expect("not poisoned").take());
                thread::sleep(moment);
                Ok(())
            }
        };
        // SAFETY: the closure runs in the child of a process with other threads. Beyond
        // async-signal-safe calls, it locks a mutex that no other thread uses and frees memory,
        // which glibc keeps usable after fork (pthread_atfork(3), "malloc").
        unsafe { command.pre_exec(before_exec) };
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
        assert!(status.expect("true is installed").success());
        count("fork");
        let port = slot.lock().expect("not poisoned").take();
        self.use_port(number, rng);
        self.release(port.expect("only the child's copy was dropped"), rng);
    }

    fn spawn(&self, rng: &mut StdRng) {
        let port = self.acquire(&self.some(rng).0, "one");
        let mut command = Command::new("true");
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
        assert!(status.expect("true is installed").success());
        count("spawn");
        self.use_port(port.port(), rng);
        self.release(port, rng);
    }

    /// Delegates to a child that ends when this process ends, at the latest.
    fn delegate_to_child(&self, rng: &mut StdRng) {
        let cat = Process::cat(&[]);
        let id = cat.child.id();
        let builder = self.some(rng).0;
        let number = if rng.random() {
            let port = self.acquire(&builder, "one");
            ending(port.port());
            port.delegate_to(id)
        } else {
            builder.acquire_for(id)
        };
        let number = number.unwrap_or_else(|error| give_up("delegate to a child", &error));
        leased(number, "child's");
        pause(rng);
        self.use_port(number, rng);
        ending(number);
        if rng.random() {
            let dir = LockDir::open(&self.dir).expect("trusted");
            // The /proc of another namespace does not show the user of the process.
            let released = match is_proc_ours() {
                true => dir.release(number),
                false => dir.force_release(number),
            };
            if let Err(error) = released {
                give_up("release a delegated lease", &error);
            }
        }
        cat.end();
    }

    /// Binds a leased port as all users of its block do: no other socket can be in the way.
    fn use_port(&self, port: u16, rng: &mut StdRng) {
        let strict = self.strict.contains(&port);
        let times = if strict { rng.random_range(1..4) } else { 1 };
        for _ in 0..times {
            bind_and_serve(port, !strict, rng.random_range(0..3) == 0);
        }
    }
}

fn pause(rng: &mut StdRng) {
    if rng.random() {
        thread::sleep(Duration::from_micros(rng.random_range(0..3000)));
    }
}

fn give_up(what: &str, error: &Error) -> ! {
    problem("error", format_args!("cannot {what}: {error}"));
    process::exit(1);
}

/// Returns all of `ports`, one of them, or some neighbors.
fn some_of(ports: RangeInclusive<u16>, rng: &mut StdRng) -> RangeInclusive<u16> {
    let (first, last) = ports.into_inner();
    match rng.random_range(0..4) {
        0 => first..=last.min(first + PORTS - 1),
        1 => first..=last,
        2 => {
            let only = rng.random_range(first..=last);
            only..=only
        }
        _ => {
            let first = rng.random_range(first..=last);
            first..=rng.random_range(first..=last)
        }
    }
}

/// The state that a check must not change.
#[derive(PartialEq)]
struct Snapshot {
    record: Vec<u8>,
    inode: u64,
    modified: (i64, i64),
}

impl Snapshot {
    /// Returns `None` if there is no file.
    fn of(file: &Path) -> Option<Self> {
        let record = fs::read(file).ok()?;
        let metadata = fs::metadata(file).ok()?;
        Some(Self {
            record,
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

fn bind_and_serve(port: u16, reuse_address: bool, serves: bool) {
    let bind = || {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
        socket.set_only_v6(false)?;
        socket.set_reuse_address(reuse_address)?;
        socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
        if serves {
            socket.listen(8)?;
        }
        Ok::<_, io::Error>(socket)
    };
    match bind() {
        Ok(socket) => {
            count("bind");
            if serves {
                serve(&socket, port);
            }
        }
        Err(error) => {
            let way = if reuse_address {
                "SO_REUSEADDR"
            } else {
                "strict"
            };
            problem("failed bind", format_args!("{port}, {way}: {error}"));
        }
    }
}

/// Answers one client. Both sides reset the connection at its end, even if they are killed.
fn serve(listener: &Socket, port: u16) {
    let served = || {
        // Accepted sockets inherit it.
        listener.set_linger(Some(Duration::ZERO))?;
        let listener = TcpListener::from(listener.try_clone()?);
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
        let (mut server, _) = listener.accept()?;
        server.write_all(&port.to_be_bytes())?;
        let mut answer = [0; 2];
        client.read_exact(&mut answer)?;
        Ok::<_, io::Error>(u16::from_be_bytes(answer) == port)
    };
    match served() {
        Ok(true) => count("served"),
        outcome => problem("not served", format_args!("{port}: {outcome:?}")),
    }
}

// ---------------------------------------------------------------------------
// The oracle.

/// The minimum time for which a port was leased.
struct Interval {
    start: u64,
    end: u64,
    holder: String,
}

impl Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, end, holder } = self;
        write!(f, "{holder} from {start} to {end}")
    }
}

#[derive(Default)]
struct Log {
    leases: HashMap<u16, Vec<Interval>>,
    /// By port, sorted by start.
    open: HashMap<u16, u64>,
    /// The port, the time, and the process that it was delegated to.
    delegated: Vec<(u16, u64, u32)>,
    counts: BTreeMap<String, u64>,
    problems: Vec<String>,
}

impl Log {
    /// Reads all reports of a worker until it ends.
    fn read(pid: u32, from: impl Read, last_heard: &AtomicU64, trouble: &AtomicBool) -> Self {
        let mut log = Self::default();
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            last_heard.store(now(), Ordering::Relaxed);
            if let Some((_, line)) = line.split_once('@')
                && log.note(pid, line).is_none()
            {
                log.problems.push(format!("unreadable: {line:?}"));
            }
            if !log.problems.is_empty() {
                trouble.store(true, Ordering::Relaxed);
            }
        }
        log
    }

    fn note(&mut self, pid: u32, line: &str) -> Option<()> {
        let (kind, rest) = line.split_once(' ')?;
        let mut words = rest.split_whitespace();
        fn number<T: std::str::FromStr>(words: &mut SplitWhitespace<'_>) -> Option<T> {
            words.next()?.parse().ok()
        }
        match kind {
            "leased" => {
                let (time, port) = (number(&mut words)?, number(&mut words)?);
                self.count(&format!("leased: {}", words.next()?));
                if self.open.insert(port, time).is_some() {
                    self.problems
                        .push(format!("overlap: {port} twice in process {pid}"));
                }
            }
            "ending" => {
                let (end, port) = (number(&mut words)?, number(&mut words)?);
                let start = self.open.remove(&port)?;
                self.add(port, start, end, format!("process {pid}"));
            }
            "delegated" => {
                let (time, port) = (number(&mut words)?, number(&mut words)?);
                self.count("leased: delegated");
                self.delegated.push((port, time, number(&mut words)?));
            }
            "count" => self.count(rest),
            "problem" => self.problems.push(rest.to_owned()),
            _ => return None,
        }
        Some(())
    }

    fn count(&mut self, what: &str) {
        *self.counts.entry(what.to_owned()).or_default() += 1;
    }

    fn add(&mut self, port: u16, start: u64, end: u64, holder: String) {
        let interval = Interval { start, end, holder };
        self.leases.entry(port).or_default().push(interval);
    }

    fn append(&mut self, other: Self) {
        for (port, intervals) in other.leases {
            self.leases.entry(port).or_default().extend(intervals);
        }
        self.delegated.extend(other.delegated);
        for (what, n) in other.counts {
            *self.counts.entry(what).or_default() += n;
        }
        self.problems.extend(other.problems);
    }

    /// Finds every lease that began before an earlier lease of the same port had ended.
    fn find_overlaps(&mut self) {
        for (port, intervals) in &mut self.leases {
            // The end of a delegated lease whose worker was killed before it reported it is
            // unknown.
            intervals.retain(|interval| interval.start < interval.end);
            intervals.sort_unstable_by_key(|interval| interval.start);
            let mut last: Option<&Interval> = None;
            for next in &*intervals {
                if let Some(last) = last.filter(|last| next.start < last.end) {
                    let problem = format!("overlap: {port}: {last} and {next}");
                    self.problems.push(problem);
                }
                if last.is_none_or(|last| last.end < next.end) {
                    last = Some(next);
                }
            }
        }
    }

    fn counted(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or_default()
    }

    fn problems_of(&self, what: &str) -> usize {
        let is_such = |problem: &&String| problem.starts_with(what);
        self.problems.iter().filter(is_such).count()
    }
}

// ---------------------------------------------------------------------------
// The supervisor.

struct Running {
    process: Process,
    to: Option<ChildStdin>,
    log: JoinHandle<Log>,
    last_heard: Arc<AtomicU64>,
    /// The index of the worker; each worker that ends has a successor.
    index: usize,
    goes_on_at: Option<u64>,
}

/// A process that leases are delegated to.
struct Server {
    process: Process,
    pid: u32,
    killed_at: Option<u64>,
    started_at: u64,
}

struct Supervisor {
    rng: StdRng,
    permitted: Permitted,
    scratch: tempfile::TempDir,
    block: Block,
    workers: Vec<Running>,
    /// Their logs, and when they were killed.
    ended: Vec<(u32, JoinHandle<Log>, u64)>,
    servers: Vec<Server>,
    log: Log,
    /// A worker has reported a problem.
    trouble: Arc<AtomicBool>,
}

impl Supervisor {
    fn new(seed: u64) -> Self {
        let own = u16::try_from(FORKING_WORKERS).expect("few") * THREADS;
        let supervisor = Self {
            rng: StdRng::seed_from_u64(seed),
            permitted: Permitted::find_out(),
            scratch: lock_dir(),
            block: Block::new(SHARED_PORTS + own),
            workers: Vec::new(),
            ended: Vec::new(),
            servers: Vec::new(),
            log: Log::default(),
            trouble: Arc::default(),
        };
        for i in 0..FORKING_WORKERS {
            fs::create_dir(supervisor.own_dir(i)).expect("our own directory");
        }
        fs::create_dir(supervisor.dir()).expect("our own directory");
        supervisor
    }

    fn dir(&self) -> PathBuf {
        self.scratch.path().join("locks")
    }

    fn own_dir(&self, i: usize) -> PathBuf {
        self.scratch.path().join(format!("own-{i}"))
    }

    fn first_own(&self, i: usize) -> u16 {
        self.block.first() + SHARED_PORTS + u16::try_from(i).expect("few") * THREADS
    }

    /// Returns the first private port of worker `index`. All workers that are not nested have the
    /// first private block.
    fn first_private(&self, index: usize) -> u16 {
        let forking_nested = STRICT_WORKERS + FORKING_WORKERS - NESTED_FORKING;
        let block = if self.is_nested(index) {
            index.checked_sub(forking_nested).map_or(0, |i| i + 1)
        } else {
            0
        };
        self.block.first() + 2 * PORTS + u16::try_from(block).expect("few") * PRIVATE
    }

    /// Returns whether worker `index` has a separate pid namespace.
    fn is_nested(&self, index: usize) -> bool {
        let strict = STRICT_WORKERS - NESTED_STRICT..STRICT_WORKERS;
        let end = STRICT_WORKERS + FORKING_WORKERS;
        let forking = end - NESTED_FORKING..end;
        self.permitted.pid && (strict.contains(&index) || forking.contains(&index))
    }

    /// Chooses the namespaces that a worker or server runs in, counts it, and returns what its
    /// command must begin with.
    fn namespaces(&mut self, what: &str, has_pid: bool) -> Vec<String> {
        let mut options = Vec::new();
        let mut kinds = Vec::new();
        if has_pid && self.permitted.pid {
            options.push("--pid".to_owned());
            if self.rng.random() {
                kinds.push("pid");
                options.push("--mount-proc".to_owned());
            } else {
                kinds.push("pid, outer /proc");
            }
        }
        if self.permitted.time && self.rng.random() {
            kinds.push("time");
            let offset = if self.rng.random() {
                -5
            } else {
                self.rng.random_range(1..1_000_000)
            };
            options.extend(["--time".to_owned(), format!("--boottime={offset}")]);
        }
        self.log.count(what);
        if options.is_empty() {
            return options;
        }
        self.log
            .count(&format!("{what} in {}", kinds.join(" and ")));
        let unshare = unshare(NESTED).into_iter().map(str::to_owned);
        unshare.chain(options).collect()
    }

    /// Starts worker `index`: the first ones are strict, the others fork.
    fn start_worker(&mut self, index: usize) {
        let binary = env::current_exe().expect("this test binary");
        let seed = self.rng.random::<u64>().to_string();
        let (kind, first_own) = match index.checked_sub(STRICT_WORKERS) {
            None => ("strict".into(), 0),
            Some(FORKING_WORKERS) => (PathBuf::new(), 0),
            Some(i) => (self.own_dir(i), self.first_own(i)),
        };
        let (dir, servers) = (self.dir(), self.scratch.path().join("servers"));
        let arguments = [
            text(&dir),
            &self.block.first().to_string(),
            text(&kind),
            &first_own.to_string(),
            text(&servers),
            &seed,
            &self.first_private(index).to_string(),
            &self.is_nested(index).to_string(),
        ];
        let prefix = self.namespaces("workers", self.is_nested(index));
        let prefix: Vec<&str> = prefix.iter().map(String::as_str).collect();
        let command = if index < STRICT_WORKERS + FORKING_WORKERS {
            command(&prefix, &binary, "torture", &arguments)
        } else {
            command(&prefix, &binary, "clean", &[text(&dir), &seed])
        };
        let mut process = Process::start(command, !prefix.is_empty());
        let child = &mut process.child;
        let last_heard = Arc::new(AtomicU64::new(now()));
        let log = {
            let (from, pid) = (child.stdout.take().expect("piped"), child.id());
            let last_heard = Arc::clone(&last_heard);
            let trouble = Arc::clone(&self.trouble);
            thread::spawn(move || Log::read(pid, from, &last_heard, &trouble))
        };
        self.workers.push(Running {
            to: child.stdin.take(),
            process,
            log,
            last_heard,
            index,
            goes_on_at: None,
        });
    }

    fn start_server(&mut self) {
        let started_at = now();
        let has_pid = self.rng.random();
        let prefix = self.namespaces("servers", has_pid);
        let prefix: Vec<&str> = prefix.iter().map(String::as_str).collect();
        let process = Process::cat(&prefix);
        self.servers.push(Server {
            started_at,
            pid: process.wait_for_pid(),
            process,
            killed_at: None,
        });
        self.tell_servers();
    }

    /// Writes which servers are alive, atomically.
    fn tell_servers(&self) {
        let living = self.servers.iter().filter(|s| s.killed_at.is_none());
        let pids: Vec<String> = living.map(|s| s.pid.to_string()).collect();
        let new = self.scratch.path().join("new");
        fs::write(&new, pids.join("\n")).expect("our own directory");
        fs::rename(new, self.scratch.path().join("servers")).expect("our own directory");
    }

    fn kill_worker(&mut self, i: usize) {
        let mut worker = self.workers.swap_remove(i);
        let killed_at = now();
        worker.process.kill();
        self.ended
            .push((worker.process.child.id(), worker.log, killed_at));
        self.log.count("killed");
    }

    fn kill_server(&mut self) {
        let living: Vec<usize> = (0..self.servers.len())
            .filter(|&i| self.servers[i].killed_at.is_none())
            .collect();
        let server = &mut self.servers[living[self.rng.random_range(0..living.len())]];
        server.killed_at = Some(now());
        server.process.signal(Signal::KILL);
        self.log.count("killed servers");
    }

    fn disturb(&mut self) {
        match self.rng.random_range(0..20) {
            0..7 => {
                let i = self.rng.random_range(0..self.workers.len());
                let Running { process, index, .. } = &self.workers[i];
                let index = *index;
                // If `unshare` were killed while it starts the worker, the worker would live on.
                if process.pid().is_some() {
                    self.kill_worker(i);
                    self.start_worker(index);
                }
            }
            7..13 => {
                let i = self.rng.random_range(0..self.workers.len());
                let longest = match self.rng.random_range(0..400) {
                    // Waiters wait 10 seconds for a stopped leader.
                    0 => 15_000,
                    1..20 => 1000,
                    _ => 60,
                };
                let moment = Duration::from_millis(self.rng.random_range(0..longest));
                let worker = &mut self.workers[i];
                if worker.process.pid().is_some() {
                    worker.process.signal(Signal::STOP);
                    worker.goes_on_at = Some(now() + nanoseconds(moment));
                    self.log.count("stopped");
                }
            }
            _ => {
                // So that there always is one.
                self.start_server();
                self.kill_server();
                self.tell_servers();
            }
        }
    }

    fn wake(&mut self, until: u64) {
        for worker in &mut self.workers {
            if worker.goes_on_at.is_some_and(|at| at <= until) {
                worker.process.signal(Signal::CONT);
                worker.goes_on_at = None;
                worker.last_heard.store(now(), Ordering::Relaxed);
            }
        }
    }

    /// Reaps all processes that have ended, including the orphans of killed workers. Returns
    /// whether no process is left.
    fn reap(&mut self) -> bool {
        loop {
            let (pid, status) = match wait(WaitOptions::NOHANG) {
                Ok(Some(ended)) => ended,
                Ok(None) => return false,
                Err(rustix::io::Errno::CHILD) => return true,
                Err(error) => panic!("wait: {error}"),
            };
            let is_it = |worker: &Running| pid_of(worker.process.child.id()) == pid;
            // Others were killed, or are orphans.
            if let Some(i) = self.workers.iter().position(is_it) {
                let worker = self.workers.swap_remove(i);
                if worker.to.is_some() || status.exit_status() != Some(0) {
                    let what = format!("worker {pid:?} ended: {status:?}");
                    self.log.problems.push(what);
                }
                self.ended
                    .push((worker.process.child.id(), worker.log, now()));
            }
        }
    }

    /// Takes over the logs of workers whose last report was read.
    fn collect(&mut self) {
        let ended = mem::take(&mut self.ended);
        let (ended, rest) = ended.into_iter().partition(|(_, log, _)| log.is_finished());
        self.ended = rest;
        for (pid, log, killed_at) in ended {
            let mut log = log.join().expect("no panic");
            for (port, start) in mem::take(&mut log.open) {
                log.add(port, start, killed_at, format!("process {pid}, killed"));
            }
            self.log.append(log);
        }
    }

    /// A delegated lease ends when its process is killed.
    fn collect_delegated(&mut self) {
        for (port, start, to) in mem::take(&mut self.log.delegated) {
            // If it had been killed by then, the lease may have ended.
            let is_it = |server: &&Server| {
                let killed_at = server.killed_at.unwrap_or(u64::MAX);
                server.pid == to && (server.started_at..killed_at).contains(&start)
            };
            if let Some(server) = self.servers.iter().find(is_it) {
                let end = server.killed_at.unwrap_or(u64::MAX);
                self.log.add(port, start, end, format!("server {to}"));
            }
        }
    }

    /// Prints what every process waits for, and who has which port.
    fn dump(&self) {
        for worker in &self.workers {
            let pid = worker.process.pid().unwrap_or_default();
            let silent = Duration::from_nanos(now() - worker.last_heard.load(Ordering::Relaxed));
            eprintln!(
                "worker {} is pid {pid}, silent for {silent:?}",
                worker.index
            );
            let tasks = fs::read_dir(format!("/proc/{pid}/task"));
            for task in tasks.into_iter().flatten().flatten() {
                let read = |name| fs::read_to_string(task.path().join(name)).unwrap_or_default();
                let id = task.file_name();
                eprintln!(
                    "  thread {id:?}: {} {}",
                    read("wchan"),
                    read("syscall").trim()
                );
                eprint!("{}", read("stack"));
            }
        }
        let leases = LockDir::open(self.dir()).and_then(|dir| dir.entries());
        for lease in leases.into_iter().flatten() {
            eprintln!("{lease:?}");
        }
    }

    fn is_silent(&self) -> bool {
        let long = nanoseconds(LONG);
        let is_silent = |worker: &Running| {
            worker.goes_on_at.is_none()
                && now().saturating_sub(worker.last_heard.load(Ordering::Relaxed)) > long
        };
        self.workers.iter().any(is_silent)
    }

    /// Repeats `done` until it succeeds, for a long time, but not forever.
    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let is_well = !self.trouble.load(Ordering::Relaxed);
        let patience = if is_well {
            LONG
        } else {
            Duration::from_secs(5)
        };
        let end = now() + nanoseconds(patience);
        while !done(self) {
            if now() > end {
                self.dump();
                self.log.problems.push(format!("hang: {what}"));
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn run(&mut self, length: Duration) {
        for _ in 0..SERVERS {
            self.start_server();
        }
        for index in 0..WORKERS {
            self.start_worker(index);
        }
        let end = now() + nanoseconds(length);
        let mut next = now();
        while now() < end {
            thread::sleep(Duration::from_millis(1));
            self.wake(now());
            self.reap();
            self.collect();
            if self.is_silent() {
                self.dump();
                self.log.problems.push("hang: a worker is silent".into());
                break;
            }
            // Or a worker has ended by itself, which it must not do.
            if self.trouble.load(Ordering::Relaxed) || self.workers.len() < WORKERS {
                break;
            }
            if now() >= next {
                self.disturb();
                next = now() + self.rng.random_range(2_000_000..60_000_000);
            }
        }
    }

    /// Lets all workers end by themselves, which they can once the ports that they wait for are
    /// released, and then ends everything else.
    fn end(&mut self) {
        self.wake(u64::MAX);
        for server in self.servers.iter_mut().filter(|s| s.killed_at.is_none()) {
            server.killed_at = Some(now());
            server.process.signal(Signal::KILL);
        }
        // The nested ones first: others must still lease the ports of servers that these cannot
        // see.
        for ends_nested in [true, false] {
            let nested: Vec<bool> = (0..WORKERS).map(|index| self.is_nested(index)).collect();
            let ends = |worker: &Running| nested[worker.index] == ends_nested;
            for worker in self.workers.iter_mut().filter(|worker| ends(worker)) {
                worker.to = None;
            }
            self.until("workers do not end", |this| {
                this.reap();
                !this.workers.iter().any(ends)
            });
        }
        while !self.workers.is_empty() {
            self.kill_worker(0);
        }
        self.until("processes are left", Self::reap);
        self.until("logs are not read", |this| {
            this.collect();
            this.ended.is_empty()
        });
        self.collect_delegated();
    }

    /// Returns how many ports cannot be leased immediately, now that no caller is left.
    fn lost_ports(&mut self) -> usize {
        let first = self.block.first();
        let all = first..=first + SHARED_PORTS - 1;
        let mut blocks = vec![(self.dir(), all)];
        for i in 0..FORKING_WORKERS {
            let own = self.first_own(i);
            blocks.push((self.own_dir(i), own..=own + THREADS - 1));
        }
        let mut lost = 0;
        for (dir, ports) in blocks {
            let builder = |ports| FreePort::builder().ports(ports).lock_dir(&dir);
            let n = ports.len();
            let all = builder(ports.clone())
                .timeout(Duration::ZERO)
                .acquire_many(n);
            let Err(error) = all else { continue };
            self.log.problems.push(format!("lost: {error}"));
            let is_lost = |&port: &u16| builder(port..=port).try_acquire().is_err();
            lost += ports.filter(is_lost).count().max(1);
        }
        lost
    }
}

fn setting(name: &str) -> Option<u64> {
    let value = env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name} is a number")),
    )
}

#[test]
fn whatever_happens_each_port_has_one_holder_and_none_is_lost() {
    // Orphans of killed workers become children of this process, so that it can also wait for
    // them to end.
    set_child_subreaper(Some(rustix::process::getpid())).expect("Linux has it");
    let length = Duration::from_secs(setting("PORTLOCK_TORTURE_SECONDS").unwrap_or(5));
    let seed = setting("PORTLOCK_TORTURE_SEED").unwrap_or_else(rand::random);
    eprintln!("PORTLOCK_TORTURE_SEED={seed}");
    let mut supervisor = Supervisor::new(seed);
    let start = now();
    supervisor.run(length);
    supervisor.end();
    let lost = supervisor.lost_ports();
    let took = Duration::from_nanos(now() - start);

    let log = &mut supervisor.log;
    log.find_overlaps();
    eprintln!("{:36}{:10.1}", "seconds", took.as_secs_f64());
    let leases = log
        .counts
        .iter()
        .filter(|(what, _)| what.starts_with("leased"));
    let leases: u64 = leases.map(|(_, n)| n).sum();
    eprintln!("{:36}{leases:>10}", "leases");
    for (what, n) in &log.counts {
        eprintln!("{what:36}{n:>10}");
    }
    let found = [
        ("overlaps", log.problems_of("overlap")),
        ("failed binds", log.problems_of("failed bind")),
        ("not prompt", log.problems_of("not prompt")),
        ("ports lost", lost),
        ("descriptors leaked", log.problems_of("descriptor leaked")),
        ("problems in all", log.problems.len()),
    ];
    for (what, n) in found {
        eprintln!("{what:36}{n:>10}");
    }
    let distinct: HashSet<&String> = log.problems.iter().collect();
    for problem in distinct.iter().take(20) {
        eprintln!("{problem}");
    }
    assert!(log.problems.is_empty(), "see above; the seed is {seed}");
    let mut done = vec!["killed", "leased: one", "leased: passed", "quiet"];
    if supervisor.permitted.pid {
        done.push("leased: own-server's");
    }
    for what in done {
        assert!(log.counted(what) > 0, "too slow a machine: none {what}");
    }
}
