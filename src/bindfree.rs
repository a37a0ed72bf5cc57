//! The probe: is this port free right now?
//!
//! A probe is a *strict* bind, one without `SO_REUSEADDR`, on every address
//! asked for; on Windows, where that is not enough, one with `SO_EXCLUSIVEADDRUSE`.
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

/// A port that is bound, but not leased: the probe alone.
///
/// It keeps every other program from binding the port as long as it lives, the
/// caller's own server included. `release` it, or drop it, and the port is
/// anybody's again. To keep a port for a server that binds it later, use
/// [`FreePort`](crate::FreePort), of which this is one step.
///
/// It knows nothing of leases: it may bind a port that is leased but not bound
/// yet, just when the holder's server wants to. Do not use both on one range.
///
/// # Platform-specific behavior
///
/// The socket is dual-stack: it occupies the port on every IPv4 and IPv6
/// address. Where the system has no IPv6, it occupies every IPv4 address.
/// On Windows it has `SO_EXCLUSIVEADDRUSE`: nobody can bind beside it, not even with
/// `SO_REUSEADDR`. On macOS a program that sets `SO_REUSEADDR` can bind one specific address
/// beside it.
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
#[must_use = "dropping a probe at once frees its port again"]
#[derive(Debug)]
pub struct BindFreePort {
    probe: Probe,
}

impl BindFreePort {
    /// Binds a random free TCP port of `ports`, on every address of this machine.
    ///
    /// # Errors
    ///
    /// [`InvalidPorts`](ErrorKind::InvalidPorts) for an empty set, a reversed range
    /// or port 0 alone; [`Exhausted`](ErrorKind::Exhausted) when each
    /// port is bound by another program; [`PermissionDenied`](ErrorKind::PermissionDenied)
    /// when this process may bind none of them;
    /// [`Probe`](ErrorKind::Probe) for any other error of the system.
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

    /// The port that is bound.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.probe.port
    }

    /// Frees the port, so that anybody can bind it.
    ///
    /// # Errors
    ///
    /// [`Probe`](ErrorKind::Probe) if the system refuses to set `SO_REUSEADDR`
    /// before closing; the port is freed all the same. Dropping does the same
    /// and ignores it.
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
/// A lease is of the number, whatever the protocol: two callers are never given
/// the same one, not even one for TCP and one for UDP.
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

/// Where a port must be free.
#[derive(Clone, Debug, Default)]
pub(crate) struct Endpoints {
    /// All that were added.
    named: Vec<IpAddr>,
    /// As [`distinct`] gives them; none means every address of this machine.
    hosts: Vec<IpAddr>,
    pub(crate) protocol: Protocol,
    time_wait: TimeWait,
}

/// How a TCP socket is bound. For UDP, which has no TIME_WAIT, it is always strictly.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bind<'a> {
    /// Without `SO_REUSEADDR`.
    Strict,
    /// Without it, or with it where nothing but closing connections are in the way.
    StrictOrClosing(&'a ClosingPorts),
    /// With `SO_REUSEADDR`.
    Shared,
}

/// The ports that nothing but closing connections keep from being bound strictly, with the local
/// addresses of these: the system's table of sockets, read when it is first needed, because that takes
/// some milliseconds.
#[derive(Debug, Default)]
pub(crate) struct ClosingPorts(OnceCell<HashMap<u16, Vec<IpAddr>>>);

impl ClosingPorts {
    /// Whether closing connections, and nothing else that is known, kept the address from being bound
    /// strictly. The caller has just bound it with `SO_REUSEADDR`.
    fn is_all_there_is(&self, host: IpAddr, port: u16) -> io::Result<bool> {
        let is_in_the_way = |ports: &HashMap<u16, Vec<IpAddr>>| {
            let mut addresses = ports.get(&port).into_iter().flatten();
            addresses.any(|&address| is_met_by(host, address))
        };
        let Some(ports) = self.0.get() else {
            let ports = probe::closing_ports()?;
            return Ok(is_in_the_way(self.0.get_or_init(|| ports)));
        };
        // It was read before that bind, which keeps all newcomers out.
        Ok(is_in_the_way(ports) && is_in_the_way(&probe::closing_ports()?))
    }
}

/// Whether a connection with the local address `address` is in the way of a socket bound to `host`,
/// which is of both families if that is `::`.
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

    /// What ports with closing connections count as.
    pub(crate) fn time_wait(&self) -> TimeWait {
        match self.time_wait {
            // Only by proof.
            TimeWait::LastResort if !probe::SHOWS_CLOSING => TimeWait::Busy,
            time_wait => time_wait,
        }
    }

    /// Returns the same, with TIME_WAIT as free unless that was decided otherwise.
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

    /// The addresses that are bound, none meaning all.
    pub(crate) fn hosts(&self) -> &[IpAddr] {
        &self.hosts
    }
}

/// Sockets that hold a port, strictly bound.
#[derive(Debug)]
pub(crate) struct Probe {
    port: u16,
    /// Separate from the rest, so that the usual single one takes no allocation.
    /// `None` only while it is being made.
    first: Option<Socket>,
    /// Of further hosts and protocols.
    others: Vec<Socket>,
}

const ANY: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
const ANY_V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Ports below this need a privilege by default (ip(7)).
const PRIVILEGED: u16 = 1024;

/// How many connections may wait to be accepted. The kernel lowers it to
/// `net.core.somaxconn` (listen(2)), which is this by default since Linux 5.4.
const BACKLOG: i32 = 4096;

impl Probe {
    /// Binds `port` strictly on each of the endpoints.
    ///
    /// A host of a family that this system lacks does not count, unless none is left: no program
    /// can occupy the port there.
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

    /// Finds out whether [`bind`](Self::bind) would succeed, for a caller that does not have the lock
    /// of the port, and so must not be in the way of one that has.
    ///
    /// Where the system's table of sockets has none with this port, a TCP socket is bound with
    /// `SO_REUSEADDR` from the start. So it keeps away no server that sets that option, nor a caller
    /// that leases the port at this moment, which tries again. Only a socket that another program has
    /// bound with that option, and that does not listen, is then not seen. UDP sockets are all in the
    /// table.
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
            // Who has a port that is in use, only a strict bind tells.
            let how = match is_in_use {
                Some(false) if ty == Type::DGRAM && port >= PRIVILEGED => continue,
                Some(false) => Bind::Shared,
                _ => how,
            };
            Self::bind(port, &of_this_type, how)?.close()?;
        }
        Ok(())
    }

    /// Frees the port and leaves nothing in the way of the server to come.
    pub(crate) fn close(self) -> Result<()> {
        self.neutralize()
    }

    /// Keeps the port bound, but out of the way of a server that sets
    /// `SO_REUSEADDR`.
    ///
    /// A socket that was bound strictly, never listens and got the option
    /// afterwards keeps the port from the kernel's own choice and from strict
    /// binds (`inet_csk_get_port` and `__inet_hash_connect` on Linux).
    ///
    /// # Errors
    ///
    /// A UDP socket cannot: with the option set on both, Linux gives its port to any socket, one
    /// bound to port 0 included (`udp_lib_lport_inuse` in net/ipv4/udp.c).
    pub(crate) fn hold(self, endpoints: &Endpoints) -> Result<Self> {
        probe::can_hold()?;
        if endpoints.protocol != Protocol::Tcp {
            let message = "a lease cannot hold its socket for UDP: other sockets would be given \
                           its port all the same (hold_socket works for TCP alone)";
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        self.neutralize()?;
        Ok(self)
    }

    /// Makes whatever may outlive the closing of the probe harmless.
    ///
    /// A child that another thread is just starting has a duplicate of every
    /// descriptor until it executes its program, so the port can stay bound
    /// for a moment after we close it. With `SO_REUSEADDR` set *after* the
    /// strict bind, that duplicate does not refuse a server that sets the option
    /// too, as most do on Unix: Linux compares both sockets as they are at the
    /// time of the later bind (`inet_csk_bind_conflict`).
    fn neutralize(&self) -> Result<()> {
        for socket in self.first.iter().chain(&self.others) {
            probe::neutralize(socket)
                .map_err(|error| fail("set SO_REUSEADDR on the probe of", self.port, error))?;
        }
        Ok(())
    }

    /// Turns the probe into a listener on the port that it has bound all the while, unless
    /// another program has come to listen there.
    ///
    /// A probe of several sockets becomes the listener of its first host.
    pub(crate) fn listen(self) -> Attempt<TcpListener> {
        // Accepted connections inherit the option. Without it, what remains of
        // them in TIME_WAIT would keep the next server of this port from
        // binding for a minute, even one that sets it.
        self.neutralize()?;
        let Some(socket) = self.first else {
            return Err(Unavailable::Bound.into());
        };
        match socket.listen(BACKLOG) {
            Ok(()) => Ok(socket.into()),
            // Since the option was set, a program outside the lease that sets
            // it too could have bound and listened first.
            Err(error) if probe::is_in_use(&error) => Err(Unavailable::Bound.into()),
            Err(error) => Err(fail("listen on", self.port, error).into()),
        }
    }
}

/// The addresses to bind for `hosts`: each once, and none that another one
/// covers, for the two binds would refuse each other. Empty means all.
///
/// `[::]` is bound dual-stack, as servers get it by default on Linux, and so
/// covers IPv4 too (`IPV6_V6ONLY` in ipv6(7)).
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

/// Why a socket could not be bound, for another reason than that the port is unavailable.
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

/// Binds one address so that the bind fails if any socket is in the way of a server there.
#[inline]
fn bind_address(
    host: IpAddr,
    port: u16,
    ty: Type,
    how: Bind<'_>,
) -> Attempt<Socket, Unavailable, io::Error> {
    let how = match how {
        // UDP has no TIME_WAIT: there the option would only hide other sockets.
        _ if ty != Type::STREAM => Bind::Strict,
        how => how,
    };
    probe::bind(host, port, ty, how)
}

/// Binds one address, and checks no others. `only_v6` matters to IPv6 sockets.
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
        // Its default is a setting of the system (net.ipv6.bindv6only).
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
        // A UDP socket that has the port is not asked what it is: if it has SO_REUSEADDR, a second
        // one with that option is bound beside it, and gets its datagrams.
        Err(error) if probe::is_in_use(&error) && (is_shared || ty == Type::DGRAM) => {
            Err(Unavailable::Bound.into())
        }
        Err(error) if probe::is_in_use(&error) => {
            match (probe::occupant(&socket, address)?, how) {
                // Bound with `SO_REUSEADDR` now.
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

/// Whether `error`, of a socket for `host`, says that this system does not have
/// that address family at all.
///
/// With `net.ipv6.conf.*.disable_ipv6` set, sockets of the family can be made,
/// but it has no addresses left, not even its loopback.
pub(crate) fn is_absent_family(host: IpAddr, error: &io::Error) -> bool {
    let v6_everywhere = host == IpAddr::V6(Ipv6Addr::LOCALHOST) || host.is_unspecified();
    let is_unknown = error.kind() == io::ErrorKind::AddrNotAvailable;
    error.raw_os_error() == Some(probe::UNKNOWN_FAMILY)
        || host.is_ipv6() && v6_everywhere && is_unknown
}

#[cold]
fn cannot_bind(address: SocketAddr, ty: Type, cause: io::Error) -> Error {
    let name = if ty == Type::DGRAM { "UDP" } else { "TCP" };
    // A refusal of bind(2) makes the port unavailable. This one is of socket(2), by a policy such as those of
    // seccomp, AppArmor and SELinux.
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
    fn a_connection_is_in_the_way_of_sockets_that_cover_its_address() {
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
    fn an_absent_family_is_told_from_a_missing_address() {
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
