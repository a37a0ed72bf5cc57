//! Owner records, as another program might change them.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Returns the file with the record of a port: its lock file, or on Windows, where nobody else
/// can read a file that is locked, one beside it.
pub(crate) fn record(dir: &Path, port: u16) -> PathBuf {
    let beside = if cfg!(windows) { ".owner" } else { "" };
    dir.join(format!("{port}{beside}"))
}

/// Replaces the word at `index` of a port's record.
pub fn forge(dir: &Path, port: u16, index: usize, word: &str) {
    let path = record(dir, port);
    let record = fs::read_to_string(&path).expect("a record");
    let mut words: Vec<&str> = record.split_ascii_whitespace().collect();
    words[index] = word;
    fs::write(&path, format!("{:511}\n", words.join(" "))).expect("our own file");
}
