//! Linux: /proc, pidfds, and the abstract socket namespace.

mod caller;
mod private_tmp;
mod process;

use std::{
    fs, io,
    os::{
        linux::net::SocketAddrExt,
        unix::{fs::MetadataExt as _, net::SocketAddr},
    },
    path::{Path, PathBuf},
    sync::LazyLock,
};

use procfs::{
    ProcResult,
    process::{FDTarget, Process as ShownProcess},
};

pub(crate) use caller::caller;
pub(crate) use private_tmp::private_tmp;
pub(crate) use process::{Process, processes};
pub(crate) const CAN_STOP: bool = true;
pub(crate) const STOP_HELP: &str = "\
Each process receives SIGTERM and, if it has not ended after --timeout, SIGKILL. Signals are
sent through a descriptor (pidfd_open(2)), so they never reach another process that reuses
the pid. Processes that it starts before it ends are stopped too, and so is a process that
inherits its lease. A descendant that was already an orphan when portlock started, and
does not have the lease, is not found.";
pub(crate) const PICK_HELP: &str = "\
The lease is for the process that will use the port. Starting at its parent, portlock
skips every process that only passes its output on: a process whose standard output is
the pipe or socket that portlock itself writes to, and a subshell whose output goes to
a different pipe than its shell's output.

  Called from                       The lease is for
  P=$(portlock pick) in a script    the script; also in a function,
                                    in a pipeline inside $( ), behind
                                    timeout, env, xargs or sh -c
  (...; P=$(portlock pick); ...) &  that subshell
  portlock pick | while read P; ... the script
  portlock pick at a prompt         that shell
  portlock pick, not captured, in   the script's parent: use
    a script whose output is piped  --pid $$
  timeout 9 portlock pick >FILE     timeout, which ends right away:
                                    use --pid $$
  cat <(portlock pick)              cat, which ends right away: use
                                    --pid $$
  P=$(./x), if ./x or sh -c itself  ./x, which ends right away: let
    captures or pipes the port      it only run portlock pick
  $(shell portlock pick), makefile  make
  P=$$(portlock pick); ... in a     the shell of that line
    make recipe
  a subprocess of Python, Node.js   the interpreter
  .envrc of direnv                  the bash that reads it, and ends
                                    right away: use
                                    --pid $(ps -o ppid= $PPID)
  a CI step, to set $GITHUB_ENV     the shell of that step: use
                                    --pid $PPID, or use portlock run
  the entrypoint of a container     the entrypoint: it may be process
                                    1 there
  docker exec C portlock pick       none, an error: use --pid 1
  docker exec C sh -c 'P=$(...)...' that sh
  ssh HOST portlock pick            the connection; ends with it
  ssh HOST 'P=$(portlock pick)...'  the shell on HOST
  P=$(sudo portlock pick)           the script, but in root's lock
                                    directory
  P=$(sudo -u USER portlock pick)   sudo, with a warning: use --pid $$
  P=$(portlock pick); ... in a      the shell of that job
    crontab

If portlock cannot determine which process will use the port, it fails and asks for --pid:
behind a process that cannot be inspected, in an orphan, if only init is left, or without
a /proc of this pid namespace.";
pub(super) const DEFAULT_ADDRESS: Option<&str> = Some("@unittest-portserver");
/// Maximum number of open descriptors besides the hard limit: Linux has none.
pub(super) const OPEN_MAX: Option<u64> = None;
pub(super) const ADDRESS_HELP: &str = "Where to listen: @NAME in the abstract namespace, or a path";

/// Returns the command line of a process, program first, if it can be read.
pub(crate) fn command_line(pid: u32) -> Option<Vec<String>> {
    let arguments = process(pid)?.cmdline().ok()?;
    Some(arguments).filter(|arguments| !arguments.is_empty())
}

/// Returns the current directory of a process, if it can be read.
pub(crate) fn current_dir(pid: u32) -> Option<String> {
    let dir = process(pid)?.cwd().ok()?;
    Some(dir.to_string_lossy().into_owned())
}

/// Returns whether a process has a file open, as far as this process may see.
pub(crate) fn has_open(pid: u32, file: &Path) -> bool {
    let identity = |path: &Path| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    let Some(wanted) = identity(file) else {
        return false;
    };
    let descriptors = process(pid).and_then(|process| process.fd().ok());
    descriptors.into_iter().flatten().flatten().any(|found| {
        // Compare the name first: other files may be on a file server that does not respond.
        let is_named_so =
            matches!(&found.target, FDTarget::Path(path) if path.file_name() == file.file_name());
        is_named_so && identity(Path::new(&format!("/proc/{pid}/fd/{}", found.fd))) == Some(wanted)
    })
}

fn process(pid: u32) -> Option<ShownProcess> {
    ShownProcess::new(i32::try_from(pid).ok()?).ok()
}

pub(super) fn abstract_address(name: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(name)
}

pub(super) fn abstract_name(address: &SocketAddr) -> Option<&[u8]> {
    address.as_abstract_name()
}

/// Checks that a peer is in this process's pid namespace. `peer` is its pid in that namespace.
/// Fails if that cannot be determined.
pub(super) fn check_namespace(peer: Option<u32>) -> Result<(), String> {
    /// This process's pid namespace, if /proc shows it. It never changes.
    static OWN: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
        let is_own_proc = namespaces(ShownProcess::myself()).ok()? == 1;
        is_own_proc.then(|| fs::read_link("/proc/self/ns/pid").ok())?
    });
    // The kernel reports pid 0 for a process that is not visible here.
    let Some(peer) = peer.filter(|&peer| peer > 0) else {
        return Err("it is in a pid namespace that is not visible to this server".to_owned());
    };
    let Some(own) = &*OWN else {
        let message = format!(
            "this server has no /proc of its own pid namespace, so it cannot determine the pid \
             namespace of process {peer} (mount one, as unshare --mount-proc does)"
        );
        return Err(message);
    };
    // Reading the link takes a tenth of the time of reading the status, but only root can read the
    // link of another user's process.
    let is_same = match fs::read_link(format!("/proc/{peer}/ns/pid")) {
        Ok(namespace) => Ok(namespace == *own),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let process = i32::try_from(peer).map_err(|error| error.to_string())?;
            namespaces(ShownProcess::new(process))
                .map(|number| number == 1)
                .map_err(|error| error.to_string())
        }
        Err(error) => Err(error.to_string()),
    };
    match is_same {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!(
            "process {peer} is in another pid namespace, so its pids mean other processes here"
        )),
        Err(why) => Err(format!(
            "cannot determine the pid namespace of process {peer}: {why}"
        )),
    }
}

/// Returns the number of pid namespaces in which a process has a pid, counted from that of the /proc
/// mount: 1 if the process is in that namespace itself (`NSpid` in proc_pid_status(5)).
fn namespaces(process: ProcResult<ShownProcess>) -> ProcResult<usize> {
    let numbers = process?.status()?.nspid;
    Ok(numbers.map_or(0, |numbers| numbers.len()))
}

/// Checks that this user may request a port for the process.
pub(super) fn check_user(pid: u32, user: u32) -> Result<(), String> {
    let process = i32::try_from(pid)
        .ok()
        .and_then(|pid| ShownProcess::new(pid).ok());
    let Some(status) = process.and_then(|process| process.status().ok()) else {
        return Err(format!("process {pid}, which does not exist"));
    };
    if [status.ruid, status.euid].contains(&user) {
        Ok(())
    } else {
        Err(format!(
            "process {pid} of user {}: user {user} requested it",
            status.ruid
        ))
    }
}

#[cfg(test)]
mod tests {
    /// On a terminal of 80 columns, man(1) indents the text by 7 and fills lines up to 78.
    #[test]
    fn the_table_in_the_help_is_no_wider_than_a_man_page() {
        let table = super::PICK_HELP
            .lines()
            .filter(|line| line.starts_with(' '));
        let widest = table.map(str::len).max();
        assert!(widest.is_some_and(|width| width <= 71), "{widest:?}");
    }
}
