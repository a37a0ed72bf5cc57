//! The port server's endpoint: it listens on Unix sockets, is controlled by signals, and can be
//! started by a service manager.

use std::{
    env, fs,
    future::poll_fn,
    io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt},
        net as std_net,
    },
    path::{Path, PathBuf},
    task::{Context, Poll},
    time::Duration,
};

use listenfd::ListenFd;
use rustix::process::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy, sink},
    net::{UnixListener, UnixStream},
    signal::unix::{Signal, SignalKind, signal},
    time,
};

use super::{super::Wish, system};

pub(crate) const SERVE_HELP: &str = "\
A client names a process by its pid, without proof. So it gets ports only for processes of
its own user, unless it is root. A client in another pid namespace, such as a container, is
refused, because its pids mean other processes here. The exception is a client that sends its
own pid as seen here.

SIGUSR1 prints statistics. SIGTERM and SIGINT end the server; SIGHUP does nothing.
If a service manager passes sockets (LISTEN_FDS; sd_listen_fds(3)), the server listens on
them instead of ADDRESS, and notifies the manager when it is ready (NOTIFY_SOCKET;
sd_notify(3)).";

pub(crate) type Connection = UnixStream;

/// Sockets passed by a service manager.
pub(crate) type PassedListeners = Vec<std_net::UnixListener>;

/// Takes the sockets passed by a service manager, if any.
///
/// It removes their variables from the environment, so it must be called before there is a
/// second thread.
pub(crate) fn passed_listeners() -> io::Result<PassedListeners> {
    /// Maximum number of sockets: more than any unit has, and few enough to list in a message.
    const MOST: usize = 64;
    let number = env::var("LISTEN_FDS").ok();
    let number = number.and_then(|number| number.parse().ok());
    if number.is_some_and(|number: usize| number > MOST) {
        let message = format!("LISTEN_FDS names more than {MOST} sockets");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let mut passed = ListenFd::from_env();
    let listeners = (0..passed.len()).map(|index| passed.take_unix_listener(index));
    listeners.filter_map(Result::transpose).collect()
}

/// Where the server listens.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// At least one.
    listeners: Vec<UnixListener>,
    /// The listener to poll first, in rotation, so that none starves another.
    next: usize,
    name: String,
    _own_path: Option<OwnPath>,
}

impl Endpoint {
    /// Listens on the passed sockets or, if there are none, on an abstract address (`@name`) or a
    /// path.
    pub(crate) fn listen(address: &str, passed: PassedListeners) -> io::Result<Self> {
        let mut own_path = None;
        let (listeners, name) = match address.strip_prefix('@') {
            _ if !passed.is_empty() => {
                let names: Vec<String> = passed.iter().map(name_of).collect();
                let name = format!("{}, passed by the service manager", names.join(" and "));
                (passed, name)
            }
            Some(name) => {
                let name = system::abstract_address(name)?;
                let listener = std_net::UnixListener::bind_addr(&name)?;
                (vec![listener], address.to_owned())
            }
            None => {
                let path = Path::new(address);
                remove_dead_socket(path)?;
                let listener = std_net::UnixListener::bind(path)?;
                own_path = Some(OwnPath {
                    path: path.to_owned(),
                    identity: identity(path)?,
                });
                (vec![listener], address.to_owned())
            }
        };
        let listen = |listener: std_net::UnixListener| {
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        };
        Ok(Self {
            listeners: listeners
                .into_iter()
                .map(listen)
                .collect::<io::Result<_>>()?,
            next: 0,
            name,
            _own_path: own_path,
        })
    }

    /// Describes the address.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) async fn accept(&mut self) -> io::Result<Connection> {
        poll_fn(|context| self.poll_accept(context)).await
    }

    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Connection>> {
        let number = self.listeners.len();
        for _ in 0..number {
            let index = self.next % number;
            self.next = index + 1;
            if let Poll::Ready(accepted) = self.listeners[index].poll_accept(context) {
                return Poll::Ready(accepted.map(|(connection, _)| connection));
            }
        }
        Poll::Pending
    }
}

/// Describes the address of a socket as a user would write it.
fn name_of(listener: &std_net::UnixListener) -> String {
    let address = listener.local_addr().ok();
    let path = address.as_ref().and_then(|address| address.as_pathname());
    match (path, &address) {
        (Some(path), _) => path.display().to_string(),
        (None, Some(address)) => match system::abstract_name(address) {
            Some(name) => format!("@{}", name.escape_ascii()),
            None => "a socket without a name".to_owned(),
        },
        (None, None) => "a socket".to_owned(),
    }
}

/// Notifies the service manager that clients can connect.
pub(crate) fn notify_ready() -> io::Result<()> {
    sd_notify::notify(&[NotifyState::Ready])
}

/// Notifies the service manager that the server is stopping.
pub(crate) fn notify_stopping() -> io::Result<()> {
    sd_notify::notify(&[NotifyState::Stopping])
}

/// Ends a connection on which more data may arrive.
///
/// Closing a socket with unread data resets the connection (unix(7)), and the client gets an error
/// instead of the end of the stream. So this sends the end of the stream first, and then reads what
/// still arrives, within bounds.
pub(crate) async fn finish(mut connection: Connection) {
    const LONGEST: u64 = 64 * 1024;
    const PATIENCE: Duration = Duration::from_secs(1);
    if connection.shutdown().await.is_ok() {
        let mut rest = connection.take(LONGEST);
        let _ = time::timeout(PATIENCE, copy(&mut rest, &mut sink())).await;
    }
}

/// The file of a socket. On drop it is removed, unless it was replaced.
#[derive(Debug)]
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

/// Removes a socket on which no process listens any more, and nothing else.
fn remove_dead_socket(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            let message = "a file that is not a socket exists there";
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

/// Checks that a client means the same processes by pids as this server.
///
/// The kernel reports the peer's pid in this server's pid namespace (`SO_PEERCRED` in unix(7)). If
/// the client names that pid, the port is for the client itself, whatever its namespace.
pub(crate) fn check_peer(pid: u32, connection: &Connection) -> Result<(), String> {
    let peer = connection
        .peer_cred()
        .map_err(|error| format!("cannot determine the client's process: {error}"))?;
    match peer.pid().and_then(|pid| u32::try_from(pid).ok()) {
        Some(peer) if peer == pid => Ok(()),
        peer => system::check_namespace(peer),
    }
}

/// Checks that the client may request a port for the process that it names.
///
/// A pid is a claim without proof, so the users are compared: only root can lease ports for
/// another user's process. The protocol allows a client to name any process of its own user.
pub(crate) fn check_client(pid: u32, connection: &Connection) -> Result<(), String> {
    let peer = connection
        .peer_cred()
        .map_err(|error| format!("unknown peer: {error}"))?;
    match peer.uid() {
        0 => Ok(()),
        user => system::check_user(pid, user),
    }
}

/// Requests to the server by signals.
#[derive(Debug)]
pub(crate) struct Wishes {
    terminate: Signal,
    interrupt: Signal,
    dump: Signal,
    hangup: Signal,
}

impl Wishes {
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            dump: signal(SignalKind::user_defined1())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    pub(crate) async fn next(&mut self) -> Wish {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return Wish::Stop,
                _ = self.interrupt.recv() => return Wish::Stop,
                _ = self.dump.recv() => return Wish::Statistics,
                // There is no configuration to reload. By default SIGHUP would end the server, for
                // example when a terminal is closed or a log is rotated.
                _ = self.hangup.recv() => {}
            }
        }
    }
}

/// Raises the limit on open descriptors: thousands of clients may be connected at the same time, and
/// each uses one.
pub(crate) fn raise_descriptor_limit() -> io::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = match (system::OPEN_MAX, limit.maximum) {
        (Some(most), Some(maximum)) => Some(most.min(maximum)),
        (Some(most), None) => Some(most),
        (None, maximum) => maximum,
    };
    Ok(setrlimit(Resource::Nofile, limit)?)
}
