//! Many processes start real servers at the same time, on ports leased from one
//! narrow range. The server on each port must be the one that the port was leased for.
//!
//! ```text
//! cargo run --release --example parallel_servers
//! cargo run --release --example parallel_servers -- --server redis
//! cargo run --release --example parallel_servers -- --processes 4 --ports 22000-22099
//! ```
//!
//! The parent runs itself once for each process. Each child leases ports, starts
//! a server with a unique token on each, and asks it for that token.
//! While all servers of all children are alive, the parent asks each one again.
//!
//! `start_servers`, `Server::start` and `Server::stop` show how to lease a port, keep
//! it while a server uses it, and release it.

use std::{
    collections::HashSet,
    env,
    error::Error,
    fmt::Display,
    fs::{self, File},
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    num::NonZeroU16,
    path::Path,
    process::{self, Child, Command, ExitCode, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use portlock::{FreePort, PortSet};
use tempfile::TempDir;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// Time limit for a process to start its servers.
const START: Duration = Duration::from_secs(60);
/// Time limit for every wait of the parent.
const WAIT: Duration = Duration::from_secs(90);
/// Time limit for one step of an exchange with a server.
const PATIENCE: Duration = Duration::from_secs(5);
/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(10);

const FIRST_PORT: u16 = 21000;
/// From here on, Linux assigns ports to clients automatically.
const FIRST_EPHEMERAL: u16 = 32768;

/// Prefixes of failure reports, by which they are counted.
const BIND_FAILURE: &str = "bind failure";
const WRONG_ANSWER: &str = "wrong answer";

const HELP: &str = "\
Start servers in many processes in parallel, on ports leased from one range.

Usage: parallel_servers [OPTIONS]

Options:
  --processes P       number of processes (default: 8)
  --servers S         number of servers that each process starts (default: 25)
  --ports SET         such as 21000-21249,!21080 (default: from 21000, a
                      quarter more ports than servers)
  --server KIND       http (a thread of the process), redis, nginx or python
                      (default: http)
  --help              this text

Exit status: 0 if each server started and was the right one, 2 if the arguments
are wrong or the server's program is missing, otherwise 1.
";

fn main() -> ExitCode {
    let (outcome, failed) = match Args::parse() {
        Ok(Some(args)) if args.child => (child(&args), 1),
        Ok(Some(args)) => (parent(&args), 1),
        Ok(None) => (print(HELP), 1),
        Err(error) => (Err(error), 2),
    };
    if let Err(error) = outcome {
        complain(error);
        return ExitCode::from(failed);
    }
    ExitCode::SUCCESS
}

/// Prints `text`. Unlike `print!`, this does not panic if no process reads it any more.
fn print(text: impl Display) -> Result<()> {
    let printed = io::stdout().write_all(text.to_string().as_bytes());
    printed.map_err(|error| format!("cannot write to standard output: {error}").into())
}

fn complain(message: impl Display) {
    let _ = writeln!(io::stderr(), "parallel_servers: {message}");
}

struct Args {
    processes: u16,
    servers: u16,
    ports: PortSet,
    kind: Kind,
    /// Set by the parent for the processes that it starts.
    child: bool,
}

impl Args {
    /// Returns the checked arguments, or `None` if they ask for help.
    fn parse() -> Result<Option<Self>> {
        use lexopt::prelude::*;

        let (mut processes, mut servers) = (8, 25);
        let (mut ports, mut kind, mut child) = (None, Kind::Http, false);
        let mut parser = lexopt::Parser::from_env();
        while let Some(arg) = parser.next()? {
            match arg {
                Long("processes") => processes = parser.value()?.parse_with(count)?,
                Long("servers") => servers = parser.value()?.parse_with(count)?,
                Long("ports") => ports = Some(parser.value()?.parse::<PortSet>()?),
                Long("server") => kind = parser.value()?.parse_with(Kind::named)?,
                Long("child") => child = true,
                Long("help") => return Ok(None),
                _ => return Err(arg.unexpected().into()),
            }
        }
        let wanted = usize::from(processes) * usize::from(servers);
        let ports = ports.map_or_else(|| default_ports(wanted), Ok)?;
        if wanted > ports.len() {
            let all = ports.len();
            return Err(format!("{wanted} servers do not fit on {all} ports, {ports}").into());
        }
        if !child {
            kind.check_installed()?;
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

fn count(text: &str) -> Result<u16, &'static str> {
    let count = text.parse().map(NonZeroU16::get);
    count.map_err(|_| "processes and servers are numbers from 1 to 65535")
}

/// Returns slightly more ports than `wanted`, so that the processes often try the same one.
fn default_ports(wanted: usize) -> Result<PortSet> {
    match u16::try_from(usize::from(FIRST_PORT) + wanted + wanted.div_ceil(4)) {
        Ok(end) if end <= FIRST_EPHEMERAL => Ok(PortSet::from(FIRST_PORT..end)),
        _ => Err(format!("{wanted} servers do not fit into any default range: use --ports").into()),
    }
}

/// The kinds of servers, and everything that differs between them.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Http,
    Redis,
    Nginx,
    Python,
}

impl Kind {
    fn named(name: &str) -> Result<Self, &'static str> {
        let mut kinds = [Self::Http, Self::Redis, Self::Nginx, Self::Python].into_iter();
        let kind = kinds.find(|kind| kind.name() == name);
        kind.ok_or("the server is http, redis, nginx or python")
    }

    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// Returns the server's program; `None` means a thread of the process.
    fn program(self) -> Option<&'static str> {
        match self {
            Self::Http => None,
            Self::Redis => Some("redis-server"),
            Self::Nginx => Some("nginx"),
            Self::Python => Some("python3"),
        }
    }

    fn check_installed(self) -> Result<()> {
        let Some(program) = self.program() else {
            return Ok(());
        };
        // It only has to start: nginx has no such option.
        let mut command = Command::new(program);
        match command.arg("--version").stdin(Stdio::null()).output() {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("cannot run {program} (is it installed?): {error}").into()),
        }
    }

    /// Configures the program to bind `port`, answer with `token` and keep its files in `dir`.
    fn configure(
        self,
        command: &mut Command,
        port: &str,
        token: &str,
        dir: &Path,
    ) -> io::Result<()> {
        match self {
            Self::Http => {}
            Self::Redis => {
                command.args(["--port", port, "--bind", "127.0.0.1"]);
                command.args(["--save", "", "--appendonly", "no"]);
                command.args(["--requirepass", token, "--dir"]).arg(dir);
            }
            Self::Nginx => {
                let conf = NGINX_CONF.replace("PORT", port).replace("TOKEN", token);
                fs::write(dir.join("nginx.conf"), conf)?;
                command.args(["-c", "nginx.conf", "-e", "stderr"]);
                command.arg("-p").arg(dir);
            }
            Self::Python => {
                command.args(["-c", PYTHON_SERVER, port, token]);
            }
        }
        Ok(())
    }

    /// Returns the request to a server, and the answer of the one with `token`.
    fn dialogue(self, token: &str) -> (String, &str) {
        match self {
            Self::Redis => (format!("AUTH {token}\r\n"), "+OK"),
            _ => ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".into(), token),
        }
    }
}

/// With `user`, nginx does not need a separate user if root runs it.
const NGINX_CONF: &str = r#"
user root; daemon off; master_process off; pid nginx.pid; events {}
http {
    access_log off; client_body_temp_path body; proxy_temp_path proxy;
    fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    server { listen 127.0.0.1:PORT; return 200 "TOKEN\n"; }
}
"#;

/// `TCPServer`, unlike `HTTPServer`, binds without `SO_REUSEADDR`. So it fails
/// even on a connection in TIME_WAIT; a lease rules that out too.
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

/// Asks the server on `port` for its token. A wrong answer is an error of the kind
/// `InvalidData`.
fn ask(kind: Kind, port: u16, token: &str, deadline: Instant) -> io::Result<()> {
    let (request, right) = kind.dialogue(token);
    let patience = left(deadline).clamp(PAUSE, PATIENCE);
    let (kind, what) = match exchange(port, &request, patience) {
        Ok(answer) if answer == right => return Ok(()),
        Ok(answer) => (ErrorKind::InvalidData, format!("{answer:?}")),
        Err(error) => (error.kind(), error.to_string()),
    };
    let wrong = kind == ErrorKind::InvalidData;
    let text = if wrong { WRONG_ANSWER } else { "no answer" };
    Err(io::Error::new(kind, format!("{text}: port {port}: {what}")))
}

/// Sends the request and returns the answer: one line, after the header if it is HTTP.
///
/// The client closes the connection, not the server. The side that closes first stays in
/// TIME_WAIT for a minute, and on the server's side that would keep the port busy.
fn exchange(port: u16, request: &str, patience: Duration) -> io::Result<String> {
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&addr, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(request.as_bytes())?;

    let mut lines = BufReader::new(stream.take(4096)).lines();
    let mut line = lines.next().transpose()?.unwrap_or_default();
    if line.starts_with("HTTP/") {
        skip_header(&mut lines)?;
        line = lines.next().transpose()?.unwrap_or_default();
    }
    Ok(line)
}

/// Reads up to the empty line, or to the end.
fn skip_header(lines: &mut impl Iterator<Item = io::Result<String>>) -> io::Result<()> {
    while let Some(line) = lines.next().transpose()? {
        if line.is_empty() {
            break;
        }
    }
    Ok(())
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// Returns the exit status of a process that ends before the deadline.
fn exit_status(process: &mut Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    loop {
        let status = process.try_wait()?;
        if status.is_some() || left(deadline).is_zero() {
            return Ok(status);
        }
        thread::sleep(PAUSE);
    }
}

/// Starts a thread. Unlike `thread::spawn`, this does not panic if the system refuses it.
fn spawn(work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let thread = thread::Builder::new().spawn(work);
    thread.map_err(|error| format!("cannot start a thread: {error}").into())
}

/// A running server and the lease of its port. They are dropped in this order:
/// the server must be gone before its port is released.
struct Server {
    running: Running,
    token: String,
    lease: FreePort,
}

impl Server {
    fn start(kind: Kind, lease: FreePort, n: u16) -> Result<Self> {
        let token = format!("{}-{lease}-{n}", process::id());
        let running = match kind.program() {
            None => Running::thread(lease.addr(), token.clone())?,
            Some(program) => Running::program(program, kind, lease.port(), &token)
                .map_err(|error| format!("cannot start {program} on port {lease}: {error}"))?,
        };
        Ok(Self {
            running,
            token,
            lease,
        })
    }

    /// Waits until the server answers, and checks that it is the right one.
    fn check(&mut self, kind: Kind, deadline: Instant, stop: &Receiver<()>) -> Result<()> {
        loop {
            let Err(error) = ask(kind, self.lease.port(), &self.token, deadline) else {
                return Ok(());
            };
            // If another program has the port, our server will soon report that and exit.
            // nginx tries to bind for 2.5 seconds.
            let wrong = error.kind() == ErrorKind::InvalidData;
            self.expect_alive(if wrong { PATIENCE } else { Duration::ZERO })?;
            if wrong || left(deadline).is_zero() || must_stop(stop, PAUSE) {
                return Err(error.into());
            }
        }
    }

    /// Fails if the server's program ends within `patience`, with the reason.
    fn expect_alive(&mut self, patience: Duration) -> Result<()> {
        let Running::Program(process, dir) = &mut self.running else {
            return Ok(());
        };
        let Some(status) = exit_status(process, Instant::now() + patience)? else {
            return Ok(());
        };
        let log = fs::read(dir.path().join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let in_use = log
            .lines()
            .find(|line| line.contains("Address already in use"));
        let what = in_use.map_or("server ended", |_| BIND_FAILURE);
        let line = in_use.or(log.lines().last()).unwrap_or("no output");
        Err(format!("{what}: port {}: {status}: {line}", self.lease).into())
    }

    /// Stops the server, and only then releases its port.
    fn stop(mut self) -> Result<()> {
        let stopped = self.running.stop();
        stopped.map_err(|error| format!("cannot stop server on port {}: {error}", self.lease))?;
        Ok(self.lease.release()?)
    }
}

/// A running program or thread. It is stopped when dropped, if not earlier.
enum Running {
    Program(Child, TempDir),
    Thread(SocketAddr, Option<JoinHandle<()>>),
}

impl Running {
    fn program(program: &str, kind: Kind, port: u16, token: &str) -> io::Result<Self> {
        let dir = TempDir::with_prefix("parallel_servers-")?;
        let log = File::create(dir.path().join("log"))?;
        let mut command = Command::new(program);
        kind.configure(&mut command, &port.to_string(), token, dir.path())?;
        command.stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        Ok(Self::Program(command.spawn()?, dir))
    }

    fn thread(addr: SocketAddr, token: String) -> Result<Self> {
        let listener = TcpListener::bind(addr);
        let listener = listener.map_err(|error| format!("{BIND_FAILURE}: {addr}: {error}"))?;
        let thread = spawn(move || {
            for stream in listener.incoming().map_while(io::Result::ok) {
                if let Ok(false) = answer(&stream, &token) {
                    break;
                }
            }
        })?;
        Ok(Self::Thread(addr, Some(thread)))
    }

    fn stop(&mut self) -> io::Result<()> {
        match self {
            Self::Program(process, _) => {
                process.kill()?;
                process.wait()?;
            }
            Self::Thread(addr, thread) => {
                if let Some(thread) = thread.take() {
                    // A connection without a request makes the thread end.
                    TcpStream::connect_timeout(addr, PATIENCE)?;
                    let panicked = |_| io::Error::other("its thread panicked");
                    thread.join().map_err(panicked)?;
                }
            }
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

/// Answers an HTTP request. Returns whether there was one.
fn answer(mut stream: &TcpStream, token: &str) -> io::Result<bool> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream.take(4096)).lines();
    if lines.next().transpose()?.is_none() {
        return Ok(false);
    }
    skip_header(&mut lines)?;
    let len = token.len() + 1;
    let reply = format!("HTTP/1.0 200 OK\r\nContent-Length: {len}\r\n\r\n{token}\n");
    stream.write_all(reply.as_bytes())?;
    // The client must close first: see `exchange`.
    io::copy(&mut stream.take(4096), &mut io::sink())?;
    Ok(true)
}

/// Runs one of the processes.
fn child(args: &Args) -> Result<()> {
    // This channel closes with standard input: when the parent has asked all
    // servers of all processes, or has died.
    let (watch, stop) = mpsc::channel();
    spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        drop(watch);
    })?;
    let outcome = run_servers(args, &stop);
    // A failure that is caused by the end of the parent need not be reported.
    outcome.or_else(|error| match must_stop(&stop, PAUSE) {
        true => Ok(()),
        false => Err(error),
    })
}

/// Starts the servers, reports, and stops them on request.
fn run_servers(args: &Args, stop: &Receiver<()>) -> Result<()> {
    let deadline = Instant::now() + START;
    let mut ready = Vec::new();
    for mut server in start_servers(args, deadline, stop)? {
        match server.check(args.kind, deadline, stop) {
            Ok(()) => {
                print(format!("started {} {}\n", server.lease, server.token))?;
                ready.push(server);
            }
            Err(failure) => print(format!("{failure}\n"))?,
        }
    }
    print("ready\n")?;
    let _ = stop.recv();
    for failure in ready.into_iter().filter_map(|server| server.stop().err()) {
        print(format!("{failure}\n"))?;
    }
    Ok(())
}

fn start_servers(args: &Args, deadline: Instant, stop: &Receiver<()>) -> Result<Vec<Server>> {
    let ports = args.ports.clone();
    let port = FreePort::builder().ports(ports).label(args.kind.name());
    let mut servers = Vec::new();
    for n in 0..args.servers {
        if must_stop(stop, Duration::ZERO) {
            break;
        }
        let lease = port.clone().timeout(left(deadline)).acquire()?;
        match Server::start(args.kind, lease, n) {
            Ok(server) => servers.push(server),
            Err(failure) => print(format!("{failure}\n"))?,
        }
    }
    Ok(servers)
}

fn must_stop(stop: &Receiver<()>, within: Duration) -> bool {
    stop.recv_timeout(within) != Err(RecvTimeoutError::Timeout)
}

/// Starts the processes, asks all servers while all are alive, and prints the table.
fn parent(args: &Args) -> Result<()> {
    let start = Instant::now();
    let mut workers = Vec::new();
    for _ in 0..args.processes {
        workers.push(Worker::start(args)?);
    }
    let mut tally = Tally::default();
    for worker in &workers {
        worker.report(&mut tally, start + WAIT);
    }
    tally.ask_all(args.kind, Instant::now() + WAIT);
    for worker in &mut workers {
        worker.request_stop();
    }
    let deadline = Instant::now() + WAIT;
    for worker in &mut workers {
        worker.end(&mut tally, deadline);
    }
    print(tally.table(args, start.elapsed()))?;
    let wanted = usize::from(args.processes) * usize::from(args.servers);
    if tally.failures.is_empty() && tally.started.len() == wanted && tally.distinct() == wanted {
        return Ok(());
    }
    Err(format!("not all of {wanted} servers worked").into())
}

/// A process that the parent has started, and the lines that it prints.
struct Worker {
    process: Child,
    lines: Receiver<String>,
}

impl Worker {
    fn start(args: &Args) -> Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        command.args(["--child", "--processes", "1", "--server", &args.kind.name()]);
        command.args(["--servers", &args.servers.to_string()]);
        command.args(["--ports", &args.ports.to_string()]);
        // In its own process group, Ctrl-C does not kill the child: it notices that
        // the parent is gone, and stops its servers.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        #[cfg(windows)]
        {
            const CREATE_NEW_PROCESS_GROUP: u32 = 0x200;
            std::os::windows::process::CommandExt::creation_flags(
                &mut command,
                CREATE_NEW_PROCESS_GROUP,
            );
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let process = command.spawn();
        let mut process = process.map_err(|error| format!("cannot run {command:?}: {error}"))?;
        let stdout = process.stdout.take();
        let (sender, lines) = mpsc::channel();
        let worker = Self { process, lines };
        // In a thread, because reading from a pipe has no timeout.
        spawn(move || {
            let lines = stdout.map(|out| BufReader::new(out).lines());
            for line in lines.into_iter().flatten().map_while(io::Result::ok) {
                let _ = sender.send(line);
            }
        })?;
        Ok(worker)
    }

    /// Collects the reports of the process until it is ready or has ended.
    fn report(&self, tally: &mut Tally, deadline: Instant) {
        while let Ok(line) = self.lines.recv_timeout(left(deadline)) {
            match started(&line) {
                Some(server) => tally.started.push(server),
                None if line == "ready" => break,
                None => tally.fail(line),
            }
        }
    }

    fn request_stop(&mut self) {
        drop(self.process.stdin.take());
    }

    /// Collects the remaining reports of the process, and checks its exit status.
    fn end(&mut self, tally: &mut Tally, deadline: Instant) {
        self.report(tally, deadline);
        let outcome = match exit_status(&mut self.process, deadline) {
            Ok(Some(status)) if status.success() => return,
            Ok(Some(status)) => status.to_string(),
            Ok(None) => {
                let _ = self.process.kill();
                "killed after the time limit".to_owned()
            }
            Err(error) => error.to_string(),
        };
        tally.fail(format!("end of process {}: {outcome}", self.process.id()));
    }
}

/// The process gets time to stop its servers before it is killed.
impl Drop for Worker {
    fn drop(&mut self) {
        self.request_stop();
        let status = exit_status(&mut self.process, Instant::now() + WAIT);
        if !matches!(status, Ok(Some(_))) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// Returns the port and the token, if the line reports a server that has started.
fn started(line: &str) -> Option<(u16, String)> {
    let (port, token) = line.strip_prefix("started ")?.split_once(' ')?;
    Some((port.parse().ok()?, token.to_owned()))
}

/// The reports of the processes and the results of the parent.
#[derive(Default)]
struct Tally {
    started: Vec<(u16, String)>,
    failures: Vec<String>,
}

impl Tally {
    fn fail(&mut self, reason: String) {
        complain(&reason);
        self.failures.push(reason);
    }

    fn ask_all(&mut self, kind: Kind, deadline: Instant) {
        let ask = |(port, token): &(u16, String)| ask(kind, *port, token, deadline).err();
        let failures: Vec<io::Error> = self.started.iter().filter_map(ask).collect();
        for failure in failures {
            self.fail(failure.to_string());
        }
    }

    fn distinct(&self) -> usize {
        let ports: HashSet<u16> = self.started.iter().map(|&(port, _)| port).collect();
        ports.len()
    }

    fn table(&self, args: &Args, time: Duration) -> String {
        let count = |what| {
            let failures = self.failures.iter();
            failures.filter(|text| text.starts_with(what)).count()
        };
        let (binds, answers) = (count(BIND_FAILURE), count(WRONG_ANSWER));
        let others = self.failures.len() - binds - answers;
        let ports = &args.ports;
        let rows = [
            ("server", args.kind.name()),
            ("processes", args.processes.to_string()),
            ("ports", format!("{ports} ({} ports)", ports.len())),
            ("servers started", self.started.len().to_string()),
            ("distinct ports", self.distinct().to_string()),
            ("bind failures", binds.to_string()),
            ("wrong answers", answers.to_string()),
            ("other failures", others.to_string()),
            ("time", format!("{:.2} s", time.as_secs_f64())),
        ];
        let line = |(name, value)| format!("{name:<16} {value}\n");
        rows.map(line).concat()
    }
}
