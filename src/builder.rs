//! What is asked for.

use std::{
    borrow::Cow,
    net::{IpAddr, TcpListener},
    ops::ControlFlow,
    path::PathBuf,
    time::Duration,
};

use crate::{
    acquisition::Acquisition,
    bindfree::{Endpoints, Protocol},
    error::{Error, ErrorKind, Result},
    freeport::FreePort,
    lock_dir,
    pass::Request,
    ports::PortSet,
    process,
    search::TimeWait,
    system_ports::ephemeral_port_range,
    wait_status::{OnWait, WaitStatus},
};

/// How long a lease is waited for unless the builder is told otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// A lease to be acquired: which ports, on which addresses, and how long to wait.
///
/// Made by [`Builder::new`] or [`FreePort::builder`]. It can be used any number of times.
///
/// # Examples
///
/// ```
/// use std::{net::Ipv4Addr, time::Duration};
/// use portlock::FreePort;
///
/// let port = FreePort::builder()
///     .ports(4000..=6000)
///     .host(Ipv4Addr::LOCALHOST)
///     .timeout(Duration::from_secs(5))
///     .label("api under test")
///     .acquire()?;
/// # Ok::<(), portlock::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder leases nothing until `acquire` is called"]
pub struct Builder {
    ports: Option<PortSet>,
    endpoints: Endpoints,
    hold_socket: bool,
    prefer: Option<String>,
    timeout: Duration,
    lock_dir: Option<PathBuf>,
    label: Option<String>,
    on_wait: Option<OnWait>,
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

impl Builder {
    /// Returns the builder of a lease of any port, as [`FreePort::builder`] does.
    ///
    /// # Examples
    ///
    /// ```
    /// let port = portlock::Builder::new().ports(4000..=6000).acquire()?;
    /// # Ok::<(), portlock::Error>(())
    /// ```
    pub fn new() -> Self {
        Self {
            ports: None,
            endpoints: Endpoints::default(),
            hold_socket: false,
            prefer: None,
            timeout: DEFAULT_TIMEOUT,
            lock_dir: None,
            label: None,
            on_wait: None,
        }
    }

    /// Sets the ports to choose from: one port, an array of ports, a range of `u16` or a
    /// [`PortSet`]; by default [`PortSet::server_ports`].
    ///
    /// Port 0 is never among them. From a set without any port, such as a reversed range,
    /// nothing can be leased: that is the same [`InvalidPorts`](ErrorKind::InvalidPorts) error
    /// in every call. The ports are used as given, also where they
    /// [overlap the ephemeral range](Self::overlaps_ephemeral).
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::{FreePort, PortSet};
    ///
    /// let port = FreePort::builder().ports(4000..=6000).acquire()?;
    /// let builder = FreePort::builder().ports([7000, 7001, 7002]);
    /// let ports: PortSet = "4000-4999,!4045,7000".parse()?;
    /// let port = FreePort::builder().ports(&ports).acquire()?;
    /// let same = FreePort::builder().ports(port.port());
    /// assert!(same.try_acquire().is_err());
    /// # Ok::<(), portlock::Error>(())
    /// ```
    pub fn ports(mut self, ports: impl Into<PortSet>) -> Self {
        self.ports = Some(ports.into());
        self
    }

    /// An address on which the port must be free; may be called several times.
    ///
    /// By default the port must be free on every IPv4 and IPv6 address of this
    /// machine, and a server that binds any of them will succeed. With hosts
    /// named, the port may be in use on others. A wildcard address covers every
    /// address of its family, and `::` covers IPv4 too. A host of a family
    /// that this system lacks does not count, unless it is the only one.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::net::{Ipv4Addr, Ipv6Addr};
    /// use portlock::FreePort;
    ///
    /// let port = FreePort::builder()
    ///     .ports(4000..=6000)
    ///     .host(Ipv4Addr::LOCALHOST)
    ///     .host(Ipv6Addr::LOCALHOST)
    ///     .acquire()?;
    /// # Ok::<(), portlock::Error>(())
    /// ```
    pub fn host(mut self, host: impl Into<IpAddr>) -> Self {
        self.endpoints.add_host(host.into());
        self
    }

    /// The transport protocols for which the port must be free; TCP by default.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::net::{TcpListener, UdpSocket};
    /// use portlock::{FreePort, Protocol};
    ///
    /// let port = FreePort::builder()
    ///     .ports(4000..=6000)
    ///     .protocol(Protocol::TcpAndUdp)
    ///     .acquire()?;
    /// let tcp = TcpListener::bind(port.addr())?;
    /// let udp = UdpSocket::bind(port.addr())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.endpoints.protocol = protocol;
        self
    }

    /// Whether a port counts as free while nothing but closing connections of an earlier server,
    /// as in TIME_WAIT, are there: always with `true`, never with `false`. By default, such a port is
    /// the last resort, leased if no other one is free.
    ///
    /// A server that closes connections keeps its port from *strict* binds
    /// for a minute, but not from servers that set `SO_REUSEADDR`, as most do
    /// (RFC 9293, section 3.4.2; socket(7)). So suites that start and stop servers in a narrow range
    /// run out of strictly free ports. With `false`, a server that does not set the option
    /// can bind every port that is leased.
    ///
    /// That nothing else is there is proven by the kernel's table of sockets. A port that
    /// another program has bound with `SO_REUSEADDR`, and on which it does not listen yet, is busy.
    /// It has no effect on UDP, which has no TIME_WAIT.
    ///
    /// # Platform-specific behavior
    ///
    /// On macOS no table is read: the default is `false`, and with `true`, a port counts as free if
    /// all its sockets are TCP connections, closing or not.
    /// On Windows it has no effect: there TIME_WAIT keeps nobody from binding, and
    /// `SO_REUSEADDR` would let two servers have one port.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::net::TcpListener;
    /// use portlock::FreePort;
    ///
    /// let port = FreePort::builder()
    ///     .ports(4000..=6000)
    ///     .reuse_address(true)
    ///     .acquire()?;
    /// let server = TcpListener::bind(port.addr())?; // sets SO_REUSEADDR on Unix
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reuse_address(mut self, reuse_address: bool) -> Self {
        self.endpoints.set_time_wait(match reuse_address {
            true => TimeWait::Free,
            false => TimeWait::Busy,
        });
        self
    }

    /// Whether the lease keeps the port bound too; by default only the lock is
    /// kept.
    ///
    /// The socket is bound and does not listen. As long as the lease lives, it
    /// keeps the port from the kernel's own choice, when a client connects or a
    /// program binds port 0, and from programs that bind it strictly, while a
    /// server that sets `SO_REUSEADDR`, as most do on Unix, can bind it and
    /// listen. So a lease from the ephemeral range is as good as any other.
    ///
    /// It keeps out servers that bind strictly, your own included, and it costs a
    /// descriptor for each address. It has no effect on [`listen`](Self::listen).
    ///
    /// Only for TCP. Linux gives a UDP port that is held in this way to other sockets all the same, so
    /// a lease that is to hold its socket with another
    /// [`protocol`](Self::protocol) fails with [`Unsupported`](ErrorKind::Unsupported).
    ///
    /// # Platform-specific behavior
    ///
    /// Only on Linux. Other systems have no option that can be set after the
    /// bind with this effect, and there a lease that is to hold its socket
    /// fails with [`Unsupported`](ErrorKind::Unsupported).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::net::TcpListener;
    /// use portlock::{BindFreePort, FreePort, ephemeral_port_range};
    ///
    /// # if !cfg!(target_os = "linux") { return Ok(()) }
    /// let port = FreePort::builder()
    ///     .ports(ephemeral_port_range()?)
    ///     .hold_socket(true)
    ///     .acquire()?;
    /// assert!(BindFreePort::new(port.port()).is_err());
    /// let server = TcpListener::bind(port.addr())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn hold_socket(mut self, hold_socket: bool) -> Self {
        self.hold_socket = hold_socket;
        self
    }

    /// Starts the search at a port that belongs to `name`: the same name and the
    /// same ports to choose from give the same port whenever it is free.
    ///
    /// Use the name of a worktree and a service, such as `"my-worktree/api"`, to
    /// find a server at the same address tomorrow, without a file that says
    /// so. If the port is taken, the search goes on with the others.
    ///
    /// The port is the one at index *h* modulo *n* in ascending order, where *n*
    /// is the number of ports to choose from and *h* the 64-bit FNV-1a hash of
    /// the name's UTF-8 bytes. That will not change.
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::FreePort;
    ///
    /// let builder = FreePort::builder().ports(4000..=6000).prefer("my-worktree/api");
    /// let today = builder.acquire()?;
    /// // Somewhere else, for that one is taken.
    /// let other = builder.acquire()?;
    /// assert_ne!(today.port(), other.port());
    /// # Ok::<(), portlock::Error>(())
    /// ```
    pub fn prefer(mut self, name: impl Into<String>) -> Self {
        self.prefer = Some(name.into());
        self
    }

    /// How long to wait while no port is free; 30 seconds by default.
    ///
    /// Zero means to try each port once.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the lock directory, which must exist. Only callers that use the same
    /// directory exclude each other. A relative path is resolved by this call, against
    /// the working directory.
    ///
    /// Without it, the environment variable `PORTLOCK_DIR` names the directory, which must
    /// exist too. Without that, it is the default directory: `/run/portlock` if root has
    /// created it with mode 1777, for all users of the machine, else this user's own,
    /// `/tmp/portlock-<uid>`, which is created if it is missing. If there is no `/tmp`, it is
    /// `portlock` in the runtime directory that `XDG_RUNTIME_DIR` names. The default does not
    /// depend on the user's session: a service, a cron job and a login shell come to the same.
    ///
    /// The directory must be this user's and writable by nobody else, or
    /// sticky (mode 1777) and owned by root or this user. Its last component
    /// must not be a symbolic link.
    ///
    /// # Platform-specific behavior
    ///
    /// This describes Linux. On macOS the default directory is
    /// `~/Library/Application Support/portlock`. On Windows it is `.portlock` in the user's
    /// profile, and any directory is trusted that is not a symbolic link or another reparse
    /// point. Its access control list is not changed; a directory that is created inherits
    /// its list, which by default lets in nobody but this user and administrators.
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::FreePort;
    ///
    /// // For a test of portlock's users: leases that are shared with nobody else.
    /// let dir = tempfile::tempdir()?; // with mode 0700
    /// let port = FreePort::builder().lock_dir(dir.path()).acquire()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn lock_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.lock_dir = Some(lock_dir::absolute(path.into()));
        self
    }

    /// A text for people who want to know what the port is leased for. It is
    /// written into the lock file, cut after about 100 bytes.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Sets a callback that observes waits and can stop them.
    ///
    /// The waiting thread calls it when a wait begins, and then about every 0.1 seconds, with
    /// the reason for the wait. If the callback returns [`ControlFlow::Break`], the call returns an
    /// error of the kind [`Stopped`](ErrorKind::Stopped) and keeps no port. A call that does not
    /// wait never calls it.
    ///
    /// The callback should return quickly. While it runs, this call takes no port, and other
    /// callers may be waiting behind it in the queue for the same ports.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{ops::ControlFlow, time::Duration};
    /// use portlock::{ErrorKind, FreePort};
    ///
    /// let port = FreePort::new(4000..=6000)?;
    /// let error = FreePort::builder()
    ///     .ports(port.port())
    ///     .on_wait(|status| {
    ///         eprintln!("waiting: {status}");
    ///         // For example, because the user has pressed a key.
    ///         if status.elapsed() > Duration::from_millis(50) {
    ///             return ControlFlow::Break(());
    ///         }
    ///         ControlFlow::Continue(())
    ///     })
    ///     .acquire()
    ///     .unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::Stopped);
    /// # Ok::<(), portlock::Error>(())
    /// ```
    pub fn on_wait(
        mut self,
        callback: impl Fn(&WaitStatus) -> ControlFlow<()> + Send + Sync + 'static,
    ) -> Self {
        self.on_wait = Some(OnWait::new(callback));
        self
    }

    /// Leases a free port, and waits for one as long as the
    /// [`timeout`](Self::timeout) allows.
    ///
    /// # Errors
    ///
    /// As for [`FreePort::new`], and as for [`PortSet::server_ports`] if no
    /// ports were given.
    pub fn acquire(&self) -> Result<FreePort> {
        self.begin()?.one()
    }

    /// Leases a free port if there is one now, whatever the timeout is.
    ///
    /// # Errors
    ///
    /// As for [`acquire`](Self::acquire).
    pub fn try_acquire(&self) -> Result<FreePort> {
        let mut acquisition = self.begin()?;
        acquisition.timeout = Duration::ZERO;
        acquisition.one()
    }

    /// Checks whether [`try_acquire`](Self::try_acquire) would find a port now, without leasing one.
    ///
    /// Nothing in the lock directory is written, and no lock directory is created. For the moment
    /// of the check the port counts as leased to others.
    ///
    /// # Errors
    ///
    /// [`Exhausted`](ErrorKind::Exhausted) or [`PermissionDenied`](ErrorKind::PermissionDenied) if it
    /// would find none, with the same message; otherwise as for [`acquire`](Self::acquire).
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::FreePort;
    ///
    /// let port = FreePort::new(4000..=6000)?;
    /// let same = FreePort::builder().ports(port.port());
    /// println!("{}", same.check().expect_err("leased"));
    /// # Ok::<(), portlock::Error>(())
    /// ```
    pub fn check(&self) -> Result<()> {
        let mut acquisition = self.begin()?;
        acquisition.timeout = Duration::ZERO;
        acquisition.request.creates_dir = false;
        acquisition.none()
    }

    /// Waits until a port could be leased, for as long as the [`timeout`](Self::timeout) allows,
    /// without leasing one. In the lock directory it leaves at most an empty wait queue.
    ///
    /// When it returns, another caller may lease the port first: to have a port, call
    /// [`acquire`](Self::acquire).
    ///
    /// # Errors
    ///
    /// As for [`check`](Self::check).
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::FreePort;
    ///
    /// FreePort::builder().ports(4000..=6000).wait_until_free()?;
    /// # Ok::<(), portlock::Error>(())
    /// ```
    pub fn wait_until_free(&self) -> Result<()> {
        let mut acquisition = self.begin()?;
        acquisition.request.creates_dir = false;
        acquisition.none()
    }

    /// Leases a free port for the process `pid`: [`acquire`](Self::acquire) and
    /// [`FreePort::delegate_to`] in one, which is faster. Gives the port's number.
    ///
    /// # Errors
    ///
    /// As for [`acquire`](Self::acquire); and [`Process`](ErrorKind::Process) if there
    /// is no such process.
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::FreePort;
    ///
    /// let own = std::process::id();
    /// let number = FreePort::builder().ports(4000..=6000).acquire_for(own)?;
    /// # Ok::<(), portlock::Error>(())
    /// ```
    pub fn acquire_for(&self, pid: u32) -> Result<u16> {
        let mut acquisition = self.begin()?;
        acquisition.request.hold_socket = false;
        process::check(pid)?;
        acquisition.request.delegate_to = Some(pid);
        acquisition.one_delegated()
    }

    /// Leases a free port and listens on it, without a gap: the socket that
    /// found the port free becomes the listener.
    ///
    /// # Errors
    ///
    /// As for [`acquire`](Self::acquire); and [`Unsupported`](ErrorKind::Unsupported)
    /// if there are several [`host`](Self::host)s or a [`protocol`](Self::protocol)
    /// other than TCP, which one listener cannot serve.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::net::Ipv4Addr;
    /// use portlock::FreePort;
    ///
    /// let (port, listener) = FreePort::builder()
    ///     .ports(4000..=6000)
    ///     .host(Ipv4Addr::LOCALHOST)
    ///     .listen()?;
    /// assert_eq!(listener.local_addr()?, port.addr());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn listen(&self) -> Result<(FreePort, TcpListener)> {
        self.begin_listening()?.one_listening()
    }

    /// Leases `n` free ports at once, or none, and listens on each as
    /// [`listen`](Self::listen) does.
    ///
    /// # Errors
    ///
    /// As for [`listen`](Self::listen) and [`acquire_many`](Self::acquire_many).
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::FreePort;
    ///
    /// for (port, listener) in FreePort::builder().ports(4000..=6000).listen_many(2)? {
    ///     assert_eq!(listener.local_addr()?.port(), port.port());
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn listen_many(&self, n: usize) -> Result<Vec<(FreePort, TcpListener)>> {
        self.begin_listening()?.many_listening(n)
    }

    fn begin_listening(&self) -> Result<Acquisition<'_>> {
        let acquisition = self.begin()?;
        let hosts = self.endpoints.hosts();
        let protocol = self.endpoints.protocol;
        if hosts.len() > 1 || protocol != Protocol::Tcp {
            let message = format!(
                "a listener has one host and TCP, but the builder names the hosts {hosts:?} and \
                 {protocol:?}"
            );
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        Ok(acquisition)
    }

    /// Leases `n` free ports at once, or none.
    ///
    /// While there are not enough it waits without holding any, so callers that
    /// each want many never block each other for good. The ports come in the
    /// order in which they were found.
    ///
    /// # Errors
    ///
    /// As for [`acquire`](Self::acquire); and
    /// [`InvalidPorts`](ErrorKind::InvalidPorts) if there are fewer than `n` ports
    /// to choose from.
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::FreePort;
    ///
    /// let ports = FreePort::builder().ports(4000..=6000).acquire_many(3)?;
    /// let [http, admin, metrics] = &ports[..] else { unreachable!() };
    /// # Ok::<(), portlock::Error>(())
    /// ```
    pub fn acquire_many(&self, n: usize) -> Result<Vec<FreePort>> {
        self.begin()?.many(n)
    }

    /// Leases `n` free ports that follow each other, in ascending order, or none.
    ///
    /// # Errors
    ///
    /// As for [`acquire`](Self::acquire); and
    /// [`InvalidPorts`](ErrorKind::InvalidPorts) if no `n` of the ports to choose
    /// from follow each other.
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::FreePort;
    ///
    /// let ports = FreePort::builder().ports(4000..=6000).acquire_block(4)?;
    /// assert_eq!(ports[3].port(), ports[0].port() + 3);
    /// # Ok::<(), portlock::Error>(())
    /// ```
    pub fn acquire_block(&self, n: usize) -> Result<Vec<FreePort>> {
        self.begin()?.block(n)
    }

    /// Leases, for one of the ports to choose from, the ports at all `offsets`
    /// from it, in that order, or none.
    ///
    /// That is for servers that derive one port from another, as a Redis Cluster
    /// node does: its bus listens 10000 above its port. Only the port that the
    /// offsets are from must be one to choose from.
    ///
    /// # Errors
    ///
    /// As for [`acquire`](Self::acquire); and
    /// [`InvalidPorts`](ErrorKind::InvalidPorts) if an offset is given twice, or
    /// leads beyond 65535 from every port to choose from.
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::FreePort;
    ///
    /// let ports = FreePort::builder()
    ///     .ports(4000..=6000)
    ///     .acquire_offsets(&[0, 10000])?;
    /// assert_eq!(ports[1].port(), ports[0].port() + 10000);
    /// # Ok::<(), portlock::Error>(())
    /// ```
    pub fn acquire_offsets(&self, offsets: &[u16]) -> Result<Vec<FreePort>> {
        self.begin()?.offsets(offsets)
    }

    /// Whether some of the ports to choose from are in the
    /// [ephemeral range](crate::ephemeral_port_range), from which the system gives
    /// ports to any client, leased or not.
    ///
    /// # Errors
    ///
    /// As for [`ephemeral_port_range`] and, if no ports were given, for
    /// [`PortSet::server_ports`].
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::{FreePort, ephemeral_port_range};
    ///
    /// let ephemeral = FreePort::builder().ports(ephemeral_port_range()?);
    /// assert!(ephemeral.overlaps_ephemeral()?);
    /// # Ok::<(), portlock::Error>(())
    /// ```
    pub fn overlaps_ephemeral(&self) -> Result<bool> {
        let ephemeral = PortSet::from(ephemeral_port_range()?);
        Ok(!self.ports_to_choose_from()?.is_disjoint(&ephemeral))
    }

    fn ports_to_choose_from(&self) -> Result<Cow<'_, PortSet>> {
        match &self.ports {
            Some(ports) => Ok(Cow::Borrowed(ports)),
            None => PortSet::server_ports().map(Cow::Owned),
        }
    }

    fn begin(&self) -> Result<Acquisition<'_>> {
        let ports = self.ports_to_choose_from()?;
        ports.must_not_be_empty()?;
        Ok(Acquisition {
            request: Request {
                ports,
                lock_dir: self.lock_dir.as_deref(),
                endpoints: &self.endpoints,
                label: self.label.as_deref(),
                prefer: self.prefer.as_deref(),
                hold_socket: self.hold_socket,
                delegate_to: None,
                creates_dir: true,
            },
            timeout: self.timeout,
            on_wait: self.on_wait.as_ref(),
        })
    }
}

impl FreePort {
    /// Leases a random free port of `ports`, and waits up to 30 seconds while
    /// every one of them is leased or in use.
    ///
    /// `ports` is one port, an array of ports, a range or a [`PortSet`].
    ///
    /// The port is free on every IPv4 and IPv6 address of this machine. The kernel
    /// tells a waiter of each lease that ends, in this process or another. What it
    /// cannot tell, such as that another program leaves a port, is noticed within
    /// some tenths of a second, for a large set two seconds. Of all who wait for
    /// the same ports one watches them, and the others wait in a queue behind it.
    ///
    /// # Errors
    ///
    /// By [`kind`](crate::Error::kind):
    ///
    /// * [`InvalidPorts`](crate::ErrorKind::InvalidPorts): `ports` is an empty set, a
    ///   reversed range, or port 0 alone;
    /// * [`Exhausted`](crate::ErrorKind::Exhausted): no port came free in time; the
    ///   message counts the ports that were leased, bound by other programs or not
    ///   permitted, and names some holders;
    /// * [`PermissionDenied`](crate::ErrorKind::PermissionDenied): this process may bind
    ///   none of the ports;
    /// * [`LockDir`](crate::ErrorKind::LockDir), [`Lock`](crate::ErrorKind::Lock),
    ///   [`Probe`](crate::ErrorKind::Probe): the directory is not to be trusted, or the
    ///   system failed at a lock file or socket, for example for want of file
    ///   descriptors. Such an error ends the call.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::net::TcpListener;
    ///
    /// let port = portlock::FreePort::new(4000..=6000)?;
    /// let server = TcpListener::bind(("127.0.0.1", port.port()))?;
    ///
    /// let taken = port.port();
    /// assert!(portlock::FreePort::try_new(taken).is_err());
    /// assert!(portlock::FreePort::try_new([taken, taken]).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new(ports: impl Into<PortSet>) -> Result<Self> {
        Self::builder().ports(ports).acquire()
    }

    /// Leases a random free port of `ports` if there is one now.
    ///
    /// It tries each port once and waits for no lease. Ports that are only
    /// kept by what remains of a closed socket are tried again during 32 ms
    /// before the ports count as exhausted.
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
    /// let only = port.port();
    /// let error = FreePort::try_new(only).unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::Exhausted);
    ///
    /// port.release()?;
    /// let again = FreePort::try_new(only)?;
    /// # Ok::<(), portlock::Error>(())
    /// ```
    pub fn try_new(ports: impl Into<PortSet>) -> Result<Self> {
        Self::builder().ports(ports).try_acquire()
    }

    /// Leases a random free port of `ports` and listens on it without a gap:
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
    pub fn listen(ports: impl Into<PortSet>) -> Result<(Self, TcpListener)> {
        Self::builder().ports(ports).listen()
    }

    /// A lease with more to say about it than a range: hosts, protocols, several
    /// ports, a stable choice, timeout, lock directory, label.
    pub fn builder() -> Builder {
        Builder::new()
    }
}
