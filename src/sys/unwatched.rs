//! Where the system tells neither who holds which lock nor when a file is closed:
//! locks are found out by trying, and whoever waits looks from time to time.
//!
//! Of macOS that is not quite true. kqueue tells of changes to files and directories,
//! but not of one that is closed, and lease and release change neither; its locks are
//! listed nowhere.

/// The locks that the system lists: none.
pub(crate) mod held {
    use crate::{
        leases::{Heir, Taker},
        lock_dir::OpenDir,
        owner::Owner,
        process::Identity,
    };

    pub(crate) struct ListedLocks;

    impl ListedLocks {
        pub(crate) fn new() -> Self {
            Self
        }

        /// Whether the file of `port` is locked, which only trying tells.
        pub(crate) fn has(&mut self, _: &OpenDir, _: u16, _: Option<&Owner>) -> Option<bool> {
            None
        }

        /// Who took the lock of `port`, which nothing tells.
        pub(crate) fn taker(&mut self, _: &OpenDir, _: u16, _: &Identity) -> Taker {
            Taker::Unknown
        }

        /// A process that has the lock of `port`, which nothing tells.
        pub(crate) fn heir(&mut self, _: &OpenDir, _: u16) -> Option<Heir> {
            None
        }
    }
}

/// The line of those who wait: there is none, and everybody is at its head.
pub(crate) mod line {
    use std::{io, time::Instant};

    use crate::lock_dir::OpenDir;

    #[derive(Debug)]
    pub(crate) enum Line {}

    impl Line {
        pub(crate) fn join(_: &OpenDir, _: u64) -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(crate) fn wait_for_head(&mut self, _: Instant) -> io::Result<()> {
            match *self {}
        }

        pub(crate) fn is_head(&self) -> bool {
            match *self {}
        }

        pub(crate) fn stir(&self) {
            match *self {}
        }
    }

    pub(crate) fn remove_line(_: &OpenDir, _: &str) -> Option<io::Result<()>> {
        None
    }
}

/// What tells of files that are closed: nothing does.
pub(crate) mod watch {
    use std::{io, time::Duration};

    use crate::lock_dir::OpenDir;

    #[derive(Debug)]
    pub(crate) enum Watch {}

    impl Watch {
        pub(crate) fn begin(_: &OpenDir) -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(crate) fn wait(&self, _: Duration) -> io::Result<Option<Vec<u16>>> {
            match *self {}
        }
    }
}
