//! Directories for one test.

use std::path::Path;

/// Part of the system's message for a path that does not exist.
pub const NOT_FOUND: &str = if cfg!(windows) {
    "os error 2)"
} else {
    "No such file"
};

/// Creates a lock directory for one test.
pub fn lock_dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// Returns the path as text.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}
