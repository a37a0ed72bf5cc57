//! Programs that are spoken to over pipes, line by line.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{ChildStderr, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::Duration,
};

use crate::{LONG, Process};

/// A process with pipes for its standard input and output. Killed and waited for when dropped.
pub struct Running {
    process: Process,
    to: Option<ChildStdin>,
    from: Receiver<String>,
}

impl Running {
    /// Starts `command`.
    #[track_caller]
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::start(command);
        let to = process.0.stdin.take();
        let from = lines(process.0.stdout.take().expect("piped"));
        Self { process, to, from }
    }

    /// Returns its pid.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Writes a line to its input.
    #[track_caller]
    pub fn say(&mut self, line: &str) {
        let to = self.to.as_mut().expect("not closed");
        writeln!(to, "{line}").expect("it listens");
    }

    /// Returns its next line.
    #[track_caller]
    pub fn hear(&self) -> String {
        self.hear_or_end().expect("it says something")
    }

    /// Returns its next line, or `None` at the end of its output.
    #[track_caller]
    pub fn hear_or_end(&self) -> Option<String> {
        match self.hear_within(LONG) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("it says nothing"),
        }
    }

    /// Returns its next line, or why there is none.
    pub(crate) fn hear_within(&self, at_most: Duration) -> Result<String, RecvTimeoutError> {
        self.from.recv_timeout(at_most)
    }

    /// Returns its standard error, which its command must have piped.
    pub fn stderr(&mut self) -> ChildStderr {
        self.process.0.stderr.take().expect("piped")
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.process.has_ended()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait()
    }

    /// Closes its input and waits for its end.
    #[track_caller]
    pub fn finish(mut self) -> ExitStatus {
        self.to = None;
        self.wait()
    }

    /// Closes its input, whichever process reads from it by now.
    pub fn close(&mut self) {
        self.to = None;
    }

    /// Kills it and waits for its end.
    #[track_caller]
    pub fn kill(mut self) -> ExitStatus {
        self.kill_only()
    }

    /// Does the same, but its input stays open, for those that have it from it.
    #[track_caller]
    pub fn kill_only(&mut self) -> ExitStatus {
        self.process.kill()
    }

    /// Sends a signal.
    #[cfg(unix)]
    pub fn signal(&self, signal: rustix::process::Signal) {
        self.process.signal(signal);
    }
}

/// Sends what is written there line by line, as it comes.
pub fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    let mut from = BufReader::new(from);
    thread::spawn(move || {
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).is_ok_and(|len| len > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            // Even if nobody listens the writer must not be stopped.
            let _ = sender.send(text);
        }
    });
    lines
}
