//! The sockets that can be bound on Unix.

pub(super) use std::os::fd::AsFd as AnySocket;
