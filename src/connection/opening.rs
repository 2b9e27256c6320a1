//! How many substreams each side may open, in the way of QUIC's MAX_STREAMS (RFC 9000 section 4.6).
//!
//! A limit counts substreams from the beginning of the connection, so it never falls and a repetition is harmless.
//! Substreams that are over, and that the application has accepted, make room for others. It goes to peers that
//! know credit, in frames about the connection; what others open beyond it is refused.

use super::deadlines::{Deadline, DeadlineKind, NO_CHANNEL};
use super::driver::{DriverPhase, Turn};
use super::error::OpenError;
use super::shared::OpenRequest;
use super::work::{OTHERS_PER_ROUND, UNITS_PER_OPENING};
use crate::carrier::{Carrier, OpenChannelError, Written};
use crate::error::ConnectionError;
use crate::events::Initiator;
use crate::message::Message;

/// Substreams that may be opened before it is known what the peer is, those included that are over here and may not be
/// over there. js-libp2p takes 64 of a protocol from one peer.
pub(super) const EARLY_SUBSTREAMS: u64 = 64;

/// What is known of the substreams that the peer accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PeerLimit {
    /// It has not shown yet whether it knows such limits.
    Unknown,
    /// It knows none.
    None,
    /// Substreams that it accepts in total.
    Total(u64),
}

/// The limits of a connection, in both directions.
#[derive(Debug)]
pub(super) struct SubstreamLimits {
    limit: PeerLimit,
    /// Substreams that this side has opened.
    opened: u64,
    /// A request that has to wait for room, the first of them.
    waiting: Option<OpenRequest>,
    /// When a peer that says nothing counts as one that knows no limit.
    deadline: Option<Deadline>,
    /// Substreams that the peer has opened, refused ones included.
    peer_opened: u64,
    /// What the peer was told.
    announced: u64,
}

impl SubstreamLimits {
    pub(super) fn new(carries_notices: bool) -> Self {
        Self {
            limit: match carries_notices {
                true => PeerLimit::Unknown,
                false => PeerLimit::None,
            },
            opened: 0,
            waiting: None,
            deadline: None,
            peer_opened: 0,
            announced: 0,
        }
    }

    /// The peer has told how many it accepts. Returns whether that is news.
    pub(super) fn on_limit(&mut self, max_substreams: u64) -> bool {
        let before = match self.limit {
            PeerLimit::Total(before) if before >= max_substreams => return false,
            PeerLimit::Total(before) => before,
            PeerLimit::Unknown | PeerLimit::None => 0,
        };
        self.limit = PeerLimit::Total(before.max(max_substreams));
        true
    }

    /// The peer knows no limits.
    pub(super) fn on_no_limit(&mut self) {
        if self.limit == PeerLimit::Unknown {
            self.limit = PeerLimit::None;
        }
    }

    /// The peer has opened a substream. Returns whether that is more than it was told, and than it could have under
    /// way when it was.
    pub(super) fn on_opened(&mut self) -> bool {
        self.peer_opened = self.peer_opened.saturating_add(1);
        self.announced > 0 && self.peer_opened > self.announced.saturating_add(EARLY_SUBSTREAMS)
    }

    fn may_open(&self) -> bool {
        match self.limit {
            PeerLimit::Unknown => self.opened < EARLY_SUBSTREAMS,
            PeerLimit::None => true,
            PeerLimit::Total(total) => self.opened < total,
        }
    }

    /// What to tell the peer now, when `live` of its substreams are not over: not for each that ends, but before it
    /// has to wait.
    fn due(&self, live: u64, max: u64) -> Option<u64> {
        let next = self.peer_opened.saturating_sub(live).saturating_add(max);
        let more = next.saturating_sub(self.announced);
        let is_waiting = self.peer_opened >= self.announced;
        (more > 0 && (is_waiting || more >= max.div_ceil(4))).then_some(next)
    }

    /// Whether the peer has used most of what it was told, so that each place that is freed counts.
    pub(super) fn is_tight(&self, max: u64) -> bool {
        self.announced > 0 && self.announced.saturating_sub(self.peer_opened) < max.div_ceil(2)
    }
}

impl<C: Carrier> Turn<'_, C> {
    /// Opens what was asked for, as far as the peer accepts it.
    pub(super) fn open_requested(&mut self) -> bool {
        let mut moved = false;
        for _ in 0..OTHERS_PER_ROUND {
            let is_running = self.core.phase == DriverPhase::Running;
            if is_running && !self.core.opening.may_open() {
                break;
            }
            let waiting = self.core.opening.waiting.take();
            let Some(request) = waiting
                .filter(|request| !request.reply.is_closed())
                .or_else(|| self.core.conn.next_open())
            else {
                break;
            };
            let result = if is_running {
                self.core.carrier.open(&request.label)
            } else {
                let error = OpenError::Connection(ConnectionError::ClosedLocally);
                let _ = request.reply.send(Err(error));
                moved = true;
                continue;
            };
            if result == Err(OpenChannelError::NotNow) {
                // `Writable` follows, and with it another round.
                self.core.opening.waiting = Some(request);
                break;
            }
            moved = true;
            self.core.work.spend(UNITS_PER_OPENING);
            let result = result.map_err(OpenError::Channel).map(|channel| {
                self.core.opening.opened += 1;
                self.core.conn.counters.opened.add(1);
                self.insert(channel, Initiator::Local)
            });
            // A caller that gave up drops the substream, which then closes itself.
            let _ = request.reply.send(result);
        }
        self.limit_wait_for_limit() || moved
    }

    /// Bounds how long opens wait for a peer that says nothing. Returns whether the deadline was set now, so that
    /// another round arranges the wake-up for it.
    fn limit_wait_for_limit(&mut self) -> bool {
        let opening = &self.core.opening;
        let waits = opening.limit == PeerLimit::Unknown
            && opening.deadline.is_none()
            && self.core.conn.has_opens();
        if waits {
            let timeout = self.core.conn.config.open_timeout;
            let deadline = self
                .deadlines
                .as_mut()
                .set(NO_CHANNEL, DeadlineKind::Opening, timeout);
            self.core.opening.deadline = Some(deadline);
        }
        waits
    }

    /// The peer has had its time to show what it is.
    pub(super) fn on_silent_peer(&mut self) {
        self.core.opening.deadline = None;
        self.core.opening.on_no_limit();
    }

    /// Tells the peer how many substreams it may open, where that is due.
    pub(super) fn announce_limit(&mut self) -> bool {
        let core = &mut *self.core;
        if !core.peer_supports_credit
            || core.phase != DriverPhase::Running
            || !core.carrier.carries_notices()
        {
            return false;
        }
        let max = core.conn.config.max_inbound_substreams as u64;
        let live = (core.inbound + core.conn.unaccepted()) as u64;
        core.conn.set_accepts_awaited(core.opening.is_tight(max));
        let Some(next) = core.opening.due(live, max) else {
            return false;
        };
        core.scratch.clear();
        Message::substream_limit(next).encode_into(&mut core.scratch);
        if core.carrier.write_notice(&core.scratch) != Written::Taken {
            // Busy: `Writable` follows, and with it another round.
            return false;
        }
        core.opening.announced = next;
        true
    }
}

/// Requests that still wait when the connection ends.
impl SubstreamLimits {
    pub(super) fn fail(&mut self, cause: &ConnectionError) {
        if let Some(request) = self.waiting.take() {
            let _ = request
                .reply
                .send(Err(OpenError::Connection(cause.clone())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announced(total: u64) -> SubstreamLimits {
        let mut opening = SubstreamLimits::new(true);
        opening.announced = total;
        opening
    }

    #[test]
    fn few_may_be_opened_before_the_peer_is_known_and_any_number_at_one_without_limits() {
        let mut opening = SubstreamLimits::new(true);
        opening.opened = EARLY_SUBSTREAMS - 1;
        assert!(opening.may_open());
        opening.opened += 1;
        assert!(!opening.may_open());
        opening.on_no_limit();
        opening.opened = 1_000_000;
        assert!(opening.may_open());
        let mut without = SubstreamLimits::new(false);
        without.opened = 1_000_000;
        assert!(without.may_open());
    }

    #[test]
    fn a_limit_is_a_total_that_never_falls() {
        let mut opening = SubstreamLimits::new(true);
        assert!(opening.on_limit(3));
        assert!(!opening.on_limit(2) && !opening.on_limit(3), "no news");
        opening.on_no_limit();
        for _ in 0..3 {
            assert!(opening.may_open());
            opening.opened += 1;
        }
        assert!(!opening.may_open());
        assert!(opening.on_limit(4));
        assert!(opening.may_open());
    }

    #[test]
    fn a_limit_is_told_in_steps_and_at_once_to_who_waits() {
        let mut opening = announced(0);
        assert_eq!(opening.due(0, 256), Some(256), "the first");
        opening.announced = 256;
        opening.peer_opened = 100;
        assert_eq!(opening.due(40, 256), None, "60 are over");
        assert_eq!(opening.due(36, 256), Some(320));
        opening.peer_opened = 256;
        assert_eq!(opening.due(256, 256), None);
        assert_eq!(opening.due(255, 256), Some(257));
    }

    #[test]
    fn more_than_was_told_and_could_be_under_way_is_abuse() {
        let mut opening = announced(10);
        let honest = 10 + EARLY_SUBSTREAMS;
        for _ in 0..honest {
            assert!(!opening.on_opened());
        }
        assert!(opening.on_opened());
        assert!(
            (0..1000).all(|_| !SubstreamLimits::new(true).on_opened()),
            "never told"
        );
    }

    #[test]
    fn numbers_of_the_peer_do_not_overflow() {
        let mut opening = announced(u64::MAX);
        opening.peer_opened = u64::MAX;
        assert!(!opening.on_opened());
        opening.on_limit(u64::MAX);
        assert!(opening.may_open());
        assert_eq!(opening.due(0, u64::MAX), None);
    }
}
