//! The program under test.

use std::path::PathBuf;

/// Returns the path of the program under test. Cargo builds it only for the tests of its
/// package.
pub fn portlock() -> PathBuf {
    assert_cmd::cargo::cargo_bin("portlock")
}

/// The name of its processes, with the extension of programs on Windows.
pub const NAME: &str = if cfg!(windows) {
    "portlock.exe"
} else {
    "portlock"
};

/// The exit status of `check` if the port is leased.
pub const LEASED: i32 = 1;
/// The exit status of `check` if the port is bound.
pub const BOUND: i32 = 3;
/// The exit status if no port is free.
pub const EXHAUSTED: i32 = 75;
/// The exit status if a time limit has passed.
pub const TIMED_OUT: i32 = 124;
/// The exit status if portlock itself failed.
pub const FAILED: i32 = 125;
