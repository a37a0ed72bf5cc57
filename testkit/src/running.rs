//! Programs that read and write lines over pipes.

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
        writeln!(to, "{line}").expect("it reads");
    }

    /// Returns its next line.
    #[track_caller]
    pub fn hear(&self) -> String {
        self.hear_or_end().expect("it writes a line")
    }

    /// Returns its next line, or `None` at the end of its output.
    #[track_caller]
    pub fn hear_or_end(&self) -> Option<String> {
        match self.hear_within(LONG) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("it writes nothing"),
        }
    }

    /// Returns its next line, or the reason why there is none.
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

    /// Closes its input, even if another process now reads from it.
    pub fn close(&mut self) {
        self.to = None;
    }

    /// Kills it and waits for its end.
    #[track_caller]
    pub fn kill(mut self) -> ExitStatus {
        self.kill_only()
    }

    /// Kills it and waits for its end, but keeps its input open for processes that inherited it.
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

/// Sends the output line by line, as it arrives.
pub fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    let mut from = BufReader::new(from);
    thread::spawn(move || {
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).is_ok_and(|len| len > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            // Keep reading even without a receiver, so that the writer does not block.
            let _ = sender.send(text);
        }
    });
    lines
}
