//! Messages that may be due thousands of times per second, and are printed now and then.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The shortest time between two messages of one kind.
const PAUSE: Duration = Duration::from_secs(10);

/// One kind of message.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    suppressed: u64,
}

impl Seldom {
    /// Returns what to add to a message that is due now, if it is to be printed: how many
    /// like it were not.
    pub(crate) fn admit(&self, now: Instant) -> Option<String> {
        let mut printed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_soon = |last: Instant| now.saturating_duration_since(last) < PAUSE;
        if printed.last.is_some_and(is_soon) {
            printed.suppressed += 1;
            return None;
        }
        let suppressed = match std::mem::take(&mut printed.suppressed) {
            0 => String::new(),
            1 => " (and once more since the last such message)".to_owned(),
            number => format!(" (and {number} times more since the last such message)"),
        };
        printed.last = Some(now);
        Some(suppressed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_printed_now_and_then_and_the_others_are_counted() {
        let seldom = Seldom::default();
        let start = Instant::now();
        assert_eq!(seldom.admit(start).as_deref(), Some(""));
        for i in 1..100 {
            assert_eq!(seldom.admit(start + PAUSE * i / 100), None);
        }
        let next = seldom.admit(start + PAUSE).expect("it is time");
        assert_eq!(next, " (and 99 times more since the last such message)");
        assert_eq!(seldom.admit(start + PAUSE), None);
        let next = seldom.admit(start + PAUSE * 2).expect("it is time");
        assert_eq!(next, " (and once more since the last such message)");
        assert_eq!(seldom.admit(start + PAUSE * 9).as_deref(), Some(""));
    }
}
