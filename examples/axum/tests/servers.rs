//! Several axum servers in one test, each on a port of its own and ended
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

/// A server that runs as a task of the test's own runtime, and ends with it.
struct Server {
    port: FreePort,
    stop: oneshot::Sender<()>,
    task: JoinHandle<io::Result<()>>,
}

impl Server {
    async fn start(name: &str) -> Result<Self> {
        // Connections that the server closes stay in TIME_WAIT on its port for a minute.
        // It does not matter to the next one, for these sockets set SO_REUSEADDR.
        let builder = FreePort::builder().reuse_address(true);
        // Where every port is leased this waits, up to 30 seconds, and would keep a
        // thread of the runtime waiting with it.
        let (port, listener) = spawn_blocking(move || builder.listen()).await??;
        // tokio wants it so (`TcpListener::from_std`), or `accept` would block.
        listener.set_nonblocking(true)?;
        Ok(Self::on(port, TcpListener::from_std(listener)?, name))
    }

    /// The socket listens already: clients can connect from now on, and there is
    /// nothing to wait for.
    fn on(port: FreePort, listener: TcpListener, name: &str) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let server = axum::serve(listener, app(name)).with_graceful_shutdown(async {
            // Also if the sender is dropped, as when the test panics.
            let _ = stopped.await;
        });
        let task = tokio::spawn(server.into_future());
        Self { port, stop, task }
    }

    fn addr(&self) -> SocketAddr {
        self.port.addr()
    }

    /// Waits until every request that is under way has been answered. The port is
    /// still leased then, and the caller's to release.
    async fn stop(self) -> Result<FreePort> {
        drop(self.stop);
        timeout(PATIENCE, self.task).await???;
        Ok(self.port)
    }
}

/// What a server says. Any HTTP client will do; this one saves a dependency.
async fn get(addr: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect(addr).await?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await?;
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await??;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or("no HTTP")?;
    Ok(body.to_owned())
}

#[tokio::test]
async fn several_servers_answer_each_for_itself() -> Result<()> {
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
    let error = get(addr).await.expect_err("nobody listens");
    let error = error.downcast::<io::Error>()?;
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);

    // Between the two the port is still ours, though nobody listens there.
    let listener = TcpListener::bind(addr).await?;
    let new = Server::on(port, listener, "version 2");
    assert_eq!(get(addr).await?, "hello from version 2");
    new.stop().await?.release()?;
    Ok(())
}
