//! Several ports, atomically: any, contiguous, or at fixed offsets.
//!
//! ```console
//! $ cargo run --example several_ports
//! ```

use portlock::{FreePort, Result};

fn main() -> Result<()> {
    let builder = FreePort::builder().ports(4000..=6000);

    let any = builder.acquire_many(3)?;
    print("three ports", &any);

    let block = builder.acquire_block(4)?;
    print("four in a row", &block);

    // A Redis Cluster node listens for the other nodes 10000 above its port.
    let node = builder.acquire_offsets(&[0, 10000])?;
    print("a port and its bus port", &node);
    Ok(())
}

fn print(what: &str, ports: &[FreePort]) {
    let ports: Vec<String> = ports.iter().map(FreePort::to_string).collect();
    println!("{what}: {}", ports.join(", "));
}
