//! The family of a lease: its holder, the holder's descendants and the processes that inherited
//! the lease's descriptor. A server is the holder's if its process is in the family.
//!
//! **Another process's server needs proof.** A process outside the family is another's only if no
//! orphan of the family can be that process. A process whose parent has ended is adopted by
//! process 1 or by the nearest ancestor that is a subreaper (`find_new_reaper` in the kernel's
//! kernel/exit.c). So an orphan of the family is always a child of an ancestor of the holder. If
//! that cannot be excluded, or if something cannot be seen, the server's owner is unknown.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs},
    time::{Duration, SystemTime},
};

use crate::{
    error::{Error, ErrorKind, Result},
    leases::{EntryState, PortEntry},
    lock_dir::{LockDir, OpenDir},
    process::{self, Evidence, Identity, Lineage},
    readiness::{Accepted, wait_for_any},
    server::{BelongsTo, Server},
    sockets::{self, Processes, Socket, cannot_see},
};

#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod unsupported;

#[cfg(target_os = "linux")]
use linux::{LockFile, SHOWS_DESCRIPTORS};
#[cfg(not(target_os = "linux"))]
use unsupported::{LockFile, SHOWS_DESCRIPTORS};

/// Largest number of attempts to read a process while an ancestor is not seen. That ancestor
/// may have just ended; then the next attempt finds another parent.
const MAX_TRIES: usize = 20;

/// Largest number of ancestors. Only a bound; it is not reached in practice.
const MAX_ANCESTORS: usize = 1000;

/// The addresses of `localhost`. A client may connect to either.
const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// The processes whose servers count as the holder's.
pub(crate) struct Family {
    holder: Holder,
    /// The lock file whose descriptor makes a process a member of the family.
    file: Option<LockFile>,
    since: Option<SystemTime>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    /// The holder has this pid here.
    Alive(u32),
    /// The holder has ended. Others may have inherited the lease.
    Gone,
    /// The holder's process cannot be determined.
    Unknown,
}

impl Family {
    /// Returns the family of a lease, or `None` if the port is not leased. If that is unknown,
    /// returns a family.
    fn of_entry(dir: &OpenDir, entry: &PortEntry) -> Result<Option<Self>> {
        if entry.state == EntryState::Stale {
            return Ok(None);
        }
        let file = LockFile::find(dir, entry.port).map_err(cannot_see)?;
        let holder = match (entry.state, &entry.owner) {
            (EntryState::Inherited, _) => Holder::Gone,
            (_, Some(owner)) => match owner.process.pid_here().map_err(cannot_see)? {
                Some(pid) => Holder::Alive(pid),
                None => Holder::Unknown,
            },
            (_, None) => Holder::Unknown,
        };
        Ok(Some(Self {
            // Without access to descriptors, nothing shows which process inherited a lease.
            holder: match holder {
                Holder::Gone if !SHOWS_DESCRIPTORS => Holder::Unknown,
                holder => holder,
            },
            file,
            since: entry.owner.as_ref().and_then(|owner| owner.since()),
        }))
    }

    /// Returns the family of a process, alive or not: the process and its descendants. If its
    /// server must also be the server of a lease, `since` is when the lease began.
    fn of_process(process: Option<&Identity>, since: Option<SystemTime>) -> Result<Self> {
        let here = process.map_or(Ok(None), Identity::pid_here);
        let here = here.map_err(cannot_see)?;
        Ok(Self {
            holder: here.map_or(Holder::Gone, Holder::Alive),
            file: None,
            since,
        })
    }

    /// Returns who owns the server of a port, and those of its sockets that decide it.
    ///
    /// Of several addresses, one that belongs to the family is enough. But if that is 127.0.0.1 or
    /// ::1, the other of the two must not be another process's: a client that connects to
    /// `localhost` may reach either.
    fn judge_port<'a>(
        &self,
        port: u16,
        sockets: &'a [Socket],
        processes: &Processes,
    ) -> Result<(Verdict, Vec<&'a Socket>)> {
        let mut at_loopback = Vec::new();
        for host in LOOPBACK {
            let sockets = sockets::that_accept(sockets, SocketAddr::new(host, port));
            at_loopback.push((self.judge_address(&sockets, processes)?, sockets));
        }
        at_loopback.retain(|(_, sockets)| !sockets.is_empty());
        let mut by_address: BTreeMap<SocketAddr, Vec<&Socket>> = BTreeMap::new();
        for socket in sockets.iter().filter(|socket| !socket.accepts_everywhere()) {
            by_address.entry(socket.address).or_default().push(socket);
        }
        let mut elsewhere = Vec::new();
        for sockets in by_address.into_values() {
            elsewhere.push((self.judge_address(&sockets, processes)?, sockets));
        }
        let distance = |(verdict, _): &(Verdict, Vec<&Socket>)| verdict.distance();
        let closest = |judged: &[_]| judged.iter().map(distance).min();
        let is_loopback_decisive = match (closest(&at_loopback), closest(&elsewhere)) {
            (Some(at_loopback), Some(elsewhere)) => at_loopback <= elsewhere,
            (at_loopback, _) => at_loopback.is_some(),
        };
        let deciding = match is_loopback_decisive {
            // The first of equals.
            true => at_loopback.into_iter().rev().max_by_key(distance),
            false => elsewhere.into_iter().min_by_key(distance),
        };
        Ok(deciding.unwrap_or((Verdict::UNKNOWN, Vec::new())))
    }

    /// Returns who owns the server with these sockets of one address, and the process that shows
    /// it.
    ///
    /// - One process of the family that has a socket is enough: process 1 holds sockets that it
    ///   passes to services, and workers share theirs.
    /// - Each socket must belong to the family: with `SO_REUSEPORT`, the system distributes the
    ///   connections among them.
    fn judge_address(&self, sockets: &[&Socket], processes: &Processes) -> Result<Verdict> {
        let mut by_pid = HashMap::new();
        for pid in processes.having(sockets.iter().copied()) {
            by_pid.insert(pid, self.judge_one(pid).map_err(cannot_see)?);
        }
        let of_sockets = sockets.iter().map(|socket| {
            let pids = processes.having([*socket]).into_iter();
            let of_processes = pids.map(|pid| Verdict(by_pid[&pid], Some(pid)));
            // The workers of a daemonized server alone would count as another's, so the verdict
            // closest to the holder is used: unknown.
            let of_socket = of_processes.min_by_key(Verdict::distance);
            of_socket.unwrap_or(Verdict::UNKNOWN)
        });
        let farthest = of_sockets.max_by_key(Verdict::distance);
        Ok(farthest.unwrap_or(Verdict::UNKNOWN))
    }

    fn judge_one(&self, pid: u32) -> io::Result<BelongsTo> {
        for _ in 0..MAX_TRIES {
            let Some(ancestry) = Ancestry::read(pid)? else {
                break;
            };
            if let Some(belongs_to) = self.judge_ancestry(&ancestry)? {
                return Ok(belongs_to);
            }
        }
        Ok(BelongsTo::Unknown)
    }

    /// Returns `None` if an ancestor is not seen that might be the holder.
    fn judge_ancestry(&self, ancestry: &Ancestry) -> io::Result<Option<BelongsTo>> {
        if matches!(self.holder, Holder::Alive(holder) if ancestry.has(holder)) {
            return Ok(Some(BelongsTo::Holder));
        }
        if let Some(file) = &self.file {
            for &(pid, _) in &ancestry.members {
                if file.is_open_in(pid)? {
                    return Ok(Some(BelongsTo::Holder));
                }
            }
        }
        let server = ancestry.process();
        if self.holder == Holder::Unknown || server.is_elsewhere()? {
            return Ok(Some(BelongsTo::Unknown));
        }
        if ancestry.not_seen.is_some() {
            return Ok(None);
        }
        if let Some(since) = self.since
            && server.started_before(since)?
        {
            return Ok(Some(BelongsTo::Other));
        }
        let parent = ancestry.members.get(1);
        if parent.is_some_and(|(_, parent)| !parent.may_have_adopted(server)) {
            return Ok(Some(BelongsTo::Other));
        }
        let of_holder = match self.holder {
            Holder::Alive(holder) => Ancestry::read(holder)?,
            Holder::Gone | Holder::Unknown => None,
        };
        let may_be_orphan = match (parent, &of_holder) {
            (Some((1, _)) | None, _) | (_, None) => true,
            (Some((parent, _)), Some(of_holder)) => of_holder.may_have(*parent),
        };
        // A process does not descend from its own descendant.
        let is_above_holder = of_holder.is_some_and(|holder| holder.has(ancestry.members[0].0));
        Ok(Some(match may_be_orphan && !is_above_holder {
            true => BelongsTo::Unknown,
            false => BelongsTo::Other,
        }))
    }
}

/// Who owns a server, and the process that shows it.
#[derive(Clone, Copy, Debug)]
struct Verdict(BelongsTo, Option<u32>);

impl Verdict {
    /// No process that has the socket can be seen.
    const UNKNOWN: Self = Self(BelongsTo::Unknown, None);

    /// Returns how far the server is from being the holder's, for comparison.
    fn distance(&self) -> u8 {
        match self.0 {
            BelongsTo::Holder => 0,
            BelongsTo::Unknown => 1,
            BelongsTo::Other => 2,
        }
    }
}

/// A process and its visible ancestors.
struct Ancestry {
    /// The members with their pids, the process itself first.
    members: Vec<(u32, Lineage)>,
    /// The next ancestor, which has just ended or is hidden.
    not_seen: Option<u32>,
}

impl Ancestry {
    /// Returns `None` if the process itself cannot be seen.
    fn read(pid: u32) -> io::Result<Option<Self>> {
        let mut members = Vec::new();
        let (mut pid, mut lineage) = (pid, Lineage::read(pid)?);
        let mut not_seen = None;
        while let Some(member) = lineage {
            let parent = member.parent;
            members.push((pid, member));
            // The parent is in no visible namespace.
            if parent == 0 {
                break;
            }
            let child = &members[members.len() - 1].1;
            let next = match members.len() < MAX_ANCESTORS {
                true => Lineage::read(parent)?,
                false => None,
            };
            // If no process adopted it, the parent may have ended and its pid may have been
            // reused.
            let may_have_ended =
                !process::ADOPTS && (next.is_some() || process::check(parent).is_err());
            lineage = next.filter(|next| next.is_no_younger_than(child));
            if lineage.is_none() && !may_have_ended {
                not_seen = Some(parent);
            }
            pid = parent;
        }
        Ok((!members.is_empty()).then_some(Self { members, not_seen }))
    }

    fn process(&self) -> &Lineage {
        &self.members[0].1
    }

    /// The pid is known even if the process itself is hidden.
    fn has(&self, pid: u32) -> bool {
        self.not_seen == Some(pid) || self.members.iter().any(|&(member, _)| member == pid)
    }

    /// Returns whether the process is in the ancestry, or may be above an ancestor that is not
    /// seen.
    fn may_have(&self, pid: u32) -> bool {
        self.has(pid) || self.not_seen.is_some()
    }
}

/// Returns what is known of the server of a port, from its sockets and the family that it may
/// belong to.
fn server_of(
    port: u16,
    sockets: &[Socket],
    processes: &Processes,
    family: Option<&Family>,
) -> Result<Server> {
    let all: Vec<&Socket> = sockets.iter().collect();
    Ok(match family {
        Some(family) => {
            let (verdict, deciding) = family.judge_port(port, sockets, processes)?;
            described(port, &deciding, processes, Some(verdict))
        }
        None => described(port, &all, processes, None),
    })
}

/// Describes the server with these sockets. Without a lease, there is no verdict.
fn described(
    port: u16,
    sockets: &[&Socket],
    processes: &Processes,
    verdict: Option<Verdict>,
) -> Server {
    let (belongs_to, pid) = match verdict {
        Some(Verdict(belongs_to, pid)) => (Some(belongs_to), pid),
        None => (
            None,
            processes.having(sockets.iter().copied()).first().copied(),
        ),
    };
    Server {
        port,
        process: pid.map(process::describe),
        user_id: sockets.iter().find_map(|socket| socket.user_id),
        belongs_to,
    }
}

/// Returns the server that accepted a connection, unless that server, or the one at another
/// loopback address of `addresses`, belongs to a process outside the family.
fn accept(
    accepted: Accepted,
    addresses: &[SocketAddr],
    family: Option<&Family>,
    expected: impl FnOnce() -> String,
) -> Result<Server> {
    let Accepted { address, is_local } = accepted;
    let all = match is_local {
        true => sockets::all()?,
        // The sockets are on another machine.
        false => Vec::new(),
    };
    let accepting = |address| sockets::that_accept(&all, address);
    let sockets = accepting(address);
    let Some(family) = family else {
        let processes = Processes::of(sockets.iter().copied())?;
        return Ok(described(address.port(), &sockets, &processes, None));
    };
    // A client that connects to `localhost` may reach any of them.
    let is_other_loopback =
        |other: &SocketAddr| *other != address && other.ip().to_canonical().is_loopback();
    let others = addresses.iter().copied().filter(is_other_loopback);
    let others: Vec<_> = others.map(|other| (other, accepting(other))).collect();
    let of_others = others.iter().flat_map(|(_, sockets)| sockets);
    let processes = Processes::of(of_others.chain(&sockets).copied())?;
    let mut deciding = (address, sockets);
    let mut verdict = family.judge_address(&deciding.1, &processes)?;
    for other in others {
        if other.1.is_empty() {
            continue;
        }
        let judged = family.judge_address(&other.1, &processes)?;
        if judged.distance() > verdict.distance() {
            (deciding, verdict) = (other, judged);
        }
    }
    let (address, sockets) = deciding;
    let server = described(address.port(), &sockets, &processes, Some(verdict));
    if server.belongs_to != Some(BelongsTo::Other) {
        return Ok(server);
    }
    let message = format!("{address} is served by {server}, not by {}", expected());
    Err(Error::new(ErrorKind::OtherServer, message).with_server(server))
}

/// Waits for the server of the process `pid`. If it must be the server of a lease, `since` is
/// when the lease began.
pub(crate) fn wait_for_process(
    address: impl ToSocketAddrs,
    pid: u32,
    since: Option<SystemTime>,
    timeout: Duration,
) -> Result<Server> {
    // Also wait if the process has ended: a server may have daemonized.
    let process = process::find(pid).ok().map(|(identity, _)| identity);
    let server = wait_for_any(address, timeout, |accepted, addresses| {
        let family = Family::of_process(process.as_ref(), since)?;
        accept(accepted, addresses, Some(&family), || {
            format!("process {pid} or a descendant of it")
        })
    });
    server.map_err(|error| {
        let has_ended = || match &process {
            Some(process) => matches!(process.evidence(), Ok(Evidence::Gone)),
            None => process::has_ended(pid),
        };
        match error.kind() {
            ErrorKind::Timeout if has_ended() => error.of(&format!("process {pid} has ended")),
            _ => error,
        }
    })
}

impl LockDir {
    /// Returns the servers of all ports that have one, in ascending order of their ports, and
    /// whether they belong to the holders of the leases in this directory.
    ///
    /// A port with several servers is the holder's if one of them is. But if that one listens at
    /// 127.0.0.1 or ::1 and another process at the other of the two, it is the other process's:
    /// a client that connects to `localhost` may reach either.
    ///
    /// # Platform-specific behavior
    ///
    /// Only the sockets in the caller's network namespace are seen, and only the processes that
    /// the caller may inspect: on Linux, without privileges, those of the same user. macOS does
    /// not show the sockets of other users at all. Windows reports one process for each socket,
    /// the one that created it.
    ///
    /// # Errors
    ///
    /// [`Probe`](ErrorKind::Probe) or [`Process`](ErrorKind::Process) if the system fails to list sockets
    /// or processes; [`Lock`](ErrorKind::Lock) if a lock file cannot be read.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::net::TcpListener;
    /// use portlock::{BelongsTo, FreePort, LockDir};
    ///
    /// let port = FreePort::new(4000..=6000)?;
    /// let server = TcpListener::bind(port.addr())?;
    /// # server.set_ttl(64)?; // Then Wine shows the process of the socket.
    /// let servers = LockDir::locate()?.servers()?;
    /// let found = servers.iter().find(|server| server.port == port.port());
    /// let found = found.expect("it listens");
    /// assert_eq!(found.belongs_to, Some(BelongsTo::Holder));
    /// println!("{port} is served by {found}"); // pid 812 (orders-test)
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn servers(&self) -> Result<Vec<Server>> {
        let by_port = sockets::by_port(sockets::all()?);
        let processes = Processes::of(by_port.values().flatten())?;
        let mut servers = Vec::with_capacity(by_port.len());
        for (&port, sockets) in &by_port {
            let family = self.family(port)?;
            servers.push(server_of(port, sockets, &processes, family.as_ref())?);
        }
        servers.sort_unstable_by_key(|server| server.port);
        Ok(servers)
    }

    /// Returns the server of one port, if it has one, as [`servers`](Self::servers) does.
    ///
    /// # Errors
    ///
    /// As for [`servers`](Self::servers).
    ///
    /// # Examples
    ///
    /// ```
    /// use portlock::{FreePort, LockDir};
    ///
    /// let port = FreePort::new(4000..=6000)?;
    /// assert_eq!(LockDir::locate()?.server(port.port())?, None);
    /// # Ok::<(), portlock::Error>(())
    /// ```
    pub fn server(&self, port: u16) -> Result<Option<Server>> {
        let Some(sockets) = sockets::by_port(sockets::all()?).remove(&port) else {
            return Ok(None);
        };
        let processes = Processes::of(&sockets)?;
        let family = self.family(port)?;
        server_of(port, &sockets, &processes, family.as_ref()).map(Some)
    }

    /// Waits until a server accepts connections at `address`, or at one of several, and returns
    /// it. If the port is leased in this directory, the server must belong to the lease's holder.
    /// With `pid`, it must belong to that process or one of its descendants, whether the port is
    /// leased or not.
    ///
    /// Of several addresses, it waits for the first at which a server answers. A server at another
    /// loopback address among them must not be another process's either, because a client that
    /// connects to `localhost` may reach it. A server whose
    /// [owner](Server::belongs_to) is [unknown](BelongsTo::Unknown) is accepted, and so is any
    /// server of a port that is not leased.
    ///
    /// # Platform-specific behavior
    ///
    /// As for [`servers`](Self::servers). A server that is not on this machine is unknown.
    ///
    /// # Errors
    ///
    /// [`OtherServer`](ErrorKind::OtherServer) as soon as another process's server answers. If
    /// that is the intended server, pass the `pid` of its process, or use
    /// [`wait_until_listening`](crate::wait_until_listening), which accepts any server. Otherwise
    /// as for that function and for [`servers`](Self::servers).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{net::TcpListener, time::Duration};
    /// use portlock::{BelongsTo, FreePort, LockDir};
    ///
    /// let port = FreePort::builder().acquire_for(std::process::id())?;
    /// let server = TcpListener::bind(("127.0.0.1", port))?;
    /// # server.set_ttl(64)?; // Then Wine shows the process of the socket.
    /// let dir = LockDir::locate()?;
    /// let found = dir.wait_for_server(("127.0.0.1", port), None, Duration::from_secs(5))?;
    /// assert_eq!(found.belongs_to, Some(BelongsTo::Holder));
    /// # dir.release(port)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wait_for_server(
        &self,
        address: impl ToSocketAddrs,
        pid: Option<u32>,
        timeout: Duration,
    ) -> Result<Server> {
        if let Some(pid) = pid {
            return wait_for_process(address, pid, None, timeout);
        }
        wait_for_any(address, timeout, |accepted, addresses| {
            let port = accepted.address.port();
            let family = self.family(port)?;
            accept(accepted, addresses, family.as_ref(), || {
                let holder = self.entry(port).ok().flatten();
                match holder.and_then(|entry| entry.holder()) {
                    Some(holder) => format!("the lease's holder, {holder}"),
                    None => "the lease's holder".to_owned(),
                }
            })
        })
    }

    fn family(&self, port: u16) -> Result<Option<Family>> {
        match (self.opened(), self.entry(port)?) {
            (Some(dir), Some(entry)) => Family::of_entry(dir, &entry),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process;

    use super::*;
    use crate::process::tests::start_child;

    #[test]
    fn a_process_may_be_above_an_ancestor_that_is_not_seen() {
        let own = process::id();
        let mut ancestry = Ancestry::read(own).expect("read").expect("it lives");
        assert!(ancestry.has(own) && ancestry.may_have(own));
        ancestry.not_seen = None;
        assert!(!ancestry.may_have(u32::MAX));
        ancestry.not_seen = Some(own + 1);
        assert!(ancestry.may_have(u32::MAX) && !ancestry.has(u32::MAX));
    }

    #[test]
    fn a_process_without_a_parent_is_another_if_it_has_started_the_holder() {
        let mut child = start_child();
        let own = process::id();
        let mut ancestry = Ancestry::read(own).expect("read").expect("it lives");
        ancestry.members.truncate(1);
        ancestry.not_seen = None;
        for (holder, expected) in [
            (Holder::Alive(child.id()), BelongsTo::Other),
            (Holder::Alive(own), BelongsTo::Holder),
            (Holder::Gone, BelongsTo::Unknown),
        ] {
            let (file, since) = (None, None);
            let family = Family {
                holder,
                file,
                since,
            };
            let judged = family.judge_ancestry(&ancestry).expect("all are seen");
            assert_eq!(judged, Some(expected), "{holder:?}");
        }
        drop(child.stdin.take());
        child.wait().expect("our own child");
    }
}
