//! `serve`: a port server for portpicker and all who speak its protocol.
//!
//! One request per connection: a pid in decimal, normally with a newline behind
//! it. The answer is a port and a newline, or nothing.

use std::{
    fs,
    io::{self, IsTerminal as _},
    os::{
        linux::net::SocketAddrExt,
        unix::{fs::FileTypeExt, fs::MetadataExt, net as std_net},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use procfs::process::Process;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    runtime,
    signal::unix::{SignalKind, signal},
    task, time,
};
use tracing::{debug, info, warn};

use crate::{
    args::Serve,
    failure::{FAILED, Failure},
    pool::{Denial, Pool},
    request,
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
    // A directory that is not to be trusted is found now, not by the first client.
    let locks = portlock::LockDir::locate(dir)?;
    if args.ports.is_empty() {
        return Err(Failure::new(
            FAILED,
            "--ports names no port from 1 to 65535",
        ));
    }
    raise_descriptor_limit();
    let server = Arc::new(Server {
        pool: Pool::new(&args.ports, Some(locks.path().to_owned())),
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
    runtime.block_on(run(&server, &args.address))?;
    server.statistics.log(&server.pool);
    info!("Goodbye.");
    Ok(0)
}

/// Thousands of clients may be connected at once, and each takes a descriptor.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        debug!("cannot raise the limit of open files: {error}");
    }
}

async fn run(server: &Arc<Server>, address: &str) -> Result<(), Failure> {
    let fail = |what: &'static str| {
        let address = address.to_owned();
        move |error: io::Error| Failure::new(FAILED, format!("cannot {what} {address}: {error}"))
    };
    let (mut terminate, mut interrupt, mut dump) = (|| {
        let on = |kind| signal(kind);
        Ok((
            on(SignalKind::terminate())?,
            on(SignalKind::interrupt())?,
            on(SignalKind::user_defined1())?,
        ))
    })()
    .map_err(fail("handle signals for"))?;
    let (listener, _own_path) = listen(address).map_err(fail("serve on"))?;
    info!("Serving on {address}");
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((connection, _)) => {
                    task::spawn(answer(Arc::clone(server), connection));
                }
                Err(error) => {
                    warn!("cannot accept a connection: {error}");
                    time::sleep(ACCEPT_PAUSE).await;
                }
            },
            _ = dump.recv() => server.statistics.log(&server.pool),
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
}

/// A socket's file, removed at the end if it is still the one that was made.
struct OwnPath {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for OwnPath {
    fn drop(&mut self) {
        let is_own = identity(&self.path).is_ok_and(|identity| identity == self.identity);
        if is_own {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Listens on an abstract address, `@name`, or on a path.
fn listen(address: &str) -> io::Result<(UnixListener, Option<OwnPath>)> {
    let (listener, own_path) = match address.strip_prefix('@') {
        Some(name) => {
            let name = std_net::SocketAddr::from_abstract_name(name)?;
            (std_net::UnixListener::bind_addr(&name)?, None)
        }
        None => {
            let path = Path::new(address);
            remove_dead_socket(path)?;
            let listener = std_net::UnixListener::bind(path)?;
            let identity = identity(path)?;
            let path = path.to_owned();
            (listener, Some(OwnPath { path, identity }))
        }
    };
    listener.set_nonblocking(true)?;
    Ok((UnixListener::from_std(listener)?, own_path))
}

/// Removes a socket on which nobody listens any more; leaves everything else.
fn remove_dead_socket(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            let message = "there is a file that is no socket";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        }
        Ok(_) => {}
    }
    match std_net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
        Ok(_) => {
            let message = "a server is already listening there";
            Err(io::Error::new(io::ErrorKind::AddrInUse, message))
        }
    }
}

/// Answers one client. Whatever it does, it has a bounded time for it.
async fn answer(server: Arc<Server>, mut connection: UnixStream) {
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
async fn read_request(connection: &mut UnixStream) -> io::Result<Vec<u8>> {
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
///
/// A pid is a claim without proof. What is compared is the user: nobody but root
/// can have ports leased for another user's process. That a process names
/// another one of the same user is what the protocol is for.
fn client(pid: i64, connection: &UnixStream) -> Result<u32, String> {
    let pid = match u32::try_from(pid) {
        Ok(0) | Err(_) => return Err(format!("invalid pid {pid}")),
        // It is who orphans belong to, and would keep its ports for ever.
        Ok(1) => return Err("init".to_owned()),
        Ok(pid) => pid,
    };
    let peer = connection
        .peer_cred()
        .map_err(|error| format!("unknown peer: {error}"))?;
    if peer.uid() == 0 {
        return Ok(pid);
    }
    let process = i32::try_from(pid)
        .ok()
        .and_then(|pid| Process::new(pid).ok());
    let Some(status) = process.and_then(|process| process.status().ok()) else {
        return Err(format!("process {pid}, which does not exist"));
    };
    if [status.ruid, status.euid].contains(&peer.uid()) {
        Ok(pid)
    } else {
        Err(format!(
            "process {pid} of user {}, for user {} asked for it",
            status.ruid,
            peer.uid()
        ))
    }
}
