//! A lease that keeps its port bound, so that even the kernel does not assign it to
//! another program, while its server can still listen.
//!
//! ```console
//! $ cargo run --example hold_socket
//! ```

use std::net::{Ipv4Addr, TcpListener};

use portlock::{BindFreePort, FreePort, PortSet, ephemeral_port_range};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The worst range for a server's port: the kernel may assign it to any client.
    let ephemeral = PortSet::from(ephemeral_port_range()?);
    let port = FreePort::builder()
        .ports(ephemeral)
        .host(Ipv4Addr::LOCALHOST)
        .hold_socket(true)
        .acquire()?;

    let strict_bind = BindFreePort::new(port.port());
    println!(
        "a program that binds it strictly: {}",
        outcome(&strict_bind)
    );

    // std sets SO_REUSEADDR, as most servers do on Unix.
    let server = TcpListener::bind(port.addr());
    println!("the server that it was leased for: {}", outcome(&server));
    Ok(())
}

fn outcome<T, E: std::fmt::Display>(result: &Result<T, E>) -> String {
    match result {
        Ok(_) => "succeeds".to_owned(),
        Err(error) => error.to_string(),
    }
}
