//! Many substreams and connections that end in every way leave no entry, no task and no memory.
//!
//! `ANABRANCH_LEAKS=5` runs five times as many.

#[path = "../allocator/mod.rs"]
mod allocator;
mod connections;
mod messages;
mod resets;
mod substreams;

use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::Duration;

use allocator::Watched;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

/// Live bytes of all threads.
static LIVE: AtomicIsize = AtomicIsize::new(0);

fn record(bytes: usize) {
    LIVE.fetch_add(bytes.cast_signed(), Ordering::Relaxed);
}

fn forget(bytes: usize) {
    LIVE.fetch_sub(bytes.cast_signed(), Ordering::Relaxed);
}

#[global_allocator]
static ALLOCATOR: Watched = Watched {
    allocated: record,
    freed: forget,
};

/// Longer than every timeout of a default configuration.
const LIMIT: Duration = Duration::from_secs(120);

/// Held for a whole test, since allocations of other threads count too.
static ALONE: Mutex<()> = Mutex::const_new(());

fn live() -> isize {
    LIVE.load(Ordering::Relaxed)
}

fn tasks() -> usize {
    tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks()
}

/// `count` multiplied by `ANABRANCH_LEAKS`.
fn many(count: usize) -> usize {
    let times =
        std::env::var("ANABRANCH_LEAKS").map_or(1, |times| times.parse().expect("a number"));
    count * times
}

/// Prints the growth of memory, and asserts that it is at most the growth of empty maps and
/// buffers.
fn assert_flat(what: &str, first: isize, second: isize, slack: isize) {
    println!("{what}: {first} bytes live after the first half, {second} after both");
    assert!(
        second - first <= slack,
        "{what}: {first} bytes live after the first half, {second} after both: more than {slack}"
    );
}

/// Waits until a condition holds.
async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let waiting = async {
        while !done() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    if timeout(LIMIT, waiting).await.is_err() {
        panic!("waited in vain for: {what}");
    }
}

#[test]
fn the_counter_counts() {
    let _alone = ALONE.blocking_lock();
    let before = live();
    let vec = vec![1_u8; 1 << 24];
    assert!(live() - before >= 1 << 24);
    drop(vec);
    assert!(live() - before < 1 << 20);
}
