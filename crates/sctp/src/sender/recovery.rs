//! Acknowledgements, RTT, loss detection and its timers.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::super::packet::{Sack, flag};
use super::super::{Event, Violation};
use super::{ChunkState, ENTRY, RTO_INITIAL, RTO_MAX, Sender, Sent, chunk_size};
use crate::tally::lower;

/// RFC 9260 says 1 s. It has to exceed the 200 ms by which peers delay a SACK.
const RTO_MIN: Duration = Duration::from_millis(300);

/// Longest delay of the SACK for a lone packet (RFC 9260 section 6.2).
const PEER_SACK_DELAY: Duration = Duration::from_millis(200);

/// Timer granularity (RFC 9002 section 6.1.2).
const GRANULARITY: Duration = Duration::from_millis(1);

const MAX_REORDERING: u64 = 96;

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
        let mut acked = Acked::default();
        let freed = self.handle_cumulative(now, distance, &mut acked)?;
        self.handle_gaps(now, sack, distance, &mut acked)?;
        if let Some(at) = acked.round_trip {
            self.update_rtt(now.saturating_duration_since(at));
        }
        self.highest_acked = self.highest_acked.max(acked.packet);
        self.check_withheld_gap();
        self.update_withheld(now);
        if acked.bytes > 0 {
            self.congestion
                .on_acknowledged(acked.bytes, self.cwnd_limited);
        }
        if acked.bytes > 0 || distance > 0 {
            self.backoff = 0;
            self.tail_probed = false;
        }
        self.find_losses(now);
        if self
            .highest_acked
            .is_some_and(|highest_acked| highest_acked >= self.round_end)
        {
            self.round_end = self.next_packet;
            self.congestion.on_round();
            self.withholding.on_round(self.congestion.cwnd());
        }
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
            self.timeout_at = None;
            self.probe_at = None;
            self.loss_at = None;
        } else if distance > 0 || acked.bytes > 0 {
            self.timeout_at = Some(now + self.rto());
            self.arm_probe(now);
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
            (self.timeout_at, self.probe_at, self.loss_at) = (None, None, None);
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
        if sent.state == ChunkState::InFlight {
            lower(&mut self.in_flight, size);
        }
        sent.state = ChunkState::Acknowledged;
        acked.bytes += size;
        // The first transmission may be the one that arrived.
        let is_late = sent.retransmitted
            && self.srtt.is_some()
            && now.saturating_duration_since(sent.at) < self.min_rtt;
        if is_late {
            self.reordering = (self.reordering * 2).min(MAX_REORDERING);
        } else {
            acked.packet = acked.packet.max(Some(sent.packet));
            if !sent.retransmitted {
                acked.round_trip = acked.round_trip.max(Some(sent.at));
            }
        }
        if std::mem::replace(&mut sent.credited, true) {
            return Ok(true);
        }
        acked.written += length;
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

    /// A chunk is lost once a packet sent this long after it is acknowledged.
    fn loss_patience(&self) -> Duration {
        let patience = self.latest_rtt.max(self.srtt.unwrap_or_default());
        (patience + patience / 8).max(GRANULARITY)
    }

    /// Detects losses, first among first transmissions, then among retransmissions.
    fn find_losses(&mut self, now: Instant) {
        self.loss_at = None;
        let Some(highest_acked) = self.highest_acked else {
            return;
        };
        let patience = self.loss_patience();
        while let Some(sent) = self.sent.get(self.loss_cursor) {
            if sent.state == ChunkState::InFlight && !sent.retransmitted {
                if sent.packet > highest_acked {
                    break;
                }
                if sent.packet + self.reordering > highest_acked && sent.at + patience > now {
                    self.loss_at = Some(sent.at + patience);
                    break;
                }
                let tsn = self.tsn_at(self.loss_cursor);
                self.mark_lost(tsn);
            }
            self.loss_cursor += 1;
        }
        while let Some(&(tsn, packet)) = self.retransmissions.front() {
            let reordering = self.reordering;
            let sent = self.entry(tsn);
            if let Some(sent) = sent
                && sent.state == ChunkState::InFlight
                && sent.packet == packet
            {
                if packet > highest_acked {
                    break;
                }
                let at = sent.at + patience;
                if packet + reordering > highest_acked && at > now {
                    self.loss_at = Some(self.loss_at.map_or(at, |other| other.min(at)));
                    break;
                }
                self.mark_lost(tsn);
            }
            self.retransmissions.pop_front();
        }
    }

    fn mark_lost(&mut self, tsn: u32) {
        let Some(sent) = self.entry(tsn) else {
            return;
        };
        sent.state = ChunkState::ToRetransmit;
        let size = sent.size();
        lower(&mut self.in_flight, size);
        self.to_retransmit.push_back(tsn);
        if self.congestion.on_lost(size) {
            self.round_end = self.next_packet;
        }
    }

    fn update_rtt(&mut self, sample: Duration) {
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
        let rto = rto.clamp(RTO_MIN, RTO_MAX);
        rto.saturating_mul(1 << self.backoff.min(8)).min(RTO_MAX)
    }

    pub(super) fn arm_probe(&mut self, now: Instant) {
        self.probe_at = None;
        let Some(srtt) = self.srtt.filter(|_| !self.tail_probed) else {
            return;
        };
        let mut patience = srtt * 2 + GRANULARITY;
        let is_hasty = |sent: &Sent| sent.header.flags & flag::IMMEDIATE != 0;
        if self.sent.len() == 1 && !self.sent.back().is_some_and(is_hasty) {
            patience += PEER_SACK_DELAY;
        }
        let at = now + patience;
        if self.timeout_at.is_none_or(|timeout| at < timeout) {
            self.probe_at = Some(at);
        }
    }

    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        [
            self.timeout_at,
            self.loss_at,
            self.probe_at,
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
        }
        if self.probe_at.is_some_and(|at| at <= now) {
            self.probe_at = None;
            self.tail_probed = true;
            self.probe_due = true;
            self.withholding.on_probe(self.acked_tsn());
        }
        if self.timeout_at.is_some_and(|at| at <= now) {
            self.on_timeout(now);
        }
    }

    /// Marks everything unacknowledged for retransmission, which begins with one packet.
    fn on_timeout(&mut self, now: Instant) {
        let first = self.first_tsn();
        self.to_retransmit.clear();
        self.retransmissions.clear();
        let mut gaps = self.known_gaps.iter().peekable();
        for (tsn, (distance, sent)) in (first..=u32::MAX)
            .chain(0..)
            .zip((1_u32..).zip(&mut self.sent))
        {
            while gaps.next_if(|(_, last)| *last < distance).is_some() {}
            if gaps.peek().is_some_and(|(first, _)| *first <= distance) {
                continue;
            }
            if sent.is_skipped() {
                continue;
            }
            if sent.state == ChunkState::Withheld {
                // It stays withheld until it is sent.
                self.to_retransmit.push_back(tsn);
                continue;
            }
            if sent.state == ChunkState::Acknowledged {
                // The peer discarded it, or reported more gaps than are tracked.
                self.outstanding += chunk_size(sent.payload.len());
            }
            sent.state = ChunkState::ToRetransmit;
            self.to_retransmit.push_back(tsn);
        }
        let is_drained = self.is_drained();
        self.withholding
            .on_timeout(first.wrapping_sub(1), is_drained);
        self.loss_cursor = self.sent.len();
        self.in_flight = 0;
        self.probe_at = None;
        self.loss_at = None;
        self.probe_due = false;
        // A zero-window probe without an answer is not a loss.
        let is_one = self.to_retransmit.len() <= 1 && self.known_gaps.is_empty();
        let is_shut = self.peer_window.room() == 0 && is_one;
        if !is_shut && !self.to_retransmit.is_empty() {
            self.congestion.on_timeout();
        }
        self.round_end = self.next_packet;
        self.backoff += 1;
        self.timeout_at = (!self.sent.is_empty()).then(|| now + self.rto());
    }
}

/// What a SACK newly acknowledges.
#[derive(Debug, Default)]
struct Acked {
    /// Bytes of chunks.
    bytes: usize,
    /// Payload bytes, each counted once however often it is revoked and reported again.
    written: usize,
    /// A writer that waits for its share of the peer's window may have room.
    share: bool,
    /// Highest packet number.
    packet: Option<u64>,
    /// Latest transmission time among chunks that were sent once.
    round_trip: Option<Instant>,
    /// Streams with nothing unacknowledged left.
    acknowledged: Vec<u16>,
}
