//! The sockets that can be bound on Windows.

pub(super) use std::os::windows::io::AsSocket as AnySocket;
