//! The steps of a connection: receive, handle what is due, send, and report events to the driver.

use std::task::{Context, Poll};

use tokio::time::Instant;

use super::engine::{CHANNEL_ZERO, EngineEvent};
use super::reachability::Reachability;
use super::{MAX_UNSENT, Phase, Refusal, WebRtcCarrier, Writers};
use crate::carrier::CarrierEvent;
use crate::error::ConnectionError;
use crate::message::MAX_FRAME;

/// Maximum steps of receiving and sending in one poll.
pub(super) const STEPS_PER_POLL: usize = 16;

/// When received datagrams are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AnswerTime {
    /// Before the events are reported, for a caller that may not poll again.
    AtOnce,
    /// After the driver has handled the events: what it writes then shares packets with the
    /// acknowledgement.
    NextStep,
}

impl WebRtcCarrier {
    /// Drives the engine and returns its next event. Received datagrams are answered before.
    pub(crate) fn poll_engine(&mut self, cx: &mut Context<'_>) -> Poll<EngineEvent> {
        self.poll_steps(cx, AnswerTime::AtOnce)
    }

    pub(super) fn poll_steps(
        &mut self,
        cx: &mut Context<'_>,
        answer: AnswerTime,
    ) -> Poll<EngineEvent> {
        for _ in 0..STEPS_PER_POLL {
            if let Some(event) = self.next_event() {
                return Poll::Ready(event);
            }
            let moved = self.step(cx, answer);
            if !moved {
                let event = self.next_event().or_else(|| self.poll_port_watch(cx));
                return event.map_or(Poll::Pending, Poll::Ready);
            }
        }
        // Yields to the driver's other work.
        cx.waker().wake_by_ref();
        self.next_event().map_or(Poll::Pending, Poll::Ready)
    }

    fn poll_port_watch(&mut self, cx: &mut Context<'_>) -> Option<EngineEvent> {
        let remote = self.source.dialled()?;
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
        if matches!(self.refusal, Refusal::Received) {
            self.refusal = Refusal::NotExpected;
            return Some(EngineEvent::Refused);
        }
        let now = Instant::now();
        let event = self.next_of_engine().or_else(|| {
            let is_silent = self.lifetime.silent_at().is_some_and(|at| at <= now);
            let is_consent_expired = |to: &mut Reachability| to.is_consent_expired(now);
            (is_silent || self.reachability.as_mut().is_some_and(is_consent_expired))
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

    /// Receives, handles timeouts, polls the engine and sends. Returns `false` when there was
    /// nothing to do; then all wakers are registered.
    fn step(&mut self, cx: &mut Context<'_>, answer: AnswerTime) -> bool {
        if self.unsent.len() > MAX_UNSENT {
            // Datagrams that are not received are dropped by the kernel or the inbox, as on any
            // full link.
            return self.send(cx);
        }
        let owes_answer = std::mem::take(&mut self.owes_answer);
        let received = !owes_answer && self.phase != Phase::Ended && self.receive(cx);
        let now = Instant::now();
        if received
            && answer == AnswerTime::NextStep
            && self.engine.take_in(now.into_std(), &mut self.unsent)
        {
            if self.engine.take_heard(received) {
                self.lifetime.heard(now);
            }
            self.owes_answer = true;
            return true;
        }
        let timed_out = self.timer.as_mut().poll(cx).is_ready() && self.phase != Phase::Ended;
        if timed_out {
            if self.engine_timeout <= now {
                self.engine.handle_timeout(now.into_std());
            }
            self.close_overdue(now);
            self.watch_source(now);
            self.check_liveness(now);
            self.dirty = true;
        }
        let polled = std::mem::take(&mut self.dirty);
        if polled {
            let next = self.engine.poll(now.into_std(), &mut self.unsent);
            self.engine_timeout = Instant::from_std(next);
            self.set_timer(now);
        }
        if self.engine.take_heard(received) {
            self.lifetime.heard(now);
        }
        let sent = self.send(cx);
        if timed_out {
            self.unsent.handle_timeout();
        }
        self.unsent.trim();
        let armed = self.arm_source_watch(now);
        received || owes_answer || polled || sent || armed || self.dirty
    }

    /// The events of the handshake, and unread notices.
    pub(super) fn next_early(&mut self, cx: &mut Context<'_>) -> Option<CarrierEvent> {
        if let Some(event) = self.early.pop_front() {
            return Some(event);
        }
        if self.notices.unread {
            return self.read_notice(cx);
        }
        None
    }

    /// Translates an event of the engine for the driver.
    pub(super) fn report(
        &mut self,
        event: EngineEvent,
        cx: &mut Context<'_>,
    ) -> Option<Result<CarrierEvent, ConnectionError>> {
        match event {
            EngineEvent::Carrier(CarrierEvent::Writable) => {
                // Acknowledgements arrive all the time. Only a refused writer needs the event, and
                // only when there is room for a whole frame.
                let is_due = match self.writers {
                    Writers::Idle => false,
                    Writers::NeedRoom => self.has_room(MAX_FRAME),
                    Writers::NeedChannel => true,
                };
                is_due.then(|| {
                    self.writers = Writers::Idle;
                    Ok(CarrierEvent::Writable)
                })
            }
            EngineEvent::Carrier(CarrierEvent::Readable { channel }) if channel == CHANNEL_ZERO => {
                self.read_notice(cx).map(Ok)
            }
            EngineEvent::Carrier(event) => Some(Ok(event)),
            EngineEvent::Ended(cause) => {
                self.phase = Phase::Ended;
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
