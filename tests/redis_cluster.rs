//! A real three-node Redis Cluster on ports from `acquire_offsets(&[0, 10000])`
//! forms and answers CLUSTER INFO with state ok, in three suites at once.

mod common;

use std::{
    collections::HashSet,
    fs,
    io::{Read, Seek},
    net::{Ipv4Addr, TcpStream},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use common::lock_dir;
use portlock::FreePort;
use tempfile::TempDir;

const SUITES: usize = 3;
const NODES: usize = 3;

const START: Duration = Duration::from_secs(30);
const FORM: Duration = Duration::from_secs(60);
/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// One server of a cluster. It is dead before its ports are given back and its
/// directory is removed.
struct Node {
    server: Child,
    ports: Vec<FreePort>,
    dir: TempDir,
}

impl Node {
    fn start(lock_dir: &Path, suite: usize) -> Self {
        let ports = FreePort::builder()
            .ports(11000..=12999)
            .lock_dir(lock_dir)
            .label(format!("Redis Cluster of suite {suite}"))
            .acquire_offsets(&[0, 10000])
            .expect("a port and its bus port");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let server = Command::new("redis-server")
            .args(["--port", &ports[0].to_string()])
            .args(["--bind", "127.0.0.1"])
            .args(["--cluster-enabled", "yes"])
            .args(["--cluster-config-file", "nodes.conf"])
            .args(["--cluster-node-timeout", "5000"])
            .args(["--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(dir.path())
            .arg("--logfile")
            .arg(dir.path().join("log"))
            .args(["--daemonize", "no"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        Self { server, ports, dir }
    }

    fn port(&self) -> u16 {
        self.ports[0].port()
    }

    fn wait_until_it_accepts(&mut self, deadline: Instant) {
        while let Err(error) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port())) {
            let ended = self.server.try_wait().expect("our own child");
            if ended.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                panic!("port {}: {error}; ended: {ended:?}\n{log}", self.port());
            }
            thread::sleep(PAUSE);
        }
    }

    fn wait_until_the_cluster_is_ok(&self, deadline: Instant) {
        let expected = ["cluster_state:ok", &format!("cluster_known_nodes:{NODES}")];
        loop {
            let port = self.port().to_string();
            let (_, info) = redis_cli(&["-p", &port, "CLUSTER", "INFO"], deadline);
            if expected.iter().all(|line| info.lines().any(|l| l == *line)) {
                return;
            }
            assert!(Instant::now() < deadline, "port {port}:\n{info}");
            thread::sleep(PAUSE);
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Runs redis-cli, which is killed if it has not ended by the deadline, and
/// gives all that it printed.
fn redis_cli(args: &[&str], deadline: Instant) -> (ExitStatus, String) {
    // In a file, for reading from a pipe has no timeout.
    let mut output = tempfile::tempfile().expect("a temporary file");
    let copy = || output.try_clone().expect("a descriptor");
    let mut process = Command::new("redis-cli")
        .args(args)
        .stdin(Stdio::null())
        .stdout(copy())
        .stderr(copy())
        .spawn()
        .expect("redis-cli is installed");
    let status = loop {
        match process.try_wait().expect("our own child") {
            Some(status) => break status,
            None if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
            None => {
                process.kill().expect("our own child");
                break process.wait().expect("our own child");
            }
        }
    };
    let mut text = String::new();
    output.rewind().expect("a file");
    output.read_to_string(&mut text).expect("UTF-8");
    (status, text)
}

/// Starts a cluster and waits until each of its nodes says that it is complete.
fn form_cluster(lock_dir: &Path, suite: usize) -> Vec<Node> {
    let mut nodes: Vec<Node> = (0..NODES).map(|_| Node::start(lock_dir, suite)).collect();
    let deadline = Instant::now() + START;
    for node in &mut nodes {
        node.wait_until_it_accepts(deadline);
    }
    let deadline = Instant::now() + FORM;
    let addrs: Vec<String> = nodes
        .iter()
        .map(|node| format!("127.0.0.1:{}", node.port()))
        .collect();
    let mut args = vec!["--cluster", "create"];
    args.extend(addrs.iter().map(String::as_str));
    args.push("--cluster-yes");
    let (status, output) = redis_cli(&args, deadline);
    assert!(status.success(), "redis-cli {args:?}: {status}\n{output}");
    for node in &nodes {
        node.wait_until_the_cluster_is_ok(deadline);
    }
    nodes
}

#[test]
fn three_suites_each_form_a_redis_cluster() {
    for program in ["redis-server", "redis-cli"] {
        if Command::new(program).arg("--version").output().is_err() {
            eprintln!("left out: {program} is not installed");
            return;
        }
    }
    let dir = lock_dir();
    let all_at_once = Barrier::new(SUITES);
    let mut suites: Vec<Vec<Node>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..SUITES)
            .map(|suite| {
                let (dir, all_at_once) = (dir.path(), &all_at_once);
                scope.spawn(move || {
                    all_at_once.wait();
                    form_cluster(dir, suite)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a cluster"))
            .collect()
    });
    // A server that could not bind one of its two ports has ended, and another
    // program has answered in its place.
    for node in suites.iter_mut().flatten() {
        let ended = node.server.try_wait().expect("our own child");
        assert_eq!(ended, None, "port {}", node.port());
    }
    let nodes = suites.iter().flatten();
    let ports: Vec<u16> = nodes
        .flat_map(|node| node.ports.iter().map(FreePort::port))
        .collect();
    assert_eq!(ports.len(), SUITES * NODES * 2);
    let distinct: HashSet<u16> = ports.iter().copied().collect();
    assert_eq!(distinct.len(), ports.len(), "{ports:?}");
}
