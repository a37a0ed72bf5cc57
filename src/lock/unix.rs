//! Lock files on Unix: locked with flock(2), each with its record in it.
//!
//! If another process removes or replaces one, a lock could be taken on a file that
//! later callers can no longer find. So after locking, a file without links is
//! released and opened again. Comparing it with the file at the path would detect nothing
//! more on most file systems, except a file renamed by hand between the two calls; and
//! a file that is renamed a moment later, during the lease, cannot be found either way.

use std::{
    fmt::Display,
    fs::{self, File},
    io,
    os::{
        fd::AsFd,
        unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _},
    },
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use rand::{Rng as _, rngs::SmallRng};
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, RenameFlags},
    io::Errno,
    path::{Arg, DecInt},
    process::{Resource, getrlimit},
};

use super::{Access, FileStatus, PortLock, RecordFailure, fail};
use crate::{
    lock_dir::unix::{Dir, identity},
    retry::retry,
    unavailable::{Attempt, Unavailable},
};

/// Flags for opening lock files: never follow a symbolic link, block on a FIFO, or acquire a
/// controlling terminal; close on exec.
pub(crate) const OPEN: OFlags = OFlags::NOFOLLOW
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

/// A forked child has the descriptors of its parent, and so its locks.
pub(crate) const IS_INHERITED: bool = true;

/// Number of retries for a lock that outlives its holder: none. The kernel closes the descriptors of a
/// process before others see that it has ended (`do_exit` in kernel/exit.c, `proc_exit` in XNU's
/// bsd/kern/kern_exit.c).
pub(crate) const MAX_ENDING_RETRIES: usize = 0;

/// Opens the file of `port` if it exists.
///
/// Without O_CREAT: in a sticky directory `fs.protected_regular` refuses that
/// flag for files of other users (proc_sys_fs(5)).
pub(crate) fn open(
    dir: &Dir,
    port: u16,
    access: Access,
) -> Attempt<Option<File>, Unavailable, io::Error> {
    let access = match access {
        Access::ReadRecord => OFlags::RDONLY,
        // On NFS only a file that is open for writing can be locked (flock(2)).
        Access::Lock if dir.is_local() => OFlags::RDONLY,
        Access::Lock | Access::Write => OFlags::RDWR,
    };
    let open = || {
        let name = DecInt::new(port);
        Ok(rustix::fs::openat(
            dir.fd(),
            name,
            OPEN | access,
            Mode::empty(),
        )?)
    };
    match retry(open) {
        Ok(fd) => Ok(Some(File::from(fd))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Creates and opens the file of `port`. Fails with `EEXIST` if another process was faster, and with
/// `ENOENT` if the directory was removed.
///
/// It is created under another name and renamed after its mode is set: a process that is
/// killed in between then leaves a stray file, but never a lock file that other users, or
/// with a strict umask even its owner, could not open.
pub(crate) fn create(dir: &Dir, port: u16, pid: u32) -> io::Result<File> {
    let stray = stray_name(port, pid);
    let fd = rustix::fs::openat(dir.fd(), &stray, CREATE, dir.file_mode())?;
    let published = set_mode(&fd, dir)
        .and_then(|created| Ok((created, publish(dir, &stray, DecInt::new(port))?)));
    if let Ok((_, PublishOutcome::Done)) = published {
        return Ok(File::from(fd));
    }
    let removed = rustix::fs::unlinkat(dir.fd(), &stray, AtFlags::empty());
    let (created, outcome) = published?;
    removed?;
    if outcome == PublishOutcome::Exists {
        return Err(Errno::EXIST.into());
    }
    // The umask must not remove permissions from a file that others can already find: if
    // this process were killed before it set the mode, they could never open it.
    check_umask(dir, created)?;
    let fd = rustix::fs::openat(dir.fd(), DecInt::new(port), CREATE, dir.file_mode())?;
    set_mode(&fd, dir)?;
    Ok(File::from(fd))
}

const CREATE: OFlags = OPEN
    .union(OFlags::RDWR)
    .union(OFlags::CREATE)
    .union(OFlags::EXCL);

/// Outcome of [`publish`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PublishOutcome {
    Done,
    /// Another process was faster.
    Exists,
    /// The file system cannot rename without replacing. FUSE, NFS and 9p usually cannot.
    Unsupported,
}

/// Renames `stray` to `name`, and replaces nothing: another process may have locked it.
pub(crate) fn publish(
    dir: &Dir,
    stray: &str,
    name: impl Arg,
) -> rustix::io::Result<PublishOutcome> {
    match rustix::fs::renameat_with(dir.fd(), stray, dir.fd(), name, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(PublishOutcome::Done),
        Err(Errno::EXIST) => Ok(PublishOutcome::Exists),
        // EINVAL and ENOSYS on Linux (rename(2)), ENOTSUP on macOS.
        Err(error) if [Errno::INVAL, Errno::NOSYS, Errno::NOTSUP].contains(&error) => {
            Ok(PublishOutcome::Unsupported)
        }
        Err(error) => Err(error),
    }
}

/// Fails if the umask removes permissions from new files in the directory. `created` is the
/// mode of a new file.
pub(crate) fn check_umask(dir: &Dir, created: Mode) -> io::Result<()> {
    let needed = dir.permissions();
    if created.contains(needed) {
        return Ok(());
    }
    let message = format!(
        "the file system cannot rename a file without replacing another (RENAME_NOREPLACE), and \
         the umask of this process takes permissions from new files ({:04o} instead of {:04o}): \
         set PORTLOCK_DIR to a directory on a local file system, change the umask, or create the \
         file yourself with mode {:04o}",
        (created & Mode::from_raw_mode(0o777)).as_raw_mode(),
        needed.as_raw_mode(),
        dir.file_mode().as_raw_mode(),
    );
    Err(io::Error::new(io::ErrorKind::Unsupported, message))
}

/// Sets the mode of a new lock file unless the umask has not changed it, and
/// returns the mode that it was created with. Checking costs a tenth of setting it.
fn set_mode(fd: impl AsFd, dir: &Dir) -> rustix::io::Result<Mode> {
    let created = Mode::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
    if created != dir.file_mode() {
        // A file system may refuse the sticky bit. Then only use keeps the file from being removed.
        rustix::fs::fchmod(&fd, dir.file_mode())
            .or_else(|_| rustix::fs::fchmod(&fd, dir.permissions()))?;
    }
    Ok(created)
}

/// Checks whether the file that was locked is still the one that others find at its path, and how
/// long it is.
#[inline]
pub(crate) fn status(dir: &Dir, port: u16, file: &File) -> io::Result<FileStatus> {
    let locked = rustix::fs::fstat(file)?;
    if FileType::from_raw_mode(locked.st_mode) != FileType::RegularFile {
        return Ok(FileStatus::Refused("it is not a regular file"));
    }
    if locked.st_nlink > 1 {
        // Where others may add to the directory, the other name could be
        // that of any file of ours, and our record would overwrite it.
        return Ok(FileStatus::Refused("it has a second hard link"));
    }
    let mut is_at_its_path = locked.st_nlink == 1;
    if is_at_its_path && !dir.is_local() {
        let name = DecInt::new(port);
        is_at_its_path = match rustix::fs::statat(dir.fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(at_path) => identity(&at_path) == identity(&locked),
            Err(Errno::NOENT) => false,
            Err(error) => return Err(error.into()),
        };
    }
    if !is_at_its_path {
        return Ok(FileStatus::Replaced);
    }
    Ok(FileStatus::Current {
        record_len: usize::try_from(locked.st_size).unwrap_or_default(),
    })
}

/// Reads the file of `port`, as much as fits into `text`.
pub(crate) fn read(_: &Dir, _: u16, file: &File, text: &mut [u8]) -> Result<usize, RecordFailure> {
    Ok(retry(|| file.read_at(text, 0))?)
}

/// Writes into the file of `port`, in place: truncating would cost more than writing, and
/// could fail for want of space where overwriting cannot. If `cuts`, the file is truncated
/// after `text`.
#[inline]
pub(crate) fn write(
    _: &Dir,
    _: u16,
    file: &File,
    text: &[u8],
    offset: usize,
    cuts: bool,
) -> Result<(), RecordFailure> {
    let end = (offset + text.len()) as u64;
    check_size_limit(end)?;
    write_all(file, text, offset)?;
    if cuts {
        // Not with `set_len`, which retries an interrupted call without a bound.
        retry(|| Ok(rustix::fs::ftruncate(file, end)?))?;
    }
    Ok(())
}

/// Fails if this process may not write the first `len` bytes of a file. The kernel
/// would kill it, by SIGXFSZ (setrlimit(2)).
///
/// A limit that is high enough is read once per process: reading it each time would cost
/// every lease a system call, and few programs lower their own limit while they run.
#[inline]
pub(crate) fn check_size_limit(len: u64) -> io::Result<()> {
    /// `RLIMIT_FSIZE` as it was when it was read, or 0.
    static LIMIT: AtomicU64 = AtomicU64::new(0);
    if len <= LIMIT.load(Ordering::Relaxed) {
        return Ok(());
    }
    let limit = getrlimit(Resource::Fsize).current.unwrap_or(u64::MAX);
    LIMIT.store(limit, Ordering::Relaxed);
    if len <= limit {
        return Ok(());
    }
    let message = format!(
        "this process may not write files of {len} bytes (RLIMIT_FSIZE is {limit} bytes: raise it \
         with `ulimit -f`)"
    );
    Err(io::Error::new(io::ErrorKind::FileTooLarge, message))
}

/// Writes all of `text`. Unlike `write_all_at`, retries interrupted calls only within a bound.
pub(crate) fn write_all(file: &File, text: &[u8], offset: usize) -> io::Result<()> {
    let mut written = 0;
    while written < text.len() {
        let at = (offset + written) as u64;
        written += match retry(|| file.write_at(&text[written..], at))? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            len => len,
        };
    }
    Ok(())
}

/// Removes the file of `port`. `held` is its lock. A caller that waits to open it will create a
/// new one, and a caller that has it open will notice.
pub(crate) fn remove<T>(dir: &Dir, port: u16, held: T) -> io::Result<()> {
    let removed = rustix::fs::unlinkat(dir.fd(), DecInt::new(port), AtFlags::empty());
    drop(held);
    Ok(removed?)
}

/// Returns the metadata of the lock file of `port`.
pub(crate) fn metadata(dir: &Path, port: u16) -> io::Result<fs::Metadata> {
    fs::symlink_metadata(dir.join(port.to_string()))
}

/// Returns the port whose files have this name.
pub(crate) fn port_of(name: &str) -> Option<u16> {
    let port: u16 = name.parse().ok()?;
    (port > 0 && port.to_string() == name).then_some(port)
}

/// Returns whether it can be a lock file.
pub(crate) fn is_lock_file(metadata: &fs::Metadata) -> bool {
    metadata.is_file() && metadata.nlink() == 1
}

/// Returns whether it is a stray file, left by a process that was killed while creating a file.
pub(crate) fn is_stray(name: &str, metadata: &fs::Metadata) -> bool {
    let is_made = metadata.is_file() || metadata.file_type().is_fifo();
    is_made && name.starts_with(STRAY_PREFIX)
}

/// Returns a temporary name, unique to this process, for a file that will be renamed to `name`.
pub(crate) fn stray_name(name: impl Display, pid: u32) -> String {
    let random = rand::make_rng::<SmallRng>().next_u32();
    format!("{STRAY_PREFIX}{name}.{pid}.{random:08x}")
}

const STRAY_PREFIX: &str = ".new.";

impl PortLock {
    /// Returns a descriptor that alone holds the lock from now on: the
    /// lock lasts until it and its duplicates are closed.
    ///
    /// # Errors
    ///
    /// If the caller is a forked copy of the process that acquired the lock, or the
    /// descriptor cannot be duplicated.
    pub(crate) fn into_file(mut self) -> crate::error::Result<File> {
        self.must_be_ours("pass on")?;
        let file = self
            .file
            .try_clone()
            .map_err(|error| fail("duplicate the descriptor of", &self.dir, self.port, error))?;
        self.ended = true;
        Ok(file)
    }
}

// Only where rustix can create a FIFO.
#[cfg(all(test, target_os = "linux"))]
mod tests {
    use rustix::fs::{CWD, mknodat};
    use tempfile::TempDir;

    use super::*;
    use crate::lock_dir::{Origin, unix::user};

    const PORT: u16 = 4000;

    fn lock_dir() -> (TempDir, Dir) {
        let path = tempfile::tempdir().expect("a temporary directory");
        let dir = Dir::open(path.path(), Origin::Given, user()).expect("our own");
        (path, dir)
    }

    fn made(dir: &Dir) -> File {
        create(dir, PORT, 1).expect("our own directory")
    }

    fn opened(dir: &Dir) -> Option<File> {
        open(dir, PORT, Access::Write).expect("our own directory")
    }

    #[test]
    fn only_a_port_in_canonical_form_names_a_lock_file() {
        assert_eq!(port_of("1"), Some(1));
        assert_eq!(port_of("65535"), Some(65_535));
        for other in ["", "0", "04000", "+4000", "65536", "4000 ", ".new.4000"] {
            assert_eq!(port_of(other), None, "{other:?}");
        }
    }

    #[test]
    fn lock_files_and_stray_files_are_distinguished_from_others() {
        let path = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| path.path().join(name);
        let found = |name: &str| fs::symlink_metadata(at(name)).expect("it was just made");
        fs::write(at("file"), "").expect("our own");
        fs::create_dir(at("directory")).expect("our own");
        std::os::unix::fs::symlink("file", at("link")).expect("our own");
        mknodat(CWD, at("fifo"), FileType::Fifo, Mode::RUSR, 0).expect("our own");

        let is_stray_file = |kind: &str| is_stray(&stray_name(PORT, 812), &found(kind));
        assert!(is_lock_file(&found("file")));
        for other in ["directory", "link", "fifo"] {
            assert!(!is_lock_file(&found(other)), "{other}");
        }
        for (kind, is_made) in [
            ("file", true),
            ("fifo", true),
            ("directory", false),
            ("link", false),
        ] {
            assert_eq!(is_stray_file(kind), is_made, "{kind}");
            assert!(!is_stray("4000", &found(kind)), "{kind}");
        }
        fs::hard_link(at("file"), at("second")).expect("our own");
        assert!(!is_lock_file(&found("file")));

        let name = stray_name(PORT, 812);
        assert!(name.starts_with(".new.4000.812."), "{name}");
        assert_ne!(name, stray_name(PORT, 812));
    }

    #[test]
    fn text_is_written_in_place_and_the_file_is_truncated_only_on_request() {
        let (_path, dir) = lock_dir();
        let file = made(&dir);
        let written = |text: &[u8], offset, cuts| {
            write(&dir, PORT, &file, text, offset, cuts).expect("our own");
            let mut found = [0; 16];
            let len = read(&dir, PORT, &file, &mut found).expect("our own");
            found[..len].to_vec()
        };
        assert_eq!(written(b"a long one", 0, false), b"a long one");
        assert_eq!(written(b"short", 0, false), b"shortg one");
        assert_eq!(written(b"new", 7, true), b"shortg new");
        assert_eq!(written(b"", 7, true), b"shortg ");
        assert_eq!(written(b"short", 0, true), b"short");
        assert_eq!(written(b"far", 7, true), b"short\0\0far");
        let mut few = [0; 3];
        let len = read(&dir, PORT, &file, &mut few).expect("our own");
        assert_eq!((len, &few), (3, b"sho"));
    }

    #[test]
    fn a_file_is_current_only_with_its_one_name() {
        let (path, dir) = lock_dir();
        assert!(opened(&dir).is_none());
        let file = made(&dir);
        assert_eq!(file.metadata().expect("open").mode() & 0o777, 0o600);
        let exists = create(&dir, PORT, 1).expect_err("it exists");
        assert_eq!(exists.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_dir(path.path()).expect("our own").count(), 1);
        write_all(&file, b"record", 0).expect("our own");
        let status = |file| status(&dir, PORT, file).expect("our own");
        assert!(matches!(
            status(&file),
            FileStatus::Current { record_len: 6 }
        ));

        let (name, second) = (path.path().join("4000"), path.path().join("second"));
        fs::hard_link(&name, &second).expect("our own");
        let FileStatus::Refused(why) = status(&file) else {
            panic!("it could be any file");
        };
        assert!(why.contains("second hard link"), "{why}");
        fs::remove_file(second).expect("our own");
        assert!(matches!(status(&file), FileStatus::Current { .. }));

        remove(&dir, PORT, ()).expect("our own");
        assert!(opened(&dir).is_none());
        assert!(matches!(status(&file), FileStatus::Replaced));
        let none = remove(&dir, PORT, ()).expect_err("it was removed");
        assert_eq!(none.kind(), io::ErrorKind::NotFound);

        std::os::unix::fs::symlink("elsewhere", &name).expect("our own");
        let link = open(&dir, PORT, Access::Write);
        assert!(link.is_err(), "{link:?}");
        fs::remove_file(&name).expect("our own");
        mknodat(CWD, &name, FileType::Fifo, Mode::RWXU, 0).expect("our own");
        let fifo = opened(&dir).expect("both ends");
        let FileStatus::Refused(why) = status(&fifo) else {
            panic!("it is no file to write to");
        };
        assert_eq!(why, "it is not a regular file");
    }
}
