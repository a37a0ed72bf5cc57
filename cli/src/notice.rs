//! The notice that a command prints on a terminal while it waits for a port.

use std::{
    fmt::Display,
    io::{self, IsTerminal as _, Write as _},
    ops::ControlFlow,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use portlock::Builder;

/// How long a wait lasts before it is announced.
const DELAY: Duration = Duration::from_secs(1);

/// Announces each long wait of the builder by one line that names the ports and their holders.
///
/// It does so only on a terminal, because a wait that succeeds does not belong in a script's log.
pub(crate) fn announce_waits(builder: Builder) -> Builder {
    if !io::stderr().is_terminal() {
        return builder;
    }
    let is_printed = AtomicBool::new(false);
    builder.on_wait(move |status| {
        if status.elapsed() >= DELAY && !is_printed.swap(true, Ordering::Relaxed) {
            print(status);
        }
        ControlFlow::Continue(())
    })
}

/// Calls `wait` and, if it takes long, prints one line. `what` returns its text at that moment.
pub(crate) fn announced<T>(wait: impl FnOnce() -> T, what: impl FnOnce() -> String + Send) -> T {
    if !io::stderr().is_terminal() {
        return wait();
    }
    let (waiting, ended) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            if ended.recv_timeout(DELAY) == Err(RecvTimeoutError::Timeout) {
                print(what());
            }
        });
        let outcome = wait();
        drop(waiting);
        outcome
    })
}

fn print(what: impl Display) {
    // A closed standard error must not end the wait.
    let _ = writeln!(io::stderr(), "portlock: waiting: {what}");
}
