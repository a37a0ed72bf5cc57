//! The lease.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    ops::RangeBounds,
    time::Duration,
};

use crate::{
    bindfree::{self, Probe},
    builder::Builder,
    error::Result,
    lock::PortLock,
    owner::{self, Kind, Owner},
    ports::PortSet,
    process,
};

/// A leased port: nobody else who uses portlock can be given it, and nobody is
/// bound to it when you get it.
///
/// The lease is shared by all threads and processes that use the same lock
/// directory. It ends with [`release`](Self::release), with drop, or with the
/// death of this process, however it dies. Bind the port as soon as you like,
/// as often as you like, or hand the number to a child; but keep this value as
/// long as the port is in use.
///
/// A lease says nothing to programs that do not use portlock. They can take the
/// port between the moment it is given and the moment you bind it. To exclude
/// that too, [`listen`](Self::listen); to make it unlikely, choose a range
/// outside the ephemeral one.
///
/// # Platform-specific behavior
///
/// A process made by `fork` without `exec` inherits the lease's file
/// descriptor. Its copy of this value ends nothing when dropped, and a
/// `release` in the parent ends the lease for good. But if the parent dies
/// without that, the lease lives on as long as such a child does: the kernel
/// ends a lock only with the last duplicate of its descriptor (flock(2)).
///
/// Network namespaces that share a lock directory share its leases: a port that is
/// leased in one is given in no other, though it could be bound there; rather a port
/// too few than one given twice. Whether a port is bound is asked in the caller's own
/// namespace alone.
///
/// Windows has neither. On macOS a child that another thread is just starting can keep
/// the port bound for a moment also from servers that set `SO_REUSEADDR`, if it was
/// forked: that option, set after the bind, has no effect there.
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
#[must_use = "dropping a lease at once gives its port away again"]
pub struct FreePort {
    port: u16,
    host: Option<IpAddr>,
    // Dropped first: who finds the lock ended must find the port unbound. It is seldom
    // there, and would make each lease twice as large.
    socket: Option<Box<Probe>>,
    lock: PortLock,
}

impl FreePort {
    /// Leases a random free port of `range`, and waits up to 30 seconds while
    /// every port of it is leased or in use.
    ///
    /// The port is free on every IPv4 and IPv6 address of this machine. The kernel
    /// tells a waiter of each lease that ends, in this process or another. What it
    /// cannot tell, such as that another program leaves a port, is noticed within
    /// some tenths of a second, for a large range two seconds. Of all who wait for
    /// the same range one watches it, and the others stand in line behind.
    ///
    /// # Errors
    ///
    /// By [`kind`](crate::Error::kind):
    ///
    /// * [`InvalidPorts`](crate::ErrorKind::InvalidPorts): `range` is empty,
    ///   reversed, or only port 0;
    /// * [`Exhausted`](crate::ErrorKind::Exhausted): no port came free in time; the
    ///   message counts the ports that were leased, bound by other programs or not
    ///   permitted, and names some holders;
    /// * [`PermissionDenied`](crate::ErrorKind::PermissionDenied): this process may bind
    ///   none of the ports;
    /// * [`LockDir`](crate::ErrorKind::LockDir), [`Lock`](crate::ErrorKind::Lock),
    ///   [`Probe`](crate::ErrorKind::Probe): the directory is not to be trusted, or the
    ///   system failed at a lock file or socket, for example for want of file
    ///   descriptors. Such an error ends the call at once.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::net::TcpListener;
    ///
    /// let port = portlock::FreePort::new(4000..=6000)?;
    /// let server = TcpListener::bind(("127.0.0.1", port.port()))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new(range: impl RangeBounds<u16>) -> Result<Self> {
        Self::builder().ports(PortSet::from_range(range)?).acquire()
    }

    /// Leases a random free port of `range` if there is one now.
    ///
    /// It tries each port once and waits for no lease. Ports that are only
    /// kept by what remains of a closed socket are tried again during 32 ms
    /// before the range counts as exhausted.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::{ErrorKind, FreePort};
    ///
    /// let port = FreePort::new(4000..=6000)?;
    /// let only = port.port()..=port.port();
    /// let error = FreePort::try_new(only.clone()).unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::Exhausted);
    ///
    /// port.release()?;
    /// let again = FreePort::try_new(only)?;
    /// # Ok::<(), portlock::Error>(())
    /// ```
    pub fn try_new(range: impl RangeBounds<u16>) -> Result<Self> {
        Self::builder()
            .ports(PortSet::from_range(range)?)
            .try_acquire()
    }

    /// Leases a random free port of `range` and listens on it without a gap:
    /// the socket that found the port free becomes the listener.
    ///
    /// The listener accepts IPv4 and IPv6 connections on every address, has
    /// `SO_REUSEADDR` set as [`TcpListener::bind`] sets it, and a backlog of
    /// `net.core.somaxconn`. Keep the lease as long as the listener: when the
    /// listener is closed, the lease keeps the port for the next server.
    ///
    /// # Platform-specific behavior
    ///
    /// On Windows it has `SO_EXCLUSIVEADDRUSE` instead, so that nobody can listen beside
    /// it.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    ///
    /// # Examples
    ///
    /// ```
    /// let (port, listener) = portlock::FreePort::listen(4000..=6000)?;
    /// assert_eq!(listener.local_addr()?.port(), port.port());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn listen(range: impl RangeBounds<u16>) -> Result<(Self, TcpListener)> {
        Self::builder().ports(PortSet::from_range(range)?).listen()
    }

    /// A lease with more to say about it than a range: hosts, protocols, several
    /// ports, a stable choice, timeout, lock directory, label.
    pub fn builder() -> Builder {
        Builder::new()
    }

    pub(crate) fn leased(host: Option<IpAddr>, socket: Option<Box<Probe>>, lock: PortLock) -> Self {
        Self {
            port: lock.port(),
            host,
            socket,
            lock,
        }
    }

    /// The port's number, 1 to 65535.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where a client on this machine reaches a server on this port: the
    /// builder's host, or `127.0.0.1` if it named none. For a wildcard
    /// address it is the loopback address of the same family.
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

    /// Ends the lease. When it returns, any other thread or process can lease
    /// the port at once.
    ///
    /// Dropping does the same, but does not report what went wrong.
    ///
    /// # Errors
    ///
    /// [`Lock`](crate::ErrorKind::Lock) if the system refuses to unlock, or if
    /// this is a forked copy of the process that acquired the lease, which then
    /// goes on there.
    pub fn release(self) -> Result<()> {
        drop(self.socket);
        self.lock.release()
    }

    /// Gives the lease to the process `pid`: it then lives as long as that one,
    /// whatever happens to this one. Returns the port's number.
    ///
    /// That is for programs that start a server and end, or that only look for a
    /// port. No lock is held for such a lease and no daemon is needed: the
    /// owner record in the lock file says which process it is, by its pid, start
    /// time and pid namespace, and a caller that wants the port checks whether that process
    /// is proven to have ended. So a pid that is reused keeps no port. A socket that
    /// was [held](Builder::hold_socket) is closed.
    ///
    /// # Errors
    ///
    /// [`Process`](crate::ErrorKind::Process) if there is no such process, or the
    /// system does not tell which it is, as where `/proc` is not mounted;
    /// [`Lock`](crate::ErrorKind::Lock) if the
    /// record cannot be written. The lease has then ended. `Lock` too if this is a
    /// forked copy of the process that acquired the lease, which continues there.
    ///
    /// # Platform-specific behavior
    ///
    /// `pid` is as this process sees it. On Linux, a caller in a pid namespace
    /// from which that process cannot be seen, such as another container that
    /// shares the lock directory, cannot prove that it has ended: for that caller the lease never
    /// ends, because it is better to withhold a port than to give it out twice.
    /// [`LockDir::release`](crate::LockDir::release) with
    /// force, or any caller that can prove that the process is gone, ends it.
    ///
    /// Windows and macOS do not show every process. One that exists and may not be
    /// inspected, such as another user's that was given the pid since, counts as the one
    /// that has the lease. On Windows a process that has ended keeps its leases if its exit
    /// code was 259, as long as another process has a handle of it.
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::{ErrorKind, FreePort};
    ///
    /// let number = FreePort::new(4000..=6000)?.delegate_to(std::process::id())?;
    /// let error = FreePort::try_new(number..=number).unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::Exhausted);
    /// # Ok::<(), portlock::Error>(())
    /// ```
    pub fn delegate_to(self, pid: u32) -> Result<u16> {
        self.lock.must_be_ours("delegate")?;
        self.record(Kind::Delegated, pid)?;
        // From here on the port is that process's. Nothing is reported that may
        // go wrong with the lock, which ends with its descriptor in any case.
        Ok(self.port)
    }

    /// Writes that the lease belongs to the process `pid`, and keeps the label.
    fn record(&self, kind: Kind, pid: u32) -> Result<()> {
        let process = process::find(pid)?;
        let owner = self.lock.read_owner()?;
        let label = owner.as_ref().and_then(Owner::label);
        self.lock
            .write_long(&owner::of_process(kind, &process, label))
    }

    /// Returns the descriptor that holds the lease, for the process `pid` to inherit, and records
    /// that the lease is that process's.
    ///
    /// The lease then lives as long as the process keeps the descriptor, or a process that it
    /// started does, as with [`into_fd`](Self::into_fd). In addition, a process that closes what it
    /// inherited, as ssh(1) does, keeps the lease until it ends wherever others can see
    /// that it lives. A process that calls exec keeps its pid, so `pid` may be this process's own.
    /// Where the process cannot be determined, as from another container, the descriptor decides.
    ///
    /// The descriptor is close-on-exec, and has to be mapped or made inheritable. If exec fails, this
    /// process has the port until it ends, whatever it closes;
    /// [`LockDir::release`](crate::LockDir::release) ends that earlier.
    ///
    /// # Platform-specific behavior
    ///
    /// Only on Unix, as [`into_fd`](Self::into_fd).
    ///
    /// # Errors
    ///
    /// [`Process`](crate::ErrorKind::Process) if there is no such process;
    /// [`Lock`](crate::ErrorKind::Lock) if the record cannot be written or the descriptor cannot be
    /// duplicated. The lease has then ended. `Lock` too if this is a
    /// forked copy of the process that acquired the lease, which continues there.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::{io, os::unix::process::CommandExt, process::Command};
    /// use portlock::FreePort;
    ///
    /// /// Becomes a server, which has the lease until it ends.
    /// fn serve() -> io::Result<()> {
    ///     let port = FreePort::new(4000..=6000)?;
    ///     let mut server = Command::new("my-server");
    ///     server.arg(port.to_string());
    ///     // The simplest way to inherit a descriptor: as standard input.
    ///     server.stdin(port.pass_to(std::process::id())?);
    ///     Err(server.exec()) // returns only if it fails
    /// }
    /// ```
    #[cfg(unix)]
    pub fn pass_to(self, pid: u32) -> Result<std::os::fd::OwnedFd> {
        self.lock.must_be_ours("pass on")?;
        match self.record(Kind::Passed, pid) {
            // Without /proc nobody could tell when that process ends: then the lock is all there is.
            Err(error) if !process::is_recordable() => {
                log::debug!("port {} is kept by its lock alone: {error}", self.port);
            }
            outcome => outcome?,
        }
        self.into_fd()
    }

    /// The descriptor that holds the lease, for a process that shall inherit it.
    ///
    /// The lease then lives until the last duplicate of that descriptor is
    /// closed: in this process and in every one that inherits it, and in what
    /// they start. It is close-on-exec, and has to be mapped or made inheritable
    /// for a child. A socket that was [held](Builder::hold_socket) is closed.
    ///
    /// # Platform-specific behavior
    ///
    /// Only on Unix. The lock of a file on Windows is the process's, and a handle that
    /// another one inherits does not have it (LockFileEx): there,
    /// [delegate](Self::delegate_to) the lease.
    ///
    /// # Errors
    ///
    /// [`Lock`](crate::ErrorKind::Lock) if the descriptor cannot be duplicated, for
    /// want of descriptors: the lease has then ended; or if this is a forked copy of
    /// the process that acquired the lease, which then goes on there.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::process::Command;
    /// use portlock::FreePort;
    ///
    /// let port = FreePort::new(4000..=6000)?;
    /// let number = port.port();
    /// // The simplest way for a child to inherit a descriptor: as its standard input.
    /// let mut child = Command::new("sleep").arg("10").stdin(port.into_fd()?).spawn()?;
    /// assert!(FreePort::try_new(number..=number).is_err(), "leased until the child ends");
    /// # child.kill()?;
    /// # child.wait()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(unix)]
    pub fn into_fd(self) -> Result<std::os::fd::OwnedFd> {
        self.lock.into_file().map(Into::into)
    }

    /// Waits until a server accepts connections at [`addr`](Self::addr) or, if the builder
    /// named no host, at the loopback address of either family, as
    /// [`wait_until_listening`](crate::wait_until_listening) does.
    ///
    /// # Errors
    ///
    /// [`Timeout`](crate::ErrorKind::Timeout) if none does within `timeout`;
    /// [`Probe`](crate::ErrorKind::Probe) if connecting fails for a reason that does not
    /// pass.
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
        let address = self.addr();
        match self.host {
            Some(_) => bindfree::wait_until_listening(address, timeout),
            None => {
                let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, self.port));
                bindfree::wait_until_listening(&[address, v6][..], timeout)
            }
        }
    }
}

/// The port's number alone, as for a command line.
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
