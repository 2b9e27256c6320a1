//! Measures the memory and the allocations of the running test.

use std::cell::Cell;

use super::allocator::Watched;

thread_local! {
    // Counters per thread, since tests run in parallel, each on one thread. Constant and without a
    // destructor, so that the first use does not allocate.
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn record(bytes: usize) {
    let live = LIVE.get() + bytes.cast_signed();
    LIVE.set(live);
    PEAK.set(PEAK.get().max(live));
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
}

fn forget(bytes: usize) {
    LIVE.set(LIVE.get() - bytes.cast_signed());
}

#[global_allocator]
static ALLOCATOR: Watched = Watched {
    allocated: record,
    freed: forget,
};

/// Live bytes of this thread.
pub(super) fn live() -> isize {
    LIVE.get()
}

/// Their peak since the last call.
pub(super) fn peak() -> isize {
    PEAK.replace(LIVE.get())
}

/// Allocations of this thread: a measure of work that is independent of the load of the machine.
pub(super) fn allocations() -> u64 {
    ALLOCATIONS.get()
}
