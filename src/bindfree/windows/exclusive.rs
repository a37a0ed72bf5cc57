//! Sets `SO_EXCLUSIVEADDRUSE`, for which no safe library exists.
#![allow(unsafe_code, reason = "socket2 cannot set this option")]

use std::{io, os::windows::io::AsRawSocket as _};

use socket2::Socket;
use windows_sys::Win32::Networking::WinSock::{SO_EXCLUSIVEADDRUSE, SOL_SOCKET, setsockopt};

/// Keeps other sockets from binding the address that this socket will bind, and this socket from
/// binding an address that another socket has bound.
pub(crate) fn set_exclusive_address_use(socket: &Socket) -> io::Result<()> {
    let enabled = 1_i32;
    let length = i32::try_from(size_of_val(&enabled)).unwrap_or_default();
    let socket = usize::try_from(socket.as_raw_socket()).map_err(io::Error::other)?;
    // SAFETY: the value is a BOOL of the given length and lives until the call returns; the call
    // keeps no pointer to it. The socket is open because it is borrowed; an invalid one would
    // cause an error, not a fault.
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
        // WSAGetLastError is the same as GetLastError.
        _ => Err(io::Error::last_os_error()),
    }
}
