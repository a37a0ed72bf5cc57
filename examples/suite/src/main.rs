//! The program under test: a small server that greets its clients.

use std::{
    env,
    error::Error,
    io::Write,
    net::{Ipv4Addr, TcpListener},
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = env::args().skip(1);
    let (Some(port), Some(name)) = (args.next(), args.next()) else {
        return Err("usage: greeter PORT NAME".into());
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.parse()?))
        .map_err(|error| format!("cannot listen on port {port}: {error}"))?;
    for stream in listener.incoming() {
        // A client that only checks whether the server listens does not read the greeting.
        let _ = writeln!(stream?, "hello from {name}");
    }
    Ok(())
}
