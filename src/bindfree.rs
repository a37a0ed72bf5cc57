//! The probe: checks whether a port is free.
//!
//! A probe is a *strict* bind, one without `SO_REUSEADDR`, on every requested address. On
//! Windows, where that is not enough, it sets `SO_EXCLUSIVEADDRUSE`.
//! On Linux one strict bind of `[::]` with `IPV6_V6ONLY` off fails
//! if any IPv4 or IPv6 address of the port is bound, listening or not
//! (`inet_csk_get_port` in net/ipv4/inet_connection_sock.c). A strict bind of
//! `0.0.0.0` would miss `[::1]`, one of `127.0.0.1` would miss `127.0.0.2`, and
//! one with `SO_REUSEADDR` would miss sockets that do not listen yet.

use std::{
    cell::OnceCell,
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
};

use socket2::{Domain, Socket, Type};

use crate::{
    error::{Error, ErrorKind, Result},
    ports::{Order, PortSet},
    search::{ByReason, TimeWait, search},
    unavailable::{Attempt, Failure, Unavailable},
};

#[cfg(target_os = "linux")]
pub(crate) mod linux;
#[cfg(target_os = "macos")]
pub(crate) mod macos;
#[cfg(unix)]
mod unix;
#[cfg(windows)]
pub(crate) mod windows;
#[cfg(any(target_os = "macos", test))]
mod xnu;

#[cfg(target_os = "linux")]
pub(crate) use linux as probe;
#[cfg(target_os = "macos")]
pub(crate) use macos as probe;
#[cfg(windows)]
pub(crate) use windows as probe;

/// A port that is bound but not leased: only the probe.
///
/// While it lives, no other program can bind the port, and neither can the caller's own server.
/// After `release` or drop, any program can bind the port. To keep a port for a server that binds
/// it later, use [`FreePort`](crate::FreePort), which uses this probe as one step.
///
/// It ignores leases: it may bind a port that is leased but not yet bound, at the moment when the
/// holder's server tries to bind it. Do not use both on the same range.
///
/// # Platform-specific behavior
///
/// The socket is dual-stack: it occupies the port on every IPv4 and IPv6 address. If the system
/// has no IPv6, it occupies every IPv4 address. On Windows it has `SO_EXCLUSIVEADDRUSE`: no other
/// socket can bind the port, even with `SO_REUSEADDR`. On macOS, a program that sets
/// `SO_REUSEADDR` can still bind one specific address.
///
/// # Examples
///
/// ```
/// use std::net::TcpListener;
/// use portlock::BindFreePort;
///
/// let probe = BindFreePort::new(4000..=6000)?;
/// let port = probe.port();
/// assert!(TcpListener::bind(("0.0.0.0", port)).is_err());
///
/// probe.release()?;
/// # Ok::<(), portlock::Error>(())
/// ```
#[must_use = "dropping a probe immediately frees its port"]
#[derive(Debug)]
pub struct BindFreePort {
    probe: Probe,
}

impl BindFreePort {
    /// Binds a random free TCP port from `ports` on every address of this machine.
    ///
    /// # Errors
    ///
    /// [`InvalidPorts`](ErrorKind::InvalidPorts) for an empty set, a reversed range or port 0
    /// alone; [`Exhausted`](ErrorKind::Exhausted) if each port is bound by another program;
    /// [`PermissionDenied`](ErrorKind::PermissionDenied) if this process is not permitted to bind
    /// any of them; [`Probe`](ErrorKind::Probe) for any other system error.
    pub fn new(ports: impl Into<PortSet>) -> Result<Self> {
        let ports = ports.into();
        ports.must_not_be_empty()?;
        let endpoints = Endpoints::default();
        let order = Order::random();
        let closing = ClosingPorts::default();
        let bind = |port, closing_is_free| {
            let bind = match closing_is_free {
                true => Bind::StrictOrClosing(&closing),
                false => Bind::Strict,
            };
            Probe::bind(port, &endpoints, bind)
        };
        match search(&ports, order, endpoints.time_wait(), bind) {
            Ok(probe) => Ok(Self { probe }),
            Err(Failure::Unavailable(exhausted)) => {
                let headline = format!("no free port in {}", ports.brief());
                Err(exhausted.into_error(headline, &ByReason::default()))
            }
            Err(Failure::Error(error)) => Err(error),
        }
    }

    /// Returns the bound port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.probe.port
    }

    /// Frees the port, so that any program can bind it.
    ///
    /// # Errors
    ///
    /// [`Probe`](ErrorKind::Probe) if the system refuses to set `SO_REUSEADDR` before closing;
    /// the port is freed anyway. Dropping does the same and ignores the error.
    pub fn release(self) -> Result<()> {
        self.probe.neutralize()
    }
}

impl Drop for BindFreePort {
    fn drop(&mut self) {
        let _ = self.probe.neutralize();
    }
}

/// The transport protocols for which a port must be free. TCP and UDP ports
/// of the same number are different ports (RFC 9293, RFC 768).
///
/// A lease covers the number, whatever the protocol: two callers never get the same number, even
/// if one wants it for TCP and the other for UDP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Protocol {
    /// The port must be free for TCP.
    #[default]
    Tcp,
    /// The port must be free for UDP.
    Udp,
    /// The port must be free for both, as for a DNS or HTTP/3 server.
    TcpAndUdp,
}

impl Protocol {
    fn socket_types(self) -> &'static [Type] {
        match self {
            Self::Tcp => &[Type::STREAM],
            Self::Udp => &[Type::DGRAM],
            Self::TcpAndUdp => &[Type::STREAM, Type::DGRAM],
        }
    }
}

/// The addresses and protocols for which a port must be free.
#[derive(Clone, Debug, Default)]
pub(crate) struct Endpoints {
    /// All hosts that were added.
    named: Vec<IpAddr>,
    /// The result of [`distinct`]; empty means every address of this machine.
    hosts: Vec<IpAddr>,
    pub(crate) protocol: Protocol,
    time_wait: TimeWait,
}

/// How a TCP socket is bound. For UDP, which has no TIME_WAIT, the bind is always strict.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bind<'a> {
    /// Without `SO_REUSEADDR`.
    Strict,
    /// Without `SO_REUSEADDR`, or with it if only closing connections occupy the port.
    StrictOrClosing(&'a ClosingPorts),
    /// With `SO_REUSEADDR`.
    Shared,
}

/// The ports that only closing connections keep from being bound strictly, with the local
/// addresses of those connections. The system's socket table takes some milliseconds to read, so
/// it is read when first needed.
#[derive(Debug, Default)]
pub(crate) struct ClosingPorts(OnceCell<HashMap<u16, Vec<IpAddr>>>);

impl ClosingPorts {
    /// Returns whether only closing connections kept the address from being bound strictly. The
    /// caller has just bound it with `SO_REUSEADDR`.
    fn is_all_there_is(&self, host: IpAddr, port: u16) -> io::Result<bool> {
        let is_in_the_way = |ports: &HashMap<u16, Vec<IpAddr>>| {
            let mut addresses = ports.get(&port).into_iter().flatten();
            addresses.any(|&address| is_met_by(host, address))
        };
        let Some(ports) = self.0.get() else {
            let ports = probe::closing_ports()?;
            return Ok(is_in_the_way(self.0.get_or_init(|| ports)));
        };
        // The table was read before that bind, which keeps all later sockets out.
        Ok(is_in_the_way(ports) && is_in_the_way(&probe::closing_ports()?))
    }
}

/// Returns whether a connection with the local address `address` conflicts with a socket bound to
/// `host`. For `::`, that socket is dual-stack.
fn is_met_by(host: IpAddr, address: IpAddr) -> bool {
    match host {
        IpAddr::V6(host) if host.is_unspecified() => true,
        IpAddr::V4(host) if host.is_unspecified() => address.is_ipv4(),
        host => host.to_canonical() == address,
    }
}

impl Endpoints {
    pub(crate) fn add_host(&mut self, host: IpAddr) {
        self.named.push(host);
        self.hosts = distinct(&self.named);
    }

    /// Returns how ports with closing connections are treated.
    pub(crate) fn time_wait(&self) -> TimeWait {
        match self.time_wait {
            // Here they cannot be proven to be closing.
            TimeWait::LastResort if !probe::SHOWS_CLOSING => TimeWait::Busy,
            time_wait => time_wait,
        }
    }

    /// Returns a copy that treats closing connections as free unless the caller decided
    /// otherwise.
    pub(crate) fn with_closing_as_free(&self) -> Self {
        let mut endpoints = self.clone();
        if endpoints.time_wait == TimeWait::LastResort {
            endpoints.time_wait = TimeWait::Free;
        }
        endpoints
    }

    pub(crate) fn set_time_wait(&mut self, time_wait: TimeWait) {
        self.time_wait = time_wait;
    }

    /// Returns the addresses to bind; empty means all.
    pub(crate) fn hosts(&self) -> &[IpAddr] {
        &self.hosts
    }
}

/// Strictly bound sockets that hold a port.
#[derive(Debug)]
pub(crate) struct Probe {
    port: u16,
    /// Separate from `others`, so that the usual single socket takes no allocation. `None` only
    /// during construction.
    first: Option<Socket>,
    /// Sockets for further hosts and protocols.
    others: Vec<Socket>,
}

const ANY: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
const ANY_V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Lowest port that needs no privilege by default (ip(7)).
const PRIVILEGED: u16 = 1024;

/// Maximum number of connections in the accept queue. The kernel caps it at `net.core.somaxconn`
/// (listen(2)), which has this default since Linux 5.4.
const BACKLOG: i32 = 4096;

impl Probe {
    /// Binds `port` strictly on each of the endpoints.
    ///
    /// A host of a family that this system lacks is ignored, unless it is the only host: no
    /// program can occupy the port there.
    pub(crate) fn bind(port: u16, endpoints: &Endpoints, how: Bind<'_>) -> Attempt<Self> {
        let types = endpoints.protocol.socket_types();
        let bind = |hosts: &[IpAddr]| Self::bind_hosts(port, hosts, types, how);
        let outcome = match endpoints.hosts() {
            [] => match bind(&[ANY]) {
                Err(Failure::Error(error)) if error.is_of_absent_family() => bind(&[ANY_V4]),
                outcome => outcome,
            },
            hosts => bind(hosts),
        };
        outcome.map_err(|failure| failure.map_error(BindError::into))
    }

    fn bind_hosts(
        port: u16,
        hosts: &[IpAddr],
        types: &[Type],
        how: Bind<'_>,
    ) -> Attempt<Self, Unavailable, BindError> {
        let mut probe = Self {
            port,
            first: None,
            others: Vec::new(),
        };
        let mut absent = None;
        for &host in hosts {
            for &ty in types {
                let fail = |cause| BindError {
                    address: SocketAddr::new(host, port),
                    ty,
                    cause,
                };
                match bind_address(host, port, ty, how).map_err(|failure| failure.map_error(fail)) {
                    Ok(socket) if probe.first.is_none() => probe.first = Some(socket),
                    Ok(socket) => probe.others.push(socket),
                    Err(Failure::Error(error)) if error.is_of_absent_family() => {
                        absent = Some(error);
                    }
                    Err(failure) => return Err(failure),
                }
            }
        }
        match absent {
            Some(error) if probe.first.is_none() => Err(Failure::Error(error)),
            _ => Ok(probe),
        }
    }

    /// Checks whether [`bind`](Self::bind) would succeed, for a caller that does not hold the
    /// port's lock and so must not disturb a caller that does.
    ///
    /// If the system's socket table shows no socket on this port, a TCP socket is bound with
    /// `SO_REUSEADDR` from the start. So it does not block a server that sets that option, nor a
    /// caller that leases the port at this moment, which retries. The check misses only a socket
    /// that another program has bound with that option and that does not listen. The table shows
    /// all UDP sockets.
    pub(crate) fn check_unlocked(port: u16, endpoints: &Endpoints, how: Bind<'_>) -> Attempt<()> {
        for &ty in endpoints.protocol.socket_types() {
            let is_in_use = probe::is_in_table(port, ty)
                .map_err(|error| fail("read the table of sockets for", port, error))?;
            let of_this_type = Endpoints {
                protocol: match ty {
                    Type::DGRAM => Protocol::Udp,
                    _ => Protocol::Tcp,
                },
                ..endpoints.clone()
            };
            // If the port is in use, only a strict bind determines by what.
            let how = match is_in_use {
                Some(false) if ty == Type::DGRAM && port >= PRIVILEGED => continue,
                Some(false) => Bind::Shared,
                _ => how,
            };
            Self::bind(port, &of_this_type, how)?.close()?;
        }
        Ok(())
    }

    /// Frees the port so that nothing blocks the next server.
    pub(crate) fn close(self) -> Result<()> {
        self.neutralize()
    }

    /// Keeps the port bound, but lets a server that sets `SO_REUSEADDR` bind it.
    ///
    /// A socket that was bound strictly, never listens and had the option set afterwards still
    /// keeps the kernel from choosing the port and other programs from binding it strictly
    /// (`inet_csk_get_port` and `__inet_hash_connect` on Linux).
    ///
    /// # Errors
    ///
    /// For UDP sockets: with the option set on both, Linux gives the port to any socket, even one
    /// bound to port 0 (`udp_lib_lport_inuse` in net/ipv4/udp.c).
    pub(crate) fn hold(self, endpoints: &Endpoints) -> Result<Self> {
        probe::can_hold()?;
        if endpoints.protocol != Protocol::Tcp {
            let message = "a lease cannot hold its socket for UDP: other sockets would still \
                           get its port (hold_socket works only for TCP)";
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        self.neutralize()?;
        Ok(self)
    }

    /// Neutralizes copies of the probe's sockets that may outlive it.
    ///
    /// A child that another thread is spawning has a copy of every descriptor until it calls
    /// exec, so the port can stay bound for a moment after we close it. With `SO_REUSEADDR` set
    /// *after* the strict bind, that copy does not block a server that also sets the option, as
    /// most do on Unix: Linux compares the options that both sockets have at the time of the
    /// later bind (`inet_csk_bind_conflict`).
    fn neutralize(&self) -> Result<()> {
        for socket in self.first.iter().chain(&self.others) {
            probe::neutralize(socket)
                .map_err(|error| fail("set SO_REUSEADDR on the probe of", self.port, error))?;
        }
        Ok(())
    }

    /// Turns the probe into a listener on its port, which stays bound throughout, unless another
    /// program has started to listen there.
    ///
    /// A probe of several sockets listens on its first host.
    pub(crate) fn listen(self) -> Attempt<TcpListener> {
        // Accepted connections inherit the option. Without it, those in TIME_WAIT would block the
        // next server of this port for a minute, even one that sets the option.
        self.neutralize()?;
        let Some(socket) = self.first else {
            return Err(Unavailable::Bound.into());
        };
        match socket.listen(BACKLOG) {
            Ok(()) => Ok(socket.into()),
            // Since the option was set, a program without a lease that also sets it could have
            // bound the port and listened first.
            Err(error) if probe::is_in_use(&error) => Err(Unavailable::Bound.into()),
            Err(error) => Err(fail("listen on", self.port, error).into()),
        }
    }
}

/// Returns the addresses to bind for `hosts`: each once, without those that another one covers,
/// because the two binds would conflict. Empty means all.
///
/// `[::]` is bound dual-stack, as servers bind it by default on Linux, so it covers IPv4 too
/// (`IPV6_V6ONLY` in ipv6(7)).
fn distinct(hosts: &[IpAddr]) -> Vec<IpAddr> {
    if hosts.is_empty() {
        return Vec::new();
    }
    let mut hosts: Vec<IpAddr> = hosts.iter().map(IpAddr::to_canonical).collect();
    if hosts.contains(&IpAddr::V6(Ipv6Addr::UNSPECIFIED)) {
        return Vec::new();
    }
    let any_v4 = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    if hosts.contains(&any_v4) {
        hosts.retain(|&host| host == any_v4 || host.is_ipv6());
    }
    hosts.sort_unstable();
    hosts.dedup();
    hosts
}

/// A failure to bind a socket for a reason other than an unavailable port.
struct BindError {
    address: SocketAddr,
    ty: Type,
    cause: io::Error,
}

impl BindError {
    fn is_of_absent_family(&self) -> bool {
        is_absent_family(self.address.ip(), &self.cause)
    }
}

impl From<BindError> for Error {
    fn from(error: BindError) -> Self {
        cannot_bind(error.address, error.ty, error.cause)
    }
}

/// Binds one address. The bind fails if any socket would block a server there.
#[inline]
fn bind_address(
    host: IpAddr,
    port: u16,
    ty: Type,
    how: Bind<'_>,
) -> Attempt<Socket, Unavailable, io::Error> {
    let how = match how {
        // UDP has no TIME_WAIT, so the option would only hide other sockets.
        _ if ty != Type::STREAM => Bind::Strict,
        how => how,
    };
    probe::bind(host, port, ty, how)
}

/// Binds one address without checking others. `only_v6` applies to IPv6 sockets.
#[inline]
pub(crate) fn bind_one(
    host: IpAddr,
    port: u16,
    ty: Type,
    only_v6: bool,
    how: Bind<'_>,
) -> Attempt<Socket, Unavailable, io::Error> {
    let address = SocketAddr::new(host, port);
    let socket = Socket::new(Domain::for_address(address), ty, None)?;
    if address.is_ipv6() {
        // The default depends on a system setting (net.ipv6.bindv6only).
        socket.set_only_v6(only_v6)?;
    }
    let is_shared = matches!(how, Bind::Shared);
    if is_shared {
        probe::ignore_time_wait(&socket)?;
    }
    probe::make_strict(&socket)?;
    match socket.bind(&address.into()) {
        Ok(()) => Ok(socket),
        Err(error) if probe::is_not_permitted(&error) => Err(Unavailable::NotPermitted.into()),
        // Do not probe a UDP socket further: if it has SO_REUSEADDR, a second socket with that
        // option could be bound to the same port and would receive its datagrams.
        Err(error) if probe::is_in_use(&error) && (is_shared || ty == Type::DGRAM) => {
            Err(Unavailable::Bound.into())
        }
        Err(error) if probe::is_in_use(&error) => {
            match (probe::occupant(&socket, address)?, how) {
                // The socket is now bound with `SO_REUSEADDR`.
                (Unavailable::Lingering, Bind::StrictOrClosing(closing))
                    if closing.is_all_there_is(host, port)? =>
                {
                    Ok(socket)
                }
                (why, _) => Err(why.into()),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Returns whether `error`, from a socket for `host`, means that this system lacks that address
/// family.
///
/// With `net.ipv6.conf.*.disable_ipv6` set, sockets of the family can be created, but no address
/// is left, not even the loopback address.
pub(crate) fn is_absent_family(host: IpAddr, error: &io::Error) -> bool {
    let v6_everywhere = host == IpAddr::V6(Ipv6Addr::LOCALHOST) || host.is_unspecified();
    let is_unknown = error.kind() == io::ErrorKind::AddrNotAvailable;
    error.raw_os_error() == Some(probe::UNKNOWN_FAMILY)
        || host.is_ipv6() && v6_everywhere && is_unknown
}

#[cold]
fn cannot_bind(address: SocketAddr, ty: Type, cause: io::Error) -> Error {
    let name = if ty == Type::DGRAM { "UDP" } else { "TCP" };
    // If bind(2) is refused, the port is unavailable. This error is from socket(2), refused by a
    // policy such as seccomp, AppArmor or SELinux.
    let message = match (cause.kind(), address.is_ipv6()) {
        (io::ErrorKind::PermissionDenied, true) => format!(
            "cannot bind {name} {address}, because a policy forbids this process to create IPv6 \
             sockets (to need a port on IPv4 alone, name its addresses with --host or \
             Builder::host)"
        ),
        (io::ErrorKind::PermissionDenied, false) => format!(
            "cannot bind {name} {address}, because a policy forbids this process to create IPv4 \
             sockets"
        ),
        _ => format!("cannot bind {name} {address}"),
    };
    Error::with_cause(ErrorKind::Probe, message, cause)
}

#[cold]
fn fail(operation: &str, port: u16, cause: io::Error) -> Error {
    Error::with_cause(
        ErrorKind::Probe,
        format!("cannot {operation} port {port}"),
        cause,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(text: &[&str]) -> Vec<IpAddr> {
        let parse = |host: &&str| host.parse().expect("an address");
        text.iter().map(parse).collect()
    }

    #[test]
    fn hosts_that_cover_each_other_are_bound_once() {
        for (given, bound) in [
            (&[][..], &[][..]),
            (&["127.0.0.1", "127.0.0.1"], &["127.0.0.1"]),
            (&["127.0.0.1", "::ffff:127.0.0.1"], &["127.0.0.1"]),
            (&["127.0.0.2", "0.0.0.0", "::1"], &["0.0.0.0", "::1"]),
            (&["127.0.0.2", "::", "0.0.0.0"], &[]),
        ] {
            assert_eq!(distinct(&hosts(given)), hosts(bound), "{given:?}");
        }
    }

    #[test]
    fn a_connection_conflicts_with_sockets_that_cover_its_address() {
        for (host, address, expected) in [
            ("::", "127.0.0.1", true),
            ("::", "2001:db8::1", true),
            ("0.0.0.0", "127.0.0.1", true),
            ("0.0.0.0", "::1", false),
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "127.0.0.2", false),
            ("127.0.0.1", "::1", false),
            ("::ffff:127.0.0.1", "127.0.0.1", true),
            ("::1", "::1", true),
            ("::1", "2001:db8::1", false),
        ] {
            let [host, address] = [host, address].map(|text| hosts(&[text])[0]);
            assert_eq!(is_met_by(host, address), expected, "{host} {address}");
        }
    }

    #[test]
    fn an_absent_family_is_distinguished_from_a_missing_address() {
        let not_available = io::Error::from(io::ErrorKind::AddrNotAvailable);
        let [any, loopback, other] = ["::", "::1", "2001:db8::1"].map(|host| hosts(&[host])[0]);
        assert!(is_absent_family(any, &not_available));
        assert!(is_absent_family(loopback, &not_available));
        assert!(!is_absent_family(other, &not_available));
        assert!(!is_absent_family(hosts(&["127.0.0.1"])[0], &not_available));
        let not_supported = io::Error::from_raw_os_error(probe::UNKNOWN_FAMILY);
        assert!(is_absent_family(other, &not_supported));
    }
}
