//! Counts of ends and of losses.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The state of a transfer at its receiver.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Received {
    pub(crate) bytes: u64,
    /// It ended in order.
    pub(crate) orderly: bool,
    /// The sender could not send all of it, and got an error.
    pub(crate) cut: bool,
}

/// Counts of all diallers and of the listener.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    kinds: Mutex<BTreeMap<String, u64>>,
    /// Transfers under way, by number.
    transfers: Mutex<HashMap<u64, Received>>,
    pub(crate) bytes: AtomicU64,
    lost: AtomicU64,
    next: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Complete entries only.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tally {
    /// Counts an end of this kind.
    pub(crate) fn met(&self, kind: impl Into<String>) {
        *lock(&self.kinds).entry(kind.into()).or_default() += 1;
    }

    pub(crate) fn lose(&self, story: &str) {
        eprintln!("LOST: {story}");
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Allocates a number for a transfer, under which the listener reports it.
    pub(crate) fn begin_transfer(&self) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.transfers).insert(number, Received::default());
        number
    }

    pub(crate) fn report_transfer(&self, number: u64, received: Received) {
        // Its sender may have given up and left.
        if let Some(transfer) = lock(&self.transfers).get_mut(&number) {
            *transfer = received;
        }
    }

    /// The listener could not send all of a transfer.
    pub(crate) fn cut_short(&self, number: u64) {
        if let Some(transfer) = lock(&self.transfers).get_mut(&number) {
            transfer.cut = true;
        }
    }

    pub(crate) fn end_transfer(&self, number: u64) -> Received {
        lock(&self.transfers).remove(&number).unwrap_or_default()
    }

    /// Transfers that have not ended.
    pub(crate) fn left(&self) -> usize {
        lock(&self.transfers).len()
    }

    pub(crate) fn print(&self) {
        println!(
            "{:.1} MB compared, byte by byte",
            self.bytes.load(Ordering::Relaxed) as f64 / 1e6
        );
        for (kind, count) in lock(&self.kinds).iter() {
            println!("{count:>9}  {kind}");
        }
    }
}

/// The resident set of this process; 0 if the system does not report it.
pub(crate) fn resident_kib() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    pages.unwrap_or(0) * 4
}

/// The minimum of resident memory in the second tenth of the time, in the sixth, and in the last:
/// between two peaks of the load.
pub(crate) fn watch_memory(deadline: Instant) -> [u64; 3] {
    let tenth = deadline.saturating_duration_since(Instant::now()) / 10;
    let begin = Instant::now();
    [1, 5, 9].map(|from| {
        let mut least = u64::MAX;
        while begin.elapsed() < tenth * (from + 1) {
            std::thread::sleep(Duration::from_millis(50));
            if begin.elapsed() >= tenth * from {
                least = least.min(resident_kib());
            }
        }
        least
    })
}
