//! The ports that the kernel sets aside (ip-sysctl in the kernel's documentation).

use std::{
    fs::File,
    io,
    ops::RangeInclusive,
    os::unix::fs::FileExt as _,
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::{
    fs::{CWD, Mode, OFlags},
    thread::{CapabilitySet, capabilities},
};

use crate::{
    error::{Error, ErrorKind, Result},
    logging::warn,
    ports::PortSet,
    retry::retry,
};

/// A kernel setting and the kernel's default for it.
struct Setting {
    path: &'static str,
    default: &'static str,
    /// Whether the warning was logged: a process that leases often would otherwise repeat it for
    /// each lease.
    has_warned: AtomicBool,
}

impl Setting {
    const fn new(path: &'static str, default: &'static str) -> Self {
        Self {
            path,
            default,
            has_warned: AtomicBool::new(false),
        }
    }
}

static EPHEMERAL: Setting = Setting::new("/proc/sys/net/ipv4/ip_local_port_range", "32768 60999");
static RESERVED: Setting = Setting::new("/proc/sys/net/ipv4/ip_local_reserved_ports", "");
/// `IPPORT_RESERVED`, which was not a setting before Linux 4.11.
static UNPRIVILEGED: Setting =
    Setting::new("/proc/sys/net/ipv4/ip_unprivileged_port_start", "1024");

/// Length in bytes of the first read of a setting: enough for all but long lists.
const FIRST_READ_LEN: usize = 4096;

/// Length in bytes of the largest read. The longest list that the kernel can write, pairs of
/// ports separated by one port, has 256 KiB.
const MAX_READ_LEN: usize = 1 << 20;

/// Returns the ephemeral range.
pub(crate) fn ephemeral() -> Result<RangeInclusive<u16>> {
    let text = EPHEMERAL.read()?;
    let mut ends = text.split_ascii_whitespace().map(str::parse::<u16>);
    match (ends.next(), ends.next(), ends.next()) {
        (Some(Ok(first)), Some(Ok(last)), None) => Ok(first..=last),
        _ => Err(EPHEMERAL.not_understood(&text)),
    }
}

/// Returns the ephemeral range, for choosing ports outside it.
pub(crate) fn presumably_ephemeral() -> Result<RangeInclusive<u16>> {
    ephemeral()
}

/// Returns the ports that are reserved for some program.
pub(crate) fn reserved() -> Result<PortSet> {
    let text = RESERVED.read()?;
    listed(&text).map_err(|_| RESERVED.not_understood(&text))
}

/// Parses a list of ports in the kernel's form, such as `0-1023,8080`: ascending, in the form of
/// a [`PortSet`], except that it can contain port 0.
fn listed(text: &str) -> Result<PortSet> {
    match text.trim_ascii().strip_prefix('0') {
        Some("") => Ok(PortSet::default()),
        Some(rest) if rest.starts_with('-') => format!("1{rest}").parse(),
        Some(rest) if rest.starts_with(',') => rest.parse(),
        _ => text.parse(),
    }
}

/// Privilege that a process needs to bind the ports that are not permitted to it.
pub(crate) const PRIVILEGE: &str =
    "ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE";

/// Returns the first port that this process may bind.
pub(crate) fn first_permitted() -> Result<u16> {
    if may_bind_privileged_ports() {
        return Ok(1);
    }
    let text = UNPRIVILEGED.read()?;
    let first = text.trim_ascii().parse();
    first.map_err(|_| UNPRIVILEGED.not_understood(&text))
}

/// Returns whether this process may bind privileged ports. If this cannot be determined, returns
/// `false`: at worst, usable ports are not used.
fn may_bind_privileged_ports() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_BIND_SERVICE))
}

impl Setting {
    /// Returns the setting's text, or the kernel's default if the setting is hidden from this
    /// process, as in some containers and sandboxes.
    fn read(&self) -> Result<String> {
        // An empty list is still a line.
        let is_empty = |text: &str| match self.default {
            "" => text.is_empty(),
            _ => text.trim_ascii().is_empty(),
        };
        let hidden = match read_whole(self.path) {
            Ok(text) if !is_empty(&text) => return Ok(text),
            Ok(_) => "it is empty".to_owned(),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
                ) =>
            {
                error.to_string()
            }
            Err(error) => {
                let message = format!("cannot read {}", self.path);
                return Err(Error::with_cause(ErrorKind::Unsupported, message, error));
            }
        };
        // Not `Once`: a child that is forked while another thread is in it would wait forever.
        if !self.has_warned.swap(true, Ordering::Relaxed) {
            let default = match self.default {
                "" => "none",
                default => default,
            };
            let path = self.path;
            warn!("cannot read {path} ({hidden}): the kernel's default, {default}, is used");
        }
        Ok(self.default.to_owned())
    }

    fn not_understood(&self, text: &str) -> Error {
        const BRIEF: usize = 80;
        let text = text.trim_ascii_end();
        let brief: String = text.chars().take(BRIEF).collect();
        let cut = if brief.len() < text.len() { "…" } else { "" };
        let message = format!("cannot understand {}: {brief:?}{cut}", self.path);
        Error::new(ErrorKind::Unsupported, message)
    }
}

/// Reads a file of procfs in a single read.
///
/// The kernel writes a list of ports for a read at offset 0 and nothing for a read at any other
/// offset (`proc_do_large_bitmap`), so whatever does not fit into the first read cannot be read.
/// std's functions begin with a read of 32 bytes.
fn read_whole(path: &str) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = retry(|| Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?))?;
    let file = File::from(file);
    let mut buffer = vec![0; FIRST_READ_LEN];
    loop {
        let len = retry(|| file.read_at(&mut buffer, 0))?;
        // A full buffer may not contain everything.
        if len < buffer.len() {
            buffer.truncate(len);
            return String::from_utf8(buffer).map_err(|error| io::Error::other(error.utf8_error()));
        }
        if len >= MAX_READ_LEN {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        buffer.resize(len * 16, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_list_of_the_kernel_may_have_port_0() {
        for (text, ports) in [
            ("\n", ""),
            ("0\n", ""),
            ("0-1023\n", "1-1023"),
            ("0,2-3\n", "2-3"),
            ("0-2,8080,9148-9150\n", "1-2,8080,9148-9150"),
            ("8080,65535\n", "8080,65535"),
            ("0-65535\n", "1-65535"),
        ] {
            let listed = listed(text).expect(text);
            assert_eq!(listed.to_string(), ports, "{text:?}");
        }
        for text in ["x", "00", "0x", "0 1", "0-", "8080-", "65536", "-1"] {
            assert!(listed(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_file_is_read_whole_whatever_its_length() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("setting");
        let path = path.to_str().expect("UTF-8");
        for len in [
            0,
            1,
            33,
            FIRST_READ_LEN - 1,
            FIRST_READ_LEN,
            FIRST_READ_LEN + 1,
            16 * FIRST_READ_LEN,
            MAX_READ_LEN - 1,
        ] {
            let text = "8".repeat(len);
            fs::write(path, &text).expect("our own directory");
            assert!(read_whole(path).expect("it can be read") == text, "{len}");
        }
        fs::write(path, "8".repeat(MAX_READ_LEN)).expect("our own directory");
        let error = read_whole(path).expect_err("it is too long");
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        fs::write(path, b"8080\xff").expect("our own directory");
        assert!(read_whole(path).is_err());
    }

    #[test]
    fn a_setting_that_cannot_be_understood_is_quoted_in_brief() {
        let message = RESERVED.not_understood(&"x,".repeat(1000)).to_string();
        assert!(
            message.contains("\"x,x,") && message.ends_with("\"…"),
            "{message}"
        );
        assert!(message.len() < 200, "{message}");
        let message = RESERVED.not_understood("x\n").to_string();
        assert!(
            message.ends_with("ip_local_reserved_ports: \"x\""),
            "{message}"
        );
    }
}
