//! The compiler error on a system that portlock does not support.

compile_error!(
    "portlock runs on Linux, macOS and Windows: CONTRIBUTING.md says what another system needs"
);
