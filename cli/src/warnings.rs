//! The warnings of the library that a user of the program needs.

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::output::warn;

/// The module of the library that warns of a reservation without a copy. The other warnings are
/// about settings of the machine, and would be repeated by every command.
const TARGET: &str = "portlock::names";

struct Printer;

impl Log for Printer {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn && metadata.target() == TARGET
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            warn(&record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// Prints these warnings from now on.
pub(crate) fn print() {
    if log::set_logger(&Printer).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}
