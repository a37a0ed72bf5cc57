//! The native part of the npm package `portlock`.
//!
//! Node-API functions over the library `portlock`, for the TypeScript in `lib/`, which validates
//! arguments and is the package's interface. Leases are kept in a table of the Node.js environment
//! (`environment.rs`), out of reach of the garbage collector. Every call that can wait runs on a
//! separate thread (`call.rs`), so that neither the event loop nor libuv's thread pool waits.

mod acquire;
mod call;
mod environment;
mod exec;
mod failure;
mod leases;
mod ports;
mod serve;
