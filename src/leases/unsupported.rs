//! The listed locks, on systems that list none.

use super::{Doubt, Heir, Taker};
use crate::{lock_dir::OpenDir, owner::Owner, process::Identity};

pub(crate) struct ListedLocks;

impl ListedLocks {
    /// Any lock may have been taken only for a moment.
    pub(crate) const DOUBT_OF_UNKNOWN_TAKER: Option<Doubt> = Some(Doubt::Momentary);

    pub(crate) fn new() -> Self {
        Self
    }

    /// Returns `None`: only locking the file of `port` shows whether it is locked.
    pub(crate) fn has(&mut self, _: &OpenDir, _: u16, _: Option<&Owner>) -> Option<bool> {
        None
    }

    /// Returns `Unknown`: nothing shows who took the lock of `port`.
    pub(crate) fn taker(&mut self, _: &OpenDir, _: u16, _: &Identity) -> Taker {
        Taker::Unknown
    }

    /// Returns `None`: nothing shows a process that has the lock of `port`.
    pub(crate) fn heir(&mut self, _: &OpenDir, _: u16, _: &Identity) -> Option<Heir> {
        None
    }
}
