//! Owner records, as another program might change them.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Returns the file with the record of a port: its lock file, or a separate file on Windows,
/// where other processes cannot read a locked file.
pub(crate) fn record(dir: &Path, port: u16) -> PathBuf {
    let extension = if cfg!(windows) { ".owner" } else { "" };
    dir.join(format!("{port}{extension}"))
}

/// Replaces the word at `index` of a port's record.
pub fn forge(dir: &Path, port: u16, index: usize, word: &str) {
    let path = record(dir, port);
    let record = fs::read_to_string(&path).expect("a record");
    let mut words: Vec<&str> = record.split_ascii_whitespace().collect();
    words[index] = word;
    fs::write(&path, format!("{:511}\n", words.join(" "))).expect("our own file");
}
