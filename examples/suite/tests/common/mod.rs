//! The fixture: the server under test, on its own port.

use std::{
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpStream},
    process::{Child, Command},
    time::{Duration, Instant},
};

use portlock::{ErrorKind, FreePort};

const START: Duration = Duration::from_secs(10);

/// A running server. It is killed when dropped, also when the test panics.
pub struct Server {
    name: String,
    child: Child,
    // Released after `drop` has waited for the server's end, so that the next holder
    // of the port can bind it.
    port: FreePort,
}

impl Server {
    pub fn start(name: &str) -> Self {
        // Any port that this machine leaves for servers. No other test, in this or any
        // other process, has it until it is dropped.
        let port = FreePort::builder()
            .label(format!("greeter for {name}"))
            // Connections that the server closes stay in TIME_WAIT on its port for a minute.
            // They do not affect the next server, because std sets SO_REUSEADDR.
            .reuse_address(true)
            .acquire()
            .expect("a free port");
        let child = greeter(&port, name);
        let name = name.to_owned();
        // From here on, the server is killed if anything fails.
        let mut server = Self { name, child, port };
        server.wait_until_ready();
        server
    }

    pub fn addr(&self) -> SocketAddr {
        self.port.addr()
    }

    /// Kills the server and starts it again. The port stays the same: it is leased,
    /// whether a server listens there or not.
    pub fn restart(&mut self) {
        self.stop();
        self.child = greeter(&self.port, &self.name);
        self.wait_until_ready();
    }

    pub fn stop(&mut self) {
        // Killing a process that has already ended is not an error.
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }

    /// Returns the server's greeting to a new client.
    pub fn greeting(&self) -> String {
        let stream = TcpStream::connect(self.addr()).expect("a server");
        stream.set_read_timeout(Some(START)).expect("not zero");
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    /// Waits for exactly this server. Waits in short steps, to notice soon if the server exits.
    fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + START;
        let step = Duration::from_millis(100);
        while let Err(error) = self.port.wait_for_server(self.child.id(), step) {
            // For example, another program has taken the port.
            assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
            if let Some(status) = self.child.try_wait().expect("our own child") {
                panic!("the server for {} has ended: {status}", self.name);
            }
            assert!(Instant::now() < deadline, "{error}");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn greeter(port: &FreePort, name: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_greeter"))
        .args([&port.to_string(), name])
        .spawn()
        .expect("cargo has built it")
}
