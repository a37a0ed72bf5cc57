//! Rate limiting for messages that could be logged thousands of times per second.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Minimum time between two messages of one kind.
const PAUSE: Duration = Duration::from_secs(10);

/// One kind of message.
#[derive(Debug, Default)]
pub(crate) struct RateLimit(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    suppressed: u64,
}

impl RateLimit {
    /// Returns `None` if a message must be suppressed now, or else a suffix for it that counts the
    /// messages suppressed since the last one.
    pub(crate) fn admit(&self, now: Instant) -> Option<String> {
        let mut printed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_soon = |last: Instant| now.saturating_duration_since(last) < PAUSE;
        if printed.last.is_some_and(is_soon) {
            printed.suppressed += 1;
            return None;
        }
        let suppressed = match std::mem::take(&mut printed.suppressed) {
            0 => String::new(),
            1 => " (1 such message suppressed since the last one)".to_owned(),
            number => format!(" ({number} such messages suppressed since the last one)"),
        };
        printed.last = Some(now);
        Some(suppressed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_message_per_interval_is_printed_and_the_others_are_counted() {
        let rate_limit = RateLimit::default();
        let start = Instant::now();
        assert_eq!(rate_limit.admit(start).as_deref(), Some(""));
        for i in 1..100 {
            assert_eq!(rate_limit.admit(start + PAUSE * i / 100), None);
        }
        let next = rate_limit.admit(start + PAUSE).expect("it is time");
        assert_eq!(next, " (99 such messages suppressed since the last one)");
        assert_eq!(rate_limit.admit(start + PAUSE), None);
        let next = rate_limit.admit(start + PAUSE * 2).expect("it is time");
        assert_eq!(next, " (1 such message suppressed since the last one)");
        assert_eq!(rate_limit.admit(start + PAUSE * 9).as_deref(), Some(""));
    }
}
