//! The owner record: which process holds a lease.
//!
//! A lock file begins with one line of [`LEN`] bytes of ASCII, padded with spaces:
//!
//! ```text
//! held 812 8123456 4026531836 1763683200 orders-test api%20tests
//! ```
//!
//! * kind: `held`, `passed` or `delegated`;
//! * pid, start time and pid namespace of the process that the lease belongs to. The start time
//!   is in clock ticks since boot on Linux, in microseconds since 1970 on macOS, in units of 100 ns
//!   since 1601 on Windows. The pid is valid in that namespace, which is that of the process that
//!   wrote the record;
//! * when the lease began, in seconds since 1970;
//! * program and label, in which every byte outside printable ASCII, the space
//!   and `%` are written as `%XX`.
//!
//! `-` stands for an unknown or absent value. Text after these fields is ignored, and a line that
//! does not begin like this is not a record.
//!
//! The record of a *held* lease is informative only. The lock decides: if no process has locked
//! the file, the port is free, whatever such a record says. That is why it can be overwritten in
//! place without truncation, and why a stale, torn or foreign record is harmless.
//!
//! A *delegated* lease has no lock. It lasts until the process in its record is proven to have
//! ended. Until then, a caller that gets the lock of such a file must release it again.
//!
//! A *passed* lease has both: the process inherited the lock, and if it can be determined that
//! this process is alive, its record also keeps the port leased, so that a command that closes
//! inherited descriptors keeps its port. If that cannot be determined, the lock decides.
//!
//! Records that count without a lock are longer, [`LONG_LEN`] bytes, and written under the lock.
//! A caller knows the length of a file anyway, from counting its links, so a short file needs no
//! reading.
//!
//! On Windows the record is in a separate file, because a lock keeps other processes from reading
//! the locked file (see `lock/windows.rs`).

use std::{
    cell::RefCell,
    fmt, io,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{
    clock::since_1970,
    mark::Mark,
    process::{self, Evidence, Identity, NamedProcess},
};

/// Length in bytes of the record of a held lease, including the newline.
pub(crate) const LEN: usize = 256;

/// Length in bytes of a record that counts without a lock. A shorter record was not written
/// completely and does not count.
pub(crate) const LONG_LEN: usize = 512;

/// Returns whether a lock file of this length in bytes may have a record that counts without a
/// lock.
pub(crate) fn may_count(len: usize) -> bool {
    len >= LONG_LEN
}

/// Largest number of encoded bytes of the program's name; the label gets the rest of the line,
/// about 100.
const PROGRAM_MAX: usize = 48;

const UNKNOWN: &str = "-";

/// How a lease is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// By the lock, held by the process in the record.
    Held,
    /// By the lock, which the process in the record inherited, and by the record.
    Passed,
    /// By the record alone, for the process in it.
    Delegated,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Passed => "passed",
            Self::Delegated => "delegated",
        }
    }
}

/// The process that a lease belongs to, according to its owner record.
///
/// For a held lease, this is only what its holder wrote: the lock decides. Messages contain it
/// with control characters escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub(crate) kind: Kind,
    pub(crate) process: Identity,
    since: Option<u64>,
    program: Option<String>,
    label: Option<String>,
}

impl Owner {
    /// Returns the pid of the process, in its own pid namespace.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid
    }

    /// Returns the file name of the process's program.
    #[must_use]
    pub fn program(&self) -> Option<&str> {
        self.program.as_deref()
    }

    /// Returns the purpose of the lease: its [`Builder::label`](crate::Builder::label).
    #[must_use]
    pub fn label(&self) -> Option<&str> {
        self.label.as_deref()
    }

    /// Returns when the lease began, to the second.
    #[must_use]
    pub fn since(&self) -> Option<SystemTime> {
        UNIX_EPOCH.checked_add(Duration::from_secs(self.since?))
    }

    /// Returns whether this record keeps the port leased even if no process has the lock.
    ///
    /// # Errors
    ///
    /// If the system fails to report whether the process is alive.
    pub(crate) fn keeps_the_port(&self) -> io::Result<bool> {
        Ok(match self.kind {
            Kind::Held => false,
            // If the process cannot be seen, it has ended and the kernel ended the lock, or it
            // has closed what it inherited. A container that ends must not keep its ports.
            Kind::Passed => matches!(self.process.evidence()?, Evidence::Alive(_)),
            // It is better to withhold a port than to give it out twice.
            Kind::Delegated => self.process.evidence()? != Evidence::Gone,
        })
    }

    /// Parses a record from the first [`LONG_LEN`] bytes of the file. Returns `None` if they
    /// contain no valid record.
    pub(crate) fn parse(record: &[u8]) -> Option<Self> {
        let is_long = may_count(record.len());
        let line = record.split(|&byte| byte == b'\n').next()?;
        let line = std::str::from_utf8(line).ok()?;
        let mut words = line.split_ascii_whitespace();
        let word = words.next()?;
        let mut kinds = [Kind::Held, Kind::Passed, Kind::Delegated].into_iter();
        let kind = kinds.find(|kind| kind.word() == word)?;
        if kind != Kind::Held && !is_long {
            return None;
        }
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

/// Writes text such as `pid 812 "orders-test" (api under test)`.
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

/// The last record of a held lease without a label: it is the same for all leases that a process
/// begins within one second.
struct Last {
    mark: Mark,
    since: u64,
    record: Record<LEN>,
}

/// Passes to `write` the record of a lease that this process, which has this mark, has held since
/// `since`, in seconds since 1970.
#[allow(
    clippy::missing_const_for_thread_local,
    reason = "it is const; a false alarm for windows-gnu"
)]
pub(crate) fn with_held<T>(
    mark: Mark,
    since: u64,
    label: Option<&str>,
    write: impl FnOnce(&Record<LEN>) -> T,
) -> T {
    thread_local! {
        // Per thread, so that it need be neither locked nor copied.
        static LAST: RefCell<Last> = const {
            RefCell::new(Last {
                mark: 0,
                since: 0,
                record: Record::new(),
            })
        };
    }
    let held = |label| {
        let (identity, program) = &*process::this_as(mark);
        Record::complete(Kind::Held, identity, since, program, label)
    };
    if label.is_some() {
        return write(&held(label));
    }
    LAST.with_borrow_mut(|last| {
        if (last.mark, last.since) != (mark, since) {
            let record = held(None);
            *last = Last {
                mark,
                since,
                record,
            };
        }
        write(&last.record)
    })
}

/// Returns the record of a lease that belongs to the given process from now on. Its kind
/// determines how it counts without a lock.
pub(crate) fn of_process(
    kind: Kind,
    (identity, program): &NamedProcess,
    label: Option<&str>,
) -> Record<LONG_LEN> {
    let since = since_1970().as_secs();
    Record::complete(kind, identity, since, program, label)
}

/// Returns a line that is not a record.
pub(crate) fn nobody() -> Record<LEN> {
    Record::new()
}

/// A record in its written form, also during construction: never longer than allowed, and on the
/// stack.
///
/// Text that does not fit is omitted: the label comes last, and only program and label have
/// variable lengths.
pub(crate) struct Record<const MAX: usize> {
    bytes: [u8; MAX],
    len: usize,
}

impl<const MAX: usize> Record<MAX> {
    const fn new() -> Self {
        let mut bytes = [b' '; MAX];
        bytes[MAX - 1] = b'\n';
        Self { bytes, len: 0 }
    }

    /// Returns the whole line, as it is in the file.
    pub(crate) fn bytes(&self) -> &[u8; MAX] {
        &self.bytes
    }

    fn complete(
        kind: Kind,
        identity: &Identity,
        since: u64,
        program: &[u8],
        label: Option<&str>,
    ) -> Self {
        let mut record = Self::new();
        record.push(&format!("{} {identity} {since} ", kind.word()));
        record.push_encoded(program, PROGRAM_MAX);
        record.push(" ");
        record.push_encoded(label.unwrap_or_default().as_bytes(), LEN);
        record
    }

    /// Appends `text` if there is room for all of it.
    fn push(&mut self, text: &str) {
        // The last byte is reserved for the newline.
        let room = &mut self.bytes[self.len..MAX - 1];
        if let Some(room) = room.get_mut(..text.len()) {
            room.copy_from_slice(text.as_bytes());
            self.len += text.len();
        }
    }

    /// Appends at most `max` bytes of `text`, percent-encoded, or `-` if it is empty.
    fn push_encoded(&mut self, text: &[u8], max: usize) {
        let end = LEN.min(self.len + max + 1);
        if text.is_empty() {
            self.push(UNKNOWN);
        }
        let mut character = self.len;
        for &byte in text {
            // In UTF-8, these bits mark all bytes of a character but the first, and a character
            // has at most 4 bytes.
            if byte & 0xC0 != 0x80 || self.len - character >= 4 * 3 {
                character = self.len;
            }
            // A text that is only "-" must not read as an absent value.
            let plain = byte.is_ascii_graphic() && byte != b'%' && text != b"-";
            if self.len + if plain { 1 } else { 3 } >= end {
                // Keep only whole characters.
                self.bytes[character..self.len].fill(b' ');
                self.len = character;
                break;
            }
            if plain {
                self.push(char::from(byte).encode_utf8(&mut [0; 4]));
            } else {
                self.push(&format!("%{byte:02X}"));
            }
        }
    }
}

/// Decodes percent-encoding. Invalid UTF-8 becomes U+FFFD.
fn decode(text: &str) -> String {
    String::from_utf8_lossy(&decode_bytes(text)).into_owned()
}

/// Decodes percent-encoding. Anything that is not an escape is kept.
pub(crate) fn decode_bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let digit = |at: usize| char::from(*after.get(at)?).to_digit(16);
        let escaped = digit(0).zip(digit(1));
        match escaped {
            Some((high, low)) if byte == b'%' => {
                bytes.push((high << 4 | low) as u8);
                rest = &after[2..];
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mark;

    fn held_now(label: Option<&str>) -> [u8; LEN] {
        let since = since_1970().as_secs();
        with_held(mark::current(), since, label, |record| *record.bytes())
    }

    fn line(record: &[u8]) -> &str {
        let (last, rest) = record.split_last().expect("not empty");
        assert_eq!(*last, b'\n');
        assert!(!rest.contains(&b'\n'));
        str::from_utf8(record).expect("ASCII")
    }

    fn owner(record: &[u8]) -> Owner {
        Owner::parse(record).expect("a record")
    }

    #[test]
    fn a_record_names_this_process() {
        let record = held_now(Some("api under test"));
        let fields: Vec<&str> = line(&record).split_ascii_whitespace().collect();
        assert_eq!(fields.len(), 7, "{fields:?}");
        assert_eq!((fields[0], fields[6]), ("held", "api%20under%20test"));

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

    /// Returns a full-length record of that kind that names the process in `words`.
    fn long(kind: &str, process: &str) -> Vec<u8> {
        let record = format!("{kind} {process} 1763683200 - -\n");
        format!("{record:LONG_LEN$}").into_bytes()
    }

    #[test]
    fn a_record_counts_without_a_lock_as_its_kind_does() {
        let keeps = |record: &[u8]| owner(record).keeps_the_port().expect("seen");
        let this = NamedProcess::clone(&process::this());
        assert!(!keeps(&held_now(None)));
        for kind in [Kind::Passed, Kind::Delegated] {
            let ours = owner(of_process(kind, &this, Some("x")).bytes());
            assert!(ours.keeps_the_port().expect("seen"), "{kind:?}");
            assert_eq!((&ours.process, ours.label()), (&this.0, Some("x")));
        }
        // With pid namespaces, an unknown or hidden namespace.
        let hides = cfg!(target_os = "linux");
        for (process, passed, delegated) in [
            // No process has this pid, and none can.
            (
                "8388608 1 4026531836",
                false,
                hides && !in_first_namespace(),
            ),
            ("8388608 1 -", false, hides),
            (&format!("{} - -", this.0.pid), !hides, true),
        ] {
            let (kept, long_kept) = (long("passed", process), long("delegated", process));
            assert_eq!(
                (keeps(&kept), keeps(&long_kept)),
                (passed, delegated),
                "{process}"
            );
            for record in [kept, long_kept] {
                assert_eq!(Owner::parse(&record[..LONG_LEN - 1]), None, "torn");
            }
        }
        assert_eq!(Owner::parse(nobody().bytes()), None);
    }

    fn in_first_namespace() -> bool {
        process::this().0.namespace == Some(4_026_531_836)
    }

    #[test]
    fn labels_of_any_kind_are_returned_or_cut() {
        for label in [
            "-",
            "--",
            "%",
            "%41",
            "%+4",
            "a b\nheld 1",
            "größe",
            "\u{1b}[31m",
        ] {
            let record = held_now(Some(label));
            line(&record);
            assert_eq!(owner(&record).label(), Some(label));
        }
        for none in [None, Some("")] {
            assert_eq!(owner(&held_now(none)).label(), None);
        }
        for long in ["ß".repeat(1000), format!("x{}", "🦀".repeat(1000))] {
            let record = owner(&held_now(Some(&long)));
            let kept = record.label().expect("a label");
            assert!(long.starts_with(kept) && kept.len() > 20, "{kept}");
        }
    }

    /// Returns what a record keeps of a program with this name and of a label.
    fn kept(program: &[u8], label: &str) -> (String, String) {
        let process = process::this().0.clone();
        let record = of_process(Kind::Held, &(process, program.to_vec()), Some(label));
        let owner = owner(record.bytes());
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        (text(owner.program()), text(owner.label()))
    }

    #[test]
    fn a_long_program_leaves_room_for_the_label() {
        let label = "l".repeat(100);
        for len in [PROGRAM_MAX - 1, PROGRAM_MAX, PROGRAM_MAX + 1, 1000] {
            let (program, of_label) = kept("p".repeat(len).as_bytes(), &label);
            assert_eq!(program.len(), len.min(PROGRAM_MAX));
            assert_eq!(of_label, label);
        }
        // All bytes except the newline are used.
        let record = held_now(Some(&"l".repeat(1000)));
        assert!(record[..LEN - 1].ends_with(b"l"));
    }

    #[test]
    fn text_is_cut_between_characters_and_nowhere_else() {
        // Each is encoded as 12 bytes.
        for before in 0..12 {
            let text = "x".repeat(before) + &"🦀".repeat(10);
            let (program, _) = kept(text.as_bytes(), "");
            assert!(text.starts_with(&program), "{program}");
            assert_eq!(
                program.chars().count(),
                before + (PROGRAM_MAX - before) / 12
            );
        }
        // Invalid UTF-8, all of which could belong to one character.
        let (program, _) = kept(&[0x80; 1000], "");
        assert_eq!(program.chars().count(), PROGRAM_MAX / 3);
    }

    #[test]
    fn text_that_does_not_fit_into_a_record_is_omitted() {
        let mut record = Record::<8>::new();
        record.push("1234");
        record.push("5678");
        record.push("567");
        record.push("8");
        assert_eq!(record.bytes(), b"1234567\n");
    }

    #[test]
    fn foreign_and_torn_records_name_no_owner() {
        for bytes in [
            &b""[..],
            b"\n",
            b"812",
            b"held",
            b"held x 1 - 1 a b",
            b"held 99999999999 1 - 1 a b",
            b"held 812 1 -",
            b"borrowed 812 1 - 1 a b",
            b"\xff\xfe",
            &[0; LEN],
            &[b'%'; 4096],
        ] {
            assert_eq!(Owner::parse(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn text_that_is_not_an_escape_is_kept() {
        let owner = owner(b"held 7 - - - %+F%4%zz%-1% %41%c3%9F");
        assert_eq!(owner.program(), Some("%+F%4%zz%-1%"));
        assert_eq!(owner.label(), Some("Aß"));
    }

    #[test]
    fn a_hostile_record_cannot_inject_escape_sequences() {
        let owner = owner(b"held 7 - - - a%1B]0;x%07 b%0Ac\n");
        let text = owner.to_string();
        assert!(!text.chars().any(char::is_control));
        assert_eq!(text, r#"pid 7 "a\u{1b}]0;x\u{7}" (b\nc)"#);
    }
}
