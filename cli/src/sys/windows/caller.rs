//! Finds the process that will use a picked port, if it can be determined.
//!
//! It is the parent, unless the parent only waits for portlock and ends with it. Two kinds of programs
//! do that: shims, which package managers install in PATH for a program, and the shells and tools of
//! Git Bash, MSYS2 and Cygwin, where a command substitution, or a tool that starts a program, is a
//! separate process. A lease for such a process would have ended before the port is used.

use std::{env, ffi::OsStr, fmt, path::Path, process};

use winsafe::{FILETIME, HPROCESS, HPROCESSLIST, SysResult, co};

use super::super::Caller;

/// Unix shells, which emulate fork, and tools that run a command and pass its output on. The tools are
/// those of Git Bash, MSYS2 and Cygwin, where each starts its command as a child.
const MESSENGERS: &[&str] = &[
    "ash", "bash", "busybox", "dash", "env", "fish", "ksh", "mksh", "nice", "nohup", "sh", "sudo",
    "time", "timeout", "xargs", "zsh",
];

/// Returns the parent.
///
/// # Errors
///
/// Fails if the parent only passes the port on, or has ended. In the latter case its pid may belong to a
/// process that started after this one.
pub(crate) fn caller() -> Result<Caller, String> {
    let parent = parent().ok_or("the process that started portlock has ended")?;
    let own = path(&HPROCESS::GetCurrentProcess()).unwrap_or_default();
    if let Some(kind) = messenger(&parent.program, &own) {
        return Err(format!(
            "its parent, process {} ({}), is {kind}, which ends with portlock",
            parent.pid, parent.program
        ));
    }
    Ok(Caller {
        pid: parent.pid,
        is_certain: true,
    })
}

/// Returns an example of --pid that names the calling shell, and where it works.
pub(crate) fn own_pid() -> &'static str {
    let has_name = |value: &OsStr| !value.is_empty();
    match env::var_os("MSYSTEM").as_deref().is_some_and(has_name) {
        true => "--pid \"$(cat /proc/$$/winpid)\" in Git Bash and MSYS2",
        false => "--pid $PID in PowerShell",
    }
}

/// A program that ends when the program that it started ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Messenger {
    Shim,
    Shell,
}

impl fmt::Display for Messenger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shim => "a shim",
            Self::Shell => "a process of a Unix shell or of a tool that the shell started",
        })
    }
}

/// Returns the kind of the parent if it only passes portlock's output on. Both arguments are paths, or
/// only a file name if the path is not accessible.
fn messenger(parent: &str, own: &str) -> Option<Messenger> {
    let (parent, own) = (Path::new(parent), Path::new(own));
    let same = |a: &OsStr, b: &OsStr| a.eq_ignore_ascii_case(b);
    let is_named_alike = match (parent.file_name(), own.file_name()) {
        (Some(parent), Some(own)) => same(parent, own),
        _ => false,
    };
    let dir = parent.parent().and_then(Path::file_name);
    // The shims of Scoop and many version managers are in a directory of that name. Those of Chocolatey,
    // in `chocolatey\bin`, have the same name as their program, which is elsewhere.
    if dir.is_some_and(|dir| same(dir, OsStr::new("shims")))
        || is_named_alike && !same(parent.as_os_str(), own.as_os_str())
    {
        return Some(Messenger::Shim);
    }
    let name = parent.file_stem()?;
    MESSENGERS
        .iter()
        .any(|known| same(name, OsStr::new(known)))
        .then_some(Messenger::Shell)
}

struct Parent {
    pid: u32,
    /// Its path, or only its file name if this user cannot read the path.
    program: String,
}

fn parent() -> Option<Parent> {
    let own = process::id();
    let mut list = HPROCESSLIST::CreateToolhelp32Snapshot(co::TH32CS::SNAPPROCESS, None).ok()?;
    let all = list.iter_processes().map_while(SysResult::ok);
    let all: Vec<(u32, u32, String)> = all
        .map(|entry| {
            let (pid, parent) = (entry.th32ProcessID, entry.th32ParentProcessID);
            (pid, parent, entry.szExeFile())
        })
        .collect();
    let (_, pid, _) = *all.iter().find(|(pid, ..)| *pid == own)?;
    let rights = co::PROCESS::QUERY_LIMITED_INFORMATION;
    let opened = HPROCESS::OpenProcess(rights, false, pid).ok()?;
    if start(&opened)? > start(&HPROCESS::GetCurrentProcess())? {
        return None;
    }
    let name = || all.into_iter().find(|(other, ..)| *other == pid);
    let program = path(&opened).or_else(|| name().map(|(.., name)| name));
    let program = program.unwrap_or_default();
    Some(Parent { pid, program })
}

fn path(process: &HPROCESS) -> Option<String> {
    process
        .QueryFullProcessImageName(co::PROCESS_NAME::WIN32)
        .ok()
}

/// Returns the start time of a process, in tenths of a microsecond.
pub(super) fn start(process: &HPROCESS) -> Option<u64> {
    let (
        FILETIME {
            dwHighDateTime: high,
            dwLowDateTime: low,
        },
        ..,
    ) = process.GetProcessTimes().ok()?;
    Some(u64::from(high) << 32 | u64::from(low))
}

#[cfg(test)]
mod tests {
    use super::{Messenger::*, messenger};

    const OWN: &str = r"C:\Users\me\scoop\apps\portlock\current\portlock.exe";

    #[test]
    fn a_parent_that_ends_with_portlock_is_not_the_caller() {
        for (parent, kind) in [
            // Scoop, Chocolatey, and a shim under another name.
            (r"C:\Users\me\scoop\shims\portlock.exe", Some(Shim)),
            (r"C:\ProgramData\chocolatey\bin\portlock.exe", Some(Shim)),
            (r"c:\programdata\scoop\SHIMS\pl.exe", Some(Shim)),
            ("portlock.exe", Some(Shim)),
            // `portlock run -- portlock pick`.
            (OWN, None),
            (&OWN.to_uppercase(), None),
            (r"C:\Program Files\Git\usr\bin\bash.exe", Some(Shell)),
            (r"C:\Program Files\Git\usr\bin\SH.EXE", Some(Shell)),
            (r"C:\cygwin64\bin\zsh.exe", Some(Shell)),
            (r"C:\msys64\usr\bin\timeout.exe", Some(Shell)),
            ("bash.exe", Some(Shell)),
            (r"C:\Program Files\PowerShell\7\pwsh.exe", None),
            (
                r"C:\Windows\System32\WindowsPowerShell\v1.0\powershell.exe",
                None,
            ),
            (r"C:\Windows\System32\cmd.exe", None),
            (r"C:\Python313\python.exe", None),
            (r"C:\bash\node.exe", None),
            (r"C:\shims\bin\make.exe", None),
            ("python.exe", None),
            ("", None),
        ] {
            assert_eq!(messenger(parent, OWN), kind, "{parent}");
        }
        // The path of this process is not known.
        assert_eq!(messenger(r"C:\Python313\python.exe", ""), None);
        assert_eq!(messenger("", ""), None);
    }

    /// As on Linux, where man pages are read.
    #[test]
    fn the_table_in_the_help_is_no_wider_than_a_man_page() {
        let table = super::super::PICK_HELP
            .lines()
            .filter(|line| line.starts_with(' '));
        let widest = table.map(str::len).max();
        assert!(widest.is_some_and(|width| width <= 71), "{widest:?}");
    }
}
