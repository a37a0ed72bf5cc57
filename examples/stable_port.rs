//! The same port for the same name, whenever it is free.
//!
//! Run it twice: the ports stay the same.
//!
//! ```console
//! $ cargo run --example stable_port
//! ```

use portlock::{FreePort, Result};

fn main() -> Result<()> {
    for name in ["my-worktree/api", "my-worktree/admin", "other-worktree/api"] {
        let port = FreePort::builder()
            .ports(4000..=6000)
            .prefer(name)
            .acquire()?;
        println!("{name}: {port}");
    }
    Ok(())
}
