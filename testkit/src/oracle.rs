//! The oracle that knows which ports are held.

use std::{
    fs::{self, OpenOptions},
    io,
    path::PathBuf,
};

/// Knows which ports are held, across all processes, without using portlock: a held
/// port is a file created with O_EXCL.
pub struct Oracle(PathBuf);

impl Oracle {
    /// Returns the oracle whose files are in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self(dir.into())
    }

    /// Notes that the caller holds `port`. Returns false if another holder does.
    #[must_use]
    pub fn take(&self, port: u16) -> bool {
        let path = self.0.join(port.to_string());
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(_) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }

    /// Notes that the caller no longer holds `port`.
    pub fn give_back(&self, port: u16) {
        fs::remove_file(self.0.join(port.to_string())).expect("recorded before");
    }
}
