//! The bodies of the fuzz targets in `fuzz/`. Each takes arbitrary bytes, and panics if a guarantee
//! of anabranch is violated.
//!
//! This module is hidden from the documentation and exempt from semantic versioning: anything here
//! may change or disappear in any release. The tests of the crate run the corpora in `fuzz/corpus`
//! and random bytes through the same functions.

mod engine;
mod first_contact;
mod frames;
mod input;
mod lines;
mod negotiation;
mod oracle;
mod payload;
mod peer;
#[cfg(feature = "websocket")]
mod requests;
mod stun;
mod substreams;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use input::Input;
pub use lines::request_text;
pub use stun::ForgedStun;

/// Maximum CPU time that one datagram may cost an engine.
///
/// Any peer that completes a handshake can send 100 000 datagrams a second. Builds with debug
/// assertions, and those of the fuzzer, are slower.
const MAX_TIME: Duration = Duration::from_millis(if cfg!(not(test)) {
    20
} else if cfg!(debug_assertions) {
    100
} else {
    5
});

/// Runs in which an input has to be too slow: a thread also pays for cache lines that others evict.
const ATTEMPTS: usize = 3;

/// CPU time of the slowest datagram in this process, in microseconds.
static SLOWEST: AtomicU64 = AtomicU64::new(0);

/// Validates paths while addresses are nominated and nonces come back from arbitrary addresses.
///
/// # Panics
/// If an address counts as validated before its own nonce has come back from it, or is challenged
/// too often or too fast.
pub fn path_validation(bytes: &[u8]) {
    engine::path_validation(bytes);
}

/// Changes or forges SCTP packets under valid DTLS, while channels open, transfer and close. From a
/// first byte of 192 on, both sides follow the rules, and only the network is bad.
///
/// # Panics
/// If a side exceeds its bounds of time or memory, or, between sides that follow the rules, if
/// acknowledged data was not readable.
pub fn established_engine(bytes: &[u8]) {
    with_time_limit(|| engine::changed_packets(bytes));
}

/// Changes, replays and forges datagrams without the keys.
///
/// # Panics
/// If a connection ends, or transfers other bytes than were sent.
pub fn established_datagrams(bytes: &[u8]) {
    with_time_limit(|| engine::changed_datagrams(bytes));
}

/// Sends datagrams of strangers to a listening endpoint whose application accepts everybody.
///
/// # Panics
/// If an invalid datagram creates state or is answered, if the answers are longer than three times
/// what was received, or if anything is left at the end.
pub fn first_contact(bytes: &[u8]) {
    first_contact::run(bytes);
}

/// Decodes a byte stream that is split at arbitrary positions.
///
/// # Panics
/// If the frame decoder differs from a model or from prost, or buffers more than its limit.
pub fn frame_decoder(bytes: &[u8]) {
    frames::run(bytes);
}

/// Sends arbitrary bytes where Noise or multistream-select is expected.
///
/// # Panics
/// If the negotiation does not end in agreement or a typed error, or exceeds its bounds.
pub fn noise_and_multistream(bytes: &[u8]) {
    negotiation::run(bytes);
}

/// Sends arbitrary bytes as the header, answer and receipt of a payload, to a receiver and to a
/// sender.
///
/// # Panics
/// If other bytes are passed on than were sent, if an incomplete payload counts as complete, or if
/// anything is left at the end.
pub fn payload(bytes: &[u8]) {
    payload::run(bytes);
}

/// Makes the calls of an application on substreams while the peer sends arbitrary frames.
///
/// # Panics
/// If bytes are lost, changed or reordered without a typed error, if a frame that is sent violates
/// the protocol, or if anything is left at the end.
pub fn substream_states(bytes: &[u8]) {
    substreams::run(bytes);
}

/// Sends upgrade requests to a WebSocket listener.
///
/// # Panics
/// If a request is upgraded that breaks a rule, or the answer to another is not valid HTTP.
#[cfg(feature = "websocket")]
pub fn websocket_request(bytes: &[u8]) {
    requests::run(bytes);
}

/// Runs a session on a paused clock, which advances only when no task can run.
fn in_virtual_time<T>(session: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime")
        .block_on(session)
}

/// CPU time of this thread, which does not include the time of other processes.
#[cfg(unix)]
pub fn thread_cpu_time() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// Wall-clock time, where the CPU time of a thread is not available.
#[cfg(not(unix))]
pub fn thread_cpu_time() -> Duration {
    static START: std::sync::LazyLock<std::time::Instant> =
        std::sync::LazyLock::new(std::time::Instant::now);
    START.elapsed()
}

/// Runs a session, which returns the time of its slowest datagram, and repeats it if that is above
/// [`MAX_TIME`].
fn with_time_limit(session: impl Fn() -> Duration) {
    let mut fastest = Duration::MAX;
    for _ in 0..ATTEMPTS {
        fastest = fastest.min(session());
        if fastest <= MAX_TIME {
            record_time(fastest);
            return;
        }
    }
    panic!("one datagram took an engine {fastest:?}");
}

/// Prints each new maximum, which `scripts/fuzz.sh` parses.
fn record_time(time: Duration) {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    if SLOWEST.fetch_max(micros, Ordering::Relaxed) < micros && cfg!(not(test)) {
        eprintln!("slowest datagram: {micros} us");
    }
}
