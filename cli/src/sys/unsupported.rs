//! What only Linux has, where the system is another one.

/// Returns why `/tmp` is not the one that other processes have: only Linux can have several.
pub(crate) fn private_tmp() -> Option<String> {
    None
}
