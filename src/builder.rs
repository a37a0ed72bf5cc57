//! What is asked for, and the acquisition: claim, lock, probe, record.

use std::{
    net::{IpAddr, TcpListener},
    path::PathBuf,
    process,
    time::{Duration, Instant},
};

use rand::RngExt;

use crate::{
    bindfree::{self, Probe},
    error::{Error, ErrorKind, Result},
    freeport::FreePort,
    lock::{self, PortLock},
    lock_dir::{self, Trusted},
    ports::PortSet,
    registry,
    search::{Miss, search},
};

/// How long a lease is waited for unless the builder is told otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// The pause before a second pass over the ports. It doubles up to
/// [`LONGEST_PAUSE`]; half of it is random, so that waiters spread out.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// A lease to be acquired: which ports, on which addresses, and how long to wait.
///
/// Made by [`FreePort::builder`]. It can be used any number of times.
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
    hosts: Vec<IpAddr>,
    timeout: Duration,
    lock_dir: Option<PathBuf>,
    label: Option<String>,
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self {
            ports: None,
            hosts: Vec::new(),
            timeout: DEFAULT_TIMEOUT,
            lock_dir: None,
            label: None,
        }
    }

    /// The ports to choose from: a range of `u16` or a [`PortSet`].
    ///
    /// Port 0 is never among them. A range outside the ephemeral one (on
    /// Linux 32768 to 60999 by default) is the better choice, for there the
    /// kernel gives ports to clients of its own accord.
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
    pub fn host(mut self, host: impl Into<IpAddr>) -> Self {
        self.hosts.push(host.into());
        self
    }

    /// How long to wait while no port is free; 30 seconds by default.
    ///
    /// Zero means to try each port once.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The lock directory, which must exist. Only callers that use the same
    /// one exclude each other.
    ///
    /// By default it is the one named by the environment variable
    /// `PORTLOCK_DIR`, which must exist too, or else this user's own:
    /// `portlock` in the runtime directory (`XDG_RUNTIME_DIR`, or `/run/user/<uid>`),
    /// or else `/tmp/portlock-<uid>`.
    ///
    /// The directory must be this user's and writable by nobody else, or
    /// sticky (mode 1777) and owned by root or this user. Its last component
    /// must not be a symbolic link.
    pub fn lock_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.lock_dir = Some(path.into());
        self
    }

    /// A text for people who want to know what the port is leased for. It is
    /// written into the lock file, cut after about 100 bytes.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Leases a free port, and waits for one as long as the
    /// [`timeout`](Self::timeout) allows.
    ///
    /// # Errors
    ///
    /// As for [`FreePort::new`].
    pub fn acquire(&self) -> Result<FreePort> {
        self.lease(self.timeout, close).map(|(port, ())| port)
    }

    /// Leases a free port if there is one now, whatever the timeout is.
    ///
    /// # Errors
    ///
    /// As for [`FreePort::try_new`].
    pub fn try_acquire(&self) -> Result<FreePort> {
        self.lease(Duration::ZERO, close).map(|(port, ())| port)
    }

    /// Leases a free port and listens on it, without a gap: the socket that
    /// found the port free becomes the listener.
    ///
    /// # Errors
    ///
    /// As for [`FreePort::listen`]; and [`Unsupported`](ErrorKind::Unsupported)
    /// if there are several [`host`](Self::host)s, which one listener cannot serve.
    pub fn listen(&self) -> Result<(FreePort, TcpListener)> {
        let hosts = bindfree::distinct(&self.hosts);
        if hosts.len() > 1 {
            let message = format!("one listener cannot listen on several hosts: {hosts:?}");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        self.lease(self.timeout, Probe::listen)
    }

    /// Leases a port and does with its probe what `finish` does.
    fn lease<T>(
        &self,
        timeout: Duration,
        finish: impl Fn(Probe) -> Result<Result<T, Miss>>,
    ) -> Result<(FreePort, T)> {
        let ports = self.ports.as_ref().filter(|ports| !ports.is_empty());
        let ports = ports.ok_or_else(|| {
            let message = "no ports to choose from: the builder was given none from 1 to 65535";
            Error::new(ErrorKind::InvalidPorts, message)
        })?;
        let dir = lock_dir::locate(self.lock_dir.as_deref())?;
        let hosts = bindfree::distinct(&self.hosts);
        let pid = process::id();

        let start = Instant::now();
        let mut longest = SHORTEST_PAUSE;
        loop {
            let releases = registry::releases();
            let exhausted =
                match search(ports, |port| self.attempt(&dir, &hosts, port, pid, &finish))? {
                    Ok(found) => return Ok(found),
                    Err(exhausted) => exhausted,
                };
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() || !exhausted.may_change() {
                let waited_since = (!timeout.is_zero()).then_some(start);
                let owner_of = |port| lock::recorded_owner(&dir, port);
                return Err(exhausted.into_error(ports, waited_since, owner_of));
            }
            let pause = rand::rng().random_range(longest / 2..=longest);
            registry::wait_for_release(releases, pause.min(left));
            longest = (longest * 2).min(LONGEST_PAUSE);
        }
    }

    /// Tries to lease one port: claim, lock, probe, record.
    ///
    /// The lock comes before the probe. In the other order everybody who only
    /// looks at a leased port would bind it for a moment, and the holder's own
    /// server, if it started just then, would find its port in use.
    ///
    /// On every way out but the last, what was taken is given back in the
    /// opposite order, by being dropped.
    fn attempt<T>(
        &self,
        dir: &Trusted,
        hosts: &[IpAddr],
        port: u16,
        pid: u32,
        finish: impl Fn(Probe) -> Result<Result<T, Miss>>,
    ) -> Result<Result<(FreePort, T), Miss>> {
        let Some(claim) = registry::claim(port, pid) else {
            return Ok(Err(Miss::Leased));
        };
        let Some(lock) = PortLock::try_acquire(dir, port, pid)? else {
            return Ok(Err(Miss::Leased));
        };
        let probe = match Probe::bind(port, hosts)? {
            Ok(probe) => probe,
            Err(miss) => return Ok(Err(miss)),
        };
        let finished = match finish(probe)? {
            Ok(finished) => finished,
            Err(miss) => return Ok(Err(miss)),
        };
        lock.write_owner(self.label.as_deref())?;
        let host = hosts.first().copied();
        Ok(Ok((FreePort::leased(port, host, lock, claim), finished)))
    }
}

fn close(probe: Probe) -> Result<Result<(), Miss>> {
    probe.close().map(Ok)
}
