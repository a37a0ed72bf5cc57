//! Leases that a process inherits as a descriptor, on Unix only.

use std::os::fd::OwnedFd;

use super::FreePort;
use crate::{error::Result, logging::debug, owner::Kind, process};

impl FreePort {
    /// Returns the descriptor that holds the lease, for the process `pid` to inherit, and records
    /// that the lease belongs to that process.
    ///
    /// The lease then lasts as long as the process, or a process that it started, keeps the
    /// descriptor open, as with [`into_fd`](Self::into_fd). In addition, a process that closes
    /// its inherited descriptors, as ssh(1) does, keeps the lease until it ends, for all callers
    /// that can see that it is alive. A process that calls exec keeps its pid, so `pid` may be
    /// this process's own. For callers that cannot see the process, as from another container,
    /// the descriptor decides.
    ///
    /// The descriptor is close-on-exec, and has to be mapped or made inheritable. If exec fails,
    /// this process keeps the port until it ends, whatever it closes;
    /// [`LockDir::release`](crate::LockDir::release) ends the lease earlier.
    ///
    /// # Platform-specific behavior
    ///
    /// Unix only, as for [`into_fd`](Self::into_fd).
    ///
    /// # Errors
    ///
    /// [`Process`](crate::ErrorKind::Process) if there is no such process;
    /// [`Lock`](crate::ErrorKind::Lock) if the record cannot be written or the descriptor cannot
    /// be duplicated. The lease has then ended. Also `Lock` if this is a forked copy of the
    /// process that acquired the lease; the lease then continues in that process.
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
            // Without /proc no caller could determine when that process ends, so the lease
            // depends on the lock alone.
            Err(error) if !process::is_recordable() => {
                debug!("port {} is kept by its lock alone: {error}", self.port);
            }
            outcome => outcome?,
        }
        self.into_fd()
    }

    /// Returns the descriptor that holds the lease, for a process to inherit.
    ///
    /// The lease then lasts until the last duplicate of that descriptor is closed: in this
    /// process, in every process that inherits it, and in their children. It is close-on-exec,
    /// and has to be mapped or made inheritable for a child. A socket that was
    /// [held](crate::Builder::hold_socket) is closed.
    ///
    /// # Platform-specific behavior
    ///
    /// Unix only. On Windows, a file lock belongs to the process, and a handle that another
    /// process inherits does not carry it (LockFileEx): there, [delegate](Self::delegate_to) the
    /// lease.
    ///
    /// # Errors
    ///
    /// [`Lock`](crate::ErrorKind::Lock) if the descriptor cannot be duplicated because none are
    /// left: the lease has then ended; or if this is a forked copy of the process that acquired
    /// the lease; the lease then continues in that process.
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
