//! What "free" means: on which addresses, and for which protocols.
//!
//! ```console
//! $ cargo run --example hosts_and_protocols
//! ```

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};

use portlock::{FreePort, Protocol};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port = FreePort::new(4000..=6000)?;
    println!("{port} is free on every address of this machine");

    let loopback = FreePort::builder()
        .ports(4000..=6000)
        .host(Ipv4Addr::LOCALHOST)
        .host(Ipv6Addr::LOCALHOST)
        .acquire()?;
    println!("{loopback} is free on 127.0.0.1 and, if there is IPv6, on ::1");

    let dns = FreePort::builder()
        .ports(4000..=6000)
        .protocol(Protocol::TcpAndUdp)
        .acquire()?;
    let _tcp = TcpListener::bind(dns.addr())?;
    let _udp = UdpSocket::bind(dns.addr())?;
    println!("{dns} is free for TCP and UDP, as a name server needs");

    let (port, listener) = FreePort::listen(4000..=6000)?;
    println!("{port} is leased, and {} listens", listener.local_addr()?);

    // For suites that start and stop many servers in a narrow range.
    let churning = FreePort::builder()
        .ports(4000..=4009)
        .reuse_address(true)
        .acquire()?;
    println!("{churning} may be in TIME_WAIT, for a server that sets SO_REUSEADDR");
    Ok(())
}
