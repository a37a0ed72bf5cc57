//! `dir`: prints the lock directory in use, and others that do not share leases with it.

use std::{
    collections::HashSet,
    env,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use portlock::LockDir;
use serde_json::{Value, json};

use crate::{
    args::Json,
    exit_status::ExitStatus,
    failure::Failure,
    lock_dir::lock_dir,
    output::{print, print_json, print_path, readable},
    sys,
};

pub(crate) fn dir(args: &Json, chosen: Option<&Path>) -> Result<ExitStatus, Failure> {
    let dir = lock_dir(chosen)?;
    let private_tmp = sys::private_tmp().filter(|_| dir.path().starts_with("/tmp"));
    let others = others(dir.path());
    if args.json {
        let others = others
            .iter()
            .map(|(path, leases)| json!({ "path": path.to_string_lossy(), "leases": leases }));
        print_json(&json!({
            "path": dir.path().to_string_lossy(),
            "origin": dir.origin().to_string(),
            "shared": dir.is_shared(),
            "private_tmp": private_tmp,
            "others": others.collect::<Vec<Value>>(),
        }))?;
        return check_writable(dir.path());
    }
    let kind = if dir.is_shared() {
        "shared with other users"
    } else {
        "private to this user"
    };
    let mut text = format!("{}; {kind}\n", dir.origin());
    if let Some(why) = private_tmp {
        let _ = writeln!(
            text,
            "{why}: callers with another /tmp use another lock directory"
        );
    }
    for (path, leases) in others {
        let are = if leases == 1 { "port is" } else { "ports are" };
        let _ = writeln!(
            text,
            "{leases} {are} leased in {}, which does not share leases with this one",
            readable(&path)
        );
    }
    print_path(dir.path())?;
    print(&text)?;
    check_writable(dir.path())
}

/// Fails if no lock file can be created in the directory. It need not exist yet.
///
/// The only reliable check is to create a file: by its mode, root may write to `/proc`. The file is
/// unnamed where the system supports that, and is gone when this returns.
fn check_writable(dir: &Path) -> Result<ExitStatus, Failure> {
    match dir.try_exists() {
        Ok(false) => return Ok(ExitStatus::Success),
        Ok(true) => {}
        Err(error) => return Err(not_writable(dir, &error)),
    }
    match tempfile::tempfile_in(dir) {
        Ok(_) => Ok(ExitStatus::Success),
        Err(error) => Err(not_writable(dir, &error)),
    }
}

fn not_writable(dir: &Path, error: &io::Error) -> Failure {
    let message = format!(
        "cannot create a lock file in {}: {error}; name another directory with --lock-dir or \
         PORTLOCK_DIR",
        readable(dir)
    );
    Failure::new(ExitStatus::Failed, message)
}

/// Returns the other lock directories with leases, and the number of leases in each: those that
/// callers of this user may use by default, and the one in `PORTLOCK_DIR`.
///
/// A directory that cannot be read is skipped, because it says nothing about this one.
fn others(own: &Path) -> Vec<(PathBuf, usize)> {
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut seen = HashSet::from([real(own)]);
    let named = env::var_os("PORTLOCK_DIR").map(PathBuf::from);
    let named = named.filter(|path| path.is_absolute());
    let mut others = Vec::new();
    for path in LockDir::default_paths().into_iter().chain(named) {
        if !seen.insert(real(&path)) {
            continue;
        }
        let entries = LockDir::open(&path).and_then(|dir| dir.entries());
        let leased = entries
            .unwrap_or_default()
            .iter()
            .filter(|entry| entry.is_leased())
            .count();
        if leased > 0 {
            others.push((path, leased));
        }
    }
    others
}
