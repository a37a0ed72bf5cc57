//! The held locks, as the kernel lists them (proc_locks(5), proc_pid_fdinfo(5)).

use std::{
    collections::{HashMap, HashSet},
    fs, io,
};

use rustix::{
    fs::{AtFlags, Dev, Stat, major, minor},
    io::Errno,
};

use super::{Doubt, Heir, Taker};
use crate::{
    lock_dir::OpenDir,
    owner::Owner,
    process::{
        Evidence, Identity,
        linux::{View, program_of},
    },
};

/// Number of times that the list of all locks is read before a lock that it does not show counts
/// as free. Under load, one read occasionally misses a lock.
const MAX_READS: u32 = 4;

/// A flock(2) lock: its file, and the pid of the process that took it, which may have ended
/// since.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Flock {
    device: (u32, u32),
    inode: u64,
    taker: u32,
}

impl Flock {
    /// Some file systems (btrfs, overlayfs) have a device number in the list that differs from
    /// stat(2); then the pid must match the record.
    fn is_on(&self, file: &Stat, recorded: Option<u32>) -> bool {
        self.inode == file.st_ino
            && (self.device == device(file.st_dev) || Some(self.taker) == recorded)
    }
}

fn device(device: Dev) -> (u32, u32) {
    (major(device), minor(device))
}

/// The flock(2) locks that the kernel lists, read when needed.
#[derive(Default)]
pub(crate) struct ListedLocks {
    /// By inode number.
    locks: HashMap<u64, Vec<Flock>>,
    /// The view from which `/proc/locks` was read, if it was read and could be.
    view: Option<Option<View>>,
    /// Number of times that it was read.
    reads: u32,
    /// The processes whose own lists were read.
    processes: HashSet<u32>,
    /// Which process has which lock, once all processes were read.
    heirs: Option<HashMap<Flock, u32>>,
}

impl ListedLocks {
    /// A lock of a process in another pid namespace that is alive belongs to that process.
    pub(crate) const DOUBT_OF_UNKNOWN_TAKER: Option<Doubt> = None;

    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Returns whether the file of `port` is locked, or `None` if the lists do not show that.
    pub(crate) fn has(&mut self, dir: &OpenDir, port: u16, owner: Option<&Owner>) -> Option<bool> {
        let file = stat(dir, port)?;
        let process = owner.map(|owner| &owner.process);
        let view = self.read();
        let recorded = process.map(|process| process.pid);
        let is_listed = |listed: &Self| listed.on(&file, recorded).next().is_some();
        if is_listed(self) {
            return Some(true);
        }
        let view = view?;
        let is_of_this_namespace = |process: &Identity| view.is_of(process);
        if !process.is_none_or(is_of_this_namespace) {
            return None;
        }
        // While many locks come and go, the list omits some: it is read a page at a time, and an
        // entry that moves across a page boundary is missed (seq_file). The list of a process has
        // only its own locks, each with its descriptor.
        if process.is_some_and(|process| self.read_process(process.pid).is_err()) {
            return None;
        }
        if is_listed(self) {
            return Some(true);
        }
        let lives = |process: &Identity| matches!(process.evidence(), Ok(Evidence::Alive(_)));
        if process.is_some_and(lives) {
            return Some(false);
        }
        // In a pid namespace below the first, a lock is listed only while the process that took
        // it lives, even if others have inherited it (`locks_translate_pid` in fs/locks.c).
        if !view.is_of_first_namespace() {
            return None;
        }
        // A process that inherited the lock is not known, so its own list cannot be read. Read
        // the list of all locks again.
        while self.reads < MAX_READS {
            self.read_all();
            if is_listed(self) {
                return Some(true);
            }
        }
        Some(false)
    }

    /// Returns who took the lock of `port`, which was held a moment ago: the process in the
    /// record, or another process.
    pub(crate) fn taker(&mut self, dir: &OpenDir, port: u16, recorded: &Identity) -> Taker {
        let (Some(file), Some(view)) = (stat(dir, port), self.read()) else {
            return Taker::Unknown;
        };
        if !view.is_of(recorded) {
            return Taker::Unknown;
        }
        let recorded = recorded.pid;
        // The list of all locks may omit it; the list of the process does not.
        if self.on(&file, Some(recorded)).next().is_none() && self.read_process(recorded).is_err() {
            return Taker::Unknown;
        }
        let mut takers = self.on(&file, Some(recorded)).map(|lock| lock.taker);
        match takers.next() {
            None => Taker::Unlisted,
            Some(first) if first == recorded || takers.any(|taker| taker == recorded) => {
                Taker::Recorded
            }
            Some(_) => Taker::Another,
        }
    }

    /// Returns the listed locks on a file.
    fn on(&self, file: &Stat, recorded: Option<u32>) -> impl Iterator<Item = &Flock> {
        let locks = self.locks.get(&file.st_ino).into_iter().flatten();
        locks.filter(move |lock| lock.is_on(file, recorded))
    }

    fn add(&mut self, locks: impl IntoIterator<Item = Flock>) {
        for lock in locks {
            self.locks.entry(lock.inode).or_default().push(lock);
        }
    }

    /// Reads `/proc/locks` if that has not been done, and returns the view it was read from.
    fn read(&mut self) -> Option<View> {
        if let Some(view) = self.view {
            return view;
        }
        let view = View::take().ok().filter(|view| view.is_ours);
        let is_read = self.read_all();
        *self.view.insert(view.filter(|_| is_read))
    }

    /// Adds the locks that `/proc/locks` shows, if it can be read.
    fn read_all(&mut self) -> bool {
        self.reads += 1;
        let text = fs::read_to_string("/proc/locks").ok();
        let locks = text.iter().flat_map(|text| text.lines());
        self.add(locks.filter_map(Self::parse));
        text.is_some()
    }

    /// Returns a process that has inherited the lock of `port` from the recorded process, as far as
    /// this process may see.
    ///
    /// A process that has just locked the file itself, and has not written its record yet, is not
    /// one.
    pub(crate) fn heir(&mut self, dir: &OpenDir, port: u16, recorded: &Identity) -> Option<Heir> {
        let view = self.read()?;
        let file = stat(dir, port)?;
        let heirs = self.heirs.get_or_insert_with(all_heirs);
        // In a pid namespace other than the first, the pid of a process that has ended is shown as 0.
        let is_inherited =
            |lock: &Flock| !view.is_of(recorded) || lock.taker == recorded.pid || lock.taker == 0;
        let mut found = heirs
            .iter()
            .filter(|(lock, _)| lock.inode == file.st_ino && is_inherited(lock));
        let exact = |(lock, _): &(&Flock, _)| lock.device == device(file.st_dev);
        // If device numbers differ, accept only an unambiguous match.
        let pid = match found.clone().find(exact) {
            Some((_, &pid)) => pid,
            None => found
                .next()
                .filter(|_| found.next().is_none())
                .map(|(_, &pid)| pid)?,
        };
        let program = String::from_utf8_lossy(&program_of(pid)).into_owned();
        Some(Heir { pid, program })
    }

    /// Adds the locks on the files that a process has open (proc_pid_fdinfo(5)).
    ///
    /// # Errors
    ///
    /// If some locks may be missing. It is not an error if the process has ended or belongs to
    /// another user.
    fn read_process(&mut self, pid: u32) -> io::Result<()> {
        if !self.processes.insert(pid) {
            return Ok(());
        }
        match locks_of(pid) {
            Ok(locks) => self.add(locks),
            Err(error) => {
                self.processes.remove(&pid);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Parses a line such as `1: FLOCK  ADVISORY  WRITE 812 fe:00:5505 0 EOF`.
    fn parse(line: &str) -> Option<Flock> {
        let mut words = line.split_ascii_whitespace().skip(1);
        if words.next()? != "FLOCK" {
            return None;
        }
        let taker = words.nth(2)?.parse().ok()?;
        let mut file = words.next()?.split(':');
        let mut number = || u32::from_str_radix(file.next()?, 16).ok();
        let device = (number()?, number()?);
        let inode = file.next()?.parse().ok()?;
        Some(Flock {
            device,
            inode,
            taker,
        })
    }
}

fn stat(dir: &OpenDir, port: u16) -> Option<Stat> {
    rustix::fs::statat(dir.sys().fd(), port.to_string(), AtFlags::SYMLINK_NOFOLLOW).ok()
}

/// Returns the locks on the files that a process has open; none if it has ended or belongs to
/// another user.
fn locks_of(pid: u32) -> io::Result<Vec<Flock>> {
    read_descriptors(pid).or_else(|error| match Errno::from_io_error(&error) {
        Some(Errno::NOENT | Errno::SRCH | Errno::ACCESS | Errno::PERM) => Ok(Vec::new()),
        _ => Err(error),
    })
}

fn read_descriptors(pid: u32) -> io::Result<Vec<Flock>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let text = match fs::read_to_string(entry?.path()) {
            // It was closed in the meantime.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            text => text?,
        };
        let locks = text.lines().filter_map(|line| line.strip_prefix("lock:"));
        found.extend(locks.filter_map(ListedLocks::parse));
    }
    Ok(found)
}

/// Returns which process has which lock, for all processes whose descriptors this process may read.
fn all_heirs() -> HashMap<Flock, u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut heirs = HashMap::new();
    for pid in pids {
        for lock in locks_of(pid).unwrap_or_default() {
            heirs.entry(lock).or_insert(pid);
        }
    }
    heirs
}

#[cfg(test)]
mod tests {
    use std::{
        process,
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    use rustix::fs::makedev;
    use tempfile::TempDir;

    use super::*;
    use crate::{
        clock::since_1970,
        lock::{self, PortLock},
        mark, owner, registry,
    };

    // Nothing here binds: the ports are only numbers, each used by one test.

    fn lock_dir() -> (TempDir, OpenDir) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let locks = OpenDir::locate_at(Some(dir.path()), since_1970()).expect("our own");
        (dir, locks)
    }

    /// Locks a port and writes its record.
    fn hold(dir: &OpenDir, port: u16) -> (PortLock, Owner) {
        let claim = registry::claim(port, mark::current()).expect("of this test alone");
        let lock =
            PortLock::try_acquire(dir, claim, None).expect("our own directory, and not locked");
        owner::with_held(mark::current(), 0, None, |record| lock.write_owner(record))
            .expect("our own");
        let owner = lock::recorded_owner(dir, port).expect("our own");
        (lock, owner.expect("just written"))
    }

    /// A pid beyond the largest that Linux assigns (PID_MAX_LIMIT).
    const NOBODY: u32 = 1 << 23;

    #[test]
    fn the_kernels_list_is_read() {
        let parse = ListedLocks::parse;
        let line = "1: FLOCK  ADVISORY  WRITE 812 fe:0a:5505 0 EOF";
        let lock = parse(line).expect("a lock");
        assert_eq!((lock.device, lock.inode), ((0xfe, 0x0a), 5505));
        assert_eq!(lock.taker, 812);
        for other in [
            "2: POSIX  ADVISORY  WRITE 812 fe:00:5505 0 EOF",
            "1: -> FLOCK  ADVISORY  WRITE 812 fe:00:5505 0 EOF",
            "1: FLOCK",
            "",
        ] {
            assert!(parse(other).is_none(), "{other}");
        }
    }

    #[test]
    fn a_listed_lock_is_on_the_file_of_its_numbers_or_of_the_process_in_the_record() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = rustix::fs::stat(dir.path()).expect("our own");
        assert_eq!(device(makedev(254, 3)), (254, 3));
        let here = device(file.st_dev);
        let elsewhere = (here.0, here.1 + 1);
        let is_on = |device, inode, recorded| {
            let taker = 812;
            let lock = Flock {
                device,
                inode,
                taker,
            };
            lock.is_on(&file, recorded)
        };
        for recorded in [None, Some(811), Some(812)] {
            assert!(is_on(here, file.st_ino, recorded));
            assert!(!is_on(here, file.st_ino + 1, recorded));
            assert_eq!(
                is_on(elsewhere, file.st_ino, recorded),
                recorded == Some(812)
            );
        }
    }

    #[test]
    fn a_lock_is_listed_until_it_ends() {
        let (_dir, dir) = lock_dir();
        let (lock, owner) = hold(&dir, 31);
        let pid = process::id();
        let mut listed = ListedLocks::new();
        assert_eq!(listed.has(&dir, 31, Some(&owner)), Some(true));
        let taker = listed.taker(&dir, 31, &owner.process);
        assert!(matches!(taker, Taker::Recorded), "{taker:?}");
        let heir = listed
            .heir(&dir, 31, &owner.process)
            .expect("this process has it");
        assert_eq!(heir.pid, pid);
        assert!(!heir.program.is_empty());

        // The list omits some under load. The list of the process in the record does not.
        let incomplete = || {
            let mut listed = ListedLocks::new();
            listed.read().expect("our own /proc");
            listed.locks.clear();
            listed
        };
        assert_eq!(incomplete().has(&dir, 31, Some(&owner)), Some(true));
        let taker = incomplete().taker(&dir, 31, &owner.process);
        assert!(matches!(taker, Taker::Recorded), "{taker:?}");

        let by = |process: Identity| ListedLocks::new().taker(&dir, 31, &process);
        let other = Identity {
            pid: NOBODY,
            ..owner.process.clone()
        };
        // If the device numbers differ, nothing is found.
        let taker = by(other);
        assert!(
            matches!(taker, Taker::Another | Taker::Unlisted),
            "{taker:?}"
        );
        let taker = by(Identity {
            namespace: None,
            ..owner.process.clone()
        });
        assert!(matches!(taker, Taker::Unknown), "{taker:?}");

        // A lock of another process on a file with the same inode number is no proof.
        let file = stat(&dir, 31).expect("it was just made");
        let by_takers = |takers: &[u32]| {
            let mut listed = incomplete();
            listed.add(takers.iter().map(|&taker| Flock {
                device: device(file.st_dev),
                inode: file.st_ino,
                taker,
            }));
            listed.taker(&dir, 31, &owner.process)
        };
        assert!(matches!(by_takers(&[NOBODY]), Taker::Another));
        for takers in [[NOBODY, pid], [pid, NOBODY]] {
            assert!(matches!(by_takers(&takers), Taker::Recorded));
        }

        drop(lock);
        let mut listed = ListedLocks::new();
        assert_eq!(listed.has(&dir, 31, Some(&owner)), Some(false));
        let taker = listed.taker(&dir, 31, &owner.process);
        assert!(matches!(taker, Taker::Unlisted), "{taker:?}");
        assert_eq!(listed.heir(&dir, 31, &owner.process), None);
    }

    #[test]
    fn an_heir_has_the_lock_on_the_file_itself_or_the_only_one_of_its_inode_number() {
        let (_dir, dir) = lock_dir();
        let (_lock, owner) = hold(&dir, 35);
        let file = stat(&dir, 35).expect("it was just made");
        let here = device(file.st_dev);
        let (there, beyond) = ((here.0, here.1 + 1), (here.0, here.1 + 2));
        let heir_taken_by = |taker: u32, locks: &[((u32, u32), u64, u32)]| {
            let heir = |&(device, inode, pid): &((u32, u32), u64, u32)| {
                let lock = Flock {
                    device,
                    inode,
                    taker,
                };
                (lock, pid)
            };
            let mut listed = ListedLocks::new();
            listed.heirs = Some(locks.iter().map(heir).collect());
            let heir = listed.heir(&dir, 35, &owner.process);
            heir.map(|heir| heir.pid)
        };
        let heir_of = |locks: &[_]| heir_taken_by(owner.process.pid, locks);
        let (ours, other) = (file.st_ino, file.st_ino + 1);
        let (one, two) = (NOBODY, NOBODY + 1);
        assert_eq!(heir_of(&[(here, ours, one), (there, ours, two)]), Some(one));
        assert_eq!(
            heir_of(&[(there, ours, one), (here, other, two)]),
            Some(one)
        );
        assert_eq!(heir_of(&[(there, ours, one), (beyond, ours, two)]), None);
        assert_eq!(heir_of(&[(here, other, one)]), None);
        // A waiter that has just locked the file, and a child of it.
        assert_eq!(heir_taken_by(one, &[(here, ours, one)]), None);
        assert_eq!(heir_taken_by(one, &[(here, ours, two)]), None);
        assert_eq!(heir_taken_by(0, &[(here, ours, one)]), Some(one));
    }

    #[test]
    fn a_lock_of_an_unknown_process_is_searched_in_several_reads() {
        let (_dir, dir) = lock_dir();
        let (lock, owner) = hold(&dir, 32);
        drop(lock);
        let mut ended = owner;
        ended.process.pid = NOBODY;
        let is_first = View::take().expect("seen").is_of_first_namespace();
        for owner in [None, Some(&ended)] {
            let mut listed = ListedLocks::new();
            // In another namespace, a process that inherited the lock may have it.
            assert_eq!(listed.has(&dir, 32, owner), is_first.then_some(false));
            assert_eq!(listed.reads, if is_first { MAX_READS } else { 1 });
        }
        let mut of_another_namespace = ended;
        of_another_namespace.process.namespace = Some(1);
        let has = ListedLocks::new().has(&dir, 32, Some(&of_another_namespace));
        assert_eq!(has, None, "its locks are not listed");
        assert_eq!(ListedLocks::new().has(&dir, 33, None), None, "no file");
    }

    #[test]
    fn descriptors_that_are_closed_meanwhile_hide_no_lock() {
        let (_dir, dir) = lock_dir();
        let (_lock, _) = hold(&dir, 34);
        let inode = stat(&dir, 34).expect("it was just made").st_ino;
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let files = [(); 16].map(|()| fs::File::open("/dev/null"));
                    drop(files);
                }
            });
            for _ in 0..500 {
                let locks = locks_of(process::id());
                let is_listed = locks.map(|locks| locks.iter().any(|lock| lock.inode == inode));
                if !matches!(is_listed, Ok(true)) {
                    is_over.store(true, Ordering::Relaxed);
                    panic!("{is_listed:?}");
                }
            }
            is_over.store(true, Ordering::Relaxed);
        });
        assert!(locks_of(NOBODY).expect("it has ended").is_empty());
    }
}
