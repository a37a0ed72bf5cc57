//! The native part of the Python package in `src/portlock/`.
//!
//! The package's interface is written in Python. This crate provides what it needs of the library, and
//! converts arguments of any type and size to values or a documented error. It holds none of its locks
//! while Python code runs or the interpreter lock is released, so that a fork never leaves one locked.

#![forbid(unsafe_code)]

mod argument;
mod descriptor;
mod dir;
mod error;
mod lease;
mod port_set;
mod probe;
mod request;
mod wait;

use pyo3::prelude::*;

#[pymodule]
mod _native {
    #[pymodule_export]
    use crate::dir::{clean, entries, lock_dir, release_delegated};
    #[pymodule_export]
    use crate::lease::{Handle, Lease, forked};
    #[pymodule_export]
    use crate::port_set::{PortSet, ephemeral_port_range, server_ports};
    #[pymodule_export]
    use crate::probe::BindFreePort;
    #[pymodule_export]
    use crate::request::{Request, get_port_from_port_server};
}
