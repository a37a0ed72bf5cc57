//! A Redis Cluster: three masters, each on a port and, 10000 above it, a bus port.
//! Any number of clusters, in any number of processes, can start at the same time.
//!
//! ```console
//! $ cargo run --example redis_cluster
//! the cluster: 127.0.0.1:11613 127.0.0.1:11261 127.0.0.1:11735
//! set at 127.0.0.1:11613, read at 127.0.0.1:11735: hello
//! ```

use std::{
    error::Error,
    fs,
    net::SocketAddr,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use portlock::{Builder, ErrorKind, FreePort};
use tempfile::TempDir;

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

const START: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);

fn main() -> Result<()> {
    let cluster = Cluster::start(&FreePort::builder().ports(11000..=12999))?;
    println!("the cluster: {}", cluster.addrs().join(" "));

    let (first, last) = (&cluster.nodes[0], &cluster.nodes[2]);
    // With -c, redis-cli follows the redirection to the master that has the key's slot.
    redis_cli(first.addr(), &["-c", "SET", "greeting", "hello"])?;
    let greeting = redis_cli(last.addr(), &["-c", "GET", "greeting"])?;
    println!(
        "set at {}, read at {}: {greeting}",
        first.addr(),
        last.addr()
    );
    assert_eq!(greeting, "hello");
    Ok(())
}

/// Three masters that know each other. They are killed when dropped.
pub struct Cluster {
    /// The masters.
    pub nodes: Vec<Node>,
}

impl Cluster {
    /// Starts the servers and joins them. `ports` are for clients; the bus ports
    /// are 10000 higher.
    pub fn start(ports: &Builder) -> Result<Self> {
        let nodes = (0..3).map(|_| Node::start(ports)).collect::<Result<_>>()?;
        let mut cluster = Self { nodes };
        for node in &mut cluster.nodes {
            node.wait_until_ready()?;
        }
        let addrs = cluster.addrs();
        let mut args: Vec<&str> = vec!["--cluster", "create"];
        args.extend(addrs.iter().map(String::as_str));
        args.push("--cluster-yes");
        redis_cli(cluster.nodes[0].addr(), &args)?;
        for node in &cluster.nodes {
            node.wait_until_the_cluster_is_complete()?;
        }
        Ok(cluster)
    }

    fn addrs(&self) -> Vec<String> {
        self.nodes
            .iter()
            .map(|node| node.addr().to_string())
            .collect()
    }
}

/// One server. It is dead before its ports are released and its directory is
/// removed.
pub struct Node {
    server: Child,
    /// Its port and its bus port.
    pub ports: Vec<FreePort>,
    dir: TempDir,
}

impl Node {
    fn start(ports: &Builder) -> Result<Self> {
        // Both or none: a port is useless if its bus port is taken.
        let ports = ports.acquire_offsets(&[0, 10000])?;
        let dir = tempfile::tempdir()?;
        let server = Command::new("redis-server")
            .args(["--port", &ports[0].to_string()])
            .args(["--bind", "127.0.0.1"])
            .args(["--cluster-enabled", "yes"])
            .args(["--cluster-config-file", "nodes.conf"])
            .args(["--cluster-node-timeout", "5000"])
            .args(["--save", "", "--appendonly", "no"])
            .args(["--logfile", "log", "--dir"])
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot start redis-server: {error}"))?;
        Ok(Self { server, ports, dir })
    }

    /// Returns the address for clients.
    pub fn addr(&self) -> SocketAddr {
        self.ports[0].addr()
    }

    /// Waits for exactly this server. Waits in short steps, to notice soon if the server exits.
    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        while let Err(error) = self.ports[0].wait_for_server(self.server.id(), PAUSE) {
            let ended = self.has_ended()?;
            let is_over = error.kind() != ErrorKind::Timeout || Instant::now() > deadline;
            if ended || is_over {
                let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                return Err(format!("{error}; ended: {ended}\n{log}").into());
            }
        }
        Ok(())
    }

    fn wait_until_the_cluster_is_complete(&self) -> Result<()> {
        let deadline = Instant::now() + START;
        let complete = ["cluster_state:ok", "cluster_known_nodes:3"];
        loop {
            let info = redis_cli(self.addr(), &["CLUSTER", "INFO"])?;
            if complete.iter().all(|line| info.lines().any(|l| l == *line)) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("no cluster at {}:\n{info}", self.addr()).into());
            }
            thread::sleep(PAUSE);
        }
    }

    /// Whether the server has ended, for example because it could not bind a port.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.server.try_wait()?.is_some())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Returns the output of redis-cli, or an error if it fails or takes too long.
pub fn redis_cli(addr: SocketAddr, args: &[&str]) -> Result<String> {
    let seconds = START.as_secs().to_string();
    let (host, port) = (addr.ip().to_string(), addr.port().to_string());
    let output = Command::new("timeout")
        .args([&seconds, "redis-cli", "-h", &host, "-p", &port])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot start redis-cli: {error}"))?;
    let text = String::from_utf8(output.stdout)?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        return Err(format!("redis-cli {args:?}: {}\n{text}{error}", output.status).into());
    }
    Ok(text.trim_end().to_owned())
}
