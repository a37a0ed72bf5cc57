//! Many processes start real servers at the same time, on ports leased from one
//! narrow range, and each server must be the one that its lease was given for.
//!
//! ```text
//! cargo run --release --example parallel_servers
//! cargo run --release --example parallel_servers -- --server redis
//! cargo run --release --example parallel_servers -- --processes 4 --ports 22000-22099
//! ```
//!
//! The parent runs itself once for each process. Each child leases ports, starts
//! a server on each that knows a token of its own, and asks it for that token.
//! While all servers of all children are alive, the parent asks each once more.
//!
//! How to lease a port, keep it while a server uses it and give it back can be
//! read in `start_servers`, `Server::start` and `Server::stop`.

use std::{
    collections::HashSet,
    env,
    error::Error,
    fmt::{self, Display},
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    num::NonZeroU16,
    ops::RangeInclusive,
    os::unix::process::CommandExt,
    path::Path,
    process::{self, Child, Command, ExitCode, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use portlock::FreePort;
use tempfile::TempDir;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// How long a process may take to get its servers ready, how long the parent
/// waits for that, and how long a process may take to stop them.
const START: Duration = Duration::from_secs(60);
const REPORT: Duration = Duration::from_secs(90);
const STOP: Duration = Duration::from_secs(30);
/// How long one step of talking to a server may take, and the pause before the next try.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);

const FIRST_PORT: u16 = 21000;
/// From here on, Linux gives ports to clients of its own accord.
const FIRST_EPHEMERAL: u16 = 32768;
/// The name of a server's log in its temporary directory.
const LOG: &str = "log";

const HELP: &str = "\
Start servers in many processes at once, on ports leased from one range.

Usage: parallel_servers [OPTIONS]

Options:
  --processes P       how many processes (default: 8)
  --servers S         how many servers each of them starts (default: 25)
  --ports FIRST-LAST  the range (default: from 21000, a quarter more ports
                      than servers)
  --server KIND       http (a thread of the process), redis, nginx or python
                      (default: http)
  --help              this text

Exit status: 0 if each server started and was the right one, 1 if not, 2 if the
arguments are wrong or the server's program is missing.
";

fn main() -> ExitCode {
    let args = Args::parse().and_then(|args| match args {
        Some(args) if !args.child => args.kind.check_installed().map(|()| Some(args)),
        args => Ok(args),
    });
    let (outcome, failed) = match args {
        Err(error) => (Err(error), 2),
        Ok(None) => (print(HELP).map(|()| true), 1),
        Ok(Some(args)) if args.child => (child(&args), 1),
        Ok(Some(args)) => (parent(&args), 1),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(failed),
        Err(error) => {
            complain(error);
            ExitCode::from(failed)
        }
    }
}

/// Unlike `print!`, this does not panic when nobody reads it any more.
fn print(text: &str) -> Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("cannot write to standard output: {error}").into())
        }
        _ => Ok(()),
    }
}

fn complain(message: impl Display) {
    let _ = writeln!(io::stderr(), "parallel_servers: {message}");
}

struct Args {
    processes: usize,
    servers: usize,
    ports: RangeInclusive<u16>,
    kind: Kind,
    /// Given by the parent to the processes that it starts.
    child: bool,
}

impl Args {
    /// The arguments, or `None` if they ask for help.
    fn parse() -> Result<Option<Self>> {
        use lexopt::prelude::*;

        let (mut processes, mut servers) = (8, 25);
        let (mut ports, mut kind, mut child) = (None, Kind::Http, false);
        let mut parser = lexopt::Parser::from_env();
        while let Some(arg) = parser.next()? {
            match arg {
                Long("processes") => processes = parser.value()?.parse_with(count)?,
                Long("servers") => servers = parser.value()?.parse_with(count)?,
                Long("ports") => ports = Some(parser.value()?.parse_with(port_range)?),
                Long("server") => kind = parser.value()?.parse_with(Kind::named)?,
                Long("child") => child = true,
                Long("help") => return Ok(None),
                _ => return Err(arg.unexpected().into()),
            }
        }
        let needed = processes * servers;
        let ports = ports.map_or_else(|| default_ports(needed), Ok)?;
        if needed > ports.len() {
            let text = format!("{processes} x {servers} = {needed} servers need more than the");
            return Err(format!("{text} {} ports of {}", ports.len(), show(&ports)).into());
        }
        Ok(Some(Self {
            processes,
            servers,
            ports,
            kind,
            child,
        }))
    }
}

fn count(text: &str) -> Result<usize, &'static str> {
    let count = text.parse::<NonZeroU16>();
    count
        .map(|count| count.get().into())
        .map_err(|_| "it is not a number from 1 to 65535")
}

fn port_range(text: &str) -> Result<RangeInclusive<u16>, &'static str> {
    let range = text.split_once('-').and_then(|(first, last)| {
        let range = first.parse().ok()?..=last.parse().ok()?;
        (*range.start() > 0 && !range.is_empty()).then_some(range)
    });
    range.ok_or("it is not FIRST-LAST, such as 21000-21249")
}

fn show(ports: &RangeInclusive<u16>) -> String {
    format!("{}-{}", ports.start(), ports.end())
}

/// Few ports more than `needed`, so that the processes often want the same one.
fn default_ports(needed: usize) -> Result<RangeInclusive<u16>> {
    let last = usize::from(FIRST_PORT) + needed + needed.div_ceil(4) - 1;
    match u16::try_from(last) {
        Ok(last) if last < FIRST_EPHEMERAL => Ok(FIRST_PORT..=last),
        _ => {
            Err(format!("the default range is too small for {needed} servers: use --ports").into())
        }
    }
}

/// The kinds of servers, and all that differs between them.
#[derive(Clone, Copy)]
enum Kind {
    Http,
    Redis,
    Nginx,
    Python,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Http, Self::Redis, Self::Nginx, Self::Python];

    fn named(name: &str) -> Result<Self, &'static str> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or("it is not http, redis, nginx or python")
    }

    fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Redis => "redis",
            Self::Nginx => "nginx",
            Self::Python => "python",
        }
    }

    /// The server's program, if it is one, and how to ask for its version.
    fn program(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Http => None,
            Self::Redis => Some(("redis-server", "--version")),
            Self::Nginx => Some(("nginx", "-v")),
            Self::Python => Some(("python3", "--version")),
        }
    }

    fn check_installed(self) -> Result<()> {
        let Some((program, version)) = self.program() else {
            return Ok(());
        };
        let mut command = Command::new(program);
        command.arg(version).stdin(Stdio::null());
        match command.stdout(Stdio::null()).stderr(Stdio::null()).status() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("{program} does not work: {status}").into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(format!("{program} is not installed, or not in PATH").into())
            }
            Err(error) => Err(format!("cannot run {program}: {error}").into()),
        }
    }

    /// Tells the program to bind `port`, to answer with `token`, and to keep its files in `dir`.
    fn configure(self, command: &mut Command, port: u16, token: &str, dir: &Path) -> Result<()> {
        match self {
            Self::Http => {}
            Self::Redis => {
                command.args(["--port", &port.to_string(), "--bind", "127.0.0.1"]);
                command.args(["--save", "", "--appendonly", "no", "--requirepass", token]);
                command.arg("--dir").arg(dir);
            }
            Self::Nginx => {
                let path = dir.join("nginx.conf");
                fs::write(&path, nginx_conf(port, token))
                    .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
                command.arg("-p").arg(dir).arg("-c").arg(path);
                command.args(["-e", "stderr"]);
            }
            Self::Python => {
                command.args(["-c", PYTHON_SERVER, &port.to_string(), token]);
            }
        }
        Ok(())
    }

    /// What to send to a server, and the answer of the one that knows `token`.
    fn dialogue(self, token: &str) -> (String, &str) {
        match self {
            Self::Redis => (format!("AUTH {token}\r\n"), "+OK"),
            _ => ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".into(), token),
        }
    }
}

/// `user` keeps nginx, if run by root, from needing a user of its own.
fn nginx_conf(port: u16, token: &str) -> String {
    format!(
        "user root; daemon off; master_process off; pid nginx.pid; events {{}}
         http {{
             access_log off;
             client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
             uwsgi_temp_path uwsgi; scgi_temp_path scgi;
             server {{ listen 127.0.0.1:{port}; return 200 \"{token}\\n\"; }}
         }}"
    )
}

/// `TCPServer`, unlike `HTTPServer`, binds without `SO_REUSEADDR`. So it fails
/// even on what remains of a closed connection; a lease rules that out too.
const PYTHON_SERVER: &str = r#"
import http.server, socketserver, sys

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        body = (sys.argv[2] + "\n").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

socketserver.TCPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"#;

/// What went wrong, and the reason.
enum Failure {
    Bind(String),
    Answer(String),
    Other(String),
}

/// One line, as a child reports it.
impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, reason) = match self {
            Self::Bind(reason) => ("bind-failure", reason),
            Self::Answer(reason) => ("wrong-answer", reason),
            Self::Other(reason) => ("failure", reason),
        };
        write!(f, "{word} {}", reason.replace('\n', " "))
    }
}

/// Asks the server on `port` for what only the one with this token knows.
fn ask(kind: Kind, port: u16, token: &str, deadline: Instant) -> Result<(), Failure> {
    let (request, expected) = kind.dialogue(token);
    match exchange(port, &request, deadline) {
        Ok(answer) if answer == expected => Ok(()),
        Ok(answer) => Err(Failure::Answer(format!(
            "the server on port {port} answers {answer:?} instead of {expected:?}"
        ))),
        Err(error) => Err(Failure::Other(format!(
            "cannot talk to the server on port {port}: {error}"
        ))),
    }
}

/// Sends the request and gives the answer: one line, after the header if it is HTTP.
///
/// This side closes the connection, not the server. What closes first stays in
/// TIME_WAIT for a minute, and a server's side of it would keep the port busy.
fn exchange(port: u16, request: &str, deadline: Instant) -> io::Result<String> {
    let patience = left(deadline).clamp(PAUSE, PATIENCE);
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&addr, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(request.as_bytes())?;

    let mut lines = BufReader::new(stream.take(4096)).lines();
    let mut next = || lines.next().transpose().map(Option::unwrap_or_default);
    let mut line = next()?;
    if line.starts_with("HTTP/") {
        while !line.is_empty() {
            line = next()?;
        }
        line = next()?;
    }
    Ok(line)
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// How a process ended, if it ends before the deadline.
fn exit_status(process: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    loop {
        match process.try_wait() {
            Ok(None) if !left(deadline).is_zero() => thread::sleep(PAUSE),
            Ok(status) => return status,
            Err(_) => return None,
        }
    }
}

/// A running server and the lease of its port. They are dropped in this order:
/// the server must be gone before its port is given away.
struct Server {
    running: Running,
    token: String,
    lease: FreePort,
}

impl Server {
    fn start(kind: Kind, lease: FreePort, n: usize) -> Result<Self, Failure> {
        let token = format!("{}-{lease}-{n}", process::id());
        let running = match kind.program() {
            None => {
                let listener = TcpListener::bind(lease.addr())
                    .map_err(|error| Failure::Bind(format!("cannot bind port {lease}: {error}")))?;
                Running::thread(listener, lease.addr(), token.clone())
            }
            Some((program, _)) => Running::program(program, |command, dir| {
                kind.configure(command, lease.port(), &token, dir)
            }),
        };
        let running = running.map_err(|error| {
            Failure::Other(format!("cannot start a server on port {lease}: {error}"))
        })?;
        Ok(Self {
            running,
            token,
            lease,
        })
    }

    /// Waits until the server answers, and checks that it is the right one.
    fn check(&mut self, kind: Kind, deadline: Instant, stop: &Receiver<()>) -> Result<(), Failure> {
        loop {
            if let Some(failure) = self.exited(Duration::ZERO) {
                return Err(failure);
            }
            match ask(kind, self.lease.port(), &self.token, deadline) {
                Ok(()) => return Ok(()),
                // If someone else has the port, our server will soon say so and
                // exit. nginx tries to bind for 2.5 seconds.
                Err(wrong @ Failure::Answer(_)) => {
                    return Err(self.exited(PATIENCE).unwrap_or(wrong));
                }
                Err(failure) if left(deadline).is_zero() => return Err(failure),
                Err(_) => {}
            }
            if told_to_stop(stop, PAUSE) {
                return Err(Failure::Other("told to stop while starting".to_owned()));
            }
        }
    }

    /// Why the server's program has exited, if it does so within `patience`.
    fn exited(&mut self, patience: Duration) -> Option<Failure> {
        let Running::Program { process, dir } = &mut self.running else {
            return None;
        };
        let status = exit_status(process, Instant::now() + patience)?;
        let log = fs::read(dir.path().join(LOG)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let last = log.lines().last().unwrap_or("it said nothing");
        let reason = format!("the server on port {} ended, {status}: {last}", self.lease);
        Some(if log.contains("Address already in use") {
            Failure::Bind(reason)
        } else {
            Failure::Other(reason)
        })
    }

    /// Stops the server, and only then gives its port back.
    fn stop(mut self) -> Result<()> {
        self.running
            .stop()
            .map_err(|error| format!("cannot stop the server on port {}: {error}", self.lease))?;
        Ok(self.lease.release()?)
    }
}

/// What runs; it is stopped at the latest when it is dropped.
enum Running {
    Thread {
        addr: SocketAddr,
        stop: Arc<AtomicBool>,
        thread: Option<JoinHandle<()>>,
    },
    Program {
        process: Child,
        dir: TempDir,
    },
}

impl Running {
    fn thread(listener: TcpListener, addr: SocketAddr, token: String) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let serve = move || {
            for stream in listener.incoming().map_while(io::Result::ok) {
                // A client that breaks off is no reason to stop serving.
                let _ = answer(&stream, &token);
                if stopped.load(Ordering::Acquire) {
                    break;
                }
            }
        };
        let thread = Some(thread::Builder::new().spawn(serve)?);
        Ok(Self::Thread { addr, stop, thread })
    }

    fn program(
        program: &str,
        configure: impl FnOnce(&mut Command, &Path) -> Result<()>,
    ) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("parallel_servers-")
            .tempdir()
            .map_err(|error| format!("cannot make a temporary directory: {error}"))?;
        let log = dir.path().join(LOG);
        let log = File::create(&log)
            .and_then(|out| Ok((out.try_clone()?, out)))
            .map_err(|error| format!("cannot make {}: {error}", log.display()))?;
        let mut command = Command::new(program);
        configure(&mut command, dir.path())?;
        command.stdin(Stdio::null()).stdout(log.0).stderr(log.1);
        let process = command
            .spawn()
            .map_err(|error| format!("cannot run {program}: {error}"))?;
        Ok(Self::Program { process, dir })
    }

    fn stop(&mut self) -> io::Result<()> {
        match self {
            Self::Thread { addr, stop, thread } => {
                let Some(thread) = thread.take() else {
                    return Ok(());
                };
                stop.store(true, Ordering::Release);
                // Only a connection wakes the thread.
                TcpStream::connect_timeout(addr, PATIENCE)?;
                let panicked = |_| io::Error::other("its thread has panicked");
                thread.join().map_err(panicked)
            }
            Self::Program { process, .. } => {
                process.kill()?;
                process.wait().map(drop)
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

/// Answers one HTTP request, and waits until the client closes: see `exchange`.
fn answer(mut stream: &TcpStream, token: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut header = BufReader::new(stream.take(4096)).lines();
    if header.any(|line| !matches!(line, Ok(line) if !line.is_empty())) {
        let len = token.len() + 1;
        let reply = format!("HTTP/1.0 200 OK\r\nContent-Length: {len}\r\n\r\n{token}\n");
        stream.write_all(reply.as_bytes())?;
    }
    io::copy(&mut stream.take(4096), &mut io::sink()).map(drop)
}

/// One of the processes: starts its servers, reports on them, and stops them
/// when it is told to.
fn child(args: &Args) -> Result<bool> {
    let stop = watch_stdin()?;
    let deadline = Instant::now() + START;
    let mut servers = Vec::new();
    for mut server in start_servers(args, deadline, &stop)? {
        match server.check(args.kind, deadline, &stop) {
            Ok(()) => {
                tell(format!("started {} {}", server.lease, server.token))?;
                servers.push(server);
            }
            Err(failure) => tell(failure)?,
        }
    }
    tell("ready")?;
    // Nothing is ever sent: the channel closes when the parent has checked all
    // servers of all processes, or has died.
    let _ = stop.recv();
    for server in servers {
        if let Err(error) = server.stop() {
            tell(Failure::Other(error.to_string()))?;
        }
    }
    Ok(true)
}

fn start_servers(args: &Args, deadline: Instant, stop: &Receiver<()>) -> Result<Vec<Server>> {
    let port = FreePort::builder()
        .ports(args.ports.clone())
        .label(format!("parallel_servers: {}", args.kind.name()));
    let mut servers = Vec::new();
    for n in 0..args.servers {
        if told_to_stop(stop, Duration::ZERO) {
            break;
        }
        let lease = port.clone().timeout(left(deadline)).acquire()?;
        match Server::start(args.kind, lease, n) {
            Ok(server) => servers.push(server),
            Err(failure) => tell(failure)?,
        }
    }
    Ok(servers)
}

/// Reports a line to the parent.
fn tell(line: impl Display) -> Result<()> {
    writeln!(io::stdout(), "{line}")
        .map_err(|error| format!("process {}: cannot report: {error}", process::id()).into())
}

/// A channel that is closed when standard input is.
fn watch_stdin() -> Result<Receiver<()>> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        drop(sender);
    })?;
    Ok(receiver)
}

fn told_to_stop(stop: &Receiver<()>, within: Duration) -> bool {
    stop.recv_timeout(within) != Err(RecvTimeoutError::Timeout)
}

/// Starts the processes, checks all servers while all are alive, and prints the
/// table. Gives whether all is well.
fn parent(args: &Args) -> Result<bool> {
    let start = Instant::now();
    let mut workers = Vec::new();
    for _ in 0..args.processes {
        let worker = Worker::start(args);
        workers.push(worker.map_err(|error| format!("cannot start a process: {error}"))?);
    }
    let mut tally = Tally::default();
    for worker in &workers {
        worker.report(&mut tally, start + REPORT);
    }
    tally.check_all(args.kind, Instant::now() + REPORT);
    for worker in &mut workers {
        worker.tell_to_stop();
    }
    for worker in &mut workers {
        worker.end(|line| tally.count(line));
    }
    tally.print(args, start.elapsed())
}

/// A process that the parent has started, and the lines that it reports.
struct Worker {
    process: Child,
    lines: Receiver<String>,
}

impl Worker {
    fn start(args: &Args) -> Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        command
            .args(["--child", "--processes", "1", "--server", args.kind.name()])
            .args(["--servers", &args.servers.to_string()])
            .args(["--ports", &show(&args.ports)])
            // In a group of its own, a child is not killed by Ctrl-C: it sees
            // that the parent is gone, and stops its servers.
            .process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn()?;
        let reports = process.stdout.take();
        let (sender, lines) = mpsc::channel();
        let worker = Self { process, lines };
        // In a thread, because reading from a pipe has no timeout.
        thread::Builder::new().spawn(move || {
            let lines = reports
                .into_iter()
                .flat_map(|out| BufReader::new(out).lines());
            for line in lines.map_while(io::Result::ok) {
                let _ = sender.send(line);
            }
        })?;
        Ok(worker)
    }

    /// Counts what the process reports until it is ready.
    fn report(&self, tally: &mut Tally, deadline: Instant) {
        loop {
            match self.lines.recv_timeout(left(deadline)) {
                Ok(line) if line == "ready" => return,
                Ok(line) => tally.count(&line),
                Err(RecvTimeoutError::Timeout) => {
                    return tally.count(&format!("failure process {} is late", self.process.id()));
                }
                // It has ended, and `end` will say how.
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn tell_to_stop(&mut self) {
        drop(self.process.stdin.take());
    }

    /// Waits until the process has ended, and kills it if that takes too long.
    fn end(&mut self, mut count: impl FnMut(&str)) {
        self.tell_to_stop();
        let deadline = Instant::now() + STOP;
        while let Ok(line) = self.lines.recv_timeout(left(deadline)) {
            count(&line);
        }
        let id = self.process.id();
        match exit_status(&mut self.process, deadline) {
            Some(status) if status.success() => {}
            Some(status) => count(&format!("failure process {id} ended, {status}")),
            None => {
                count(&format!("failure process {id} does not stop"));
                let _ = self.process.kill();
                let _ = self.process.wait();
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end(|_| {});
    }
}

/// What the processes report and what the parent finds.
#[derive(Default)]
struct Tally {
    started: Vec<(u16, String)>,
    bind_failures: usize,
    wrong_answers: usize,
    other_failures: usize,
}

impl Tally {
    fn count(&mut self, line: &str) {
        if let Some(server) = started(line) {
            return self.started.push(server);
        }
        let (word, reason) = line.split_once(' ').unwrap_or(("", line));
        complain(reason);
        match word {
            "bind-failure" => self.bind_failures += 1,
            "wrong-answer" => self.wrong_answers += 1,
            _ => self.other_failures += 1,
        }
    }

    fn check_all(&mut self, kind: Kind, deadline: Instant) {
        let ask = |(port, token): &(u16, String)| ask(kind, *port, token, deadline).err();
        let failures: Vec<Failure> = self.started.iter().filter_map(ask).collect();
        for failure in failures {
            self.count(&failure.to_string());
        }
    }

    /// Prints the table, and gives whether all is well.
    fn print(&self, args: &Args, time: Duration) -> Result<bool> {
        let wanted = args.processes * args.servers;
        let started = self.started.len();
        let ports: HashSet<u16> = self.started.iter().map(|(port, _)| *port).collect();
        let rows = [
            ("server", args.kind.name().to_owned()),
            ("processes", args.processes.to_string()),
            (
                "range",
                format!("{} ({} ports)", show(&args.ports), args.ports.len()),
            ),
            ("servers started", format!("{started} of {wanted}")),
            ("distinct ports", ports.len().to_string()),
            ("bind failures", self.bind_failures.to_string()),
            ("wrong answers", self.wrong_answers.to_string()),
            ("other failures", self.other_failures.to_string()),
            ("time", format!("{:.2} s", time.as_secs_f64())),
        ];
        let row = |(name, value): &(&str, String)| format!("{name:<17}{value}\n");
        print(&rows.iter().map(row).collect::<String>())?;
        let failures = self.bind_failures + self.wrong_answers + self.other_failures;
        Ok(failures == 0 && started == wanted && ports.len() == started)
    }
}

/// The port and the token, if the line reports a server that has started.
fn started(line: &str) -> Option<(u16, String)> {
    let (port, token) = line.strip_prefix("started ")?.split_once(' ')?;
    Some((port.parse().ok()?, token.to_owned()))
}
