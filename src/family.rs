//! The family of a lease: its holder, the descendants of it and the processes that have inherited the
//! lease's descriptor. A server is the holder's if its process is of the family.
//!
//! **Another's needs proof.** What is not of the family is another process's only if no orphan of the
//! family can be it. A process whose parent has ended is adopted: by process 1, or by the nearest ancestor
//! that is a subreaper (`find_new_reaper` in the kernel's kernel/exit.c). So an orphan of the
//! family is always the child of an ancestor of the holder. Where that cannot be excluded, and where
//! something cannot be seen, the server's owner is unknown.

use std::{
    io,
    net::ToSocketAddrs,
    process::id,
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

/// Number of times that a process is read again because it changed meanwhile, and the longest line of
/// ancestors. Far beyond what happens; only bounds.
const MAX_TRIES: usize = 20;
const MAX_ANCESTORS: usize = 1000;

/// The processes whose server is the holder's.
pub(crate) struct Family {
    holder: Holder,
    /// Whose descriptor makes a process one of the family.
    file: Option<LockFile>,
    /// A process that has the descriptor and is not of the family: this one, where the server is to be
    /// another process's.
    except: Option<u32>,
    since: Option<SystemTime>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    /// It has this pid here.
    Alive(u32),
    /// It has ended. Others may have inherited the lease.
    Gone,
    /// It cannot be determined which process it is.
    Unknown,
}

impl Family {
    /// Returns the family of a lease, or `None` if the port is not leased. It may be where that is unknown.
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
            // Without their descriptors, nothing shows who has inherited a lease.
            holder: match holder {
                Holder::Gone if !SHOWS_DESCRIPTORS => Holder::Unknown,
                holder => holder,
            },
            file,
            except: None,
            since: entry.owner.as_ref().and_then(|owner| owner.since()),
        }))
    }

    /// Returns the family of a process, whether it lives or not. If its server is that of a lease of this
    /// process, in `dir`, those that have inherited the lease are of the family too.
    fn of_process(
        pid: u32,
        process: Option<&Identity>,
        lease: Option<(&OpenDir, u16, Option<SystemTime>)>,
    ) -> Result<Self> {
        let here = process.map_or(Ok(None), Identity::pid_here);
        let file = lease.map_or(Ok(None), |(dir, port, _)| LockFile::find(dir, port));
        Ok(Self {
            holder: here
                .map_err(cannot_see)?
                .map_or(Holder::Gone, Holder::Alive),
            file: file.map_err(cannot_see)?,
            except: Some(id()).filter(|&own| own != pid),
            since: lease.and_then(|(.., since)| since),
        })
    }

    /// Returns whose server it is that several processes have, and which of them shows it.
    fn judge(&self, pids: &[u32]) -> Result<(BelongsTo, Option<u32>)> {
        let mut verdict = None;
        for &pid in pids {
            let belongs_to = self.judge_one(pid).map_err(cannot_see)?;
            match (belongs_to, verdict) {
                // Any process of the family is enough: a socket can be shared, as with process 1, which
                // holds those that it passes to services.
                (BelongsTo::Holder, _) => return Ok((belongs_to, Some(pid))),
                // The workers of a server that daemonized are children of an orphan.
                (BelongsTo::Unknown, None | Some((BelongsTo::Other, _)))
                | (BelongsTo::Other, None) => {
                    verdict = Some((belongs_to, Some(pid)));
                }
                (BelongsTo::Unknown | BelongsTo::Other, Some(_)) => {}
            }
        }
        Ok(verdict.unwrap_or((BelongsTo::Unknown, None)))
    }

    fn judge_one(&self, pid: u32) -> io::Result<BelongsTo> {
        for _ in 0..MAX_TRIES {
            let Some(first) = Lineage::read(pid)? else {
                break;
            };
            let verdict = self.judge_by_ancestors(pid, &first)?;
            // An ancestor that ended meanwhile changes the line, and a pid can be reused.
            if Lineage::read(pid)?.as_ref() == Some(&first)
                && let Some(verdict) = verdict
            {
                return Ok(verdict);
            }
        }
        Ok(BelongsTo::Unknown)
    }

    /// Returns `None` if an ancestor is not seen: it has just ended, or is hidden.
    fn judge_by_ancestors(&self, pid: u32, server: &Lineage) -> io::Result<Option<BelongsTo>> {
        let (mut at, mut lineage) = (pid, server.clone());
        // Of the server itself.
        let mut parent = None;
        for _ in 0..MAX_ANCESTORS {
            if self.has(at)? {
                return Ok(Some(BelongsTo::Holder));
            }
            match ancestor(&lineage)? {
                Ancestor::Seen(next) => {
                    at = lineage.parent;
                    lineage = next;
                }
                // Its pid is known even where the holder itself is hidden.
                Ancestor::NotSeen if self.holder == Holder::Alive(lineage.parent) => {
                    return Ok(Some(BelongsTo::Holder));
                }
                Ancestor::NotSeen | Ancestor::None => break,
            }
            parent.get_or_insert_with(|| lineage.clone());
        }
        if self.holder == Holder::Unknown || server.is_elsewhere()? {
            return Ok(Some(BelongsTo::Unknown));
        }
        // The line must be whole: the holder may be above what is not seen.
        if ancestor(&lineage)? == Ancestor::NotSeen {
            return Ok(None);
        }
        if let Some(since) = self.since
            && server.started_before(since)?
        {
            return Ok(Some(BelongsTo::Other));
        }
        let Some(parent) = parent else {
            return Ok(Some(BelongsTo::Unknown));
        };
        let may_be_orphan = parent.may_have_adopted(server)
            && (server.parent == 1 || self.may_descend_from(server.parent)?);
        Ok(Some(match may_be_orphan {
            true => BelongsTo::Unknown,
            false => BelongsTo::Other,
        }))
    }

    /// Returns whether the process is of the family by itself.
    fn has(&self, pid: u32) -> io::Result<bool> {
        if self.holder == Holder::Alive(pid) {
            return Ok(true);
        }
        match &self.file {
            Some(file) if self.except != Some(pid) => file.is_open_in(pid),
            _ => Ok(false),
        }
    }

    /// Returns whether the holder is a descendant of the process, or may be.
    fn may_descend_from(&self, ancestor_pid: u32) -> io::Result<bool> {
        let Holder::Alive(mut pid) = self.holder else {
            return Ok(true);
        };
        let Some(mut lineage) = Lineage::read(pid)? else {
            return Ok(true);
        };
        for _ in 0..MAX_ANCESTORS {
            if pid == ancestor_pid {
                return Ok(true);
            }
            match ancestor(&lineage)? {
                Ancestor::Seen(next) => {
                    pid = lineage.parent;
                    lineage = next;
                }
                Ancestor::None => return Ok(false),
                Ancestor::NotSeen => break,
            }
        }
        Ok(true)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Ancestor {
    Seen(Lineage),
    /// Its parent is in no namespace that can be seen, or has ended and nobody has adopted it.
    None,
    /// It has just ended, or is hidden.
    NotSeen,
}

fn ancestor(of: &Lineage) -> io::Result<Ancestor> {
    if of.parent == 0 {
        return Ok(Ancestor::None);
    }
    Ok(match Lineage::read(of.parent)? {
        Some(parent) if parent.is_no_younger_than(of) => Ancestor::Seen(parent),
        _ if process::ADOPTS => Ancestor::NotSeen,
        _ => Ancestor::None,
    })
}

/// Returns what is known of a server, given its sockets and the family that it may be of.
fn server_of(
    port: u16,
    sockets: &[Socket],
    processes: &Processes,
    family: Option<&Family>,
) -> Result<Server> {
    let pids = processes.having(sockets);
    let (belongs_to, pid) = match family {
        Some(family) => {
            let (belongs_to, pid) = family.judge(&pids)?;
            (Some(belongs_to), pid)
        }
        None => (None, pids.first().copied()),
    };
    Ok(Server {
        port,
        process: pid.map(process::describe),
        user_id: sockets.iter().find_map(|socket| socket.user_id),
        belongs_to,
    })
}

/// Returns the server that accepted a connection, if it is not another process's than that of the
/// family.
fn accept(
    accepted: Accepted,
    family: Option<&Family>,
    expected: impl FnOnce() -> String,
) -> Result<Server> {
    let address = accepted.address;
    let sockets = match accepted.is_local {
        true => sockets::that_accept(sockets::all()?, address),
        // Its sockets are another machine's.
        false => Vec::new(),
    };
    let processes = Processes::of(&sockets)?;
    let server = server_of(address.port(), &sockets, &processes, family)?;
    if server.belongs_to != Some(BelongsTo::Other) {
        return Ok(server);
    }
    let message = format!("{address} is served by {server}, not by {}", expected());
    Err(Error::new(ErrorKind::OtherServer, message).with_server(server))
}

/// Waits for the server of the process `pid`, at an address on which this process may have a lease.
pub(crate) fn wait_for_process(
    address: impl ToSocketAddrs,
    pid: u32,
    lease: Option<(&OpenDir, u16, Option<SystemTime>)>,
    timeout: Duration,
) -> Result<Server> {
    // One that has ended is waited for as well: a server may have daemonized.
    let process = process::find(pid).ok().map(|(identity, _)| identity);
    let server = wait_for_any(address, timeout, |accepted| {
        let family = Family::of_process(pid, process.as_ref(), lease)?;
        accept(accepted, Some(&family), || {
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
    /// Returns the servers of all ports that have one, in ascending order of their ports, and whether they
    /// are those of the leases in this directory.
    ///
    /// # Platform-specific behavior
    ///
    /// Only the sockets of the caller's own network namespace are seen, and of them only the processes that
    /// the caller may inspect: on Linux, without privileges, those of the same user. macOS does not show
    /// the sockets of other users at all. Windows names one process for each socket, the one that
    /// created it.
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

    /// Waits until a server accepts connections at `address`, or at one of several, and returns it: if the
    /// port is leased in this directory, the server of the lease's holder. With `pid`, it is that process
    /// whose server is waited for, or one of its descendants, whether the port is leased or not.
    ///
    /// Of several addresses, the first at which a server answers decides. A server that
    /// [belongs](Server::belongs_to) to [nobody knows whom](BelongsTo::Unknown) is accepted, as is any
    /// server of a port that is not leased.
    ///
    /// # Platform-specific behavior
    ///
    /// As for [`servers`](Self::servers). A server that is not on this machine is unknown.
    ///
    /// # Errors
    ///
    /// [`OtherServer`](ErrorKind::OtherServer) as soon as another process's server answers: if that is
    /// what was meant, name that process, or wait with
    /// [`wait_until_listening`](crate::wait_until_listening), which accepts any server. As for that
    /// function, otherwise, and as for [`servers`](Self::servers).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{net::TcpListener, time::Duration};
    /// use portlock::{BelongsTo, FreePort, LockDir};
    ///
    /// let port = FreePort::builder().acquire_for(std::process::id())?;
    /// let server = TcpListener::bind(("127.0.0.1", port))?;
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
        wait_for_any(address, timeout, |accepted| {
            let port = accepted.address.port();
            let family = self.family(port)?;
            accept(accepted, family.as_ref(), || {
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
