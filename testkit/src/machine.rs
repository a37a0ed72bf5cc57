//! Features that a machine may lack. Each function reports on stderr that a test is skipped.

use std::{
    env, fs,
    process::{Command, Stdio},
};

/// Whether a program can be started.
pub fn is_installed(program: &str) -> bool {
    can_start(program, "--version")
}

/// Whether strace is installed.
pub fn have_strace() -> bool {
    can_start("strace", "-V")
}

fn can_start(program: &str, version: &str) -> bool {
    let mut command = Command::new(program);
    command.arg(version).stdin(Stdio::null());
    let can_start = command.output().is_ok();
    if !can_start {
        eprintln!("skipped: {program} is not installed");
    }
    can_start
}

/// Whether 127.0.0.2 is an address of this machine, as it is on all systems but macOS.
pub fn has_second_loopback() -> bool {
    let has_it = !cfg!(target_os = "macos");
    if !has_it {
        eprintln!("skipped: 127.0.0.2 is not an address of this machine");
    }
    has_it
}

/// Whether this is Wine, where a test skips `what`.
pub fn is_wine(what: &str) -> bool {
    let is_wine = cfg!(windows) && env::var_os("WINECONFIGDIR").is_some();
    if is_wine {
        eprintln!("skipped: under Wine, {what}");
    }
    is_wine
}

/// Whether any port below 1024 is for privileged processes only. Reports nothing.
pub fn low_ports_are_privileged() -> bool {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    text.is_ok_and(|text| text.trim_end() == "1024")
}

/// Whether the tests were started with this signal ignored, as nohup(1) and a shell's `&`
/// start programs; their children ignore it too. Only Linux reports it.
#[cfg(unix)]
pub fn is_ignored(signal: rustix::process::Signal) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let is_ignored = mask.is_some_and(|mask| mask >> (signal.as_raw() - 1) & 1 == 1);
    if is_ignored {
        eprintln!("skipped: {signal:?} is ignored here");
    }
    is_ignored
}
