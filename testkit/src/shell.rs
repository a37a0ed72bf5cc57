//! Commands that every system has.

/// Does nothing, and does it well.
pub const TRUE: &str = if cfg!(windows) { "hostname" } else { "true" };

/// A shell's line that waits for its input to be closed.
pub const WAIT: &str = if cfg!(windows) {
    "set /p line=& exit 0"
} else {
    "exec cat"
};

/// What joins two commands in a shell's line.
pub const AND: &str = if cfg!(windows) { "&" } else { "; " };

/// A line for the shell. `echo` and `exit` are much the same everywhere.
pub fn shell(line: &str) -> [&str; 3] {
    if cfg!(windows) {
        ["cmd", "/c", line]
    } else {
        ["sh", "-c", line]
    }
}

/// The value of a variable in a shell's line.
pub fn value(variable: &str) -> String {
    if cfg!(windows) {
        format!("%{variable}%")
    } else {
        format!("${variable}")
    }
}
