//! Messages for the log crate. Without the feature `log` they are discarded.

#[cfg(feature = "log")]
pub(crate) use log::{debug, warn};

#[cfg(not(feature = "log"))]
pub(crate) use discard::{debug, warn};

#[cfg(not(feature = "log"))]
mod discard {
    /// Uses the arguments, so that callers need not mark them as unused.
    macro_rules! discard {
        ($($arguments:tt)*) => {{
            let _ = format_args!($($arguments)*);
        }};
    }

    pub(crate) use discard as debug;
    pub(crate) use discard as warn;
}
