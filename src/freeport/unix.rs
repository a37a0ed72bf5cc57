//! What only Unix has: leases that a process inherits as a descriptor.

use std::os::fd::OwnedFd;

use super::FreePort;
use crate::{error::Result, logging::debug, owner::Kind, process};

impl FreePort {
    /// Returns the descriptor that holds the lease, for the process `pid` to inherit, and records
    /// that the lease is that process's.
    ///
    /// The lease then lives as long as the process keeps the descriptor, or a process that it
    /// started does, as with [`into_fd`](Self::into_fd). In addition, a process that closes what it
    /// inherited, as ssh(1) does, keeps the lease until it ends wherever others can see
    /// that it lives. A process that calls exec keeps its pid, so `pid` may be this process's own.
    /// Where the process cannot be determined, as from another container, the descriptor decides.
    ///
    /// The descriptor is close-on-exec, and has to be mapped or made inheritable. If exec fails, this
    /// process has the port until it ends, whatever it closes;
    /// [`LockDir::release`](crate::LockDir::release) ends that earlier.
    ///
    /// # Platform-specific behavior
    ///
    /// Only on Unix, as [`into_fd`](Self::into_fd).
    ///
    /// # Errors
    ///
    /// [`Process`](crate::ErrorKind::Process) if there is no such process;
    /// [`Lock`](crate::ErrorKind::Lock) if the record cannot be written or the descriptor cannot be
    /// duplicated. The lease has then ended. `Lock` too if this is a
    /// forked copy of the process that acquired the lease, which continues there.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::{io, os::unix::process::CommandExt, process::Command};
    /// use portlock::FreePort;
    ///
    /// /// Becomes a server, which has the lease until it ends.
    /// fn serve() -> io::Result<()> {
    ///     let port = FreePort::new(4000..=6000)?;
    ///     let mut server = Command::new("my-server");
    ///     server.arg(port.to_string());
    ///     // The simplest way to inherit a descriptor: as standard input.
    ///     server.stdin(port.pass_to(std::process::id())?);
    ///     Err(server.exec()) // returns only if it fails
    /// }
    /// ```
    pub fn pass_to(self, pid: u32) -> Result<OwnedFd> {
        self.lock.must_be_ours("pass on")?;
        match self.record(Kind::Passed, pid) {
            // Without /proc nobody could tell when that process ends: then the lock is all there is.
            Err(error) if !process::is_recordable() => {
                debug!("port {} is kept by its lock alone: {error}", self.port);
            }
            outcome => outcome?,
        }
        self.into_fd()
    }

    /// Returns the descriptor that holds the lease, for a process to inherit.
    ///
    /// The lease then lives until the last duplicate of that descriptor is
    /// closed: in this process and in every one that inherits it, and in what
    /// they start. It is close-on-exec, and has to be mapped or made inheritable
    /// for a child. A socket that was [held](crate::Builder::hold_socket) is closed.
    ///
    /// # Platform-specific behavior
    ///
    /// Only on Unix. The lock of a file on Windows is the process's, and a handle that
    /// another one inherits does not have it (LockFileEx): there,
    /// [delegate](Self::delegate_to) the lease.
    ///
    /// # Errors
    ///
    /// [`Lock`](crate::ErrorKind::Lock) if the descriptor cannot be duplicated, for
    /// want of descriptors: the lease has then ended; or if this is a forked copy of
    /// the process that acquired the lease, which then goes on there.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::process::Command;
    /// use portlock::FreePort;
    ///
    /// let port = FreePort::new(4000..=6000)?;
    /// let number = port.port();
    /// // The simplest way for a child to inherit a descriptor: as its standard input.
    /// let mut child = Command::new("sleep").arg("10").stdin(port.into_fd()?).spawn()?;
    /// assert!(FreePort::try_new(number).is_err(), "leased until the child ends");
    /// # child.kill()?;
    /// # child.wait()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn into_fd(self) -> Result<OwnedFd> {
        self.lock.into_file().map(Into::into)
    }
}
