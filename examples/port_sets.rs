//! Which ports are used: sets as text, the ports that this machine leaves for
//! servers, and the environment.
//!
//! ```console
//! $ cargo run --example port_sets
//! $ PORTLOCK_PORTS='4000-4099,!4045' cargo run --example port_sets
//! ```

use portlock::{FreePort, PortSet, ephemeral_port_range};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let ephemeral = ephemeral_port_range()?;
    println!(
        "the system assigns clients ports from {} to {}",
        ephemeral.start(),
        ephemeral.end()
    );

    let servers = PortSet::server_ports()?;
    println!("{} ports are left for servers: {servers}", servers.len());
    let port = FreePort::builder().acquire()?;
    println!("one of them, by default: {port}");

    let ours: PortSet = "
        4000-4999,!4045   # ours, except one that browsers refuse
        7000              # and an old favorite
    "
    .parse()?;
    println!("{} ports: {ours}", ours.len());
    let builder = FreePort::builder().ports(ours);
    println!("one of these: {}", builder.acquire()?);
    println!(
        "among the ephemeral ones? {}",
        builder.overlaps_ephemeral()?
    );
    Ok(())
}
