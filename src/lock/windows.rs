//! Lock files on Windows: locked with LockFileEx, each with its record in a separate file.
//!
//! A lock here is mandatory and covers the whole file, so no other process could read a record in
//! it. The record is in `<port>.owner`, which is written in place, and only by the process that
//! holds the lock.
//!
//! A lock file is open without `FILE_SHARE_DELETE`: as long as any process has it open, it can be
//! neither removed nor renamed, so the locked file is the one that others find. A process that
//! removes it opens it exclusively, which fails if any process has it open. Other processes fail
//! to open it then, and count the port as leased for that moment.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::windows::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use windows_sys::Win32::{
    Foundation::{ERROR_ACCESS_DENIED, ERROR_LOCK_VIOLATION, ERROR_SHARING_VIOLATION},
    Storage::FileSystem::{
        DELETE, FILE_ATTRIBUTE_REPARSE_POINT, FILE_FLAG_DELETE_ON_CLOSE,
        FILE_FLAG_OPEN_REPARSE_POINT, FILE_SHARE_DELETE, FILE_SHARE_READ, FILE_SHARE_WRITE,
    },
};

use super::{Access, FileStatus, RecordFailure, RecordInUse};
use crate::{
    lock_dir::windows::Dir,
    unavailable::{Attempt, Failure, Unavailable},
};

const RECORD_SUFFIX: &str = ".owner";

/// Largest number of retries to open a file that is being removed, or that another process has
/// opened exclusively, and the pause before each retry.
const MAX_OPEN_RETRIES: u32 = 50;
const OPEN_RETRY_INTERVAL: Duration = Duration::from_millis(1);

/// A lock belongs to its process, whatever handles a child inherits.
pub(crate) const IS_INHERITED: bool = false;

/// Number of retries for a lock whose holder has ended, half a second in total. "The time it
/// takes for the operating system to unlock these locks depends upon available system resources"
/// (LockFileEx).
pub(crate) const MAX_ENDING_RETRIES: usize = 30;

fn lock_path(dir: &Dir, port: u16) -> PathBuf {
    dir.path().join(port.to_string())
}

fn record_path(dir: &Dir, port: u16) -> PathBuf {
    dir.path().join(format!("{port}{RECORD_SUFFIX}"))
}

/// Returns the options for opening lock files, which never follow links.
fn lock_options() -> OpenOptions {
    let mut options = File::options();
    options
        .read(true)
        .write(true)
        .share_mode(FILE_SHARE_READ | FILE_SHARE_WRITE)
        .custom_flags(FILE_FLAG_OPEN_REPARSE_POINT);
    options
}

/// Returns the options for opening records. Removing a record waits for no other process.
fn record_options() -> OpenOptions {
    let mut options = File::options();
    options
        .read(true)
        .share_mode(FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE)
        .custom_flags(FILE_FLAG_OPEN_REPARSE_POINT);
    options
}

/// Opens a file, and retries while it fails only for a moment.
fn open_soon(
    open: impl Fn() -> io::Result<File>,
    passes: fn(&io::Error) -> bool,
) -> io::Result<File> {
    for _ in 0..MAX_OPEN_RETRIES {
        match open() {
            Err(error) if passes(&error) => thread::sleep(OPEN_RETRY_INTERVAL),
            outcome => return outcome,
        }
    }
    open()
}

/// A file that is removed while another program, such as a virus scanner, has it open stays until
/// that program closes it, and cannot be opened.
fn may_be_going(error: &io::Error) -> bool {
    is(error, ERROR_ACCESS_DENIED)
}

/// Returns whether the file at this path is being removed: then no process can open it for any
/// purpose. The attributes of a file that this user may not open can still be read if the user
/// may list the directory.
fn is_going(path: &Path) -> bool {
    let mut options = record_options();
    let opened = options.read(false).access_mode(0).open(path);
    opened.is_err_and(|error| is(&error, ERROR_ACCESS_DENIED))
}

/// Opens the file of `port` if it exists. The port is unavailable while another process removes
/// the file or has it open without sharing, as virus scanners and backup programs may.
pub(crate) fn open(
    dir: &Dir,
    port: u16,
    access: Access,
) -> Attempt<Option<File>, Unavailable, io::Error> {
    let (path, options) = match access {
        Access::ReadRecord => (record_path(dir, port), record_options()),
        Access::Lock | Access::Write => (lock_path(dir, port), lock_options()),
    };
    match open_soon(|| options.open(&path), may_be_going) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if is(&error, ERROR_SHARING_VIOLATION) => Err(Unavailable::Leased(port).into()),
        Err(error) if is(&error, ERROR_ACCESS_DENIED) && is_going(&path) => {
            Err(Unavailable::Leased(port).into())
        }
        Err(error) => Err(error.into()),
    }
}

/// Creates and opens the file of `port`. Fails with `AlreadyExists` if another process was
/// faster, and with `NotFound` if the directory was removed.
pub(crate) fn create(dir: &Dir, port: u16, _: u32) -> io::Result<File> {
    let path = lock_path(dir, port);
    open_soon(|| lock_options().create_new(true).open(&path), may_be_going)
}

/// Checks the locked file, and how long its record is.
pub(crate) fn status(dir: &Dir, port: u16, file: &File) -> io::Result<FileStatus> {
    if is_link(&file.metadata()?) {
        return Ok(FileStatus::Refused("it is not a regular file"));
    }
    let record_len = match fs::symlink_metadata(record_path(dir, port)) {
        Ok(metadata) if is_link(&metadata) => {
            return Ok(FileStatus::Refused(
                "its owner record is not a regular file",
            ));
        }
        Ok(metadata) => usize::try_from(metadata.len()).unwrap_or_default(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    Ok(FileStatus::Current { record_len })
}

/// Reads the record of `port` and the text after it, as much as fits into `text`.
pub(crate) fn read(
    dir: &Dir,
    port: u16,
    _: &File,
    text: &mut [u8],
) -> Result<usize, RecordFailure> {
    let path = record_path(dir, port);
    let mut read = || match open_soon(|| record_options().open(&path), may_be_removed) {
        Ok(file) if is_link(&file.metadata()?) => Ok(0),
        Ok(file) => file.seek_read(text, 0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    };
    read().map_err(|error| unless_in_use(error, &path))
}

/// Virus scanners, indexers and backup programs open any file. Some open it exclusively, or lock
/// it (`ERROR_LOCK_VIOLATION`).
fn unless_in_use(error: io::Error, path: &Path) -> RecordFailure {
    if is(&error, ERROR_SHARING_VIOLATION)
        || is(&error, ERROR_LOCK_VIOLATION)
        || is(&error, ERROR_ACCESS_DENIED) && is_going(path)
    {
        return Failure::Unavailable(RecordInUse);
    }
    Failure::Error(error)
}

/// A process that removes a record has opened it exclusively; see [`remove`].
fn may_be_removed(error: &io::Error) -> bool {
    may_be_going(error) || is(error, ERROR_SHARING_VIOLATION)
}

/// Writes into the record file of `port`, in place. If `cuts`, the file is truncated after `text`.
pub(crate) fn write(
    dir: &Dir,
    port: u16,
    _: &File,
    text: &[u8],
    offset: usize,
    cuts: bool,
) -> Result<(), RecordFailure> {
    let path = record_path(dir, port);
    write_in_place(&path, text, offset, cuts).map_err(|error| unless_in_use(error, &path))
}

fn write_in_place(path: &Path, text: &[u8], offset: usize, cuts: bool) -> io::Result<()> {
    let open = || {
        let mut options = record_options();
        options.write(true).create(true).truncate(false).open(path)
    };
    let file = open_soon(open, may_be_removed)?;
    let mut written = 0;
    while written < text.len() {
        written += match file.seek_write(&text[written..], (offset + written) as u64)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            len => len,
        };
    }
    if cuts {
        file.set_len((offset + text.len()) as u64)?;
    }
    Ok(())
}

/// Removes the files of `port`. `held` is its lock.
///
/// The record is removed first, under the lock. The lock file cannot be removed as long as it is
/// open, here too; a process that locks it in between keeps it.
pub(crate) fn remove<T>(dir: &Dir, port: u16, held: T) -> io::Result<()> {
    match remove_unused(record_path(dir, port)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        removed => removed?,
    }
    drop(held);
    remove_unused(lock_path(dir, port))
}

/// Removes a file that no process has open.
fn remove_unused(path: PathBuf) -> io::Result<()> {
    let opened = File::options()
        .access_mode(DELETE)
        .share_mode(0)
        .custom_flags(FILE_FLAG_DELETE_ON_CLOSE | FILE_FLAG_OPEN_REPARSE_POINT)
        .open(path);
    match opened {
        Ok(_) => Ok(()),
        Err(error) if is(&error, ERROR_SHARING_VIOLATION) => {
            Err(io::Error::new(io::ErrorKind::PermissionDenied, error))
        }
        Err(error) => Err(error),
    }
}

/// Returns the metadata of the lock file of `port`, or else of its record.
pub(crate) fn metadata(dir: &Path, port: u16) -> io::Result<fs::Metadata> {
    match fs::symlink_metadata(dir.join(port.to_string())) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::symlink_metadata(dir.join(format!("{port}{RECORD_SUFFIX}")))
        }
        metadata => metadata,
    }
}

/// Returns the port whose files have this name. A delegated lease may have only a record.
pub(crate) fn port_of(name: &str) -> Option<u16> {
    let name = name.strip_suffix(RECORD_SUFFIX).unwrap_or(name);
    let port: u16 = name.parse().ok()?;
    (port > 0 && port.to_string() == name).then_some(port)
}

/// Returns whether it can be a lock file.
pub(crate) fn is_lock_file(metadata: &fs::Metadata) -> bool {
    metadata.is_file() && !is_link(metadata)
}

/// Returns `false`: a process that is killed while it creates a file leaves no stray file on
/// Windows.
pub(crate) fn is_stray(_: &str, _: &fs::Metadata) -> bool {
    false
}

fn is_link(metadata: &fs::Metadata) -> bool {
    metadata.file_attributes() & FILE_ATTRIBUTE_REPARSE_POINT != 0
}

fn is(error: &io::Error, code: u32) -> bool {
    error.raw_os_error() == Some(code.cast_signed())
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::{
        lock_dir::{Origin, windows::user},
        unavailable::Failure,
    };

    const PORT: u16 = 4000;

    fn dir() -> (TempDir, Dir) {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let dir = Dir::open(parent.path(), Origin::Given, user()).expect("our own");
        (parent, dir)
    }

    fn created(dir: &Dir) -> File {
        create(dir, PORT, 0).expect("our own directory")
    }

    #[test]
    fn a_lock_file_that_is_open_stays_at_its_path() {
        let (_parent, dir) = dir();
        let file = created(&dir);
        let path = lock_path(&dir, PORT);
        assert!(fs::remove_file(&path).is_err());
        assert!(fs::rename(&path, path.with_extension("old")).is_err());
        let kept = remove(&dir, PORT, ()).expect_err("it is open");
        assert_eq!(kept.kind(), io::ErrorKind::PermissionDenied);
        drop(file);
        remove(&dir, PORT, ()).expect("no process has it open");
        let opened = open(&dir, PORT, Access::Write).expect("our own directory");
        assert!(opened.is_none());
    }

    #[test]
    fn a_lock_file_that_is_being_removed_counts_as_held() {
        let (_parent, dir) = dir();
        drop(created(&dir));
        let mut alone = File::options();
        let alone = alone
            .access_mode(DELETE)
            .share_mode(0)
            .open(lock_path(&dir, PORT));
        let opened = open(&dir, PORT, Access::Lock);
        assert!(matches!(
            opened,
            Err(Failure::Unavailable(Unavailable::Leased(PORT)))
        ));
        drop(alone.expect("no process has it open"));
    }

    #[test]
    fn the_record_is_in_a_file_beside_the_lock_file() {
        let (_parent, dir) = dir();
        let file = created(&dir);
        let content = || {
            let mut record = [0; 8];
            let len = read(&dir, PORT, &file, &mut record).expect("our own");
            record[..len].to_vec()
        };
        let write = |record, cuts| {
            write(&dir, PORT, &file, record, 0, cuts).expect("our own");
        };
        let len = || match status(&dir, PORT, &file).expect("our own") {
            FileStatus::Current { record_len } => record_len,
            other => panic!("{other:?}"),
        };
        assert_eq!((content(), len()), (Vec::new(), 0));
        write(b"delegated", false);
        assert_eq!((content(), len()), (b"delegate".to_vec(), 9));
        write(b"held", true);
        assert_eq!((content(), len()), (b"held".to_vec(), 4));
        assert_eq!(file.metadata().expect("our own").len(), 0);
        assert_eq!(port_of("4000.owner"), Some(PORT));
        assert_eq!(port_of("04000"), None);
    }
}
