//! What only Linux has: its lists of sockets, the abstract namespace, and /proc.

mod caller;
mod private_tmp;
mod process;

use std::{
    fs, io,
    os::{linux::net::SocketAddrExt, unix::net::SocketAddr},
    path::PathBuf,
    sync::LazyLock,
};

use procfs::{ProcResult, process::Process as ShownProcess};

pub(crate) use caller::caller;
pub(crate) use private_tmp::private_tmp;
pub(crate) use process::{Process, processes};
pub(crate) const CAN_STOP: bool = true;
pub(crate) const STOP_HELP: &str = "\
Each process gets SIGTERM and, if it has not ended after --timeout, SIGKILL. A process is
named by a descriptor (pidfd_open(2)), so that no signal ever reaches another one that has
got its pid. What a process has started before it ends is stopped too, and so is what it
has left its lease to. A descendant that had become an orphan before portlock was started,
and does not have the lease, is not found.";
pub(crate) const PICK_HELP: &str = "\
The lease is for the process that will use the port. Starting at its parent, portlock
passes over every process that only hands its output on: a process whose standard output
is the pipe or socket that portlock itself writes to, and a subshell whose output goes
into another pipe than that of its shell.

  Called from                       The lease is for
  P=$(portlock pick) in a script    the script; also in a function,
                                    in a pipeline inside $( ), behind
                                    timeout, env, xargs or sh -c
  (...; P=$(portlock pick); ...) &  that subshell
  portlock pick | while read P; ... the script
  portlock pick at a prompt         that shell
  portlock pick, not captured, in   what started the script: say
    a script whose output is piped  --pid $$
  timeout 9 portlock pick >FILE     timeout, which ends right away:
                                    say --pid $$
  cat <(portlock pick)              cat, which ends right away: say
                                    --pid $$
  P=$(./x), if ./x or sh -c itself  ./x, which ends right away: let
    captures or pipes the port      it only run portlock pick
  $(shell portlock pick), makefile  make
  P=$$(portlock pick); ... in a     the shell of that line
    recipe of make
  a subprocess of Python, Node.js   the interpreter
  .envrc of direnv                  the bash that reads it, and ends
                                    right away: say
                                    --pid $(ps -o ppid= $PPID)
  a CI step, to set $GITHUB_ENV     the shell of that step: say
                                    --pid $PPID, or use portlock run
  the entrypoint of a container     the entrypoint: it may be process
                                    1 there
  docker exec C portlock pick       nobody, an error: say --pid 1
  docker exec C sh -c 'P=$(...)...' that sh
  ssh HOST portlock pick            the connection: ends with it
  ssh HOST 'P=$(portlock pick)...'  the shell on HOST
  P=$(sudo portlock pick)           the script, but in the lock
                                    directory of root
  P=$(sudo -u USER portlock pick)   sudo, with a warning: say --pid $$
  P=$(portlock pick); ... in a      the shell of that job
    crontab

portlock ends with an error that asks for --pid if it cannot tell who will use the port:
behind a process that may not be inspected, in an orphan, if only init is left, or without
a /proc of this pid namespace.";
pub(super) const DEFAULT_ADDRESS: Option<&str> = Some("@unittest-portserver");
/// The most descriptors that a process may ask for: as many as its hard limit says.
pub(super) const OPEN_MAX: Option<u64> = None;
pub(super) const ADDRESS_HELP: &str = "Where to listen: @NAME in the abstract namespace, or a path";

/// Returns the arguments of a process, with its program as the first one, if they can be seen.
pub(crate) fn command_line(pid: u32) -> Option<Vec<String>> {
    let arguments = process(pid)?.cmdline().ok()?;
    Some(arguments).filter(|arguments| !arguments.is_empty())
}

/// Returns the current directory of a process, if it can be seen.
pub(crate) fn current_dir(pid: u32) -> Option<String> {
    let dir = process(pid)?.cwd().ok()?;
    Some(dir.to_string_lossy().into_owned())
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

/// Checks that a peer, given by its pid in this process's pid namespace, is itself in that
/// namespace. What cannot be determined is an error.
pub(super) fn check_namespace(peer: Option<u32>) -> Result<(), String> {
    /// This process's pid namespace, if /proc shows it. A process never changes its own.
    static OWN: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
        let is_own_proc = namespaces(ShownProcess::myself()).ok()? == 1;
        is_own_proc.then(|| fs::read_link("/proc/self/ns/pid").ok())?
    });
    // The kernel translates to 0 what is not visible.
    let Some(peer) = peer.filter(|&peer| peer > 0) else {
        return Err("it is in a pid namespace that cannot be seen from this server's".to_owned());
    };
    let Some(own) = &*OWN else {
        let message = format!(
            "this server has no /proc of its own pid namespace, and cannot see in which one \
             process {peer} is (mount one, as unshare --mount-proc does)"
        );
        return Err(message);
    };
    // The link costs a tenth of the status, but only root may read that of other users.
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
            "process {peer} is in another pid namespace, and its pids are other processes here"
        )),
        Err(why) => Err(format!(
            "it cannot be determined in which pid namespace process {peer} is: {why}"
        )),
    }
}

/// Returns in how many pid namespaces a process has a pid, counted from that of the /proc
/// mount: 1 if it is in that one itself (`NSpid`, proc_pid_status(5)).
fn namespaces(process: ProcResult<ShownProcess>) -> ProcResult<usize> {
    let numbers = process?.status()?.nspid;
    Ok(numbers.map_or(0, |numbers| numbers.len()))
}

/// Whether the process may have a port that this user asks for.
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
            "process {pid} of user {}, for user {user} asked for it",
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
