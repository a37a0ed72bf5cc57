//! A call that can wait, on a separate thread.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use napi::{
    Env, Result,
    bindgen_prelude::Function,
    threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode},
};
use napi_derive::napi;

use crate::{environment::Environment, failure::Failure, leases::Lease, serve::ServerProcess};

/// The outcome of a call.
#[napi(object)]
pub struct Outcome {
    /// The leases, in the requested order.
    pub leases: Option<Vec<Lease>>,
    /// The server that was waited for.
    pub server: Option<ServerProcess>,
    /// Why the call failed.
    pub failure: Option<Failure>,
}

impl Outcome {
    /// Returns the outcome of a call that leases.
    pub(crate) fn of_leases(leases: Vec<Lease>) -> Self {
        Self {
            leases: Some(leases),
            server: None,
            failure: None,
        }
    }

    /// Returns the outcome of a call that waits for a server.
    pub(crate) fn of_server(server: Option<ServerProcess>) -> Self {
        Self {
            leases: None,
            server,
            failure: None,
        }
    }
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Self {
        Self {
            leases: None,
            server: None,
            failure: Some(failure),
        }
    }
}

/// How a thread's call can be stopped.
#[derive(Clone)]
pub(crate) struct Stop {
    stopped: Arc<AtomicBool>,
    environment: Arc<Environment>,
}

impl Stop {
    pub(crate) fn new(env: &Env) -> Result<Self> {
        Ok(Self {
            stopped: Arc::new(AtomicBool::new(false)),
            environment: Environment::of(env)?,
        })
    }

    pub(crate) fn environment(&self) -> &Environment {
        &self.environment
    }

    /// Returns whether JavaScript has stopped the call, or the environment has ended.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst) || self.environment.has_ended()
    }
}

/// A call that runs.
#[napi]
pub struct Call {
    stop: Stop,
    /// Of a call without a callback.
    outcome: Option<Receiver<Outcome>>,
}

#[napi]
impl Call {
    /// Stops the call: it then fails with `ERR_PORTLOCK_STOPPED`, unless it has already ended.
    #[napi]
    pub fn stop(&self) {
        self.stop.stopped.store(true, Ordering::SeqCst);
    }

    /// Waits for the outcome of a call without a callback, for `ms` milliseconds at most.
    #[napi]
    pub fn wait(&self, ms: u32) -> Result<Option<Outcome>> {
        let Some(outcome) = &self.outcome else {
            return Err(napi::Error::from_reason("the call has a callback"));
        };
        match outcome.recv_timeout(Duration::from_millis(ms.into())) {
            Ok(outcome) => Ok(Some(outcome)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                Err(napi::Error::from_reason("the thread of the call has ended"))
            }
        }
    }
}

/// The callback of a call.
pub(crate) type Callback<'a> = Function<'a, Outcome, ()>;

/// Delivers the outcome of a thread.
type Deliver = Box<dyn FnOnce(Outcome) + Send>;

/// Runs `work` on a separate thread. Its outcome goes to `callback`, or else to [`Call::wait`].
///
/// Until then, the program stays alive if `keeps_alive`.
pub(crate) fn start(
    env: &Env,
    callback: Option<Callback<'_>>,
    keeps_alive: bool,
    work: impl FnOnce(&Stop) -> Outcome + Send + 'static,
) -> Result<Call> {
    let stop = Stop::new(env)?;
    let (deliver, outcome): (Deliver, _) = match callback {
        Some(callback) if keeps_alive => (deliver_to::<false>(&callback)?, None),
        Some(callback) => (deliver_to::<true>(&callback)?, None),
        None => {
            let (sender, receiver) = mpsc::channel();
            // The receiver may be gone.
            let deliver = move |outcome| drop(sender.send(outcome));
            (Box::new(deliver), Some(receiver))
        }
    };
    let running = stop.environment.run();
    let work = {
        let stop = stop.clone();
        move || {
            let outcome = work(&stop);
            deliver(outcome);
            // Last: when the environment ends, Node.js frees the callback's function as soon as the
            // environment no longer waits for this thread.
            drop(running);
        }
    };
    thread::Builder::new()
        .name("portlock".to_owned())
        .spawn(work)
        .map_err(|error| napi::Error::from_reason(format!("cannot start a thread: {error}")))?;
    Ok(Call { stop, outcome })
}

fn deliver_to<const UNREF: bool>(callback: &Callback<'_>) -> Result<Deliver> {
    let callback: ThreadsafeFunction<Outcome, (), Outcome, napi::Status, false, UNREF> = callback
        .build_threadsafe_function::<Outcome>()
        .weak::<UNREF>()
        .build()?;
    Ok(Box::new(move |outcome| {
        // An environment that has ended has no callback to call.
        callback.call(outcome, ThreadsafeFunctionCallMode::NonBlocking);
    }))
}

/// Returns a duration; infinity is longer than any wait can last.
pub(crate) fn milliseconds(ms: f64) -> Duration {
    Duration::try_from_secs_f64(ms / 1000.0).unwrap_or(Duration::MAX)
}
