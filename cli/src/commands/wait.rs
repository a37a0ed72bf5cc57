//! `wait`: until ports have a server, or are free.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

use portlock::{ErrorKind, FreePort, wait_until_listening};

use crate::{args::Wait, exit_status::ExitStatus, failure::Failure, notice::announce_waits};

pub(crate) fn wait(args: &Wait, dir: Option<&Path>) -> Result<ExitStatus, Failure> {
    let start = Instant::now();
    let mut failures = Vec::new();
    for &port in &args.ports {
        let left = args.timeout.saturating_sub(start.elapsed());
        let waited = if args.free {
            wait_until_free(port, args, left, dir)
        } else {
            wait_for_server(port, args, left)
        };
        match waited {
            Ok(()) => {}
            // The others are still checked, so that one run names all that are missing.
            Err(error) if matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Exhausted) => {
                failures.push(error.to_string());
            }
            Err(error) => return Err(error.into()),
        }
    }
    if failures.is_empty() {
        return Ok(ExitStatus::Success);
    }
    Err(Failure::new(ExitStatus::TimedOut, failures.join("; ")))
}

fn wait_for_server(port: u16, args: &Wait, timeout: Duration) -> portlock::Result<()> {
    let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let hosts = args.host.as_ref().map_or(&loopback[..], |host| &host.0);
    let addresses: Vec<SocketAddr> = hosts
        .iter()
        .map(|&host| SocketAddr::new(host, port))
        .collect();
    wait_until_listening(&addresses[..], timeout)
}

fn wait_until_free(
    port: u16,
    args: &Wait,
    timeout: Duration,
    dir: Option<&Path>,
) -> portlock::Result<()> {
    let mut builder = FreePort::builder().ports(port).timeout(timeout);
    for &host in args.host.iter().flat_map(|host| &host.0) {
        builder = builder.host(host);
    }
    if let Some(dir) = dir {
        builder = builder.lock_dir(dir);
    }
    announce_waits(builder).wait_until_free()
}
