//! Replacing the process by the program.

use napi_derive::napi;

/// Replaces this process by `program`, which keeps its pid, parent and standard streams. Returns
/// the reason if that fails, or `null` where a process cannot be replaced, as on Windows.
#[napi]
pub fn exec(program: String, arguments: Vec<String>) -> Option<String> {
    #[cfg(unix)]
    return Some(become_program(program, arguments).to_string());
    #[cfg(not(unix))]
    {
        let _ = (program, arguments);
        None
    }
}

#[cfg(unix)]
fn become_program(program: String, arguments: Vec<String>) -> std::io::Error {
    use std::{
        io::{stderr, stdin, stdout},
        os::{fd::AsFd, unix::process::CommandExt},
        process::Command,
    };

    // Node.js has made its standard streams close-on-exec. Those of a command are duplicates.
    let streams = || {
        Ok((
            stdin().as_fd().try_clone_to_owned()?,
            stdout().as_fd().try_clone_to_owned()?,
            stderr().as_fd().try_clone_to_owned()?,
        ))
    };
    match streams() {
        Ok((stdin, stdout, stderr)) => Command::new(program)
            .args(arguments)
            .stdin(stdin)
            .stdout(stdout)
            .stderr(stderr)
            .exec(),
        Err(error) => error,
    }
}
