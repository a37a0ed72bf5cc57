//! One round of measurements of one tool.
//!
//! Every measurement starts new processes, which only pick ports. This process binds
//! the ports, in the same way for all tools: it acts as a server in another process,
//! which receives the number over a pipe.

use std::{
    collections::HashSet,
    io::{BufRead, BufReader, ErrorKind, Write},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{self, Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::{
    Result,
    tools::{FIRST, LAST, Program, Tool},
};

pub(crate) const PROCESSES: usize = 8;

/// How much one run measures.
#[derive(Clone, Copy)]
pub(crate) struct Effort {
    /// Number of rounds that do not count.
    pub(crate) warm_up: usize,
    pub(crate) rounds: usize,
    /// Number of ports that each of several processes keeps.
    pub(crate) ports: usize,
    /// Number of ports that a single process keeps.
    pub(crate) alone: usize,
    pub(crate) cycle: Duration,
}

impl Effort {
    /// Returns the number of ports that all processes keep.
    pub(crate) fn all(self) -> usize {
        PROCESSES * self.ports
    }
}

/// The paths that a run needs.
pub(crate) struct Places {
    /// The Python environment with the tools.
    pub(crate) venv: PathBuf,
    /// get-port's main module.
    pub(crate) get_port: PathBuf,
    /// The main module of portlock for Node.js.
    pub(crate) node_package: PathBuf,
    pub(crate) locks: PathBuf,
}

/// The results of one tool in one round. Rates are in ports per second.
#[derive(Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) keep: f64,
    pub(crate) cycle: Option<f64>,
    pub(crate) keep_together: f64,
    pub(crate) cycle_together: Option<f64>,
    pub(crate) duplicates: usize,
    pub(crate) strict: usize,
    pub(crate) listen: usize,
    pub(crate) later: usize,
    /// Number of picks without a port, in all of these measurements.
    pub(crate) none: usize,
}

/// Whether a port is kept while its process lives, and free after that process was killed.
#[derive(Clone, Copy)]
pub(crate) struct Keeping {
    pub(crate) kept: bool,
    pub(crate) free_after_kill: bool,
}

/// A process that picks ports.
struct Worker {
    process: Child,
    commands: ChildStdin,
    replies: BufReader<ChildStdout>,
    name: &'static str,
    version: String,
}

impl Worker {
    fn start(tool: &Tool, places: &Places, first: u16, last: u16) -> Result<Self> {
        let mut worker = Self::launch(tool, places, first, last)?;
        worker.wait_until_ready()?;
        Ok(worker)
    }

    fn launch(tool: &Tool, places: &Places, first: u16, last: u16) -> Result<Self> {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("workers");
        let mut command = match tool.program {
            Program::Rust(_) => {
                let mut command = Command::new("/proc/self/exe");
                command.arg("worker");
                command
            }
            Program::Python | Program::PythonServed => {
                let mut command = Command::new(places.venv.join("bin/python"));
                command.arg(scripts.join("worker.py"));
                command
            }
            Program::Node => {
                let mut command = Command::new("node");
                let module = if tool.is_ours() {
                    &places.node_package
                } else {
                    &places.get_port
                };
                command.arg(scripts.join("worker.mjs")).arg(module);
                command
            }
        };
        command.args([tool.id, &first.to_string(), &last.to_string()]);
        command.env("PORTLOCK_DIR", places.locks.join("portlock"));
        command.env("RECIPE_DIR", places.locks.join("recipe"));
        command.env_remove("PORTSERVER_ADDRESS");
        if tool.program == Program::PythonServed {
            command.env("PORTSERVER_ADDRESS", server_address());
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let process = command.spawn();
        let mut process = process.map_err(|error| format!("cannot run {command:?}: {error}"))?;
        let (Some(commands), Some(replies)) = (process.stdin.take(), process.stdout.take()) else {
            return Err("a process was started without pipes".into());
        };
        Ok(Self {
            process,
            commands,
            replies: BufReader::new(replies),
            name: tool.name,
            version: String::new(),
        })
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let line = self.receive()?;
        let version = line.strip_prefix("ready ");
        let version = version.ok_or_else(|| format!("{}: unexpected reply {line:?}", self.name))?;
        self.version = version.to_owned();
        Ok(())
    }

    fn send(&mut self, command: &str) -> Result<()> {
        let sent = self.commands.write_all(format!("{command}\n").as_bytes());
        sent.map_err(|error| format!("cannot send {command} to {}: {error}", self.name).into())
    }

    /// Receives a line. Has no timeout: `benches/peers/run` limits the time of the whole run.
    fn receive(&mut self) -> Result<String> {
        let mut line = String::new();
        match self.replies.read_line(&mut line) {
            Ok(0) => Err(format!("{}: its process has ended", self.name).into()),
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(error) => Err(format!("cannot read a reply of {}: {error}", self.name).into()),
        }
    }

    fn receive_numbers(&mut self) -> Result<Vec<u64>> {
        let line = self.receive()?;
        let numbers = line.split(' ').map(str::parse).collect::<Result<_, _>>();
        numbers.map_err(|error| format!("{}: unexpected reply {line:?}: {error}", self.name).into())
    }

    fn receive_port(&mut self) -> Result<Option<u16>> {
        match self.receive_numbers()?[..] {
            [port] => self.port(port),
            _ => Err(format!("{}: the reply is not one port", self.name).into()),
        }
    }

    fn port(&self, number: u64) -> Result<Option<u16>> {
        let port = u16::try_from(number);
        let port = port.map_err(|_| format!("{}: {number} is not a port", self.name))?;
        Ok((port != 0).then_some(port))
    }

    fn pick(&mut self) -> Result<Option<u16>> {
        self.send("pick")?;
        self.receive_port()
    }

    /// Receives the time that it took, and the ports.
    fn receive_kept(&mut self) -> Result<(Duration, Vec<Option<u16>>)> {
        let numbers = self.receive_numbers()?;
        let [nanoseconds, ports @ ..] = &numbers[..] else {
            return Err(format!("{}: the reply is empty", self.name).into());
        };
        let ports = ports
            .iter()
            .map(|&port| self.port(port))
            .collect::<Result<_>>()?;
        Ok((Duration::from_nanos(*nanoseconds), ports))
    }

    /// Receives a rate, in ports per second.
    fn receive_rate(&mut self) -> Result<f64> {
        match self.receive_numbers()?[..] {
            [times, nanoseconds] => Ok(rate(times as usize, Duration::from_nanos(nanoseconds))),
            _ => Err(format!("{}: the reply is not a rate", self.name).into()),
        }
    }
}

/// Kills with SIGKILL: the ports that the worker keeps must not outlive it.
impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// portpicker's daemon.
struct Server(Child);

impl Server {
    fn start(places: &Places, first: u16, last: u16) -> Result<Self> {
        let mut command = Command::new(places.venv.join("bin/python"));
        command.arg(places.venv.join("bin/portserver.py"));
        command.args(["--portserver_static_pool", &format!("{first}-{last}")]);
        command.args(["--portserver_address", &server_address()]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = command.spawn();
        let process = process.map_err(|error| format!("cannot run {command:?}: {error}"))?;
        let server = Self(process);
        // The client picks a random port if it cannot reach the server, so wait for it.
        let address = SockAddr::unix(server_address().replacen('@', "\0", 1))?;
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match Socket::new(Domain::UNIX, Type::STREAM, None)?.connect(&address) {
                Ok(()) => return Ok(server),
                Err(error) if Instant::now() > deadline => {
                    return Err(format!("cannot reach portserver.py: {error}").into());
                }
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    fn start_if_needed(
        tool: &Tool,
        places: &Places,
        first: u16,
        last: u16,
    ) -> Result<Option<Self>> {
        let needed = tool.program == Program::PythonServed;
        needed.then(|| Self::start(places, first, last)).transpose()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An address in the abstract namespace, which needs no cleanup.
fn server_address() -> String {
    format!("@portlock-peers-{}", process::id())
}

fn rate(times: usize, taken: Duration) -> f64 {
    times as f64 / taken.as_secs_f64()
}

fn start_all(tool: &Tool, places: &Places) -> Result<Vec<Worker>> {
    let launch = |_| Worker::launch(tool, places, FIRST, LAST);
    let mut workers: Vec<Worker> = (0..PROCESSES).map(launch).collect::<Result<_>>()?;
    for worker in &mut workers {
        worker.wait_until_ready()?;
    }
    Ok(workers)
}

/// Returns the version of the tool.
pub(crate) fn version(tool: &Tool, places: &Places) -> Result<String> {
    Ok(Worker::start(tool, places, FIRST, LAST)?.version.clone())
}

pub(crate) fn round(tool: &Tool, places: &Places, effort: Effort) -> Result<Sample> {
    let _server = Server::start_if_needed(tool, places, FIRST, LAST)?;
    let (keep, none_alone) = keep_alone(tool, places, effort)?;
    let cycle = |workers: fn(&Tool, &Places) -> Result<Vec<Worker>>| {
        let measured = || cycle(workers(tool, places)?, effort);
        tool.releases.then(measured).transpose()
    };
    let cycle_alone = cycle(|tool, places| Ok(vec![Worker::start(tool, places, FIRST, LAST)?]))?;
    let cycle_together = cycle(start_all)?;
    let (keep_together, duplicates, none_together) = keep_together(tool, places, effort)?;
    let (strict, none_strict) = bind_immediately(tool, places, effort, How::Strictly)?;
    let (listen, none_listen) = bind_immediately(tool, places, effort, How::ReusingAndListening)?;
    let (later, none_later) = bind_later(tool, places, effort)?;
    Ok(Sample {
        keep,
        cycle: cycle_alone,
        keep_together,
        cycle_together,
        duplicates,
        strict,
        listen,
        later,
        none: none_alone + none_together + none_strict + none_listen + none_later,
    })
}

fn keep_alone(tool: &Tool, places: &Places, effort: Effort) -> Result<(f64, usize)> {
    let mut worker = Worker::start(tool, places, FIRST, LAST)?;
    worker.send(&format!("keep {}", effort.alone))?;
    let (taken, ports) = worker.receive_kept()?;
    let none = ports.iter().filter(|port| port.is_none()).count();
    Ok((rate(effort.alone, taken), none))
}

/// Returns ports per second, duplicates, and picks without a port.
fn keep_together(tool: &Tool, places: &Places, effort: Effort) -> Result<(f64, usize, usize)> {
    let mut workers = start_all(tool, places)?;
    let start = Instant::now();
    for worker in &mut workers {
        worker.send(&format!("keep {}", effort.ports))?;
    }
    let mut kept = Vec::new();
    for worker in &mut workers {
        kept.extend(worker.receive_kept()?.1);
    }
    let taken = start.elapsed();
    let ports: Vec<u16> = kept.iter().copied().flatten().collect();
    let distinct: HashSet<u16> = ports.iter().copied().collect();
    let none = kept.len() - ports.len();
    Ok((rate(kept.len(), taken), ports.len() - distinct.len(), none))
}

/// Returns the ports per second of all workers together.
fn cycle(mut workers: Vec<Worker>, effort: Effort) -> Result<f64> {
    for worker in &mut workers {
        worker.send(&format!("cycle {}", effort.cycle.as_millis()))?;
    }
    workers.iter_mut().map(Worker::receive_rate).sum()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// Without `SO_REUSEADDR`, as Python's `socketserver` does.
    Strictly,
    /// With it, as most servers do on Unix.
    ReusingAndListening,
}

/// Binds `port`, unless it is in use, on the one address that every tool checks.
fn bind(port: u16, how: How) -> Result<Option<Socket>> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into();
    let bound = Socket::new(Domain::IPV4, Type::STREAM, None).and_then(|socket| {
        let reuse = how == How::ReusingAndListening;
        socket.set_reuse_address(reuse)?;
        socket.bind(&address)?;
        if reuse {
            socket.listen(128)?;
        }
        Ok(socket)
    });
    match bound {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(None),
        Err(error) => Err(format!("cannot bind port {port}: {error}").into()),
    }
}

/// Sockets that stay bound until all ports have been picked.
#[derive(Default)]
struct Bound {
    sockets: Vec<Socket>,
    failed: usize,
    none: usize,
}

impl Bound {
    fn add(&mut self, port: Option<u16>, how: How) -> Result<()> {
        match port.map(|port| bind(port, how)).transpose()? {
            None => self.none += 1,
            Some(None) => self.failed += 1,
            Some(Some(socket)) => self.sockets.push(socket),
        }
        Ok(())
    }
}

/// Binds each port as soon as its number arrives, while other workers keep
/// picking. Returns failed binds, and picks without a port.
fn bind_immediately(
    tool: &Tool,
    places: &Places,
    effort: Effort,
    how: How,
) -> Result<(usize, usize)> {
    let workers = start_all(tool, places)?;
    let start_together = Barrier::new(workers.len());
    let bind_all = |mut worker: Worker| {
        let mut bound = Bound::default();
        start_together.wait();
        for _ in 0..effort.ports {
            let port = worker.pick().map_err(|error| error.to_string())?;
            bound.add(port, how).map_err(|error| error.to_string())?;
        }
        Ok((bound, worker))
    };
    let all: Vec<Result<_, String>> = thread::scope(|scope| {
        let spawn = |worker| scope.spawn(|| bind_all(worker));
        let threads: Vec<_> = workers.into_iter().map(spawn).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| thread.join();
        let joined = threads.into_iter().map(join);
        joined
            .map(|all| all.unwrap_or_else(|_| Err("a thread panicked".to_owned())))
            .collect()
    });
    let all: Vec<_> = all.into_iter().collect::<Result<_, _>>()?;
    let sum = |count: fn(&Bound) -> usize| all.iter().map(|(bound, _)| count(bound)).sum();
    Ok((sum(|bound| bound.failed), sum(|bound| bound.none)))
}

/// Repeatedly lets every process pick one port, and binds these when all have one.
/// Returns failed binds, and picks without a port.
fn bind_later(tool: &Tool, places: &Places, effort: Effort) -> Result<(usize, usize)> {
    let mut workers = start_all(tool, places)?;
    let mut bound = Bound::default();
    for _ in 0..effort.ports {
        for worker in &mut workers {
            worker.send("pick")?;
        }
        let ports: Vec<_> = workers
            .iter_mut()
            .map(Worker::receive_port)
            .collect::<Result<_>>()?;
        for port in ports {
            bound.add(port, How::Strictly)?;
        }
    }
    Ok((bound.failed, bound.none))
}

/// Tests with a range of one port; returns `None` for a tool that takes no range.
pub(crate) fn keeping(tool: &Tool, places: &Places) -> Result<Option<Keeping>> {
    if !tool.takes_range {
        return Ok(None);
    }
    let _server = Server::start_if_needed(tool, places, FIRST, FIRST)?;
    let mut holder = Worker::start(tool, places, FIRST, FIRST)?;
    if holder.pick()? != Some(FIRST) {
        return Err(format!("{}: port {FIRST} is in use", tool.name).into());
    }
    // A new process each time: ports that the tool keeps only within a process must not count.
    let others_get_it = || -> Result<bool> {
        Ok(Worker::start(tool, places, FIRST, FIRST)?.pick()? == Some(FIRST))
    };
    let kept = !others_get_it()?;
    drop(holder);
    let free_after_kill = others_get_it()?;
    Ok(Some(Keeping {
        kept,
        free_after_kill,
    }))
}
