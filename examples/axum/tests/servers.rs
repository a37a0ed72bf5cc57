//! Several axum servers in one test, each on its own port and shut down
//! gracefully.

use std::{error::Error, future::IntoFuture, io, net::SocketAddr, time::Duration};

use example_axum::app;
use portlock::FreePort;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

const PATIENCE: Duration = Duration::from_secs(10);

/// A server that runs as a task of the test's runtime, and ends with it.
struct Server {
    port: FreePort,
    stop: oneshot::Sender<()>,
    task: JoinHandle<io::Result<()>>,
}

impl Server {
    async fn start(name: &str) -> Result<Self> {
        // Connections that the server closes stay in TIME_WAIT on its port for a minute.
        // They do not affect the next server, because these sockets set SO_REUSEADDR.
        let builder = FreePort::builder().reuse_address(true);
        // If every port is leased, this waits up to 30 seconds, and would block a
        // thread of the runtime.
        let (port, listener) = spawn_blocking(move || builder.listen()).await??;
        // tokio requires this (`TcpListener::from_std`); otherwise `accept` would block.
        listener.set_nonblocking(true)?;
        Ok(Self::on(port, TcpListener::from_std(listener)?, name))
    }

    /// Serves on a socket that already listens: clients can connect immediately, so there is
    /// nothing to wait for.
    fn on(port: FreePort, listener: TcpListener, name: &str) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let server = axum::serve(listener, app(name)).with_graceful_shutdown(async {
            // Also completes if the sender is dropped, for example when the test panics.
            let _ = stopped.await;
        });
        let task = tokio::spawn(server.into_future());
        Self { port, stop, task }
    }

    fn addr(&self) -> SocketAddr {
        self.port.addr()
    }

    /// Waits until every pending request has been answered. Returns the port, which is
    /// still leased until the caller releases it.
    async fn stop(self) -> Result<FreePort> {
        drop(self.stop);
        timeout(PATIENCE, self.task).await???;
        Ok(self.port)
    }
}

/// Returns a server's answer. Any HTTP client works; this one saves a dependency.
async fn get(addr: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect(addr).await?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await?;
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await??;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or("not HTTP")?;
    Ok(body.to_owned())
}

#[tokio::test]
async fn each_server_answers_with_its_own_name() -> Result<()> {
    let (api, admin, metrics) = tokio::try_join!(
        Server::start("api"),
        Server::start("admin"),
        Server::start("metrics"),
    )?;
    assert_eq!(get(api.addr()).await?, "hello from api");
    assert_eq!(get(admin.addr()).await?, "hello from admin");
    assert_eq!(get(metrics.addr()).await?, "hello from metrics");
    for server in [api, admin, metrics] {
        server.stop().await?.release()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_takes_over_the_port() -> Result<()> {
    let old = Server::start("version 1").await?;
    let addr = old.addr();
    assert_eq!(get(addr).await?, "hello from version 1");

    let port = old.stop().await?;
    let error = get(addr).await.expect_err("no server listens");
    let error = error.downcast::<io::Error>()?;
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);

    // Between the two servers the port is still ours, although no process listens on it.
    let listener = TcpListener::bind(addr).await?;
    let new = Server::on(port, listener, "version 2");
    assert_eq!(get(addr).await?, "hello from version 2");
    new.stop().await?.release()?;
    Ok(())
}
