//! The program under test.

use std::path::PathBuf;

/// Returns the path of the program that the tests run. Cargo builds it for the tests of its
/// package alone.
pub fn portlock() -> PathBuf {
    assert_cmd::cargo::cargo_bin("portlock")
}

/// Its name as processes are named, which is with an ending where programs have one.
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
