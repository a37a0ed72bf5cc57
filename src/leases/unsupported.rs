//! The locks that the system lists, where it lists none.

use super::{Doubt, Heir, Taker};
use crate::{lock_dir::OpenDir, owner::Owner, process::Identity};

pub(crate) struct ListedLocks;

impl ListedLocks {
    /// Every lock may be one that was taken only for a moment.
    pub(crate) const DOUBT_OF_UNKNOWN_TAKER: Option<Doubt> = Some(Doubt::Momentary);

    pub(crate) fn new() -> Self {
        Self
    }

    /// Returns `None`: whether the file of `port` is locked can only be determined by locking it.
    pub(crate) fn has(&mut self, _: &OpenDir, _: u16, _: Option<&Owner>) -> Option<bool> {
        None
    }

    /// Returns `Unknown`: nothing shows who took the lock of `port`.
    pub(crate) fn taker(&mut self, _: &OpenDir, _: u16, _: &Identity) -> Taker {
        Taker::Unknown
    }

    /// Returns `None`: nothing shows a process that has the lock of `port`.
    pub(crate) fn heir(&mut self, _: &OpenDir, _: u16) -> Option<Heir> {
        None
    }
}
