//! Helpers that the tests of portlock share: ports and directories for one test, child
//! processes controlled over pipes, other users, namespaces and file systems, and an oracle
//! that knows which ports are held.
//!
//! Each module has one subject, and all names are exported at the root. Like tests, every
//! function panics if the system fails, and reports on stderr what it skips.

mod cat;
mod dir;
#[cfg(target_os = "linux")]
mod file_system;
mod machine;
#[cfg(unix)]
mod namespace;
mod oracle;
mod output;
mod peer;
mod ports;
mod process;
mod program;
mod record;
mod running;
mod scene;
mod shell;
mod socket;
mod stress;
#[cfg(unix)]
mod user;
mod wait;

pub use cat::{cat, cat_program};
pub use dir::{NOT_FOUND, lock_dir, text};
#[cfg(target_os = "linux")]
pub use file_system::{BINDFS, FILE_SYSTEMS, on_file_system, run_on_each_file_system};
#[cfg(unix)]
pub use machine::is_ignored;
pub use machine::{
    has_second_loopback, have_strace, is_installed, is_wine, low_ports_are_privileged,
};
#[cfg(unix)]
pub use namespace::{in_initial_namespace, is_permitted, start_in_namespace, unshare};
pub use oracle::Oracle;
pub use output::{Said, answer};
pub use peer::{Parent, Peer, Role, command, run_child};
pub use ports::{Block, Ports, set};
#[cfg(target_os = "linux")]
pub use process::open_descriptors;
pub use process::{Process, nothing};
pub use program::{BOUND, EXHAUSTED, FAILED, LEASED, NAME, TIMED_OUT, portlock};
pub use record::forge;
pub use running::{Running, lines};
pub use scene::Scene;
pub use shell::{AND, TRUE, WAIT, shell, value};
#[cfg(unix)]
pub use socket::leave_in_time_wait;
pub use socket::{bind_strictly, bind_udp, listen, listen_strictly};
pub use stress::stress;
#[cfg(unix)]
pub use user::{
    NOBODY, OrdinaryUser, am_root, as_user, give_to_ordinary_user, open_copy, open_copy_of,
    set_mode, start_as, start_unprivileged,
};
pub use wait::{LONG, until};
