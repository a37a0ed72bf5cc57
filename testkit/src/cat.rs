//! A process that does nothing.

use std::{
    env,
    io::{BufRead, BufReader},
};

use crate::{Parent, Process, command};

pub(crate) const ROLE: &str = "cat";
const HERE: &str = "here";

/// Runs the role in the child.
pub(crate) fn run(parent: &Parent) {
    parent.say(HERE);
    loop {
        parent.hear();
    }
}

/// Starts a process that ends when its input is closed. It runs this test binary, because no
/// such program exists on every system.
pub fn cat() -> Process {
    let binary = env::current_exe().expect("this test binary");
    let mut process = Process::start(command(&[], &binary, ROLE, &[]));
    // Once it answers, exec has completed.
    let stdout = process.0.stdout.as_mut().expect("piped");
    let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.ends_with(HERE)), "it answers");
    process
}

/// Returns the name of the process's program.
pub fn cat_program() -> String {
    let binary = env::current_exe().expect("this test binary");
    let name = binary.file_name().expect("a file");
    name.to_str().expect("UTF-8").to_owned()
}
