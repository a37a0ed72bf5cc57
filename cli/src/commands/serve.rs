//! `serve`: a port server for portpicker and all clients that speak its protocol.
//!
//! One request per connection: a pid in decimal, normally followed by a newline. The answer
//! is a port and a newline, or nothing.

mod pool;
mod rate_limit;
mod request;
mod static_pool;

use std::{
    io::{self, IsTerminal as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use portlock::PortSet;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime, task, time,
};
use tracing::{debug, error, info, warn};

use crate::{
    args::Serve,
    exit_status::ExitStatus,
    failure::Failure,
    lock_dir::lock_dir,
    sys::{self, Connection, Endpoint, Wish, Wishes},
};

use pool::{Denial, Pool};
use rate_limit::RateLimit;

/// The time that a client has to send its request, and to read the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The time without new data after which a request without a newline is complete.
const QUIET: Duration = Duration::from_millis(200);
/// Number of threads that grant ports. Grants consist of system calls that rarely block, so more
/// threads would only compete.
const GRANTING_THREADS: usize = 4;
/// The pause after a connection could not be accepted, for lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Counters, logged under the names that portpicker's server uses.
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

/// Warnings that clients can cause at an unlimited rate.
#[derive(Debug, Default)]
struct Warnings {
    exhausted: RateLimit,
    failed: RateLimit,
    not_accepted: RateLimit,
    refused_peer: RateLimit,
}

/// Prints a warning unless it is too soon after the last one of its kind, whatever its text.
fn warn_limited(kind: &RateLimit, message: impl FnOnce() -> String) {
    if let Some(suppressed) = kind.admit(Instant::now()) {
        warn!("{}{suppressed}", message());
    }
}

#[derive(Debug)]
struct Server {
    pool: Pool,
    statistics: Statistics,
    warnings: Warnings,
}

pub(crate) fn serve(args: &Serve, dir: Option<&Path>) -> Result<ExitStatus, Failure> {
    // First, because it changes the environment.
    let passed = sys::passed_listeners().map_err(|error| {
        let message = format!("cannot use the sockets passed by the service manager: {error}");
        Failure::new(ExitStatus::Failed, message)
    })?;
    let level = match (args.debug, args.verbose, args.quiet) {
        (true, _, _) => tracing::Level::DEBUG,
        (_, _, true) => tracing::Level::WARN,
        _ => tracing::Level::INFO,
    };
    let colors = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        // It would report the error on standard error, and panic if that fails.
        .log_internal_errors(false)
        .with_ansi(colors)
        .with_max_level(level)
        .with_target(false)
        .init();
    if args.address.is_none() && passed.is_empty() {
        return Err(Failure::new(
            ExitStatus::Failed,
            "no address to serve on: name one with --address",
        ));
    }
    // Report a directory that cannot be trusted now, not when the first client connects.
    lock_dir(dir)?;
    let ports = ports(args)?;
    // Thousands of clients may be connected at the same time.
    if let Err(error) = sys::raise_descriptor_limit() {
        debug!("cannot raise the limit on open files: {error}");
    }
    let server = Arc::new(Server {
        pool: Pool::new(&ports, args.reuse.reuse_address, dir.map(Path::to_owned)),
        statistics: Statistics::default(),
        warnings: Warnings::default(),
    });
    // One thread reads and writes as fast as several, which would compete with the granting threads.
    // Also, tokio's multithreaded scheduler is the only code that needs libm, which would take time
    // to load for every command.
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(GRANTING_THREADS)
        .build();
    let runtime = runtime.map_err(|error| {
        Failure::new(
            ExitStatus::Failed,
            format!("cannot start the server's threads: {error}"),
        )
    })?;
    runtime.block_on(run(&server, args.address.as_deref(), passed))?;
    server.statistics.log(&server.pool);
    info!("Goodbye.");
    Ok(ExitStatus::Success)
}

/// Returns the ports to grant: at least one.
fn ports(args: &Serve) -> Result<PortSet, Failure> {
    let (ports, flag) = match &args.static_pool {
        Some(text) => {
            let (ports, complaints) = static_pool::parse(text);
            for complaint in complaints {
                error!("{complaint}");
            }
            (ports, "--portserver_static_pool")
        }
        None => (args.ports.clone(), "--ports"),
    };
    if ports.is_empty() {
        let message = format!("{flag} names no port from 1 to 65535");
        return Err(Failure::new(ExitStatus::Failed, message));
    }
    Ok(ports)
}

async fn run(
    server: &Arc<Server>,
    address: Option<&str>,
    passed: sys::PassedListeners,
) -> Result<(), Failure> {
    let fail = |what: &'static str, where_to: &str| {
        let name = where_to.to_owned();
        move |error: io::Error| {
            Failure::new(ExitStatus::Failed, format!("cannot {what} {name}: {error}"))
        }
    };
    let address = address.unwrap_or_default();
    let mut wishes = Wishes::listen().map_err(fail("handle signals for", address))?;
    let mut endpoint = Endpoint::listen(address, passed).map_err(fail("serve on", address))?;
    info!("Serving on {}", endpoint.name());
    if let Err(error) = sys::notify_ready() {
        warn!("cannot notify the service manager that the server is ready: {error}");
    }
    loop {
        tokio::select! {
            accepted = endpoint.accept() => match accepted {
                Ok(connection) => {
                    task::spawn(answer(Arc::clone(server), connection));
                }
                // A socket that was passed and does not listen never will.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    return Err(fail("accept connections on", endpoint.name())(error));
                }
                Err(error) => {
                    warn_limited(&server.warnings.not_accepted, || {
                        format!("cannot accept a connection: {error}")
                    });
                    time::sleep(ACCEPT_PAUSE).await;
                }
            },
            wish = wishes.next() => match wish {
                Wish::Statistics => server.statistics.log(&server.pool),
                Wish::Stop => {
                    let _ = sys::notify_stopping();
                    return Ok(());
                }
            },
        }
    }
}

/// Answers one client, in bounded time whatever the client does.
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
    reply(&server, &request, &mut connection).await;
    // More data may arrive, or may be unread.
    let is_complete = request.len() <= request::LONGEST && request.ends_with(b"\n");
    if !is_complete {
        sys::finish(connection).await;
    }
}

async fn reply(server: &Arc<Server>, request: &[u8], connection: &mut Connection) {
    let Some(pid) = request::parse(request) else {
        server
            .statistics
            .client_request_errors
            .fetch_add(1, Ordering::Relaxed);
        warn!(
            "Could not parse request: {:?}",
            String::from_utf8_lossy(request)
        );
        return;
    };
    match grant(server, pid, connection).await {
        Ok(port) => {
            server
                .statistics
                .total_allocations
                .fetch_add(1, Ordering::Relaxed);
            debug!("Allocated port {port} to pid {pid}");
            let answer = format!("{port}\n");
            // If the client does not read the answer, it still has the lease until it ends.
            let _ = time::timeout(PATIENCE, connection.write_all(answer.as_bytes())).await;
        }
        Err(denial) => {
            server
                .statistics
                .denied_allocations
                .fetch_add(1, Ordering::Relaxed);
            let warnings = &server.warnings;
            match denial {
                Denial::Process => info!("Not allocating a port to process {pid}"),
                Denial::Exhausted => warn_limited(&warnings.exhausted, || {
                    let usage = server.pool.usage();
                    format!("All ports in use. No port for process {pid}: {usage}")
                }),
                Denial::Failure(error) => warn_limited(&warnings.failed, || {
                    format!("cannot lease a port for process {pid}: {error}")
                }),
            }
        }
    }
}

/// Leases a port for the process with this pid, if the client may name it.
async fn grant(server: &Arc<Server>, pid: i64, connection: &Connection) -> Result<u16, Denial> {
    let pid = client(server, pid, connection).map_err(|why| {
        info!("Not allocating a port to {why}");
        Denial::Process
    })?;
    let server = Arc::clone(server);
    // A grant makes system calls on files and sockets. They are usually few, but on the thread that
    // reads and writes for all clients they would reduce the grants per second by 40 %.
    let grant = task::spawn_blocking(move || server.pool.grant(pid)).await;
    grant.unwrap_or(Err(Denial::Exhausted))
}

/// Reads until a newline, the end of the stream, one byte too many, or a short pause.
async fn read_request(connection: &mut Connection) -> io::Result<Vec<u8>> {
    let mut request = Vec::with_capacity(request::LONGEST + 1);
    // The total time is bounded too, for a client that sends a byte now and then.
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

/// Returns the process that will have the port, if the client may name it, or else a description
/// of the refused process.
fn client(server: &Server, pid: i64, connection: &Connection) -> Result<u32, String> {
    let pid = match u32::try_from(pid) {
        Ok(0) | Err(_) => return Err(format!("invalid pid {pid}")),
        // init adopts orphans, and would keep their ports forever.
        Ok(1) => return Err("init".to_owned()),
        Ok(pid) => pid,
    };
    sys::check_peer(pid, connection).map_err(|why| {
        warn_limited(&server.warnings.refused_peer, || {
            format!("Refused a client that asked for process {pid}: {why}")
        });
        format!("process {pid}: the client's pids may mean other processes here")
    })?;
    sys::check_client(pid, connection)?;
    Ok(pid)
}
