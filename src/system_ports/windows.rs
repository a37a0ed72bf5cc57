//! The ports that Windows sets aside, as `netsh` prints them.
//!
//! No documented function returns them. `netsh` writes in the user's language and in a console's
//! code page, so only the numbers are read, which are ASCII digits in all of them.

use std::{
    env, io,
    io::Read as _,
    ops::RangeInclusive,
    os::windows::process::CommandExt as _,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{OnceLock, mpsc},
    thread,
    time::Duration,
};

use crate::{
    error::{Error, ErrorKind, Result},
    logging::warn,
    ports::PortSet,
};

/// The system's default since Windows Vista, and IANA's range.
const DEFAULT_EPHEMERAL: RangeInclusive<u16> = 49152..=65535;

/// Time limit for a run of `netsh`. It usually takes a tenth of a second.
const NETSH_TIMEOUT: Duration = Duration::from_secs(10);

const DYNAMIC: &str = "int ipv4 show dynamicport tcp";
const EXCLUDED: &str = "int ipv4 show excludedportrange tcp";

/// Returns the ephemeral range.
pub(crate) fn ephemeral() -> Result<RangeInclusive<u16>> {
    static KNOWN: OnceLock<RangeInclusive<u16>> = OnceLock::new();
    if let Some(range) = KNOWN.get() {
        return Ok(range.clone());
    }
    let text = netsh(DYNAMIC)?;
    let range = dynamic_range(&text).ok_or_else(|| not_understood(DYNAMIC, &text))?;
    Ok(KNOWN.get_or_init(|| range).clone())
}

/// Returns the ephemeral range, for choosing ports outside it. If it cannot be read, returns the
/// system's default.
pub(crate) fn presumably_ephemeral() -> Result<RangeInclusive<u16>> {
    static PRESUMED: OnceLock<RangeInclusive<u16>> = OnceLock::new();
    let range = PRESUMED.get_or_init(|| {
        ephemeral().unwrap_or_else(|error| {
            let (first, last) = (DEFAULT_EPHEMERAL.start(), DEFAULT_EPHEMERAL.end());
            warn!("{error}; assuming that the ephemeral range is {first} to {last}");
            DEFAULT_EPHEMERAL
        })
    });
    Ok(range.clone())
}

/// Returns the ports that are reserved for some program: those of the excluded ranges. A bind of
/// most of them fails as if they were in use, but not of those that an administrator has excluded
/// for a program.
pub(crate) fn reserved() -> Result<PortSet> {
    static KNOWN: OnceLock<PortSet> = OnceLock::new();
    let ports = KNOWN.get_or_init(|| match netsh(EXCLUDED) {
        Ok(text) => excluded_ranges(&text),
        Err(error) => {
            warn!("{error}; assuming that no ports are excluded");
            PortSet::default()
        }
    });
    Ok(ports.clone())
}

/// Privilege that a process needs to bind the ports that are not permitted to it.
pub(crate) const PRIVILEGE: &str = "a policy of the system forbids them";

/// Returns the first port that this process may bind: no port needs a privilege.
pub(crate) fn first_permitted() -> Result<u16> {
    Ok(1)
}

/// Returns the output of `netsh`.
fn netsh(arguments: &str) -> Result<String> {
    let fail = |cause: io::Error| {
        let message = format!("cannot run netsh {arguments}");
        Error::with_cause(ErrorKind::Unsupported, message, cause)
    };
    // Not the first one in a search path.
    let root = env::var_os("SystemRoot").unwrap_or_else(|| r"C:\Windows".into());
    let program = PathBuf::from(root).join(r"System32\netsh.exe");
    const CREATE_NO_WINDOW: u32 = 0x0800_0000;
    let mut child = Command::new(program)
        .args(arguments.split(' '))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .creation_flags(CREATE_NO_WINDOW)
        .spawn()
        .map_err(fail)?;
    let (sender, text) = mpsc::channel();
    let stdout = child.stdout.take();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = stdout.map_or(Ok(0), |mut stdout| stdout.read_to_end(&mut bytes));
        let _ = sender.send(read.map(|_| bytes));
    });
    let Ok(read) = text.recv_timeout(NETSH_TIMEOUT) else {
        let _ = child.kill();
        let _ = child.wait();
        return Err(fail(io::ErrorKind::TimedOut.into()));
    };
    let bytes = read.map_err(fail)?;
    let status = child.wait().map_err(fail)?;
    if !status.success() {
        return Err(fail(io::Error::other(status.to_string())));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn not_understood(arguments: &str, text: &str) -> Error {
    let message = format!("cannot understand netsh {arguments}: {:?}", text.trim());
    Error::new(ErrorKind::Unsupported, message)
}

/// Parses the range from two lines that end with a number: the first port and the number of
/// ports.
fn dynamic_range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.lines().filter_map(|line| {
        let line = line.trim_end();
        let digits = line.len() - line.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        line[line.len() - digits..].parse::<u32>().ok()
    });
    let (first, count, None) = (numbers.next()?, numbers.next()?, numbers.next()) else {
        return None;
    };
    let last = first.checked_add(count.checked_sub(1)?)?;
    Some(u16::try_from(first).ok()?..=u16::try_from(last).ok()?)
}

/// Parses the ranges from the lines that begin with two ports.
fn excluded_ranges(text: &str) -> PortSet {
    let range = |line: &str| {
        let mut words = line.split_whitespace();
        let mut port = || words.next()?.parse::<u16>().ok();
        Some(PortSet::from(port()?..=port()?))
    };
    let ranges = text.lines().filter_map(range);
    ranges.fold(PortSet::default(), |all, range| all.union(&range))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dynamic_range_is_read_in_any_language() {
        for text in [
            "\r\nProtocol tcp Dynamic Port Range\r\n---------------------------------\r\n\
             Start Port      : 49152\r\nNumber of Ports : 16384\r\n\r\n",
            "\r\nProtokoll tcp Dynamischer Portbereich\r\n---------------------------------\r\n\
             Startport          : 49152\r\nAnzahl von Ports   : 16384\r\n\r\n",
            "\r\nPlage de ports dynamique du protocole tcp\r\n---------------------------------\r\n\
             Port de d\u{fffd}marrage   : 49152\r\nNombre de ports     : 16384\r\n\r\n",
            "\r\nプロトコル tcp の動的ポートの範囲\r\n---------------------------------\r\n\
             開始ポート     : 49152\r\nポート数       : 16384\r\n\r\n",
        ] {
            assert_eq!(dynamic_range(text), Some(49152..=65535), "{text}");
        }
        assert_eq!(dynamic_range("a : 1025\nb : 64511\n"), Some(1025..=65535));
        for text in [
            "",
            "The following command was not found: int ipv4 show dynamicport tcp.",
            "a : 49152\n",
            "a : 49152\nb : 16385\n",
            "a : 49152\nb : 0\n",
            "a : 1\nb : 2\nc : 3\n",
            "a : 99999999999\nb : 1\n",
        ] {
            assert_eq!(dynamic_range(text), None, "{text}");
        }
    }

    #[test]
    fn excluded_ranges_are_read_in_any_language() {
        let ranges = "\r\n      5357        5357\r\n     50000       50059     *\r\n\r\n";
        for (before, after) in [
            (
                "\r\nProtocol tcp Port Exclusion Ranges\r\n\r\nStart Port    End Port\r\n\
                 ----------    --------",
                "* - Administered port exclusions.\r\n",
            ),
            (
                "\r\nProtokoll tcp-Portausschlussbereiche\r\n\r\nStartport     Endport\r\n\
                 ----------    --------",
                "* - Verwaltete Portausschl\u{fffd}sse.\r\n",
            ),
        ] {
            let ports = excluded_ranges(&[before, ranges, after].concat());
            assert_eq!(ports.to_string(), "5357,50000-50059");
        }
        assert!(excluded_ranges("nothing").is_empty());
    }
}
