//! Child processes.

use std::{
    io,
    process::{Child, Command, ExitStatus},
};

use crate::until;

/// A child process. Killed and waited for when dropped.
pub struct Process(pub Child);

impl Process {
    /// Starts `command`. If its program has just been written, a child that another thread
    /// is spawning can have it open for writing until that child calls exec.
    #[track_caller]
    pub fn start(mut command: Command) -> Self {
        Self(until("a start", || match command.spawn() {
            Ok(child) => Some(child),
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => None,
            Err(error) => panic!("cannot start {command:?}: {error}"),
        }))
    }

    /// Returns its pid.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Whether the process has ended.
    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("our own child").is_some()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        until("the child's end", || {
            self.0.try_wait().expect("our own child")
        })
    }

    /// Sends SIGKILL or calls TerminateProcess, and waits for its end.
    #[track_caller]
    pub fn kill(&mut self) -> ExitStatus {
        self.0.kill().expect("our own child");
        self.wait()
    }

    /// Kills it and waits for its end.
    pub fn end(mut self) {
        self.kill();
    }

    /// Sends a signal.
    #[cfg(unix)]
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).expect("our own child");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns a command that ends immediately, with success.
pub fn nothing() -> Command {
    if cfg!(windows) {
        let mut command = Command::new("cmd");
        command.args(["/C", "exit"]);
        command
    } else {
        Command::new("true")
    }
}

/// Returns the number of open descriptors of this process, including the one used to list them.
#[cfg(target_os = "linux")]
pub fn open_descriptors() -> usize {
    let descriptors = std::fs::read_dir("/proc/self/fd");
    descriptors.expect("Linux has it").count()
}
