//! The port allocation of the test framework [PySys](https://pysys-test.github.io/pysys-test/),
//! `pysys.utils.allocport`, as of version 2.2. Here each port is leased, so several test runs on
//! one machine share its ports.
//!
//! | PySys | here |
//! |---|---|
//! | `TCPPortOwner(hosts, socketAddressFamily)` | [`TcpPortOwner`] |
//! | `allocateTCPPort(hosts, socketAddressFamily)` | [`allocate_tcp_port`] |
//! | `portIsInUse(port, host, socketAddressFamily, type)` | [`port_is_in_use`] |
//! | `getEphemeralTCPPortRange()` | [`get_ephemeral_tcp_port_range`] |
//! | `getServerTCPPorts()` | [`get_server_tcp_ports`] |
//! | `excludedTCPPorts` | [`excluded_tcp_ports`] |
//! | `initializePortPool()`, `tcpServerPortPool` | [`initialize_port_pool`] |
//! | `logPortAllocationStats()` | [`log_port_allocation_stats`] |
//!
//! The variables are `PORTLOCK_PORTS` and `PORTLOCK_PORTS_FILE`, not `PYSYS_PORTS` and
//! `PYSYS_PORTS_FILE`; see [`PortSet::server_ports`].

use std::{
    fmt,
    net::{IpAddr, ToSocketAddrs},
    time::Duration,
};

pub use crate::system_ports::ephemeral_port_range as get_ephemeral_tcp_port_range;
use crate::{
    builder::Builder,
    compat::{Family, SocketType, is_free},
    error::{Error, ErrorKind, Result},
    freeport::FreePort,
    logging::debug,
    per_process::PerProcess,
    ports::PortSet,
    system_ports::REFUSED_BY_BROWSERS,
};

/// How long PySys waits for a port: `TIMEOUTS['WaitForAvailableTCPPort']`.
const TIMEOUT: Duration = Duration::from_secs(300);

/// The hosts on which a port must be free unless others are named: every address, and `localhost`.
pub const DEFAULT_HOSTS: [&str; 2] = ["", "localhost"];

/// The ports that this process has allocated. A forked child has allocated none.
static POOL: PerProcess<Pool> = PerProcess::new();

#[derive(Default)]
struct Pool {
    ports: PortSet,
    in_use: usize,
    peak: usize,
    total: usize,
    /// The ports of [`allocate_tcp_port`], which nothing returns.
    kept: Vec<TcpPortOwner>,
}

fn with_pool<T>(f: impl FnOnce(&mut Pool) -> T) -> Result<T> {
    let mut pool = POOL.lock().ok_or_else(|| {
        let message = "cannot use the list of the ports that this process has allocated: it was in \
                       use at too many forks in a row";
        Error::new(ErrorKind::Process, message)
    })?;
    Ok(f(pool.get_or_insert_default()))
}

/// A port that is leased until it is cleaned up: PySys's `TCPPortOwner`.
///
/// The port is leased as [`FreePort`] leases it. The lease ends with [`cleanup`](Self::cleanup), with
/// drop, or with the process.
///
/// # Examples
///
/// ```
/// use std::net::TcpListener;
/// use portlock::compat::{Family, pysys::TcpPortOwner};
///
/// let owner = TcpPortOwner::with_hosts(&["localhost"], Family::V4)?;
/// let server = TcpListener::bind(("127.0.0.1", owner.port()))?;
/// drop(server);
/// owner.cleanup()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "dropping the owner of a port ends its lease"]
#[doc(alias = "TCPPortOwner")]
pub struct TcpPortOwner {
    lease: Option<FreePort>,
    port: u16,
}

impl TcpPortOwner {
    /// Leases a server port that is free on every IPv4 address: `TCPPortOwner()`.
    ///
    /// Waits for up to 300 seconds, as PySys does, while every port is leased or in use.
    ///
    /// # Errors
    ///
    /// As for [`Builder::acquire`].
    pub fn new() -> Result<Self> {
        Self::with_hosts(&DEFAULT_HOSTS, Family::V4)
    }

    /// Leases a server port that is free on these hosts: `TCPPortOwner(hosts,
    /// socketAddressFamily)`.
    ///
    /// A host is an address or a name; `""` is every address of the family. Without any host, the
    /// port is free on every address of both families.
    ///
    /// # Errors
    ///
    /// As for [`Builder::acquire`]; and [`Probe`](ErrorKind::Probe) if a host cannot be resolved or
    /// has no address of the family.
    pub fn with_hosts(hosts: &[&str], family: Family) -> Result<Self> {
        let mut builder = on_hosts(hosts, family)?.timeout(TIMEOUT);
        let ports = match with_pool(|pool| pool.ports.clone())? {
            ports if ports.is_empty() => {
                initialize_port_pool()?;
                with_pool(|pool| pool.ports.clone())?
            }
            ports => ports,
        };
        builder = builder.ports(ports);
        let lease = builder.acquire()?;
        with_pool(|pool| {
            pool.total += 1;
            pool.in_use += 1;
            pool.peak = pool.peak.max(pool.in_use);
        })?;
        Ok(Self {
            port: lease.port(),
            lease: Some(lease),
        })
    }

    /// Returns the port's number.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends the lease, so that others can have the port: `cleanup()`.
    ///
    /// # Errors
    ///
    /// As for [`FreePort::release`].
    pub fn cleanup(mut self) -> Result<()> {
        match self.lease.take() {
            Some(lease) => {
                let released = lease.release();
                with_pool(Pool::count_return)?;
                released
            }
            None => Ok(()),
        }
    }
}

impl Drop for TcpPortOwner {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take() {
            drop(lease);
            // If the pool cannot be used in this process, nothing was counted.
            let _ = with_pool(Pool::count_return);
        }
    }
}

/// Writes only the port's number.
impl fmt::Display for TcpPortOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.port.fmt(f)
    }
}

impl Pool {
    /// Does not underflow: a forked copy of an owner returns a port that its process never
    /// allocated.
    fn count_return(&mut self) {
        self.in_use = self.in_use.saturating_sub(1);
    }
}

/// Leases a server port for the rest of this process's life, and returns its number:
/// `allocateTCPPort(hosts, socketAddressFamily)`.
///
/// For a port that is needed for a shorter time, use a [`TcpPortOwner`].
///
/// # Errors
///
/// As for [`TcpPortOwner::with_hosts`].
///
/// # Examples
///
/// ```
/// use portlock::{FreePort, compat::{Family, pysys::allocate_tcp_port}};
///
/// let port = allocate_tcp_port(&["127.0.0.1"], Family::V4)?;
/// assert!(FreePort::try_new(port).is_err());
/// # Ok::<(), portlock::Error>(())
/// ```
#[doc(alias = "allocateTCPPort")]
pub fn allocate_tcp_port(hosts: &[&str], family: Family) -> Result<u16> {
    let owner = TcpPortOwner::with_hosts(hosts, family)?;
    let port = owner.port();
    with_pool(|pool| pool.kept.push(owner))?;
    Ok(port)
}

/// Returns whether a port is in use on a host, or leased: `portIsInUse(port, host,
/// socketAddressFamily, type)`.
///
/// The host `""` means every address of the family. A port that this process may not bind counts
/// as in use.
///
/// # Errors
///
/// As for [`Builder::check`], except that it is not an error if the port is leased, in use or not
/// permitted; and [`Probe`](ErrorKind::Probe) if the host cannot be resolved or has no address of
/// the family.
///
/// # Examples
///
/// ```
/// use portlock::{FreePort, compat::{Family, SocketType, pysys::port_is_in_use}};
///
/// let port = FreePort::new(4000..=6000)?;
/// assert!(port_is_in_use(port.port(), "", Family::V4, SocketType::Stream)?);
/// # Ok::<(), portlock::Error>(())
/// ```
#[doc(alias = "portIsInUse")]
pub fn port_is_in_use(
    port: u16,
    host: &str,
    family: Family,
    socket_type: SocketType,
) -> Result<bool> {
    let builder = on_hosts(&[host], family)?.protocol(socket_type.protocol());
    Ok(!is_free(&builder.ports(port))?)
}

/// Returns the ports that are left for servers: `getServerTCPPorts()`, which is
/// [`PortSet::server_ports`].
///
/// # Errors
///
/// As for [`PortSet::server_ports`].
#[doc(alias = "getServerTCPPorts")]
pub fn get_server_tcp_ports() -> Result<PortSet> {
    PortSet::server_ports()
}

/// Returns the ports above 1023 that browsers refuse to connect to and that
/// [`get_server_tcp_ports`] therefore excludes: `excludedTCPPorts`.
///
/// # Examples
///
/// ```
/// use portlock::compat::pysys::excluded_tcp_ports;
///
/// assert!(excluded_tcp_ports().contains(6000));
/// ```
#[must_use]
#[doc(alias = "excludedTCPPorts")]
pub fn excluded_tcp_ports() -> PortSet {
    REFUSED_BY_BROWSERS.into_iter().collect()
}

/// Determines the ports that [`TcpPortOwner`] and [`allocate_tcp_port`] choose from:
/// `initializePortPool()`.
///
/// Without it, the first call of either does this. In PySys it may be called only once; here,
/// another call determines the ports again. The ports of earlier calls stay leased.
///
/// # Errors
///
/// As for [`PortSet::server_ports`].
#[doc(alias = "initializePortPool")]
#[doc(alias = "tcpServerPortPool")]
pub fn initialize_port_pool() -> Result<()> {
    let ports = PortSet::server_ports()?;
    with_pool(|pool| pool.ports = ports)
}

/// Counts of the ports that this process has allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PortAllocationStats {
    /// Number of ports to choose from: `totalServerPorts`.
    pub total_server_ports: usize,
    /// Largest number of ports that this process used at the same time: `peakAllocatedPorts`.
    pub peak_allocated_ports: usize,
    /// Total number of ports that were allocated so far: `lifetimeTotalAllocatedPorts`.
    pub lifetime_total_allocated_ports: usize,
}

/// Logs the counts of the ports that this process has allocated, at level debug, and returns them:
/// `logPortAllocationStats()`.
///
/// # Errors
///
/// [`Process`](ErrorKind::Process) in a process that was forked repeatedly while other threads
/// allocated ports.
///
/// # Examples
///
/// ```standalone_crate
/// use portlock::compat::pysys::{TcpPortOwner, log_port_allocation_stats};
///
/// let owners = [TcpPortOwner::new()?, TcpPortOwner::new()?];
/// let stats = log_port_allocation_stats()?;
/// assert_eq!(stats.peak_allocated_ports, 2);
/// # Ok::<(), portlock::Error>(())
/// ```
#[doc(alias = "logPortAllocationStats")]
pub fn log_port_allocation_stats() -> Result<PortAllocationStats> {
    let stats = with_pool(|pool| PortAllocationStats {
        total_server_ports: pool.ports.len(),
        peak_allocated_ports: pool.peak,
        lifetime_total_allocated_ports: pool.total,
    })?;
    debug!(
        "ports to choose from: {}, most in use at one time: {}, allocated in all: {}",
        stats.total_server_ports, stats.peak_allocated_ports, stats.lifetime_total_allocated_ports
    );
    Ok(stats)
}

fn on_hosts(hosts: &[&str], family: Family) -> Result<Builder> {
    let mut builder = FreePort::builder();
    for host in hosts {
        for address in addresses(host, family)? {
            builder = builder.host(address);
        }
    }
    Ok(builder)
}

fn addresses(host: &str, family: Family) -> Result<Vec<IpAddr>> {
    if host.is_empty() {
        return Ok(vec![family.every_address()]);
    }
    let of_family = |address: &IpAddr| address.is_ipv4() == (family == Family::V4);
    let all = (host, 0).to_socket_addrs().map_err(|error| {
        let message = format!("cannot resolve the host \"{}\"", host.escape_debug());
        Error::with_cause(ErrorKind::Probe, message, error)
    })?;
    let addresses: Vec<IpAddr> = all.map(|address| address.ip()).filter(of_family).collect();
    if addresses.is_empty() {
        let message = format!(
            "the host \"{}\" has no address of the family {family:?}",
            host.escape_debug()
        );
        return Err(Error::new(ErrorKind::Probe, message));
    }
    Ok(addresses)
}
