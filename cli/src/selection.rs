//! Selecting and leasing ports: what `run` and `pick` have in common.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use portlock::{Builder, ErrorKind, FreePort};

use crate::{
    args::Selection,
    exit_status::ExitStatus,
    failure::Failure,
    lock_dir::lock_dir,
    names::{find, variable},
    notice::announce_waits,
    output::{note, warn},
};

impl Selection {
    /// Returns the builder that leases the requested ports. Warns about ephemeral ports.
    pub(crate) fn builder(&self, dir: Option<&Path>) -> Result<Builder, Failure> {
        let mut builder = FreePort::builder()
            .protocol(self.protocol())
            .timeout(self.timeout);
        if let Some(reuse_address) = self.reuse.reuse_address {
            builder = builder.reuse_address(reuse_address);
        }
        if let Some(ports) = &self.ports {
            builder = builder.ports(ports.clone());
        }
        for &host in self.hosts.iter().flat_map(|host| &host.0) {
            builder = builder.host(host);
        }
        if let Some(name) = &self.prefer {
            builder = builder.prefer(name);
        }
        if let Some(label) = &self.label {
            builder = builder.label(label);
        }
        if let Some(dir) = dir {
            builder = builder.lock_dir(dir);
        }
        if let Some(root) = &self.root {
            builder = builder.root(root);
        }
        if self.ports.is_some() {
            warn_of_ephemeral(&builder)?;
        }
        Ok(announce_waits(builder))
    }

    /// Leases the ports reserved for the names, or any `n` ports if there are no names: all or none.
    pub(crate) fn acquire(&self, builder: &Builder, n: usize) -> Result<Vec<FreePort>, Failure> {
        Ok(if !self.names.is_empty() {
            self.lease_named(builder, Builder::acquire)?
        } else if self.contiguous {
            builder.acquire_block(n)?
        } else {
            builder.acquire_many(n)?
        })
    }

    /// Leases the ports reserved for the names with `lease`, all or none. Returns them in the order of
    /// the names.
    ///
    /// If one of several is not available, it releases the others while it waits for that one. All
    /// callers lease in alphabetical order, so one of the callers that want the same ports gets all of
    /// them.
    pub(crate) fn lease_named<T>(
        &self,
        builder: &Builder,
        lease: impl Fn(&Builder) -> portlock::Result<T>,
    ) -> Result<Vec<T>, Failure> {
        let start = Instant::now();
        let builders = self.names.iter().map(|name| builder.clone().name(name));
        let mut builders: Vec<Builder> = builders.collect();
        if let [builder] = &builders[..] {
            let builder = builder.clone();
            let builder = match self.or_any {
                true => builder.or_any(),
                false => builder,
            };
            return Ok(vec![lease(&builder)?]);
        }
        self.names_differ()?;
        let mut order: Vec<usize> = (0..builders.len()).collect();
        order.sort_by_key(|&i| &self.names[i]);
        loop {
            let mut leases: Vec<Option<T>> = builders.iter().map(|_| None).collect();
            let mut missing = None;
            for &i in &order {
                match lease(&builders[i].clone().timeout(Duration::ZERO)) {
                    Ok(lease) => leases[i] = Some(lease),
                    Err(error) if error.is_busy() && start.elapsed() < self.timeout => {
                        missing = Some(i);
                        break;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            let Some(i) = missing else {
                return Ok(leases.into_iter().flatten().collect());
            };
            drop(leases);
            let left = self.timeout.saturating_sub(start.elapsed());
            let waited = builders[i].clone().timeout(left).wait_until_free();
            let Err(error) = waited else { continue };
            if self.or_any && error.counts().is_some_and(|why| why.bound > 0) {
                builders[i] = builders[i].clone().or_any();
                continue;
            }
            // Unlike a check, a lease that fails names the processes that have bound the port.
            let again = lease(&builders[i].clone().timeout(Duration::ZERO));
            return Err(again.err().unwrap_or(error).into());
        }
    }

    /// Returns an error if two names are the same or have the same variable, before a port is reserved for
    /// one of them.
    fn names_differ(&self) -> Result<(), Failure> {
        for (i, name) in self.names.iter().enumerate() {
            let shared = variable(name);
            let same = self.names[..i].iter().find(|it| variable(it) == shared);
            let message = match same {
                None => continue,
                Some(same) if same == name => format!("--name names {name} twice"),
                Some(same) => {
                    format!("--name names {same} and {name}, which have the same variable {shared}")
                }
            };
            return Err(Failure::new(ExitStatus::Failed, message));
        }
        Ok(())
    }

    /// Prints a note for each port that was leased instead of the one reserved for its name.
    pub(crate) fn note_other_ports(
        &self,
        ports: &[u16],
        dir: Option<&Path>,
    ) -> Result<(), Failure> {
        if !self.or_any {
            return Ok(());
        }
        let locks = lock_dir(dir)?;
        for (name, &port) in self.names.iter().zip(ports) {
            let reservation = find(&locks, name, self.root.as_deref())?;
            let Some(reserved) = reservation.filter(|reserved| reserved.port != port) else {
                continue;
            };
            let by = match locks.server(reserved.port)? {
                Some(server) => server.to_string(),
                None => "another program".to_owned(),
            };
            note(&format!(
                "port {}, which is reserved {reserved}, is bound by {by}; port {port} is leased instead",
                reserved.port
            ));
        }
        Ok(())
    }
}

/// Warns if any of the named ports are ephemeral. They are used anyway, but the user may not have meant
/// that. Where the system does not report its ephemeral range, there is no warning.
pub(crate) fn warn_of_ephemeral(builder: &Builder) -> Result<(), Failure> {
    let is_ephemeral = match builder.overlaps_ephemeral() {
        Err(error) if error.kind() == ErrorKind::Unsupported => false,
        outcome => outcome?,
    };
    if is_ephemeral {
        warn(
            "some of these ports are ephemeral: the system may assign them to \
             client connections even while they are leased",
        );
    }
    Ok(())
}
