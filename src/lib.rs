//! Free ports as leases.
//!
//! Tests that start servers need a free port *number*, but between "it was free" and "my server
//! binds it", another process can take the port. Here a free port is a **lease**: a lock on a
//! per-port file, held until [`release`](FreePort::release), drop, or the holder's death, and
//! respected by all threads and processes that use the same lock directory. There is no daemon
//! and nothing to clean up.
//!
//! # One port
//!
//! ```
//! use std::net::{TcpListener, TcpStream};
//! use portlock::FreePort;
//!
//! let port = FreePort::new(4000..=6000)?;
//! let server = TcpListener::bind(port.addr())?; // 127.0.0.1:<port>
//! let client = TcpStream::connect(port.addr())?;
//!
//! drop(server);
//! port.release()?; // or drop, which ignores errors
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`FreePort::new`] waits up to 30 seconds while every port of the range is leased or in use;
//! [`FreePort::try_new`] does not wait. Both accept one port, an array of ports, a range or a
//! [`PortSet`].
//!
//! # Keep the value
//!
//! The lease ends when the value is dropped. Every new user makes this mistake once, and the
//! compiler cannot detect it:
//!
//! ```
//! # use portlock::FreePort;
//! // WRONG: the lease ends with this line, and other callers can get the same port.
//! let port = FreePort::new(4000..=6000)?.port();
//! # Ok::<(), portlock::Error>(())
//! ```
//!
//! Keep the value as long as the port is in use:
//!
//! * **in a test or fixture**, in a variable, or in a struct below the server that uses the port,
//!   because fields are dropped from top to bottom ([an example](#waiting-for-the-server));
//! * **for the rest of this process's life**, in a `static`, which is never dropped, or leaked.
//!   The lease then ends with the process, for whatever reason it ends:
//!
//! ```
//! use std::sync::LazyLock;
//! use portlock::FreePort;
//!
//! static API: LazyLock<FreePort> =
//!     LazyLock::new(|| FreePort::new(4000..=6000).expect("a port for the API"));
//!
//! assert!(FreePort::try_new(API.port()).is_err(), "leased");
//!
//! let port: &'static FreePort = Box::leak(Box::new(FreePort::new(4000..=6000)?));
//! assert!(FreePort::try_new(port.port()).is_err(), "leased");
//! # Ok::<(), portlock::Error>(())
//! ```
//!
//! * **as long as another process lives**, [handed to that process](#handing-a-port-to-a-child).
//!
//! # No gap
//!
//! The port is free on every address of this machine, but a program that does not use portlock
//! can still take it before you bind it. [`FreePort::listen`] leaves no such gap: the socket that
//! found the port free becomes the listener.
//!
//! ```
//! let (port, listener) = portlock::FreePort::listen(4000..=6000)?;
//! assert_eq!(listener.local_addr()?.port(), port.port());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Choosing a range
//!
//! A lease excludes all callers that use portlock. The kernel takes ports as well: every client
//! that connects gets one from the *ephemeral range*, on Linux 32768 to 60999 by default
//! ([`ephemeral_port_range`]). Choose a range outside it. The default of [`Builder`] is
//! [`PortSet::server_ports`]: all ports that this machine leaves to servers, about 36,000,
//! without those that need a privilege and those that browsers refuse.
//!
//! The default has another advantage: the person running your tests can restrict the ports they
//! use. `PORTLOCK_PORTS=20000-20999,!20443` in the environment overrides it, or
//! `PORTLOCK_PORTS_FILE` with the path of a file.
//!
//! ```
//! use portlock::{FreePort, PortSet};
//!
//! let port = FreePort::builder().acquire()?; // any port that is left for servers
//!
//! let ours: PortSet = "20000-20999,!20443".parse()?;
//! let builder = FreePort::builder().ports(ours);
//! assert!(!builder.overlaps_ephemeral()?);
//! let port = builder.acquire()?;
//! # Ok::<(), portlock::Error>(())
//! ```
//!
//! The range can be as narrow as you like: a caller that finds no free port waits for one. A server
//! that closes connections leaves them in TIME_WAIT on its port for a minute. Such a port is
//! leased only if no other port is free, and only servers that set `SO_REUSEADDR` can bind it;
//! [`reuse_address`](Builder::reuse_address) changes that. If you need the ephemeral range, on Linux
//! [`hold_socket`](Builder::hold_socket) keeps the port bound.
//!
//! # The same port every day
//!
//! A port can be **reserved** for a name in a directory, such as a git worktree. That name then
//! has the same port every day, in every process. No other caller can lease it, whether the
//! server runs or not. The reservation lasts until it is removed, or the directory is gone.
//!
//! ```
//! use portlock::FreePort;
//!
//! # let (project, locks) = (tempfile::tempdir()?, tempfile::tempdir()?);
//! # let builder = || FreePort::builder().lock_dir(locks.path()).root(project.path());
//! # let _ = stringify!(
//! let web = FreePort::builder().name("web"); // in the git worktree that this runs in
//! # );
//! # let web = builder().name("web");
//! let reservation = web.reserve()?; // if it is not reserved yet
//! println!("{}={}", reservation.variable(), reservation.port); // WEB_PORT=23117
//!
//! let port = web.acquire()?; // waits while another process has it
//! assert_eq!(port.port(), reservation.port);
//! # drop(port);
//! # portlock::LockDir::open(locks.path())?.unreserve(&reservation)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Several ports
//!
//! Several ports are leased all or none. Callers that each want several never deadlock: a caller
//! that cannot get all of its ports waits without holding any.
//!
//! ```
//! use portlock::FreePort;
//!
//! let builder = FreePort::builder().ports(4000..=6000);
//! let any = builder.acquire_many(3)?;
//! let contiguous = builder.acquire_block(4)?;
//! // A Redis Cluster node: its port, and its bus port 10000 above.
//! let node = builder.acquire_offsets(&[0, 10000])?;
//! assert_eq!(node[1].port(), node[0].port() + 10000);
//! # Ok::<(), portlock::Error>(())
//! ```
//!
//! "Free" means free for TCP on every address, unless [`protocol`](Builder::protocol) and
//! [`host`](Builder::host) say otherwise.
//!
//! # Handing a port to a child
//!
//! The child gets the number, as an argument or in the environment, and the lease stays here:
//!
//! ```
//! use std::process::Command;
//! use portlock::FreePort;
//!
//! # if !cfg!(unix) { return Ok(()) }
//! let port = FreePort::new(4000..=6000)?;
//! let child = Command::new("sh")
//!     .args(["-c", "echo listening on $0 or $PORT"])
//!     .arg(port.to_string())
//!     .env("PORT", port.to_string())
//!     .output()?;
//! # assert_eq!(child.stdout, format!("listening on {port} or {port}\n").into_bytes());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! If this process is killed, its leases end. A child that keeps listening is then protected only
//! as any program is: a port is not leased while it is bound. If the lease itself must last as
//! long as the child, there are three ways:
//!
//! * [`delegate_to`](FreePort::delegate_to)`(child.id())` transfers the lease to a process that
//!   is already running. The lease then ends with that process, whatever this process does.
//! * [`into_fd`](FreePort#method.into_fd), on Unix, returns the descriptor of the lock. A child
//!   that inherits it holds the lease, and so do its own children, until the last of them has
//!   ended.
//! * [`listen`](FreePort::listen) returns a listening socket, which the child can inherit in the
//!   same way, as from inetd(8) or systemd. Then there is no gap either.
//!
//! The program `portlock run` passes the lease, and with `--listen` the socket, to commands that do
//! not use portlock.
//!
//! ```
//! use std::process::Command;
//! use portlock::FreePort;
//!
//! # if !cfg!(unix) { return Ok(()) }
//! let port = FreePort::new(4000..=6000)?;
//! let mut server = Command::new("sleep").arg("10").env("PORT", port.to_string()).spawn()?;
//! let number = port.delegate_to(server.id())?;
//! assert!(FreePort::try_new(number).is_err(), "leased until the child ends");
//! # server.kill()?;
//! # server.wait()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Waiting for the server
//!
//! A child does not listen as soon as it is started. [`FreePort::wait_until_listening`] connects
//! repeatedly until something accepts. The function [`wait_until_listening`] does the same for
//! any address or name. Neither checks that it is *your* server: if yours could not bind its port
//! because another program has taken it, the other program's server answers.
//! [`FreePort::wait_for_server`] finds out which process answers, and fails if it is neither
//! yours nor a descendant of it:
//!
//! ```
//! use std::{io, process::{Child, Command}, time::Duration};
//! use portlock::FreePort;
//!
//! /// A server for one test.
//! struct Server {
//!     child: Child,
//!     port: FreePort,
//! }
//!
//! impl Server {
//!     fn start() -> io::Result<Self> {
//!         let port = FreePort::builder().label("redis under test").acquire()?;
//!         let child = Command::new("redis-server")
//!             .args(["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string()])
//!             .spawn()?;
//!         // From here on, whatever fails, `drop` ends the server.
//!         let server = Self { child, port };
//!         server.port.wait_for_server(server.child.id(), Duration::from_secs(10))?;
//!         Ok(server)
//!     }
//! }
//!
//! impl Drop for Server {
//!     fn drop(&mut self) {
//!         let _ = self.child.kill();
//!         // Wait for its end before the port is released, when the fields are dropped.
//!         let _ = self.child.wait();
//!     }
//! }
//!
//! # if Command::new("redis-server").arg("--version").output().is_err() { return Ok(()) }
//! let server = Server::start()?;
//! println!("test against {}", server.port.addr());
//! # Ok::<(), io::Error>(())
//! ```
//!
//! # cargo test, nextest, tokio
//!
//! A fixture like that is all that a suite needs. `cargo test` runs the tests of a binary as
//! threads of one process, and `cargo nextest run` runs each in a separate process. Leases work
//! across both, and across two suites that run at the same time, so no test has to run alone
//! because of its port. Under nextest, set `leak-timeout = { period = "500ms", result = "fail" }`
//! in `.config/nextest.toml`, so that a server that outlives its test is a failure.
//!
//! Leasing blocks: for a few system calls, or for as long as it waits. In asynchronous code,
//! lease in tokio's `spawn_blocking`. Two lines convert the listener to tokio's:
//!
//! ```
//! let (port, listener) = portlock::FreePort::listen(4000..=6000)?;
//! listener.set_nonblocking(true)?;
//! // let listener = tokio::net::TcpListener::from_std(listener)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The repository has complete projects to copy from in `examples/`: a suite for both runners,
//! nginx with a health check, several axum servers in one test, a Redis Cluster, shell scripts,
//! pytest fixtures and a GitHub job.
//!
//! # Containers, sandboxes and users
//!
//! Callers share leases if they share the lock directory. By default, that is one directory for
//! each user, or one for all users if root has created `/run/portlock` (see [`Builder::lock_dir`]
//! for the rules). To print which one it is, and why:
//!
//! ```
//! let dir = portlock::LockDir::locate()?;
//! println!("{}: {}", dir.path().display(), dir.origin());
//! # Ok::<(), portlock::Error>(())
//! ```
//!
//! * **Users**: let root create `/run/portlock` with mode 1777 at boot, with the line
//!   `d /run/portlock 1777 root root` in tmpfiles.d(5), and all users share it. This is for users
//!   who trust each other: each can lease all ports, and end delegated leases.
//! * **Services and sandboxes** with a private `/tmp` (`PrivateTmp=`, snap, Flatpak) have a
//!   different default directory there, so they can lease the same ports a second time. If they do
//!   not see `/run/portlock`, set `PORTLOCK_DIR`, for all callers, to a directory that they can
//!   write to.
//! * **Containers** on the host's network: the same; mount the directory. A container with a
//!   separate network has all ports to itself. The scarce resource is the host port that is
//!   published. Lease that port outside, for as long as the container runs, and pass
//!   `-p 127.0.0.1:{port}:80`.
//! * **Network namespaces** that share a directory share its leases: it is better to withhold a
//!   port than to give it out twice. Whether a port is *bound* is checked in the caller's own
//!   namespace.
//! * A lease that is *delegated* to a process in another container never ends by itself for
//!   callers that cannot see that process; see [`delegate_to`](FreePort::delegate_to).
//!
//! The repository has a page about each kind of container, sandbox and service, with commands
//! that its tests run: `docs/containers.md`.
//!
//! # What can go wrong
//!
//! Only a port that is leased or in use makes a call try the next port. If an error [is
//! busy](Error::is_busy), the cause is that no port was free, and a later call may succeed.
//! [`Builder::on_wait`] can show a wait to a user, and stop it. Any other failure ends the call
//! immediately, with an [`Error`] whose message names the operation, the path or port, and the
//! cause; its [`kind`](Error::kind) is for code:
//!
//! ```
//! use std::time::Duration;
//! use portlock::{ErrorKind, FreePort};
//!
//! let port = FreePort::new(4000..=6000)?;
//! let again = FreePort::builder()
//!     .ports(port.port())
//!     .timeout(Duration::from_millis(10))
//!     .acquire();
//! let error = again.unwrap_err();
//! assert_eq!(error.kind(), ErrorKind::Exhausted);
//! println!("{error}");
//! // no free port in 4711 after 0.0 s: 1 leased (4711 by pid 14171 "orders-test")
//! # Ok::<(), portlock::Error>(())
//! ```
//!
//! | [`ErrorKind`] | what to do |
//! |---|---|
//! | [`Exhausted`](ErrorKind::Exhausted) | the message says which processes have the ports; use a wider range, or a longer [`timeout`](Builder::timeout) |
//! | [`PermissionDenied`](ErrorKind::PermissionDenied) | use ports from 1024 on |
//! | [`InvalidName`](ErrorKind::InvalidName) | use another name, or a root directory that exists |
//! | [`InvalidPorts`](ErrorKind::InvalidPorts) | use a range with enough ports |
//! | [`LockDir`](ErrorKind::LockDir), [`Lock`](ErrorKind::Lock) | the message says what is wrong with the directory or the file: its owner, its mode, a link, a full disk |
//! | [`Probe`](ErrorKind::Probe) | usually no descriptors are left (EMFILE): raise the limit |
//! | [`Process`](ErrorKind::Process) | the child ended before the lease could be transferred to it |
//! | [`Timeout`](ErrorKind::Timeout) | read the server's standard error |
//! | [`OtherServer`](ErrorKind::OtherServer) | the message says which process answers; if it is the right one, [`wait_until_listening`] accepts it |
//! | [`Stopped`](ErrorKind::Stopped) | nothing: your own callback stopped the wait |
//! | [`PortServer`](ErrorKind::PortServer) | check the server at the address in `PORTSERVER_ADDRESS` or in the call |
//! | [`Unsupported`](ErrorKind::Unsupported) | this system, or this combination of options, does not support it |
//!
//! `?` converts an [`Error`] to an [`io::Error`](std::io::Error).
//!
//! # Moving over
//!
//! [`compat`] has the functions of other tools under their names: those of
//! [`portpicker`](compat::portpicker), the helpers of [CPython](compat::cpython)'s test suite,
//! and the port allocation of [PySys](compat::pysys). [`BindFreePort`] is only the probe: a port
//! that is bound but not leased.
//!
//! # What is promised
//!
//! Among all callers that share a lock directory:
//!
//! * at most one live lease exists per port number;
//! * no caller that looks for a port ever binds one that someone else has leased, not even to
//!   check it;
//! * a lease ends when its holder dies, and nothing that is left behind ever blocks a port,
//!   except a reservation, a forked child that has not called exec, and, for callers that cannot
//!   see its process, a delegated lease;
//! * a port that is reserved for a name is leased only to callers that ask for that name;
//! * when `release` or drop returns, any other process can lease that port;
//! * when a lease is granted, a bind of that port without `SO_REUSEADDR`, on every requested
//!   address, would have succeeded; or, if no such port was left, only closing connections
//!   (TIME_WAIT) kept it from succeeding;
//! * every wait is bounded, and an error is never mistaken for a busy port.
//!
//! Programs that do not use portlock ignore leases. Choose a range outside the ephemeral range
//! (on Linux 32768 to 60999 by default), from which the kernel assigns ports to any client.
//!
//! # Features
//!
//! * `log` (default): warnings and debug messages go to the [`log`](https://docs.rs/log) crate.
//!   Without it they are discarded, and the library has one fewer dependency.
//!
//! # Platform-specific behavior
//!
//! Linux, macOS and Windows are supported. The promises above hold on all of them; they differ as
//! follows:
//!
//! | | Linux | macOS | Windows |
//! |---|---|---|---|
//! | lock | flock(2) | flock(2) | LockFileEx |
//! | default lock directory | `/run/portlock` if root has created it, else `/tmp/portlock-<uid>` | `~/Library/Application Support/portlock` | `.portlock` in the user's profile |
//! | what makes it trustworthy | owner and mode | owner and mode | it is a directory and not a reparse point; its access control list is inherited |
//! | strict bind | without `SO_REUSEADDR` | the same, of both wildcard addresses | with `SO_EXCLUSIVEADDRUSE` |
//! | a child that starts during a probe | has a copy until it calls exec | can keep the copy for its whole life | has none |
//! | waiters are woken by a release | yes | yes, of 4 ports at a time | yes, of 4 ports at a time |
//! | [`Builder::hold_socket`] | yes | [`Unsupported`](ErrorKind::Unsupported) | [`Unsupported`](ErrorKind::Unsupported) |
//! | `FreePort::into_fd` | yes | yes | no |
//! | copies of reservations | `~/.local/state` | `~/Library/Application Support` | the user's local application data |
//! | [servers](LockDir::servers) that are seen | of all users, and their processes if they run as this user | of this user | of all users, each with the process that created the socket |
//! | a server is the holder's by | descent, or the lease's descriptor | descent | descent |
//! | another user's server | [`Unknown`](BelongsTo::Unknown) | not seen; if it answers, [`Unknown`](BelongsTo::Unknown) | like your own, or [`Unknown`](BelongsTo::Unknown) if its process may not be opened |
//! | port server | socket, also abstract | socket | named pipe |
//!
//! macOS sets the close-on-exec flag of a socket with a second system call, so a child that
//! another thread starts in between inherits the socket. [`Builder::listen`] with one
//! [`Builder::host`] avoids that: its only socket becomes the server's.
//!
//! WSL 2 is a separate Linux: leases are not shared between it and Windows.
//!
//! The authors compile and link the macOS code, and run the Windows tests under Wine; hosted CI is
//! set up to run both.

// On Linux and on Windows, one file needs unsafe code: `mark/linux.rs` and
// `bindfree/windows/exclusive.rs`.
#![cfg_attr(not(any(target_os = "linux", windows)), forbid(unsafe_code))]
#![cfg_attr(any(target_os = "linux", windows), deny(unsafe_code))]

mod acquisition;
mod bindfree;
mod builder;
mod clock;
pub mod compat;
mod copies;
mod error;
mod family;
mod freeport;
mod jitter;
mod leases;
mod lock;
mod lock_dir;
mod logging;
mod mark;
mod names;
mod owner;
mod pass;
mod per_process;
mod ports;
mod portserver;
mod process;
mod readiness;
mod registry;
mod reservation;
mod retry;
mod search;
mod server;
mod sockets;
mod system_ports;
mod unavailable;
#[cfg(not(any(target_os = "linux", target_os = "macos", windows)))]
mod unsupported;
mod wait_status;
mod waiting;

pub use bindfree::{BindFreePort, Protocol};
pub use builder::Builder;
pub use error::{Error, ErrorKind, PortCounts, Result};
pub use freeport::FreePort;
pub use leases::{CleanCounts, EntryState, Heir, PortEntry};
pub use lock_dir::{LockDir, Origin};
pub use owner::Owner;
pub use ports::{PortSet, Ports};
pub use readiness::wait_until_listening;
pub use reservation::{Reservation, ReservationState};
pub use server::{BelongsTo, Process, Server};
pub use system_ports::ephemeral_port_range;
pub use wait_status::WaitStatus;

/// The examples of the README and of the guide, run as doctests.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../docs/guide/one-port.md")]
    struct OnePort;
    #[doc = include_str!("../docs/guide/ci.md")]
    struct Ci;
    #[doc = include_str!("../docs/guide/ports.md")]
    struct Ports;
    #[doc = include_str!("../docs/guide/worktrees.md")]
    struct Worktrees;
}
