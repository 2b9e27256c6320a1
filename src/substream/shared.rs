//! State shared by the handles of a substream and the driver of its connection.
//!
//! The state is one atomic word, changed only by [`Shared::apply`], which stores the next state
//! **and** wakes the tasks that the previous one may have blocked. The two buffers are behind
//! mutexes that are held for one copy at most. The wakers:
//!
//! | waker | registered by | woken by |
//! |---|---|---|
//! | `reader` | `poll_read` and its kin, one read half | payload, FIN, reset, loss |
//! | `writer` | `poll_write`, one write half | room in the buffer, stop, reset, loss |
//! | `flusher` | `poll_flush` | the buffer became empty, stop, reset, loss |
//! | `closer` | `poll_shutdown`, `finish`, `stopped` | every change of the write half |
//!
//! Each half has one owner, so each waker has one place of registration; a later poll replaces the
//! waker of an earlier one, as the contract of `poll` requires.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use atomic_waker::AtomicWaker;
use bytes::Bytes;

use super::recv::ReceiveBuffer;
use super::send::{Chunk, SendBuffer};
use super::siblings::Siblings;
use super::state::{
    Effects, FinishedAs, ReadPermit, ReadState, State, SubstreamEvent, WritePermit, WriteState,
};
use crate::carrier::ChannelId;
use crate::error::code;
use crate::error::{CloseOutcome, SubstreamError};
use crate::events::SubstreamStats;
use crate::events::{Initiator, SubstreamInfo};

mod outcome;
mod reading;

use outcome::AtomicCode;

/// The shared state of one substream.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) id: ChannelId,
    /// The side that opened it.
    pub(crate) origin: Initiator,
    /// The connection this substream belongs to.
    pub(crate) siblings: Arc<Siblings>,
    /// Span of everything that is logged about the substream.
    span: tracing::Span,
    state: AtomicU32,
    /// The code of the RESET_STREAM that was received or has to be sent.
    reset_code: AtomicCode,
    /// The code of a STOP_SENDING that was received.
    stop_code: AtomicCode,
    /// The code of a STOP_SENDING that has to be sent.
    own_stop_code: AtomicCode,
    /// The close of the connection stopped the read half before FIN.
    cut_off: AtomicBool,
    /// The code with which a drop of the writer resets, instead of ending the stream.
    reset_on_drop: AtomicCode,
    send: Mutex<SendBuffer>,
    receive: Mutex<ReceiveBuffer>,
    reader: AtomicWaker,
    writer: AtomicWaker,
    flusher: AtomicWaker,
    closer: AtomicWaker,
    /// Set while this substream is in the connection's ready queue, so that it is queued once.
    queued: AtomicBool,
    /// Handles that were dropped: [`READER_DROPPED`] and [`WRITER_DROPPED`].
    dropped: AtomicU8,
    /// What the application has done with it, as a [`Usage`].
    usage: AtomicU8,
}

/// What the application has done with a substream that the peer opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Usage {
    /// Not visible to the application yet.
    Negotiating,
    /// Waits to be accepted.
    Waiting,
    /// Accepted.
    Accepted,
    /// Data was read.
    Read,
    /// Data was written.
    Answered,
}

/// Length of the longest message that known carriers deliver.
const LONG_MESSAGE: usize = 64 * 1024;

const READER_DROPPED: u8 = 1;
const WRITER_DROPPED: u8 = 2;

/// The buffers hold plain bytes and are consistent between any two statements: a panic of another
/// holder (such as an allocation failure) leaves nothing inconsistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(
        id: ChannelId,
        origin: Initiator,
        siblings: Arc<Siblings>,
        send: SendBuffer,
        receive: ReceiveBuffer,
    ) -> Arc<Self> {
        let span = tracing::debug_span!(
            target: "anabranch",
            parent: &siblings.span,
            "substream",
            id = id.get(),
        );
        Arc::new(Self {
            id,
            origin,
            siblings,
            span,
            state: AtomicU32::new(State::INITIAL.pack()),
            reset_code: AtomicCode::new(),
            stop_code: AtomicCode::new(),
            own_stop_code: AtomicCode::new(),
            cut_off: AtomicBool::new(false),
            reset_on_drop: AtomicCode::new(),
            send: Mutex::new(send),
            receive: Mutex::new(receive),
            reader: AtomicWaker::new(),
            writer: AtomicWaker::new(),
            flusher: AtomicWaker::new(),
            closer: AtomicWaker::new(),
            queued: AtomicBool::new(false),
            dropped: AtomicU8::new(0),
            usage: AtomicU8::new(Usage::Negotiating as u8),
        })
    }

    /// Identifies this substream in events.
    pub(crate) fn info(&self) -> SubstreamInfo {
        SubstreamInfo {
            id: self.id.get(),
            initiator: self.origin,
        }
    }

    pub(crate) fn state(&self) -> State {
        State::unpack(self.state.load(Ordering::Acquire))
    }

    pub(crate) fn send_buffer(&self) -> MutexGuard<'_, SendBuffer> {
        lock(&self.send)
    }

    fn receive_buffer(&self) -> MutexGuard<'_, ReceiveBuffer> {
        lock(&self.receive)
    }

    /// Changes the state and wakes every task that the previous one may have blocked.
    ///
    /// The only function that stores a state. Returns the effects, of which the driver handles the
    /// rest.
    pub(crate) fn apply(self: &Arc<Self>, event: SubstreamEvent) -> Effects {
        let mut word = self.state.load(Ordering::Acquire);
        let (before, after, effects) = loop {
            let before = State::unpack(word);
            let (after, effects) = before.on(event);
            match self.state.compare_exchange_weak(
                word,
                after.pack(),
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => break (before, after, effects),
                Err(now) => word = now,
            }
        };
        if before != after {
            self.span.in_scope(|| {
                tracing::trace!(target: "anabranch::substream", ?event, ?before, ?after, "state");
            });
        }
        if effects.contains(Effects::DISCARD_SEND) {
            self.with_queued(SendBuffer::discard);
        }
        if effects.contains(Effects::DISCARD_RECEIVED) {
            self.with_received(ReceiveBuffer::discard);
        }
        if before.keeps_payload() && !after.keeps_payload() {
            self.with_received(ReceiveBuffer::complete);
        }
        if effects.contains(Effects::WAKE_READER) {
            self.reader.wake();
        }
        if effects.contains(Effects::WAKE_WRITERS) {
            self.wake_writers();
        }
        if effects.contains(Effects::SERVICE) {
            self.request_service();
        }
        effects
    }

    fn wake_writers(&self) {
        self.writer.wake();
        self.flusher.wake();
        self.closer.wake();
    }

    /// Puts this substream into the ready queue of its connection, once, and wakes the driver.
    pub(crate) fn request_service(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.siblings.push_ready(Arc::clone(self));
        }
    }

    /// The driver took this substream from the ready queue and will service it.
    pub(crate) fn begin_service(&self) {
        self.queued.store(false, Ordering::Release);
    }

    pub(crate) fn set_usage(&self, usage: Usage) {
        self.usage.store(usage as u8, Ordering::Relaxed);
    }

    pub(crate) fn usage(&self) -> Usage {
        const ALL: [Usage; 5] = [
            Usage::Negotiating,
            Usage::Waiting,
            Usage::Accepted,
            Usage::Read,
            Usage::Answered,
        ];
        let number = usize::from(self.usage.load(Ordering::Relaxed));
        ALL.get(number).copied().unwrap_or(Usage::Answered)
    }

    /// Records a read or write by the application; the negotiation before it does not count.
    fn record_usage(&self, usage: Usage) {
        if (Usage::Accepted..usage).contains(&self.usage()) {
            self.set_usage(usage);
        }
    }

    /// Whether both handles were dropped.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.dropped.load(Ordering::Acquire) == READER_DROPPED | WRITER_DROPPED
    }

    // Called by the driver.

    /// Accepts payload from the peer. An error is the code to reset the substream with.
    pub(crate) fn receive_payload(&self, payload: Bytes) -> Result<(), u32> {
        // A peer that has sent `max_data` supports ours.
        let enforce_credit = self.has_credit();
        let ceiling = self.siblings.unread.ceiling_for_one(self.siblings.ceilings);
        let result = self.with_received(|receive| {
            // Read under the lock: a concurrent stop or reset discards what is queued here.
            let keep = self.state().keeps_payload();
            receive
                .push(payload, keep, enforce_credit)
                .map_err(|_| code::FLOW_CONTROL)?;
            // Granted credit is already accounted for.
            let has_credit = enforce_credit && receive.has_granted();
            let is_bounded = has_credit || self.siblings.is_bounded_by_carrier();
            if !is_bounded && receive.cost() > ceiling {
                return Err(code::RESOURCE_LIMIT);
            }
            Ok(())
        });
        self.reader.wake();
        result
    }

    /// Changes the send buffer and updates the connection's sum of queued bytes.
    fn with_queued<T>(&self, change: impl FnOnce(&mut SendBuffer) -> T) -> T {
        let mut send = self.send_buffer();
        let before = send.queued();
        let result = change(&mut send);
        self.siblings.queued.adjust(before, send.queued());
        result
    }

    /// Changes the receive buffer and updates the connection's sums of unread and committed bytes.
    fn with_received<T>(&self, change: impl FnOnce(&mut ReceiveBuffer) -> T) -> T {
        let mut receive = self.receive_buffer();
        let (cost, committed) = (receive.cost(), receive.committed());
        let result = change(&mut receive);
        self.siblings.unread.adjust(cost, receive.cost());
        self.siblings
            .committed
            .adjust(committed, receive.committed());
        result
    }

    /// The `max_data` to send now: if one is due, or if `first` is set.
    pub(crate) fn credit_offer(&self, first: bool) -> Option<u64> {
        if !self.state().keeps_payload() && !first {
            return None;
        }
        let room = self.siblings.committed.room(self.siblings.ceilings);
        self.receive_buffer().credit_offer(room, first)
    }

    /// The carrier took a `max_data`.
    pub(crate) fn credit_sent(&self, max_data: u64) {
        self.with_received(|receive| receive.granted(max_data));
    }

    /// The peer sent `max_data`, and so accepts frames with this much payload. Returns whether the
    /// grant has an effect.
    pub(crate) fn granted(self: &Arc<Self>, max_data: u64, chunk_payload: usize) -> bool {
        {
            let mut send = self.send_buffer();
            if !send.grant(max_data) {
                return false;
            }
            send.set_chunk_payload(chunk_payload);
        }
        self.request_service();
        true
    }

    /// The peer does not support credit: sending to it is not limited unless it has sent credit on
    /// this substream. Returns whether that lifted a limit.
    pub(crate) fn credit_unsupported(self: &Arc<Self>) -> bool {
        let lifted = self.send_buffer().lift_initial_limit();
        if lifted {
            self.request_service();
        }
        lifted
    }

    /// Whether the peer has sent credit on this substream.
    pub(crate) fn has_credit(&self) -> bool {
        self.send_buffer().has_grant()
    }

    /// Whether credit was sent to the peer on this substream.
    pub(crate) fn has_granted(&self) -> bool {
        self.receive_buffer().has_granted()
    }

    /// Whether our credit bounds what the peer sends.
    pub(crate) fn is_bounded_by_credit(&self) -> bool {
        self.has_credit() && self.has_granted()
    }

    /// Whether data waits for a peer that has sent nothing on this substream.
    pub(crate) fn waits_for_first_credit(&self) -> bool {
        self.send_buffer().waits_for_first_credit()
    }

    /// Whether data waits for the peer's credit.
    pub(crate) fn waits_for_credit(&self) -> bool {
        self.send_buffer().waits_for_credit()
    }

    /// Whether data is queued that the peer's credit allows.
    pub(crate) fn has_sendable_data(&self) -> bool {
        self.send_buffer().is_sendable()
    }

    /// Unread bytes of this substream, with the overhead of their frames.
    pub(crate) fn unread_cost(&self) -> usize {
        self.receive_buffer().cost()
    }

    /// Whether another message may be taken from a carrier that could hold it back: less than
    /// `most` is unread, and the message can reach neither this ceiling nor that of the connection.
    /// An empty buffer always has room.
    pub(crate) fn has_room_unread(&self, most: usize) -> bool {
        let cost = self.unread_cost();
        let ceiling = self.siblings.unread.ceiling_for_one(self.siblings.ceilings);
        let nears_ceiling = cost > ceiling / 2 && cost.saturating_add(LONG_MESSAGE) > ceiling;
        cost == 0 || (cost < most && !nears_ceiling)
    }

    /// The next payload to send, and how much of it, if there is one and the peer's credit allows.
    pub(crate) fn take_data(&self, limit: usize) -> Option<(Chunk, usize)> {
        self.send_buffer().take(limit)
    }

    /// The carrier took the first `length` bytes of the chunk from [`Self::take_data`].
    pub(crate) fn data_sent(&self, chunk: Chunk, length: usize) {
        let (wake_writer, empty) = self.with_queued(|send| {
            if self.state().sends_data() {
                send.sent(chunk, length);
            } else {
                // A stop or reset discarded the queue while the driver held this chunk.
                send.discard();
            }
            (send.is_half_empty(), send.queued() == 0)
        });
        if wake_writer {
            self.writer.wake();
        }
        if empty {
            self.flusher.wake();
        }
    }

    /// The carrier was busy: the chunk from [`Self::take_data`] returns to the front of the queue.
    pub(crate) fn data_refused(&self, chunk: Chunk) {
        let mut send = self.send_buffer();
        if self.state().sends_data() {
            send.put_back(chunk);
        }
    }

    pub(crate) fn received_stop(self: &Arc<Self>, code: Option<u32>) -> Effects {
        if !matches!(
            self.state().write,
            WriteState::Stopped | WriteState::Finished(_)
        ) {
            self.stop_code.set(code);
        }
        self.apply(SubstreamEvent::StopSending)
    }

    pub(crate) fn received_reset(self: &Arc<Self>, code: Option<u32>) -> Effects {
        if self.state().end().is_none() {
            self.reset_code.set(code);
        }
        // The peer sent it after all data that its application had written.
        match code {
            Some(code::SHUTDOWN) => self.apply(SubstreamEvent::CutOffByPeer),
            _ => self.apply(SubstreamEvent::ResetStream),
        }
    }

    pub(crate) fn own_stop_code(&self) -> Option<u32> {
        self.own_stop_code.get().filter(|code| *code != 0)
    }

    pub(crate) fn reset_code(&self) -> Option<u32> {
        self.reset_code.get()
    }

    // Called by the handles.

    pub(crate) fn reset(self: &Arc<Self>, code: u32) {
        if self.state().end().is_none() {
            self.reset_code.set(Some(code));
        }
        self.apply(SubstreamEvent::Reset);
    }

    /// The peer violated the protocol: a reset that keeps data received before.
    pub(crate) fn violated(self: &Arc<Self>, code: u32) {
        if self.state().end().is_none() {
            self.reset_code.set(Some(code));
        }
        self.apply(SubstreamEvent::Violation);
    }

    pub(crate) fn stop(self: &Arc<Self>, code: u32) {
        // The first code wins, even if it was not sent yet.
        if self.state().read == ReadState::Open {
            self.own_stop_code.set(Some(code));
        }
        self.apply(SubstreamEvent::Stop);
    }

    /// The connection closes: like [`Self::stop`], but the application has not asked for it, so its
    /// reads fail instead of returning the end of the stream. A stream that is complete stays
    /// readable.
    pub(crate) fn cut_off(self: &Arc<Self>, code: u32) {
        if self.state().read == ReadState::Open {
            // Stored before the state that makes it visible.
            self.cut_off.store(true, Ordering::Release);
            self.stop(code);
        }
    }

    /// The connection closes: both directions that the application has not ended are cut off.
    pub(crate) fn close(self: &Arc<Self>, code: u32) {
        self.apply(SubstreamEvent::ConnectionClosing);
        self.cut_off(code);
    }

    /// Everything written before the connection began to close was sent.
    pub(crate) fn cut_off_drained(self: &Arc<Self>) {
        if self.state().end().is_none() {
            self.reset_code.set(Some(code::SHUTDOWN));
        }
        self.apply(SubstreamEvent::CutOffDrained);
    }

    /// Makes a drop of the writer reset the substream, unless it was shut down before.
    pub(crate) fn set_reset_on_drop(&self, code: u32) {
        self.reset_on_drop.set(Some(code));
    }

    pub(crate) fn drop_reader(self: &Arc<Self>) {
        self.dropped.fetch_or(READER_DROPPED, Ordering::AcqRel);
        self.stop(0);
        self.request_service();
    }

    pub(crate) fn drop_writer(self: &Arc<Self>) {
        self.dropped.fetch_or(WRITER_DROPPED, Ordering::AcqRel);
        // A panic truncated the stream: FIN would make the part look complete.
        let code = match std::thread::panicking() {
            true => Some(code::PANICKED),
            false => self.reset_on_drop.get(),
        };
        match code {
            // After a shutdown the stream is complete.
            Some(code) if self.state().write == WriteState::Open => self.reset(code),
            _ => drop(self.apply(SubstreamEvent::Shutdown)),
        }
        self.request_service();
    }

    /// Polls for data; `take` gets the buffer and returns what it took, if anything.
    pub(crate) fn poll_read_with<T>(
        self: &Arc<Self>,
        cx: &mut Context<'_>,
        mut take: impl FnMut(&mut ReceiveBuffer) -> Option<T>,
    ) -> Poll<io::Result<Option<T>>> {
        for registered in [false, true] {
            // The state is read before the buffer: after FIN nothing is added to the buffer.
            let permit = self.state().read_permit();
            if let Some(taken) = self.take_received(&mut take) {
                return Poll::Ready(Ok(Some(taken)));
            }
            let permit = match permit {
                // Re-check: a concurrent local reset empties the buffer, which is not the end of
                // the stream.
                ReadPermit::EndOfStream => self.state().read_permit(),
                permit => permit,
            };
            match permit {
                ReadPermit::EndOfStream if self.cut_off.load(Ordering::Acquire) => {
                    let cause = SubstreamError::ConnectionLost(self.siblings.closing_cause());
                    return Poll::Ready(Err(cause.into_read_error()));
                }
                ReadPermit::EndOfStream => return Poll::Ready(Ok(None)),
                ReadPermit::Ended(end) => {
                    return Poll::Ready(Err(self.error(end).into_read_error()));
                }
                ReadPermit::Wait if registered => {}
                // Register, then check again, so that no change in between is missed.
                ReadPermit::Wait => self.reader.register(cx.waker()),
            }
        }
        Poll::Pending
    }

    /// Polls for room to write; `put` gets the buffer and returns how much it took, zero if it
    /// needs more room.
    pub(crate) fn poll_write_with(
        self: &Arc<Self>,
        cx: &mut Context<'_>,
        mut put: impl FnMut(&mut SendBuffer) -> usize,
    ) -> Poll<io::Result<usize>> {
        for registered in [false, true] {
            let written = self.with_queued(|send| {
                // Read under the lock: a concurrent stop either discards these bytes, or is seen
                // here.
                match self.state().write_permit() {
                    WritePermit::Allowed if send.has_room() => Ok(put(send)),
                    WritePermit::Allowed => Ok(0),
                    refused => Err(refused),
                }
            });
            match written {
                Ok(0) => {}
                Ok(written) => {
                    self.record_usage(Usage::Answered);
                    self.request_service();
                    return Poll::Ready(Ok(written));
                }
                Err(refused) => return Poll::Ready(Err(self.write_error(refused))),
            }
            if !registered {
                self.writer.register(cx.waker());
            }
        }
        Poll::Pending
    }

    /// Completes when the carrier has taken every accepted byte.
    pub(crate) fn poll_flush(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        for registered in [false, true] {
            if self.send_buffer().queued() == 0 {
                // Read after the buffer: a reset stores its state before it empties the buffer, and
                // discarded data was not sent.
                let state = self.state();
                return match (state.write, state.end()) {
                    (WriteState::Stopped | WriteState::Finished(FinishedAs::Discarded), _) => {
                        Poll::Ready(Err(self.write_error(WritePermit::Stopped)))
                    }
                    (WriteState::Finished(_), _) | (_, None) => Poll::Ready(Ok(())),
                    (_, Some(end)) => Poll::Ready(Err(self.error(end).into())),
                };
            }
            if !registered {
                self.flusher.register(cx.waker());
            }
        }
        Poll::Pending
    }

    /// Shuts the write half down and completes with the outcome.
    pub(crate) fn poll_finish(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<CloseOutcome> {
        self.apply(SubstreamEvent::Shutdown);
        self.poll_outcome(cx)
    }

    /// Completes with the outcome of the write half, without shutting it down.
    pub(crate) fn poll_outcome(&self, cx: &mut Context<'_>) -> Poll<CloseOutcome> {
        if let Some(outcome) = self.outcome() {
            return Poll::Ready(outcome);
        }
        self.closer.register(cx.waker());
        self.outcome().map_or(Poll::Pending, Poll::Ready)
    }

    /// Payload bytes accepted from the application that the carrier has not taken.
    pub(crate) fn buffered(&self) -> usize {
        self.send_buffer().queued()
    }

    pub(crate) fn stats(&self) -> SubstreamStats {
        let (sent, buffered, credit) = {
            let send = self.send_buffer();
            (send.total_sent(), send.queued(), send.granted_credit())
        };
        let receive = self.receive_buffer();
        SubstreamStats {
            sent,
            buffered,
            credit,
            received: receive.received,
            unread: receive.buffered(),
            receive_window: receive.window,
        }
    }

    /// Payload bytes received that the application has not read.
    pub(crate) fn unread(&self) -> usize {
        self.receive_buffer().buffered()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let receive = self
            .receive
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        self.siblings.unread.adjust(receive.cost(), 0);
        let send = self.send.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.siblings.queued.adjust(send.queued(), 0);
        self.siblings.committed.adjust(receive.committed(), 0);
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod wakers;
