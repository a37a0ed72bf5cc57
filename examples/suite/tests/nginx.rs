//! The fixture for a third-party program: nginx with a configuration file. It is
//! ready when its health check succeeds, and killed when the test ends.
//!
//! With a container the lease is the same, and only the command differs. This is not run here,
//! because it needs docker's daemon:
//!
//! ```text
//! let mapping = format!("127.0.0.1:{port}:80");
//! let name = format!("nginx-{port}");
//! Command::new("docker").args(["run", "--detach", "--name", &name, "-p", &mapping, "nginx"])
//! // In drop. Killing the client, `docker run`, would leave the container behind.
//! Command::new("docker").args(["rm", "--force", &name])
//!
//! // The same with the crate testcontainers 0.26:
//! GenericImage::new("nginx", "latest").with_mapped_port(port.port(), 80.tcp()).start()
//! ```
//!
//! Docker's daemon then binds the port, and does not know about the lease: keep the
//! `FreePort` as long as the container runs.

use std::{
    fs,
    io::{self, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use portlock::FreePort;
use tempfile::TempDir;

const START: Duration = Duration::from_secs(10);

/// All files are in the test's own directory. With `master_process off` there
/// is only one process: a killed master would leave its workers behind, which would keep
/// listening.
const CONF: &str = r#"
daemon off; master_process off; pid nginx.pid; events {}
http {
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    server {
        listen 127.0.0.1:{port};
        location = /health { return 204; }
        location / { root .; }
    }
}
"#;

struct Nginx {
    child: Child,
    port: FreePort,
    dir: TempDir,
}

impl Nginx {
    fn start() -> io::Result<Self> {
        let port = FreePort::builder()
            .label("nginx under test")
            // Connections that nginx closes stay in TIME_WAIT on its port for a minute.
            // They do not affect the next server, because nginx sets SO_REUSEADDR.
            .reuse_address(true)
            .acquire()?;
        let dir = tempfile::tempdir()?;
        let conf = CONF.replace("{port}", &port.to_string());
        fs::write(dir.path().join("nginx.conf"), conf)?;
        let child = Command::new("nginx")
            .args(["-c", "nginx.conf", "-e", "error.log", "-p"])
            .arg(dir.path())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        // From here on, the server is killed if anything fails.
        let mut nginx = Self { child, port, dir };
        nginx.wait_until_healthy()?;
        Ok(nginx)
    }

    /// Waits for the health check, because a server may listen before it has loaded its
    /// data.
    fn wait_until_healthy(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + START;
        loop {
            match self.get("/health") {
                Ok(answer) if answer.starts_with("HTTP/1.1 204 ") => return Ok(()),
                answer if self.child.try_wait()?.is_some() || Instant::now() > deadline => {
                    let log = fs::read_to_string(self.dir.path().join("error.log"));
                    let log = log.unwrap_or_default();
                    return Err(io::Error::other(format!("no nginx: {answer:?}\n{log}")));
                }
                _ => thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Returns the server's whole answer. Any HTTP client works.
    fn get(&self, path: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(self.port.addr())?;
        stream.set_read_timeout(Some(START))?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    fn stop(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

/// Starts nginx, or returns `None` if it is not installed.
fn nginx() -> io::Result<Option<Nginx>> {
    match Nginx::start() {
        Ok(nginx) => Ok(Some(nginx)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            eprintln!("skipped: nginx is not installed");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[test]
fn each_test_has_its_own_nginx() -> io::Result<()> {
    let Some(one) = nginx()? else { return Ok(()) };
    let Some(other) = nginx()? else { return Ok(()) };
    for (nginx, page) in [(&one, "the one"), (&other, "the other")] {
        fs::write(nginx.dir.path().join("page"), page)?;
    }
    assert!(one.get("/page")?.ends_with("the one"));
    assert!(other.get("/page")?.ends_with("the other"));
    Ok(())
}

#[test]
fn a_stopped_server_leaves_no_process_behind() -> io::Result<()> {
    let Some(mut nginx) = nginx()? else {
        return Ok(());
    };
    assert!(nginx.get("/missing")?.starts_with("HTTP/1.1 404 "));
    nginx.stop()?;
    // The port is still leased, so any server that answers there would be an orphan.
    let error = nginx.get("/health").expect_err("no server");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    Ok(())
}
