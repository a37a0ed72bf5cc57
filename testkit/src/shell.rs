//! Commands that every system has.

/// Does nothing, successfully.
pub const TRUE: &str = if cfg!(windows) { "hostname" } else { "true" };

/// A shell's line that waits for its input to be closed.
pub const WAIT: &str = if cfg!(windows) {
    "set /p line=& exit 0"
} else {
    "exec cat"
};

/// Separates two commands in a shell's line.
pub const AND: &str = if cfg!(windows) { "&" } else { "; " };

/// Returns a command for a shell's line. `echo` and `exit` work almost the same everywhere.
pub fn shell(line: &str) -> [&str; 3] {
    if cfg!(windows) {
        ["cmd", "/c", line]
    } else {
        ["sh", "-c", line]
    }
}

/// Returns the syntax for the value of a variable in a shell's line.
pub fn value(variable: &str) -> String {
    if cfg!(windows) {
        format!("%{variable}%")
    } else {
        format!("${variable}")
    }
}
