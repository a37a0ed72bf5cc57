//! What a command prints.

use std::process::Command;

use assert_cmd::assert::Assert;
use serde_json::Value;

use crate::LONG;

/// Runs a command to its end. Whatever it is about, it must not panic.
#[track_caller]
pub fn answer(command: Command) -> Assert {
    let assert = assert_cmd::Command::from_std(command)
        .timeout(LONG)
        .assert();
    assert!(!assert.err().contains("panicked"), "{}", assert.err());
    assert
}

/// What a command has said.
pub trait Said: Sized {
    /// Its standard output.
    fn out(&self) -> &str;
    /// Its standard error.
    fn err(&self) -> &str;
    /// Its standard output begins with this.
    #[track_caller]
    fn prints(self, start: &str) -> Self {
        assert!(self.out().starts_with(start), "{start:?}: {:?}", self.out());
        self
    }
    /// Its standard output is this and no more.
    #[track_caller]
    fn prints_just(self, text: &str) -> Self {
        assert_eq!(self.out(), text);
        self
    }
    /// Its standard error has this in it.
    #[track_caller]
    fn warns(self, part: &str) -> Self {
        assert!(self.err().contains(part), "{part:?}: {:?}", self.err());
        self
    }
    /// Its standard error is empty.
    #[track_caller]
    fn warns_of_nothing(self) -> Self {
        assert_eq!(self.err(), "");
        self
    }
    /// Its standard output as JSON.
    #[track_caller]
    fn json(&self) -> Value {
        let out = self.out();
        serde_json::from_str(out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }
    /// Its standard output, one port in each line.
    #[track_caller]
    fn ports(&self) -> Vec<u16> {
        let lines = self.out().lines();
        lines.map(|line| line.parse().expect("a port")).collect()
    }
}

impl Said for Assert {
    fn out(&self) -> &str {
        str::from_utf8(&self.get_output().stdout).expect("UTF-8")
    }

    fn err(&self) -> &str {
        str::from_utf8(&self.get_output().stderr).expect("UTF-8")
    }
}
