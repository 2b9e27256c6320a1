//! What goes out: messages cut into DATA chunks, their acknowledgement and repetition.
//!
//! ```text
//!             put into a packet            acknowledged
//! queued ────────────────────────► in flight ─────────► gone
//!                                   │     ▲
//!                              lost │     │ put into another packet
//!                                   ▼     │
//!                                  to repeat
//! ```
//!
//! Loss is found as in QUIC (RFC 9002 section 6.1), which is RACK (RFC 8985) by packet numbers: a chunk is lost
//! when a packet sent well after its own was acknowledged, well being a few packets or an eighth of a round
//! trip. So a repetition that is lost as well is found without a timeout, and a gap is not walked through
//! for each SACK that reports it.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Event;
use super::congestion::Congestion;
use super::packet::{DATA_HEADER, DataHeader};
use crate::tally::lower;

/// Before a round trip was measured: RFC 9260 says 1 s, but DTLS has just shown that the path is
/// no slower than this.
pub(super) const RTO_INITIAL: Duration = Duration::from_millis(500);

/// RFC 9260 says 60 s. This is how long an outage can go on when it is over, and a window that was
/// shut when it is open.
pub(super) const RTO_MAX: Duration = Duration::from_secs(3);

/// Packets by which one may be overtaken before it counts as lost (RFC 9002 section 6.1.1); doubled each time that
/// one turns out to have been late, up to the other figure.
const REORDERING: u64 = 3;
/// Payload that is not worth a chunk of its own, in front of more of the same message.
const MIN_PIECE: usize = 64;

/// What a queued message, or a chunk that was sent, costs beside its bytes: its entry, and the slack of the queue
/// that this lies in.
const ENTRY: usize = 128;

mod packets;
mod recovery;
mod window;
mod withhold;

use window::{PeerWindow, Share};
use withhold::Withholding;

pub(super) use withhold::Means;

/// A message, or the rest of one, that was not sent yet.
#[derive(Debug)]
struct Queued {
    stream: u16,
    protocol: u32,
    rest: Bytes,
    begun: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    InFlight,
    ToRepeat,
    Acknowledged,
    /// Withheld: with a payload it was not sent yet, and without one it never is.
    Withheld,
}

/// A chunk that has a number.
#[derive(Debug)]
struct Sent {
    header: DataHeader,
    payload: Bytes,
    state: State,
    /// Number of the packet that carried it last.
    packet: u64,
    at: Instant,
    repeated: bool,
    /// Its stream has been told that it arrived.
    counted: bool,
}

impl Sent {
    /// A TSN that carries nothing.
    fn is_skipped(&self) -> bool {
        self.state == State::Withheld && self.payload.is_empty()
    }

    /// Bytes of the chunk in its packet.
    fn size(&self) -> usize {
        chunk_size(self.payload.len())
    }
}

/// Bytes of a DATA chunk in its packet, with header and padding. The windows count these: a flight of messages of
/// one byte is 20 times as long as its payload.
fn chunk_size(payload: usize) -> usize {
    (DATA_HEADER + payload).next_multiple_of(4)
}

/// Where our reset of a stream is (RFC 6525).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Reset {
    #[default]
    None,
    /// As soon as everything is acknowledged.
    Wanted,
    /// About to be asked for.
    Requested,
    /// Asked for.
    Sent,
    /// The peer refuses.
    Failed,
}

/// Our direction of a stream.
#[derive(Debug, Default)]
struct Outbound {
    /// Sequence number of the next message.
    next: u16,
    /// Bytes written and not acknowledged.
    unacknowledged: usize,
    /// Messages in the queue of which nothing was sent.
    unbegun: usize,
    share: Share,
    reset: Reset,
    /// Streams of the peer's on this number that have ended since and wait for it.
    owed: u32,
    /// Those that wait for the reset after it: the peer may have performed the one that was sent, and have used the
    /// number again since. Its answer was lost, or is on its way.
    owed_later: u32,
}

/// The sending side of an association.
#[derive(Debug)]
pub(super) struct Sender {
    next_tsn: u32,
    queue: VecDeque<Queued>,
    /// Without those at the front that are acknowledged; consecutive, the last has `next_tsn - 1`.
    sent: VecDeque<Sent>,
    /// Index in `sent` up to which every first transmission was acknowledged or lost.
    judged: usize,
    /// Repetitions in the order they were sent: number and packet.
    repeated: VecDeque<(u32, u64)>,
    to_repeat: VecDeque<u32>,
    /// Ranges of numbers that the last SACK told of, as distances from the front of `sent`.
    known_gaps: Vec<(u32, u32)>,
    /// Bytes of chunks in flight.
    in_flight: usize,
    /// Bytes of all chunks in `sent` that are not acknowledged.
    outstanding: usize,
    /// Payload bytes written and not acknowledged, of all streams, those included that are gone.
    unacknowledged: usize,
    /// Memory of `queue` and `sent`. More than what is not acknowledged: what arrived behind a gap is kept until
    /// the gap is closed.
    held: usize,
    /// `Event::Room` was reported and not taken.
    room_reported: bool,
    /// When the peer has last acknowledged the first that was outstanding, or had its window shut.
    progress_at: Option<Instant>,
    streams: HashMap<u16, Outbound>,
    /// Streams with nothing unacknowledged that wait for their reset, with the number that the peer has to reach
    /// before it is asked. Some dcSCTP that had to say "in progress" never say anything else.
    to_reset: VecDeque<(u16, u32)>,
    congestion: Congestion,
    /// The window had kept something from being sent when it was last tried.
    limited: bool,
    next_packet: u64,
    /// The highest packet that is known to have arrived.
    arrived: Option<u64>,
    /// The packet whose arrival ends the round.
    round_end: u64,
    reordering: u64,
    peer_window: PeerWindow,
    withholding: Withholding,
    smoothed: Option<Duration>,
    variation: Duration,
    latest: Duration,
    shortest: Duration,
    /// Doublings of the timeout.
    backoff: u32,
    timeout_at: Option<Instant>,
    /// When a packet is lost that was overtaken by fewer than `reordering`.
    loss_at: Option<Instant>,
    /// When the last packet is sent again in case it was lost, with nothing behind it to show that.
    probe_at: Option<Instant>,
    probe_due: bool,
    /// When the peer is asked for its window, as a writer waits for a part of it; and times that it was asked since
    /// one did not have to wait.
    ask_at: Option<Instant>,
    asked: u32,
    /// One for each time that something new is acknowledged.
    probed: bool,
}

/// Streams and messages.
impl Sender {
    pub(super) fn new(first_tsn: u32, max_packet: usize) -> Self {
        Self {
            next_tsn: first_tsn,
            queue: VecDeque::new(),
            sent: VecDeque::new(),
            judged: 0,
            repeated: VecDeque::new(),
            to_repeat: VecDeque::new(),
            known_gaps: Vec::new(),
            in_flight: 0,
            outstanding: 0,
            unacknowledged: 0,
            held: 0,
            room_reported: false,
            progress_at: None,
            streams: HashMap::new(),
            to_reset: VecDeque::new(),
            congestion: Congestion::new(max_packet),
            limited: false,
            next_packet: 0,
            arrived: None,
            round_end: 0,
            reordering: REORDERING,
            peer_window: PeerWindow::default(),
            withholding: Withholding::new(),
            smoothed: None,
            variation: Duration::ZERO,
            latest: Duration::ZERO,
            shortest: Duration::MAX,
            backoff: 0,
            timeout_at: None,
            loss_at: None,
            probe_at: None,
            probe_due: false,
            ask_at: None,
            asked: 0,
            probed: false,
        }
    }

    /// The peer has told of its window, in INIT or INIT-ACK.
    pub(super) fn set_peer_window(&mut self, window: u32) {
        self.peer_window.advertise(window, self.outstanding);
    }

    /// How TSNs can be withheld from the peer.
    pub(super) fn set_means(&mut self, means: Means) {
        self.withholding.set_means(means);
    }

    /// Whether the peer has everything that was sent, and no message in part.
    fn is_drained(&self) -> bool {
        self.outstanding == 0 && self.queue.front().is_none_or(|queued| !queued.begun)
    }

    /// The number that the peer has reached.
    pub(super) fn reached_tsn(&self) -> u32 {
        self.first_tsn().wrapping_sub(1)
    }

    /// Makes a stream; `false` if there is one that is not reset.
    pub(super) fn open(&mut self, id: u16) -> bool {
        if self.streams.contains_key(&id) {
            return false;
        }
        self.streams.insert(id, Outbound::default());
        true
    }

    /// Queues a message, which must not be empty: there is no such DATA (RFC 9260 section 3.3.1). `false` if the
    /// stream can not be written to.
    pub(super) fn write(&mut self, id: u16, protocol: u32, message: Bytes) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else {
            return false;
        };
        if stream.reset != Reset::None || message.is_empty() {
            return false;
        }
        stream.unacknowledged += message.len();
        stream.unbegun += 1;
        self.unacknowledged += message.len();
        self.held += message.len() + ENTRY;
        self.queue.push_back(Queued {
            stream: id,
            protocol,
            rest: message,
            begun: false,
        });
        true
    }

    /// Bytes of a stream that are not acknowledged.
    pub(super) fn unacknowledged(&self, id: u16) -> usize {
        self.streams
            .get(&id)
            .map_or(0, |stream| stream.unacknowledged)
    }

    /// The same of all streams, and the memory that is held for them.
    pub(super) fn totals(&self) -> (usize, usize) {
        (self.unacknowledged, self.held)
    }

    /// Whether a message fits the part of the peer's window that its stream may fill. If not, `Event::Room`
    /// follows.
    pub(super) fn has_share(&mut self, id: u16, length: usize) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else {
            return true;
        };
        self.peer_window
            .admits(&mut stream.share, stream.unacknowledged, length)
    }

    /// Lowers what holds writers back, which wakes them. Nothing else does.
    fn release(&mut self, unacknowledged: usize, held: usize, events: &mut VecDeque<Event>) {
        lower(&mut self.unacknowledged, unacknowledged);
        lower(&mut self.held, held);
        if unacknowledged + held > 0 {
            self.report_room(events);
        }
    }

    fn report_room(&mut self, events: &mut VecDeque<Event>) {
        if !std::mem::replace(&mut self.room_reported, true) {
            events.push_back(Event::Room);
        }
    }

    /// `Event::Room` was taken: what comes up from now on is reported again.
    pub(super) fn room_taken(&mut self) {
        self.room_reported = false;
    }

    /// Drops what is queued on a stream that the peer has reset: RFC 8831 section 6.7 makes that the end of the
    /// channel, and nobody reads it. A message that has begun goes on to its end.
    pub(super) fn discard_unbegun(&mut self, id: u16, events: &mut VecDeque<Event>) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if std::mem::take(&mut stream.unbegun) == 0 {
            return;
        }
        // The queue is no longer than the writers' budget, and only a stream with something in it looks through it.
        let (mut bytes, mut entries) = (0, 0);
        self.queue.retain(|queued| {
            let is_kept = queued.stream != id || queued.begun;
            if !is_kept {
                bytes += queued.rest.len();
                entries += 1;
            }
            is_kept
        });
        lower(&mut stream.unacknowledged, bytes);
        let is_empty = stream.unacknowledged == 0;
        self.release(bytes, bytes + entries * ENTRY, events);
        if is_empty {
            self.on_stream_acknowledged(id, events);
        }
    }

    /// Everything that was written to a stream is acknowledged, or dropped.
    fn on_stream_acknowledged(&mut self, id: u16, events: &mut VecDeque<Event>) {
        events.push_back(Event::Acknowledged { id });
        self.reset_if_acknowledged(id);
    }

    /// Whether there may be something to send now.
    pub(super) fn wants_to_send(&self) -> bool {
        self.probe_due
            || self.withholding.is_forward_due()
            || ((!self.to_repeat.is_empty() || !self.queue.is_empty()) && self.may_send(1))
    }

    /// Whether everything was acknowledged.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.sent.is_empty()
    }

    /// Resets a stream when everything on it is acknowledged. Nothing more can be written.
    pub(super) fn reset(&mut self, id: u16) {
        // A stream that only the peer has used is reset too: it waits for that.
        self.open(id);
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.reset == Reset::None
        {
            stream.reset = Reset::Wanted;
            self.reset_if_acknowledged(id);
        }
    }

    /// The peer waits for the reset of our direction, since its own stream has ended.
    pub(super) fn owe_reset(&mut self, id: u16) {
        self.reset(id);
        if let Some(stream) = self.streams.get_mut(&id) {
            // The first end belongs to the reset that was sent, whoever began; a further one does not.
            if stream.reset == Reset::Sent && stream.owed > 0 {
                stream.owed_later += 1;
            } else {
                stream.owed += 1;
            }
        }
    }

    fn reset_if_acknowledged(&mut self, id: u16) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.reset == Reset::Wanted
            && stream.unacknowledged == 0
        {
            stream.reset = Reset::Requested;
            self.to_reset.push_back((id, self.next_tsn.wrapping_sub(1)));
        }
    }

    /// Whether there are streams to ask the peer to reset now.
    pub(super) fn has_resets(&self) -> bool {
        self.to_reset.front().is_some_and(|(_, last)| {
            let missing = last.wrapping_sub(self.reached_tsn()).cast_signed();
            missing <= 0
        })
    }

    /// These streams, at most `max`.
    pub(super) fn take_resets(&mut self, max: usize) -> Vec<u16> {
        let mut streams = Vec::new();
        while streams.len() < max && self.has_resets() {
            let Some((id, _)) = self.to_reset.pop_front() else {
                break;
            };
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.reset = Reset::Sent;
            }
            streams.push(id);
        }
        streams
    }

    /// Our direction of a stream was reset, and the number can be used again. Returns how many streams of the
    /// peer's have waited for it.
    pub(super) fn reset_done(&mut self, id: u16) -> Option<u32> {
        let mut stream = self.streams.remove(&id)?;
        self.peer_window.forget(&mut stream.share);
        if stream.owed_later > 0 {
            self.open(id);
            self.reset(id);
            if let Some(next) = self.streams.get_mut(&id) {
                next.owed = stream.owed_later;
            }
        }
        Some(stream.owed)
    }

    /// The peer refuses to reset our direction of a stream.
    pub(super) fn reset_failed(&mut self, id: u16) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.reset = Reset::Failed;
        }
    }
}

#[cfg(test)]
impl Sender {
    pub(super) fn withhold_nothing(&mut self) {
        self.withholding.set_rounds(u32::MAX);
    }

    /// What the last SACKs have told of gaps, as far as it was looked at.
    pub(super) fn known_gaps(&self) -> &[(u32, u32)] {
        &self.known_gaps
    }
}
