//! Compares the cost of a lease to its bare system calls.
//!
//! Every figure is compared to the *floor*, measured alternately with it in the same
//! run: the same calls on the same directory through rustix, with the file names
//! prepared in advance, and nothing else.
//!
//! ```text
//! cargo bench --bench lease
//! ```
//!
//! The directory is on tmpfs if `/dev/shm` exists, like a user's runtime directory;
//! `PORTLOCK_BENCH_DIR` names another.

use std::{
    cell::RefCell,
    env,
    ffi::CString,
    fs,
    hint::black_box,
    io::{self, BufRead, BufReader, Write},
    net::{Ipv6Addr, SocketAddrV6},
    ops::RangeInclusive,
    os::fd::OwnedFd,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use criterion::Criterion;
use portlock::{Builder, ErrorKind, FreePort};
use rand::seq::SliceRandom;
use rustix::{
    fs::{FlockOperation, Mode, OFlags},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, sockopt},
    process::{Resource, getrlimit, setrlimit},
    time::{ClockId, clock_gettime},
};

/// The range of `crowded` and `exhausted`: 2,001 ports.
const RANGE: RangeInclusive<u16> = 4000..=6000;

const RECORD: [u8; 256] = [b' '; 256];

// ---------------------------------------------------------------------------
// The floor.

/// The bare system calls of a lease, on a directory.
struct Floor {
    /// Whether the probe sets `IPV6_V6ONLY`, or keeps the system's default.
    dual_stack: bool,
    /// Whether each port's file stays, or is created for a lease and removed to release it.
    /// Either is a way to end a lease, with LOCK_UN or unlink.
    files_stay: bool,
    dir: OwnedFd,
    names: Vec<(u16, CString)>,
}

impl Floor {
    /// Creates a file for each port in advance, if it does not exist.
    fn new(dir: &Path, ports: RangeInclusive<u16>) -> Self {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(dir, flags, Mode::empty()).expect("the directory of this run");
        let name = |port: u16| {
            let name = CString::new(port.to_string()).expect("digits");
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&dir, &name, flags, Mode::RUSR | Mode::WUSR);
            let file = file.expect("our own directory");
            rustix::io::pwrite(&file, &RECORD, 0).expect("our own file");
            (port, name)
        };
        let names = ports.map(name).collect();
        Self {
            dual_stack: true,
            files_stay: true,
            dir,
            names,
        }
    }

    fn shuffle(&mut self) {
        self.names.shuffle(&mut rand::rng());
    }

    fn lock(&self, name: &CString) -> Option<OwnedFd> {
        let mut flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        flags.set(OFlags::CREATE, !self.files_stay);
        let file = rustix::fs::openat(&self.dir, name, flags, Mode::RUSR | Mode::WUSR);
        let file = file.expect("our own file");
        #[expect(clippy::disallowed_methods, reason = "what is measured against")]
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Some(file),
            Err(Errno::WOULDBLOCK) => None,
            Err(error) => panic!("flock: {error}"),
        }
    }

    /// Locks, calls stat and probes; returns the file if the port is free.
    fn lease(&self, (port, name): &(u16, CString)) -> Option<OwnedFd> {
        let file = self.lock(name)?;
        rustix::fs::fstat(&file).expect("our own file");
        let socket = rustix::net::socket_with(
            AddressFamily::INET6,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        );
        let socket = socket.expect("descriptors are left");
        if self.dual_stack {
            sockopt::set_ipv6_v6only(&socket, false).expect("not bound yet");
        }
        let address = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, *port, 0, 0);
        let free = match rustix::net::bind(&socket, &address) {
            Ok(()) => true,
            Err(Errno::ADDRINUSE) => false,
            Err(error) => panic!("bind: {error}"),
        };
        sockopt::set_socket_reuseaddr(&socket, true).expect("our own socket");
        if !free {
            // A lease binds again to distinguish a lingering socket from an occupied port.
            // The floor uses neither.
            let _ = rustix::net::bind(&socket, &address);
            release(file);
            return None;
        }
        drop(socket);
        rustix::io::pwrite(&file, &RECORD, 0).expect("our own file");
        Some(file)
    }

    fn remove(&self, (_, name): &(u16, CString)) {
        let flags = rustix::fs::AtFlags::empty();
        rustix::fs::unlinkat(&self.dir, name, flags).expect("our own file");
    }

    /// Tries the ports in order until one is free, and releases it.
    fn first_free(&self, mut order: impl Iterator<Item = usize>) {
        let file = order.find_map(|index| self.lease(&self.names[index]));
        release(file.expect("one is free"));
    }

    /// Checks that each port is locked.
    fn all_locked(&self) {
        assert!(self.names.iter().all(|(_, name)| self.lock(name).is_none()));
    }
}

#[expect(clippy::disallowed_methods, reason = "what is measured against")]
fn release(file: OwnedFd) {
    rustix::fs::flock(&file, FlockOperation::Unlock).expect("our own lock");
}

// ---------------------------------------------------------------------------
// Comparison.

/// Times `ours` and `floor` alternately, a few at a time, so that other work on the
/// machine affects both. Criterion gets the times of `ours`.
fn compare(
    criterion: &mut Criterion,
    name: &str,
    at_a_time: u64,
    mut ours: impl FnMut(),
    mut floor: impl FnMut(),
) {
    let times = RefCell::new(Vec::new());
    criterion.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| {
            let mut total = Duration::ZERO;
            let mut left = iterations;
            while left > 0 {
                let n = left.min(at_a_time);
                let time = |run: &mut dyn FnMut()| {
                    let start = Instant::now();
                    for _ in 0..n {
                        run();
                    }
                    start.elapsed()
                };
                let pair = (time(&mut ours), time(&mut floor));
                total += pair.0;
                left -= n;
                if n == at_a_time {
                    times.borrow_mut().push(pair);
                }
            }
            total
        });
    });
    let times = times.into_inner();
    if times.is_empty() {
        // Excluded by the filter.
        return;
    }
    let sum = |part: fn(&(Duration, Duration)) -> Duration| -> f64 {
        times.iter().map(part).map(|time| time.as_secs_f64()).sum()
    };
    let ratios = times
        .iter()
        .map(|(ours, floor)| ours.as_secs_f64() / floor.as_secs_f64());
    let mut ratios: Vec<f64> = ratios.collect();
    ratios.sort_by(f64::total_cmp);
    let at = |part: f64| ratios[((ratios.len() - 1) as f64 * part) as usize];
    let each = 1e6 / (times.len() as f64 * at_a_time as f64);
    println!(
        "{name}: {:.2} µs, floor {:.2} µs; median ratio {:.3} (quarters {:.3} to {:.3}), of sums {:.3}, {} pairs",
        sum(|pair| pair.0) * each,
        sum(|pair| pair.1) * each,
        at(0.5),
        at(0.25),
        at(0.75),
        sum(|pair| pair.0) / sum(|pair| pair.1),
        ratios.len(),
    );
}

fn builder(dir: &Path, ports: RangeInclusive<u16>) -> Builder {
    FreePort::builder().ports(ports).lock_dir(dir)
}

fn lease_and_release(builder: &Builder) {
    let port = builder.try_acquire().expect("a free port");
    black_box(port.port());
    port.release().expect("released");
}

fn one_thread(criterion: &mut Criterion, dir: &Path) {
    let ports = 20000..=20063;
    let (builder, mut floor) = (builder(dir, ports.clone()), Floor::new(dir, ports));
    floor.shuffle();
    for (dual_stack, what) in [
        (true, ""),
        (false, ", the floor without setting IPV6_V6ONLY"),
    ] {
        floor.dual_stack = dual_stack;
        let mut next = floor.names.iter().cycle();
        compare(
            criterion,
            &format!("(a) lease and release{what}"),
            200,
            || lease_and_release(&builder),
            || {
                let name = next.next().expect("endless");
                release(floor.lease(name).expect("free"));
            },
        );
    }

    // Different ports, because this floor removes the files.
    let mut floor = Floor::new(dir, 20064..=20127);
    (floor.dual_stack, floor.files_stay) = (false, false);
    floor.shuffle();
    let mut next = floor.names.iter().cycle();
    compare(
        criterion,
        "(a) lease and release, the same floor with files created and removed",
        200,
        || lease_and_release(&builder),
        || {
            let name = next.next().expect("endless");
            let file = floor.lease(name).expect("free");
            floor.remove(name);
            drop(file);
        },
    );
}

fn crowded(criterion: &mut Criterion, dir: &Path) {
    let (builder, floor) = (builder(dir, RANGE), Floor::new(dir, RANGE));
    for how in ["leases", "listeners"] {
        for held in [0, 1000, 1901, 1999] {
            let _holder = Peer::start("hold", &[&how, &dir.display(), &held]);
            // Each order starts at a different port, so that the floor meets a file as rarely as a lease does.
            let orders = [(); 64].map(|()| {
                let mut order: Vec<usize> = (0..floor.names.len()).collect();
                order.shuffle(&mut rand::rng());
                order
            });
            let mut round = 0;
            compare(
                criterion,
                &format!("(c) {held} of 2001 held by {how}"),
                64,
                || lease_and_release(&builder),
                || {
                    let order = &orders[round % orders.len()];
                    let (tail, head) = order.split_at(round * 773 % order.len());
                    round += 1;
                    floor.first_free(head.iter().chain(tail).copied());
                },
            );
        }
    }
}

fn exhausted(criterion: &mut Criterion, dir: &Path) {
    let _holder = Peer::start("hold", &[&"leases", &dir.display(), &RANGE.len()]);
    let (builder, floor) = (builder(dir, RANGE), Floor::new(dir, RANGE));
    compare(
        criterion,
        "(d) 2001 of 2001 leased: try_new returns an error",
        5,
        || {
            let error = builder.try_acquire().expect_err("exhausted");
            assert_eq!(error.kind(), ErrorKind::Exhausted);
        },
        || floor.all_locked(),
    );
}

// ---------------------------------------------------------------------------
// Many threads and processes.

/// Leases and releases ports of the range, or makes the floor's calls, while `go_on`
/// returns true. Returns their number.
fn work(what: &str, dir: &Path, go_on: impl Fn() -> bool) -> u64 {
    let mut done = 0;
    if what == "lease" {
        let builder = builder(dir, RANGE);
        while go_on() {
            lease_and_release(&builder);
            done += 1;
        }
    } else {
        let mut floor = Floor::new(dir, RANGE);
        floor.shuffle();
        for name in floor.names.iter().cycle() {
            if !go_on() {
                break;
            }
            if let Some(file) = floor.lease(name) {
                release(file);
                done += 1;
            }
        }
    }
    done
}

const TURN: Duration = Duration::from_millis(400);
const TURNS: usize = 5;

fn in_threads(what: &str, dir: &Path, n: usize) -> u64 {
    let (start, end) = (Barrier::new(n + 1), AtomicBool::new(false));
    thread::scope(|scope| {
        let worker = || {
            start.wait();
            work(what, dir, || !end.load(Ordering::Relaxed))
        };
        let workers: Vec<_> = (0..n).map(|_| scope.spawn(worker)).collect();
        start.wait();
        thread::sleep(TURN);
        end.store(true, Ordering::Relaxed);
        workers
            .into_iter()
            .map(|worker| worker.join().expect("no panic"))
            .sum()
    })
}

fn in_processes(what: &str, dir: &Path, n: usize) -> u64 {
    let mut workers: Vec<Peer> = (0..n)
        .map(|_| Peer::start("work", &[&what, &dir.display()]))
        .collect();
    for worker in &mut workers {
        worker.send("go");
    }
    let counts = workers
        .iter_mut()
        .map(|worker| worker.receive().parse::<u64>().expect("a number"));
    counts.sum()
}

fn scaling(dir: &Path) {
    println!("\n(b) rates in thousands per second, and how they grow from one worker");
    let rate = |f: fn(&str, &Path, usize) -> u64, what: &str, n| {
        f(what, dir, n) as f64 / TURN.as_secs_f64() / 1e3
    };
    for (kind, f) in [
        ("threads", in_threads as fn(&str, &Path, usize) -> u64),
        ("processes", in_processes),
    ] {
        let numbers = [1, 2, 4, 8, 16];
        let mut rates = vec![[Vec::new(), Vec::new()]; numbers.len()];
        for _ in 0..TURNS {
            for (rates, n) in rates.iter_mut().zip(numbers) {
                rates[0].push(rate(f, "lease", n));
                rates[1].push(rate(f, "floor", n));
            }
        }
        let medians: Vec<[f64; 2]> = rates
            .iter_mut()
            .map(|both| both.each_mut().map(|rates| median(rates)))
            .collect();
        for (n, both) in numbers.iter().zip(&medians) {
            let growth = [both[0] / medians[0][0], both[1] / medians[0][1]];
            println!(
                "{n:2} {kind}: lease {:.0} (x {:.2}), floor {:.0} (x {:.2}); part of the floor's scaling {:.2}",
                both[0],
                growth[0],
                both[1],
                growth[1],
                growth[0] / growth[1]
            );
        }
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

// ---------------------------------------------------------------------------
// Waiting.

/// Returns nanoseconds on a clock that all processes share.
fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Returns the processor time of all threads in nanoseconds (proc_pid_schedstat in the kernel's
/// Documentation/scheduler/sched-stats.rst).
fn cpu_time(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("our own child");
    let time = |task: io::Result<fs::DirEntry>| -> Option<u64> {
        let text = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse().ok()
    };
    tasks.filter_map(time).sum()
}

fn hand_over(dir: &Path) {
    println!("\n(e) from release() in one process to new() in another that waits for the one port");
    for n in [1, 10, 100] {
        let port = 20100;
        let mut waiters: Vec<Peer> = (0..=n)
            .map(|_| Peer::start("take turns", &[&dir.display(), &port]))
            .collect();
        for waiter in &mut waiters {
            waiter.send("wait");
        }
        let mut times = Vec::new();
        let mut holder = None;
        for round in 0..300 {
            // The new holder reports when it got the lease.
            let (next, got) = first_word(&mut waiters);
            if let Some((previous, released)) = holder.take() {
                // The wait queue forms in the first rounds.
                if round > 20 {
                    times.push(got.saturating_sub(released) as f64 / 1e3);
                }
                let previous: &mut Peer = &mut waiters[previous];
                previous.send("wait");
            }
            thread::sleep(Duration::from_millis(5));
            waiters[next].send("release");
            let released = waiters[next].receive().parse().expect("a time");
            holder = Some((next, released));
        }
        times.sort_by(f64::total_cmp);
        let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
        println!(
            "{n:3} waiting: p50 {:.0} µs, p99 {:.0} µs, longest {:.0} µs",
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
    let n = 100;
    for range in [4000..=6000_u16, 4000..=4000] {
        let _holder = Peer::start("hold", &[&"leases", &dir.display(), &RANGE.len()]);
        let mut waiters: Vec<Peer> = (0..n)
            .map(|_| Peer::start("wait", &[&dir.display(), range.start(), range.end()]))
            .collect();
        for waiter in &mut waiters {
            waiter.send("wait");
        }
        // Time for the first scans, and for the wait queue to form.
        thread::sleep(Duration::from_secs(4));
        let cpu = |waiters: &[Peer]| -> u64 {
            waiters.iter().map(|waiter| cpu_time(waiter.0.id())).sum()
        };
        let (start, before) = (Instant::now(), cpu(&waiters));
        thread::sleep(Duration::from_secs(8));
        let spent = (cpu(&waiters) - before) as f64 / start.elapsed().as_nanos() as f64;
        println!(
            "{n} waiting for {} leased ports, nothing released: {:.2} % of one core together",
            range.len(),
            spent * 100.0
        );
    }
}

/// Returns which peer writes first, and the number that it writes.
fn first_word(peers: &mut [Peer]) -> (usize, u64) {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut fds: Vec<PollFd<'_>> = peers
        .iter()
        .map(|peer| PollFd::new(peer.2.get_ref(), PollFlags::IN))
        .collect();
    poll(&mut fds, None).expect("our own pipes");
    let first = fds
        .iter()
        .position(|fd| !fd.revents().is_empty())
        .expect("one has written");
    drop(fds);
    (first, peers[first].receive().parse().expect("a time"))
}

// ---------------------------------------------------------------------------
// Many leases.

fn status(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("proc is mounted");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .expect("on Linux");
    line.trim_matches(|c: char| !c.is_ascii_digit())
        .parse()
        .expect("a number")
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd")
        .expect("proc is mounted")
        .count()
}

fn ten_thousand(dir: &Path) {
    const N: usize = 10_000;
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("up to the hard limit");
    let builder = builder(dir, 10_000..=29_999);
    lease_and_release(&builder);
    let (memory, open) = (status("VmRSS:"), descriptors());
    let mut leases = Vec::with_capacity(N);
    let start = Instant::now();
    for _ in 0..N {
        leases.push(builder.try_acquire().expect("a free port"));
    }
    let taken = start.elapsed();
    let (memory, open) = (status("VmRSS:") - memory, descriptors() - open);
    let start = Instant::now();
    drop(leases);
    println!(
        "\n(f) {N} leases: {:.0} bytes of resident memory and {:.2} descriptors each; taken in {:.0} ms (in a directory that had no files yet), dropped in {:.0} ms",
        memory as f64 * 1024.0 / N as f64,
        open as f64 / N as f64,
        taken.as_secs_f64() * 1e3,
        start.elapsed().as_secs_f64() * 1e3
    );
}

// ---------------------------------------------------------------------------
// Other processes, which run this program again.

const ROLE: &str = "PORTLOCK_BENCH_ROLE";

/// A process with a role. It exits when its input ends.
struct Peer(Child, ChildStdin, BufReader<ChildStdout>);

impl Peer {
    fn start(role: &str, arguments: &[&dyn std::fmt::Display]) -> Self {
        let mut command = Command::new(env::current_exe().expect("this program"));
        command
            .env(ROLE, role)
            .args(arguments.iter().map(ToString::to_string));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program");
        let stdin = child.stdin.take().expect("piped");
        let stdout = BufReader::with_capacity(1, child.stdout.take().expect("piped"));
        let mut peer = Self(child, stdin, stdout);
        assert_eq!(peer.receive(), "ready");
        peer
    }

    fn send(&mut self, line: &str) {
        writeln!(self.1, "{line}").expect("it reads");
    }

    fn receive(&mut self) -> String {
        let mut line = String::new();
        self.2.read_line(&mut line).expect("it writes");
        line.trim_end().to_owned()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn send(line: impl std::fmt::Display) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Returns the next line from the parent; exits when the parent has ended.
fn receive() -> String {
    let mut line = String::new();
    match io::stdin().read_line(&mut line) {
        Ok(len) if len > 0 => line.trim_end().to_owned(),
        _ => std::process::exit(0),
    }
}

fn play(role: &str) {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let number = |index: usize| arguments[index].parse::<u16>().expect("a number");
    match role {
        "hold" => {
            let n = usize::from(number(2));
            let builder = builder(Path::new(&arguments[1]), RANGE);
            let mut limit = getrlimit(Resource::Nofile);
            limit.current = limit.maximum;
            setrlimit(Resource::Nofile, limit).expect("up to the hard limit");
            if arguments[0] == "leases" {
                let _leases = builder.acquire_many(n).expect("as many");
                send("ready");
                receive();
            } else {
                let both = builder.listen_many(n).expect("as many");
                let (leases, _listeners): (Vec<_>, Vec<_>) = both.into_iter().unzip();
                drop(leases);
                send("ready");
                receive();
            }
        }
        "work" => {
            let dir = Path::new(&arguments[1]);
            // The first lease of a process is slower, and is not measured.
            work(&arguments[0], dir, {
                let warm_up = Instant::now();
                move || warm_up.elapsed() < Duration::from_millis(20)
            });
            send("ready");
            receive();
            let start = Instant::now();
            send(work(&arguments[0], dir, || start.elapsed() < TURN));
        }
        "take turns" => {
            let port = number(1);
            let builder = builder(Path::new(&arguments[0]), port..=port);
            let builder = builder.timeout(Duration::from_secs(600));
            send("ready");
            loop {
                receive();
                let lease = builder.acquire().expect("in time");
                send(monotonic());
                receive();
                let now = monotonic();
                lease.release().expect("released");
                send(now);
            }
        }
        "wait" => {
            let builder = builder(Path::new(&arguments[0]), number(1)..=number(2));
            send("ready");
            receive();
            let _lease = builder.timeout(Duration::from_secs(600)).acquire();
        }
        other => panic!("no role {other}"),
    }
}

pub(crate) fn main() {
    if let Ok(role) = env::var(ROLE) {
        return play(&role);
    }
    let parent = match env::var("PORTLOCK_BENCH_DIR") {
        Ok(dir) => dir.into(),
        Err(_) if Path::new("/dev/shm").is_dir() => "/dev/shm".into(),
        Err(_) => env::temp_dir(),
    };
    let fresh = || tempfile::tempdir_in(&parent).expect("a directory for the locks");
    println!("lock directory in {}", parent.display());
    let mut criterion = Criterion::default()
        .measurement_time(Duration::from_secs(4))
        .warm_up_time(Duration::from_secs(1))
        .configure_from_args();
    one_thread(&mut criterion, fresh().path());
    crowded(&mut criterion, fresh().path());
    exhausted(&mut criterion, fresh().path());
    criterion.final_summary();
    // `cargo bench -- <filter>` runs only some of the above.
    if env::args()
        .skip(1)
        .all(|argument| argument.starts_with('-'))
    {
        scaling(fresh().path());
        hand_over(fresh().path());
        ten_thousand(fresh().path());
    }
}
