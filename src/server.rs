//! The server of a port: which process it is, and whether it belongs to the lease's holder.

use std::fmt;

/// A process in its current state.
///
/// Its text form is `pid 812 (postgres)`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Process {
    /// The pid, in the caller's pid namespace.
    pub pid: u32,
    /// The file name of the program that it runs. Empty if that cannot be seen.
    pub program: String,
    /// The user ID that it runs as. `None` if that cannot be seen, as on Windows.
    pub user_id: Option<u32>,
}

impl fmt::Display for Process {
    /// Escapes control characters, so that the text is safe to print on a terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {}", self.pid)?;
        if !self.program.is_empty() {
            write!(f, " ({})", self.program.escape_debug())?;
        }
        Ok(())
    }
}

/// The server of a port: a socket that listens for TCP or, if there is none, is bound for UDP.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Server {
    /// The port.
    pub port: u16,
    /// The process that has the socket. If several have it, such as the workers of one server, it
    /// is the one that determined [`belongs_to`](Self::belongs_to). `None` if no process that has
    /// it can be seen.
    pub process: Option<Process>,
    /// The user ID that the socket belongs to. `None` if that cannot be seen, as on Windows.
    pub user_id: Option<u32>,
    /// Whether it belongs to the holder of the lease. `None` if the port is not leased.
    pub belongs_to: Option<BelongsTo>,
}

impl fmt::Display for Server {
    /// Writes text such as `pid 812 (postgres)` or `a process that cannot be seen`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.process {
            Some(process) => process.fmt(f),
            None => f.write_str("a process that cannot be seen"),
        }
    }
}

/// The owner of a server that answers on a leased port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BelongsTo {
    /// The lease's holder: the process is the holder or its descendant, or has inherited the
    /// lease's descriptor.
    Holder,
    /// Another process: it can be seen, it is none of the above, and it started before the lease
    /// or was started by a process that is still alive.
    ///
    /// The proxy of a published container port is such a process, too.
    Other,
    /// The owner cannot be determined. The process cannot be seen, or it was started by a process
    /// that has ended and may have belonged to the holder, as with a server that daemonized.
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_named_by_its_pid_and_its_program_with_escapes() {
        let process = |program: &str| Process {
            pid: 812,
            program: program.to_owned(),
            user_id: None,
        };
        assert_eq!(process("postgres").to_string(), "pid 812 (postgres)");
        assert_eq!(process("").to_string(), "pid 812");
        assert_eq!(process("\u{1b}[31m").to_string(), "pid 812 (\\u{1b}[31m)");
        let server = |process| Server {
            port: 5432,
            process,
            user_id: None,
            belongs_to: None,
        };
        let named = server(Some(process("postgres"))).to_string();
        assert_eq!(named, "pid 812 (postgres)");
        let unseen = server(None).to_string();
        assert_eq!(unseen, "a process that cannot be seen");
    }
}
