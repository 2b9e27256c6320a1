//! The graceful end of a connection: no new substreams, and a close when none is left.
//!
//! ```text
//! this side   drain() ─► DRAINING ─────────────► (N have come, and none is left) close
//! the peer                 └─► opens fail, OPENED N
//! ```
//!
//! The answer counts, so that a substream that the peer opened before it knew, and whose packets
//! were lost, is waited for, for a while. A peer that does not answer in time, or that has no
//! support for notices, is not waited for: its new substreams are refused, as are those that an
//! answer does not count.

use super::closing::DriverPhase;
use super::deadlines::{DeadlineKind, NO_CHANNEL};
use super::driver::Driver;
use super::peer_credit::PeerCredit;
#[cfg(doc)]
use super::shared::ConnectionShared;
use crate::carrier::{Carrier, Written};
use crate::message::Message;

/// What was said about the end of new substreams, in both directions.
#[derive(Debug, Default)]
pub(super) struct Draining {
    /// The peer was told.
    is_announced: bool,
    /// Substreams that the peer has opened in total: its answer.
    peer_opened: Option<u64>,
    /// The time for the answer, or for what it counts, has begun, and is over.
    is_timed: bool,
    is_overdue: bool,
    /// The peer has told us ([`ConnectionShared::is_drained_by_peer`]) and was answered.
    is_answered: bool,
}

impl<C: Carrier> Driver<C> {
    /// Whether new substreams are not to be opened.
    pub(super) fn opens_no_more(&self) -> bool {
        self.conn.is_drained_by_peer() || self.conn.is_draining()
    }

    /// Whether the substream that the peer has just opened is refused: it can not be told, or its
    /// answer has not counted this one, or there is none.
    pub(super) fn takes_no_more(&self) -> bool {
        let is_over = || match self.draining.peer_opened {
            Some(opened) => self.limits.peer_opened() > opened,
            None => self.draining.is_overdue,
        };
        self.conn.is_draining() && (self.is_untold() || is_over())
    }

    /// The peer is known to have no support for notices.
    fn is_untold(&self) -> bool {
        self.credit == PeerCredit::Unsupported || !self.carrier.carries_notices()
    }

    /// The peer can be told now.
    fn can_tell(&self) -> bool {
        self.credit.is_supported() && self.carrier.carries_notices()
    }

    /// Bounds the wait for the answer, and then for the substreams that it counts: the peer may
    /// count what never comes. Returns whether the deadline was set now, so that another
    /// round arranges the wake-up for it.
    fn limit_wait_for_answer(&mut self) -> bool {
        let timeout = self.conn.config.open_timeout;
        !std::mem::replace(&mut self.draining.is_timed, true)
            && self
                .deadlines
                .set(NO_CHANNEL, DeadlineKind::Draining, timeout)
    }

    pub(super) fn on_draining_timeout(&mut self) {
        self.draining.is_overdue = true;
    }

    /// Takes what a notice says of it. Returns whether that is news.
    pub(super) fn on_draining_notice(&mut self, notice: &Message) -> bool {
        let mut is_news = false;
        if notice.draining && !self.conn.is_drained_by_peer() {
            self.conn.set_drained_by_peer();
            // It runs this library.
            self.credit.on_max_data();
            is_news = true;
        }
        if let Some(opened) = notice.opened
            && self.draining.is_announced
            && self.draining.peer_opened.is_none()
        {
            self.draining.peer_opened = Some(opened);
            // The time begins anew.
            (self.draining.is_timed, self.draining.is_overdue) = (false, false);
            self.deadlines.cancel(NO_CHANNEL, DeadlineKind::Draining);
            is_news = true;
        }
        is_news
    }

    /// Tells the peer, and answers it. Returns whether anything was sent, or a deadline set.
    pub(super) fn tell_draining(&mut self) -> bool {
        if self.phase != DriverPhase::Running {
            return false;
        }
        let mut has_told = self.conn.is_draining() && self.limit_wait_for_answer();
        if !self.can_tell() {
            return has_told;
        }
        if self.conn.is_draining() && !self.draining.is_announced {
            // Busy: `Writable` follows, and with it another round.
            let written = self
                .writer
                .write_notice(&mut self.carrier, &Message::draining());
            self.draining.is_announced = written == Written::Taken;
            has_told |= self.draining.is_announced;
        }
        if self.conn.is_drained_by_peer() && !self.draining.is_answered {
            let answer = Message::opened(self.limits.opened());
            let written = self.writer.write_notice(&mut self.carrier, &answer);
            self.draining.is_answered = written == Written::Taken;
            has_told |= self.draining.is_answered;
        }
        has_told
    }

    /// Whether this side drains, and nothing is left to wait for.
    pub(super) fn is_drained(&self) -> bool {
        let has_met_all = || match self.draining.peer_opened {
            _ if self.draining.is_overdue => true,
            Some(opened) => self.limits.peer_opened() >= opened,
            None => self.is_untold(),
        };
        self.conn.is_draining()
            && self.substreams.is_empty()
            && self.negotiations.is_empty()
            && self.conn.unaccepted() == 0
            && has_met_all()
    }
}
