//! The ephemeral ports.

use std::{fs, ops::RangeInclusive};

/// Returns the kernel's range of ports for clients, where [`tells_ephemeral`].
pub(crate) fn ephemeral() -> RangeInclusive<u16> {
    assert!(tells_ephemeral());
    if !cfg!(target_os = "linux") {
        return portlock::ephemeral_port_range().expect("the system tells");
    }
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").expect("Linux");
    let mut ends = text.split_ascii_whitespace().map(|end| end.parse());
    let mut end = || ends.next().expect("two ends").expect("a port");
    end()..=end()
}

/// Whether the system reports that range. If not, as under Wine, reports that a test is left out.
pub(crate) fn tells_ephemeral() -> bool {
    let tells = portlock::ephemeral_port_range();
    if let Err(error) = &tells {
        eprintln!("left out: {error}");
    }
    cfg!(target_os = "linux") || tells.is_ok()
}
