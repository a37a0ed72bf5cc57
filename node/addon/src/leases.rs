//! What can be done with a lease.

use napi::{Env, Result};
use napi_derive::napi;

use crate::{
    environment::Environment,
    failure::{self, Failure},
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
    let lease = Environment::of(&env)?.take(id);
    Ok(lease.and_then(|lease| lease.release().err().map(Failure::from)))
}

/// Transfers the lease to the process `pid`. It is no longer this one's, even if that fails.
#[napi]
pub fn delegate_to(env: Env, id: u32, pid: u32) -> Result<Option<Failure>> {
    Ok(match Environment::of(&env)?.take(id) {
        Some(lease) => lease.delegate_to(pid).err().map(Failure::from),
        None => Some(failure::released()),
    })
}
