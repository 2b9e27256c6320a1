//! SACKs: what they acknowledge, and what the congestion controller learns from them.

use std::collections::VecDeque;
use std::time::Instant;

use super::super::congestion::Ack;
use super::super::ecn::MarkedAcked;
use super::super::packet::Sack;
use super::super::{Event, Violation};
use super::rate::Snapshot;
use super::{ChunkState, ENTRY, Recovery, Sender, Sent};
use crate::tally::lower;

/// Maximum previously acknowledged chunks that one SACK may walk through again.
const MAX_WALKED: usize = 1024;

impl Sender {
    /// Handles a SACK.
    pub(crate) fn handle_sack(
        &mut self,
        now: Instant,
        sack: Sack<'_>,
        events: &mut VecDeque<Event>,
    ) -> Result<(), Violation> {
        let distance = sack
            .cumulative_tsn
            .wrapping_sub(self.first_tsn().wrapping_sub(1));
        if distance.cast_signed() < 0 {
            // A reordered SACK.
            return Ok(());
        }
        let mut acked = Acked {
            was_sack_full: self.is_sack_full(),
            ..Acked::default()
        };
        let freed = self.handle_cumulative(now, distance, &mut acked)?;
        self.handle_gaps(now, sack, distance, &mut acked)?;
        let rtt = acked.round_trip.map(|at| now.saturating_duration_since(at));
        if let Some(rtt) = rtt {
            self.update_rtt(rtt);
        }
        for tsn in sack.duplicates() {
            self.reordering
                .on_duplicate(tsn, self.highest_acked, self.next_packet);
        }
        let newest = acked.newest.map(|newest| newest.packet);
        self.highest_acked = self.highest_acked.max(newest);
        self.check_withheld_gap();
        self.update_withheld(now);
        if acked.bytes > 0 || distance > 0 {
            self.pto_count = 0;
        }
        if acked.is_timeout_spurious {
            self.revert_timeout();
        }
        if acked.bytes > 0 {
            let (srtt, next) = (self.srtt.unwrap_or_default(), self.next_packet);
            acked.ce = self.marking.on_acked(now, acked.marked, srtt, next);
        }
        self.repair_allowance = match self.is_sack_full() {
            true if acked.bytes > 0 => acked.bytes.saturating_add(self.max_packet),
            _ => 0,
        };
        self.find_losses(now);
        self.report(now, Some(&acked));
        self.settle_suspects(now);
        self.peer_window.advertise(sack.a_rwnd, self.outstanding);
        let has_share = self.peer_window.infer_reads(&mut self.streams) | acked.share;
        self.release(acked.written, freed, events);
        if has_share {
            self.report_writable(events);
        }
        let is_shut = |first: &Sent| sack.a_rwnd < first.payload.len() as u32;
        let first = self.sent.iter().find(|sent| !sent.is_skipped());
        if distance > 0 || first.is_none_or(is_shut) {
            self.progress_at = Some(now);
        }
        if self.sent.is_empty() {
            (self.pto_at, self.rto_at, self.loss_at) = (None, None, None);
        } else if distance > 0 || acked.bytes > 0 {
            self.rto_at = None;
            self.arm_pto(now);
        }
        for id in acked.acknowledged {
            self.on_stream_acknowledged(id, events);
        }
        Ok(())
    }

    /// Handles the cumulative TSN of a SHUTDOWN, which has no gap ack blocks and no window (RFC
    /// 9260 section 9.2).
    pub(crate) fn handle_shutdown(
        &mut self,
        now: Instant,
        cumulative_tsn: u32,
        events: &mut VecDeque<Event>,
    ) -> Result<(), Violation> {
        let distance = cumulative_tsn.wrapping_sub(self.acked_tsn());
        // pion and its derivatives put the TSN of their own DATA into the field.
        if distance.cast_signed() <= 0 || distance as usize > self.sent.len() {
            return Ok(());
        }
        let mut acked = Acked::default();
        let freed = self.handle_cumulative(now, distance, &mut acked)?;
        for (first, last) in &mut self.known_gaps {
            *first = first.saturating_sub(distance);
            *last = last.saturating_sub(distance);
        }
        self.known_gaps.retain(|(_, last)| *last > 0);
        self.update_withheld(now);
        self.progress_at = Some(now);
        if self.sent.is_empty() {
            (self.pto_at, self.rto_at, self.loss_at) = (None, None, None);
        }
        self.release(acked.written, freed, events);
        for id in acked.acknowledged {
            self.on_stream_acknowledged(id, events);
        }
        Ok(())
    }

    /// Acknowledges and frees the first `distance` chunks. Returns the memory freed.
    fn handle_cumulative(
        &mut self,
        now: Instant,
        distance: u32,
        acked: &mut Acked,
    ) -> Result<usize, Violation> {
        if distance as usize > self.sent.len() {
            return Err(Violation::AcknowledgedUnsent);
        }
        for index in 0..distance as usize {
            self.acknowledge(index, now, acked)?;
        }
        let freed = self.sent.drain(..distance as usize);
        let freed = freed.map(|sent| sent.payload.len() + ENTRY).sum();
        self.loss_cursor = self.loss_cursor.saturating_sub(distance as usize);
        Ok(freed)
    }

    /// Acknowledges the chunks in gap ack blocks that the previous SACK did not report.
    ///
    /// A SACK may revoke blocks that the next one reports again. The chunks walked through for that
    /// are limited per SACK: blocks beyond the limit count as not reported, and the next SACK
    /// continues there.
    fn handle_gaps(
        &mut self,
        now: Instant,
        sack: Sack<'_>,
        distance: u32,
        acked: &mut Acked,
    ) -> Result<(), Violation> {
        let mut known = std::mem::take(&mut self.known_gaps);
        for (first, last) in &mut known {
            *first = first.saturating_sub(distance);
            *last = last.saturating_sub(distance);
        }
        let mut gaps = Vec::new();
        let mut earlier = known.iter().copied().peekable();
        let mut least = 1;
        let mut walked = 0;
        'gaps: for (first, last) in sack.gaps() {
            let (first, last) = (u32::from(first), u32::from(last));
            // Blocks are ordered and disjoint; the first that is not ends the list.
            if first <= least || last < first || last as usize > self.sent.len() {
                break;
            }
            least = last + 1;
            gaps.push((first, last));
            let mut next = first;
            while next <= last {
                while earlier
                    .peek()
                    .is_some_and(|(_, known_last)| *known_last < next)
                {
                    earlier.next();
                }
                match earlier.peek() {
                    Some((known_first, known_last)) if *known_first <= next => {
                        next = known_last + 1;
                        continue;
                    }
                    _ => {}
                }
                if walked == MAX_WALKED {
                    // Keep the part that was processed.
                    gaps.pop();
                    if next > first {
                        gaps.push((first, next - 1));
                    }
                    break 'gaps;
                }
                let index = next as usize - 1;
                next += 1;
                if !self.acknowledge(index, now, acked)? {
                    walked += 1;
                }
            }
        }
        self.known_gaps = gaps;
        Ok(())
    }

    /// Acknowledges a chunk; returns whether that is new. The chunk is kept until the cumulative
    /// TSN reaches it: a peer may discard chunks after a gap (RFC 9260 section 6.2).
    fn acknowledge(
        &mut self,
        index: usize,
        now: Instant,
        acked: &mut Acked,
    ) -> Result<bool, Violation> {
        let (was_sack_full, has_timed_out) = (acked.was_sack_full, self.has_timed_out());
        let Some(sent) = self.sent.get_mut(index) else {
            return Ok(false);
        };
        match sent.state {
            ChunkState::Acknowledged => return Ok(false),
            ChunkState::Withheld if self.withholding.is_unsent() => {
                return Err(Violation::AcknowledgedWithheld);
            }
            ChunkState::Withheld => return Ok(true),
            ChunkState::InFlight | ChunkState::ToRetransmit => {}
        }
        let (length, size) = (sent.payload.len(), sent.size());
        lower(&mut self.outstanding, size);
        let was_in_flight = sent.state == ChunkState::InFlight;
        if was_in_flight {
            lower(&mut self.in_flight, size);
        }
        sent.state = ChunkState::Acknowledged;
        let number = sent.packet;
        acked.bytes += size;
        self.marking.on_chunk_acked(sent.packet, &mut acked.marked);
        self.rate.on_delivered(size);
        // An earlier transmission arrived: the last one is not sent yet, or can not be
        // acknowledged so soon (as in the Eifel algorithm, RFC 3522).
        let is_late = !was_in_flight
            || (sent.retransmitted
                && self.srtt.is_some()
                && now.saturating_duration_since(sent.at) < self.min_rtt);
        if std::mem::take(&mut sent.is_suspect) {
            // It may have found room in a SACK only now.
            let is_spurious = is_late && !was_sack_full;
            self.suspects.on_acked(is_spurious);
            if is_spurious {
                self.reordering
                    .on_late(self.highest_acked, self.next_packet);
            }
            acked.is_timeout_spurious |= is_spurious && !was_in_flight && has_timed_out;
        }
        // Of the last transmission nothing is known then, nor before there is an RTT.
        let is_of_path = sent.packet >= self.path_since;
        if is_of_path && (!sent.retransmitted || (!is_late && self.srtt.is_some())) {
            let newest = Newest {
                packet: sent.packet,
                at: sent.at,
                snapshot: sent.snapshot,
            };
            if acked
                .newest
                .is_none_or(|other| newest.packet >= other.packet)
            {
                acked.newest = Some(newest);
            }
            if !sent.retransmitted {
                acked.round_trip = acked.round_trip.max(Some(sent.at));
            }
        }
        if std::mem::replace(&mut sent.credited, true) {
            return Ok(true);
        }
        acked.written += length;
        if self.is_long(size) {
            self.black_hole.on_arrived(number);
        }
        let Some(sent) = self.sent.get(index) else {
            return Ok(true);
        };
        let id = sent.header.stream;
        if let Some(stream) = self.streams.get_mut(&id) {
            lower(&mut stream.unacknowledged, length);
            acked.share |= self.peer_window.acknowledged(id, &mut stream.share, length);
            if stream.unacknowledged == 0 {
                acked.acknowledged.push(id);
            }
        }
        Ok(true)
    }

    /// Reports acknowledgements and detected losses to the congestion controller.
    pub(super) fn report(&mut self, now: Instant, acked: Option<&Acked>) {
        let losses = std::mem::take(&mut self.losses);
        let (bytes, ce) = acked.map_or((0, 0), |acked| (acked.bytes, acked.ce));
        if bytes == 0 && losses.is_empty() {
            self.losses = losses;
            return;
        }
        if let Some(recovery) = &mut self.recovery {
            recovery.on_delivered(bytes);
            let end = recovery.end;
            if self.highest_acked.is_some_and(|highest| highest >= end) {
                self.recovery = None;
            }
        }
        let newest = acked.and_then(|acked| acked.newest);
        let sample = newest.map(|newest| self.rate.sample(now, newest.at, newest.snapshot));
        let is_round_start = sample.is_some_and(|sample| sample.is_round_start);
        let rate = sample.and_then(|sample| sample.rate);
        self.nearby.on_sample(rate, is_round_start);
        let before = self.controller.cwnd();
        self.controller.on_ack(&Ack {
            now,
            acked: bytes,
            lost: &losses,
            rtt: newest.map(|newest| now.saturating_duration_since(newest.at)),
            srtt: self.srtt.unwrap_or_default(),
            delivery_rate: rate,
            is_app_limited: sample.is_some_and(|sample| sample.is_app_limited),
            delivered: self.rate.delivered(),
            prior_delivered: sample.map_or(0, |sample| sample.prior_delivered),
            in_flight: self.in_flight,
            is_round_start,
            is_cwnd_limited: self.rate.was_limited(bytes),
            max_packet: self.max_packet,
            ce,
        });
        if (!losses.is_empty() || ce > 0) && self.controller.cwnd() < before {
            let lost: usize = losses.iter().map(|lost| lost.bytes).sum();
            let in_flight = self.in_flight.saturating_add(lost).saturating_add(bytes);
            let mut recovery = Recovery::new(self.next_packet, in_flight);
            recovery.on_delivered(bytes);
            self.recovery = Some(recovery);
            self.is_reduction_suspect |= !losses.is_empty();
        }
        if is_round_start {
            self.withholding.on_round(self.controller.cwnd());
        }
        self.losses = losses;
        self.losses.clear();
    }

    fn update_withheld(&mut self, now: Instant) {
        let (reached, is_drained) = (self.acked_tsn(), self.is_drained());
        let patience = self.loss_patience();
        self.withholding
            .on_reached(reached, is_drained, now, patience);
    }

    /// Checks whether the peer reports exactly the withheld gap. Any higher gap is not enough: a
    /// guessing peer could report one, and acknowledge the rest with its next SACK.
    fn check_withheld_gap(&mut self) {
        let Some(tsn) = self.withholding.awaited() else {
            return;
        };
        let distance = tsn.wrapping_sub(self.acked_tsn());
        let found = (self.known_gaps).binary_search_by_key(&distance, |(first, _)| *first);
        if found.is_ok()
            && let Some(chunk) = self.withholding.on_reported()
        {
            self.to_retransmit.push_front(chunk);
        }
    }
}

/// What a SACK newly acknowledges.
#[derive(Debug, Default)]
pub(super) struct Acked {
    /// Bytes of chunks.
    bytes: usize,
    /// Payload bytes, each counted once however often it is revoked and reported again.
    written: usize,
    /// A writer that waits for its share of the peer's window may have room.
    share: bool,
    newest: Option<Newest>,
    marked: MarkedAcked,
    /// Packets newly reported with CE.
    ce: usize,
    /// The previous SACK may have had no room for all gaps.
    was_sack_full: bool,
    /// What the timeout took for lost has arrived.
    is_timeout_spurious: bool,
    /// Latest transmission time among chunks that were sent once.
    round_trip: Option<Instant>,
    /// Streams with nothing unacknowledged left.
    acknowledged: Vec<u16>,
}

/// The newest packet that a SACK acknowledges.
#[derive(Debug, Clone, Copy)]
struct Newest {
    packet: u64,
    at: Instant,
    snapshot: Snapshot,
}
