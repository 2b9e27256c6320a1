//! Allocations and processor time of a transfer, of both sides together.
// A global allocator can not be written without it; the library itself forbids it.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counts allocations of all threads.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: hands every call on to the system allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is the one that is asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What this process has used so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    allocations: u64,
    cpu: Duration,
}

impl Usage {
    pub(crate) fn now() -> Self {
        Self {
            allocations: ALLOCATIONS.load(Ordering::Relaxed),
            cpu: cpu_time(),
        }
    }

    /// Prints what was used since then to move `bytes`.
    pub(crate) fn report(self, name: &str, bytes: usize) {
        let now = Self::now();
        let allocations = (now.allocations - self.allocations) as f64;
        let cpu = (now.cpu - self.cpu).as_secs_f64();
        let megabytes = bytes as f64 / 1e6;
        println!(
            "{name}: {:.0} allocations a MB, {:.2} CPU seconds a GB, both sides together",
            allocations / megabytes,
            cpu / megabytes * 1e3,
        );
    }
}

#[cfg(unix)]
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

#[cfg(not(unix))]
fn cpu_time() -> Duration {
    Duration::ZERO
}
