//! What goes to standard output.

use std::{
    io::{self, Write},
    path::Path,
};

use clap::CommandFactory as _;

use crate::{
    args::Args,
    failure::{FAILED, Failure},
};

/// Prints `text`, with its colours where they are wanted.
///
/// A reader that has gone away, such as `head`, is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    print_to_somebody(text).or_else(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(unprintable(&error)),
    })
}

/// Prints `text`, which is of no use if nobody reads it.
pub(crate) fn print_to_somebody(text: &str) -> io::Result<()> {
    let mut out = anstream::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()
}

pub(crate) fn unprintable(error: &io::Error) -> Failure {
    Failure::new(FAILED, format!("cannot write to standard output: {error}"))
}

pub(crate) fn print_json(value: &serde_json::Value) -> Result<(), Failure> {
    print(&format!("{value:#}\n"))
}

pub(crate) fn completions(shell: clap_complete::Shell) -> Result<u8, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "portlock", &mut text);
    print(&String::from_utf8_lossy(&text))?;
    Ok(0)
}

pub(crate) fn man(dir: Option<&Path>) -> Result<u8, Failure> {
    if let Some(dir) = dir {
        clap_mangen::generate_to(Args::command(), dir).map_err(|error| {
            let message = format!("cannot write man pages to {}: {error}", dir.display());
            Failure::new(FAILED, message)
        })?;
        return Ok(0);
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(Args::command())
        .render(&mut page)
        .map_err(|error| unprintable(&error))?;
    print(&String::from_utf8_lossy(&page))?;
    Ok(0)
}
