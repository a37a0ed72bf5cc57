//! The reservations in a lock directory: look-up, removal, and their copies.

use std::path::Path;

use crate::{
    error::{Error, ErrorKind, Result},
    lock_dir::LockDir,
    reservation::Reservation,
};

impl LockDir {
    /// Returns every reservation in the directory, by port.
    ///
    /// # Errors
    ///
    /// [`LockDir`](ErrorKind::LockDir) if the directory cannot be read;
    /// [`Lock`](ErrorKind::Lock) if a lock file cannot be.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// for reservation in portlock::LockDir::locate()?.reservations()? {
    ///     println!("{} {} {}", reservation.port, reservation.name, reservation.root.display());
    /// }
    /// # Ok::<(), portlock::Error>(())
    /// ```
    pub fn reservations(&self) -> Result<Vec<Reservation>> {
        Err(Error::new(ErrorKind::Unsupported, "not built yet"))
    }

    /// Returns the reservation of `name` in the root directory `root`, if there is one. It reserves
    /// nothing: [`Builder::reserve`](crate::Builder::reserve) does.
    ///
    /// # Errors
    ///
    /// [`InvalidName`](ErrorKind::InvalidName) if the name or the root cannot be used; otherwise as for
    /// [`reservations`](Self::reservations).
    pub fn reservation(&self, name: &str, root: impl AsRef<Path>) -> Result<Option<Reservation>> {
        let _ = (name, root.as_ref());
        Err(Error::new(ErrorKind::Unsupported, "not built yet"))
    }

    /// Removes a reservation. Any caller can then be leased its port.
    ///
    /// If it has been removed in the meantime, nothing happens.
    ///
    /// # Errors
    ///
    /// [`Lock`](ErrorKind::Lock) if the port is held: the message names the holder, whose lease has to
    /// end first. A delegated lease goes on without the reservation.
    pub fn unreserve(&self, reservation: &Reservation) -> Result<()> {
        let _ = reservation;
        Err(Error::new(ErrorKind::Unsupported, "not built yet"))
    }

    /// Removes the copies of reservations in this user's state directory whose root directory or lock
    /// directory is proven to be gone, for all lock directories, and returns how many there were.
    ///
    /// [`clean`](Self::clean) removes the reservations themselves and their copies, in one lock directory.
    ///
    /// # Errors
    ///
    /// [`LockDir`](ErrorKind::LockDir) if the state directory cannot be read or written.
    pub fn clean_copies() -> Result<usize> {
        Err(Error::new(ErrorKind::Unsupported, "not built yet"))
    }
}
