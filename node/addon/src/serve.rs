//! Waiting for a server.

use std::{
    thread,
    time::{Duration, Instant},
};

use napi::{Env, Result};
use napi_derive::napi;
use portlock::{BelongsTo, ErrorKind, FreePort, Server};

use crate::{
    call::{self, Call, Callback, Outcome},
    failure::{self, Failure},
};

/// Maximum pause between two attempts to connect. After each, the call also checks whether it was
/// stopped.
const MAX_PAUSE: Duration = Duration::from_millis(50);

/// The process that answers on a port.
#[napi(object)]
pub struct ServerProcess {
    /// `None` if it cannot be seen.
    pub pid: Option<u32>,
    /// The file name of its program.
    pub program: Option<String>,
    /// Whether it was determined that the server is the expected one.
    pub is_known: bool,
}

impl From<&Server> for ServerProcess {
    fn from(server: &Server) -> Self {
        let process = server.process.as_ref();
        Self {
            pid: process.map(|process| process.pid),
            program: process.map(|process| process.program.clone()),
            is_known: server.belongs_to == Some(BelongsTo::Holder),
        }
    }
}

/// Waits on a separate thread until the server of the process `pid`, or without a pid any server,
/// accepts connections on a leased port.
#[napi]
pub fn wait_for_server(
    env: Env,
    id: u32,
    pid: Option<u32>,
    timeout: f64,
    callback: Callback<'_>,
    keeps_alive: bool,
) -> Result<Call> {
    let timeout = call::milliseconds(timeout);
    let start = Instant::now();
    call::start(&env, Some(callback), keeps_alive, move |stop| {
        let mut pause = Duration::from_millis(1);
        loop {
            // A single attempt at a time, so that a release does not have to wait.
            let Some(attempt) = stop.environment().with(id, |held| find(&held.port, pid)) else {
                return failure::released().into();
            };
            let left = timeout.saturating_sub(start.elapsed());
            match attempt {
                Ok(server) => return Outcome::of_server(server.as_ref().map(Into::into)),
                Err(error) if error.kind() != ErrorKind::Timeout || left.is_zero() => {
                    return Failure::from(error).into();
                }
                Err(_) if stop.is_stopped() => return failure::stopped().into(),
                Err(_) => thread::sleep(pause.min(left)),
            }
            pause = (pause * 2).min(MAX_PAUSE);
        }
    })
}

fn find(lease: &FreePort, pid: Option<u32>) -> portlock::Result<Option<Server>> {
    match pid {
        Some(pid) => lease.wait_for_server(pid, Duration::ZERO).map(Some),
        None => lease.wait_until_listening(Duration::ZERO).map(|()| None),
    }
}
