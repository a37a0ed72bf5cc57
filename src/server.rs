//! The server of a port: which process it is, and whether it is that of the lease's holder.

use std::fmt;

/// A process, as it is now.
///
/// As text it is `pid 812 (postgres)`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Process {
    /// Its pid, in the caller's pid namespace.
    pub pid: u32,
    /// The file name of the program that it runs. Empty if that cannot be seen.
    pub program: String,
    /// The number of the user that it runs as. `None` if that cannot be seen, as on Windows.
    pub user_id: Option<u32>,
}

impl fmt::Display for Process {
    /// Nothing in it can drive a terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {}", self.pid)?;
        if !self.program.is_empty() {
            write!(f, " ({})", self.program.escape_debug())?;
        }
        Ok(())
    }
}

/// The server of a port: a socket that listens for TCP or, where there is none, is bound for UDP.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Server {
    /// The port.
    pub port: u16,
    /// The process that has the socket. Of several, such as the workers of one server, it is one that
    /// decided what [`belongs_to`](Self::belongs_to) says. `None` if no process that has it can be seen.
    pub process: Option<Process>,
    /// The number of the user that the socket belongs to. `None` if that cannot be seen, as on Windows.
    pub user_id: Option<u32>,
    /// Whether it is the holder's. `None` if the port is not leased.
    pub belongs_to: Option<BelongsTo>,
}

impl fmt::Display for Server {
    /// `pid 812 (postgres)`, or `a process that cannot be seen`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.process {
            Some(process) => process.fmt(f),
            None => f.write_str("a process that cannot be seen"),
        }
    }
}

/// Whose server answers on a leased port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BelongsTo {
    /// The lease's holder: the process is the holder or a descendant of it, or it has inherited the
    /// lease's descriptor.
    Holder,
    /// Another process: it can be seen, it is none of these, and it started before the lease or was
    /// started by a process that still lives.
    ///
    /// The proxy of a published container port is such a process, too.
    Other,
    /// Nobody can tell. The process cannot be seen, or it was started by a process that has ended, which
    /// may have been the holder's, as a server that daemonized is.
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_named_by_its_pid_and_by_a_program_that_cannot_drive_a_terminal() {
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
