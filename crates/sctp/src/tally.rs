//! Counters on which limits depend.

/// Subtracts from a counter of bytes or entries. Underflow means that something was counted twice:
/// a debug build panics, and a release build stops at zero so that the limit still holds.
#[track_caller]
pub(crate) fn lower(sum: &mut usize, by: usize) {
    debug_assert!(*sum >= by, "{by} of {sum}");
    *sum = sum.saturating_sub(by);
}
