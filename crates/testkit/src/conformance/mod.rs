//! A test suite for implementations of [`Carrier`](anabranch::carrier::Carrier).
//!
//! Each public function is one case: a rule of the carrier's contract, or of a connection over it.
//! It takes a factory, an async function that returns two freshly connected carriers, and panics
//! if the rule is broken. [`carrier_conformance!`] generates a test for each case; [`run_all`] runs
//! them in sequence.
//!
//! The cases work in real time and on a paused clock. They wait up to [`TIMEOUT`] for what has to
//! happen, and sleep only where something must *not* happen.
//!
//! ```
//! use anabranch::carrier::Carrier;
//! use anabranch_testkit::memory::{MemoryConfig, pair};
//!
//! async fn connect() -> (impl Carrier, impl Carrier) {
//!     let (a, b, _faults) = pair(MemoryConfig::default());
//!     (a, b)
//! }
//!
//! // One test for each case, in the module `in_memory`.
//! anabranch_testkit::carrier_conformance!(paused in_memory, connect);
//!
//! // One case.
//! # fn main() {
//! # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()
//! #     .unwrap().block_on(async {
//! anabranch_testkit::conformance::open_carries_the_label(connect).await;
//! # });
//! # }
//! ```
//!
//! [`carrier_conformance!`]: crate::carrier_conformance

// The cases report a broken rule by a panic: they are tests, though compiled into a library.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

mod bursts;
mod channels;
mod connections;
mod ends;
mod floods;
mod storm;

pub use bursts::*;
pub use channels::*;
pub use connections::*;
pub use floods::*;
pub use storm::*;

/// How long a case waits for something that has to happen, by tokio's clock.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// How long a case watches for something that must not happen.
const QUIET: Duration = Duration::from_millis(50);

/// Calls `$then!` with the name of every case.
#[doc(hidden)]
#[macro_export]
macro_rules! for_each_carrier_case {
    ($then:path, $($arguments:tt)*) => {
        $then! {
            $($arguments)*;
            open_carries_the_label,
            channel_ids_are_unique,
            data_arrives_complete_and_in_order,
            frames_of_the_largest_size_arrive,
            frames_in_pieces_arrive_whole,
            busy_is_followed_by_writable,
            control_passes_while_data_is_busy,
            delivered_is_reported_at_once_or_after_the_peer_has_it,
            a_closed_channel_delivers_what_was_written_before,
            data_after_a_close_is_dropped,
            both_ends_may_close_a_channel_at_once,
            a_thousand_channels_come_and_go,
            unknown_channels_are_harmless,
            a_close_reaches_the_peer_after_all_data,
            a_carrier_that_is_dropped_ends_its_peer,
            an_echo_comes_back,
            chunks_arrive_between_writes,
            protocols_are_negotiated,
            each_direction_closes_by_itself,
            both_ends_may_finish_at_once,
            a_hundred_substreams_run_at_once,
            a_big_writer_does_not_hold_up_a_small_echo,
            a_slow_reader_holds_up_only_its_own_writer,
            a_reset_ends_both_directions_with_its_code,
            a_stop_reaches_the_writer_with_its_code,
            what_was_written_arrives_whoever_is_dropped,
            closing_a_connection_delivers_what_was_written,
            a_peer_that_vanishes_ends_everything,
            a_burst_of_opens_waits_for_room,
            tiny_messages_to_a_late_reader_all_arrive,
            a_reset_in_flight_leaves_the_neighbour_alone,
            a_close_carries_its_code_and_reason,
            a_peer_that_resets_in_a_loop_is_disconnected_with_the_cause,
            a_writer_that_panics_resets,
            frames_without_effect_reset_their_substream,
            notices_that_repeat_end_the_connection,
            random_operations_lose_nothing
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! carrier_cases_as_tests {
    ($attribute:tt $name:ident $factory:expr; $($case:ident),*) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            $(
                #$attribute
                async fn $case() {
                    $crate::conformance::$case($factory).await;
                }
            )*
        }
    };
}

/// Generates a module with one `#[tokio::test]` for each case of the
/// [conformance suite](crate::conformance).
///
/// - `carrier_conformance!(name, factory)` runs the cases in real time;
/// - `carrier_conformance!(paused name, factory)` runs them on a paused clock.
///
/// `name` is the name of the module. `factory` is an expression: a function or closure that returns
/// a future of two connected carriers. It is evaluated inside the module, which imports `super::*`.
///
/// The calling crate needs tokio with the features `macros` and `rt`, and `test-util` for `paused`.
#[macro_export]
macro_rules! carrier_conformance {
    (paused $name:ident, $factory:expr) => {
        $crate::for_each_carrier_case! {
            $crate::carrier_cases_as_tests, [tokio::test(start_paused = true)] $name $factory
        }
    };
    ($name:ident, $factory:expr) => {
        $crate::for_each_carrier_case! {
            $crate::carrier_cases_as_tests, [tokio::test] $name $factory
        }
    };
}

macro_rules! run_in_sequence {
    ($factory:expr; $($case:ident),*) => {
        $(
            tracing::info!(target: "anabranch::conformance", case = stringify!($case));
            $case($factory).await;
        )*
    };
}

/// Runs every case in sequence, each with carriers of its own.
///
/// Logs the name of each case by `tracing` at level INFO with the target `anabranch::conformance`.
///
/// # Panics
/// At the first broken rule, and outside of a tokio runtime with timers.
pub async fn run_all<F, Fut, A, B>(factory: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = (A, B)>,
    A: anabranch::carrier::Carrier + 'static,
    B: anabranch::carrier::Carrier + 'static,
{
    for_each_carrier_case!(run_in_sequence, &factory);
}

/// Test data in which a lost, repeated or swapped byte is detected.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}
