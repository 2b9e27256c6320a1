//! Loss detection (RACK, RFC 8985), and losses that turn out to be none.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::super::congestion::Lost;
use super::timers::GRANULARITY;
use super::{ChunkState, Sender};
use crate::tally::lower;

/// Packets that overtake a lost one, while no reordering has been seen (RFC 9002 section 6.1.1).
const THRESHOLD: u64 = 3;

/// Losses that are none after which the reordering window shrinks again (RFC 8985 section 6.2,
/// step 4).
const PERSISTENCE: u32 = 16;

/// Maximum of the reordering window, as a multiple of a quarter of the minimum RTT. SRTT is the
/// other bound.
const MAX_QUARTERS: u32 = 64;

/// Maximum retransmitted TSNs that are remembered for duplicates: the losses of a round trip, of a
/// path that is not too bad for anything.
const MAX_RETRANSMITTED: usize = 64;

/// How far the path reorders packets.
#[derive(Debug, Default)]
pub(super) struct Reordering {
    /// The reordering window in quarters of the minimum RTT; 0 before any reordering was seen.
    quarters: u32,
    /// The window grows again once this packet is acknowledged: once a round trip.
    grown_at: u64,
    /// Recoveries left until the window shrinks.
    persistence: u32,
    /// TSNs that were retransmitted last because they counted as lost.
    retransmitted: VecDeque<u32>,
}

impl Reordering {
    /// A packet that counted as lost was late.
    pub(super) fn on_late(&mut self, highest_acked: Option<u64>, next_packet: u64) {
        self.persistence = PERSISTENCE;
        let is_round_over = highest_acked.is_some_and(|highest| highest >= self.grown_at);
        if self.quarters == 0 || is_round_over {
            self.quarters = (self.quarters + 1).min(MAX_QUARTERS);
            self.grown_at = next_packet;
        }
    }

    /// A chunk that counted as lost is retransmitted.
    pub(super) fn on_retransmitted(&mut self, tsn: u32) {
        if self.retransmitted.len() == MAX_RETRANSMITTED {
            self.retransmitted.pop_front();
        }
        self.retransmitted.push_back(tsn);
    }

    /// The peer has received a chunk twice (as DSACK, RFC 8985 section 6.2). That undoes no
    /// reduction of the window: a peer could report every loss as a duplicate.
    pub(super) fn on_duplicate(&mut self, tsn: u32, highest_acked: Option<u64>, next_packet: u64) {
        if let Some(at) = self.retransmitted.iter().position(|other| *other == tsn) {
            self.retransmitted.remove(at);
            self.on_late(highest_acked, next_packet);
        }
    }

    /// The losses of a recovery were real.
    fn on_real_losses(&mut self) {
        self.persistence = self.persistence.saturating_sub(1);
        if self.persistence == 0 {
            self.quarters = self.quarters.min(1);
        }
    }

    fn was_seen(&self) -> bool {
        self.quarters > 0
    }

    fn window(&self, min_rtt: Duration, srtt: Duration) -> Duration {
        (min_rtt.min(srtt) / 4)
            .saturating_mul(self.quarters.max(1))
            .min(srtt)
    }
}

/// Chunks that count as lost and are not acknowledged since.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    open: usize,
    /// One of them was lost.
    is_any_lost: bool,
    /// One of them has arrived.
    is_any_late: bool,
}

impl Suspects {
    fn on_lost(&mut self, was_suspect: bool) {
        self.open += usize::from(!was_suspect);
        // Its retransmission is lost as well.
        self.is_any_lost |= was_suspect;
    }

    pub(super) fn on_acked(&mut self, is_late: bool) {
        self.open = self.open.saturating_sub(1);
        self.is_any_lost |= !is_late;
        self.is_any_late |= is_late;
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Sender {
    /// A chunk is lost once a packet sent this long after it is acknowledged.
    pub(super) fn loss_patience(&self) -> Duration {
        let srtt = self.srtt.unwrap_or_default();
        let window = self.reordering.window(self.min_rtt, srtt);
        (self.latest_rtt.max(srtt) + window).max(GRANULARITY)
    }

    /// Detects losses, first among first transmissions, then among retransmissions.
    pub(super) fn find_losses(&mut self, now: Instant) {
        self.loss_at = None;
        let Some(highest_acked) = self.highest_acked else {
            return;
        };
        let patience = self.loss_patience();
        let by_count = !self.reordering.was_seen();
        let is_due = |packet: u64, at: Instant| {
            (by_count && packet + THRESHOLD <= highest_acked) || at + patience <= now
        };
        while let Some(sent) = self.sent.get(self.loss_cursor) {
            if sent.state == ChunkState::InFlight && !sent.retransmitted {
                if sent.packet > highest_acked {
                    break;
                }
                if !is_due(sent.packet, sent.at) {
                    self.loss_at = Some(sent.at + patience);
                    break;
                }
                let tsn = self.tsn_at(self.loss_cursor);
                self.mark_lost(tsn);
            }
            self.loss_cursor += 1;
        }
        while let Some(&(tsn, packet)) = self.retransmissions.front() {
            let sent = self.entry(tsn);
            if let Some(sent) = sent
                && sent.state == ChunkState::InFlight
                && sent.packet == packet
            {
                if packet > highest_acked {
                    break;
                }
                let at = sent.at;
                if !is_due(packet, at) {
                    let at = at + patience;
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
        let was_suspect = std::mem::replace(&mut sent.is_suspect, true);
        let bytes = sent.size();
        let (number, sent_at) = (sent.packet, sent.at);
        lower(&mut self.in_flight, bytes);
        self.bytes_lost += bytes as u64;
        if self.is_long(bytes) {
            self.black_hole.on_lost(number, self.next_packet);
        }
        self.to_retransmit.push_back(tsn);
        self.suspects.on_lost(was_suspect);
        match self.losses.last_mut() {
            Some(lost) if lost.number == number => lost.bytes += bytes,
            _ => self.losses.push(Lost {
                number,
                bytes,
                sent_at,
            }),
        }
    }

    /// Undoes the reduction of the window once everything that counted as lost has arrived.
    pub(super) fn settle_suspects(&mut self, now: Instant) {
        if self.suspects.open > 0 {
            return;
        }
        if self.suspects.is_any_lost {
            self.reordering.on_real_losses();
        } else if self.suspects.is_any_late && self.is_reduction_suspect {
            self.controller.on_spurious_loss(now);
            self.recovery = None;
        }
        self.suspects.clear();
        self.is_reduction_suspect = false;
    }

    /// The retransmission timeout has expired: everything in flight counts as lost.
    pub(super) fn suspect_all(&mut self) {
        if self.sent.iter().any(|sent| self.is_long(sent.size())) {
            self.black_hole.on_timeout();
        }
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
                self.outstanding += sent.size();
            } else {
                if sent.state == ChunkState::InFlight {
                    self.bytes_lost += sent.size() as u64;
                }
                let was_suspect = std::mem::replace(&mut sent.is_suspect, true);
                self.suspects.on_lost(was_suspect);
            }
            sent.state = ChunkState::ToRetransmit;
            self.to_retransmit.push_back(tsn);
        }
        self.loss_cursor = self.sent.len();
        self.in_flight = 0;
        self.loss_at = None;
        self.recovery = None;
    }

    /// A chunk arrived that the timeout took for lost and that was not retransmitted since: the
    /// timeout was spurious (F-RTO, RFC 5682). What was sent once is in flight again.
    pub(super) fn revert_timeout(&mut self) {
        for sent in &mut self.sent {
            if sent.state == ChunkState::ToRetransmit && !sent.retransmitted && sent.is_suspect {
                sent.state = ChunkState::InFlight;
                sent.is_suspect = false;
                self.in_flight += sent.size();
            }
        }
        // `to_retransmit` skips them.
        self.loss_cursor = 0;
        self.suspects.clear();
        self.suspects.is_any_late = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reordering_window_grows_once_a_round_trip_up_to_srtt_and_shrinks_again() {
        let rtt = Duration::from_millis(40);
        let mut reordering = Reordering::default();
        assert!(!reordering.was_seen());
        let millis = Duration::from_millis;
        // The packet sent next, when this one is acknowledged.
        for (highest, next, window) in [
            (3, 20, 10),
            (4, 21, 10),
            (19, 36, 10),
            (20, 40, 20),
            (39, 50, 20),
            (40, 60, 30),
        ] {
            reordering.on_late(Some(highest), next);
            assert_eq!(reordering.window(rtt, rtt), millis(window), "{highest}");
        }
        assert!(reordering.was_seen());
        for packet in (100..).step_by(100).take(100) {
            reordering.on_late(Some(packet), packet + 50);
        }
        assert_eq!(reordering.window(rtt, rtt), rtt);
        for _ in 0..PERSISTENCE {
            reordering.on_real_losses();
        }
        assert_eq!(reordering.window(rtt, rtt), rtt / 4);
    }
}
