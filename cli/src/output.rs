//! Writing to standard output, and warnings and notes on standard error.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _, Write},
    path::Path,
};

use portlock::{BelongsTo, EntryState, Owner, PortEntry, Server};
use serde_json::{Value, json};

use crate::{exit_status::ExitStatus, failure::Failure};

/// Prints a warning. Unlike `eprint!`, this does not panic when standard error is closed.
pub(crate) fn warn(message: &str) {
    let _ = writeln!(io::stderr(), "portlock: warning: {message}");
}

/// Prints a note. Unlike `eprint!`, this does not panic when standard error is closed.
pub(crate) fn note(message: &str) {
    let _ = writeln!(io::stderr(), "portlock: note: {message}");
}

/// Prints `text`, in color where the output supports it.
///
/// A reader that closed the pipe early, such as `head`, is not a failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    print_to_reader(text).or_else(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(unprintable(&error)),
    })
}

/// Prints a path on its own line: byte for byte to a pipe or file, and escaped on a terminal, so
/// that it cannot inject escape sequences.
pub(crate) fn print_path(path: &Path) -> Result<(), Failure> {
    let mut out = io::stdout();
    if out.is_terminal() {
        return print(&format!("{}\n", readable(path)));
    }
    let printed = out
        .write_all(path.as_os_str().as_encoded_bytes())
        .and_then(|()| out.write_all(b"\n"))
        .and_then(|()| out.flush());
    printed.or_else(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(unprintable(&error)),
    })
}

/// Returns the path with every unprintable character escaped. Backslashes and quotes stay as they
/// are.
pub(crate) fn readable(path: &Path) -> String {
    let mut text = String::new();
    for c in path.to_string_lossy().chars() {
        match c {
            '\\' | '\'' | '"' => text.push(c),
            c => text.extend(c.escape_debug()),
        }
    }
    text
}

/// Prints `text`, and fails if the reader is gone.
///
/// If standard output was already closed when this program started, that is not detected: Rust's
/// runtime has replaced it with /dev/null, which cannot be distinguished from one that the caller
/// opened.
pub(crate) fn print_to_reader(text: &str) -> io::Result<()> {
    let mut out = anstream::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()
}

pub(crate) fn unprintable(error: &io::Error) -> Failure {
    Failure::new(
        ExitStatus::Failed,
        format!("cannot write to standard output: {error}"),
    )
}

pub(crate) fn print_json(value: &Value) -> Result<(), Failure> {
    print(&json_text(value))
}

/// Returns the value as JSON that can neither control a terminal nor mislead its reader: characters
/// that are invisible, change the direction of text or combine with others are escaped too. They
/// occur only in strings, where the escape means the same (RFC 8259, section 7).
pub(crate) fn json_text(value: &Value) -> String {
    harmless(&format!("{value:#}\n"))
}

/// Returns the same JSON on one line.
pub(crate) fn json_line(value: &Value) -> String {
    harmless(&format!("{value}\n"))
}

fn harmless(json: &str) -> String {
    let mut text = String::new();
    for c in json.chars() {
        // JSON itself escapes every ASCII control character except DEL.
        let is_plain = if c.is_ascii() {
            c != '\u{7f}'
        } else {
            c.escape_debug().len() == 1
        };
        if is_plain {
            text.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(text, "\\u{unit:04x}");
            }
        }
    }
    text
}

/// Adds what is known about the server on a port: whose it is, and its process.
pub(crate) fn add_server(row: &mut Value, server: Option<&Server>) {
    let process = server.and_then(|server| server.process.as_ref());
    row["server"] = server
        .and_then(|server| server.belongs_to)
        .map(|belongs_to| match belongs_to {
            BelongsTo::Holder => "holder",
            BelongsTo::Other => "other",
            _ => "unknown",
        })
        .into();
    row["server_pid"] = process.map(|process| process.pid).into();
    row["server_program"] = process.map(|process| &process.program[..]).into();
}

/// Describes the holder of a lease by the program that it runs now.
pub(crate) fn holder(entry: &PortEntry) -> Option<String> {
    let process = match entry.state {
        EntryState::Inherited => None,
        _ => entry
            .process()
            .filter(|process| !process.program.is_empty()),
    };
    let Some(process) = process else {
        return entry.holder();
    };
    let mut text = format!("pid {} \"{}\"", process.pid, process.program.escape_debug());
    if let Some(label) = entry.owner.as_ref().and_then(Owner::label) {
        let _ = write!(text, " ({})", label.escape_debug());
    }
    Some(text)
}

/// Returns the process that inherited a lease from the process in the record, which has ended.
pub(crate) fn heir(entry: &PortEntry) -> Option<Value> {
    let heir = entry.heir.as_ref()?;
    Some(json!({ "pid": heir.pid, "program": heir.program }))
}
