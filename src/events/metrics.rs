//! Events exported as metrics.

use std::error::Error;
use std::time::Duration;

use metrics::{counter, gauge, histogram};

use super::SubstreamStats;
use super::{ConnectionInfo, Events, Initiator, PayloadOutcome, PayloadProgress, SubstreamInfo};
use crate::error::CloseOutcome;
use crate::error::ConnectionError;
use crate::error::payload::PayloadError;

/// Counts events with the recorder of the `metrics` crate that the program has installed.
///
/// | metric | kind | labels |
/// |---|---|---|
/// | `anabranch_connect_attempts_total` | counter | `initiator` |
/// | `anabranch_connect_failures_total` | counter | `initiator` |
/// | `anabranch_connections_total` | counter | `initiator` |
/// | `anabranch_connections` | gauge | |
/// | `anabranch_connection_failures_total` | counter | |
/// | `anabranch_ping_seconds` | histogram | |
/// | `anabranch_substreams_total` | counter | `initiator` |
/// | `anabranch_substreams` | gauge | |
/// | `anabranch_substreams_refused_total` | counter | |
/// | `anabranch_substreams_closed_total` | counter | `outcome` |
/// | `anabranch_substreams_reset_total` | counter | `by` |
/// | `anabranch_substream_sent_bytes_total` | counter, raised when a substream ends | |
/// | `anabranch_substream_received_bytes_total` | counter, raised when a substream ends | |
/// | `anabranch_credit_stalls_total` | counter | |
/// | `anabranch_credit_wait_seconds` | histogram | |
/// | `anabranch_payloads_total` | counter | `direction` |
/// | `anabranch_payloads` | gauge | `direction` |
/// | `anabranch_payloads_refused_total` | counter | |
/// | `anabranch_payloads_ended_total` | counter | `direction`, `outcome`[^outcome] |
/// | `anabranch_payload_bytes_total` | counter, without skipped bytes | `direction` |
///
/// [^outcome]: As [`PayloadOutcome::as_str`].
#[derive(Debug, Clone, Copy, Default)]
pub struct MetricsEvents;

impl MetricsEvents {
    fn ended(stats: &SubstreamStats) {
        gauge!("anabranch_substreams").decrement(1);
        counter!("anabranch_substream_sent_bytes_total").increment(stats.sent);
        counter!("anabranch_substream_received_bytes_total").increment(stats.received);
    }
}

impl Events for MetricsEvents {
    fn connection_opening(&self, connection: &ConnectionInfo) {
        let initiator = connection.initiator.as_str();
        counter!("anabranch_connect_attempts_total", "initiator" => initiator).increment(1);
    }

    fn connect_failed(&self, connection: &ConnectionInfo, _: Option<&(dyn Error + 'static)>) {
        let initiator = connection.initiator.as_str();
        counter!("anabranch_connect_failures_total", "initiator" => initiator).increment(1);
    }

    fn connection_open(&self, connection: &ConnectionInfo) {
        let initiator = connection.initiator.as_str();
        counter!("anabranch_connections_total", "initiator" => initiator).increment(1);
        gauge!("anabranch_connections").increment(1);
    }

    fn connection_closed(&self, _: &ConnectionInfo, _: &ConnectionError) {
        gauge!("anabranch_connections").decrement(1);
    }

    fn connection_failed(&self, _: &ConnectionInfo, _: &ConnectionError) {
        gauge!("anabranch_connections").decrement(1);
        counter!("anabranch_connection_failures_total").increment(1);
    }

    fn ping(&self, _: &ConnectionInfo, round_trip: Duration) {
        histogram!("anabranch_ping_seconds").record(round_trip);
    }

    fn substream_opened(&self, _: &ConnectionInfo, substream: SubstreamInfo) {
        let initiator = substream.initiator.as_str();
        counter!("anabranch_substreams_total", "initiator" => initiator).increment(1);
        gauge!("anabranch_substreams").increment(1);
    }

    fn substream_refused(&self, _: &ConnectionInfo, _: u32) {
        counter!("anabranch_substreams_refused_total").increment(1);
    }

    fn substream_closed(
        &self,
        _: &ConnectionInfo,
        _: SubstreamInfo,
        outcome: CloseOutcome,
        stats: &SubstreamStats,
    ) {
        let outcome = match outcome {
            CloseOutcome::Acked => "acked",
            CloseOutcome::Delivered => "delivered",
            CloseOutcome::TimedOut => "timed_out",
            CloseOutcome::Stopped(_) => "stopped",
            CloseOutcome::Reset(_) => "reset",
            CloseOutcome::ChannelClosed => "channel_closed",
            CloseOutcome::Lost => "lost",
        };
        counter!("anabranch_substreams_closed_total", "outcome" => outcome).increment(1);
        Self::ended(stats);
    }

    fn substream_reset(
        &self,
        _: &ConnectionInfo,
        _: SubstreamInfo,
        _: Option<u32>,
        by: Initiator,
        stats: &SubstreamStats,
    ) {
        counter!("anabranch_substreams_reset_total", "by" => by.as_str()).increment(1);
        Self::ended(stats);
    }

    fn credit_stalled(&self, _: &ConnectionInfo, _: SubstreamInfo) {
        counter!("anabranch_credit_stalls_total").increment(1);
    }

    fn credit_resumed(&self, _: &ConnectionInfo, _: SubstreamInfo, waited: Duration) {
        histogram!("anabranch_credit_wait_seconds").record(waited);
    }

    fn payload_begun(&self, _: &ConnectionInfo, _: SubstreamInfo, progress: PayloadProgress) {
        let direction = progress.direction.as_str();
        counter!("anabranch_payloads_total", "direction" => direction).increment(1);
        gauge!("anabranch_payloads", "direction" => direction).increment(1);
    }

    fn payload_refused(&self, _: &ConnectionInfo, _: SubstreamInfo, _: &PayloadError) {
        counter!("anabranch_payloads_refused_total").increment(1);
    }

    fn payload_progress(&self, _: &ConnectionInfo, _: SubstreamInfo, progress: PayloadProgress) {
        let direction = progress.direction.as_str();
        counter!("anabranch_payload_bytes_total", "direction" => direction)
            .increment(progress.moved);
    }

    fn payload_ended(
        &self,
        _: &ConnectionInfo,
        _: SubstreamInfo,
        progress: PayloadProgress,
        outcome: PayloadOutcome<'_>,
    ) {
        let direction = progress.direction.as_str();
        gauge!("anabranch_payloads", "direction" => direction).decrement(1);
        counter!(
            "anabranch_payloads_ended_total",
            "direction" => direction,
            "outcome" => outcome.as_str(),
        )
        .increment(1);
    }
}
