//! A global allocator that reports allocations, for tests and benchmarks that count them.
// A global allocator requires unsafe code, which the library itself forbids.
#![allow(unsafe_code)]
#![allow(unreachable_pub)] // A module of each binary that uses it.

use std::alloc::{GlobalAlloc, Layout, System};

/// The system allocator with an observer, whose methods must not allocate.
pub struct Watched {
    /// Bytes were allocated.
    pub allocated: fn(usize),
    /// Bytes were freed.
    pub freed: fn(usize),
}

// SAFETY: forwards every call unchanged to the system allocator.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        (self.allocated)(layout.size());
        // SAFETY: the caller upholds the same contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        (self.allocated)(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        (self.freed)(layout.size());
        (self.allocated)(new_size);
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        (self.freed)(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}
