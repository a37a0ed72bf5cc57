//! The lease of one port.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use crate::{
    bindfree::Probe,
    error::{ErrorKind, Result},
    family,
    lock::PortLock,
    owner::{self, Kind, Owner},
    process, readiness,
    server::Server,
    unavailable::Failure,
};

#[cfg(unix)]
mod unix;

/// A leased port: no other caller of portlock can lease it, and no program has it bound when you
/// get it.
///
/// All threads and processes that use the same lock directory respect the lease. It ends with
/// [`release`](Self::release), with drop, or when this process dies, for any reason. Bind the
/// port when you like, as often as you like, or pass the number to a child; but keep this value
/// as long as the port is in use.
///
/// A lease has no effect on programs that do not use portlock. They can take the port after it is
/// leased and before you bind it. To rule that out, use [`listen`](Self::listen); to make it
/// unlikely, choose a range outside the ephemeral range.
///
/// # Platform-specific behavior
///
/// A process created by `fork` without `exec` inherits the lease's file descriptor. Dropping its
/// copy of this value does not end the lease, and a `release` in the parent ends the lease for
/// good. But if the parent dies without releasing it, the lease lasts as long as such a child
/// lives: the kernel ends a lock only with the last duplicate of its descriptor (flock(2)).
///
/// Network namespaces that share a lock directory share its leases: a port that is leased in one
/// is not leased in another, even if it could be bound there, because it is better to withhold a
/// port than to give it out twice. Whether a port is bound is checked only in the caller's own
/// namespace.
///
/// Windows has neither fork nor network namespaces. macOS cannot create a socket with its
/// close-on-exec flag set. So a child that another thread starts during the probe can keep the
/// port bound: for a moment, or for the child's whole life if it was started between socket(2)
/// and fcntl(2). Even servers that set `SO_REUSEADDR` are then refused, because on macOS that
/// option has no effect on the probe when it is set after the bind. [`Builder::listen`](crate::Builder::listen) with one
/// [`host`](crate::Builder::host) avoids both: its only socket becomes the listener.
///
/// # Examples
///
/// ```
/// use std::{process::Command, time::Duration};
///
/// # if Command::new("redis-server").arg("--version").output().is_err() { return Ok(()) }
/// let port = portlock::FreePort::new(4000..=6000)?;
/// let mut server = Command::new("redis-server")
///     .args(["--save", "", "--port", &port.to_string()])
///     .spawn()?;
/// port.wait_until_listening(Duration::from_secs(10))?;
/// // Test against `port.addr()`.
/// server.kill()?;
/// server.wait()?;
/// port.release()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropping a lease immediately releases its port"]
pub struct FreePort {
    port: u16,
    host: Option<IpAddr>,
    // Dropped first: the port must be unbound before the lock is released. Boxed because it is
    // rarely present and would double the size of a lease.
    socket: Option<Box<Probe>>,
    lock: PortLock,
}

impl FreePort {
    pub(crate) fn leased(host: Option<IpAddr>, socket: Option<Box<Probe>>, lock: PortLock) -> Self {
        Self {
            port: lock.port(),
            host,
            socket,
            lock,
        }
    }

    /// Returns the port's number, 1 to 65535.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the address at which a client on this machine reaches a server on this port: the
    /// builder's host, or `127.0.0.1` if no host was set. For a wildcard address it is the
    /// loopback address of the same family.
    ///
    /// # Examples
    ///
    /// ```
    /// let port = portlock::FreePort::new(4000..=6000)?;
    /// assert_eq!(port.addr().to_string(), format!("127.0.0.1:{port}"));
    /// # Ok::<(), portlock::Error>(())
    /// ```
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        let host = match self.host {
            None => Ipv4Addr::LOCALHOST.into(),
            Some(IpAddr::V4(host)) if host.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            Some(IpAddr::V6(host)) if host.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            Some(host) => host,
        };
        SocketAddr::new(host, self.port)
    }

    /// Ends the lease. When it returns, any other thread or process can immediately lease the
    /// port.
    ///
    /// Dropping does the same but reports no error.
    ///
    /// # Errors
    ///
    /// [`Lock`](crate::ErrorKind::Lock) if the system refuses to unlock, or if this is a forked
    /// copy of the process that acquired the lease; the lease then continues in that process.
    pub fn release(self) -> Result<()> {
        drop(self.socket);
        self.lock.release()
    }

    /// Transfers the lease to the process `pid`: the lease then lasts as long as that process,
    /// whatever happens to this one. Returns the port's number.
    ///
    /// This is for programs that start a server and exit, or that only find a port. Such a lease
    /// needs no lock and no daemon: the owner record in the lock file identifies the process by
    /// its pid, start time and pid namespace, and a caller that wants the port checks whether
    /// that process is proven to have ended. So a reused pid does not keep a port leased. A
    /// socket that was [held](crate::Builder::hold_socket) is closed.
    ///
    /// # Errors
    ///
    /// [`Process`](crate::ErrorKind::Process) if there is no such process, or the system does not
    /// identify it, for example because `/proc` is not mounted; [`Lock`](crate::ErrorKind::Lock)
    /// if the record cannot be written. The lease has then ended. Also `Lock` if this is a forked
    /// copy of the process that acquired the lease; the lease then continues in that process.
    ///
    /// # Platform-specific behavior
    ///
    /// `pid` is a pid in this process's pid namespace. On Linux, a caller in a pid namespace that
    /// cannot see that process, such as another container that shares the lock directory, cannot
    /// prove that it has ended. For that caller the lease never ends, because it is better to
    /// withhold a port than to give it out twice.
    /// [`LockDir::force_release`](crate::LockDir::force_release) ends it, and so does any caller
    /// that can prove that the process is gone.
    ///
    /// Windows and macOS do not show every process. A process that exists and may not be
    /// inspected, such as another user's process that reused the pid, counts as the holder. On
    /// Windows, a process that ended with exit code 259 keeps its leases as long as another
    /// process has a handle to it.
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::{ErrorKind, FreePort};
    ///
    /// let number = FreePort::new(4000..=6000)?.delegate_to(std::process::id())?;
    /// let error = FreePort::try_new(number).unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::Exhausted);
    /// # Ok::<(), portlock::Error>(())
    /// ```
    pub fn delegate_to(self, pid: u32) -> Result<u16> {
        self.lock.must_be_ours("delegate")?;
        self.record(Kind::Delegated, pid)?;
        // From here on the port belongs to that process. Errors of the lock are not reported: it
        // ends with its descriptor in any case.
        Ok(self.port)
    }

    /// Records that the lease belongs to the process `pid`, keeping the label.
    fn record(&self, kind: Kind, pid: u32) -> Result<()> {
        let process = process::find(pid)?;
        let record = || {
            let owner = self.lock.read()?.owner;
            let label = owner.as_ref().and_then(Owner::label);
            self.lock
                .write_long(&owner::of_process(kind, &process, label))
        };
        record().map_err(|failure| self.lock.needs_record(failure))
    }

    /// Waits until a server accepts connections at [`addr`](Self::addr) or, if the builder
    /// named no host, at the loopback address of either family, as
    /// [`wait_until_listening`](crate::wait_until_listening) does.
    ///
    /// That can be any server. If yours failed to start because another program has taken the
    /// port, the other program's server answers. [`wait_for_server`](Self::wait_for_server)
    /// distinguishes them.
    ///
    /// # Errors
    ///
    /// [`Timeout`](crate::ErrorKind::Timeout) if no server does so within `timeout`;
    /// [`Probe`](crate::ErrorKind::Probe) if connecting fails for a reason that does not go away.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{net::TcpListener, thread, time::Duration};
    ///
    /// let port = portlock::FreePort::new(4000..=6000)?;
    /// let addr = port.addr();
    /// let server = thread::spawn(move || TcpListener::bind(addr));
    /// port.wait_until_listening(Duration::from_secs(5))?;
    /// # server.join().unwrap()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wait_until_listening(&self, timeout: Duration) -> Result<()> {
        readiness::wait_until_listening(&self.addresses()[..], timeout)
    }

    /// Waits until the server of the process `pid` accepts connections where
    /// [`wait_until_listening`](Self::wait_until_listening) would connect, and returns it. For a server in
    /// this process, that is [`std::process::id`].
    ///
    /// The server is that of `pid` if its process is `pid` or a descendant of it. If several
    /// processes share a socket, such as the workers of a server, one of them is enough; if
    /// several sockets share an address (`SO_REUSEPORT`), each must match. A server whose owner
    /// is [unknown](crate::BelongsTo::Unknown), because it cannot be seen or has daemonized, is
    /// accepted. [`Server::belongs_to`] distinguishes them.
    ///
    /// # Platform-specific behavior
    ///
    /// Only the sockets in the caller's network namespace are seen, and only the processes that
    /// the caller may inspect: on Linux and macOS, without privileges, those of the same user.
    /// Windows reports one process for each socket, the one that created it.
    ///
    /// # Errors
    ///
    /// [`OtherServer`](crate::ErrorKind::OtherServer) as soon as a server of another process
    /// answers; [`Timeout`](crate::ErrorKind::Timeout) if none answers within `timeout`, with a
    /// note if `pid` has ended; [`Probe`](crate::ErrorKind::Probe) if connecting fails for a
    /// reason that does not go away, or the system fails to list its sockets;
    /// [`Process`](crate::ErrorKind::Process) if the system fails to show processes.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{process::Command, time::Duration};
    ///
    /// # if Command::new("redis-server").arg("--version").output().is_err() { return Ok(()) }
    /// let port = portlock::FreePort::new(4000..=6000)?;
    /// let mut server = Command::new("redis-server")
    ///     .args(["--save", "", "--port", &port.to_string()])
    ///     .spawn()?;
    /// port.wait_for_server(server.id(), Duration::from_secs(10))?;
    /// # server.kill()?;
    /// # server.wait()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wait_for_server(&self, pid: u32, timeout: Duration) -> Result<Server> {
        let owner = match self.lock.read() {
            Ok(content) => content.owner,
            // Another program has the record open exclusively, so the start of the lease is
            // unknown.
            Err(Failure::Unavailable(_)) => None,
            Err(Failure::Error(error)) => return Err(error),
        };
        let since = owner.and_then(|owner| owner.since());
        let server = family::wait_for_process(&self.addresses()[..], pid, since, timeout);
        server.map_err(|error| match error.kind() {
            ErrorKind::OtherServer => error.with_hint("wait_until_listening accepts any server"),
            _ => error,
        })
    }

    /// Returns the addresses at which a server on this port may be reached.
    fn addresses(&self) -> Vec<SocketAddr> {
        let mut addresses = vec![self.addr()];
        if self.host.is_none() {
            addresses.push((Ipv6Addr::LOCALHOST, self.port).into());
        }
        addresses
    }
}

/// Writes only the port's number, as for a command line.
impl fmt::Display for FreePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.port.fmt(f)
    }
}

impl fmt::Debug for FreePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FreePort")
            .field("port", &self.port)
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}
