//! The watch on the lock directory: an inotify(7) instance.
//!
//! The end of a lease closes a file that was open for writing, and the kernel reports its name.
//! Waiters that check a port open its file only for reading, and so wake no other waiter.

use std::{io, mem::MaybeUninit, os::fd::OwnedFd, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::inotify::{self, ReadFlags, WatchFlags},
    io::Errno,
};

use super::{super::Event, timespec};
use crate::{
    lock_dir::OpenDir,
    mark::{self, Mark},
    per_process::PerProcess,
};

/// Reports files in a directory that are closed after they were open for writing.
#[derive(Debug)]
pub(crate) struct Watch {
    instance: Option<OwnedFd>,
    /// The watch descriptor of the directory.
    directory: i32,
    /// The process that started the watch.
    mark: Mark,
}

/// The inotify instance of this process while no caller waits. One is kept, because closing it
/// takes the kernel about 10 ms, and a caller that has just got a port would wait for that. A
/// forked child must not read its parent's events, and creates its own instance.
static SPARE: PerProcess<OwnedFd> = PerProcess::new();

impl Drop for Watch {
    fn drop(&mut self) {
        let Some(instance) = self.instance.take() else {
            return;
        };
        if self.mark != mark::current() {
            // A forked copy: the watch belongs to the parent.
            return;
        }
        // If the directory was removed, so was its watch.
        let _ = inotify::remove_watch(&instance, self.directory);
        let one_too_many = match SPARE.lock() {
            Some(mut spare) => spare.replace(instance),
            None => Some(instance),
        };
        // Only now, so that others need not wait for it.
        drop(one_too_many);
    }
}

impl Watch {
    pub(crate) fn begin(dir: &OpenDir) -> io::Result<Self> {
        if !dir.sys().is_local() {
            // On such file systems a check cannot be distinguished from the end of a lease, and
            // would wake the waiter that made it; and events of other machines are not reported.
            return Err(Errno::OPNOTSUPP.into());
        }
        let spare = SPARE.lock().and_then(|mut spare| spare.take());
        let instance = match spare {
            Some(instance) => instance,
            None => {
                let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
                inotify::init(flags)?
            }
        };
        let what = WatchFlags::CLOSE_WRITE | WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW;
        let directory = inotify::add_watch(&instance, dir.path(), what)?;
        Ok(Self {
            instance: Some(instance),
            directory,
            mark: mark::current(),
        })
    }

    /// Does nothing: all ports in the directory are watched anyway.
    pub(crate) fn watch_for(&mut self, _: &[u16]) {}

    /// Returns the ports whose files were closed since the last call, as soon as there are any,
    /// or `None` if there are none before `at_most` has passed.
    ///
    /// # Errors
    ///
    /// `NOENT` if the directory is gone.
    pub(crate) fn wait(&mut self, at_most: Duration) -> io::Result<Option<Event>> {
        match self.closed(at_most) {
            Ok(ports) => Ok(Some(Event::Closed(ports))),
            Err(Errno::INTR) => Ok(None),
            Err(Errno::OVERFLOW) => Ok(Some(Event::Overflow)),
            Err(error) => Err(error.into()),
        }
    }

    fn closed(&self, at_most: Duration) -> rustix::io::Result<Vec<u16>> {
        let mut ports = Vec::new();
        let Some(instance) = &self.instance else {
            return Ok(ports);
        };
        let mut fds = [PollFd::new(instance, PollFlags::IN)];
        if poll(&mut fds, Some(&timespec(at_most)))? == 0 {
            return Ok(ports);
        }
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(instance, &mut buffer);
        // Bounded, because others may add events all the time.
        while ports.len() < usize::from(u16::MAX) {
            let event = match events.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error),
            };
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                return Err(Errno::OVERFLOW);
            }
            if event.wd() != self.directory {
                // An event of an earlier wait.
                continue;
            }
            if event.events().contains(ReadFlags::IGNORED) {
                return Err(Errno::NOENT);
            }
            let name = event.file_name().and_then(|name| name.to_str().ok());
            ports.extend(name.and_then(|name| name.parse::<u16>().ok()));
        }
        Ok(ports)
    }
}
