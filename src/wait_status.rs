//! The state of a wait, for a callback that can stop the wait.

use std::{
    fmt,
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    error::{Error, ErrorKind, PortCounts, Result},
    leases,
    lock_dir::OpenDir,
    search::{ByReason, Exhausted},
};

/// Minimum time between two calls of a callback.
const INTERVAL: Duration = Duration::from_millis(100);

/// What a call waits for, and why it does not have it yet: the argument of the callback of
/// [`Builder::on_wait`](crate::Builder::on_wait).
///
/// Its text form is the message that the error would have if the timeout expired now.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WaitStatus {
    pub(crate) elapsed: Duration,
    pub(crate) counts: PortCounts,
    pub(crate) message: String,
}

impl WaitStatus {
    /// Returns how long the call has waited.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// Returns the numbers of ports that could not be leased at the last rescan, by reason.
    #[must_use]
    pub fn counts(&self) -> PortCounts {
        self.counts
    }
}

/// Writes text such as
/// `no free port in 4711 after 1.2 s: 1 leased (4711 by pid 812 "orders-test")`.
impl fmt::Display for WaitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

type Callback = dyn Fn(&WaitStatus) -> ControlFlow<()> + Send + Sync;

/// The callback of a builder.
#[derive(Clone)]
pub(crate) struct OnWait(Arc<Callback>);

impl OnWait {
    pub(crate) fn new(
        callback: impl Fn(&WaitStatus) -> ControlFlow<()> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(callback))
    }
}

impl fmt::Debug for OnWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnWait")
    }
}

/// The calls of one wait's callback.
pub(crate) struct Calls<'a> {
    callback: &'a OnWait,
    start: Instant,
    due: Instant,
    /// From the last rescan of all ports: the counts, and the ports that the message explains.
    counts: PortCounts,
    examples: ByReason<u16>,
}

impl<'a> Calls<'a> {
    pub(crate) fn begin(callback: &'a OnWait, start: Instant) -> Self {
        Self {
            callback,
            start,
            due: start,
            counts: PortCounts::default(),
            examples: ByReason::default(),
        }
    }

    /// Returns when the next call is due.
    pub(crate) fn due(&self) -> Instant {
        self.due
    }

    /// Records the outcome of a rescan of all ports.
    pub(crate) fn update(&mut self, exhausted: &mut Exhausted) {
        self.counts = exhausted.counts();
        self.examples = exhausted.examples();
    }

    /// Calls the callback if a call is due. The holders are read again for each call: they may
    /// have changed while this caller was in the wait queue, where it does not rescan.
    ///
    /// # Errors
    ///
    /// [`Stopped`](ErrorKind::Stopped) if the callback returns `Break`.
    pub(crate) fn call_if_due(
        &mut self,
        headline: &impl Fn() -> String,
        dir: Option<&OpenDir>,
    ) -> Result<()> {
        if Instant::now() < self.due {
            return Ok(());
        }
        let elapsed = self.start.elapsed();
        let headline = format!("{} after {:.1} s", headline(), elapsed.as_secs_f64());
        let examples = leases::explain(dir, self.examples.clone(), None);
        let status = WaitStatus {
            elapsed,
            counts: self.counts,
            message: self.counts.message(headline, &examples),
        };
        let answer = (self.callback.0)(&status);
        // From the end of the call: a slow callback must leave time for the ports.
        self.due = Instant::now() + INTERVAL;
        match answer {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => {
                let message = format!("stopped waiting: {status}");
                Err(Error::new(ErrorKind::Stopped, message).with_counts(self.counts))
            }
        }
    }
}
