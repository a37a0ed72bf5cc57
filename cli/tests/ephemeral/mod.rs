//! The system's ephemeral ports.

use std::{fs, ops::RangeInclusive};

/// Returns the kernel's range of ports for clients. Call it only if [`reports_ephemeral`].
pub(crate) fn ephemeral() -> RangeInclusive<u16> {
    assert!(reports_ephemeral());
    if !cfg!(target_os = "linux") {
        return portlock::ephemeral_port_range().expect("the system reports it");
    }
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").expect("Linux");
    let mut ends = text.split_ascii_whitespace().map(|end| end.parse());
    let mut end = || ends.next().expect("two ends").expect("a port");
    end()..=end()
}

/// Returns whether the system reports that range. If not, as under Wine, prints that a test is skipped.
pub(crate) fn reports_ephemeral() -> bool {
    let range = portlock::ephemeral_port_range();
    if let Err(error) = &range {
        eprintln!("skipped: {error}");
    }
    cfg!(target_os = "linux") || range.is_ok()
}
