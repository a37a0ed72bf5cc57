//! Windows: nothing takes the place of another process, and locks are not inherited.

mod command;
mod endpoint;

use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
    os::windows::ffi::{OsStrExt, OsStringExt},
    process,
};

use netstat2::{
    AddressFamilyFlags, ProtocolFlags, ProtocolSocketInfo, SocketInfo, TcpState, get_sockets_info,
};
use winsafe::{FILETIME, HPROCESS, HPROCESSLIST, SysResult, co};

use super::Caller;
use crate::failure::Failure;

pub(crate) use command::{PASSES_LISTENERS, RUN_HELP, execute, program};
pub(crate) use endpoint::{
    ADDRESS_HELP, Connection, DEFAULT_ADDRESS, Endpoint, Passed, SERVE_HELP, Wishes, check_client,
    check_peer, finish, notify_ready, notify_stopping, passed_listeners, raise_descriptor_limit,
};
pub(crate) const PICK_HELP: &str = "\
The lease is for the parent of portlock. In PowerShell, $port = portlock pick is leased
until that PowerShell ends. `for /f` of cmd.exe starts portlock by way of another cmd.exe,
which ends right away: there, say --pid.";
/// What names the calling shell in an argument.
pub(crate) const OWN_PID: &str = "$PID";

/// Returns the parent, as on macOS.
///
/// # Errors
///
/// It has ended: then its pid may be that of a process that has started after this one.
pub(crate) fn caller() -> Result<Caller, String> {
    let caller = parent().map(|pid| Caller {
        pid,
        is_certain: true,
    });
    caller.ok_or_else(|| "the process that started portlock has ended".to_owned())
}

fn parent() -> Option<u32> {
    let own = process::id();
    let mut list = HPROCESSLIST::CreateToolhelp32Snapshot(co::TH32CS::SNAPPROCESS, None).ok()?;
    let mut processes = list.iter_processes().map_while(SysResult::ok);
    let this = processes.find(|process| process.th32ProcessID == own)?;
    let parent = this.th32ParentProcessID;
    let rights = co::PROCESS::QUERY_LIMITED_INFORMATION;
    let opened = HPROCESS::OpenProcess(rights, false, parent).ok()?;
    (start(&opened)? <= start(&HPROCESS::GetCurrentProcess())?).then_some(parent)
}

/// When a process has started, in tenths of a microsecond.
fn start(process: &HPROCESS) -> Option<u64> {
    let (
        FILETIME {
            dwHighDateTime: high,
            dwLowDateTime: low,
        },
        ..,
    ) = process.GetProcessTimes().ok()?;
    Some(u64::from(high) << 32 | u64::from(low))
}

/// Whether it is certain, before any port is looked at, that there is no such process.
pub(crate) fn is_no_process(pid: u32) -> bool {
    let opened = HPROCESS::OpenProcess(co::PROCESS::QUERY_LIMITED_INFORMATION, false, pid);
    matches!(opened, Err(co::ERROR::INVALID_PARAMETER))
}

/// The ports on which a TCP socket listens or a UDP socket is bound.
///
/// Only looks, for the same reason as on Linux (GetExtendedTcpTable,
/// GetExtendedUdpTable).
pub(crate) fn ports_in_use() -> Result<HashSet<u16>, Failure> {
    let families = [AddressFamilyFlags::IPV4, AddressFamilyFlags::IPV6];
    let protocols = [ProtocolFlags::TCP, ProtocolFlags::UDP];
    let lists = families
        .into_iter()
        .flat_map(|family| protocols.map(|protocol| get_sockets_info(family, protocol)));
    // A list that is not there, as that of IPv6 may be, has no sockets.
    let sockets = lists.flatten().flatten();
    let port = |socket: SocketInfo| match socket.protocol_socket_info {
        ProtocolSocketInfo::Tcp(tcp) => (tcp.state == TcpState::Listen).then_some(tcp.local_port),
        ProtocolSocketInfo::Udp(udp) => Some(udp.local_port),
    };
    Ok(sockets.filter_map(port).collect())
}

/// What the system's arguments are made of.
pub(crate) type Unit = u16;

/// An argument in the units that the system has it in, well-formed or not.
pub(crate) fn units(text: &OsStr) -> Vec<Unit> {
    text.encode_wide().collect()
}

pub(crate) fn from_units(units: Vec<Unit>) -> OsString {
    OsString::from_wide(&units)
}
