//! The program under test: a small server that greets whoever connects.

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
        // Who only looks whether somebody listens does not wait for the greeting.
        let _ = writeln!(stream?, "hello from {name}");
    }
    Ok(())
}
