//! The port server's endpoint: a named pipe, as in portpicker, controlled by console events.

use std::io;

use tokio::{
    net::windows::named_pipe::{NamedPipeServer, ServerOptions},
    signal::windows::{CtrlBreak, CtrlC, CtrlClose, ctrl_break, ctrl_c, ctrl_close},
    task::JoinSet,
};

use super::super::Wish;

pub(crate) const DEFAULT_ADDRESS: Option<&str> = Some("@unittest-portserver");
pub(crate) const ADDRESS_HELP: &str = r"Where to listen: @NAME, for the named pipe \\.\pipe\NAME";
pub(crate) const SERVE_HELP: &str = "\
A client names a process by its pid, without proof. Only this server's own user and
administrators can connect. Ctrl-Break prints statistics.";

/// Number of pipe instances that wait for clients. Each instance serves one client, and a client that
/// finds none waiting is refused.
const WAITING: usize = 64;
/// Size of a pipe's buffers in bytes. Requests and answers are short.
const BUFFER: u32 = 64;

pub(crate) type Connection = NamedPipeServer;

/// Pipes passed by a service manager. No service manager on Windows does that.
pub(crate) struct PassedListeners;

impl PassedListeners {
    pub(crate) fn is_empty(&self) -> bool {
        true
    }
}

pub(crate) fn passed_listeners() -> io::Result<PassedListeners> {
    Ok(PassedListeners)
}

/// Where the server listens.
#[derive(Debug)]
pub(crate) struct Endpoint {
    name: String,
    path: String,
    waiting: JoinSet<io::Result<Connection>>,
}

impl Endpoint {
    /// Listens on the named pipe `@name`, or on a pipe named by its full path.
    ///
    /// By default only its owner, administrators and the system may write to a pipe
    /// (Named Pipe Security and Access Rights). Clients on other machines are rejected.
    pub(crate) fn listen(address: &str, _: PassedListeners) -> io::Result<Self> {
        let path = match address.strip_prefix('@') {
            Some(name) => format!(r"\\.\pipe\{name}"),
            None => address.to_owned(),
        };
        let first = options().first_pipe_instance(true).create(&path);
        let first = first.map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => {
                let message = "a server is already listening there";
                io::Error::new(io::ErrorKind::AddrInUse, message)
            }
            _ => error,
        })?;
        let waiting = JoinSet::new();
        let name = address.to_owned();
        let mut endpoint = Self {
            name,
            path,
            waiting,
        };
        endpoint.wait_with(first);
        endpoint.wait_with_all()?;
        Ok(endpoint)
    }

    /// Describes the address.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) async fn accept(&mut self) -> io::Result<Connection> {
        self.wait_with_all()?;
        match self.waiting.join_next().await {
            Some(Ok(connected)) => connected,
            Some(Err(error)) => Err(error.into()),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn wait_with_all(&mut self) -> io::Result<()> {
        while self.waiting.len() < WAITING {
            let instance = options().create(&self.path)?;
            self.wait_with(instance);
        }
        Ok(())
    }

    fn wait_with(&mut self, instance: NamedPipeServer) {
        self.waiting
            .spawn(async move { instance.connect().await.map(|()| instance) });
    }
}

fn options() -> ServerOptions {
    let mut options = ServerOptions::new();
    options
        .reject_remote_clients(true)
        .in_buffer_size(BUFFER)
        .out_buffer_size(BUFFER);
    options
}

/// Does nothing: no service manager on Windows waits for this.
pub(crate) fn notify_ready() -> io::Result<()> {
    Ok(())
}

pub(crate) fn notify_stopping() -> io::Result<()> {
    Ok(())
}

/// Ends a connection on which more data may arrive. When a pipe is closed, the client gets the end of
/// the stream even if data was not read.
pub(crate) async fn finish(connection: Connection) {
    drop(connection);
}

/// Accepts every peer: Windows has no pid namespaces.
pub(crate) fn check_peer(_: u32, _: &Connection) -> Result<(), String> {
    Ok(())
}

/// Every client that may write to the pipe may name any process; see [`Endpoint::listen`].
pub(crate) fn check_client(_: u32, _: &Connection) -> Result<(), String> {
    Ok(())
}

/// Requests to the server by console events.
#[derive(Debug)]
pub(crate) struct Wishes {
    interrupt: CtrlC,
    close: CtrlClose,
    dump: CtrlBreak,
}

impl Wishes {
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: ctrl_c()?,
            close: ctrl_close()?,
            dump: ctrl_break()?,
        })
    }

    pub(crate) async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.interrupt.recv() => Wish::Stop,
            _ = self.close.recv() => Wish::Stop,
            _ = self.dump.recv() => Wish::Statistics,
        }
    }
}

/// Does nothing: a process may have millions of handles.
pub(crate) fn raise_descriptor_limit() -> io::Result<()> {
    Ok(())
}
