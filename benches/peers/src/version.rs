//! The versions of the tools and the machine.

use std::{fs, process::Command, thread};

use crate::Result;

/// The lock file with the versions that this program was built with.
const LOCK_FILE: &str = include_str!("../../../Cargo.lock");

/// Returns the version of a crate that this program depends on.
pub(crate) fn of(name: &str) -> Result<String> {
    let package = format!("name = \"{name}\"\nversion = \"");
    let version = LOCK_FILE.split_once(&package);
    let version = version.and_then(|(_, rest)| rest.split_once('"'));
    let version = version.ok_or_else(|| format!("{name} is not in Cargo.lock"))?;
    Ok(version.0.to_owned())
}

pub(crate) fn rustc() -> Result<String> {
    let text = output("rustc", &["--version"])?;
    let version = text.split_whitespace().nth(1);
    Ok(version.unwrap_or("of unknown version").to_owned())
}

/// Describes the machine in one line.
pub(crate) fn machine() -> Result<String> {
    let cpu = read("/proc/cpuinfo")?;
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.map(|rest| rest.trim_start_matches([' ', '\t', ':']));
    let kernel = read("/proc/sys/kernel/osrelease")?;
    let cores = thread::available_parallelism();
    let cores = cores.map_err(|error| format!("cannot count the processors: {error}"))?;
    Ok(format!(
        "{}, {cores} cores, Linux {}",
        model.unwrap_or("unknown CPU"),
        kernel.trim()
    ))
}

/// Returns the load average of the last minute.
pub(crate) fn load() -> Result<String> {
    let text = read("/proc/loadavg")?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

pub(crate) fn today() -> Result<String> {
    output("date", &["--utc", "+%Y-%m-%d"])
}

/// Returns the type of the file system of `path`.
pub(crate) fn file_system(path: &str) -> Result<String> {
    output(
        "findmnt",
        &["--noheadings", "--output", "FSTYPE", "--target", path],
    )
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}").into())
}

fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("cannot run {program}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{program} failed: {}", output.status).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
