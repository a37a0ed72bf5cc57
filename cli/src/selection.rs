//! Which ports to lease, and the leasing: what `run` and `pick` have in common.

use std::path::Path;

use portlock::{Builder, ErrorKind, FreePort};

use crate::{args::Selection, failure::Failure, notice::announce_waits, output::warn};

impl Selection {
    /// Returns the builder that leases what was asked for. Warns of ephemeral ports.
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
        // Ports that were named are taken as they are; that they are ephemeral may
        // not have been meant. Where the system does not tell, nobody can be warned.
        let is_ephemeral = || match builder.overlaps_ephemeral() {
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(false),
            outcome => outcome,
        };
        if self.ports.is_some() && is_ephemeral()? {
            warn(
                "some of these ports are ephemeral: the system may give them to \
                 clients although they are leased",
            );
        }
        Ok(announce_waits(builder))
    }

    /// Leases `n` ports, all or none.
    pub(crate) fn acquire(&self, builder: &Builder, n: usize) -> portlock::Result<Vec<FreePort>> {
        if self.contiguous {
            builder.acquire_block(n)
        } else {
            builder.acquire_many(n)
        }
    }
}
