//! The locks that are held, as the kernel lists them (proc_locks(5),
//! proc_pid_fdinfo(5)).

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

/// Number of times that the list of all locks is read before a lock that it does not show counts as
/// free. Under load one read misses a lock now and then.
const MAX_READS: u32 = 4;

/// A lock by flock(2): on which file, and the pid of the process that took it, which may have
/// ended since.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Flock {
    device: (u32, u32),
    inode: u64,
    taker: u32,
}

impl Flock {
    /// Some file systems (btrfs, overlayfs) have another device number in the
    /// list than in stat(2); the pid in the record then has to agree.
    fn is_on(&self, file: &Stat, recorded: Option<u32>) -> bool {
        self.inode == file.st_ino
            && (self.device == device(file.st_dev) || Some(self.taker) == recorded)
    }
}

fn device(device: Dev) -> (u32, u32) {
    (major(device), minor(device))
}

/// The locks by flock(2) that the kernel lists, read as far as they are needed.
#[derive(Default)]
pub(crate) struct ListedLocks {
    /// By inode number.
    locks: HashMap<u64, Vec<Flock>>,
    /// From where `/proc/locks` was read, if it was and could be.
    view: Option<Option<View>>,
    /// How often it was read.
    reads: u32,
    /// The processes whose own lists were read.
    processes: HashSet<u32>,
    /// Which processes have which lock, once all of them were asked.
    heirs: Option<HashMap<Flock, u32>>,
}

impl ListedLocks {
    /// A lock of a process in another pid namespace, which lives, is its.
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
        // While many locks come and go, the list leaves some out: it is read a
        // page at a time, and an entry that moves across is missed (seq_file).
        // That of a process has its own locks only, each with its descriptor.
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
        // In a pid namespace below the first, locks are listed only while the
        // process that took them lives, and not if others have inherited them
        // (`locks_translate_pid` in fs/locks.c).
        if !view.is_of_first_namespace() {
            return None;
        }
        // A process that has inherited the lock is not known, nor its own list. So the list of all is
        // read again.
        while self.reads < MAX_READS {
            self.read_all();
            if is_listed(self) {
                return Some(true);
            }
        }
        Some(false)
    }

    /// Returns who took the lock of `port`, which was held a moment ago: the process in the record, or
    /// another one.
    pub(crate) fn taker(&mut self, dir: &OpenDir, port: u16, recorded: &Identity) -> Taker {
        let (Some(file), Some(view)) = (stat(dir, port), self.read()) else {
            return Taker::Unknown;
        };
        if !view.is_of(recorded) {
            return Taker::Unknown;
        }
        let recorded = recorded.pid;
        // The list may have left it out; that of the process does not.
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

    /// Reads `/proc/locks`, if that has not been done, and returns from where.
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

    /// Returns a process that has the lock of `port` now, as far as this process may see.
    pub(crate) fn heir(&mut self, dir: &OpenDir, port: u16) -> Option<Heir> {
        self.read()?;
        let file = stat(dir, port)?;
        let heirs = self.heirs.get_or_insert_with(all_heirs);
        let mut found = heirs.iter().filter(|(lock, _)| lock.inode == file.st_ino);
        let exact = |(lock, _): &(&Flock, _)| lock.device == device(file.st_dev);
        // Where the numbers of devices differ, only if there can be no doubt.
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
    /// There may be more. That it has ended, or is another user's, is none.
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

/// Returns the locks on the files that a process has open: none if it has ended, or is another user's.
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

/// Returns which process has which lock, of all those whose descriptors this process may see.
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

    // Nothing here binds: the ports are only numbers, each used by one test alone.

    fn lock_dir() -> (TempDir, OpenDir) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let locks = OpenDir::locate_at(Some(dir.path()), since_1970()).expect("our own");
        (dir, locks)
    }

    /// Leases a port, as far as the lock and the record go.
    fn hold(dir: &OpenDir, port: u16) -> (PortLock, Owner) {
        let claim = registry::claim(port, mark::current()).expect("of this test alone");
        let lock =
            PortLock::try_acquire(dir, claim, None).expect("our own directory, and not locked");
        owner::with_held(mark::current(), 0, None, |record| lock.write_owner(record))
            .expect("our own");
        let owner = lock::recorded_owner(dir, port).expect("our own");
        (lock, owner.expect("just written"))
    }

    /// A pid beyond the largest that Linux gives (PID_MAX_LIMIT).
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
        let heir = listed.heir(&dir, 31).expect("this process has it");
        assert_eq!(heir.pid, pid);
        assert!(!heir.program.is_empty());

        // The list leaves some out under load. That of the process in the record does not.
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
        // The device numbers may differ, and then nothing is found.
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

        // A lock of another process on a file of the same number is no proof.
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
        assert_eq!(listed.heir(&dir, 31), None);
    }

    #[test]
    fn an_heir_has_the_lock_on_the_file_itself_or_the_only_one_of_its_inode_number() {
        let (_dir, dir) = lock_dir();
        let (_lock, _) = hold(&dir, 35);
        let file = stat(&dir, 35).expect("it was just made");
        let here = device(file.st_dev);
        let (there, beyond) = ((here.0, here.1 + 1), (here.0, here.1 + 2));
        let heir_of = |locks: &[((u32, u32), u64, u32)]| {
            let heir = |&(device, inode, pid): &((u32, u32), u64, u32)| {
                let taker = 1;
                let lock = Flock {
                    device,
                    inode,
                    taker,
                };
                (lock, pid)
            };
            let mut listed = ListedLocks::new();
            listed.heirs = Some(locks.iter().map(heir).collect());
            listed.heir(&dir, 35).map(|heir| heir.pid)
        };
        let (ours, other) = (file.st_ino, file.st_ino + 1);
        let (one, two) = (NOBODY, NOBODY + 1);
        assert_eq!(heir_of(&[(here, ours, one), (there, ours, two)]), Some(one));
        assert_eq!(
            heir_of(&[(there, ours, one), (here, other, two)]),
            Some(one)
        );
        assert_eq!(heir_of(&[(there, ours, one), (beyond, ours, two)]), None);
        assert_eq!(heir_of(&[(here, other, one)]), None);
    }

    #[test]
    fn a_lock_of_nobody_known_is_searched_in_several_readings() {
        let (_dir, dir) = lock_dir();
        let (lock, owner) = hold(&dir, 32);
        drop(lock);
        let mut ended = owner;
        ended.process.pid = NOBODY;
        let is_first = View::take().expect("seen").is_of_first_namespace();
        for owner in [None, Some(&ended)] {
            let mut listed = ListedLocks::new();
            // In another namespace a process that has inherited it may have it.
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
