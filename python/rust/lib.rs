//! The library portlock for Python: what `src/portlock/` is made of.
//!
//! Classes that users see are Python's; here is what they need of the library, with arguments of any
//! type and size turned into values or a documented error. No lock of this crate is held while Python
//! code runs or the interpreter lock is released, so that a fork never leaves one locked.

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
