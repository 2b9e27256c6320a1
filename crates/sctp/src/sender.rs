//! The sending side: fragmentation into DATA chunks, acknowledgement and retransmission.
//!
//! ```text
//!             put into a packet            acknowledged
//! queued ────────────────────────► in flight ─────────► freed
//!                                   │     ▲
//!                              lost │     │ put into another packet
//!                                   ▼     │
//!                                 to retransmit
//! ```
//!
//! Loss is detected as in QUIC (RFC 9002 section 6.1), which is RACK (RFC 8985) by packet numbers:
//! a chunk is lost once a packet is acknowledged that was sent three packets, or a reordering
//! window, after the chunk's own. So a lost retransmission is found without a timeout, and a gap is
//! not walked through for each SACK that reports it.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Event;
use super::congestion::{CongestionControl, Controller, Lost};
use super::ecn::Marking;
use super::packet::{DATA_HEADER, DataHeader};
use crate::tally::lower;

/// RTO before the first RTT sample. RFC 9260 says 1 s, but the DTLS handshake has shown that the
/// path is no slower than this.
pub(super) const RTO_INITIAL: Duration = Duration::from_millis(500);

/// RFC 9260 says 60 s. This bounds the delay after an outage, and after a zero window opens.
pub(super) const RTO_MAX: Duration = Duration::from_secs(3);

/// Minimum payload of a non-final fragment: fewer bytes are not worth a chunk.
const MIN_FRAGMENT: usize = 64;

/// Gap ack blocks from which on a SACK may have had no room for all: those of a packet of 576
/// bytes. What arrived after the last block is neither acknowledged nor lost then.
const FULL_SACK: usize = 128;

/// Overhead counted for each queued message and each sent chunk: its entry, and the spare capacity
/// of the queue that holds it.
const ENTRY: usize = 128;

mod black_hole;
mod figures;
mod loss;
mod nearby;
mod pacer;
mod packets;
mod path;
mod prr;
mod rate;
mod sacks;
mod timers;
mod window;
mod withhold;

use black_hole::BlackHole;
use loss::{Reordering, Suspects};
use nearby::Nearby;
use pacer::Pacer;
use prr::Recovery;
use rate::{DeliveryRate, Snapshot};
use window::{PeerWindow, Share};
use withhold::Withholding;

pub(super) use withhold::WithholdMode;

/// The part of a message that was not sent yet.
#[derive(Debug)]
struct Queued {
    stream: u16,
    ppid: u32,
    remaining: Bytes,
    started: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChunkState {
    InFlight,
    ToRetransmit,
    Acknowledged,
    /// With a payload it was not sent yet; without one it never is.
    Withheld,
}

/// A chunk that has a TSN.
#[derive(Debug)]
struct Sent {
    header: DataHeader,
    payload: Bytes,
    state: ChunkState,
    /// Number of the last packet that carried the chunk.
    packet: u64,
    at: Instant,
    snapshot: Snapshot,
    retransmitted: bool,
    /// It counts as lost, and is not acknowledged since.
    is_suspect: bool,
    /// The bytes were subtracted from `unacknowledged`.
    credited: bool,
}

impl Sent {
    /// Whether the TSN carries nothing.
    fn is_skipped(&self) -> bool {
        self.state == ChunkState::Withheld && self.payload.is_empty()
    }

    fn size(&self) -> usize {
        chunk_size(self.payload.len())
    }
}

/// Size of a DATA chunk in its packet, with header and padding. The windows count this size: a
/// flight of one-byte messages is 20 times as long as its payload.
fn chunk_size(payload: usize) -> usize {
    (DATA_HEADER + payload).next_multiple_of(4)
}

/// State of the reset of an outgoing stream (RFC 6525).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum ResetState {
    #[default]
    None,
    /// Waits until everything is acknowledged.
    Draining,
    /// Waits for the next request.
    Queued,
    /// Requested from the peer.
    Requested,
    /// Denied by the peer.
    Denied,
}

/// An outgoing stream.
#[derive(Debug, Default)]
struct Outbound {
    /// Stream sequence number of the next message.
    next: u16,
    /// Payload bytes written and not acknowledged.
    unacknowledged: usize,
    /// Queued messages of which nothing was sent.
    unstarted: usize,
    /// Messages written, as a number that wraps, and how many of the last were dropped.
    written: u32,
    dropped: u32,
    share: Share,
    reset: ResetState,
    /// Incoming streams on this id that have ended, and that this reset answers.
    answers: u32,
    /// Those that the following reset answers: the peer may have performed the current request and
    /// reused the id while its response is lost or in transit.
    answers_after: u32,
}

/// The sending side of an association.
#[derive(Debug)]
pub(super) struct Sender {
    next_tsn: u32,
    queue: VecDeque<Queued>,
    /// Sent chunks in TSN order from the oldest unacknowledged; the last has `next_tsn - 1`.
    sent: VecDeque<Sent>,
    /// Index in `sent` before which every first transmission is acknowledged or lost.
    loss_cursor: usize,
    /// Retransmissions in the order they were sent: TSN and packet number.
    retransmissions: VecDeque<(u32, u64)>,
    to_retransmit: VecDeque<u32>,
    /// Gap ack blocks of the last SACK, as offsets from the front of `sent`.
    known_gaps: Vec<(u32, u32)>,
    /// Bytes of chunks in flight.
    in_flight: usize,
    /// Bytes of all chunks in `sent` that are not acknowledged.
    outstanding: usize,
    /// Payload bytes written and not acknowledged, over all streams, including those that are gone.
    unacknowledged: usize,
    /// Memory of `queue` and `sent`. Exceeds the unacknowledged bytes: a chunk acknowledged after a
    /// gap is kept until the gap is closed.
    held: usize,
    /// `Event::Writable` was emitted and not taken.
    writable_reported: bool,
    /// When the peer last acknowledged the oldest outstanding chunk, or had a zero window.
    progress_at: Option<Instant>,
    streams: HashMap<u16, Outbound>,
    /// Streams with nothing unacknowledged that wait for a request, and the TSN that the peer has
    /// to reach before it is sent. Some versions of dcSCTP answer "in progress" forever once they
    /// have done so.
    to_reset: VecDeque<(u16, u32)>,
    /// The longest packet, at the moment and in any case.
    max_packet: usize,
    base_packet: usize,
    black_hole: BlackHole,
    control: CongestionControl,
    controller: Box<dyn Controller>,
    rate: DeliveryRate,
    pacer: Pacer,
    /// When pacing allows the next packet, if one waits for that.
    pacing_at: Option<Instant>,
    /// The packet that pacing allowed last.
    granted: Option<u64>,
    /// Bytes that may be retransmitted regardless of the window: what was acknowledged, and one
    /// packet, while SACKs have no room for all gaps. What they can not report seems to be in
    /// flight and would fill the window for good.
    repair_allowance: usize,
    /// The reduction of the window after a loss.
    recovery: Option<Recovery>,
    /// The last transmission was stopped by the congestion window.
    is_limited: bool,
    next_packet: u64,
    /// The first packet on the current path. What was sent before says nothing about it.
    path_since: u64,
    /// The highest packet number known to have arrived.
    highest_acked: Option<u64>,
    reordering: Reordering,
    suspects: Suspects,
    /// The window was reduced because of the open suspects.
    is_reduction_suspect: bool,
    /// Packets newly detected as lost.
    losses: Vec<Lost>,
    /// Bytes of chunks that were ever sent, and that ever counted as lost.
    bytes_sent: u64,
    bytes_lost: u64,
    peer_window: PeerWindow,
    nearby: Nearby,
    withholding: Withholding,
    marking: Marking,
    srtt: Option<Duration>,
    rttvar: Duration,
    latest_rtt: Duration,
    min_rtt: Duration,
    /// Consecutive probe timeouts without an acknowledgement.
    pto_count: u32,
    pto_at: Option<Instant>,
    /// The latest time for it, which sending does not postpone (RFC 8985 section 7.2).
    rto_at: Option<Instant>,
    /// When a packet that was overtaken counts as lost.
    loss_at: Option<Instant>,
    /// Two packets are to be retransmitted regardless of the window.
    is_probe_due: bool,
    /// When to probe the peer's window while a writer waits for its share, and the number of probes
    /// since none waited.
    window_probe_at: Option<Instant>,
    window_probes: u32,
}

/// Streams and messages.
impl Sender {
    pub(super) fn new(first_tsn: u32, max_packet: usize, control: CongestionControl) -> Self {
        Self {
            next_tsn: first_tsn,
            queue: VecDeque::new(),
            sent: VecDeque::new(),
            loss_cursor: 0,
            retransmissions: VecDeque::new(),
            to_retransmit: VecDeque::new(),
            known_gaps: Vec::new(),
            in_flight: 0,
            outstanding: 0,
            unacknowledged: 0,
            held: 0,
            writable_reported: false,
            progress_at: None,
            streams: HashMap::new(),
            to_reset: VecDeque::new(),
            max_packet,
            base_packet: max_packet,
            black_hole: BlackHole::default(),
            control,
            controller: control.controller(max_packet),
            rate: DeliveryRate::default(),
            pacer: Pacer::default(),
            pacing_at: None,
            granted: None,
            repair_allowance: 0,
            recovery: None,
            is_limited: false,
            next_packet: 0,
            path_since: 0,
            highest_acked: None,
            reordering: Reordering::default(),
            suspects: Suspects::default(),
            is_reduction_suspect: false,
            losses: Vec::new(),
            bytes_sent: 0,
            bytes_lost: 0,
            peer_window: PeerWindow::default(),
            nearby: Nearby::default(),
            withholding: Withholding::new(),
            marking: Marking::new(),
            srtt: None,
            rttvar: Duration::ZERO,
            latest_rtt: Duration::ZERO,
            min_rtt: Duration::MAX,
            pto_count: 0,
            pto_at: None,
            rto_at: None,
            loss_at: None,
            is_probe_due: false,
            window_probe_at: None,
            window_probes: 0,
        }
    }

    /// Applies the initial window of INIT or INIT-ACK.
    pub(super) fn set_peer_window(&mut self, window: u32) {
        self.peer_window.advertise(window, self.outstanding);
    }

    /// Sets how TSNs can be withheld from the peer.
    pub(super) fn set_withhold_mode(&mut self, mode: WithholdMode) {
        self.withholding.set_withhold_mode(mode);
    }

    /// Whether the peer has every sent chunk and no partial message.
    fn is_drained(&self) -> bool {
        self.outstanding == 0 && self.queue.front().is_none_or(|queued| !queued.started)
    }

    /// The TSN that the peer has cumulatively acknowledged.
    pub(super) fn acked_tsn(&self) -> u32 {
        self.first_tsn().wrapping_sub(1)
    }

    /// Creates a stream; `false` if it exists and is not reset.
    pub(super) fn open(&mut self, id: u16) -> bool {
        if self.streams.contains_key(&id) {
            return false;
        }
        self.streams.insert(id, Outbound::default());
        true
    }

    /// Queues a message, which must not be empty: DATA without user data is invalid (RFC 9260
    /// section 3.3.1). Returns `false` if the stream is not writable.
    pub(super) fn write(&mut self, id: u16, ppid: u32, message: Bytes) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else {
            return false;
        };
        if stream.reset != ResetState::None || message.is_empty() {
            return false;
        }
        stream.unacknowledged += message.len();
        stream.unstarted += 1;
        stream.written = stream.written.wrapping_add(1);
        self.unacknowledged += message.len();
        self.held += message.len() + ENTRY;
        self.queue.push_back(Queued {
            stream: id,
            ppid,
            remaining: message,
            started: false,
        });
        true
    }

    /// Unacknowledged bytes of a stream.
    pub(super) fn unacknowledged(&self, id: u16) -> usize {
        self.streams
            .get(&id)
            .map_or(0, |stream| stream.unacknowledged)
    }

    pub(super) fn written(&self, id: u16) -> u32 {
        self.streams.get(&id).map_or(0, |stream| stream.written)
    }

    pub(super) fn has_dropped(&self, id: u16, written: u32) -> bool {
        self.streams
            .get(&id)
            .is_some_and(|stream| stream.written.wrapping_sub(written) < stream.dropped)
    }

    /// Unacknowledged bytes of all streams, and the memory held for them.
    pub(super) fn totals(&self) -> (usize, usize) {
        (self.unacknowledged, self.held)
    }

    /// Whether a message fits its stream's share of the peer's window. If not, `Event::Writable`
    /// follows.
    pub(super) fn has_share(&mut self, id: u16, length: usize) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else {
            return true;
        };
        self.peer_window
            .admits(&mut stream.share, stream.unacknowledged, length)
    }

    /// Lowers the counters that block writers, and wakes the writers. Nothing else lowers them.
    fn release(&mut self, unacknowledged: usize, held: usize, events: &mut VecDeque<Event>) {
        lower(&mut self.unacknowledged, unacknowledged);
        lower(&mut self.held, held);
        if unacknowledged + held > 0 {
            self.report_writable(events);
        }
    }

    fn report_writable(&mut self, events: &mut VecDeque<Event>) {
        if !std::mem::replace(&mut self.writable_reported, true) {
            events.push_back(Event::Writable);
        }
    }

    /// `Event::Writable` was taken: the next change is reported again.
    pub(super) fn writable_taken(&mut self) {
        self.writable_reported = false;
    }

    /// Drops what is queued on a stream that the peer has reset: that closes the channel (RFC 8831
    /// section 6.7), and nobody reads it. A message that was started is sent to its end.
    pub(super) fn discard_unstarted(&mut self, id: u16, events: &mut VecDeque<Event>) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if std::mem::take(&mut stream.unstarted) == 0 {
            return;
        }
        // The write limit bounds the queue, and only a stream with queued messages gets here.
        let (mut bytes, mut entries) = (0, 0);
        self.queue.retain(|queued| {
            let is_kept = queued.stream != id || queued.started;
            if !is_kept {
                bytes += queued.remaining.len();
                entries += 1;
            }
            is_kept
        });
        stream.dropped = stream.dropped.saturating_add(entries as u32);
        lower(&mut stream.unacknowledged, bytes);
        let is_empty = stream.unacknowledged == 0;
        self.release(bytes, bytes + entries * ENTRY, events);
        if is_empty {
            self.on_stream_acknowledged(id, events);
        }
    }

    /// Everything written to a stream is acknowledged or dropped.
    fn on_stream_acknowledged(&mut self, id: u16, events: &mut VecDeque<Event>) {
        events.push_back(Event::Acknowledged { id });
        self.reset_if_acknowledged(id);
    }

    /// Whether there may be something to send now.
    pub(super) fn wants_to_send(&self, now: Instant) -> bool {
        let has_data = !self.to_retransmit.is_empty() || !self.queue.is_empty();
        let is_paced = self.pacer.blocked_until(now).is_some();
        self.is_probe_due
            || self.withholding.is_forward_due()
            || (has_data && !is_paced && self.may_send(1))
    }

    /// Whether the last SACK may have had no room for all gaps.
    fn is_sack_full(&self) -> bool {
        self.known_gaps.len() >= FULL_SACK
    }

    /// Whether everything in flight counted as lost, and nothing was acknowledged since.
    fn has_timed_out(&self) -> bool {
        self.pto_count >= 2
    }

    pub(super) fn congestion(&self) -> &dyn Controller {
        &*self.controller
    }

    /// Maximum bytes in flight: cwnd, or the limit towards another stack nearby if that is lower.
    pub(super) fn send_window(&self) -> usize {
        let nearby = self.nearby.limit(self.min_rtt, self.max_packet);
        self.controller.cwnd().min(nearby)
    }

    /// The peer is this library.
    pub(super) fn lift_nearby_limit(&mut self) {
        self.nearby.lift();
    }

    pub(super) fn marking(&self) -> &Marking {
        &self.marking
    }

    pub(super) fn marking_mut(&mut self) -> &mut Marking {
        &mut self.marking
    }

    /// Packets are marked with ECT(0) from now on.
    pub(super) fn start_marking(&mut self) {
        self.marking.start(self.next_packet);
    }

    /// SRTT, once there is a sample.
    pub(super) fn srtt(&self) -> Option<Duration> {
        self.srtt
    }

    /// Whether everything is acknowledged.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.sent.is_empty()
    }

    /// Resets a stream once everything on it is acknowledged. Nothing more can be written.
    pub(super) fn reset(&mut self, id: u16) {
        // The peer also waits for the reset of a stream that only it has used.
        self.open(id);
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.reset == ResetState::None
        {
            stream.reset = ResetState::Draining;
            self.reset_if_acknowledged(id);
        }
    }

    /// Resets the stream because the incoming stream on its id has ended.
    pub(super) fn answer_reset(&mut self, id: u16) {
        self.reset(id);
        if let Some(stream) = self.streams.get_mut(&id) {
            // The first end belongs to the outstanding request, whichever side began; a further one
            // does not.
            if stream.reset == ResetState::Requested && stream.answers > 0 {
                stream.answers_after += 1;
            } else {
                stream.answers += 1;
            }
        }
    }

    fn reset_if_acknowledged(&mut self, id: u16) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.reset == ResetState::Draining
            && stream.unacknowledged == 0
        {
            stream.reset = ResetState::Queued;
            self.to_reset.push_back((id, self.next_tsn.wrapping_sub(1)));
        }
    }

    /// Whether a reset can be requested now.
    pub(super) fn has_resets(&self) -> bool {
        self.to_reset.front().is_some_and(|(_, last)| {
            let missing = last.wrapping_sub(self.acked_tsn()).cast_signed();
            missing <= 0
        })
    }

    /// Takes the streams to request a reset for, at most `max`.
    pub(super) fn take_resets(&mut self, max: usize) -> Vec<u16> {
        let mut streams = Vec::new();
        while streams.len() < max && self.has_resets() {
            let Some((id, _)) = self.to_reset.pop_front() else {
                break;
            };
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.reset = ResetState::Requested;
            }
            streams.push(id);
        }
        streams
    }

    /// The outgoing direction is reset, and the id can be reused. Returns how many ended incoming
    /// streams the reset answers.
    pub(super) fn reset_done(&mut self, id: u16) -> Option<u32> {
        let mut stream = self.streams.remove(&id)?;
        self.peer_window.forget(&mut stream.share);
        if stream.answers_after > 0 {
            self.open(id);
            self.reset(id);
            if let Some(next) = self.streams.get_mut(&id) {
                next.answers = stream.answers_after;
            }
        }
        Some(stream.answers)
    }

    /// The peer denied the reset.
    pub(super) fn reset_failed(&mut self, id: u16) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.reset = ResetState::Denied;
        }
    }
}

#[cfg(test)]
impl Sender {
    pub(super) fn withhold_nothing(&mut self) {
        self.withholding.set_rounds(u32::MAX);
    }

    /// Gap ack blocks of the last SACKs, as far as they were processed.
    pub(super) fn known_gaps(&self) -> &[(u32, u32)] {
        &self.known_gaps
    }
}
