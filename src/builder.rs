//! The builder of a lease.

use std::{
    borrow::Cow,
    net::{IpAddr, TcpListener},
    ops::ControlFlow,
    path::PathBuf,
    slice,
    time::{Duration, Instant},
};

use crate::{
    acquisition::Acquisition,
    bindfree::{Endpoints, Protocol},
    clock::since_1970,
    error::{Error, ErrorKind, Result},
    freeport::FreePort,
    leases,
    lock_dir::{self, LockDir, OpenDir},
    names::{self, Known},
    pass::Request,
    ports::PortSet,
    process,
    reservation::{Key, Reservation},
    search::{Exhausted, TimeWait},
    system_ports::ephemeral_port_range,
    unavailable::Unavailable,
    wait_status::{OnWait, WaitStatus},
};

/// Default time to wait for a lease.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Largest number of times that one call looks up a name again because its reservation changed in
/// between. Only a bound.
const MAX_MOVES: u32 = 10;

/// A lease to be acquired: which ports, on which addresses, and how long to wait.
///
/// Created by [`Builder::new`] or [`FreePort::builder`]. It can be used any number of times.
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
    name: Option<String>,
    root: Option<PathBuf>,
    or_any: bool,
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
            name: None,
            root: None,
            or_any: false,
            timeout: DEFAULT_TIMEOUT,
            lock_dir: None,
            label: None,
            on_wait: None,
        }
    }

    /// Sets the ports to choose from: one port, an array of ports, a range of `u16` or a
    /// [`PortSet`]; by default [`PortSet::server_ports`].
    ///
    /// Port 0 is never among them. With a set without any port, such as a reversed range,
    /// every call returns the same [`InvalidPorts`](ErrorKind::InvalidPorts)
    /// error. The ports are used as given, even if they
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

    /// Adds an address on which the port must be free. Can be called several times.
    ///
    /// By default the port must be free on every IPv4 and IPv6 address of this
    /// machine, and a server that binds any of them will succeed. If hosts are
    /// set, the port may be in use on other addresses. A wildcard address covers every
    /// address of its family, and `::` covers IPv4 too. A host of a family
    /// that this system lacks is ignored, unless it is the only one.
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

    /// Sets the transport protocols for which the port must be free; TCP by default.
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

    /// Sets whether a port counts as free if only closing connections of an earlier server,
    /// as in TIME_WAIT, occupy it: always with `true`, never with `false`. By default, such a port is
    /// a last resort, leased if no other port is free.
    ///
    /// A server that closes connections keeps its port from *strict* binds
    /// for a minute, but not from servers that set `SO_REUSEADDR`, as most do
    /// (RFC 9293, section 3.4.2; socket(7)). So suites that start and stop servers in a narrow range
    /// run out of strictly free ports. With `false`, a server that does not set the option
    /// can bind every port that is leased.
    ///
    /// The kernel's socket table proves that nothing else occupies the port. A port that
    /// another program has bound with `SO_REUSEADDR`, but on which it does not listen yet, is busy.
    /// This setting has no effect on UDP, which has no TIME_WAIT.
    ///
    /// # Platform-specific behavior
    ///
    /// On macOS there is no such table: the default is `false`, and with `true`, a port counts as free if
    /// all its sockets are TCP connections, closing or not.
    /// On Windows it has no effect: TIME_WAIT does not prevent a bind there, and
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

    /// Sets whether the lease also keeps the port bound. By default it keeps only the
    /// lock.
    ///
    /// The socket is bound and does not listen. As long as the lease lives,
    /// the kernel does not assign the port to a client or to a bind to port 0, and programs
    /// cannot bind it strictly. But a server that sets `SO_REUSEADDR`, as most do on Unix,
    /// can bind it and listen. So a lease from the ephemeral range is as safe as any other.
    ///
    /// It blocks servers that bind strictly, including your own, and it costs a
    /// descriptor for each address. It has no effect on [`listen`](Self::listen).
    ///
    /// Only for TCP. Linux assigns a UDP port to other sockets even if it is held in this way, so
    /// with another [`protocol`](Self::protocol) the lease fails with
    /// [`Unsupported`](ErrorKind::Unsupported).
    ///
    /// # Platform-specific behavior
    ///
    /// Linux only. On other systems, no option set after the bind has
    /// this effect, and the lease fails with [`Unsupported`](ErrorKind::Unsupported).
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
    /// same ports to choose from lead to the same port whenever it is free.
    ///
    /// Use the name of a worktree and a service, such as `"my-worktree/api"`, to
    /// find a server at the same address tomorrow without storing the
    /// port. If the port is taken, the search continues with the others.
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
    /// // A different port, because the first one is taken.
    /// let other = builder.acquire()?;
    /// assert_ne!(today.port(), other.port());
    /// # Ok::<(), portlock::Error>(())
    /// ```
    pub fn prefer(mut self, name: impl Into<String>) -> Self {
        self.prefer = Some(name.into());
        self
    }

    /// Leases the port that is reserved for `name`, and reserves one first if none is.
    ///
    /// The same name in the same [`root`](Self::root) directory has the same port every day, whether it is
    /// leased or not, and no other caller can lease that port. The reservation outlives every lease
    /// of the port. It is kept until [`LockDir::unreserve`](crate::LockDir::unreserve) removes it, or
    /// the root directory is gone, as after `git worktree remove`. A copy in the user's
    /// state directory restores it after a restart of the machine.
    ///
    /// If the port is leased, the call waits for it. If another program has bound it without a lease, the call
    /// waits for half a second, because a server may be about to end. Then it fails with an error that names
    /// the process, or with [`or_any`](Self::or_any) leases another port. A port that only closing
    /// connections (TIME_WAIT) occupy counts as free, as with `true` for
    /// [`reuse_address`](Self::reuse_address).
    ///
    /// A new reservation is chosen from the [`ports`](Self::ports). It is
    /// the port that [`prefer`](Self::prefer) chooses by the text `<root>/<name>`, if it is free and not
    /// reserved, or else the next one. An existing reservation is used even if it is not among the ports.
    ///
    /// A name begins with a letter from `a` to `z` and has only these letters, digits, `_` and `-`,
    /// 64 at most. A name has one port: a call for several fails with
    /// [`Unsupported`](ErrorKind::Unsupported).
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::FreePort;
    ///
    /// let project = tempfile::tempdir()?;
    /// let web = FreePort::builder().name("web").root(project.path());
    /// # let locks = tempfile::tempdir()?;
    /// # let web = web.lock_dir(locks.path());
    /// let today = web.acquire()?.port();
    /// let tomorrow = web.acquire()?.port();
    /// assert_eq!(today, tomorrow);
    /// # portlock::LockDir::open(locks.path())?.unreserve(&web.reserve()?)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets the root directory of the [`name`](Self::name), to which the reservation belongs; by default
    /// [`Reservation::default_root`]. A relative path is resolved by this call, against the working
    /// directory.
    pub fn root(mut self, path: impl Into<PathBuf>) -> Self {
        self.root = Some(lock_dir::absolute(path.into()));
        self
    }

    /// Leases another of the [`ports`](Self::ports), as without a [`name`](Self::name), if the
    /// reserved port is bound by another program.
    pub fn or_any(mut self) -> Self {
        self.or_any = true;
        self
    }

    /// Returns the reservation of the [`name`](Self::name), and reserves a port if there is none yet.
    /// Leases nothing.
    ///
    /// [`LockDir::reservation`](crate::LockDir::reservation) looks it up without reserving.
    ///
    /// # Errors
    ///
    /// [`InvalidName`](ErrorKind::InvalidName) if there is no name, or the name or the root cannot be
    /// used; [`Exhausted`](ErrorKind::Exhausted) if a new reservation is needed and no port is free, or if
    /// the lock directory was lost and the port has been leased since; otherwise as for
    /// [`acquire`](Self::acquire).
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::FreePort;
    ///
    /// let project = tempfile::tempdir()?;
    /// let web = FreePort::builder().name("web").root(project.path());
    /// # let locks = tempfile::tempdir()?;
    /// # let web = web.lock_dir(locks.path());
    /// let reservation = web.reserve()?;
    /// println!("{}={}", reservation.variable(), reservation.port);
    /// assert_eq!(web.reserve()?, reservation);
    /// # portlock::LockDir::open(locks.path())?.unreserve(&reservation)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reserve(&self) -> Result<Reservation> {
        let Some(key) = self.key()? else {
            let message = "a port is reserved for a name, and the builder has none";
            return Err(Error::new(ErrorKind::InvalidName, message));
        };
        let known = self.find_or_reserve_one(&key, self.timeout)?;
        self.reserved(&key, known)
    }

    /// Returns the reservations of several names in the [`root`](Self::root), in the same order, and
    /// reserves ports for those that have none yet: all or none. Leases nothing.
    ///
    /// # Errors
    ///
    /// As for [`reserve`](Self::reserve); [`Unsupported`](ErrorKind::Unsupported) if the builder has a
    /// [`name`](Self::name) too. After an error, no name has a reservation that it did not have before.
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::FreePort;
    ///
    /// let project = tempfile::tempdir()?;
    /// let names = FreePort::builder().root(project.path());
    /// # let locks = tempfile::tempdir()?;
    /// # let names = names.lock_dir(locks.path());
    /// for reservation in names.reserve_many(["web", "api"])? {
    ///     println!("{}={}", reservation.variable(), reservation.port);
    /// #   portlock::LockDir::open(locks.path())?.unreserve(&reservation)?;
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reserve_many<N: AsRef<str>>(
        &self,
        names: impl IntoIterator<Item = N>,
    ) -> Result<Vec<Reservation>> {
        if let Some(name) = &self.name {
            let message = format!("the builder has the name {name}, but several were requested");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let key = |name: N| Key::new(name.as_ref(), self.root.as_deref());
        let keys = names.into_iter().map(key).collect::<Result<Vec<Key>>>()?;
        let all = self.find_or_reserve(&keys, self.timeout)?.into_iter();
        all.map(|(key, known)| self.reserved(key, known)).collect()
    }

    /// Returns the reservation of `key`, or an error if another caller has leased its port.
    fn reserved(&self, key: &Key, known: Known) -> Result<Reservation> {
        match known {
            Known::Reserved(port) => Ok(key.reservation(port)),
            Known::Leased(port) => {
                let headline = format!(
                    "port {port}, which was reserved {key} before the lock directory was lost, cannot \
                     be reserved again"
                );
                let dir = LockDir::located(self.lock_dir.as_deref())?;
                let mut exhausted = Exhausted::from_iter([(port, Unavailable::Leased(port))]);
                let examples = leases::explain(dir.opened(), exhausted.examples(), None);
                Err(exhausted.into_error(headline, &examples))
            }
        }
    }

    /// Sets how long to wait while no port is free; 30 seconds by default.
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
    /// created it with mode 1777, for all users of the machine, else this user's
    /// `/tmp/portlock-<uid>`, which is created if it is missing. If there is no `/tmp`, it is
    /// `portlock` in the runtime directory that `XDG_RUNTIME_DIR` names. The default does not
    /// depend on the user's session: a service, a cron job and a login shell use the same one.
    ///
    /// The directory must belong to this user and be writable by no other user, or be
    /// sticky (mode 1777) and owned by root or this user. Its last component
    /// must not be a symbolic link.
    ///
    /// # Platform-specific behavior
    ///
    /// This describes Linux. On macOS the default directory is
    /// `~/Library/Application Support/portlock`. On Windows it is `.portlock` in the user's
    /// profile, and any directory is trusted that is not a symbolic link or another reparse
    /// point. Its access control list is not changed; a directory that is created inherits
    /// its list, which by default permits access only to this user and administrators.
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::FreePort;
    ///
    /// // For a test of a program that uses portlock: leases that are not shared.
    /// let dir = tempfile::tempdir()?; // with mode 0700
    /// let port = FreePort::builder().lock_dir(dir.path()).acquire()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn lock_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.lock_dir = Some(lock_dir::absolute(path.into()));
        self
    }

    /// Sets a text that tells users what the port is leased for. It is
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

    /// Leases a free port, and waits up to the [`timeout`](Self::timeout)
    /// for one.
    ///
    /// # Errors
    ///
    /// As for [`FreePort::new`], and as for [`PortSet::server_ports`] if no
    /// ports were given.
    pub fn acquire(&self) -> Result<FreePort> {
        self.lease(self.timeout, |acquisition| acquisition.one())
    }

    /// Leases a free port if there is one now, regardless of the timeout.
    ///
    /// # Errors
    ///
    /// As for [`acquire`](Self::acquire).
    pub fn try_acquire(&self) -> Result<FreePort> {
        self.lease(Duration::ZERO, |acquisition| acquisition.one())
    }

    /// Checks whether [`try_acquire`](Self::try_acquire) would find a port now, without leasing one.
    ///
    /// It writes nothing to the lock directory, and creates no lock directory. During
    /// the check, the port counts as leased for other callers.
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
        self.check_within(Duration::ZERO)
    }

    /// Waits until a port could be leased, up to the [`timeout`](Self::timeout),
    /// without leasing one. It leaves at most an empty wait queue in the lock directory.
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
        self.check_within(self.timeout)
    }

    /// Leases a free port for the process `pid`: [`acquire`](Self::acquire) and
    /// [`FreePort::delegate_to`] in one call, which is faster. Returns the port's number.
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
        self.lease(self.timeout, |acquisition| {
            acquisition.request.hold_socket = false;
            process::check(pid)?;
            acquisition.request.delegate_to = Some(pid);
            acquisition.one_delegated()
        })
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
        self.must_be_listenable()?;
        self.lease(self.timeout, |acquisition| acquisition.one_listening())
    }

    /// Leases `n` free ports, all or none, and listens on each as
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
        self.must_be_listenable()?;
        self.begin_several()?.many_listening(n)
    }

    fn must_be_listenable(&self) -> Result<()> {
        let hosts = self.endpoints.hosts();
        let protocol = self.endpoints.protocol;
        if hosts.len() > 1 || protocol != Protocol::Tcp {
            let message = format!(
                "a listener has one host and TCP, but the builder names the hosts {hosts:?} and \
                 {protocol:?}"
            );
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        Ok(())
    }

    /// Leases `n` free ports, all or none.
    ///
    /// While there are not enough, it waits without holding any, so callers that
    /// each want several never deadlock. The ports are returned in the
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
        self.begin_several()?.many(n)
    }

    /// Leases `n` contiguous free ports, all or none, in ascending order.
    ///
    /// # Errors
    ///
    /// As for [`acquire`](Self::acquire); and
    /// [`InvalidPorts`](ErrorKind::InvalidPorts) if no `n` of the ports to choose
    /// from are contiguous.
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
        self.begin_several()?.block(n)
    }

    /// Leases the ports at all `offsets` from one of the ports to choose from,
    /// all or none, in that order.
    ///
    /// This is for servers that derive one port from another, such as a Redis Cluster
    /// node, whose bus port is 10000 above its port. Only the port to which the
    /// offsets are added must be among the ports to choose from.
    ///
    /// # Errors
    ///
    /// As for [`acquire`](Self::acquire); and
    /// [`InvalidPorts`](ErrorKind::InvalidPorts) if an offset occurs twice, or
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
        self.begin_several()?.offsets(offsets)
    }

    /// Returns whether some of the ports to choose from are in the
    /// [ephemeral range](crate::ephemeral_port_range), from which the system assigns
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

    fn key(&self) -> Result<Option<Key>> {
        let key = |name: &String| Key::new(name, self.root.as_deref());
        self.name.as_ref().map(key).transpose()
    }

    /// Returns the ports of `keys`, and reserves ports for those that have none: all or none. If
    /// a port is [`Known::Leased`], returns only that key.
    fn find_or_reserve<'k>(
        &self,
        keys: &'k [Key],
        timeout: Duration,
    ) -> Result<Vec<(&'k Key, Known)>> {
        let dir = OpenDir::locate_at(self.lock_dir.as_deref(), since_1970())?;
        names::restore_once(&dir)?;
        let mut all = Vec::with_capacity(keys.len());
        for key in keys {
            match names::find(&dir, key)? {
                Some(port) => all.push((key, Known::Reserved(port))),
                None => {
                    let mut acquisition = self.begin()?;
                    acquisition.timeout = timeout;
                    return acquisition.reserve(keys);
                }
            }
        }
        Ok(all)
    }

    fn find_or_reserve_one(&self, key: &Key, timeout: Duration) -> Result<Known> {
        let keys = slice::from_ref(key);
        // One key has one port.
        Ok(self.find_or_reserve(keys, timeout)?[0].1)
    }

    /// Leases one port with `run`: the port of the name, or any port.
    fn lease<T>(
        &self,
        timeout: Duration,
        run: impl Fn(&mut Acquisition<'_>) -> Result<T>,
    ) -> Result<T> {
        let any = |timeout| {
            let mut acquisition = self.begin()?;
            acquisition.timeout = timeout;
            run(&mut acquisition)
        };
        let Some(key) = self.key()? else {
            return any(timeout);
        };
        let start = Instant::now();
        let endpoints = self.endpoints.with_closing_as_free();
        let mut moves = 0;
        loop {
            let left = || timeout.saturating_sub(start.elapsed());
            let (Known::Reserved(port) | Known::Leased(port)) =
                self.find_or_reserve_one(&key, left())?;
            let mut acquisition = self.begin_with(Cow::Owned(port.into()), &endpoints, Some(&key));
            acquisition.timeout = left();
            let outcome = run(&mut acquisition);
            let is_busy = |error: &&Error| error.is_busy();
            let why = outcome.as_ref().err().filter(is_busy);
            let why = why.and_then(Error::counts);
            match why {
                // The reservation has been removed since then, or can be restored now.
                Some(why) if why.reserved > 0 && moves < MAX_MOVES => moves += 1,
                Some(why) if why.bound > 0 && self.or_any => return any(left()),
                _ => return outcome,
            }
        }
    }

    fn check_within(&self, timeout: Duration) -> Result<()> {
        let start = Instant::now();
        let endpoints = self.endpoints.with_closing_as_free();
        let key = self.key()?;
        let mut moves = 0;
        loop {
            let reserved = match &key {
                Some(key) => {
                    let dir = LockDir::located(self.lock_dir.as_deref())?;
                    match dir.reserved(key)? {
                        // If its line has to be restored, the port is still like any other.
                        Some(found) => Some((found.port, dir.has_line(key, found.port)?)),
                        None => None,
                    }
                }
                None => None,
            };
            let mut acquisition = match reserved {
                Some((port, has_line)) => {
                    let key = key.as_ref().filter(|_| has_line);
                    self.begin_with(Cow::Owned(port.into()), &endpoints, key)
                }
                None => self.begin()?,
            };
            acquisition.timeout = timeout.saturating_sub(start.elapsed());
            acquisition.request.creates_dir = false;
            let outcome = acquisition.none();
            let why = outcome.as_ref().err().and_then(Error::counts);
            match why {
                // The line has been restored or removed since then.
                Some(why) if reserved.is_some() && why.reserved > 0 && moves < MAX_MOVES => {
                    moves += 1;
                }
                _ => return outcome,
            }
        }
    }

    fn begin_several(&self) -> Result<Acquisition<'_>> {
        if let Some(name) = &self.name {
            let message =
                format!("the name {name} stands for one port, but several were requested");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        self.begin()
    }

    fn begin(&self) -> Result<Acquisition<'_>> {
        let ports = self.ports_to_choose_from()?;
        ports.must_not_be_empty()?;
        Ok(self.begin_with(ports, &self.endpoints, None))
    }

    fn begin_with<'a>(
        &'a self,
        ports: Cow<'a, PortSet>,
        endpoints: &'a Endpoints,
        key: Option<&'a Key>,
    ) -> Acquisition<'a> {
        Acquisition {
            request: Request {
                ports,
                lock_dir: self.lock_dir.as_deref(),
                endpoints,
                label: self.label.as_deref(),
                prefer: self.prefer.as_deref(),
                key,
                hold_socket: self.hold_socket,
                delegate_to: None,
                creates_dir: true,
            },
            timeout: self.timeout,
            on_wait: self.on_wait.as_ref(),
        }
    }
}

impl FreePort {
    /// Leases a random free port from `ports`, and waits up to 30 seconds while
    /// all of them are leased or in use.
    ///
    /// `ports` is one port, an array of ports, a range or a [`PortSet`].
    ///
    /// The port is free on every IPv4 and IPv6 address of this machine. The kernel
    /// wakes a waiter when a lease ends, in this process or another. Events that it
    /// does not report, such as another program closing a port, are noticed within
    /// some tenths of a second, or two seconds for a large set. Of all callers that wait
    /// for the same ports, one watches them, and the others wait in a queue behind it.
    ///
    /// # Errors
    ///
    /// By [`kind`](crate::Error::kind):
    ///
    /// * [`InvalidPorts`](crate::ErrorKind::InvalidPorts): `ports` is an empty set, a
    ///   reversed range, or port 0 alone;
    /// * [`Exhausted`](crate::ErrorKind::Exhausted): no port became free in time; the
    ///   message counts the ports that were leased, bound by other programs or not
    ///   permitted, and names some holders;
    /// * [`PermissionDenied`](crate::ErrorKind::PermissionDenied): this process is not permitted
    ///   to bind any of the ports;
    /// * [`LockDir`](crate::ErrorKind::LockDir), [`Lock`](crate::ErrorKind::Lock),
    ///   [`Probe`](crate::ErrorKind::Probe): the directory cannot be trusted, or an
    ///   operation on a lock file or socket failed, for example because no file
    ///   descriptors are left. Such an error ends the call.
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

    /// Leases a random free port from `ports` if there is one now.
    ///
    /// It tries each port once and waits for no lease. Ports that only a
    /// lingering socket occupies (a copy in a child that is being spawned, or
    /// TIME_WAIT) are retried for 32 ms before the call fails.
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

    /// Leases a random free port from `ports` and listens on it without a gap:
    /// the socket that found the port free becomes the listener.
    ///
    /// The listener accepts IPv4 and IPv6 connections on every address, has
    /// `SO_REUSEADDR` set as [`TcpListener::bind`] sets it, and a backlog of
    /// `net.core.somaxconn`. Keep the lease at least as long as the listener.
    /// After the listener is closed, the lease keeps the port for the next server.
    ///
    /// # Platform-specific behavior
    ///
    /// On Windows it has `SO_EXCLUSIVEADDRUSE` instead, so that no other socket can listen
    /// on the port.
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

    /// Returns the builder of a lease with more options than a range: hosts, protocols, several
    /// ports, a stable choice, timeout, lock directory, label.
    pub fn builder() -> Builder {
        Builder::new()
    }
}
