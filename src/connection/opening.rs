//! Opens substreams, in both directions, within the limits of both sides.
//!
//! Limits work like QUIC's MAX_STREAMS (RFC 9000 section 4.6): a limit counts substreams from the
//! start of the connection, so it never falls and a repetition is harmless. Substreams that have
//! ended, and that the application has accepted, make room for others. Limits are sent in frames
//! about the connection to peers that support credit; substreams that other peers open beyond it
//! are refused.

use std::sync::Arc;

use super::closing::DriverPhase;
use super::deadlines::{DeadlineKind, NO_CHANNEL};
use super::driver::Driver;
use super::error::OpenError;
use super::peer_credit::{PeerCredit, PeerLimit};
use super::shared::OpenRequest;
use super::work::{OTHERS_PER_ROUND, UNITS_PER_OPENING};
use crate::carrier::{Carrier, ChannelId, OpenChannelError, Written};
use crate::error::ConnectionError;
use crate::events::Initiator;
use crate::message::Message;
use crate::substream::{ReceiveBuffer, SendBuffer, Shared, Substream, code};

/// Substreams that may be opened before the peer's limit is known, including those that have ended
/// here and may not have ended there. js-libp2p accepts 64 of one protocol from one peer.
pub(super) const EARLY_SUBSTREAMS: u64 = 64;

/// The limits of a connection, in both directions.
#[derive(Debug)]
pub(super) struct SubstreamLimits {
    /// Whether a limit of the peer can arrive.
    carries_notices: bool,
    /// Substreams that this side has opened.
    opened: u64,
    /// The first request that has to wait for room.
    waiting: Option<OpenRequest>,
    /// Substreams that the peer has opened, including refused ones.
    peer_opened: u64,
    /// The last limit that was sent to the peer; zero before the first.
    announced: u64,
}

impl SubstreamLimits {
    pub(super) fn new(carries_notices: bool) -> Self {
        Self {
            carries_notices,
            opened: 0,
            waiting: None,
            peer_opened: 0,
            announced: 0,
        }
    }

    /// Substreams that this side has opened in total.
    pub(super) fn opened(&self) -> u64 {
        self.opened
    }

    /// Substreams that the peer has opened in total, including refused ones.
    pub(super) fn peer_opened(&self) -> u64 {
        self.peer_opened
    }

    /// The peer has opened a substream. Returns whether that exceeds the announced limit by more
    /// than could have been in flight when it was sent.
    fn on_opened(&mut self) -> bool {
        self.peer_opened = self.peer_opened.saturating_add(1);
        let allowed = self.announced.saturating_add(EARLY_SUBSTREAMS);
        self.announced > 0 && self.peer_opened > allowed
    }

    /// Whether the last substream that the peer has opened is within the announced limit.
    fn has_promised(&self) -> bool {
        self.peer_opened <= self.announced
    }

    /// Whether opens wait for the peer to announce its limit, or to show that it has none.
    fn awaits_limit(&self, peer: PeerCredit) -> bool {
        self.carries_notices && peer.awaits_limit()
    }

    /// Whether this side may open a substream.
    fn may_open(&self, peer: PeerCredit) -> bool {
        match peer {
            PeerCredit::Supported(PeerLimit::Total(total)) => self.opened < total,
            _ => self.opened < EARLY_SUBSTREAMS || !self.awaits_limit(peer),
        }
    }

    /// The limit to announce now, when `live` of the peer's substreams have not ended: not for
    /// every end, but before the peer has to wait.
    fn due(&self, live: u64, max: u64) -> Option<u64> {
        let next = self.peer_opened.saturating_sub(live).saturating_add(max);
        let more = next.saturating_sub(self.announced);
        let is_waiting = self.peer_opened >= self.announced;
        (more > 0 && (is_waiting || more >= max.div_ceil(4))).then_some(next)
    }

    /// Whether the peer has used up most of its limit, so that every end counts.
    fn is_tight(&self, max: u64) -> bool {
        self.announced > 0 && self.announced.saturating_sub(self.peer_opened) < max.div_ceil(2)
    }

    /// Fails the request that still waits when the connection ends.
    pub(super) fn fail(&mut self, cause: &ConnectionError) {
        if let Some(request) = self.waiting.take() {
            let error = OpenError::Connection(cause.clone());
            let _ = request.reply.send(Err(error));
        }
    }
}

impl<C: Carrier> Driver<C> {
    /// Opens the requested substreams, as far as the peer accepts them.
    pub(super) fn open_requested(&mut self) -> bool {
        let mut moved = false;
        for _ in 0..OTHERS_PER_ROUND {
            let refusal = if self.phase != DriverPhase::Running {
                Some(OpenError::Connection(ConnectionError::ClosedLocally))
            } else {
                self.opens_no_more().then_some(OpenError::Draining)
            };
            if refusal.is_none() && !self.limits.may_open(self.credit) {
                break;
            }
            let waiting = self.limits.waiting.take();
            let Some(request) = waiting
                .filter(|request| !request.reply.is_closed())
                .or_else(|| self.conn.next_open())
            else {
                break;
            };
            if let Some(error) = refusal {
                let _ = request.reply.send(Err(error));
                moved = true;
                continue;
            }
            let result = self.carrier.open(&request.label);
            if result == Err(OpenChannelError::NotNow) {
                // `Writable` follows, and with it another round.
                self.limits.waiting = Some(request);
                break;
            }
            moved = true;
            self.work.spend(UNITS_PER_OPENING);
            let result = result.map_err(OpenError::Channel).map(|channel| {
                self.limits.opened += 1;
                self.conn.counters.opened.add(1);
                self.insert(channel, Initiator::Local)
            });
            // A caller that has given up drops the substream, which then closes itself.
            let _ = request.reply.send(result);
        }
        self.limit_wait_for_limit() || moved
    }

    /// Bounds the time that opens wait for the limit of a silent peer. Returns whether the deadline
    /// was set now, so that another round arranges the wake-up for it.
    fn limit_wait_for_limit(&mut self) -> bool {
        let timeout = self.conn.config.open_timeout;
        self.limits.awaits_limit(self.credit)
            && self.conn.has_opens()
            && self
                .deadlines
                .set(NO_CHANNEL, DeadlineKind::Opening, timeout)
    }

    /// The peer has opened a channel.
    pub(super) fn on_opened(&mut self, channel: ChannelId, label: String) {
        self.work.spend(UNITS_PER_OPENING);
        if self.limits.on_opened() && self.phase == DriverPhase::Running {
            self.substreams.unused.count();
        }
        let is_running = self.phase == DriverPhase::Running;
        if !is_running || self.conn.is_unreachable() || self.takes_no_more() {
            return self.refuse(channel, code::SHUTDOWN);
        }
        // A substream that ended unaccepted is not inbound any more, but still takes memory.
        let max = self.conn.max_inbound_substreams();
        let is_full = self.substreams.inbound() >= max || self.conn.unaccepted() >= max;
        // A limit that was lowered since it was announced does not hold for what was promised.
        let is_promised =
            self.limits.has_promised() && self.conn.unaccepted() < self.conn.greatest_max_inbound();
        if is_full && !is_promised {
            return self.refuse(channel, code::RESOURCE_LIMIT);
        }
        let substream = self.insert(channel, Initiator::Remote);
        self.conn.counters.accepted.add(1);
        let config = Arc::clone(&self.conn.config);
        let labels = self.conn.takes_labels;
        let begun = self.negotiations.begin(substream, label, labels, &config);
        if let Some(outcome) = begun {
            self.on_negotiated(outcome);
        }
    }

    fn refuse(&mut self, channel: ChannelId, code: u32) {
        // Not counted during a close, which ends by itself and has data to deliver until then.
        if self.phase == DriverPhase::Running {
            self.substreams.unused.count_refused();
        }
        self.conn.counters.refused.add(1);
        self.conn
            .emit(|events, connection| events.substream_refused(connection, code));
        // The channel ends here, whether the carrier takes the frame or not.
        let message = Message::reset(code);
        let _ = self
            .writer
            .write_uncounted(&mut self.carrier, channel, &message);
        self.carrier.close_channel(channel);
    }

    fn insert(&mut self, channel: ChannelId, origin: Initiator) -> Substream {
        let config = &self.conn.config;
        let send = SendBuffer::new(config.send_buffer, self.max_frame_payload());
        let window = self.conn.receive_window();
        let receive = ReceiveBuffer::new(window.into(), config.max_receive_window.into());
        let siblings = Arc::clone(&self.conn.siblings);
        let shared = Shared::new(channel, origin, siblings, send, receive);
        self.substreams.insert(Arc::clone(&shared), window);
        if self.carrier.knows_credit() {
            // The first credit is sent at once, together with the open on the side that opens.
            shared.request_service();
        }
        Substream::new(shared)
    }

    /// Announces to the peer how many substreams it may open, if that is due.
    pub(super) fn announce_limit(&mut self) -> bool {
        if !self.credit.is_supported()
            || self.phase != DriverPhase::Running
            || !self.carrier.carries_notices()
        {
            return false;
        }
        let max = self.conn.max_inbound_substreams() as u64;
        // Before the count: who accepts one after it wakes the driver.
        self.conn.set_accepts_awaited(self.limits.is_tight(max));
        // Those that wait for the application and have not ended are inbound.
        let live = (self.substreams.inbound() + self.conn.ended_unaccepted()) as u64;
        let Some(next) = self.limits.due(live, max) else {
            return false;
        };
        let message = Message::substream_limit(next);
        if self.writer.write_notice(&mut self.carrier, &message) != Written::Taken {
            // Busy: `Writable` follows, and with it another round.
            return false;
        }
        self.limits.announced = next;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNKNOWN: PeerCredit = PeerCredit::Unknown;

    fn total(total: u64) -> PeerCredit {
        PeerCredit::Supported(PeerLimit::Total(total))
    }

    fn announced(total: u64) -> SubstreamLimits {
        let mut limits = SubstreamLimits::new(true);
        limits.announced = total;
        limits
    }

    #[test]
    fn few_may_be_opened_before_the_peer_is_known_and_any_number_at_one_without_limits() {
        let mut limits = SubstreamLimits::new(true);
        limits.opened = EARLY_SUBSTREAMS - 1;
        assert!(limits.may_open(UNKNOWN));
        limits.opened += 1;
        assert!(!limits.may_open(UNKNOWN));
        assert!(!limits.may_open(PeerCredit::Supported(PeerLimit::Awaited)));
        limits.opened = 1_000_000;
        assert!(limits.may_open(PeerCredit::Unsupported));
        assert!(limits.may_open(PeerCredit::Supported(PeerLimit::Unlimited)));
        let mut without = SubstreamLimits::new(false);
        without.opened = 1_000_000;
        assert!(without.may_open(UNKNOWN));
    }

    #[test]
    fn a_limit_is_a_total_that_never_falls() {
        let mut limits = SubstreamLimits::new(true);
        let mut credit = UNKNOWN;
        assert!(credit.on_max_substreams(3));
        assert!(
            !credit.on_max_substreams(2) && !credit.on_max_substreams(3),
            "no effect"
        );
        credit.on_payload_without_credit();
        credit.on_silence();
        for _ in 0..3 {
            assert!(limits.may_open(credit));
            limits.opened += 1;
        }
        assert!(!limits.may_open(credit));
        assert!(credit.on_max_substreams(4));
        assert!(limits.may_open(credit));
    }

    #[test]
    fn a_limit_is_announced_in_steps_and_at_once_to_a_peer_that_waits() {
        let mut limits = announced(0);
        assert_eq!(limits.due(0, 256), Some(256), "the first");
        limits.announced = 256;
        limits.peer_opened = 100;
        assert_eq!(limits.due(40, 256), None, "60 are over");
        assert_eq!(limits.due(36, 256), Some(320));
        limits.peer_opened = 256;
        assert_eq!(limits.due(256, 256), None);
        assert_eq!(limits.due(255, 256), Some(257));
    }

    #[test]
    fn more_than_was_announced_and_could_be_in_flight_is_abuse() {
        let mut limits = announced(10);
        let honest = 10 + EARLY_SUBSTREAMS;
        for _ in 0..honest {
            assert!(!limits.on_opened());
        }
        assert!(limits.on_opened());
        assert!(
            (0..1000).all(|_| !SubstreamLimits::new(true).on_opened()),
            "never announced"
        );
    }

    #[test]
    fn numbers_of_the_peer_do_not_overflow() {
        let mut limits = announced(u64::MAX);
        limits.peer_opened = u64::MAX;
        assert!(!limits.on_opened());
        assert!(limits.may_open(total(u64::MAX)));
        assert_eq!(limits.due(0, u64::MAX), None);
    }
}
