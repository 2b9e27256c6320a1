//! The turns of a connection: what comes in, what is due and what goes out, and what the driver hears
//! of it.

use std::task::{Context, Poll};

use tokio::time::Instant;

use super::engine::{CHANNEL_ZERO, EngineEvent};
use super::reachability::Reachability;
use super::{MAX_UNSENT, Source, WebRtcCarrier};
use crate::carrier::CarrierEvent;
use crate::error::ConnectionError;
use crate::message::MAX_FRAME;

/// Turns of receiving and sending before events are looked at again.
pub(super) const TURNS_PER_POLL: usize = 16;

/// When what was received is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Before its events are reported, to a caller that may not come again.
    AtOnce,
    /// When the driver has handled the events: what it writes then shares packets with the
    /// acknowledgement.
    NextTurn,
}

impl WebRtcCarrier {
    /// Drives the engine and returns its next event. The peer has its answer by then.
    pub(crate) fn poll_engine(&mut self, cx: &mut Context<'_>) -> Poll<EngineEvent> {
        self.poll_turns(cx, Answer::AtOnce)
    }

    pub(super) fn poll_turns(&mut self, cx: &mut Context<'_>, answer: Answer) -> Poll<EngineEvent> {
        for _ in 0..TURNS_PER_POLL {
            if let Some(event) = self.next_event() {
                return Poll::Ready(event);
            }
            let moved = self.turn(cx, answer);
            if !moved {
                let event = self.next_event().or_else(|| self.poll_port_watch(cx));
                return event.map_or(Poll::Pending, Poll::Ready);
            }
        }
        // More to do, but the driver has other work too.
        cx.waker().wake_by_ref();
        self.next_event().map_or(Poll::Pending, Poll::Ready)
    }

    fn poll_port_watch(&mut self, cx: &mut Context<'_>) -> Option<EngineEvent> {
        let Source::Socket { remote } = self.source else {
            return None;
        };
        let Poll::Ready(source) = self.port_watch.as_mut()?.as_mut().poll(cx) else {
            return None;
        };
        self.port_watch = None;
        Some(EngineEvent::Unreachable { remote, source })
    }

    fn next_of_engine(&mut self) -> Option<EngineEvent> {
        loop {
            let event = EngineEvent::from_engine(self.engine.next_event()?);
            if event.is_some() {
                return event;
            }
        }
    }

    pub(super) fn next_event(&mut self) -> Option<EngineEvent> {
        if std::mem::take(&mut self.refused_by_peer) {
            return Some(EngineEvent::Refused);
        }
        let now = Instant::now();
        let event = self.next_of_engine().or_else(|| {
            let is_silent = self.lifetime.silent_at().is_some_and(|at| at <= now);
            let is_unwanted = |to: &mut Reachability| to.is_unwanted(now);
            (is_silent || self.reachability.as_mut().is_some_and(is_unwanted))
                .then_some(EngineEvent::Ended(ConnectionError::TimedOut))
        });
        if let Some(reachability) = &mut self.reachability {
            match &event {
                Some(EngineEvent::DtlsConnected(_)) => reachability.handshake_completed(now),
                Some(EngineEvent::AddressValidated(address)) => {
                    reachability.validated(*address, now);
                }
                _ => {}
            }
        }
        event
    }

    /// Receives, lets time pass, polls the engine and sends. `false` when nothing moved and the
    /// wake-ups for all of that are arranged.
    fn turn(&mut self, cx: &mut Context<'_>, answer: Answer) -> bool {
        if self.unsent.len() > MAX_UNSENT {
            // What is not fed is dropped by the kernel or the inbox, like on any full link.
            return self.send(cx);
        }
        let owes_answer = std::mem::take(&mut self.owes_answer);
        let received = !owes_answer && !self.ended && self.receive(cx);
        let now = Instant::now();
        if received
            && answer == Answer::NextTurn
            && self.engine.take_in(now.into_std(), &mut self.unsent)
        {
            if self.engine.take_heard(received) {
                self.lifetime.heard(now);
            }
            self.owes_answer = true;
            return true;
        }
        if self.timer.as_mut().poll(cx).is_ready() && !self.ended {
            if self.engine_timeout <= now {
                self.engine.handle_timeout(now.into_std());
            }
            self.close_overdue(now);
            self.watch_source(now);
            self.ask_for_life(now);
            self.dirty = true;
        }
        let polled = std::mem::take(&mut self.dirty);
        if polled {
            let next = self.engine.poll(now.into_std(), &mut self.unsent);
            self.engine_timeout = Instant::from_std(next);
            self.set_timer(now);
            self.account(now);
        }
        if self.engine.take_heard(received) {
            self.lifetime.heard(now);
        }
        let sent = self.send(cx);
        let armed = self.arm_source_watch(now);
        received || owes_answer || polled || sent || armed || self.dirty
    }

    /// What happened before the driver began, and frames about the connection that wait to be read.
    pub(super) fn next_early(&mut self, cx: &mut Context<'_>) -> Option<CarrierEvent> {
        if let Some(event) = self.early.pop_front() {
            return Some(event);
        }
        if self.notices.unread {
            return self.read_notice(cx);
        }
        None
    }

    /// What the driver hears of an event of the engine.
    pub(super) fn report(
        &mut self,
        event: EngineEvent,
        cx: &mut Context<'_>,
    ) -> Option<Result<CarrierEvent, ConnectionError>> {
        match event {
            EngineEvent::Carrier(CarrierEvent::Writable) => {
                // Acknowledgements come all the time; only who was refused wants to know,
                // and only once there is room for a whole frame.
                let is_wanted = self.not_open || (self.refused && self.has_room(MAX_FRAME));
                is_wanted.then(|| {
                    self.refused = false;
                    self.not_open = false;
                    Ok(CarrierEvent::Writable)
                })
            }
            EngineEvent::Carrier(CarrierEvent::Readable { channel }) if channel == CHANNEL_ZERO => {
                self.read_notice(cx).map(Ok)
            }
            EngineEvent::Carrier(event) => Some(Ok(event)),
            EngineEvent::Ended(cause) => {
                self.ended = true;
                Some(Err(cause.explained(self.notices.goodbye.take())))
            }
            EngineEvent::Refused
            | EngineEvent::Unreachable { .. }
            | EngineEvent::IceConnected
            | EngineEvent::AddressValidated(_)
            | EngineEvent::DtlsConnected(_)
            | EngineEvent::ChannelZeroOpen => None,
        }
    }
}
