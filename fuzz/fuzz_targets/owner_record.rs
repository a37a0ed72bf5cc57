//! Reads owner records from any bytes and compares the result with a separate parser;
//! writes records of any process, program and label, and reads them back.

#![no_main]

// Owner records are not public, so their modules are compiled in.
#[allow(dead_code, unused_imports, reason = "only a part is fuzzed")]
#[path = "../../src"]
mod library {
    pub(crate) mod clock;
    pub(crate) mod error;
    pub(crate) mod mark;
    pub(crate) mod owner;
    pub(crate) mod process;
}

use std::time::{Duration, UNIX_EPOCH};

use libfuzzer_sys::fuzz_target;
use library::{clock, error, mark, owner, process};
use owner::{Kind, LEN, LONG_LEN, Owner};
use process::{Identity, Named};

fuzz_target!(|data: &[u8]| {
    check_reading(data);
    // Pad to the length of a long record.
    let mut padded = data.to_vec();
    padded.resize(LONG_LEN.max(data.len()), b' ');
    check_reading(&padded);

    // The input for records to write: parts separated by NUL.
    let mut parts = data.splitn(3, |&byte| byte == 0);
    let identity = parts.next().and_then(read_identity);
    let (program, label) = (parts.next(), parts.next());
    let label = label.and_then(|label| str::from_utf8(label).ok());
    if let (Some(identity), Some(program)) = (identity, program) {
        let process = (identity, program.to_vec());
        for kind in [Kind::Passed, Kind::Delegated] {
            check_long(kind, &process, label);
        }
    }
    check_held(u64::try_from(data.len()).expect("64 bits"), label);
});

/// The fields of a record, according to the documentation of the module.
struct Fields {
    kind: Kind,
    /// Pid, start time and pid namespace, as written.
    identity: [String; 3],
    since: Option<u64>,
    program: Option<String>,
    label: Option<String>,
}

fn check_reading(record: &[u8]) {
    let (owner, fields) = match (Owner::parse(record), read(record)) {
        (None, None) => return,
        (Some(owner), Some(fields)) => (owner, fields),
        (Some(owner), None) => panic!("read as {owner:?}, but it is not a record"),
        (None, Some(_)) => panic!("not read, but it is a record"),
    };
    assert_eq!(owner.kind, fields.kind);
    assert_eq!(owner.process.to_string(), fields.identity.join(" "));
    assert_eq!(owner.pid().to_string(), fields.identity[0]);
    let since = fields.since.map(Duration::from_secs);
    assert_eq!(
        owner.since(),
        since.and_then(|since| UNIX_EPOCH.checked_add(since))
    );
    assert_eq!(owner.program(), fields.program.as_deref());
    assert_eq!(owner.label(), fields.label.as_deref());
    check_message(&owner);
    if fields.kind == Kind::Held {
        assert!(
            matches!(owner.keeps_the_port(), Ok(false)),
            "the lock decides"
        );
    }
}

/// A message must contain no control characters, and none that hide or reorder text.
fn check_message(owner: &Owner) {
    let message = owner.to_string();
    assert!(message.starts_with(&format!("pid {}", owner.pid())));
    let acts = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
            || matches!(c, '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    assert!(!message.contains(acts), "{message:?}");
}

/// Reads a record as documented.
fn read(record: &[u8]) -> Option<Fields> {
    let end = record.iter().position(|&byte| byte == b'\n');
    let line = String::from_utf8(record[..end.unwrap_or(record.len())].to_vec()).ok()?;
    let words: Vec<&str> = line
        .split([' ', '\t', '\r', '\u{c}'])
        .filter(|word| !word.is_empty())
        .collect();
    let &[kind, pid, start, namespace, since, ref texts @ ..] = &words[..] else {
        return None;
    };
    let kind = match kind {
        "held" => Kind::Held,
        "passed" | "delegated" if record.len() < 512 => return None,
        "passed" => Kind::Passed,
        "delegated" => Kind::Delegated,
        _ => return None,
    };
    let or_unknown = |word: &str| match word {
        "-" => Some(word.to_owned()),
        _ => Some(number(word)?.to_string()),
    };
    let text = |at: usize| {
        let word = texts.get(at).filter(|&&word| word != "-")?;
        Some(String::from_utf8_lossy(&decode(word)).into_owned())
    };
    let pid = number(pid).filter(|&pid| pid <= u64::from(u32::MAX))?;
    Some(Fields {
        kind,
        identity: [pid.to_string(), or_unknown(start)?, or_unknown(namespace)?],
        since: number(since),
        program: text(0),
        label: text(1),
    })
}

/// Reads decimal digits with an optional `+`, as Rust's integers do.
fn number(word: &str) -> Option<u64> {
    let digits = word.strip_prefix('+').unwrap_or(word);
    let mut number = if digits.is_empty() { None } else { Some(0_u64) };
    for c in digits.chars() {
        let digit = u64::try_from("0123456789".find(c)?).ok()?;
        number = number.and_then(|number| number.checked_mul(10)?.checked_add(digit));
    }
    number
}

/// Decodes `%` and two hexadecimal digits to a byte; keeps everything else.
fn decode(word: &str) -> Vec<u8> {
    let word = word.as_bytes();
    let digit = |at: usize| {
        let byte = word.get(at)?.to_ascii_lowercase();
        b"0123456789abcdef".iter().position(|&digit| digit == byte)
    };
    let (mut bytes, mut at) = (Vec::new(), 0);
    while at < word.len() {
        if let (b'%', Some(high), Some(low)) = (word[at], digit(at + 1), digit(at + 2)) {
            bytes.push(u8::try_from(high * 16 + low).expect("two digits"));
            at += 3;
        } else {
            bytes.push(word[at]);
            at += 1;
        }
    }
    bytes
}

fn read_identity(text: &[u8]) -> Option<Identity> {
    Identity::parse(str::from_utf8(text).ok()?.split_ascii_whitespace())
}

fn check_long(kind: Kind, process: &Named, label: Option<&str>) {
    let (identity, program) = process;
    let word = match kind {
        Kind::Held => "held",
        Kind::Passed => "passed",
        Kind::Delegated => "delegated",
    };
    let record = owner::of_process(kind, process, label);
    check_written(record.bytes(), word, program, label);
    let owner = Owner::parse(record.bytes()).expect("our own record");
    assert_eq!(owner.kind, kind);
    assert_eq!(owner.process, *identity);
    assert!(owner.since().is_some());
    // A record that was not completely written.
    let torn = (program.len() * 7) % LONG_LEN;
    assert_eq!(Owner::parse(&record.bytes()[..torn]), None);
    assert_eq!(Owner::parse(&record.bytes()[..LONG_LEN - 1]), None);
}

fn check_held(since: u64, label: Option<&str>) {
    let this = process::this();
    let (pid, program) = (std::process::id(), &this.1);
    // A record with a label between two without, because the latter are cached.
    for (since, label) in [(since, None), (since, label), (since, None), (7, None)] {
        let record = owner::with_held(mark::current(), since, label, |record| *record.bytes());
        check_written(&record, "held", program, label);
        let owner = Owner::parse(&record).expect("our own record");
        assert_eq!((owner.kind, owner.pid()), (Kind::Held, pid));
        assert_eq!(
            owner.since(),
            UNIX_EPOCH.checked_add(Duration::from_secs(since))
        );
    }
}

/// Checks that the record is one line of the right form, with as much of the program and
/// the label as fits.
fn check_written(record: &[u8], kind: &str, program: &[u8], label: Option<&str>) {
    let (&last, line) = record.split_last().expect("not empty");
    assert_eq!(last, b'\n');
    assert!(line.iter().all(|&c| c == b' ' || c.is_ascii_graphic()));
    let line = str::from_utf8(line).expect("ASCII").trim_end_matches(' ');
    let words: Vec<&str> = line.split(' ').collect();
    let &[first, _, _, _, _, program_word, label_word] = &words[..] else {
        panic!("{line:?} does not have 7 words");
    };
    assert_eq!(first, kind);
    assert!(program_word.len() <= 48 && line.len() < LEN);
    // A byte takes at most three when escaped, and a character has at most four bytes.
    let fields = [
        (program_word, program, program_word.len() + 12 > 48),
        (
            label_word,
            label.unwrap_or_default().as_bytes(),
            line.len() + 12 >= LEN,
        ),
    ];
    for (word, text, is_full) in fields {
        let kept = if word == "-" {
            Vec::new()
        } else {
            decode(word)
        };
        assert!(
            text.starts_with(&kept),
            "{word} is not the beginning of {text:?}"
        );
        assert!(kept.len() == text.len() || is_full, "{word} is cut");
    }
    let owner = Owner::parse(record).expect("our own record");
    let is_whole = |word: &str| word != "-";
    assert_eq!(owner.program().is_some(), is_whole(program_word));
    assert_eq!(owner.label().is_some(), is_whole(label_word));
    check_message(&owner);
}
