//! Free ports as leases.
//!
//! Whoever starts servers in tests needs a free port *number*, and between
//! "it was free" and "my server binds it" somebody else may take it. Here a
//! free port is a **lease**: a lock on a per-port file, held until
//! [`release`](FreePort::release), drop, or the holder's death, and shared by
//! all threads and processes of this machine. There is no daemon and nothing
//! to clean up.
//!
//! ```no_run
//! use std::process::Command;
//!
//! let port = portlock::FreePort::new(4000..=6000)?;
//! Command::new("redis-server").args(["--port", &port.to_string()]).spawn()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! * [`FreePort`] is the lease. [`FreePort::new`] waits for a port,
//!   [`FreePort::try_new`] does not, [`FreePort::listen`] gives the listening
//!   socket too.
//! * [`Builder`] says more than a range: hosts, protocols, timeout, lock
//!   directory, a stable choice, and several ports at once.
//! * [`PortSet`] is any set of ports, also as text such as `4000-4999,!4045`;
//!   [`PortSet::server_ports`] are those that this machine has left for servers.
//! * [`BindFreePort`] is the probe alone: bound, not leased.
//! * [`compat`] has the helpers of CPython's test suite, by their names.
//! * [`Error`] names the operation, the path or port, and the cause.
//!
//! # What is promised
//!
//! Among all callers that share a lock directory:
//!
//! * at most one live lease exists per port number;
//! * nobody binds a port that another one has leased, not even to look;
//! * a lease dies with its holder, and nothing that is left behind ever blocks
//!   a port;
//! * when `release` or drop returns, any other process can lease that port;
//! * when a lease is given, a bind of that port without `SO_REUSEADDR`, on
//!   every address asked for, would have succeeded;
//! * every wait has a bound, and an error is never taken for a busy port.
//!
//! Programs that do not use portlock know nothing of leases. Choose a range
//! outside the ephemeral one (on Linux 32768 to 60999 by default), from which
//! the kernel gives ports to any client.
//!
//! # Platform-specific behavior
//!
//! This version runs on Linux.

// On Windows one file has a reason to allow it: `sys::windows::exclusive`.
#![cfg_attr(not(windows), forbid(unsafe_code))]
#![cfg_attr(windows, deny(unsafe_code))]

mod acquisition;
mod bindfree;
mod builder;
pub mod compat;
mod error;
mod freeport;
mod leases;
mod lock;
mod lock_dir;
mod owner;
mod ports;
mod portserver;
mod process;
mod registry;
mod search;
mod sys;
mod system_ports;
mod waiting;

pub use bindfree::{BindFreePort, Protocol, wait_until_listening};
pub use builder::Builder;
pub use compat::{
    HOST, HOST_V6, add_reserved_port, bind_port, find_unused_port, is_port_free, pick_unused_port,
    return_port,
};
pub use error::{Error, ErrorKind, Exhaustion, Result};
pub use freeport::FreePort;
pub use leases::{Cleaned, Lease, LeaseState};
pub use lock_dir::{LockDir, Origin};
pub use owner::Owner;
pub use ports::PortSet;
pub use portserver::get_port_from_port_server;
pub use system_ports::ephemeral_port_range;

/// The version of socket2 whose types [`bind_port`] and [`find_unused_port`] take.
pub use socket2;

/// The README's examples, run as doctests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
