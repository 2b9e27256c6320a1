//! RTT, and the timers of loss detection and of the probe timeout (PTO, RFC 9002 section 6.2).

use std::time::{Duration, Instant};

use super::super::packet::flag;
use super::{RTO_INITIAL, RTO_MAX, Sender, Sent};

/// RFC 9260 says 1 s. It has to exceed the 200 ms by which peers delay a SACK.
const RTO_MIN: Duration = Duration::from_millis(300);

/// Longest delay of the SACK for a lone packet (RFC 9260 section 6.2).
const PEER_SACK_DELAY: Duration = Duration::from_millis(200);

/// Minimum wait for the answer to a probe of the path MTU.
const PROBE_MIN: Duration = Duration::from_millis(20);

/// Timer granularity (RFC 9002 section 6.1.2).
pub(super) const GRANULARITY: Duration = Duration::from_millis(1);

/// Doublings of the interval between probes at first. An outage ends without notice, and 64-fold
/// intervals would find out seconds later.
const HASTY_DOUBLINGS: u32 = 2;

/// Probe timeouts after which the interval doubles up to `RTO_MAX`.
const HASTY_PROBES: u32 = 8;

impl Sender {
    pub(super) fn update_rtt(&mut self, sample: Duration) {
        self.latest_rtt = sample;
        self.min_rtt = self.min_rtt.min(sample);
        match self.srtt {
            None => {
                self.srtt = Some(sample);
                self.rttvar = sample / 2;
            }
            Some(srtt) => {
                let difference = srtt.abs_diff(sample);
                self.rttvar = (self.rttvar * 3 + difference) / 4;
                self.srtt = Some((srtt * 7 + sample) / 8);
            }
        }
    }

    /// Retransmission timeout (RFC 9260 section 6.3.1) with backoff.
    pub(crate) fn rto(&self) -> Duration {
        let rto = match self.srtt {
            None => RTO_INITIAL,
            Some(srtt) => srtt + self.rttvar * 4,
        };
        let doublings = match self.pto_count.saturating_sub(1) {
            count if count > HASTY_PROBES || self.peer_window.room() == 0 => count.min(8),
            count => count.min(HASTY_DOUBLINGS),
        };
        let rto = rto.clamp(RTO_MIN, RTO_MAX);
        rto.saturating_mul(1 << doublings).min(RTO_MAX)
    }

    /// How long to wait for the answer to a probe of the path MTU: the peer delays it as little as
    /// it can, but it may wait in a queue.
    pub(crate) fn probe_timeout(&self) -> Duration {
        let srtt = self.srtt.unwrap_or(RTO_INITIAL);
        (srtt * 2)
            .max(srtt + self.rttvar * 4)
            .clamp(PROBE_MIN, RTO_MAX)
    }

    /// How long to wait for an acknowledgement before a probe.
    fn pto(&self) -> Duration {
        let Some(srtt) = self.srtt.filter(|_| self.pto_count == 0) else {
            return self.rto();
        };
        let mut pto = (srtt * 2).max(srtt + self.rttvar * 4) + GRANULARITY;
        let is_hasty = |sent: &Sent| sent.header.flags & flag::IMMEDIATE != 0;
        if self.sent.len() == 1 && !self.sent.back().is_some_and(is_hasty) {
            pto += PEER_SACK_DELAY;
        }
        pto.min(RTO_MAX)
    }

    pub(super) fn arm_pto(&mut self, now: Instant) {
        if self.sent.is_empty() {
            (self.pto_at, self.rto_at) = (None, None);
            return;
        }
        let rto = self.rto();
        let rto_at = *self.rto_at.get_or_insert(now + rto);
        let pto_at = now + self.pto();
        self.pto_at = Some(if self.pto_count == 0 {
            pto_at.min(rto_at)
        } else {
            pto_at
        });
    }

    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        [
            self.pto_at,
            self.loss_at,
            self.pacing_at,
            self.window_probe_at,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Whether the peer has acknowledged nothing for `limit` while its window was open.
    pub(crate) fn has_stalled(&self, now: Instant, limit: Duration) -> bool {
        !self.sent.is_empty()
            && self
                .progress_at
                .is_some_and(|at| now.saturating_duration_since(at) >= limit)
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.loss_at.is_some_and(|at| at <= now) {
            self.find_losses(now);
            self.report(now, None);
        }
        if self.pto_at.is_some_and(|at| at <= now) {
            self.on_pto(now);
        }
    }

    /// No acknowledgement came in time. The first timeout sends a probe, which reveals what is lost
    /// before it. From the second on everything counts as lost.
    fn on_pto(&mut self, now: Instant) {
        self.pto_count = self.pto_count.saturating_add(1);
        self.is_probe_due = true;
        if self.pto_count == 1 {
            self.withholding.on_probe(self.acked_tsn());
            self.controller.on_timeout(now, 1);
        } else {
            self.suspect_all();
            let is_drained = self.is_drained();
            self.withholding.on_timeout(self.acked_tsn(), is_drained);
            // A zero-window probe without an answer is not a loss.
            let is_one = self.to_retransmit.len() <= 1 && self.known_gaps.is_empty();
            let is_shut = self.peer_window.room() == 0 && is_one;
            if !is_shut && !self.to_retransmit.is_empty() {
                self.controller.on_timeout(now, self.pto_count);
                self.is_reduction_suspect = true;
                self.marking.on_timeout();
            }
        }
        self.arm_pto(now);
    }
}
