//! Ending a wait early.

use std::{
    ops::ControlFlow,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use pyo3::prelude::*;

/// Whether a wait continues. Shared by the thread that waits and the one that may end it.
#[derive(Default)]
pub(crate) struct Wait {
    is_stopped: AtomicBool,
    /// The exception that a signal handler has raised, such as KeyboardInterrupt for Ctrl-C.
    raised: Mutex<Option<PyErr>>,
}

impl Wait {
    pub(crate) fn stop(&self) {
        self.is_stopped.store(true, Ordering::Relaxed);
    }

    /// Runs the handlers of signals that have arrived, if this is the main thread, and returns whether
    /// the wait continues.
    pub(crate) fn goes_on(&self) -> ControlFlow<()> {
        if self.is_stopped.load(Ordering::Relaxed) {
            return ControlFlow::Break(());
        }
        match Python::try_attach(|py| py.check_signals()) {
            Some(Ok(())) => ControlFlow::Continue(()),
            Some(Err(error)) => {
                *self.raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                ControlFlow::Break(())
            }
            // The interpreter is ending.
            None => ControlFlow::Break(()),
        }
    }

    /// Returns the exception that a signal handler has raised.
    pub(crate) fn take_raised(&self) -> Option<PyErr> {
        self.raised
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}
