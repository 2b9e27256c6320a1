//! A global allocator that tells what is allocated and freed, for tests and benchmarks that count it.
// It can not be written without it; the library itself forbids it.
#![allow(unsafe_code)]
#![allow(unreachable_pub)] // A module of each binary that uses it.

use std::alloc::{GlobalAlloc, Layout, System};

/// The system's allocator, with somebody who watches. What is called must not allocate.
pub struct Watched {
    /// Bytes were allocated.
    pub allocated: fn(usize),
    /// Bytes were freed.
    pub freed: fn(usize),
}

// SAFETY: hands every call on to the system allocator as it came.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        (self.allocated)(layout.size());
        // SAFETY: the caller's promise is the one that is asked for.
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
