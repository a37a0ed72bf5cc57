//! The program with its own lock directory and ports.

use std::{env, ffi::OsStr, fs, ops::RangeInclusive, path::Path, process::Command};

use assert_cmd::assert::Assert;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    AND, Block, EXHAUSTED, LEASED, Running, Said, TRUE, WAIT, answer, forge, lock_dir, portlock,
    record::record, shell,
};
#[cfg(unix)]
use crate::{is_permitted, unshare};

/// A lock directory, a state directory and a block of ports for one test.
///
/// Every command has them in its environment. A test that chose from all ports
/// would briefly probe the ports of another test.
pub struct Scene {
    dir: TempDir,
    /// For the copies of reservations, where `XDG_STATE_HOME` names it.
    state: TempDir,
    block: Block,
}

impl Scene {
    /// Creates the directories, and reserves `n` ports.
    pub fn new(n: u16) -> Self {
        let dir = lock_dir();
        let state = lock_dir();
        let block = Block::new(n);
        Self { dir, state, block }
    }

    /// Returns the lock directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the ports, in ascending order.
    pub fn ports(&self) -> RangeInclusive<u16> {
        self.block.ports.clone()
    }

    /// Returns the first port.
    pub fn port(&self) -> u16 {
        self.block.first()
    }

    /// Returns the ports as text, such as `20000-20009`.
    pub fn set(&self) -> String {
        self.block.set()
    }

    /// Returns a command for any program, with portlock in its PATH.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let portlock = portlock();
        let own = portlock.parent().expect("in a directory");
        let path = env::var_os("PATH").unwrap_or_default();
        // If PATH had a directory that may not be searched, a missing program would be reported as
        // "not permitted" (execve(2), EACCES).
        let path = [own.to_owned()]
            .into_iter()
            .chain(env::split_paths(&path))
            .filter(|dir| dir.is_absolute() && dir.join(".").exists());
        let mut command = Command::new(program);
        for variable in [
            "PORTLOCK_PORTS_FILE",
            "NO_COLOR",
            "CLICOLOR",
            "CLICOLOR_FORCE",
            // If it is set, any terminal gets colors.
            "CI",
            "PORT",
            "LISTEN_FDS",
            "LISTEN_FDNAMES",
            "LISTEN_PID",
        ] {
            command.env_remove(variable);
        }
        command
            .env("PATH", env::join_paths(path).expect("as it was"))
            .env("PORTLOCK_DIR", self.dir())
            .env("XDG_STATE_HOME", self.state.path())
            .env("PORTLOCK_PORTS", self.set());
        command
    }

    /// Returns a command for portlock itself.
    pub fn program<T: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = T>) -> Command {
        let mut command = self.command(portlock());
        command.args(args);
        command
    }

    /// Runs portlock to its end.
    #[track_caller]
    pub fn portlock<T: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = T>) -> Assert {
        answer(self.program(args))
    }

    /// Runs `portlock check` of one port.
    #[track_caller]
    pub fn check(&self, port: u16) -> Assert {
        self.portlock(["check", &port.to_string()])
    }

    /// Asserts that the port can be leased immediately.
    #[track_caller]
    pub fn assert_leasable(&self, port: u16) {
        self.check(port).code(0).prints(&format!("{port} free"));
        let port = port.to_string();
        let run = ["run", "--timeout=0", "--ports", &port, "--"];
        let shell = shell("echo {port}");
        let run = run.iter().chain(&shell);
        assert_eq!(self.portlock(run).code(0).out().trim_end(), port);
    }

    /// Asserts that the port cannot be leased, because it is already leased.
    #[track_caller]
    pub fn assert_leased(&self, port: u16) {
        let state = format!("{port} leased");
        self.check(port).code(LEASED).prints(&state);
        let port = port.to_string();
        let run = ["run", "--timeout=0", "--ports", &port, "--", TRUE];
        self.portlock(run)
            .code(EXHAUSTED)
            .warns("1 leased (")
            .prints_just("");
    }

    /// Asserts that no port is leased.
    #[track_caller]
    pub fn assert_no_lease(&self) {
        assert_eq!(self.list(), Vec::<Value>::new());
    }

    /// Returns the output of `portlock list --json`.
    #[track_caller]
    pub fn list(&self) -> Vec<Value> {
        let list = self.portlock(["list", "--json"]).code(0);
        list.json().as_array().expect("an array").clone()
    }

    /// Ends every lease that was picked.
    #[track_caller]
    pub fn release_all(&self) {
        for lease in self.list() {
            let port = lease["port"].to_string();
            self.portlock(["release", &port]).code(0);
        }
    }

    /// Leases a port to this process, and returns it.
    #[track_caller]
    pub fn pick(&self) -> u16 {
        let pick = self.portlock(["pick", "--timeout=0"]).code(0);
        pick.out().trim_end().parse().expect("a port")
    }
}

impl Scene {
    /// Starts a process that does nothing until its input is closed.
    pub fn idle(&self) -> Running {
        // On Unix without a shell, which would become `cat` a moment later.
        let words: &[&str] = if cfg!(windows) {
            &shell(WAIT)
        } else {
            &["cat"]
        };
        let mut command = self.command(words[0]);
        command.args(&words[1..]);
        Running::start(command)
    }

    /// Starts portlock with these options and a command that lives until its input is closed.
    /// Returns the port too.
    #[track_caller]
    pub fn hold(&self, options: &[&str]) -> (Running, u16) {
        let line = format!("echo {{port}}{AND}{WAIT}");
        let shell = shell(&line);
        let options = ["run"].iter().chain(options).chain(&["--"]).chain(&shell);
        let holder = Running::start(self.program(options));
        let port = holder.hear().parse().expect("a port");
        (holder, port)
    }
}

impl Scene {
    /// Writes the record of a port, as another program might.
    pub fn forge(&self, port: u16, words: impl AsRef<[u8]>) {
        fs::write(record(self.dir(), port), words).expect("our own directory");
    }

    /// Replaces the word at `index` of a port's record.
    pub fn forge_word(&self, port: u16, index: usize, word: &str) {
        forge(self.dir(), port, index, word);
    }

    /// Returns the number of lock files, without separate record files.
    pub fn lock_files(&self) -> usize {
        let files = fs::read_dir(self.dir()).expect("our own directory");
        let names = files.map(|file| file.expect("our own directory").path());
        names
            .filter(|name| name.extension() != Some(OsStr::new("owner")))
            .count()
    }
}

#[cfg(unix)]
impl Scene {
    /// Returns a command for a script, run by `shell`.
    pub fn script(&self, shell: &str, script: &str) -> Command {
        let mut command = self.command(shell);
        command.args(["-c", script]);
        command
    }

    /// Returns a command for a script in a namespace of the given kind, such as `--net`, or
    /// `None` if namespaces are not permitted.
    pub fn in_namespace(&self, kind: &str, script: &str) -> Option<Command> {
        let unshare = unshare(kind);
        if !is_permitted(&unshare) {
            return None;
        }
        let mut command = self.command(unshare[0]);
        command.args(&unshare[1..]).args(["sh", "-c", script]);
        Some(command)
    }

    /// Returns a command for a shell's line on a new terminal, or `None` if
    /// script(1) of util-linux is not installed. Its standard output has the output
    /// of both.
    pub fn on_terminal(&self, line: &str) -> Option<Command> {
        let version = Command::new("script").arg("--version").output();
        let version = version.map(|version| version.stdout).unwrap_or_default();
        if !String::from_utf8_lossy(&version).contains("util-linux") {
            eprintln!("skipped: script(1) of util-linux is not installed");
            return None;
        }
        let mut command = self.command("script");
        command
            .args(["--quiet", "--return", "--command", line, "/dev/null"])
            .env("TERM", "xterm")
            .env("SHELL", "/bin/sh");
        Some(command)
    }
}
