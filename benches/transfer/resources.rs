//! Allocations and processor time of a transfer, both sides together.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[path = "../../tests/allocator/mod.rs"]
mod allocator;
use allocator::Watched;

/// Allocations so far, of all threads.
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Watched = Watched {
    allocated: |_| {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    },
    freed: |_| {},
};

/// The use of this process so far.
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

    /// Prints the use since then for a transfer of `bytes`.
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
