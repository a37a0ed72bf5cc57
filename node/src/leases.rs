//! What can be done with a lease.

use std::sync::Arc;

use napi::{Env, Result};
use napi_derive::napi;
use portlock::FreePort;

use crate::{
    environment::Environment,
    failure::{Failure, released},
};

/// A lease that the environment keeps.
#[napi(object)]
pub struct Lease {
    /// What JavaScript names it by.
    pub id: u32,
    /// The number of the port.
    pub port: u16,
    /// Where a client on this machine reaches a server on the port.
    pub host: String,
    /// The descriptor of the listener, if there is one.
    pub fd: Option<i32>,
}

/// Ends the lease. That of a lease that has ended is no error.
#[napi]
pub fn release(env: Env, id: u32) -> Result<Option<Failure>> {
    let Some(lease) = Environment::of(&env)?.take(id) else {
        return Ok(None);
    };
    Ok(release_lease(lease).err())
}

/// Transfers the lease to the process `pid`. Whatever comes of it, it is no longer this one's.
#[napi]
pub fn delegate_to(env: Env, id: u32, pid: u32) -> Result<Option<Failure>> {
    let Some(lease) = Environment::of(&env)?.take(id) else {
        return Ok(Some(released()));
    };
    let delegated = Arc::into_inner(lease).map(|lease| lease.delegate_to(pid));
    Ok(delegated.and_then(|outcome| outcome.err().map(Failure::from)))
}

fn release_lease(lease: Arc<FreePort>) -> std::result::Result<(), Failure> {
    match Arc::into_inner(lease) {
        Some(lease) => lease.release().map_err(Failure::from),
        None => Ok(()),
    }
}
