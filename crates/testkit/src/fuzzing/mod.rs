//! What the targets in `fuzz/` call: each takes any bytes, and panics where a promise is broken.
//!
//! No promise of stability: anything here may change or go at any time. The corpora in `fuzz/corpus`
//! run through the same functions in `tests.rs`.

mod engine;
mod first_contact;
mod frames;
mod input;
pub mod lines;
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

use engine as engine_fuzzing;
pub use input::Input;
pub use stun::ForgedStun;

/// Most time that one datagram may cost an engine.
///
/// Anybody who completes a handshake can send a hundred thousand a second. Builds with debug
/// assertions, and those of the fuzzer, are slower.
const MAX_TIME: Duration = Duration::from_millis(if cfg!(not(test)) {
    20
} else if cfg!(debug_assertions) {
    100
} else {
    5
});

/// Times that an input has to be too slow: a thread also pays for the caches that others fill.
const ATTEMPTS: usize = 3;

/// Microseconds that the slowest datagram of this process has cost.
static SLOWEST: AtomicU64 = AtomicU64::new(0);

/// Nominations of addresses, and nonces that come back from anywhere: an address counts once its own has come back from
/// there, and is asked a few times.
///
/// # Panics
/// If that is not so.
pub fn path_validation(bytes: &[u8]) {
    engine_fuzzing::path_validation(bytes);
}

/// SCTP packets that a peer changes or forges under valid DTLS, while channels open, transfer and
/// close. Each side goes on or ends with a typed error, within bounds of time and memory. Where nobody lies and only the
/// network is bad, what was acknowledged was readable.
///
/// # Panics
/// If that is not so.
pub fn established_engine(bytes: &[u8]) {
    in_time(|| engine_fuzzing::changed_packets(bytes));
}

/// Datagrams that somebody without keys changes, repeats or makes up: both sides survive, and
/// what they transfer arrives as it was.
///
/// # Panics
/// If a side does not survive, or something else arrives.
pub fn established_datagrams(bytes: &[u8]) {
    in_time(|| engine_fuzzing::changed_datagrams(bytes));
}

/// Datagrams of strangers to a listening endpoint, whose application lets everybody in: no state for
/// what is not valid, no answer longer than three times what came, and nothing left in the end.
///
/// # Panics
/// If that is not so.
pub fn first_contact(bytes: &[u8]) {
    first_contact::run(bytes);
}

/// A byte stream, cut anywhere: the frame decoder says what a model and prost say, and holds no
/// more than it may.
///
/// # Panics
/// If that is not so.
pub fn frame_decoder(bytes: &[u8]) {
    frames::run(bytes);
}

/// Bytes where Noise or multistream-select is expected: a typed error, within bounds.
///
/// # Panics
/// If that is not so.
pub fn noise_and_multistream(bytes: &[u8]) {
    negotiation::run(bytes);
}

/// Any bytes in the place of a header, of an answer and of a receipt, cut anywhere, towards a receiver and a
/// sender of payloads: what is handed over is what was sent, what counts as whole is whole, and in the end
/// nothing is left.
///
/// # Panics
/// If that is not so.
pub fn payload(bytes: &[u8]) {
    payload::run(bytes);
}

/// Calls of an application on substreams, between what a peer without rules says: every byte
/// arrives in order or a typed error says otherwise, what we send keeps the rules, and in the end
/// nothing is left.
///
/// # Panics
/// If that is not so.
pub fn substream_states(bytes: &[u8]) {
    substreams::run(bytes);
}

/// Requests of upgrades to WebSockets: upgraded is only what keeps every rule, all else gets an
/// answer of HTTP.
///
/// # Panics
/// If that is not so.
#[cfg(feature = "websocket")]
pub fn websocket_request(bytes: &[u8]) {
    requests::run(bytes);
}

/// Runs a session on a clock that stands still while anything can run.
fn in_virtual_time<T>(session: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime")
        .block_on(session)
}

/// How long this thread has run: a process that is put aside is not at fault.
#[cfg(unix)]
pub fn thread_time() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// The next best.
#[cfg(not(unix))]
pub fn thread_time() -> Duration {
    static START: std::sync::LazyLock<std::time::Instant> =
        std::sync::LazyLock::new(std::time::Instant::now);
    START.elapsed()
}

/// Runs a session, and again if it is slow.
fn in_time(session: impl Fn() -> Duration) {
    let mut fastest = Duration::MAX;
    for _ in 0..ATTEMPTS {
        fastest = fastest.min(session());
        if fastest <= MAX_TIME {
            note_time(fastest);
            return;
        }
    }
    panic!("one datagram kept an engine for {fastest:?}");
}

/// Prints each new maximum, for `scripts/fuzz.sh`.
fn note_time(time: Duration) {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    if SLOWEST.fetch_max(micros, Ordering::Relaxed) < micros && cfg!(not(test)) {
        eprintln!("slowest datagram: {micros} us");
    }
}
