//! The leases and threads of one Node.js environment: the main thread's, or a worker's.

use std::{
    collections::HashMap,
    net::TcpListener,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use napi::{Env, Result};
use napi_derive::napi;
use portlock::FreePort;

/// Maximum time for which an environment that ends waits for its threads. A wait for a port is
/// stopped within 0.1 seconds; only a file system that does not answer takes longer.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// The leases and threads of one environment. They end with it.
#[derive(Default)]
pub(crate) struct Environment {
    ended: AtomicBool,
    state: Mutex<State>,
    thread_ended: Condvar,
}

#[derive(Default)]
struct State {
    leases: HashMap<u32, Arc<Slot>>,
    last_id: u32,
    threads: usize,
}

/// A lease that a thread may be using. `None` once it has ended.
type Slot = Mutex<Option<Held>>;

/// A lease that the environment keeps.
pub(crate) struct Held {
    /// A listener that JavaScript has not taken over yet. Closed before the lease ends.
    pub(crate) listener: Option<TcpListener>,
    pub(crate) port: FreePort,
}

/// A thread of an environment, until it is dropped.
pub(crate) struct Running(Arc<Environment>);

impl Environment {
    /// Returns the environment of `env`.
    pub(crate) fn of(env: &Env) -> Result<Arc<Self>> {
        let this = env.get_instance_data::<Arc<Self>>()?;
        this.cloned()
            .ok_or_else(|| napi::Error::from_reason("portlock's module was not initialized"))
    }

    /// Returns whether the environment has ended, so that nothing may be leased for it.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Counts a thread. An environment that ends waits for its threads.
    pub(crate) fn run(self: &Arc<Self>) -> Running {
        self.state().threads += 1;
        Running(Arc::clone(self))
    }

    /// Keeps a lease until it is [taken](Self::take) or the environment ends, and returns its id;
    /// `None` if the environment has ended, and so has the lease.
    pub(crate) fn keep(&self, held: Held) -> Option<u32> {
        let mut state = self.state();
        if self.has_ended() {
            return None;
        }
        let mut id = state.last_id;
        loop {
            id = id.wrapping_add(1);
            if !state.leases.contains_key(&id) {
                break;
            }
        }
        state.last_id = id;
        state.leases.insert(id, Arc::new(Mutex::new(Some(held))));
        Some(id)
    }

    /// Calls `f` with the lease that has this id. `None` if it has ended.
    ///
    /// Until `f` returns, [`take`](Self::take) of the same lease waits.
    pub(crate) fn with<T>(&self, id: u32, f: impl FnOnce(&mut Held) -> T) -> Option<T> {
        let slot = self.state().leases.get(&id).cloned()?;
        let mut held = slot.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_mut().map(f)
    }

    /// Returns the lease with this id, and forgets it. A listener is closed.
    pub(crate) fn take(&self, id: u32) -> Option<FreePort> {
        let slot = self.state().leases.remove(&id)?;
        let held = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        held.map(|held| held.port)
    }

    /// Ends all leases, and waits until no thread can acquire another one.
    fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        let mut state = self.state();
        state.leases.clear();
        let outcome = self
            .thread_ended
            .wait_timeout_while(state, STOP_TIMEOUT, |state| state.threads > 0);
        drop(outcome.unwrap_or_else(PoisonError::into_inner));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change of the state is a single step, so a panic leaves no partial change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.state().threads -= 1;
        self.0.thread_ended.notify_all();
    }
}

#[napi(module_exports)]
pub fn init(_exports: napi::bindgen_prelude::Object, env: Env) -> Result<()> {
    let environment = Arc::new(Environment::default());
    env.set_instance_data(Arc::clone(&environment), (), |_| ())?;
    env.add_env_cleanup_hook(environment, |environment| environment.end())?;
    Ok(())
}
