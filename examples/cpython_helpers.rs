//! The helpers of CPython's test suite, under their original names.
//!
//! ```console
//! $ cargo run --example cpython_helpers
//! ```

use portlock::compat::{
    Family, SocketType,
    cpython::{HOST, bind_port, find_unused_port},
};
use socket2::{Domain, Socket, Type};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    let port = bind_port(&socket, HOST)?;
    socket.listen(1)?;
    println!("listening on {HOST}:{port}");

    let shared = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    shared.set_reuse_address(true)?;
    if let Err(error) = bind_port(&shared, HOST) {
        println!("{error}");
    }

    // Unused a moment ago, but any program can take it: a lease is better.
    let port = find_unused_port(Family::V4, SocketType::Stream)?;
    println!("{port} was unused");
    Ok(())
}
