//! The port server listens on Unix sockets, is controlled by signals, and can be started by
//! a service manager.

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
A client names a process by its pid, without proof: it gets ports for processes of
its own user only, unless it is root. A client in another pid namespace, such as a
container's, is refused, because its pids mean other processes here, unless it names
itself by its pid here.

SIGUSR1 prints statistics. SIGTERM and SIGINT end the server; SIGHUP does nothing.
Sockets that a service manager passes (LISTEN_FDS; sd_listen_fds(3)) are served instead of
ADDRESS, and the manager is notified when the server is ready (NOTIFY_SOCKET;
sd_notify(3)).";

pub(crate) type Connection = UnixStream;

/// Sockets that a service manager has passed.
pub(crate) type PassedListeners = Vec<std_net::UnixListener>;

/// Takes the sockets that a service manager has passed, if any.
///
/// It removes their variables from the environment, so it must be called before there is a
/// second thread.
pub(crate) fn passed_listeners() -> io::Result<PassedListeners> {
    /// More than any unit has, and few enough to be listed.
    const MOST: usize = 64;
    let number = env::var("LISTEN_FDS").ok();
    let number = number.and_then(|number| number.parse().ok());
    if number.is_some_and(|number: usize| number > MOST) {
        let message = format!("LISTEN_FDS names more than {MOST} of them");
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
    /// The listener that is asked first, so that none keeps another one waiting.
    next: usize,
    name: String,
    _own_path: Option<OwnPath>,
}

impl Endpoint {
    /// Listens on the sockets that were passed, or if there are none, on an abstract
    /// address, `@name`, or a path.
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

    /// Describes where that is.
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

/// Describes the address of a socket, as users name it.
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

/// Notifies the service manager that the server ends.
pub(crate) fn notify_stopping() -> io::Result<()> {
    sd_notify::notify(&[NotifyState::Stopping])
}

/// Ends a connection from which more may come.
///
/// A socket that is closed with unread data resets the connection (unix(7)), and the client
/// gets an error instead of the end of the stream. So the client is sent the end first, and
/// what still comes is read, within bounds.
pub(crate) async fn finish(mut connection: Connection) {
    const LONGEST: u64 = 64 * 1024;
    const PATIENCE: Duration = Duration::from_secs(1);
    if connection.shutdown().await.is_ok() {
        let mut rest = connection.take(LONGEST);
        let _ = time::timeout(PATIENCE, copy(&mut rest, &mut sink())).await;
    }
}

/// A socket's file, removed at the end if it is still the one that was made.
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

/// Checks that a client means the same processes by pids as this server.
///
/// The kernel tells which process has connected (SO_PEERCRED, unix(7)), by its pid in this
/// server's pid namespace. If that is the pid that the client names, the port is for the client
/// itself, in whatever namespace it is.
pub(crate) fn check_peer(pid: u32, connection: &Connection) -> Result<(), String> {
    let peer = connection
        .peer_cred()
        .map_err(|error| format!("the system does not tell which process it is: {error}"))?;
    match peer.pid().and_then(|pid| u32::try_from(pid).ok()) {
        Some(peer) if peer == pid => Ok(()),
        peer => system::check_namespace(peer),
    }
}

/// Checks that the client may have a port for the process that it names.
///
/// A pid is a claim without proof. What is compared is the user: only root can have ports
/// leased for another user's process. Naming another process of the same user is what
/// the protocol is for.
pub(crate) fn check_client(pid: u32, connection: &Connection) -> Result<(), String> {
    let peer = connection
        .peer_cred()
        .map_err(|error| format!("unknown peer: {error}"))?;
    match peer.uid() {
        0 => Ok(()),
        user => system::check_user(pid, user),
    }
}

/// What is told by signals.
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
                // There is nothing to read again. By default it would end the server, which
                // is no good when a terminal is closed or a log is rotated.
                _ = self.hangup.recv() => {}
            }
        }
    }
}

/// Thousands of clients may be connected at once, and each takes a descriptor.
pub(crate) fn raise_descriptor_limit() -> io::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = match (system::OPEN_MAX, limit.maximum) {
        (Some(most), Some(maximum)) => Some(most.min(maximum)),
        (Some(most), None) => Some(most),
        (None, maximum) => maximum,
    };
    Ok(setrlimit(Resource::Nofile, limit)?)
}
