//! A reservation: a port that belongs to a name in a root directory, leased or not.
//!
//! It is one line in the lock file of its port, after the owner record:
//!
//! ```text
//! reserved web /home/ada/shop 1311.1763683200123456789
//! ```
//!
//! * the name;
//! * the root directory, escaped like the texts of an owner record;
//! * the identity of the root's parent directory when the port was reserved: its inode number
//!   and its creation time in nanoseconds after 1970.
//!
//! Without the newline at its end, the line was not written completely. A line that begins like this
//! and cannot be parsed still reserves the port: it is better to withhold a port than to
//! give it out twice.

use std::{
    env,
    fmt::{self, Write as _},
    fs, io,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use crate::{
    error::{Error, ErrorKind, Result},
    owner,
};

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;
#[cfg(windows)]
mod windows;

#[cfg(target_os = "linux")]
use linux::inode_and_creation;
#[cfg(target_os = "macos")]
use macos::inode_and_creation;
#[cfg(windows)]
use windows::inode_and_creation;

/// Offset of the line in a lock file, in bytes: after the longest owner record.
pub(crate) const OFFSET: usize = owner::LONG_LEN;

/// Length in bytes of a lock file with the longest line. Within one page, a write is not cut short
/// by the end of its process.
pub(crate) const MAX_FILE_LEN: usize = 4096;

/// The first word of a line.
const WORD: &str = "reserved";
const BEGINNING: &[u8] = b"reserved ";

const MAX_NAME_LEN: usize = 64;

const UNKNOWN: &str = "-";

/// A port that is reserved for a name in a root directory.
///
/// No other caller can lease the port, whether it is leased at the moment or not.
/// [`Builder::name`](crate::Builder::name) leases it, and reserves it first if it is not reserved
/// yet. The reservation ends with [`LockDir::unreserve`](crate::LockDir::unreserve) or when its root
/// directory is proven to be gone.
///
/// # Examples
///
/// ```
/// use portlock::FreePort;
///
/// let dir = tempfile::tempdir()?;
/// let web = FreePort::builder().name("web").root(dir.path());
/// # let locks = tempfile::tempdir()?;
/// # let web = web.lock_dir(locks.path());
/// let reservation = web.reserve()?;
/// assert_eq!((&*reservation.name, &*reservation.variable()), ("web", "WEB_PORT"));
/// let port = web.acquire()?;
/// assert_eq!(port.port(), reservation.port);
/// # drop(port);
/// # portlock::LockDir::open(locks.path())?.unreserve(&reservation)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reservation {
    /// The name; empty if the reservation is [unreadable](ReservationState::Unreadable).
    pub name: String,
    /// The root directory; empty if the reservation is [unreadable](ReservationState::Unreadable).
    pub root: PathBuf,
    /// The port.
    pub port: u16,
    /// Whether the reservation counts, and why.
    pub state: ReservationState,
}

/// Whether a reservation counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReservationState {
    /// It counts: its root directory exists.
    Present,
    /// It counts: its root directory cannot be found and is not proven to be gone. It may be on a
    /// disk that is not mounted, or hidden from this process.
    RootNotFound,
    /// It no longer counts: its root directory is gone, and the parent directory still exists.
    /// Any caller can lease the port.
    RootGone,
    /// It counts: its line in the lock file is not complete. The port is withheld until the line is removed.
    Unreadable,
}

impl Reservation {
    /// Returns the root directory that is used by default: the root of the git
    /// worktree that contains the current directory or, outside a worktree, the current directory.
    ///
    /// # Errors
    ///
    /// [`InvalidName`](ErrorKind::InvalidName) if the current directory cannot be determined.
    ///
    /// # Examples
    ///
    /// ```
    /// println!("{}", portlock::Reservation::default_root()?.display());
    /// # Ok::<(), portlock::Error>(())
    /// ```
    pub fn default_root() -> Result<PathBuf> {
        let current = env::current_dir().map_err(|error| {
            let message = "cannot determine the default root directory from the current directory";
            without_current(message.to_owned(), error)
        })?;
        let worktree = current.ancestors().find(|dir| is_worktree(dir));
        Ok(worktree.unwrap_or(&current).to_owned())
    }

    /// Returns the environment variable for the port: the name in upper case, with `_` instead of
    /// `-`, followed by `_PORT`.
    #[must_use]
    pub fn variable(&self) -> String {
        variable(&self.name)
    }

    pub(crate) fn is_of(&self, key: &Key) -> bool {
        self.name == key.name && self.root == Path::new(&key.root)
    }

    /// Returns its key, or `None` if it is unreadable.
    pub(crate) fn key(&self) -> Option<Key> {
        Some(Key {
            name: Some(&self.name).filter(|name| !name.is_empty())?.clone(),
            root: self.root.to_str()?.to_owned(),
        })
    }

    /// Returns whether this is the reservation that was found.
    pub(crate) fn is_read_from(&self, found: &Found) -> bool {
        match found {
            Found::Line(line) => self.key().is_some_and(|key| line.is_of(&key)),
            Found::Unreadable => self.state == ReservationState::Unreadable,
        }
    }
}

/// Writes text such as `as web in /home/ada/shop`, with control characters escaped.
impl fmt::Display for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_key(f, &self.name, &self.root.to_string_lossy())
    }
}

fn write_key(f: &mut fmt::Formatter<'_>, name: &str, root: &str) -> fmt::Result {
    write!(f, "as {name} in ")?;
    for c in root.chars() {
        match c {
            // These are ordinary characters in a path.
            '\\' | '\'' | '"' => f.write_char(c)?,
            c => write!(f, "{}", c.escape_debug())?,
        }
    }
    Ok(())
}

pub(crate) fn variable(name: &str) -> String {
    name.to_ascii_uppercase().replace('-', "_") + "_PORT"
}

/// Returns whether git treats this directory as the root of a worktree: it has a repository, or a
/// file with the path of one. An empty `.git`, as sandboxes create, is ignored.
fn is_worktree(dir: &Path) -> bool {
    let git = dir.join(".git");
    git.is_file() || fs::symlink_metadata(git.join("HEAD")).is_ok()
}

/// The key of a reservation: its name and root directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) name: String,
    /// Absolute, without symbolic links.
    pub(crate) root: String,
}

/// Writes the same text as for a [`Reservation`].
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_key(f, &self.name, &self.root)
    }
}

impl Key {
    /// Returns the key of `name` in `root` or, if that is `None`, in the default root.
    ///
    /// # Errors
    ///
    /// [`InvalidName`](ErrorKind::InvalidName) if the name or the root cannot be used.
    pub(crate) fn new(name: &str, root: Option<&Path>) -> Result<Self> {
        let refuse = |why: String| Err(Error::new(ErrorKind::InvalidName, why));
        if !is_name(name) {
            return refuse(format!(
                "{name:?} is not a name: it must begin with a lower-case letter, have only \
                 lower-case letters, digits, `_` and `-`, and at most {MAX_NAME_LEN} of them"
            ));
        }
        let root = absolute_root(root)?;
        Ok(Self {
            name: name.to_owned(),
            root,
        })
    }

    /// Returns the reservation of `port`, whose root exists.
    pub(crate) fn reservation(&self, port: u16) -> Reservation {
        Reservation {
            name: self.name.clone(),
            root: (&self.root).into(),
            port,
            state: ReservationState::Present,
        }
    }

    /// Returns the text whose hash chooses the port.
    pub(crate) fn preference(&self) -> String {
        format!("{}/{}", self.root, self.name)
    }
}

/// Returns `root`, or else the default root directory, as it is written in a reservation:
/// absolute, without symbolic links.
///
/// # Errors
///
/// [`InvalidName`](ErrorKind::InvalidName) if it cannot be used.
pub(crate) fn absolute_root(root: Option<&Path>) -> Result<String> {
    let default;
    let root = match root {
        Some(root) => root,
        None => {
            default = Reservation::default_root()?;
            &default
        }
    };
    let message = || format!("cannot use the root directory {}", root.display());
    let found = match fs::canonicalize(root) {
        // A root that no longer exists is looked up by its path unchanged.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::path::absolute(root).map_err(|error| {
                let message = format!("{} from the current directory", message());
                without_current(message, error)
            })
        }
        found => found.map_err(|error| Error::with_cause(ErrorKind::InvalidName, message(), error)),
    }?;
    let Some(text) = found.to_str() else {
        let message = format!("the root {} is not valid UTF-8", root.display());
        return Err(Error::new(ErrorKind::InvalidName, message));
    };
    // The prefix of a canonical path with a drive letter on Windows is redundant.
    let text = match text.strip_prefix(r"\\?\") {
        Some(short) if short.as_bytes().get(1) == Some(&b':') => short,
        _ => text,
    };
    Ok(text.to_owned())
}

/// Returns the error for a path that depends on the current directory, which cannot be determined.
fn without_current(mut message: String, cause: io::Error) -> Error {
    if cause.kind() == io::ErrorKind::NotFound {
        message += ", which has been removed";
    }
    let hint = "change to another directory, or name the root directory by an absolute path";
    Error::with_cause(ErrorKind::InvalidName, message, cause).with_hint(hint)
}

fn cannot_use(root: &Path, cause: io::Error) -> Error {
    let message = format!("cannot reserve a port for the directory {}", root.display());
    Error::with_cause(ErrorKind::InvalidName, message, cause)
}

fn is_name(name: &str) -> bool {
    let is_rest = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
    name.len() <= MAX_NAME_LEN
        && name.as_bytes().first().is_some_and(u8::is_ascii_lowercase)
        && name.bytes().all(is_rest)
}

/// A directory and the identity of its parent directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Directory {
    pub(crate) path: String,
    parent: String,
}

/// Whether a directory exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    There,
    NotFound,
    Gone,
}

impl Directory {
    /// Returns the directory at `path`, which exists.
    pub(crate) fn existing(path: &str) -> io::Result<Self> {
        if !fs::metadata(path)?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Self {
            path: path.to_owned(),
            parent: identity(Path::new(path).parent()),
        })
    }

    /// Returns the directory at `path`, in a form that is never proven to be gone.
    pub(crate) fn never_gone(path: &str) -> Self {
        Self {
            path: path.to_owned(),
            parent: UNKNOWN.to_owned(),
        }
    }

    /// Returns whether it exists, or is proven to be gone: nothing is at its path, but the
    /// parent directory is the recorded one. If a disk is not mounted, or a different disk is, the parent
    /// is a different directory.
    pub(crate) fn presence(&self) -> Presence {
        let path = Path::new(&self.path);
        let is_above = || !self.parent.contains(UNKNOWN) && identity(path.parent()) == self.parent;
        // Checked before and after, because it may be mounted in between.
        let was_above = is_above();
        match fs::symlink_metadata(path) {
            Ok(_) => Presence::There,
            Err(error) if error.kind() == io::ErrorKind::NotFound && was_above && is_above() => {
                Presence::Gone
            }
            Err(_) => Presence::NotFound,
        }
    }

    /// Returns the words of a line: the path and the identity of the parent.
    pub(crate) fn words(&self) -> String {
        format!("{} {}", encode(&self.path), self.parent)
    }

    /// Parses these words.
    pub(crate) fn parse<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Self> {
        let path = String::from_utf8(owner::decode_bytes(words.next()?)).ok()?;
        let parent = words.next()?.to_owned();
        Path::new(&path)
            .is_absolute()
            .then_some(Self { path, parent })
    }
}

/// Returns the identity of a directory, which no other one has at the same path. The creation
/// time distinguishes the root directories of disks, which have the same inode.
fn identity(dir: Option<&Path>) -> String {
    let Some(Ok((inode, created))) = dir.map(inode_and_creation) else {
        return UNKNOWN.to_owned();
    };
    match created.and_then(|time| time.duration_since(UNIX_EPOCH).ok()) {
        Some(created) => format!("{inode}.{}", created.as_nanos()),
        None => format!("{inode}.{UNKNOWN}"),
    }
}

/// The line of a reservation, as it is in a lock file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    name: String,
    root: Directory,
}

/// The text after the owner record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Line(Line),
    Unreadable,
}

impl Line {
    /// Returns the line of a new reservation.
    ///
    /// # Errors
    ///
    /// [`InvalidName`](ErrorKind::InvalidName) if the root is not a directory, or too long.
    pub(crate) fn new(key: &Key) -> Result<Self> {
        let root = Path::new(&key.root);
        let line = Self {
            name: key.name.clone(),
            root: Directory::existing(&key.root).map_err(|error| cannot_use(root, error))?,
        };
        if OFFSET + line.text().len() > MAX_FILE_LEN {
            let message = format!("the path of the root {} is too long", root.display());
            return Err(Error::new(ErrorKind::InvalidName, message));
        }
        Ok(line)
    }

    /// Returns the text to write, including the newline.
    pub(crate) fn text(&self) -> String {
        format!("{WORD} {} {}\n", self.name, self.root.words())
    }

    /// Parses the line at the beginning of `bytes`.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().position(|&byte| byte == b'\n')?;
        let mut words = str::from_utf8(&bytes[..end]).ok()?.split_ascii_whitespace();
        if words.next()? != WORD {
            return None;
        }
        let name = words.next().filter(|name| is_name(name))?.to_owned();
        let root = Directory::parse(&mut words)?;
        Some(Self { name, root })
    }

    pub(crate) fn is_of(&self, key: &Key) -> bool {
        self.name == key.name && self.root.path == key.root
    }

    /// Returns whether both use the same environment variable, so that a command cannot get both.
    pub(crate) fn shares_variable_with(&self, key: &Key) -> bool {
        !self.is_of(key)
            && self.root.path == key.root
            && variable(&self.name) == variable(&key.name)
    }

    pub(crate) fn key(&self) -> Key {
        Key {
            name: self.name.clone(),
            root: self.root.path.clone(),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns whether the reservation counts.
    pub(crate) fn counts(&self) -> bool {
        self.root.presence() != Presence::Gone
    }
}

impl Found {
    /// Parses the text in a lock file after the owner record. Returns `None` if there is none.
    pub(crate) fn parse(file: &[u8]) -> Option<Self> {
        let behind = file.get(OFFSET..).filter(|behind| !behind.is_empty())?;
        let is_line = behind.starts_with(BEGINNING) || BEGINNING.starts_with(behind);
        is_line.then(|| Line::parse(behind).map_or(Self::Unreadable, Self::Line))
    }

    pub(crate) fn counts(&self) -> bool {
        match self {
            Self::Line(line) => line.counts(),
            Self::Unreadable => true,
        }
    }

    pub(crate) fn is_of(&self, key: &Key) -> bool {
        matches!(self, Self::Line(line) if line.is_of(key))
    }

    /// Returns the reservation of `port`.
    pub(crate) fn reservation(self, port: u16) -> Reservation {
        match self {
            Self::Line(line) => Reservation {
                state: match line.root.presence() {
                    Presence::There => ReservationState::Present,
                    Presence::NotFound => ReservationState::RootNotFound,
                    Presence::Gone => ReservationState::RootGone,
                },
                name: line.name,
                root: line.root.path.into(),
                port,
            },
            Self::Unreadable => Reservation {
                name: String::new(),
                root: PathBuf::new(),
                port,
                state: ReservationState::Unreadable,
            },
        }
    }
}

/// Escapes a path like the texts of an owner record.
fn encode(path: &str) -> String {
    let mut encoded = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            encoded += &format!("%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns whether a directory is still recognized after something was removed from it. Wine reports
    /// the time of the last change as the creation time, and so never proves anything.
    fn is_proof(before: &str, dir: &Path) -> bool {
        let is_recognized = identity(Some(dir)) == before;
        assert!(is_recognized || cfg!(windows));
        is_recognized
    }

    fn file(behind: &[u8]) -> Vec<u8> {
        [&[b' '; OFFSET][..], behind].concat()
    }

    #[test]
    fn a_line_is_parsed_as_it_was_written() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for name in ["shop", "a b", "100%", "größe", "line\nbreak"] {
            let root = dir.path().join(name);
            if fs::create_dir(&root).is_err() {
                continue; // Not a name on this system.
            }
            let key = Key::new("web", Some(&root)).expect("a directory");
            let line = Line::new(&key).expect("a directory");
            let text = line.text();
            assert!(text.is_ascii() && text.ends_with('\n'), "{text}");
            assert_eq!(text.split(' ').count(), 4, "{text}");
            let found = Found::parse(&file(text.as_bytes())).expect("a line");
            assert_eq!(found, Found::Line(line));
            assert!(found.is_of(&key) && found.counts());
            let before = identity(Some(dir.path()));
            fs::remove_dir(&root).expect("our own");
            assert_eq!(found.counts(), !is_proof(&before, dir.path()));
            for torn in 1..text.len() {
                let found = Found::parse(&file(&text.as_bytes()[..torn]));
                assert_eq!(found, Some(Found::Unreadable), "{torn}");
            }
        }
    }

    #[test]
    fn a_path_is_written_unchanged_except_for_control_characters() {
        let key = |root: &str| Key {
            name: "web".to_owned(),
            root: root.to_owned(),
        };
        for path in [r"C:\Users\ada\shop", "/home/ada's \"größe\"", "/a b"] {
            assert_eq!(key(path).to_string(), format!("as web in {path}"));
            assert_eq!(key(path).reservation(1).to_string(), key(path).to_string());
        }
        let text = key("/a\u{1b}[31m\nb").to_string();
        assert_eq!(text, r"as web in /a\u{1b}[31m\nb");
    }

    #[test]
    fn only_text_that_begins_like_a_line_reserves_the_port() {
        for nothing in [
            &b""[..],
            b"\0\0\0",
            b"held 812 1 - 1 a b\n",
            b"reservedly\n",
            b"%%%%",
        ] {
            assert_eq!(Found::parse(&file(nothing)), None, "{nothing:?}");
        }
        assert_eq!(Found::parse(b"reserved web /x 1.2\n"), None, "too near");
        for broken in [
            &b"reserved \n"[..],
            b"reserved Web /x 1.2\n",
            b"reserved web x 1.2\n",
            b"reserved web /x\n",
            b"reserved web /%FF 1.2\n",
            b"reserved web /x 1.2",
        ] {
            let found = Found::parse(&file(broken)).expect("it begins like one");
            assert_eq!(found, Found::Unreadable, "{broken:?}");
            assert!(found.counts());
        }
    }

    #[test]
    fn only_the_parent_directory_proves_that_a_root_is_gone() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let root = parent.path().join("shop");
        fs::create_dir(&root).expect("our own");
        let text = root.to_str().expect("UTF-8");
        let there = Directory::existing(text).expect("a directory");
        assert_eq!(there.presence(), Presence::There);
        let with = |parent: &str| Directory {
            path: text.to_owned(),
            parent: parent.to_owned(),
        };
        fs::remove_dir(&root).expect("our own");
        let gone = match is_proof(&there.parent, parent.path()) {
            true => Presence::Gone,
            false => Presence::NotFound,
        };
        assert_eq!(there.presence(), gone);
        for unknown in ["-", "-.-", "1.-", "1.2", ""] {
            assert_eq!(with(unknown).presence(), Presence::NotFound, "{unknown}");
        }
        // If the system reports no creation time, nothing is proven.
        let inode_alone = there.parent.split('.').next().expect("a word").to_owned() + ".-";
        assert_eq!(with(&inode_alone).presence(), Presence::NotFound);
        // Another directory at the same path, as on another disk.
        let elsewhere = parent.path().with_extension("elsewhere");
        fs::rename(parent.path(), &elsewhere).expect("our own");
        assert_eq!(there.presence(), Presence::NotFound);
        // NTFS reuses the creation time of a removed directory with the same name for some seconds.
        if cfg!(unix) {
            fs::create_dir(parent.path()).expect("our own");
            assert_eq!(there.presence(), Presence::NotFound);
            fs::remove_dir(parent.path()).expect("our own");
        }
        fs::rename(&elsewhere, parent.path()).expect("our own");
        assert_eq!(there.presence(), gone);
    }
}
