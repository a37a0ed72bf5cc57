//! The port server's address is a Unix socket, and signals say what it shall do.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt},
        net as std_net,
    },
    path::{Path, PathBuf},
};

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::{
    net::{UnixListener, UnixStream},
    signal::unix::{Signal, SignalKind, signal},
};

use super::{super::Wish, system};

pub(crate) const SERVE_HELP: &str = "\
A client names a process by its pid, without proof: it gets ports for processes of
its own user only, unless it is root. SIGUSR1 prints statistics.";

pub(crate) type Connection = UnixStream;

/// Where the server listens.
#[derive(Debug)]
pub(crate) struct Endpoint {
    listener: UnixListener,
    _own_path: Option<OwnPath>,
}

impl Endpoint {
    /// Listens on an abstract address, `@name`, or on a path.
    pub(crate) fn listen(address: &str) -> io::Result<Self> {
        let (listener, _own_path) = match address.strip_prefix('@') {
            Some(name) => {
                let name = system::abstract_address(name)?;
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
        let listener = UnixListener::from_std(listener)?;
        Ok(Self {
            listener,
            _own_path,
        })
    }

    pub(crate) async fn accept(&mut self) -> io::Result<Connection> {
        self.listener
            .accept()
            .await
            .map(|(connection, _)| connection)
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

/// What the process that the client names may have.
///
/// A pid is a claim without proof. What is compared is the user: nobody but root
/// can have ports leased for another user's process. That a process names
/// another one of the same user is what the protocol is for.
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
}

impl Wishes {
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            dump: signal(SignalKind::user_defined1())?,
        })
    }

    pub(crate) async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::Stop,
            _ = self.interrupt.recv() => Wish::Stop,
            _ = self.dump.recv() => Wish::Statistics,
        }
    }
}

/// Thousands of clients may be connected at once, and each takes a descriptor.
pub(crate) fn raise_descriptor_limit() -> io::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    Ok(setrlimit(Resource::Nofile, limit)?)
}
