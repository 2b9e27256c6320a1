//! Sums that limits rest on.

/// Lowers a sum of bytes or entries. A sum that would fall below zero counts something twice: a debug build
/// panics, and in a release the sum stays at zero, so that the limit holds on.
#[track_caller]
pub(crate) fn lower(sum: &mut usize, by: usize) {
    debug_assert!(*sum >= by, "{by} of {sum}");
    *sum = sum.saturating_sub(by);
}
