//! Operations on a lease.

use std::net::TcpListener;

use napi::{Env, Result};
use napi_derive::napi;

use crate::{
    environment::Environment,
    failure::{self, Failure},
};

/// A lease that the environment keeps.
#[napi(object)]
pub struct Lease {
    /// Its number in the table of the environment.
    pub id: u32,
    /// The number of the port.
    pub port: u16,
    /// The address at which a client on this machine reaches a server on the port.
    pub host: String,
}

/// Ends the lease. It is not an error if the lease has already ended.
#[napi]
pub fn release(env: Env, id: u32) -> Result<Option<Failure>> {
    let lease = Environment::of(&env)?.take(id);
    Ok(lease.and_then(|lease| lease.release().err().map(Failure::from)))
}

/// Transfers the lease to the process `pid`. It no longer belongs to this process, even on failure.
#[napi]
pub fn delegate_to(env: Env, id: u32, pid: u32) -> Result<Option<Failure>> {
    Ok(match Environment::of(&env)?.take(id) {
        Some(lease) => lease.delegate_to(pid).err().map(Failure::from),
        None => Some(failure::released()),
    })
}

/// Returns the descriptor of the listener, if there is one, for JavaScript to take over.
#[napi]
pub fn take_listener(env: Env, id: u32) -> Result<Option<i32>> {
    let listener = Environment::of(&env)?.with(id, |held| held.listener.take());
    Ok(listener.flatten().and_then(into_fd))
}

#[cfg(unix)]
fn into_fd(listener: TcpListener) -> Option<i32> {
    use std::os::fd::IntoRawFd;

    Some(listener.into_raw_fd())
}

/// Node.js cannot take over a socket here.
#[cfg(not(unix))]
fn into_fd(_: TcpListener) -> Option<i32> {
    None
}
