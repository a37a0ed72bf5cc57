//! `serve`: a port server for portpicker and all who speak its protocol.
//!
//! One request per connection: a pid in decimal, normally with a newline behind
//! it. The answer is a port and a newline, or nothing.

use std::{
    io::{self, IsTerminal as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime, task, time,
};
use tracing::{debug, info, warn};

use crate::{
    args::Serve,
    failure::{FAILED, Failure},
    pool::{Denial, Pool},
    request,
    sys::{self, Connection, Endpoint, Wish, Wishes},
};

/// How long a client may take to begin its request, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// A request without a newline ends when nothing more has come for so long.
const QUIET: Duration = Duration::from_millis(200);
/// Grants are made of system calls that hardly ever wait: more threads than a few
/// would only take turns.
const GRANTING_THREADS: usize = 4;
/// The pause after a connection could not be accepted, for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// What was done, under the names of the reference.
#[derive(Debug, Default)]
struct Statistics {
    client_request_errors: AtomicU64,
    denied_allocations: AtomicU64,
    total_allocations: AtomicU64,
}

impl Statistics {
    fn log(&self, pool: &Pool) {
        let (managed, checked) = pool.numbers();
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        info!("Dumping statistics:");
        info!(
            "client-request-errors {}",
            value(&self.client_request_errors)
        );
        info!("denied-allocations {}", value(&self.denied_allocations));
        info!("num-ports-managed {managed}");
        info!("num-ports-checked-for-last-request {checked}");
        info!("total-allocations {}", value(&self.total_allocations));
    }
}

#[derive(Debug)]
struct Server {
    pool: Pool,
    statistics: Statistics,
}

pub(crate) fn serve(args: &Serve, dir: Option<&Path>) -> Result<u8, Failure> {
    let level = match (args.debug, args.verbose, args.quiet) {
        (true, _, _) => tracing::Level::DEBUG,
        (_, _, true) => tracing::Level::WARN,
        _ => tracing::Level::INFO,
    };
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(colours)
        .with_max_level(level)
        .with_target(false)
        .init();
    // Report a directory that cannot be trusted now, and not to the first client.
    portlock::LockDir::locate(dir)?;
    if args.ports.is_empty() {
        return Err(Failure::new(
            FAILED,
            "--ports names no port from 1 to 65535",
        ));
    }
    let Some(address) = &args.address else {
        return Err(Failure::new(FAILED, "name where to serve with --address"));
    };
    // Thousands of clients may be connected at once.
    if let Err(error) = sys::raise_descriptor_limit() {
        debug!("cannot raise the limit of open files: {error}");
    }
    let server = Arc::new(Server {
        pool: Pool::new(&args.ports, dir.map(Path::to_owned)),
        statistics: Statistics::default(),
    });
    let runtime = runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(GRANTING_THREADS)
        .build();
    let runtime = runtime.map_err(|error| {
        Failure::new(
            FAILED,
            format!("cannot start the server's threads: {error}"),
        )
    })?;
    runtime.block_on(run(&server, address))?;
    server.statistics.log(&server.pool);
    info!("Goodbye.");
    Ok(0)
}

async fn run(server: &Arc<Server>, address: &str) -> Result<(), Failure> {
    let fail = |what: &'static str| {
        let address = address.to_owned();
        move |error: io::Error| Failure::new(FAILED, format!("cannot {what} {address}: {error}"))
    };
    let mut wishes = Wishes::listen().map_err(fail("handle signals for"))?;
    let mut endpoint = Endpoint::listen(address).map_err(fail("serve on"))?;
    info!("Serving on {address}");
    loop {
        tokio::select! {
            accepted = endpoint.accept() => match accepted {
                Ok(connection) => {
                    task::spawn(answer(Arc::clone(server), connection));
                }
                Err(error) => {
                    warn!("cannot accept a connection: {error}");
                    time::sleep(ACCEPT_PAUSE).await;
                }
            },
            wish = wishes.next() => match wish {
                Wish::Statistics => server.statistics.log(&server.pool),
                Wish::Stop => return Ok(()),
            },
        }
    }
}

/// Answers one client. Whatever it does, it has a bounded time for it.
async fn answer(server: Arc<Server>, mut connection: Connection) {
    let request = match read_request(&mut connection).await {
        Ok(request) => request,
        Err(error) => {
            server
                .statistics
                .client_request_errors
                .fetch_add(1, Ordering::Relaxed);
            debug!("client did not finish its request: {error}");
            return;
        }
    };
    let Some(pid) = request::parse(&request) else {
        server
            .statistics
            .client_request_errors
            .fetch_add(1, Ordering::Relaxed);
        warn!(
            "Could not parse request: {:?}",
            String::from_utf8_lossy(&request)
        );
        return;
    };
    let granted = match client(pid, &connection) {
        Ok(pid) => {
            let server = Arc::clone(&server);
            // It makes system calls on files and sockets. Few as they mostly are, on the
            // threads that read and write for all clients they would cost a third of
            // the grants per second.
            let grant = task::spawn_blocking(move || server.pool.grant(pid)).await;
            grant.unwrap_or(Err(Denial::Exhausted))
        }
        Err(why) => {
            info!("Not allocating a port to {why}");
            Err(Denial::Process)
        }
    };
    match granted {
        Ok(port) => {
            server
                .statistics
                .total_allocations
                .fetch_add(1, Ordering::Relaxed);
            debug!("Allocated port {port} to pid {pid}");
            let answer = format!("{port}\n");
            // A client that does not take it keeps it all the same until it ends.
            let _ = time::timeout(PATIENCE, connection.write_all(answer.as_bytes())).await;
        }
        Err(denial) => {
            server
                .statistics
                .denied_allocations
                .fetch_add(1, Ordering::Relaxed);
            match denial {
                Denial::Process => info!("Not allocating a port to process {pid}"),
                Denial::Exhausted => info!("All ports in use."),
                Denial::Failure(error) => warn!("cannot lease a port: {error}"),
            }
        }
    }
}

/// Reads until a newline, the end, one byte too many, or a short quiet time.
async fn read_request(connection: &mut Connection) -> io::Result<Vec<u8>> {
    let mut request = Vec::with_capacity(request::LONGEST + 1);
    // A client that sends a byte now and then is not waited for longer either.
    let read = async {
        while request.len() <= request::LONGEST && !request.contains(&b'\n') {
            let mut bytes = [0; request::LONGEST + 1];
            let read = connection.read(&mut bytes);
            let len = if request.is_empty() {
                read.await?
            } else {
                match time::timeout(QUIET, read).await {
                    Ok(len) => len?,
                    Err(_) => 0,
                }
            };
            if len == 0 {
                break;
            }
            request.extend_from_slice(&bytes[..len]);
        }
        Ok::<(), io::Error>(())
    };
    time::timeout(PATIENCE, read).await??;
    Ok(request)
}

/// The process that shall have the port, if the client may name it.
fn client(pid: i64, connection: &Connection) -> Result<u32, String> {
    let pid = match u32::try_from(pid) {
        Ok(0) | Err(_) => return Err(format!("invalid pid {pid}")),
        // It is who orphans belong to, and would keep its ports for ever.
        Ok(1) => return Err("init".to_owned()),
        Ok(pid) => pid,
    };
    sys::check_client(pid, connection)?;
    Ok(pid)
}
