//! Transmission: the probe, lost chunks, then new chunks, as far as the windows allow.

use std::time::Instant;

use bytes::Bytes;

use super::super::bundle::Packets;
use super::super::packet::{DataHeader, SEGMENT_HEADER, Segment, flag, kind};
use super::withhold::Withheld;
use super::{
    ChunkState, DATA_HEADER, ENTRY, MIN_FRAGMENT, RTO_MAX, ResetState, Sender, Sent, Snapshot,
    chunk_size,
};
use crate::tally::lower;

impl Sender {
    /// Fills packets as far as the windows allow: lost chunks first, then new ones.
    pub(crate) fn fill(&mut self, now: Instant, packets: &mut Packets) {
        let before = self.next_packet;
        let whole_before = packets.len();
        self.is_limited = false;
        self.pacing_at = None;
        if let Some(tsn) = self.withholding.take_forward(now) {
            // No stream is listed: no message is skipped.
            packets.put(kind::FORWARD_TSN, 0, &tsn.to_be_bytes());
            self.next_packet = self.next_packet.max(before + 1);
        }
        if std::mem::take(&mut self.is_probe_due) {
            self.probe(now, packets, before, whole_before);
        }
        while let Some(&tsn) = self.to_retransmit.front() {
            let is_due = |sent: &&mut Sent| match sent.state {
                ChunkState::ToRetransmit => true,
                ChunkState::Withheld => !sent.is_skipped(),
                ChunkState::InFlight | ChunkState::Acknowledged => false,
            };
            let Some(sent) = self.entry(tsn).filter(is_due) else {
                self.to_retransmit.pop_front();
                continue;
            };
            let (length, size) = (sent.payload.len(), sent.size());
            if !self.may_send(size) && size > self.repair_allowance {
                self.is_limited = true;
                break;
            }
            if !self.is_granted(now, length, packets, before, whole_before) {
                break;
            }
            self.repair_allowance = self.repair_allowance.saturating_sub(size);
            self.to_retransmit.pop_front();
            self.retransmit(tsn, now, packets, before, whole_before);
        }
        if !self.is_limited && self.pacing_at.is_none() {
            self.fill_new(now, packets, before, whole_before);
        }
        self.send_last_withheld(now, packets, before, whole_before);
        // Pacing is a limit only to who would use up the window without it (RFC 9002 section 7.8).
        let headers = (self.sent.len() + self.queue.len()) * DATA_HEADER;
        let is_window_used = self.unacknowledged + headers >= self.send_window();
        let is_limited = self.is_limited || (self.pacing_at.is_some() && is_window_used);
        // A lower limit than cwnd is none of the controller's: its window must not grow by it.
        let is_cwnd_lowest = self.controller.cwnd() <= self.send_window();
        self.rate
            .on_stopped(is_limited && is_cwnd_lowest, self.in_flight);
        let has_sent = self.next_packet > before;
        if (has_sent && self.pto_count == 0) || self.pto_at.is_none() {
            self.arm_pto(now);
        }
        self.probe_window(now, packets);
    }

    /// Elicits a SACK with DATA that the peer already has, while a writer waits and no other SACK
    /// is due.
    fn probe_window(&mut self, now: Instant, packets: &mut Packets) {
        if !self.peer_window.has_waiting() {
            (self.window_probe_at, self.window_probes) = (None, 0);
            return;
        }
        if !self.sent.is_empty() {
            self.window_probe_at = None;
            return;
        }
        if self.window_probe_at.is_some_and(|at| at <= now) {
            self.window_probe_at = None;
            self.window_probes += 1;
            let header = DataHeader {
                flags: flag::BEGIN | flag::END | flag::IMMEDIATE,
                tsn: self.acked_tsn(),
                stream: 0,
                ssn: 0,
                ppid: 0,
            };
            packets.put_data(header, &[0]);
            self.next_packet += 1;
        }
        let patience = self.rto().saturating_mul(1 << self.window_probes.min(8));
        if self.window_probe_at.is_none() {
            self.window_probe_at = Some(now + patience.min(RTO_MAX));
        }
    }

    /// Whether the congestion window has room. With nothing in flight, one packet is always
    /// allowed.
    pub(super) fn may_send(&self, size: usize) -> bool {
        if self.in_flight == 0 {
            return true;
        }
        let cwnd = self.send_window().max(2 * self.max_packet);
        let room = match self.recovery {
            // Only probes until something is acknowledged.
            _ if self.has_timed_out() => (2 * self.max_packet).saturating_sub(self.in_flight),
            Some(recovery) => recovery.allowance(cwnd, self.in_flight, self.max_packet),
            None => cwnd.saturating_sub(self.in_flight),
        };
        // The controller counts in packets of the first size. A longer one may exceed the window by
        // the difference, which RFC 9260 section 6.1 allows (rule B: less than a packet): a window
        // of five packets would lose a tenth of its rate to what is left over.
        size.min(self.base_packet) <= room
    }

    /// Whether pacing allows a chunk of `length` payload bytes now. A packet that was begun is
    /// filled.
    fn is_granted(
        &mut self,
        now: Instant,
        length: usize,
        packets: &Packets,
        before: u64,
        whole_before: usize,
    ) -> bool {
        let number = packet_number(length, packets, before, whole_before);
        if self.granted == Some(number) || self.has_timed_out() {
            return true;
        }
        self.pacing_at = self.pacer.blocked_until(now);
        if self.pacing_at.is_some() {
            return false;
        }
        self.granted = Some(number);
        true
    }

    /// Counts a chunk that goes into the packet `number` now.
    fn on_chunk_sent(&mut self, now: Instant, number: u64, size: usize) -> Snapshot {
        self.next_packet = self.next_packet.max(number + 1);
        self.marking.on_data_sent();
        self.pacer.on_sent(now, size, self.controller.pacing_rate());
        if let Some(recovery) = &mut self.recovery {
            recovery.on_sent(size);
        }
        self.rate.on_sent(now, self.in_flight == 0)
    }

    fn retransmit(
        &mut self,
        tsn: u32,
        now: Instant,
        packets: &mut Packets,
        before: u64,
        whole_before: usize,
    ) {
        let Some(length) = self.entry(tsn).map(|sent| sent.payload.len()) else {
            return;
        };
        let is_too_long = chunk_size(length) > packets.capacity();
        let packet = match is_too_long {
            true => self.put_segments(tsn, packets, before, whole_before),
            false => packet_number(length, packets, before, whole_before),
        };
        let snapshot = self.on_chunk_sent(now, packet, chunk_size(length));
        let Some(sent) = self.entry(tsn) else {
            return;
        };
        let was_in_flight = sent.state == ChunkState::InFlight;
        let counted_as_lost = sent.is_suspect;
        sent.state = ChunkState::InFlight;
        sent.retransmitted = true;
        sent.packet = packet;
        sent.at = now;
        sent.snapshot = snapshot;
        if !is_too_long {
            packets.put_data(sent.header, &sent.payload);
        }
        self.withholding.on_chunk_sent(tsn, now);
        self.bytes_sent += chunk_size(length) as u64;
        if !was_in_flight {
            self.in_flight += chunk_size(length);
        }
        self.retransmissions.push_back((tsn, packet));
        if counted_as_lost {
            self.reordering.on_retransmitted(tsn);
        }
    }

    /// Puts a chunk that the path no longer takes into several packets. Returns the number of the
    /// last one: the chunk is lost when that one is, or when a part is missing.
    fn put_segments(
        &mut self,
        tsn: u32,
        packets: &mut Packets,
        before: u64,
        whole_before: usize,
    ) -> u64 {
        let mut number = self.next_packet;
        let Some(sent) = self.entry(tsn) else {
            return number;
        };
        let (header, payload) = (sent.header, sent.payload.clone());
        let longest = packets.capacity().saturating_sub(SEGMENT_HEADER).max(1);
        let mut offset = 0;
        for part in payload.chunks(longest) {
            if SEGMENT_HEADER + part.len() > packets.room() {
                packets.finish_packet();
            }
            number = before + (packets.len() - whole_before) as u64;
            packets.put_segment(Segment {
                header,
                total: payload.len(),
                offset,
                payload: part,
            });
            offset += part.len();
        }
        number
    }

    /// Sends a withheld chunk that no chunk follows, as no later one would reveal the gap. If
    /// something is queued, it reveals the gap, or the retransmission timeout ends it.
    fn send_last_withheld(
        &mut self,
        now: Instant,
        packets: &mut Packets,
        before: u64,
        whole_before: usize,
    ) {
        if !self.queue.is_empty() {
            return;
        }
        let last = self
            .sent
            .back()
            .filter(|sent| sent.state == ChunkState::Withheld);
        if let Some(tsn) = last.map(|sent| sent.header.tsn) {
            self.retransmit(tsn, now, packets, before, whole_before);
        }
    }

    /// Retransmits two packets regardless of the window: one may be lost (RFC 9002 section 6.2.4).
    fn probe(&mut self, now: Instant, packets: &mut Packets, before: u64, whole_before: usize) {
        let is_in_flight = |sent: &Sent| sent.state == ChunkState::InFlight;
        let last = self.sent.iter().rposition(is_in_flight);
        // The first one moves the cumulative TSN, the last one reveals what is lost before it.
        let first = self
            .sent
            .iter()
            .position(|sent| matches!(sent.state, ChunkState::InFlight | ChunkState::ToRetransmit));
        let first = first.filter(|first| Some(*first) != last);
        for index in first.into_iter().chain(last) {
            let tsn = self.tsn_at(index);
            self.retransmit(tsn, now, packets, before, whole_before);
        }
    }

    fn fill_new(&mut self, now: Instant, packets: &mut Packets, before: u64, whole_before: usize) {
        loop {
            let is_last = self.queue.len() == 1;
            let Some(queued) = self.queue.front() else {
                return;
            };
            let mut room = packets.room().saturating_sub(DATA_HEADER);
            if room < queued.remaining.len().min(MIN_FRAGMENT) {
                packets.finish_packet();
                room = packets.room().saturating_sub(DATA_HEADER);
            }
            let length = queued.remaining.len().min(room);
            let size = chunk_size(length);
            let started = queued.started;
            if !self.may_send(size) {
                self.is_limited = true;
                return;
            }
            // A zero window is probed with one packet (RFC 9260 section 6.1).
            if length > self.peer_window.room() && self.outstanding > 0 {
                return;
            }
            if !started && self.withholding.is_draining() {
                return;
            }
            if !self.is_granted(now, length, packets, before, whole_before) {
                return;
            }
            let Some(queued) = self.queue.front() else {
                return;
            };
            let follows = !is_last || queued.remaining.len() > length;
            // Not if the peer may drop out-of-order chunks for lack of buffer space.
            let withheld = if length <= self.peer_window.room() {
                self.withholding
                    .begin(self.next_tsn, queued.started, follows)
            } else {
                None
            };
            if let Some(Withheld::Nothing(count)) = withheld {
                self.skip(count, now);
            }
            let Some(queued) = self.queue.front_mut() else {
                return;
            };
            let payload = queued.remaining.split_to(length);
            let ends = queued.remaining.is_empty();
            let mut flags = 0;
            let begins = !std::mem::replace(&mut queued.started, true);
            if begins {
                flags |= flag::BEGIN;
            }
            if ends {
                flags |= flag::END;
            }
            // The last of several packets requests an immediate SACK (RFC 7053), so that its loss
            // is found early. A lone packet does not: the application is likely to reply, and the
            // SACK is bundled with the reply. A pending reset also requests one, because pion
            // delays its SACK by 200 ms.
            let is_draining = (self.streams.get(&queued.stream))
                .is_some_and(|stream| stream.reset == ResetState::Draining);
            if ends && is_last && (!self.sent.is_empty() || is_draining) {
                flags |= flag::IMMEDIATE;
            }
            let (stream, ppid) = (queued.stream, queued.ppid);
            // The message's own entry remains as that of its last chunk.
            self.held += ENTRY;
            if ends {
                self.queue.pop_front();
                lower(&mut self.held, ENTRY);
            }
            let mut ssn = 0;
            if let Some(stream) = self.streams.get_mut(&stream) {
                ssn = stream.next;
                lower(&mut stream.unstarted, usize::from(begins));
                if ends {
                    stream.next = stream.next.wrapping_add(1);
                }
            }
            let header = DataHeader {
                flags,
                tsn: self.next_tsn,
                stream,
                ssn,
                ppid,
            };
            let is_withheld = withheld == Some(Withheld::Chunk);
            let (mut packet, mut snapshot) = (self.next_packet, Snapshot::default());
            if !is_withheld {
                packet = packet_number(length, packets, before, whole_before);
                snapshot = self.on_chunk_sent(now, packet, size);
                packets.put_data(header, &payload);
                self.in_flight += size;
                self.bytes_sent += size as u64;
            }
            self.next_tsn = self.next_tsn.wrapping_add(1);
            self.outstanding += size;
            self.peer_window.sent(size);
            self.withholding.on_sent(size);
            if self.sent.is_empty() {
                self.progress_at = Some(now);
            }
            self.sent.push_back(Sent {
                header,
                payload,
                state: if is_withheld {
                    ChunkState::Withheld
                } else {
                    ChunkState::InFlight
                },
                packet,
                at: now,
                snapshot,
                retransmitted: false,
                is_suspect: false,
                credited: false,
            });
        }
    }

    /// Skips TSNs. They use no window, and their entries are held until the peer has passed them.
    fn skip(&mut self, count: u32, now: Instant) {
        for _ in 0..count {
            let header = DataHeader {
                flags: 0,
                tsn: self.next_tsn,
                stream: 0,
                ssn: 0,
                ppid: 0,
            };
            self.next_tsn = self.next_tsn.wrapping_add(1);
            self.held += ENTRY;
            if self.sent.is_empty() {
                self.progress_at = Some(now);
            }
            self.sent.push_back(Sent {
                header,
                payload: Bytes::new(),
                state: ChunkState::Withheld,
                packet: self.next_packet,
                at: now,
                snapshot: Snapshot::default(),
                retransmitted: false,
                is_suspect: false,
                credited: true,
            });
        }
    }

    pub(super) fn first_tsn(&self) -> u32 {
        self.next_tsn.wrapping_sub(self.sent.len() as u32)
    }

    pub(super) fn tsn_at(&self, index: usize) -> u32 {
        self.first_tsn().wrapping_add(index as u32)
    }

    pub(super) fn entry(&mut self, tsn: u32) -> Option<&mut Sent> {
        let index = tsn.wrapping_sub(self.first_tsn());
        self.sent.get_mut(index as usize)
    }
}

/// Number of the packet that the next chunk of `length` payload bytes goes into.
fn packet_number(length: usize, packets: &Packets, before: u64, whole_before: usize) -> u64 {
    let starts_another = chunk_size(length) > packets.room();
    let index = packets.len() - whole_before + usize::from(starts_another);
    before + index as u64
}
