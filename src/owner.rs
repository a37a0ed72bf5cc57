//! The owner record: who holds a lease.
//!
//! A lock file begins with one line of [`LEN`] bytes of ASCII, padded with spaces:
//!
//! ```text
//! held 812 8123456 6e1f7a4e-0c55-4f3e-a1d0-3e9b3c1f0a77 4026531836 1763683200 orders-test api%20tests
//! ```
//!
//! * kind: `held` or `delegated`;
//! * pid, start time in clock ticks since boot, boot id and pid namespace of the
//!   process that the lease belongs to;
//! * when the lease began, in seconds since 1970;
//! * program and label, in which every byte outside printable ASCII, the space
//!   and `%` are written as `%XX`.
//!
//! What is unknown or absent is `-`. Whatever follows these fields is to be
//! ignored, and a line that does not begin like this is no record.
//!
//! The record of a *held* lease only informs. The lock is the truth: a file that
//! nobody has locked is a free port, whatever such a record says. That is why it
//! can be overwritten in place and never truncated, and why a stale, torn or
//! foreign record does no harm.
//!
//! A *delegated* lease has no lock. It lives as long as the process in its
//! record, and whoever gets the lock of such a file must let go of it again
//! while that process lives, or may live. It is written under the lock.

use std::{
    fmt::{self, Write as _},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::process::{self, Identity, Liveness};

/// The length of an owner record in bytes, newline included.
pub(crate) const LEN: usize = 256;

/// Of the program's name at most this many encoded bytes are kept; the label
/// has what is left of the line, about 100.
const PROGRAM_MAX: usize = 48;

const UNKNOWN: &str = "-";

/// How a lease is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// By the lock, for the process that has it.
    Held,
    /// By the record alone, for the process that it names.
    Delegated,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Delegated => "delegated",
        }
    }
}

/// Whom a lease belongs to, as its owner record says.
///
/// For a lease that is held this is only what its holder wrote: the lock
/// decides. In messages nothing of it can drive a terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub(crate) kind: Kind,
    pub(crate) process: Identity,
    since: Option<u64>,
    program: Option<String>,
    label: Option<String>,
}

impl Owner {
    /// The process, by its pid in its own pid namespace.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid
    }

    /// The file name of the process's program.
    #[must_use]
    pub fn program(&self) -> Option<&str> {
        self.program.as_deref()
    }

    /// What the lease is for: the [`Builder::label`](crate::Builder::label).
    #[must_use]
    pub fn label(&self) -> Option<&str> {
        self.label.as_deref()
    }

    /// When the lease began, to the second.
    #[must_use]
    pub fn since(&self) -> Option<SystemTime> {
        UNIX_EPOCH.checked_add(Duration::from_secs(self.since?))
    }

    /// Whether this record alone keeps the port leased.
    ///
    /// A process that cannot be seen from here counts as alive: exclusive comes
    /// before available.
    pub(crate) fn is_delegated_to_the_living(&self) -> bool {
        self.kind == Kind::Delegated && self.process.liveness() != Liveness::Gone
    }

    /// Reads a record, or nothing where there is none that makes sense.
    pub(crate) fn parse(record: &[u8]) -> Option<Self> {
        let line = record.split(|&byte| byte == b'\n').next()?;
        let line = std::str::from_utf8(line).ok()?;
        let mut words = line.split_ascii_whitespace();
        let word = words.next()?;
        let mut kinds = [Kind::Held, Kind::Delegated].into_iter();
        let kind = kinds.find(|kind| kind.word() == word)?;
        let process = Identity::parse(&mut words)?;
        let since = words.next()?.parse().ok();
        let mut text = || words.next().filter(|&text| text != UNKNOWN).map(decode);
        Some(Self {
            kind,
            process,
            since,
            program: text(),
            label: text(),
        })
    }
}

/// `pid 812 "orders-test" (api under test)`.
impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {}", self.process.pid)?;
        if let Some(program) = &self.program {
            write!(f, " \"{}\"", program.escape_debug())?;
        }
        if let Some(label) = &self.label {
            write!(f, " ({})", label.escape_debug())?;
        }
        Ok(())
    }
}

/// The record of a lease that this process, `pid`, holds from now on.
pub(crate) fn held(pid: u32, label: Option<&str>) -> [u8; LEN] {
    let this = process::this_as(pid);
    let (identity, program) = &*this;
    record(Kind::Held, identity, program, label)
}

/// The record of a lease that lives from now on as long as the given process.
pub(crate) fn delegated(identity: &Identity, program: &[u8], label: Option<&str>) -> [u8; LEN] {
    record(Kind::Delegated, identity, program, label)
}

/// A line that is no record.
pub(crate) fn nobody() -> [u8; LEN] {
    Line::new().finish()
}

fn record(kind: Kind, identity: &Identity, program: &[u8], label: Option<&str>) -> [u8; LEN] {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let mut line = Line::new();
    // A line that is full keeps what it has: the label comes last, and only
    // program and label are of any length.
    let _ = write!(line, "{} {identity} {since} ", kind.word());
    line.push_encoded(program, PROGRAM_MAX);
    let _ = line.write_str(" ");
    line.push_encoded(label.unwrap_or_default().as_bytes(), LEN);
    line.finish()
}

/// The record while it is written: never longer than it may be, and on the stack.
struct Line {
    bytes: [u8; LEN],
    len: usize,
}

impl Line {
    fn new() -> Self {
        Self {
            bytes: [b' '; LEN],
            len: 0,
        }
    }

    /// Appends `text` percent-encoded, or `-` for none, but no more than `max` bytes.
    fn push_encoded(&mut self, text: &[u8], max: usize) {
        let end = LEN.min(self.len + max + 1);
        if text.is_empty() {
            let _ = self.write_str(UNKNOWN);
        }
        for &byte in text {
            // A text that is just "-" must not read as none.
            let plain = byte.is_ascii_graphic() && byte != b'%' && text != b"-";
            if self.len + if plain { 1 } else { 3 } >= end {
                break;
            }
            let _ = if plain {
                self.write_char(char::from(byte))
            } else {
                write!(self, "%{byte:02X}")
            };
        }
    }

    fn finish(mut self) -> [u8; LEN] {
        self.bytes[LEN - 1] = b'\n';
        self.bytes
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // The last byte is the newline's.
        let room = &mut self.bytes[self.len..LEN - 1];
        let room = room.get_mut(..text.len()).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.len += text.len();
        Ok(())
    }
}

/// Undoes the percent-encoding. What is not UTF-8 becomes U+FFFD, what is not
/// an escape stays as it is.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = after.get(..2).and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 16).ok()
        });
        match escaped {
            Some(value) if byte == b'%' => {
                bytes.push(value);
                rest = &after[2..];
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> u32 {
        std::process::id()
    }

    fn line(record: &[u8; LEN]) -> &str {
        assert_eq!(record[LEN - 1], b'\n');
        assert!(!record[..LEN - 1].contains(&b'\n'));
        str::from_utf8(record).expect("ASCII")
    }

    fn owner(record: &[u8]) -> Owner {
        Owner::parse(record).expect("a record")
    }

    #[test]
    fn a_record_names_this_process() {
        let record = held(own(), Some("api under test"));
        let fields: Vec<&str> = line(&record).split_ascii_whitespace().collect();
        assert_eq!(fields.len(), 8, "{fields:?}");
        assert_eq!((fields[0], fields[7]), ("held", "api%20under%20test"));

        let owner = owner(&record);
        assert_eq!(owner.pid(), std::process::id());
        assert_eq!(owner.label(), Some("api under test"));
        assert!(
            owner
                .program()
                .is_some_and(|name| name.contains("portlock"))
        );
        let age = owner.since().expect("now").elapsed().expect("not later");
        assert!(age < Duration::from_secs(60));
    }

    #[test]
    fn only_a_delegated_record_of_a_living_process_counts_by_itself() {
        let (identity, program) = process::this().into_owned();
        assert!(!owner(&held(own(), None)).is_delegated_to_the_living());
        let delegated_to = |identity: &Identity| owner(&delegated(identity, &program, Some("x")));
        let ours = delegated_to(&identity);
        assert!(ours.is_delegated_to_the_living());
        assert_eq!((ours.process.clone(), ours.label()), (identity, Some("x")));
        for (process, counts) in [
            // Nobody has this pid, and nobody can.
            ("8388608 1 - -", false),
            // Of another boot.
            ("1 1 6e1f7a4e-0c55-4f3e-a1d0-3e9b3c1f0a77 -", false),
            // Of a pid namespace that cannot be seen.
            ("1 1 - 1", true),
        ] {
            let record = format!("delegated {process} 1763683200 - -\n");
            assert_eq!(
                owner(record.as_bytes()).is_delegated_to_the_living(),
                counts
            );
        }
        assert_eq!(Owner::parse(&nobody()), None);
    }

    #[test]
    fn labels_of_any_kind_come_back_or_are_cut() {
        for label in ["-", "--", "%", "%41", "a b\nheld 1", "größe", "\u{1b}[31m"] {
            let record = held(own(), Some(label));
            line(&record);
            assert_eq!(owner(&record).label(), Some(label));
        }
        for none in [None, Some("")] {
            assert_eq!(owner(&held(own(), none)).label(), None);
        }
        let long = owner(&held(own(), Some(&"ß".repeat(1000))));
        let kept = long.label().expect("a label");
        assert!(kept.chars().filter(|&c| c == 'ß').count() > 10);
    }

    #[test]
    fn foreign_and_torn_records_are_no_owner() {
        for bytes in [
            &b""[..],
            b"\n",
            b"812",
            b"held",
            b"held x 1 - - 1 a b",
            b"held 99999999999 1 - - 1 a b",
            b"held 812 1 - -",
            b"borrowed 812 1 - - 1 a b",
            b"\xff\xfe",
            &[0; LEN],
            &[b'%'; 4096],
        ] {
            assert_eq!(Owner::parse(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn a_hostile_record_cannot_drive_the_terminal() {
        let owner = owner(b"held 7 - - - - a%1B]0;x%07 b%0Ac\n");
        assert!(!owner.to_string().chars().any(char::is_control));
    }
}
