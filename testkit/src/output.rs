//! The output of a command.

use std::process::Command;

use assert_cmd::assert::Assert;
use serde_json::Value;

use crate::LONG;

/// Runs a command to its end, and asserts that it does not panic.
#[track_caller]
pub fn answer(command: Command) -> Assert {
    let assert = assert_cmd::Command::from_std(command)
        .timeout(LONG)
        .assert();
    assert!(!assert.err().contains("panicked"), "{}", assert.err());
    assert
}

/// Checks of a command's output.
pub trait Said: Sized {
    /// Returns the standard output.
    fn out(&self) -> &str;
    /// Returns the standard error.
    fn err(&self) -> &str;
    /// Asserts that the standard output begins with `start`.
    #[track_caller]
    fn prints(self, start: &str) -> Self {
        assert!(self.out().starts_with(start), "{start:?}: {:?}", self.out());
        self
    }
    /// Asserts that the standard output is exactly this.
    #[track_caller]
    fn prints_just(self, text: &str) -> Self {
        assert_eq!(self.out(), text);
        self
    }
    /// Asserts that the standard error contains `part`.
    #[track_caller]
    fn warns(self, part: &str) -> Self {
        assert!(self.err().contains(part), "{part:?}: {:?}", self.err());
        self
    }
    /// Asserts that the standard error is empty.
    #[track_caller]
    fn warns_of_nothing(self) -> Self {
        assert_eq!(self.err(), "");
        self
    }
    /// Returns the standard output as JSON.
    #[track_caller]
    fn json(&self) -> Value {
        let out = self.out();
        serde_json::from_str(out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }
    /// Returns the standard output, one port per line.
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
