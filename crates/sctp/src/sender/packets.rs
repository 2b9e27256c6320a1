//! What goes into packets: the probe, what was lost, then what is new, as far as the windows allow.

use std::time::Instant;

use bytes::Bytes;

use super::super::packet::{DataHeader, Packets, flag, kind};
use super::withhold::Withheld;
use super::{DATA_HEADER, ENTRY, MIN_PIECE, RTO_MAX, Reset, Sender, Sent, State, chunk_size};
use crate::tally::lower;

/// Packets.
impl Sender {
    /// Puts what the windows allow into packets: first what was lost, then what is new.
    pub(crate) fn fill(&mut self, now: Instant, packets: &mut Packets) {
        let before = self.next_packet;
        let whole_before = packets.len();
        self.limited = false;
        if let Some(tsn) = self.withholding.take_forward(now) {
            // Without streams: no message is given up.
            packets.put(kind::FORWARD_TSN, 0, &tsn.to_be_bytes());
            self.next_packet = self.next_packet.max(before + 1);
        }
        if std::mem::take(&mut self.probe_due) {
            self.probe(now, packets, before, whole_before);
        }
        while let Some(&tsn) = self.to_repeat.front() {
            let is_due = |sent: &&mut Sent| match sent.state {
                State::ToRepeat => true,
                State::Withheld => !sent.is_skipped(),
                State::InFlight | State::Acknowledged => false,
            };
            let Some(sent) = self.entry(tsn).filter(is_due) else {
                self.to_repeat.pop_front();
                continue;
            };
            let size = sent.size();
            if !self.may_send(size) {
                self.limited = true;
                break;
            }
            self.to_repeat.pop_front();
            self.repeat(tsn, now, packets, before, whole_before);
        }
        if !self.limited {
            self.fill_new(now, packets, before, whole_before);
        }
        self.send_last_withheld(now, packets, before, whole_before);
        if !self.sent.is_empty() && self.timeout_at.is_none() {
            self.timeout_at = Some(now + self.timeout());
        }
        self.ask_for_window(now, packets);
        if self.next_packet > before {
            self.arm_probe(now);
        }
    }

    /// Asks for a SACK by DATA that the peer has, as long as a writer waits and no other SACK is on
    /// its way.
    fn ask_for_window(&mut self, now: Instant, packets: &mut Packets) {
        if !self.peer_window.is_awaited() {
            (self.ask_at, self.asked) = (None, 0);
            return;
        }
        if !self.sent.is_empty() {
            self.ask_at = None;
            return;
        }
        if self.ask_at.is_some_and(|at| at <= now) {
            self.ask_at = None;
            self.asked += 1;
            let header = DataHeader {
                flags: flag::BEGIN | flag::END | flag::IMMEDIATE,
                tsn: self.reached_tsn(),
                stream: 0,
                sequence: 0,
                protocol: 0,
            };
            packets.put_data(header, &[0]);
            self.next_packet += 1;
        }
        let patience = self.timeout().saturating_mul(1 << self.asked.min(8));
        if self.ask_at.is_none() {
            self.ask_at = Some(now + patience.min(RTO_MAX));
        }
    }

    /// Whether the congestion window has room. An empty path always takes a packet.
    pub(super) fn may_send(&self, size: usize) -> bool {
        self.in_flight == 0 || self.in_flight + size <= self.congestion.window()
    }

    /// The number of the packet that the next chunk of `length` bytes goes into.
    fn packet_number(
        &mut self,
        length: usize,
        packets: &Packets,
        before: u64,
        whole_before: usize,
    ) -> u64 {
        let starts_another = chunk_size(length) > packets.room();
        let index = packets.len() - whole_before + usize::from(starts_another);
        let number = before + index as u64;
        self.next_packet = self.next_packet.max(number + 1);
        number
    }

    fn repeat(
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
        let packet = self.packet_number(length, packets, before, whole_before);
        let Some(sent) = self.entry(tsn) else {
            return;
        };
        let was_in_flight = sent.state == State::InFlight;
        sent.state = State::InFlight;
        sent.repeated = true;
        sent.packet = packet;
        sent.at = now;
        packets.put_data(sent.header, &sent.payload);
        self.withholding.on_chunk_sent(tsn, now);
        if !was_in_flight {
            self.in_flight += chunk_size(length);
        }
        self.repeated.push_back((tsn, packet));
    }

    /// Sends a withheld chunk that nothing will be sent after. If something waits for a window,
    /// that shows the gap, or the retransmission timeout ends it.
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
            .filter(|sent| sent.state == State::Withheld);
        if let Some(tsn) = last.map(|sent| sent.header.tsn) {
            self.repeat(tsn, now, packets, before, whole_before);
        }
    }

    /// Sends the last packet again, whatever the window says (RFC 9002 section 6.2.4).
    fn probe(&mut self, now: Instant, packets: &mut Packets, before: u64, whole_before: usize) {
        let last = self
            .sent
            .iter()
            .rposition(|sent| sent.state == State::InFlight);
        if let Some(index) = last {
            let tsn = self.tsn_at(index);
            self.repeat(tsn, now, packets, before, whole_before);
        }
    }

    fn fill_new(&mut self, now: Instant, packets: &mut Packets, before: u64, whole_before: usize) {
        loop {
            let is_last = self.queue.len() == 1;
            let Some(queued) = self.queue.front() else {
                return;
            };
            let mut room = packets.room().saturating_sub(DATA_HEADER);
            if room < queued.rest.len().min(MIN_PIECE) {
                packets.finish_packet();
                room = packets.room().saturating_sub(DATA_HEADER);
            }
            let length = queued.rest.len().min(room);
            let size = chunk_size(length);
            if !self.may_send(size) {
                self.limited = true;
                return;
            }
            // With a window that is shut, one packet asks whether it still is (RFC 9260 section
            // 6.1).
            if length > self.peer_window.room() && self.outstanding > 0 {
                return;
            }
            if !queued.begun && self.withholding.is_draining() {
                return;
            }
            let follows = !is_last || queued.rest.len() > length;
            // Not where the peer may drop what comes out of order for want of room.
            let withheld = if length <= self.peer_window.room() {
                self.withholding.begin(self.next_tsn, queued.begun, follows)
            } else {
                None
            };
            if let Some(Withheld::Nothing(count)) = withheld {
                self.skip(count, now);
            }
            let Some(queued) = self.queue.front_mut() else {
                return;
            };
            let payload = queued.rest.split_to(length);
            let ends = queued.rest.is_empty();
            let mut flags = 0;
            let begins = !std::mem::replace(&mut queued.begun, true);
            if begins {
                flags |= flag::BEGIN;
            }
            if ends {
                flags |= flag::END;
            }
            // The end of several packets is acknowledged without delay (RFC 7053), and so is missed
            // early. What is sent alone is likely to be answered by the application, and the
            // acknowledgement goes along. And before a reset, which waits for it: pion delays its
            // SACK by 200 ms.
            let is_awaited = (self.streams.get(&queued.stream))
                .is_some_and(|stream| stream.reset == Reset::Wanted);
            if ends && is_last && (!self.sent.is_empty() || is_awaited) {
                flags |= flag::IMMEDIATE;
            }
            let (stream, protocol) = (queued.stream, queued.protocol);
            // Of the entry of the message, that of its last chunk is left.
            self.held += ENTRY;
            if ends {
                self.queue.pop_front();
                lower(&mut self.held, ENTRY);
            }
            let mut sequence = 0;
            if let Some(stream) = self.streams.get_mut(&stream) {
                sequence = stream.next;
                lower(&mut stream.unbegun, usize::from(begins));
                if ends {
                    stream.next = stream.next.wrapping_add(1);
                }
            }
            let header = DataHeader {
                flags,
                tsn: self.next_tsn,
                stream,
                sequence,
                protocol,
            };
            let is_withheld = withheld == Some(Withheld::Chunk);
            let mut packet = self.next_packet;
            if !is_withheld {
                packet = self.packet_number(length, packets, before, whole_before);
                packets.put_data(header, &payload);
                self.in_flight += size;
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
                    State::Withheld
                } else {
                    State::InFlight
                },
                packet,
                at: now,
                repeated: false,
                counted: false,
            });
        }
    }

    /// Leaves out TSNs. They take no room in any window, and their entries are held until the peer
    /// has passed them.
    fn skip(&mut self, count: u32, now: Instant) {
        for _ in 0..count {
            let header = DataHeader {
                flags: 0,
                tsn: self.next_tsn,
                stream: 0,
                sequence: 0,
                protocol: 0,
            };
            self.next_tsn = self.next_tsn.wrapping_add(1);
            self.held += ENTRY;
            if self.sent.is_empty() {
                self.progress_at = Some(now);
            }
            self.sent.push_back(Sent {
                header,
                payload: Bytes::new(),
                state: State::Withheld,
                packet: self.next_packet,
                at: now,
                repeated: false,
                counted: true,
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
