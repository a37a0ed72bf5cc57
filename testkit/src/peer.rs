//! Child processes with a role: they run the test binary again, with the one test named `child`.

use std::{
    env,
    fmt::{Debug, Display},
    io::{self, Write},
    path::Path,
    process::{self, ChildStderr, Command, ExitStatus, Stdio},
    str::FromStr,
    sync::mpsc::RecvTimeoutError,
    time::{Duration, Instant},
};

use crate::{LONG, Running, cat};

const ROLE: &str = "PORTLOCK_TEST_ROLE";
const ARGUMENTS: &str = "PORTLOCK_TEST_ARGUMENTS";

/// Precedes a child's message to its parent, because the test harness prints too.
pub(crate) const MARK: char = '@';

/// The other end of a [`Peer`], in the child.
pub struct Parent {
    arguments: Vec<String>,
}

impl Parent {
    /// Returns the argument at `index`, as passed to [`Peer::start`].
    pub fn argument<T: FromStr<Err: Debug>>(&self, index: usize) -> T {
        self.arguments[index].parse().expect("a valid argument")
    }

    /// Sends a line to the parent.
    pub fn say(&self, line: impl Display) {
        // Starts a new line, because the test harness may have printed before.
        let mut out = io::stdout().lock();
        // If the parent is gone, `hear` ends this process.
        let _ = writeln!(out, "\n{MARK}{line}").and_then(|()| out.flush());
    }

    /// Waits for the parent's next line. Ends the process if the parent is gone.
    pub fn hear(&self) -> String {
        let mut line = String::new();
        match io::stdin().read_line(&mut line) {
            Ok(len) if len > 0 => line.trim_end().to_owned(),
            _ => process::exit(0),
        }
    }
}

/// A function that a child runs.
pub type Role = fn(&Parent);

/// Runs one of `roles` if this process was started as a child, and otherwise does nothing.
/// The body of the test `child` in every binary that has children.
pub fn run_child(roles: &[(&str, Role)]) {
    let Ok(role) = env::var(ROLE) else { return };
    let arguments = env::var(ARGUMENTS).expect("set together with the role");
    let arguments = arguments.split('\n').map(str::to_owned).collect();
    let known = roles.iter().chain(&[(cat::ROLE, cat::run as Role)]);
    let run = known.into_iter().find(|(name, _)| *name == role);
    let (_, run) = run.unwrap_or_else(|| panic!("no role {role}"));
    run(&Parent { arguments });
}

/// Returns a command that runs `role` in a child, with a prefix such as
/// `["strace", "-f"]`.
pub fn command(prefix: &[&str], binary: &Path, role: &str, arguments: &[&str]) -> Command {
    let own = ["child", "--exact", "--nocapture", "--test-threads=1"];
    let mut command = match prefix {
        [] => Command::new(binary),
        [program, rest @ ..] => {
            let mut command = Command::new(program);
            command.args(rest).arg(binary);
            command
        }
    };
    command
        .args(own)
        .env(ROLE, role)
        .env(ARGUMENTS, arguments.join("\n"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

/// A child process with a role, or a script that marks its messages in the same way.
/// Killed and waited for when dropped.
pub struct Peer(Running);

impl Peer {
    /// Starts this test binary in `role`.
    pub fn start(role: &str, arguments: &[&str]) -> Self {
        let binary = env::current_exe().expect("this test binary");
        Self::start_command(command(&[], &binary, role, arguments))
    }

    /// Starts `command`.
    pub fn start_command(command: Command) -> Self {
        Self(Running::start(command))
    }

    /// Returns its pid.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Sends a line to the child.
    #[track_caller]
    pub fn say(&mut self, line: &str) {
        self.0.say(line);
    }

    /// Returns the child's next line.
    #[track_caller]
    pub fn hear(&self) -> String {
        self.hear_within(LONG).expect("the child writes a line")
    }

    /// Returns the child's next line, or `None` if it writes none within `at_most`.
    #[track_caller]
    pub fn hear_within(&self, at_most: Duration) -> Option<String> {
        match self.next(at_most) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("the child ended without writing a line"),
        }
    }

    /// Returns the child's next line, or `None` if it has ended without one.
    #[track_caller]
    pub fn hear_last(&self) -> Option<String> {
        match self.next(LONG) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("the child neither writes nor ends"),
        }
    }

    /// Returns the text after the mark on the next line that has one.
    fn next(&self, at_most: Duration) -> Result<String, RecvTimeoutError> {
        let deadline = Instant::now() + at_most;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some((_, line)) = self.0.hear_within(left)?.split_once(MARK) {
                return Ok(line.to_owned());
            }
        }
    }

    /// Sends a line to the child, and returns its answer.
    #[track_caller]
    pub fn ask(&mut self, line: impl Display) -> String {
        self.say(&line.to_string());
        self.hear()
    }

    /// Returns the child's standard error, which its command must have piped.
    pub fn stderr(&mut self) -> ChildStderr {
        self.0.stderr()
    }

    /// Kills the child and waits for its end.
    #[track_caller]
    pub fn kill(&mut self) {
        self.0.kill_only();
    }

    /// Closes the child's input and waits for its end.
    #[track_caller]
    pub fn finish(self) -> ExitStatus {
        self.0.finish()
    }

    /// Waits until the child writes "done" and ends.
    #[track_caller]
    pub fn finish_well(self) {
        assert_eq!(self.hear(), "done");
        assert!(self.finish().success());
    }
}
