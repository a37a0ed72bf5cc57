//! `SO_EXCLUSIVEADDRUSE`, for which there is no safe library.
#![allow(unsafe_code, reason = "socket2 cannot set this option")]

use std::{io, os::windows::io::AsRawSocket as _};

use socket2::Socket;
use windows_sys::Win32::Networking::WinSock::{SO_EXCLUSIVEADDRUSE, SOL_SOCKET, setsockopt};

/// Lets nobody bind what this socket will be bound to, nor this socket what anybody
/// has bound.
pub(crate) fn set_exclusive_address_use(socket: &Socket) -> io::Result<()> {
    let enabled = 1_i32;
    let length = i32::try_from(size_of_val(&enabled)).unwrap_or_default();
    let socket = usize::try_from(socket.as_raw_socket()).map_err(io::Error::other)?;
    // SAFETY: the value is a BOOL of the length given, and lives until the call returns,
    // which keeps no pointer to it. The socket is open, for it is borrowed; a wrong one
    // would be an error, not a fault.
    let outcome = unsafe {
        setsockopt(
            socket,
            SOL_SOCKET,
            SO_EXCLUSIVEADDRUSE,
            (&raw const enabled).cast(),
            length,
        )
    };
    match outcome {
        0 => Ok(()),
        // WSAGetLastError is GetLastError.
        _ => Err(io::Error::last_os_error()),
    }
}
