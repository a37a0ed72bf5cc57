//! The owner record: who holds a lease, for people to read.
//!
//! A lock file begins with one line of [`LEN`] bytes of ASCII, padded with spaces:
//!
//! ```text
//! held 812 8123456 6e1f7a4e-0c55-4f3e-a1d0-3e9b3c1f0a77 1763683200 orders-test api%20under%20test
//! ```
//!
//! kind, pid, start time of that process (clock ticks since boot, field 22 of
//! proc_pid_stat(5)), boot id, time of the lease (seconds since 1970), program,
//! label. What is unknown or absent is `-`; in program and label every byte
//! outside printable ASCII, the space and `%` are written as `%XX`.
//!
//! The record only informs. The lock is the truth: a file that nobody has
//! locked is a free port, whatever its record says. That is why it can be
//! overwritten in place and never truncated, and why a torn or foreign record
//! does no harm.

use std::{
    borrow::Cow,
    ffi::OsStr,
    fmt::{self, Write as _},
    fs,
    os::unix::ffi::OsStrExt,
    path::Path,
    str,
    sync::OnceLock,
    time::{SystemTime, UNIX_EPOCH},
};

/// The length of an owner record in bytes, newline included.
pub(crate) const LEN: usize = 256;

/// Of the program's name at most this many encoded bytes are kept; the label
/// has what is left of the line, about 110.
const PROGRAM_MAX: usize = 48;

const HELD: &str = "held";
const UNKNOWN: &str = "-";

/// What a record says of the process that holds a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) pid: u32,
    pub(crate) program: Option<String>,
    pub(crate) label: Option<String>,
}

/// `pid 812 "orders-test" (api under test)`, with nothing in it that a
/// terminal would obey.
impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {}", self.pid)?;
        if let Some(program) = &self.program {
            write!(f, " \"{}\"", program.escape_debug())?;
        }
        if let Some(label) = &self.label {
            write!(f, " ({})", label.escape_debug())?;
        }
        Ok(())
    }
}

/// The record of a lease that the process `pid`, the caller's own, holds from now on.
pub(crate) fn record(pid: u32, label: Option<&str>) -> [u8; LEN] {
    let own = this_process(pid);
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let mut line = Line::new();
    // A line that is full keeps what it has: the label comes last, and only
    // program and label are of any length.
    let _ = write!(line, "{HELD} {pid} {} {since} ", own.start_and_boot);
    line.push_encoded(own.program.as_bytes(), PROGRAM_MAX);
    let _ = line.write_str(" ");
    line.push_encoded(label.unwrap_or_default().as_bytes(), LEN);
    line.finish()
}

/// Reads a record back, or nothing where there is none that makes sense.
pub(crate) fn parse(record: &[u8]) -> Option<Owner> {
    let line = record.split(|&byte| byte == b'\n').next()?;
    let line = str::from_utf8(line).ok()?;
    let mut fields = line.split_ascii_whitespace();
    if fields.next()? != HELD {
        return None;
    }
    let pid = fields.next()?.parse().ok()?;
    let (_start, _boot, _since) = (fields.next()?, fields.next()?, fields.next()?);
    let mut text = || fields.next().filter(|&text| text != UNKNOWN).map(decode);
    Some(Owner {
        pid,
        program: text(),
        label: text(),
    })
}

/// What a record says of this process, apart from its pid.
#[derive(Clone)]
struct Process {
    start_and_boot: String,
    program: String,
}

/// Read once per process: the two files in /proc would cost more than the
/// whole rest of a lease. A forked child, told by its pid, reads its own.
fn this_process(pid: u32) -> Cow<'static, Process> {
    static FIRST: OnceLock<(u32, Process)> = OnceLock::new();
    let (first_pid, first) = FIRST.get_or_init(|| (pid, read_this_process()));
    if *first_pid == pid {
        Cow::Borrowed(first)
    } else {
        Cow::Owned(read_this_process())
    }
}

fn read_this_process() -> Process {
    let start = fs::read("/proc/self/stat").ok();
    let start = start.as_deref().and_then(start_time);
    let start = start.map_or_else(|| UNKNOWN.to_owned(), |ticks| ticks.to_string());
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let boot = match boot.trim() {
        id if id.len() == 36 && id.is_ascii() => id,
        _ => UNKNOWN,
    };
    let program = std::env::args_os().next().unwrap_or_default();
    let program = Path::new(&program).file_name().unwrap_or(OsStr::new(""));
    let mut encoded = Line::new();
    encoded.push_encoded(program.as_bytes(), PROGRAM_MAX);
    Process {
        start_and_boot: format!("{start} {boot}"),
        program: decode(encoded.text()),
    }
}

/// The start time in clock ticks since boot out of `/proc/<pid>/stat`. The
/// program's name before it may itself contain spaces and parentheses.
fn start_time(stat: &[u8]) -> Option<u64> {
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    let after_name = str::from_utf8(&stat[name_end + 1..]).ok()?;
    // Field 3 is the first one after the name.
    after_name
        .split_ascii_whitespace()
        .nth(22 - 3)?
        .parse()
        .ok()
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

    fn text(&self) -> &str {
        str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
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
            let digits = str::from_utf8(digits).ok()?;
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

    fn line(record: &[u8; LEN]) -> &str {
        assert_eq!(record[LEN - 1], b'\n');
        assert!(!record[..LEN - 1].contains(&b'\n'));
        str::from_utf8(record).expect("ASCII")
    }

    #[test]
    fn a_record_names_this_process() {
        let pid = std::process::id();
        let record = record(pid, Some("api under test"));
        let fields: Vec<&str> = line(&record).split_ascii_whitespace().collect();
        assert_eq!(fields.len(), 7, "{fields:?}");
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("Linux has /proc");
        let (_, after_name) = stat.rsplit_once(") ").expect("a name in parentheses");
        let start = after_name.split(' ').nth(19).expect("field 22");
        assert_eq!((fields[0], fields[2]), ("held", start));
        assert_eq!(fields[3].len(), 36);
        assert_eq!(fields[6], "api%20under%20test");

        let owner = parse(&record).expect("our own record");
        assert_eq!(owner.pid, pid);
        assert_eq!(owner.label.as_deref(), Some("api under test"));
        assert!(owner.program.is_some_and(|name| name.contains("portlock")));
    }

    #[test]
    fn labels_of_any_kind_come_back_or_are_cut() {
        for label in ["-", "--", "%", "%41", "a b\nheld 1", "größe", "\u{1b}[31m"] {
            let record = record(1, Some(label));
            line(&record);
            let owner = parse(&record).expect("a record");
            assert_eq!(owner.label.as_deref(), Some(label));
        }
        for none in [None, Some("")] {
            assert_eq!(parse(&record(1, none)).expect("a record").label, None);
        }
        let long = "ß".repeat(1000);
        let owner = parse(&record(1, Some(&long))).expect("a record");
        let kept = owner.label.expect("a label");
        assert!(kept.chars().filter(|&c| c == 'ß').count() > 10);
    }

    #[test]
    fn foreign_and_torn_records_are_no_owner() {
        for bytes in [
            &b""[..],
            b"\n",
            b"812",
            b"held",
            b"held x 1 - 1 a b",
            b"held 99999999999 1 - 1 a b",
            b"held 812 1 -",
            b"\xff\xfe",
            &[0; LEN],
            &[b'%'; 4096],
        ] {
            assert_eq!(parse(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn a_hostile_record_cannot_drive_the_terminal() {
        let owner = parse(b"held 7 - - - a%1B]0;x%07 b%0Ac\n").expect("readable");
        assert!(!owner.to_string().chars().any(char::is_control));
    }

    #[test]
    fn start_time_is_found_behind_any_program_name() {
        let stat = b"7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21";
        assert_eq!(start_time(stat), Some(4242));
        assert_eq!(start_time(b"7 (a) S 1"), None);
        assert_eq!(start_time(b""), None);
    }
}
