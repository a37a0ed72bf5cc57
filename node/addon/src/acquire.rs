//! Leasing.

use std::{
    net::{IpAddr, TcpListener},
    ops::ControlFlow,
    time::Duration,
};

use napi::{Env, Result, Status};
use napi_derive::napi;
use portlock::{Builder, ErrorKind, FreePort, PortSet, Protocol};

use crate::{
    call::{self, Call, Callback, Outcome, Stop},
    environment::Held,
    failure::{self, Failure},
    leases::Lease,
};

/// A request for leases. TypeScript has validated it.
#[napi(object)]
pub struct Request {
    /// As text; by default the ports for servers.
    pub ports: Option<String>,
    /// IP addresses.
    pub hosts: Vec<String>,
    /// `tcp`, `udp` or `tcp+udp`.
    pub protocol: Option<String>,
    /// In milliseconds; by default the library's.
    pub timeout: Option<f64>,
    /// What the port is leased for, as text for people.
    pub label: Option<String>,
    /// The text that determines where the search starts.
    pub prefer: Option<String>,
    /// The name that the port is reserved for.
    pub name: Option<String>,
    /// The directory that the name belongs to.
    pub root: Option<String>,
    /// Whether another port may be leased if the reserved one is bound.
    pub or_any: Option<bool>,
    /// Ports that are tried first, in this order.
    pub first: Option<Vec<u16>>,
    /// Whether ports in TIME_WAIT count as free.
    pub reuse_address: Option<bool>,
    /// Whether the port is kept bound.
    pub hold_socket: Option<bool>,
    /// The lock directory.
    pub lock_dir: Option<String>,
    /// How many ports, and how they belong together.
    pub shape: Shape,
}

/// How many ports are requested, and how they belong together. By default one port.
#[napi(object)]
pub struct Shape {
    /// A number of ports.
    pub many: Option<u32>,
    /// A number of ports that follow each other.
    pub block: Option<u32>,
    /// The ports at these offsets from one.
    pub offsets: Option<Vec<u16>>,
    /// One port, with a listener on it.
    pub listen: Option<bool>,
}

/// Leases the requested ports, on a separate thread.
#[napi]
pub fn acquire(
    env: Env,
    request: Request,
    callback: Option<Callback<'_>>,
    keeps_alive: bool,
) -> Result<Call> {
    let builder = builder(&request)?;
    call::start(&env, callback, keeps_alive, move |stop| {
        let leases = find(builder, &request, stop);
        outcome(stop, leases)
    })
}

/// Leases the requested ports on this thread, or returns `null` if that needs a wait.
#[napi]
pub fn acquire_now(env: Env, request: Request) -> Result<Option<Outcome>> {
    // Another port may be leased only after the wait for the reserved one.
    if request.or_any == Some(true) {
        return Ok(None);
    }
    let stop = Stop::new(&env)?;
    let leases = find(builder(&request)?.timeout(Duration::ZERO), &request, &stop);
    let waits = request.timeout != Some(0.0);
    Ok(match leases {
        Err(error) if waits && error.is_busy() => None,
        leases => Some(outcome(&stop, leases)),
    })
}

fn builder(request: &Request) -> Result<Builder> {
    let invalid = |message: String| napi::Error::new(Status::InvalidArg, message);
    let mut builder = FreePort::builder();
    if let Some(ports) = &request.ports {
        let ports: PortSet = ports.parse().map_err(|error| invalid(format!("{error}")))?;
        builder = builder.ports(ports);
    }
    for host in &request.hosts {
        let parsed: IpAddr = host
            .parse()
            .map_err(|_| invalid(format!("{host:?} is not an IP address")))?;
        builder = builder.host(parsed);
    }
    if let Some(protocol) = &request.protocol {
        builder = builder.protocol(match protocol.as_str() {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "tcp+udp" => Protocol::TcpAndUdp,
            other => return Err(invalid(format!("{other:?} is not a protocol"))),
        });
    }
    if let Some(timeout) = request.timeout {
        builder = builder.timeout(call::milliseconds(timeout));
    }
    if let Some(label) = &request.label {
        builder = builder.label(label);
    }
    if let Some(prefer) = &request.prefer {
        builder = builder.prefer(prefer);
    }
    if let Some(name) = &request.name {
        builder = builder.name(name);
    }
    if let Some(root) = &request.root {
        builder = builder.root(root);
    }
    if request.or_any == Some(true) {
        builder = builder.or_any();
    }
    if let Some(reuse_address) = request.reuse_address {
        builder = builder.reuse_address(reuse_address);
    }
    if let Some(hold_socket) = request.hold_socket {
        builder = builder.hold_socket(hold_socket);
    }
    if let Some(lock_dir) = &request.lock_dir {
        builder = builder.lock_dir(lock_dir);
    }
    Ok(builder)
}

/// A lease, and its listener if one was requested.
type Found = (FreePort, Option<TcpListener>);

fn find(builder: Builder, request: &Request, stop: &Stop) -> portlock::Result<Vec<Found>> {
    for &port in request.first.iter().flatten() {
        match builder.clone().ports(port).try_acquire() {
            Ok(found) => return Ok(vec![(found, None)]),
            Err(error) if error.is_busy() || error.kind() == ErrorKind::PermissionDenied => {}
            Err(error) => return Err(error),
        }
        if stop.is_stopped() {
            break;
        }
    }
    let stop = stop.clone();
    let builder = builder.on_wait(move |_| match stop.is_stopped() {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    });
    let Shape {
        many,
        block,
        offsets,
        listen,
    } = &request.shape;
    let found = match (many, block, offsets) {
        (Some(n), _, _) => builder.acquire_many(*n as usize)?,
        (_, Some(n), _) => builder.acquire_block(*n as usize)?,
        (_, _, Some(offsets)) => builder.acquire_offsets(offsets)?,
        _ if *listen == Some(true) => return listen_on_one(&builder),
        _ => vec![builder.acquire()?],
    };
    Ok(found.into_iter().map(|lease| (lease, None)).collect())
}

/// Leases a port and, where Node.js can take over a socket, listens on it.
fn listen_on_one(builder: &Builder) -> portlock::Result<Vec<Found>> {
    Ok(vec![match cfg!(unix) {
        true => {
            let (lease, listener) = builder.listen()?;
            (lease, Some(listener))
        }
        false => (builder.acquire()?, None),
    }])
}

/// Keeps the leases for JavaScript, unless it has stopped the call in the meantime.
fn outcome(stop: &Stop, found: portlock::Result<Vec<Found>>) -> Outcome {
    let found = match found {
        Ok(found) => found,
        Err(error) => return Failure::from(error).into(),
    };
    if stop.is_stopped() {
        return failure::stopped().into();
    }
    let keep = |(port, listener): Found| {
        let (number, host) = (port.port(), port.addr().ip().to_string());
        let id = stop.environment().keep(Held { listener, port })?;
        Some(Lease {
            id,
            port: number,
            host,
        })
    };
    match found.into_iter().map(keep).collect() {
        Some(leases) => Outcome::of_leases(leases),
        None => failure::stopped().into(),
    }
}
