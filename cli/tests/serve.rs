//! `portlock serve`: the protocol, the guarantees of its grants, and portpicker itself as client and
//! as server. Uses Unix sockets and signals. For Windows see `windows.rs`.

#![cfg(unix)]

use std::{
    collections::HashSet,
    env,
    ffi::OsString,
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener},
    os::{
        fd::OwnedFd,
        unix::{
            fs::MetadataExt,
            net::{self as unix_net, UnixDatagram, UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process::{self, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use command_fds::{CommandFdExt, FdMapping};
use portlock::{
    ErrorKind, FreePort, LockDir, PortSet, Protocol, compat::portpicker::get_port_from_port_server,
};
use portlock_testkit::{
    FAILED, LONG, NOBODY, Parent, Peer, Ports, Process, am_root, as_user, command, is_installed,
    leave_in_time_wait, lines, lock_dir, open_copy_of, run_child, stress, text, until,
};
#[cfg(target_os = "linux")]
use portlock_testkit::{is_permitted, unshare};
use rustix::process::{Resource, Signal, getrlimit, setrlimit};

// ---------------------------------------------------------------------------
// Leases.

/// Returns the kind of error with which the library refuses to lease the port, if it does.
fn lease_error(dir: &Path, port: u16) -> Option<ErrorKind> {
    let builder = FreePort::builder().ports(port..=port).lock_dir(dir);
    let leased = builder.protocol(Protocol::TcpAndUdp).try_acquire();
    leased.err().map(|error| error.kind())
}

/// Returns the process that a port is leased to.
fn owner(dir: &Path, port: u16) -> u32 {
    let lease = LockDir::open(dir).expect("trusted").entry(port);
    let lease = lease.expect("readable").expect("leased");
    lease.owner.expect("a record").pid()
}

/// Asserts that each of these ports can soon be leased again.
fn assert_all_come_back(dir: &Path, ports: &[u16]) {
    for &port in ports {
        until("the port comes back", || {
            lease_error(dir, port).is_none().then_some(())
        });
    }
}

fn all_distinct(ports: &[u16]) -> bool {
    ports.iter().collect::<HashSet<_>>().len() == ports.len()
}

// ---------------------------------------------------------------------------
// Processes.

/// Returns an idle process for which ports can be requested.
fn client() -> Process {
    let mut command = Command::new("sleep");
    command.arg("1000");
    Process::start(command)
}

/// Returns the pid of a process that has ended. The system reuses it only after all other pids.
fn dead_pid() -> u32 {
    let mut client = client();
    client.kill();
    client.id()
}

/// A process that writes its log to standard error.
struct Logging {
    process: Process,
    log: Receiver<String>,
}

impl Logging {
    fn start(mut command: Command) -> Self {
        command.stderr(Stdio::piped());
        let mut process = Process::start(command);
        let log = lines(process.0.stderr.take().expect("piped"));
        Self { process, log }
    }

    /// Returns the log up to and including the first line that contains `part`.
    #[track_caller]
    fn logged(&self, part: &str) -> Vec<String> {
        let mut log = Vec::new();
        loop {
            match self.log.recv_timeout(LONG) {
                Ok(line) => log.push(line),
                Err(error) => panic!("no {part:?} in the log: {error}: {log:#?}"),
            }
            if log.last().is_some_and(|line| line.contains(part)) {
                return log;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits until the process ends, and returns the rest of the log.
    #[track_caller]
    fn end(mut self) -> (ExitStatus, Vec<String>) {
        let mut log = Vec::new();
        loop {
            match self.log.recv_timeout(LONG) {
                Ok(line) => log.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it does not end: {log:#?}"),
            }
        }
        (self.process.wait(), log)
    }
}

/// Returns `portlock serve` with these arguments.
fn serve(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portlock"));
    command.arg("serve").args(args).env("PORTLOCK_DIR", dir);
    command
}

/// Returns an address that all users of this machine can reach: an abstract one or, on systems without
/// abstract addresses, a path.
fn own_address(name: &str) -> String {
    let start = if cfg!(target_os = "linux") {
        "@"
    } else {
        "/tmp/"
    };
    format!("{start}portlock-test-{}-{name}", process::id())
}

/// A listening server.
struct Server {
    logging: Logging,
    address: String,
}

impl Server {
    fn start(dir: &Path, address: &str, ports: &Ports) -> Self {
        let ports = ports.text();
        let command = serve(dir, &["--address", address, "--ports", &ports]);
        Self::start_command(command, address)
    }

    fn start_command(command: Command, address: &str) -> Self {
        let logging = Logging::start(command);
        let log = logging.logged("Serving on");
        let line = log.last().expect("that line");
        assert!(line.ends_with(&format!("Serving on {address}")), "{line}");
        let address = address.to_owned();
        Self { logging, address }
    }

    /// Starts a server with --quiet, so that the log does not mention the start.
    fn start_quiet(dir: &Path, address: &str, ports: &Ports) -> Self {
        let ports = ports.text();
        let command = serve(dir, &["--address", address, "--ports", &ports, "--quiet"]);
        let logging = Logging::start(command);
        until("it accepts connections", || connect(address).ok());
        let address = address.to_owned();
        Self { logging, address }
    }

    fn connect(&self) -> UnixStream {
        connect(&self.address).expect("the server listens")
    }

    /// Sends a request in one write, and returns the answer.
    fn answer(&self, request: impl AsRef<[u8]>) -> String {
        let mut connection = self.connect();
        // The server may close the connection before it has read everything.
        let _ = connection.write_all(request.as_ref());
        answer(connection).expect("it closes the connection")
    }

    fn ask(&self, pid: u32) -> Option<u16> {
        port(&self.answer(format!("{pid}\n")))
    }

    /// Sends SIGKILL, so that the server cannot clean up.
    fn kill(mut self) {
        self.logging.process.kill();
    }

    /// Sends SIGTERM, and waits until the server has ended.
    #[track_caller]
    fn stop(self) -> Vec<String> {
        self.logging.signal(Signal::TERM);
        let (status, log) = self.logging.end();
        assert_eq!(status.code(), Some(0), "{status}: {log:#?}");
        log
    }
}

fn connect(address: &str) -> io::Result<UnixStream> {
    let address = match address.strip_prefix('@') {
        #[cfg(target_os = "linux")]
        Some(name) => {
            <unix_net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name)?
        }
        _ => unix_net::SocketAddr::from_pathname(address)?,
    };
    let connection = UnixStream::connect_addr(&address)?;
    connection.set_read_timeout(Some(LONG))?;
    Ok(connection)
}

/// Returns everything that the server sends until it closes the connection.
fn answer(mut connection: UnixStream) -> io::Result<String> {
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Returns the port in an answer, which is a number and a newline, or empty.
#[track_caller]
fn port(answer: &str) -> Option<u16> {
    if answer.is_empty() {
        return None;
    }
    let number = answer.strip_suffix('\n').expect("a newline at the end");
    let port: u16 = number.parse().expect("a port");
    assert_eq!(number, port.to_string());
    Some(port)
}

// ---------------------------------------------------------------------------
// Children.

#[test]
fn child() {
    run_child(&[("ask", ask), ("ask-until", ask_until), ("lease", lease)]);
}

/// Requests ports for the pids in its input, until that ends. Arguments: address.
fn ask(parent: &Parent) {
    let address: String = parent.argument(0);
    loop {
        let connection = connect(&address).expect("the server listens");
        ask_once(parent, connection);
    }
}

/// Does the same with a server that may still be starting.
fn ask_until(parent: &Parent) {
    let address: String = parent.argument(0);
    loop {
        let connection = until("the server listens", || connect(&address).ok());
        ask_once(parent, connection);
    }
}

fn ask_once(parent: &Parent, mut connection: UnixStream) {
    let _ = connection.write_all(format!("{}\n", parent.hear()).as_bytes());
    let answer = answer(connection).expect("it closes the connection");
    parent.say(port(&answer).unwrap_or(0));
}

/// Arguments: lock directory, ports, number of leases.
fn lease(parent: &Parent) {
    let (dir, ports): (PathBuf, PortSet) = (parent.argument(0), parent.argument(1));
    let builder = FreePort::builder().ports(ports).lock_dir(dir);
    let builder = builder.protocol(Protocol::TcpAndUdp);
    parent.say("ready");
    parent.hear();
    let leases: Vec<FreePort> = (0..parent.argument(2))
        .map(|_| builder.acquire().expect("there are enough"))
        .collect();
    for lease in &leases {
        parent.say(lease.port());
    }
    // Holds them until the parent closes the pipe.
    parent.hear();
}

// ---------------------------------------------------------------------------
// Requests.

#[test]
fn an_invalid_request_gets_no_answer() {
    let (dir, ports) = (lock_dir(), Ports::new(4));
    let server = Server::start(dir.path(), &own_address("malformed"), &ports);
    let requests: [&[u8]; 12] = [
        b"\n",
        b" \r\n",
        b"99Z\n",
        b"99 8\n",
        b"0x63\n",
        b"-\n",
        b"\xff\xfe\n",
        b"\0\n",
        b"12345678901234567890123456789012345\n",
        b"12345678901234567890123456789012345",
        b"1\n2\n",
        &[b'7'; 4096],
    ];
    for request in requests {
        let text = String::from_utf8_lossy(request);
        assert_eq!(server.answer(request), "", "{text:?}");
    }
    let no_process = [
        -1_i64,
        -812,
        0,
        1,
        i64::from(dead_pid()),
        i64::from(u32::MAX),
    ];
    for pid in no_process {
        assert_eq!(server.answer(format!("{pid}\n")), "", "{pid}");
    }
    // Larger than any pid, with the maximum number of digits in a request.
    assert_eq!(server.answer("99999999999999999999"), "");

    let connection = server.connect();
    connection
        .shutdown(std::net::Shutdown::Write)
        .expect("connected");
    assert_eq!(answer(connection).expect("closed"), "");
    // The client disconnects without a request, so there is nothing to answer.
    drop(server.connect());

    for _ in 0..4 {
        let port = server.ask(process::id()).expect("all are still there");
        assert!(ports.contains(port));
    }
    let log = server.stop();
    // 12 invalid requests, and two connections without a request.
    assert_statistics(&log, [14, 7, 4, 1, 4]);
}

/// A request of more than 20 bytes is invalid. The client gets the end of the stream and no error, and
/// may continue to write for a moment.
#[test]
fn a_request_that_is_too_long_ends_with_the_end_of_the_stream() {
    let (dir, ports) = (lock_dir(), Ports::new(2));
    let server = Server::start(dir.path(), &own_address("long"), &ports);
    for len in [21, 22, 100, 4096] {
        let mut connection = server.connect();
        connection.write_all(&vec![b'7'; len]).expect("connected");
        let mut rest = [0; 1];
        assert_eq!(connection.read(&mut rest).expect("the end"), 0, "{len}");
        connection.write_all(b"812\n").expect("it still reads");
        assert_eq!(connection.read(&mut rest).expect("the end"), 0, "{len}");
    }
    // Late data after a request without a newline does not break the answer.
    let mut connection = server.connect();
    write!(connection, "{}", process::id()).expect("connected");
    let mut reader = BufReader::new(&connection);
    let mut answer = String::new();
    reader.read_line(&mut answer).expect("an answer");
    assert!(port(&answer).is_some());
    (&connection).write_all(b"\n").expect("it still reads");
    assert_eq!(reader.read_line(&mut answer).expect("the end"), 0);

    // A client that never stops is cut off.
    let mut connection = server.connect();
    let deadline = Instant::now() + LONG;
    while connection.write_all(&[b'7'; 4096]).is_ok() {
        assert!(Instant::now() < deadline, "it is still read");
    }
    assert!(server.ask(process::id()).is_some());
}

#[test]
fn the_format_of_a_request_does_not_matter() {
    let (dir, ports) = (lock_dir(), Ports::new(16));
    let server = Server::start(dir.path(), &own_address("writing"), &ports);
    let own = process::id();
    let mut granted = Vec::new();
    let mut grant = |answer: &str| {
        let port = port(answer).expect("a port");
        assert!(ports.contains(port));
        assert_eq!(owner(dir.path(), port), own);
        granted.push(port);
    };
    for request in [
        format!("{own}\n"),
        format!("{own}\r\n"),
        format!("  {own} \n"),
        format!("\t{own}\n"),
        format!("0{own}\n"),
    ] {
        grant(&server.answer(&request));
    }

    let mut connection = server.connect();
    write!(connection, "{own}").expect("connected");
    connection
        .shutdown(std::net::Shutdown::Write)
        .expect("connected");
    grant(&answer(connection).expect("an answer"));

    // The client may still be writing, so the server waits a moment.
    let mut connection = server.connect();
    write!(connection, "{own}").expect("connected");
    let start = Instant::now();
    grant(&answer(connection).expect("an answer"));
    // The limit only has to be well below the timeout for a silent client.
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    assert!(all_distinct(&granted));
}

#[test]
fn a_request_in_pieces_is_one_request() {
    let (dir, ports) = (lock_dir(), Ports::new(16));
    let server = Server::start(dir.path(), &own_address("pieces"), &ports);
    let own = process::id();
    let request = format!("{own}\n");
    let (first, second) = request.split_at(1);
    // On a busy machine the pause may become as long as the one that ends a request. Such an attempt is
    // inconclusive.
    let answer = until("two writes shortly after each other", || {
        let mut connection = server.connect();
        let start = Instant::now();
        connection.write_all(first.as_bytes()).expect("connected");
        thread::sleep(Duration::from_millis(50));
        let _ = connection.write_all(second.as_bytes());
        (start.elapsed() < Duration::from_millis(150))
            .then(|| answer(connection).expect("an answer"))
    });
    let port = port(&answer).expect("a port");
    assert_eq!(owner(dir.path(), port), own, "and not for another process");
}

#[test]
fn a_port_is_leased_until_its_client_has_ended() {
    let (dir, ports) = (lock_dir(), Ports::new(2));
    let server = Server::start(dir.path(), &own_address("ended"), &ports);
    let mut client = client();
    let granted = [(); 2].map(|()| server.ask(client.id()).expect("a port"));
    assert_ne!(granted[0], granted[1]);
    for port in granted {
        assert!(ports.contains(port));
        assert_eq!(owner(dir.path(), port), client.id());
        assert_eq!(lease_error(dir.path(), port), Some(ErrorKind::Exhausted));
    }
    assert_eq!(server.ask(process::id()), None, "both are in use");

    client.kill();
    let again = [(); 2].map(|()| until("a port", || server.ask(process::id())));
    assert!(again.iter().all(|port| granted.contains(port)));
    assert_ne!(again[0], again[1]);
    assert_eq!(server.ask(process::id()), None, "both are in use again");
}

#[test]
fn a_port_that_is_bound_or_leased_by_others_is_not_granted() {
    let (dir, ports) = (lock_dir(), Ports::new(4));
    let [bound, bound_udp, leased, free] = ports.numbers[..] else {
        unreachable!("four ports")
    };
    let listener = TcpListener::bind(("127.0.0.1", bound)).expect("free");
    let socket = std::net::UdpSocket::bind(("127.0.0.1", bound_udp)).expect("free");
    let builder = FreePort::builder().ports(leased..=leased);
    let lease = builder.lock_dir(dir.path()).try_acquire().expect("free");
    let server = Server::start(dir.path(), &own_address("others"), &ports);
    assert_eq!(server.ask(process::id()), Some(free));
    assert_eq!(server.ask(process::id()), None);
    drop((listener, socket, lease));
    let mut rest = [(); 3].map(|()| until("a port", || server.ask(process::id())));
    let mut expected = [bound, bound_udp, leased];
    rest.sort_unstable();
    expected.sort_unstable();
    assert_eq!(rest, expected);
}

/// When the server checks, a client's first port may already be leased by another one. The server must
/// still find that the client's other ports are free.
#[test]
fn all_ports_of_an_ended_client_are_returned_even_if_one_is_leased_again() {
    let (dir, ports) = (lock_dir(), Ports::new(3));
    let server = Server::start(dir.path(), &own_address("partly"), &ports);
    let mut client = client();
    let granted = [(); 3].map(|()| server.ask(client.id()).expect("a port"));
    client.kill();
    let builder = FreePort::builder().ports(granted[0]..=granted[0]);
    let lease = builder.lock_dir(dir.path()).acquire().expect("free");
    lease.delegate_to(process::id()).expect("it lives");
    let again = [(); 2].map(|()| until("a port", || server.ask(process::id())));
    assert!(again.iter().all(|port| granted[1..].contains(port)));
    assert_eq!(server.ask(process::id()), None);
}

// ---------------------------------------------------------------------------
// Statistics.

/// Returns the statistics in the log, in the order that portpicker's server uses.
#[track_caller]
fn assert_statistics(log: &[String], expected: [usize; 5]) {
    let names = [
        "client-request-errors",
        "denied-allocations",
        "num-ports-managed",
        "num-ports-checked-for-last-request",
        "total-allocations",
    ];
    let found = names.map(|name| {
        let value = log.iter().find_map(|line| {
            let (_, value) = line.split_once(&format!(" {name} "))?;
            value.parse::<usize>().ok()
        });
        value.unwrap_or_else(|| panic!("no {name}: {log:#?}"))
    });
    assert_eq!(found, expected, "{names:?}");
}

#[test]
fn statistics_are_printed_on_demand_and_at_the_end() {
    for (name, signal) in [("term", Signal::TERM), ("int", Signal::INT)] {
        let (dir, ports) = (lock_dir(), Ports::new(2));
        let server = Server::start(dir.path(), &own_address(name), &ports);
        let dump = || {
            server.logging.signal(Signal::USR1);
            server.logging.logged("total-allocations")
        };
        assert_statistics(&dump(), [0, 0, 2, 0, 0]);
        assert!(server.ask(process::id()).is_some());
        assert_statistics(&dump(), [0, 0, 2, 1, 1]);
        assert_eq!(server.answer("99Z\n"), "");
        assert_eq!(server.answer("\n"), "");
        assert_eq!(server.ask(0), None);
        assert_statistics(&dump(), [2, 1, 2, 1, 1]);
        assert!(server.ask(process::id()).is_some());
        assert_eq!(server.ask(process::id()), None);
        server.logging.signal(signal);
        let (status, log) = server.logging.end();
        assert_eq!(status.code(), Some(0), "{status}: {log:#?}");
        assert_statistics(&log, [2, 2, 2, 0, 2]);
    }
}

// ---------------------------------------------------------------------------
// Addresses and arguments.

/// Returns the message of a server that fails to start.
#[track_caller]
fn refusal(dir: &Path, args: &[&str]) -> String {
    let (status, log) = Logging::start(serve(dir, args)).end();
    assert_eq!(status.code(), Some(FAILED), "{args:?}: {log:#?}");
    log.join("\n")
}

#[test]
fn a_running_server_is_left_alone() {
    let (dir, ports) = (lock_dir(), Ports::new(4));
    let path = dir.path().join("socket");
    for address in [&own_address("live")[..], text(&path)] {
        let server = Server::start(dir.path(), address, &ports);
        let args = ["--address", address, "--ports", &ports.text()];
        let message = refusal(dir.path(), &args).to_lowercase();
        assert!(message.contains(&address.to_lowercase()), "{message}");
        // As glibc and musl put it.
        let is_clear = ["already listening", "already in use", "address in use"];
        assert!(
            is_clear.iter().any(|part| message.contains(part)),
            "{message}"
        );
        assert!(server.ask(process::id()).is_some(), "it still listens");
        server.stop();
    }
    assert!(!path.exists(), "its own file is removed at the end");
}

#[test]
fn only_a_dead_socket_is_replaced() {
    let (dir, ports) = (lock_dir(), Ports::new(4));
    let path = dir.path().join("socket");
    // Closing the listener leaves the file, as killing a server does.
    drop(UnixListener::bind(&path).expect("our own directory"));
    let server = Server::start(dir.path(), text(&path), &ports);
    assert!(server.ask(process::id()).is_some());
    server.kill();
    assert!(path.exists(), "killed");
    let server = Server::start(dir.path(), text(&path), &ports);
    assert!(server.ask(process::id()).is_some());
    server.stop();
    assert!(!path.exists());

    let args = ["--address", text(&path), "--ports", &ports.text()];
    fs::write(&path, "precious").expect("our own directory");
    let message = refusal(dir.path(), &args);
    assert!(message.contains(text(&path)), "{message}");
    assert!(message.contains("not a socket"), "{message}");
    assert_eq!(fs::read(&path).expect("still there"), b"precious");

    // The target of a link is not replaced either.
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).expect("our own directory");
    refusal(dir.path(), &["--address", text(&link)]);
    assert_eq!(fs::read(&link).expect("still there"), b"precious");

    let missing = dir.path().join("missing").join("socket");
    let message = refusal(dir.path(), &["--address", text(&missing)]);
    assert!(message.contains("No such file"), "{message}");
    let long = format!("{}{}", text(&path), "x".repeat(200));
    refusal(dir.path(), &["--address", &long]);
}

#[test]
fn a_socket_that_another_process_has_created_since_is_not_removed() {
    let (dir, ports) = (lock_dir(), Ports::new(1));
    let path = dir.path().join("socket");
    let server = Server::start(dir.path(), text(&path), &ports);
    fs::remove_file(&path).expect("our own directory");
    let _theirs = UnixListener::bind(&path).expect("our own directory");
    server.stop();
    UnixStream::connect(&path).expect("theirs is still there");

    fs::remove_file(&path).expect("our own directory");
    let server = Server::start(dir.path(), text(&path), &ports);
    fs::remove_file(&path).expect("our own directory");
    server.stop();
    assert!(!path.exists());
}

#[test]
fn the_flags_of_portpickers_server_work() {
    let (dir, ports) = (lock_dir(), Ports::new(4));
    let (first, last) = (ports.numbers[0], ports.numbers[3]);
    let pool = format!("{first}-{},{last}-{last}", first + 1);
    for flag in ["--portserver_address", "--portserver_unix_socket_address"] {
        let address = own_address(flag);
        let lock_dir = dir.path().join(flag);
        fs::create_dir(&lock_dir).expect("our own directory");
        let flag = format!("{flag}={address}");
        let args = [
            &flag[..],
            "--portserver_static_pool",
            &pool,
            "--verbose",
            "--debug",
        ];
        let server = Server::start_command(serve(&lock_dir, &args), &address);
        let mut granted: Vec<u16> = (0..3)
            .map(|_| server.ask(process::id()).expect("a port"))
            .collect();
        granted.sort_unstable();
        assert_eq!(granted, [first, first + 1, last]);
        assert_eq!(server.ask(process::id()), None);
        assert_statistics(&server.stop(), [0, 1, 3, 0, 3]);
    }
}

#[test]
fn an_invalid_pool_is_refused() {
    let dir = lock_dir();
    let address = own_address("refused");
    let refuse = |flag, pool| {
        let message = refusal(dir.path(), &["--address", &address, flag, pool]);
        assert!(message.contains(flag), "{message}");
        assert!(!message.contains("panic"), "{message}");
    };
    for pool in ["", "abc", "15000-", "16000-15000", "0-70000"] {
        refuse("--ports", pool);
        refuse("--portserver_static_pool", pool);
    }
    refuse("--ports", "15000-15010,x");
    let args = [
        "--ports",
        "15000",
        "--portserver_static_pool",
        "15000-15000",
    ];
    let message = refusal(dir.path(), &args);
    assert!(message.contains("cannot be used with"), "{message}");
}

/// As in portpicker's server. `static_pool.rs` tests the details.
#[test]
fn unparsable_parts_of_a_static_pool_are_ignored() {
    let (dir, ports) = (lock_dir(), Ports::new(1));
    let port = ports.numbers[0];
    let address = own_address("unparsable");
    let pool = format!("not,{port}-{port},0-{port},{port}");
    let args = ["--address", &address, "--portserver_static_pool", &pool];
    let logging = Logging::start(serve(dir.path(), &args));
    let log = logging.logged("Serving on");
    for part in [
        "unparsable port range \"not\"".to_owned(),
        format!("out of bounds port range \"0-{port}\""),
        format!("unparsable port range \"{port}\""),
    ] {
        let is_logged = log.iter().any(|line| line.contains(&part));
        assert!(is_logged, "{part}: {log:#?}");
    }
    let server = Server { logging, address };
    assert_eq!(server.ask(process::id()), Some(port));
    assert_eq!(server.ask(process::id()), None);
}

// ---------------------------------------------------------------------------
// Guarantees.

#[test]
fn a_restarted_server_honors_earlier_grants() {
    let (dir, ports) = (lock_dir(), Ports::new(8));
    let address = own_address("killed");
    let start = || Server::start(dir.path(), &address, &ports);
    let server = start();
    let mut clients: Vec<(Process, u16)> = Vec::new();
    for _ in 0..6 {
        let client = client();
        let port = server.ask(client.id()).expect("a port");
        clients.push((client, port));
    }
    server.kill();

    let server = start();
    let rest = [(); 2].map(|()| server.ask(process::id()).expect("two are left"));
    let mut all: Vec<u16> = clients.iter().map(|(_, port)| *port).collect();
    all.extend(rest);
    assert!(all_distinct(&all), "{all:?}");
    assert_eq!(server.ask(process::id()), None, "all belong to the living");

    // It does not keep more ports than it has granted.
    let (mut client, port) = clients.swap_remove(0);
    client.kill();
    assert_eq!(until("a port", || server.ask(process::id())), port);
    server.kill();
    assert_eq!(start().ask(process::id()), None);
}

#[test]
fn a_server_that_is_killed_during_grants_honors_them_after_a_restart() {
    let (dir, ports) = (lock_dir(), Ports::new(256));
    let address = own_address("interrupted");
    let mut client = client();
    let pid = client.id();
    let mut granted = Vec::new();
    for _ in 0..10 {
        let server = Server::start(dir.path(), &address, &ports);
        let (sender, answers) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                let sender = sender;
                while let Ok(mut connection) = connect(&address) {
                    let _ = connection.write_all(format!("{pid}\n").as_bytes());
                    match answer(connection).ok().as_deref().and_then(port) {
                        Some(port) => {
                            let _ = sender.send(port);
                        }
                        None => break,
                    }
                }
            });
            let first = answers.recv_timeout(LONG).expect("not all are granted yet");
            granted.push(first);
            server.kill();
            granted.extend(answers);
        });
        assert!(all_distinct(&granted), "{granted:?}");
    }
    assert!(granted.iter().all(|&port| owner(dir.path(), port) == pid));
    client.kill();
    assert_all_come_back(dir.path(), &ports.numbers);
}

#[test]
fn two_servers_never_grant_the_same_port() {
    const EACH: usize = 100;
    let (dir, ports) = (lock_dir(), Ports::new(2 * EACH));
    let mut clients = [client(), client()];
    let servers =
        ["one", "other"].map(|name| Server::start(dir.path(), &own_address(name), &ports));
    let granted: Vec<u16> = thread::scope(|scope| {
        let ask = |(server, client): (&Server, &Process)| {
            let (address, pid) = (server.address.clone(), client.id());
            scope.spawn(move || -> Vec<u16> {
                let ask = || get_port_from_port_server(&address, pid);
                (0..EACH).map(|_| until("a port", || ask().ok())).collect()
            })
        };
        let threads: Vec<_> = servers.iter().zip(&clients).map(ask).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.flat_map(|ports| ports.expect("no panic")).collect()
    });
    assert_eq!(granted.len(), 2 * EACH);
    assert!(all_distinct(&granted), "{granted:?}");
    for server in &servers {
        assert_eq!(server.ask(process::id()), None, "none is left");
    }
    clients[0].kill();
    // Each server may grant ports that the other one had granted before.
    let again: Vec<u16> = (0..EACH)
        .map(|_| until("a port", || servers[1].ask(process::id())))
        .collect();
    let mut expected = granted[..EACH].to_vec();
    let mut again = again;
    expected.sort_unstable();
    again.sort_unstable();
    assert_eq!(again, expected);
}

// ---------------------------------------------------------------------------
// TIME_WAIT.

#[test]
fn ports_in_time_wait_are_granted_when_no_other_is_left() {
    // macOS does not show which sockets are in TIME_WAIT.
    let by_default = if cfg!(target_os = "macos") { 1 } else { 4 };
    for (name, flag, strictly_first, all) in [
        ("default", None, true, by_default),
        ("no", Some("--reuse-address=no"), true, 1),
        ("yes", Some("--reuse-address"), false, 4),
    ] {
        let (dir, ports) = (lock_dir(), Ports::new(4));
        let free = ports.numbers[2];
        for &port in ports.numbers.iter().filter(|&&port| port != free) {
            leave_in_time_wait(port);
        }
        let address = own_address(&format!("time-wait-{name}"));
        let text = ports.text();
        let mut args = vec!["--address", &address, "--ports", &text];
        args.extend(flag);
        let server = Server::start_command(serve(dir.path(), &args), &address);
        let mut granted: Vec<u16> = (0..all)
            .map(|_| server.ask(process::id()).expect("one is left"))
            .collect();
        assert_eq!(server.ask(process::id()), None, "{name}");
        if strictly_first {
            assert_eq!(granted[0], free, "{name}");
        }
        granted.sort_unstable();
        if all == 4 {
            assert_eq!(granted, ports.numbers, "{name}");
        }
    }
}

/// A returned port is strictly free and is granted first, however many ports are in TIME_WAIT. On macOS
/// those are granted only on request, and then with equal priority.
#[cfg(not(target_os = "macos"))]
#[test]
fn a_returned_port_is_granted_before_those_in_time_wait() {
    let (dir, ports) = (lock_dir(), Ports::new(8));
    let server = Server::start(dir.path(), &own_address("came-back"), &ports);
    let mut first = client();
    let back = server.ask(first.id()).expect("all are free");
    let others = ports.numbers.iter().filter(|&&port| port != back);
    others.for_each(|&port| leave_in_time_wait(port));
    let lingering = server.ask(process::id()).expect("in TIME_WAIT");
    assert_ne!(lingering, back, "that one is still leased");
    first.kill();
    assert_eq!(server.ask(process::id()), Some(back));
}

#[test]
fn successive_clients_get_more_grants_than_the_pool_has_ports() {
    const CLIENTS: usize = 60;
    let (dir, ports) = (lock_dir(), Ports::new(20));
    let (address, text) = (own_address("in-turn"), ports.text());
    let mut args = vec!["--address", &address, "--ports", &text];
    // By default only if the system shows which sockets are in TIME_WAIT.
    args.extend(cfg!(target_os = "macos").then_some("--reuse-address"));
    let server = Server::start_command(serve(dir.path(), &args), &address);
    let start = Instant::now();
    for i in 0..CLIENTS {
        let mut client = client();
        let port = server.ask(client.id());
        let port = port.unwrap_or_else(|| panic!("client {i} of {CLIENTS} is refused"));
        leave_in_time_wait(port);
        client.kill();
    }
    eprintln!(
        "{CLIENTS} successive clients, 20 ports: {:?}",
        start.elapsed()
    );
    let log = server.stop();
    let total = format!(" total-allocations {CLIENTS}");
    assert!(log.iter().any(|line| line.ends_with(&total)), "{log:#?}");
}

/// A grant or a refusal is one search over the pool: the library pauses once for ports in TIME_WAIT,
/// not once per port.
#[test]
fn many_ports_in_time_wait_take_hardly_more_time_than_one() {
    const MANY: usize = 299;
    let (dir, one, many) = (lock_dir(), Ports::new(2), Ports::new(MANY + 1));
    let ask = |name: &str, ports: &Ports| {
        for &port in &ports.numbers[1..] {
            leave_in_time_wait(port);
        }
        let address = own_address(name);
        let text = ports.text();
        let args = [
            "--address",
            &address,
            "--ports",
            &text,
            "--reuse-address=no",
        ];
        let server = Server::start_command(serve(dir.path(), &args), &address);
        let measure = || {
            let start = Instant::now();
            (server.ask(process::id()), start.elapsed())
        };
        let (port, grant) = measure();
        assert_eq!(port, Some(ports.numbers[0]));
        let (port, refusal) = measure();
        assert_eq!(port, None);
        eprintln!(
            "{} in TIME_WAIT, one free: grant {grant:?}, refusal {refusal:?}",
            ports.numbers.len() - 1
        );
        (grant, refusal)
    };
    let (_, refusal) = ask("one-lingers", &one);
    let (grant_of_many, refusal_of_many) = ask("many-linger", &many);
    // With a search for each port, the time of a refusal would be proportional to the number of ports,
    // and that of a grant to about half of it. The bound is generous because the machine may be busy.
    let most = refusal * u32::try_from(MANY / 4).expect("few");
    assert!(grant_of_many < most, "{grant_of_many:?}, {refusal:?}");
    assert!(refusal_of_many < most, "{refusal_of_many:?}, {refusal:?}");
}

// ---------------------------------------------------------------------------
// The log.

/// Returns the lines of a log that contain this part.
fn with<'a>(log: &'a [String], part: &str) -> Vec<&'a String> {
    log.iter().filter(|line| line.contains(part)).collect()
}

#[test]
fn a_warning_about_exhausted_ports_names_the_pid_and_is_not_repeated_for_each_client() {
    let (dir, ports) = (lock_dir(), Ports::new(2));
    let server = Server::start_quiet(dir.path(), &own_address("warning"), &ports);
    let client = client();
    for _ in 0..2 {
        assert!(server.ask(client.id()).is_some());
    }
    for _ in 0..50 {
        assert_eq!(server.ask(process::id()), None);
    }
    let log = server.stop();
    let pid = format!("No port for process {}: ", process::id());
    let warnings = with(&log, "All ports in use.");
    assert_eq!(warnings.len(), 1, "{log:#?}");
    for part in [" WARN ", &pid, "2 granted to 1 process, 0 taken by others"] {
        assert!(warnings[0].contains(part), "{part:?}: {log:#?}");
    }
}

#[test]
fn a_server_that_runs_out_of_descriptors_reports_it_once_and_recovers() {
    /// The server's limit on open files. Clients try to open more.
    const FILES: usize = 64;
    let (dir, ports) = (lock_dir(), Ports::new(2));
    let address = own_address("descriptors");
    let line = format!("ulimit -n {FILES} && exec \"$@\"");
    let mut command = Command::new("sh");
    let args = [
        "-c",
        &line,
        "sh",
        env!("CARGO_BIN_EXE_portlock"),
        "serve",
        "--quiet",
        "--address",
        &address,
        "--ports",
        &ports.text(),
    ];
    command.args(args).env("PORTLOCK_DIR", dir.path());
    let logging = Logging::start(command);
    until("it accepts connections", || connect(&address).ok());
    let silent: Vec<UnixStream> = (0..FILES + 8)
        .map(|_| connect(&address).expect("the queue is longer"))
        .collect();
    let mut log = logging.logged("cannot accept a connection");
    // Meanwhile the server retries every 20 ms.
    thread::sleep(Duration::from_millis(200));
    drop(silent);
    let server = Server { logging, address };
    assert!(server.ask(process::id()).is_some());
    log.extend(server.stop());
    let warnings = with(&log, "cannot accept a connection");
    assert_eq!(warnings.len(), 1, "{log:#?}");
    assert!(warnings[0].contains(" WARN "), "{log:#?}");
}

/// This happens if the program that collects the log has ended.
#[test]
fn a_server_without_a_reader_of_its_log_keeps_serving() {
    let (dir, ports) = (lock_dir(), Ports::new(2));
    let address = own_address("unread");
    let text = ports.text();
    let mut command = serve(dir.path(), &["--address", &address, "--ports", &text]);
    let (reader, writer) = io::pipe().expect("a pipe");
    command.stderr(writer);
    let mut server = Process::start(command);
    until("it accepts connections", || connect(&address).ok());
    drop(reader);
    let ask = |request: String| {
        let mut connection = connect(&address).expect("it listens");
        let _ = connection.write_all(request.as_bytes());
        port(&answer(connection).expect("it closes the connection"))
    };
    for _ in 0..3 {
        server.signal(Signal::USR1);
        assert_eq!(ask("99Z\n".to_owned()), None);
    }
    assert!(ask(format!("{}\n", process::id())).is_some());
    server.signal(Signal::TERM);
    let status = server.wait();
    assert_eq!(status.code(), Some(0), "{status}");
}

// ---------------------------------------------------------------------------
// Service managers.

#[test]
fn sighup_does_not_end_the_server() {
    let (dir, ports) = (lock_dir(), Ports::new(2));
    let path = dir.path().join("socket");
    let server = Server::start(dir.path(), text(&path), &ports);
    let identity = || fs::metadata(&path).expect("it listens").ino();
    let before = identity();
    let mut connection = server.connect();
    server.logging.signal(Signal::HUP);
    // The log shows when the signals were handled.
    server.logging.signal(Signal::USR1);
    server.logging.logged("total-allocations");
    writeln!(connection, "{}", process::id()).expect("still connected");
    let answer = answer(connection).expect("an answer");
    assert!(port(&answer).is_some());
    assert!(server.ask(process::id()).is_some());
    assert_eq!(identity(), before);
    server.stop();
}

/// Returns `portlock serve` with these sockets from a service manager, and these variables. A shell
/// assigns them, because only it knows its own pid.
fn activated(dir: &Path, sockets: Vec<OwnedFd>, variables: &str, args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    let line = format!("{variables} exec \"$@\"");
    let program = env!("CARGO_BIN_EXE_portlock");
    command.args(["-c", &line, "sh", program, "serve"]);
    command.args(args).env("PORTLOCK_DIR", dir);
    let mappings = sockets.into_iter().zip(3..);
    let mappings = mappings.map(|(parent_fd, child_fd)| FdMapping {
        parent_fd,
        child_fd,
    });
    command.fd_mappings(mappings.collect()).expect("distinct");
    command
}

#[test]
fn sockets_of_a_service_manager_are_served_and_not_removed() {
    let (dir, ports) = (lock_dir(), Ports::new(4));
    let paths = ["one", "other"].map(|name| dir.path().join(name));
    let listeners = paths
        .each_ref()
        .map(|path| UnixListener::bind(path).expect("our own directory"));
    let notify = UnixDatagram::bind(dir.path().join("notify")).expect("our own directory");
    notify.set_read_timeout(Some(LONG)).expect("not zero");
    let notified = || {
        let mut message = [0; 100];
        let len = notify.recv(&mut message).expect("a notification");
        String::from_utf8_lossy(&message[..len]).into_owned()
    };
    // Clients that connect before the server runs wait for it.
    let mut early = connect(text(&paths[1])).expect("it listens");
    writeln!(early, "{}", process::id()).expect("connected");

    let sockets = listeners.map(OwnedFd::from).into();
    let variables = "LISTEN_PID=$$ LISTEN_FDS=2";
    let text_of_ports = ports.text();
    let args = ["--address", "/nowhere/at/all", "--ports", &text_of_ports];
    let mut command = activated(dir.path(), sockets, variables, &args);
    command.env("NOTIFY_SOCKET", dir.path().join("notify"));
    let logging = Logging::start(command);
    let log = logging.logged("Serving on");
    let line = log.last().expect("that line");
    for path in &paths {
        assert!(line.contains(text(path)), "{line}");
    }
    assert_eq!(notified(), "READY=1\n");
    assert!(port(&answer(early).expect("an answer")).is_some());
    for path in paths.iter().chain(&paths[..1]) {
        let address = text(path).to_owned();
        let answer = get_port_from_port_server(&address, process::id());
        assert!(ports.contains(answer.expect("one is left")));
    }
    let server = Server {
        logging,
        address: text(&paths[0]).to_owned(),
    };
    server.stop();
    assert_eq!(notified(), "STOPPING=1\n");
    for path in &paths {
        assert!(path.exists(), "its maker removes it");
    }
}

#[test]
fn sockets_that_cannot_be_served_are_refused_with_a_message() {
    let (dir, ports) = (lock_dir(), Ports::new(1));
    let args = [
        "--ports",
        &ports.text(),
        "--address",
        &own_address("not-served"),
    ];
    let end = |command: Command| {
        let (status, log) = Logging::start(command).end();
        assert_eq!(status.code(), Some(FAILED), "{log:#?}");
        log.join("\n")
    };
    let one = "LISTEN_PID=$$ LISTEN_FDS=1";
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let message = end(activated(dir.path(), vec![tcp.into()], one, &args));
    assert!(
        message.contains("passed by the service manager"),
        "{message}"
    );
    assert!(message.contains("unix stream socket"), "{message}");

    let many = "LISTEN_PID=$$ LISTEN_FDS=2000000000";
    let message = end(activated(dir.path(), Vec::new(), many, &args));
    assert!(message.contains("LISTEN_FDS names more"), "{message}");

    // A connection, as for a socket unit with Accept=yes.
    let (mut ours, theirs) = UnixStream::pair().expect("a pair");
    writeln!(ours, "{}", process::id()).expect("connected");
    let message = end(activated(dir.path(), vec![theirs.into()], one, &args));
    assert!(
        message.contains("cannot accept connections on"),
        "{message}"
    );
}

/// Descendants of an activated process inherit its sockets.
#[test]
fn sockets_for_another_process_are_not_touched() {
    let (dir, ports) = (lock_dir(), Ports::new(1));
    let path = dir.path().join("theirs");
    let listener = UnixListener::bind(&path).expect("our own directory");
    let address = own_address("not-passed");
    let args = ["--address", &address, "--ports", &ports.text()];
    let variables = "LISTEN_PID=1 LISTEN_FDS=1";
    let command = activated(dir.path(), vec![listener.into()], variables, &args);
    let server = Server::start_command(command, &address);
    assert!(server.ask(process::id()).is_some());
}

#[test]
fn systemd_can_start_it_with_the_first_client() {
    if !is_installed("systemd-socket-activate") {
        return;
    }
    let (dir, ports) = (lock_dir(), Ports::new(2));
    let address = own_address("systemd");
    let mut command = Command::new("systemd-socket-activate");
    command
        .args(["--listen", &address, "--setenv", "PORTLOCK_DIR"])
        .args([env!("CARGO_BIN_EXE_portlock"), "serve"])
        .args(["--ports", &ports.text()])
        .env("PORTLOCK_DIR", dir.path());
    let logging = Logging::start(command);
    let first = until("it listens", || connect(&address).ok());
    let mut first = first;
    writeln!(first, "{}", process::id()).expect("connected");
    assert!(port(&answer(first).expect("an answer")).is_some());
    let server = Server { logging, address };
    assert!(server.ask(process::id()).is_some());
    let log = server.stop();
    let serving = with(&log, "passed by the service manager");
    assert_eq!(serving.len(), 1, "{log:#?}");
}

/// Returns the directory of the systemd units.
fn units() -> PathBuf {
    let cli = Path::new(env!("CARGO_MANIFEST_DIR"));
    cli.with_file_name("contrib").join("systemd")
}

#[test]
fn the_units_for_systemd_are_valid() {
    let units = units();
    if !is_installed("systemd-analyze") {
        return;
    }
    let dir = lock_dir();
    let names = ["portlock-serve.service", "portlock-serve.socket"];
    let copies = names.map(|name| {
        let unit = fs::read_to_string(units.join(name)).expect("a unit");
        // The program has to exist.
        let unit = unit.replace("/usr/bin/portlock", env!("CARGO_BIN_EXE_portlock"));
        let copy = dir.path().join(name);
        fs::write(&copy, unit).expect("our own directory");
        copy
    });
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no"]).args(&copies);
    let output = command.output().expect("it is installed");
    let complaints = String::from_utf8_lossy(&output.stderr);
    // Its exit status does not report ignored settings. Also, it reads units of this machine, which
    // are not ours.
    let ours = complaints
        .lines()
        .filter(|line| line.contains("portlock"))
        .collect::<Vec<_>>();
    assert!(ours.is_empty(), "{complaints}");
    assert!(output.status.success(), "{}: {complaints}", output.status);
}

#[test]
fn the_directory_for_all_users_is_created_correctly() {
    let units = units();
    if !is_installed("systemd-tmpfiles") {
        return;
    }
    if !am_root() {
        eprintln!("skipped: only root can create a directory for all users");
        return;
    }
    let root = lock_dir();
    let settings = root.path().join("etc/tmpfiles.d");
    fs::create_dir_all(&settings).expect("our own directory");
    let copy = settings.join("portlock.conf");
    fs::copy(units.join("portlock.tmpfiles.conf"), copy).expect("a copy");
    let mut command = Command::new("systemd-tmpfiles");
    command
        .args(["--create", "portlock.conf", "--root"])
        .arg(root.path());
    let output = command.output().expect("it is installed");
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {complaints}", output.status);
    assert_eq!(complaints, "");
    let made = root.path().join("run/portlock");
    let metadata = fs::metadata(&made).expect("it has been created");
    assert_eq!(metadata.mode() & 0o7777, 0o1777);
    LockDir::open(&made).expect("it is trusted");
}

// ---------------------------------------------------------------------------
// Other clients.

#[test]
fn silent_connections_do_not_delay_other_clients() {
    const SILENT: usize = 1000;
    /// Number of other descriptors, in this process and in the server.
    const OTHERS: usize = 500;
    let mut limit = getrlimit(Resource::Nofile);
    let needed = u64::try_from(SILENT + OTHERS).expect("not that many");
    if limit.maximum.is_some_and(|maximum| maximum < needed) {
        eprintln!("skipped: no process may open {needed} files here");
        return;
    }
    if limit.current.is_some_and(|current| current < needed) {
        limit.current = Some(needed);
        setrlimit(Resource::Nofile, limit).expect("within the hard limit");
    }
    let (dir, ports) = (lock_dir(), Ports::new(64));
    let server = Server::start(dir.path(), &own_address("silent"), &ports);
    // On macOS a full queue refuses connections.
    let connect = || until("room in the queue", || connect(&server.address).ok());
    let silent: Vec<UnixStream> = (0..SILENT).map(|_| connect()).collect();
    let mut longest = Duration::ZERO;
    for _ in 0..50 {
        let start = Instant::now();
        assert!(server.ask(process::id()).is_some());
        longest = longest.max(start.elapsed());
    }
    assert!(longest < Duration::from_secs(2), "{longest:?}");
    drop(silent);
    // Silent clients are counted as errors, but not as denials.
    assert!(server.ask(process::id()).is_some());
}

fn as_nobody(mut command: Command) -> Command {
    as_user(NOBODY, &mut command);
    command.current_dir("/");
    command
}

#[test]
fn a_user_gets_ports_only_for_their_own_processes() {
    if !am_root() {
        eprintln!("skipped: only root can run this as two users");
        return;
    }
    let (dir, ports) = (lock_dir(), Ports::new(8));
    let server = Server::start(dir.path(), &own_address("user"), &ports);
    let binary = env::current_exe().expect("this test binary");
    let (_open, copy) = open_copy_of(&binary);
    let mut peer = Peer::start_command(as_nobody(command(&[], &copy, "ask", &[&server.address])));
    let mut sleep = Command::new("sleep");
    sleep.arg("1000");
    let sibling = Process::start(as_nobody(sleep));
    let ask = |peer: &mut Peer, pid: u32| -> Option<u16> {
        peer.say(&pid.to_string());
        Some(peer.hear().parse().expect("a number")).filter(|&port| port > 0)
    };
    let own = peer.id();
    assert_eq!(ask(&mut peer, process::id()), None, "root's");
    assert_eq!(ask(&mut peer, server.logging.process.id()), None, "root's");
    assert_eq!(ask(&mut peer, dead_pid()), None);
    let port = ask(&mut peer, own).expect("its own");
    assert_eq!(owner(dir.path(), port), own);
    let port = ask(&mut peer, sibling.id()).expect("of the same user");
    assert_eq!(owner(dir.path(), port), sibling.id());
    // Root may lease ports for any user's process.
    let port = server.ask(own).expect("root asks");
    assert_eq!(owner(dir.path(), port), own);
    assert_statistics(&server.stop(), [0, 3, 8, 1, 3]);
}

/// The server need not be root to serve others.
#[test]
fn an_ordinary_user_can_serve_all_users() {
    if !am_root() {
        eprintln!("skipped: only root can run this as two users");
        return;
    }
    let (dir, ports) = (lock_dir(), Ports::new(2));
    std::os::unix::fs::chown(dir.path(), Some(NOBODY), Some(NOBODY)).expect("root may");
    let (_open, copy) = open_copy_of(Path::new(env!("CARGO_BIN_EXE_portlock")));
    let address = own_address("ordinary");
    let mut command = Command::new(copy);
    command.args(["serve", "--address", &address, "--ports", &ports.text()]);
    command.env("PORTLOCK_DIR", dir.path());
    let server = Server::start_command(as_nobody(command), &address);
    let mut client = client();
    let port = server.ask(client.id()).expect("root's process");
    let other = server.ask(server.logging.process.id()).expect("its own");
    assert_ne!(port, other);
    assert_eq!(server.ask(process::id()), None);
    client.kill();
    assert_eq!(until("a port", || server.ask(process::id())), port);
}

/// Returns a command in its own pid namespace, with the `/proc` of that namespace, or `None` if the
/// machine does not allow that.
#[cfg(target_os = "linux")]
fn in_pid_namespace(command: &Command) -> Option<Command> {
    let prefix = unshare("--pid --fork --kill-child --mount-proc");
    if !is_permitted(&prefix) {
        return None;
    }
    let mut unshare = Command::new(prefix[0]);
    unshare.args(&prefix[1..]);
    unshare.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            unshare.env(name, value);
        }
    }
    Some(unshare)
}

/// In a container, a pid means another process than here. The client is root too, so it may name any
/// process.
#[cfg(target_os = "linux")]
#[test]
fn a_client_in_another_pid_namespace_is_refused() {
    let (dir, ports) = (lock_dir(), Ports::new(4));
    let server = Server::start_quiet(dir.path(), &own_address("nested"), &ports);
    let binary = env::current_exe().expect("this test binary");
    let Some(nested) = in_pid_namespace(&command(&[], &binary, "ask", &[&server.address])) else {
        return;
    };
    let mut nested = Peer::start_command(nested);
    let mut ask = |pid: u32| {
        nested.say(&pid.to_string());
        nested.hear().parse::<u16>().expect("a number")
    };
    // A process that exists only here, and a pid that exists in both.
    assert_eq!(ask(process::id()), 0);
    let client = client();
    assert_eq!(ask(client.id()), 0);
    assert_eq!(ask(2), 0);
    // The same user without a namespace may.
    let mut beside = Peer::start_command(command(&[], &binary, "ask", &[&server.address]));
    beside.say(&client.id().to_string());
    assert_ne!(beside.hear(), "0");
    assert_eq!(with_owner(dir.path(), &ports), 1);
    let log = server.stop();
    let warnings = with(&log, "is in another pid namespace");
    assert_eq!(warnings.len(), 1, "{log:#?}");
    let pid = format!("a client that asked for process {}", process::id());
    assert!(warnings[0].contains(&pid), "{log:#?}");
    assert!(warnings[0].contains(" WARN "), "{log:#?}");
}

/// The kernel reports the pid that the client has in the server's namespace. A client that names that
/// pid means itself.
#[cfg(target_os = "linux")]
#[test]
fn a_client_in_another_pid_namespace_may_name_itself_by_its_pid_here() {
    let (dir, ports) = (lock_dir(), Ports::new(4));
    let server = Server::start_quiet(dir.path(), &own_address("nested-self"), &ports);
    let binary = env::current_exe().expect("this test binary");
    let Some(nested) = in_pid_namespace(&command(&[], &binary, "ask", &[&server.address])) else {
        return;
    };
    let mut nested = Peer::start_command(nested);
    let id = nested.id();
    // A sibling's pid is refused. After that answer, the process exists.
    nested.say(&id.to_string());
    assert_eq!(nested.hear(), "0");
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
    let children = children.expect("our own child");
    let pid: u32 = children.trim().parse().expect("the client");
    nested.say(&pid.to_string());
    let port: u16 = nested.hear().parse().expect("a number");
    assert_ne!(port, 0);
    let entries = LockDir::open(dir.path()).expect("our own");
    let entry = entries.entry(port).expect("our own").expect("its file");
    assert_eq!(entry.state, portlock::EntryState::Delegated);
    assert_eq!(entry.owner.expect("written").pid(), pid);
}

/// Returns the number of leased ports.
#[cfg(target_os = "linux")]
fn with_owner(dir: &Path, ports: &Ports) -> usize {
    let is_leased = |&&port: &&u16| lease_error(dir, port).is_some();
    ports.numbers.iter().filter(is_leased).count()
}

/// The server is in the container, and the client on the host.
#[cfg(target_os = "linux")]
#[test]
fn a_client_that_cannot_be_seen_is_refused() {
    let (dir, ports) = (lock_dir(), Ports::new(4));
    let address = own_address("container");
    let text = ports.text();
    let args = ["--address", &address, "--ports", &text];
    let Some(command) = in_pid_namespace(&serve(dir.path(), &args)) else {
        return;
    };
    let server = Server::start_command(command, &address);
    // Process 2 may exist there, and the client is root.
    for pid in [2, process::id()] {
        assert_eq!(server.ask(pid), None);
    }
    let log = server.logging.logged("is not visible to this server");
    let warning = log.last().expect("that line");
    assert!(warning.contains(" WARN "), "{log:#?}");
    assert_eq!(with_owner(dir.path(), &ports), 0);
}

/// Without its own /proc, a server would read another process's entry instead of the client's.
#[cfg(target_os = "linux")]
#[test]
fn a_server_without_its_own_proc_refuses_its_clients() {
    let (dir, ports) = (lock_dir(), Ports::new(4));
    let address = own_address("no-proc");
    let binary = env::current_exe().expect("this test binary");
    // Both are in the new namespace, and the client is its second process or a later one.
    let line = format!(
        "\"$PORTLOCK\" serve --address {address} --ports {} & exec \"$@\"",
        ports.text()
    );
    let client = command(&[], &binary, "ask-until", &[&address]);
    let mut shell = Command::new("sh");
    shell.args(["-c", &line, "sh"]);
    shell.arg(client.get_program()).args(client.get_args());
    let Some(command) = in_pid_namespace(&shell) else {
        return;
    };
    let mut foreign = Command::new("unshare");
    foreign.args(
        command
            .get_args()
            .filter(|argument| *argument != "--mount-proc"),
    );
    for (name, value) in client.get_envs() {
        foreign.env(name, value.expect("they are set"));
    }
    foreign
        .env("PORTLOCK_DIR", dir.path())
        .env("PORTLOCK", env!("CARGO_BIN_EXE_portlock"));
    foreign.stderr(Stdio::piped());
    let mut peer = Peer::start_command(foreign);
    let log = lines(peer.stderr());
    peer.say("2");
    assert_eq!(peer.hear(), "0");
    until("the reason is in the log", || {
        let line = log.recv_timeout(LONG).expect("it is not over");
        line.contains("no /proc of its own pid namespace")
            .then_some(())
    });
    assert_eq!(with_owner(dir.path(), &ports), 0);
}

/// Returns the Python interpreter that has portpicker, if there is one.
fn python() -> Option<OsString> {
    let named = env::var_os("PORTLOCK_TEST_PYTHON");
    let python = named.unwrap_or_else(|| "python3".into());
    let mut command = Command::new(&python);
    command
        .args(["-c", "import portpicker"])
        .stderr(Stdio::null());
    if command.status().is_ok_and(|status| status.success()) {
        return Some(python);
    }
    eprintln!("skipped: {} has no portpicker", python.display());
    None
}

#[test]
fn portpicker_and_the_library_share_ports_without_a_collision() {
    const PROCESSES: usize = 8;
    const SCRIPT: &str = "
import portpicker, sys
print('@ready', flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[1])):
    print('@%d' % portpicker.pick_unused_port(), flush=True)
sys.stdin.readline()
";
    let Some(python) = python() else { return };
    // The pool has ports for at most 100.
    let each = stress(20).min(100);
    let number = 2 * PROCESSES * each;
    // A few spare ports, because other programs on the machine may use some.
    let (dir, ports) = (lock_dir(), Ports::new(number + 32));
    let server = Server::start(dir.path(), &own_address("portpicker"), &ports);
    let binary = env::current_exe().expect("this test binary");
    let mut peers: Vec<Peer> = Vec::new();
    for _ in 0..PROCESSES {
        let mut script = Command::new(&python);
        script.args(["-c", SCRIPT, &each.to_string()]);
        script.env("PORTSERVER_ADDRESS", &server.address);
        peers.push(Peer::start_command(script));
        let arguments = [text(dir.path()), &ports.text(), &each.to_string()];
        peers.push(Peer::start_command(command(
            &[],
            &binary,
            "lease",
            &arguments,
        )));
    }
    for peer in &peers {
        assert_eq!(peer.hear(), "ready");
    }
    let start = Instant::now();
    for peer in &mut peers {
        peer.say("go");
    }
    let mut granted: Vec<u16> = Vec::new();
    for peer in &peers {
        let numbers = (0..each).map(|_| peer.hear().parse::<u16>().expect("a port"));
        granted.extend(numbers);
    }
    let elapsed = start.elapsed();
    // If it is refused, portpicker uses any port that the system assigns.
    assert!(
        granted.iter().all(|&port| ports.contains(port)),
        "{granted:?}"
    );
    let distinct = granted.iter().collect::<HashSet<_>>().len();
    eprintln!(
        "{PROCESSES} x {each} picks of portpicker and {PROCESSES} x {each} leases in {elapsed:?}: \
         {} collisions",
        granted.len() - distinct
    );
    assert_eq!(distinct, number, "all live, so no port may have two owners");
    drop(peers);
    assert_all_come_back(dir.path(), &ports.numbers);
    let log = server.stop();
    let total = format!(" total-allocations {}", PROCESSES * each);
    assert!(log.iter().any(|line| line.ends_with(&total)), "{log:#?}");
}

#[test]
fn the_client_understands_the_port_server_of_portpicker() {
    let Some(python) = python() else { return };
    let beside = Path::new(&python).parent().map(Path::to_owned);
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = beside.into_iter().chain(env::split_paths(&path));
    let script = directories
        .filter(|directory| !directory.as_os_str().is_empty())
        .map(|directory| directory.join("portserver.py"))
        .find(|script| script.is_file());
    let Some(script) = script else {
        eprintln!("skipped: no portserver.py here");
        return;
    };
    let ports = Ports::new(3);
    let address = own_address("reference");
    let mut command = Command::new(&python);
    command
        .arg(script)
        .args(["--portserver_address", &address])
        .args(["--portserver_static_pool", &ports.text()]);
    let server = Logging::start(command);
    // It logs that before it certainly listens, so connect to find out.
    server.logged("Serving on");
    until("it accepts connections", || connect(&address).ok());

    let mut granted = Vec::new();
    for _ in 0..3 {
        let port = get_port_from_port_server(&address, process::id()).expect("a port");
        assert!(ports.contains(port));
        granted.push(port);
    }
    assert!(all_distinct(&granted), "{granted:?}");
    for pid in [process::id(), dead_pid(), 0, 1] {
        let error = get_port_from_port_server(&address, pid).expect_err("no port");
        assert_eq!(error.kind(), ErrorKind::PortServer);
        let message = error.to_string();
        assert!(message.contains("has no port for process"), "{message}");
    }
}
