//! Requests ports from a port server with many concurrent clients, and prints the number of requests
//! answered per second and their latency.
//!
//! ```console
//! $ cargo run --release -p portlock-cli --example portserver_load -- \
//!       @unittest-portserver --clients 64 --requests 9000
//! ```
//!
//! `--silent N` keeps N more connections open that never send anything; `--pid PID` requests the
//! ports for another process. All ports belong to that process until it ends.

use std::{
    cell::{Cell, RefCell},
    error::Error,
    io,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::{JoinSet, LocalSet},
    time,
};

/// Timeout of one request.
const PATIENCE: Duration = Duration::from_secs(30);

struct Args {
    address: String,
    clients: usize,
    requests: usize,
    silent: usize,
    pid: u32,
}

fn parse() -> Result<Args, lexopt::Error> {
    use lexopt::prelude::*;
    let mut args = Args {
        address: "@unittest-portserver".to_owned(),
        clients: 64,
        requests: 1000,
        silent: 0,
        pid: std::process::id(),
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("clients") => args.clients = parser.value()?.parse()?,
            Long("requests") => args.requests = parser.value()?.parse()?,
            Long("silent") => args.silent = parser.value()?.parse()?,
            Long("pid") => args.pid = parser.value()?.parse()?,
            Value(address) => args.address = address.string()?,
            _ => return Err(arg.unexpected()),
        }
    }
    Ok(args)
}

#[cfg(unix)]
async fn connect(address: &str) -> io::Result<tokio::net::UnixStream> {
    use std::os::unix::net::{SocketAddr, UnixStream};
    let address = match address.strip_prefix('@') {
        #[cfg(target_os = "linux")]
        Some(name) => <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(address)?,
    };
    loop {
        // tokio cannot connect to an abstract address. A stream that is still blocking waits in connect
        // until the server's queue has room.
        match UnixStream::connect_addr(&address) {
            Ok(stream) => {
                stream.set_nonblocking(true)?;
                return tokio::net::UnixStream::from_std(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                time::sleep(Duration::from_millis(1)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(windows)]
async fn connect(address: &str) -> io::Result<tokio::net::windows::named_pipe::NamedPipeClient> {
    use tokio::net::windows::named_pipe::ClientOptions;
    const PIPE_BUSY: i32 = 231;
    let path = address.replacen('@', r"\\.\pipe\", 1);
    loop {
        match ClientOptions::new().open(&path) {
            Err(error) if error.raw_os_error() == Some(PIPE_BUSY) => {
                time::sleep(Duration::from_millis(1)).await;
            }
            pipe => return pipe,
        }
    }
}

async fn ask(args: &Args) -> io::Result<bool> {
    let mut stream = connect(&args.address).await?;
    stream
        .write_all(format!("{}\n", args.pid).as_bytes())
        .await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer.trim().parse::<u16>().is_ok_and(|port| port > 0))
}

async fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let mut silent = Vec::new();
    for _ in 0..args.silent {
        silent.push(connect(&args.address).await?);
    }
    // Connections are accepted in order: once this one is answered, all of them have been accepted, and
    // the measurement does not include that.
    ask(&args).await?;
    let args: &'static Args = Box::leak(Box::new(args));
    let left: &'static Cell<usize> = Box::leak(Box::new(Cell::new(args.requests)));
    let refused: &'static Cell<usize> = Box::leak(Box::new(Cell::new(0)));
    let times: &'static RefCell<Vec<Duration>> = Box::leak(Box::default());
    let start = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..args.clients {
        clients.spawn_local(async move {
            while left.get() > 0 {
                left.set(left.get() - 1);
                let start = Instant::now();
                if !time::timeout(PATIENCE, ask(args)).await?? {
                    refused.set(refused.get() + 1);
                }
                times.borrow_mut().push(start.elapsed());
            }
            Ok::<(), io::Error>(())
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    let elapsed = start.elapsed();
    let mut times = times.take();
    times.sort_unstable();
    let at = |percent: usize| {
        times
            .get(times.len() * percent / 100)
            .copied()
            .unwrap_or_default()
    };
    println!(
        "{} requests, {} refused, {:.0} per second, p50 {:?}, p99 {:?}",
        times.len(),
        refused.get(),
        times.len() as f64 / elapsed.as_secs_f64(),
        at(50),
        at(99)
    );
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let args = parse()?;
    LocalSet::new().run_until(run(args)).await
}
