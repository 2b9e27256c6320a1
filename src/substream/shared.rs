//! State shared by the handles of a substream and the driver of its connection.
//!
//! The state, the two buffers and the error codes are behind one mutex, which is held for one copy
//! at most. [`Shared::apply`] changes the state; it carries out the effects under the lock, then
//! wakes the tasks that the previous state may have blocked. The wakers:
//!
//! | waker | registered by | woken by |
//! |---|---|---|
//! | `reader` | `poll_read` and its kin, one read half | payload, FIN, reset, loss |
//! | `writer` | `poll_write`, one write half | room in the buffer, stop, reset, loss |
//! | `flusher` | `poll_flush` | the buffer became empty, stop, reset, loss |
//! | `closer` | `poll_shutdown`, `finish`, `stopped` | every change of the write half |
//!
//! Each half has one owner, so each waker has one place of registration; a later poll replaces the
//! waker of an earlier one, as the contract of `poll` requires. Wakers are registered and woken
//! without the lock, because they run code of the executor.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use atomic_waker::AtomicWaker;
use bytes::Bytes;

use super::recv::ReceiveBuffer;
use super::send::{Chunk, SendBuffer};
use super::siblings::Siblings;
use super::state::{Effects, ReadState, State, SubstreamEvent, WritePermit, WriteState};
use crate::carrier::ChannelId;
use crate::error::code;
use crate::events::SubstreamStats;
use crate::events::{Initiator, SubstreamInfo};

mod inner;
mod outcome;
mod place;
mod reading;

use inner::Inner;
pub(crate) use inner::Usage;
use place::Place;

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
    inner: Mutex<Inner>,
    reader: AtomicWaker,
    writer: AtomicWaker,
    flusher: AtomicWaker,
    closer: AtomicWaker,
    /// Set while this substream is in the connection's ready queue, so that it is queued once.
    queued: AtomicBool,
    /// Data of a greater priority is sent first.
    priority: AtomicI32,
    pub(crate) place: Place,
}

/// The next data frame of a substream.
#[derive(Debug)]
pub(crate) struct NextData {
    pub(crate) chunk: Chunk,
    /// How much of the chunk to send.
    pub(crate) length: usize,
    /// The `max_data` to send with it.
    pub(crate) credit: Option<u64>,
}

/// What became of a payload of the peer.
#[derive(Debug)]
pub(crate) struct PayloadReceipt {
    /// The peer has sent credit on this substream.
    pub(crate) has_credit: bool,
    /// An error is the code to reset the substream with.
    pub(crate) result: Result<(), u32>,
}

/// Length of the longest message that known carriers deliver.
const LONG_MESSAGE: usize = 64 * 1024;

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
            inner: Mutex::new(Inner::new(send, receive)),
            reader: AtomicWaker::new(),
            writer: AtomicWaker::new(),
            flusher: AtomicWaker::new(),
            closer: AtomicWaker::new(),
            queued: AtomicBool::new(false),
            priority: AtomicI32::new(0),
            place: Place::default(),
        })
    }

    /// Identifies this substream in events.
    pub(crate) fn info(&self) -> SubstreamInfo {
        SubstreamInfo {
            id: self.id.get(),
            initiator: self.origin,
        }
    }

    /// The inner state is consistent between any two statements: a panic of another holder (such as
    /// an allocation failure) leaves nothing inconsistent.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the inner state and updates the connection's sums.
    fn update<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.inner();
        let before = inner.levels();
        let result = change(&mut inner);
        self.siblings.adjust(before, inner.levels());
        result
    }

    /// Like [`Self::update`], for changes of the send buffer only.
    fn update_send<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.inner();
        let before = inner.send.queued();
        let result = change(&mut inner);
        self.siblings.queued.adjust(before, inner.send.queued());
        result
    }

    /// Like [`Self::update`], for changes of the receive buffer only.
    fn update_receive<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.inner();
        let cost = inner.receive.cost();
        let committed = inner.receive.committed_beyond_minimum();
        let result = change(&mut inner);
        self.siblings.unread.adjust(cost, inner.receive.cost());
        self.siblings
            .committed
            .adjust(committed, inner.receive.committed_beyond_minimum());
        result
    }

    pub(crate) fn state(&self) -> State {
        self.inner().state
    }

    /// Changes the state and wakes every task that the previous one may have blocked.
    ///
    /// Returns the effects, of which the driver handles the rest.
    pub(crate) fn apply(self: &Arc<Self>, event: SubstreamEvent) -> Effects {
        self.apply_with(|_| Some(event))
    }

    /// Like [`Self::apply`], with an event that is chosen under the lock.
    fn apply_with(
        self: &Arc<Self>,
        choose: impl FnOnce(&mut Inner) -> Option<SubstreamEvent>,
    ) -> Effects {
        let applied = self.update(|inner| {
            let event = choose(inner)?;
            let before = inner.state;
            let effects = inner.apply(event);
            Some((event, before, inner.state, effects))
        });
        let Some((event, before, after, effects)) = applied else {
            return Effects::NONE;
        };
        if before != after {
            self.span.in_scope(|| {
                tracing::trace!(target: "anabranch::substream", ?event, ?before, ?after, "state");
            });
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

    pub(crate) fn priority(&self) -> i32 {
        self.priority.load(Ordering::Relaxed)
    }

    /// The driver is told.
    pub(crate) fn set_priority(self: &Arc<Self>, priority: i32) {
        if self.priority.swap(priority, Ordering::Relaxed) != priority {
            self.request_service();
        }
    }

    /// The driver took this substream from the ready queue and will service it.
    pub(crate) fn begin_service(&self) {
        // Synchronizes with the request, which may have found it queued.
        self.queued.swap(false, Ordering::AcqRel);
    }

    pub(crate) fn set_usage(&self, usage: Usage) {
        self.inner().usage = usage;
    }

    pub(crate) fn usage(&self) -> Usage {
        self.inner().usage
    }

    /// Whether both handles were dropped.
    pub(crate) fn is_abandoned(&self) -> bool {
        let inner = self.inner();
        inner.reader_dropped && inner.writer_dropped
    }

    // Called by the driver.

    /// Accepts payload from the peer.
    pub(crate) fn receive_payload(&self, payload: Bytes) -> PayloadReceipt {
        let ceiling = self.siblings.ceiling_for_one();
        let is_bounded_by_carrier = self.siblings.is_bounded_by_carrier();
        let receipt = self.update_receive(|inner| {
            let keep = inner.state.keeps_payload();
            // A peer that has sent `max_data` supports ours.
            let has_credit = inner.send.has_grant();
            let pushed = inner.receive.push(payload, keep, has_credit);
            // Granted credit is already accounted for.
            let is_bounded = is_bounded_by_carrier || (has_credit && inner.receive.has_granted());
            let result = match pushed {
                Err(_) => Err(code::FLOW_CONTROL),
                Ok(()) if !is_bounded && inner.receive.cost() > ceiling => {
                    Err(code::RESOURCE_LIMIT)
                }
                Ok(()) => Ok(()),
            };
            PayloadReceipt { has_credit, result }
        });
        self.reader.wake();
        receipt
    }

    /// The `max_data` to send now, if one is due.
    pub(crate) fn credit_offer(&self) -> Option<u64> {
        let room = self.siblings.room();
        self.inner().credit_offer(room, false)
    }

    /// The carrier took a `max_data`.
    pub(crate) fn credit_sent(&self, max_data: u64) {
        self.update_receive(|inner| inner.receive.granted(max_data));
    }

    /// The peer sent `max_data`, and so accepts frames with this much payload. Returns whether the
    /// grant has an effect.
    pub(crate) fn granted(self: &Arc<Self>, max_data: u64, chunk_payload: usize) -> bool {
        {
            let mut inner = self.inner();
            if !inner.send.grant(max_data) {
                return false;
            }
            inner.send.set_chunk_payload(chunk_payload);
        }
        self.request_service();
        true
    }

    /// The peer does not support credit: sending to it is not limited unless it has sent credit on
    /// this substream. Returns whether that lifted a limit.
    pub(crate) fn credit_unsupported(self: &Arc<Self>) -> bool {
        let lifted = self.inner().send.lift_initial_limit();
        if lifted {
            self.request_service();
        }
        lifted
    }

    /// Whether data waits for a peer that has sent nothing on this substream.
    pub(crate) fn waits_for_first_credit(&self) -> bool {
        self.inner().send.waits_for_first_credit()
    }

    /// Whether data waits for the peer's credit.
    pub(crate) fn waits_for_credit(&self) -> bool {
        self.inner().send.waits_for_credit()
    }

    /// Whether data is queued that the peer's credit allows.
    pub(crate) fn has_sendable_data(&self) -> bool {
        self.inner().send.is_sendable()
    }

    /// Whether another message may be taken from a carrier that could hold it back: less than
    /// `most` is unread, and the message can reach neither this ceiling nor that of the connection.
    /// An empty buffer always has room.
    pub(crate) fn has_room_unread(&self, most: usize) -> bool {
        let cost = self.inner().receive.cost();
        self.has_room_for(cost, most)
    }

    /// The same, for a message that may be bounded by credit already: a peer with credit sends no
    /// more than there is room for.
    pub(crate) fn may_take_message(&self, most: usize) -> bool {
        let (is_bounded, cost) = {
            let inner = self.inner();
            let is_bounded = inner.send.has_grant() && inner.receive.has_granted();
            (is_bounded, inner.receive.cost())
        };
        is_bounded || self.has_room_for(cost, most)
    }

    fn has_room_for(&self, cost: usize, most: usize) -> bool {
        let ceiling = self.siblings.ceiling_for_one();
        let nears_ceiling = cost > ceiling / 2 && cost.saturating_add(LONG_MESSAGE) > ceiling;
        cost == 0 || (cost < most && !nears_ceiling)
    }

    /// The next payload to send, and how much of it, if there is one and the peer's credit allows.
    ///
    /// The first one always comes with credit, which shows the peer that we support it; later ones
    /// do if a grant is due and the peer supports it too.
    pub(crate) fn take_data(&self, limit: usize, supports_credit: bool) -> Option<NextData> {
        let room = self.siblings.room();
        let mut inner = self.inner();
        let (chunk, length) = inner.send.take(limit)?;
        let is_first = !inner.receive.has_granted();
        let credit = match is_first || supports_credit {
            true => inner.credit_offer(room, is_first),
            false => None,
        };
        Some(NextData {
            chunk,
            length,
            credit,
        })
    }

    /// The carrier took the first `length` bytes of the chunk from [`Self::take_data`], and
    /// `credit` with it.
    pub(crate) fn data_sent(&self, chunk: Chunk, length: usize, credit: Option<u64>) {
        let (wake_writer, is_empty) = self.update(|inner| {
            if inner.state.sends_data() {
                inner.send.sent(chunk, length);
            } else {
                // A stop or reset discarded the queue while the driver held this chunk.
                inner.send.discard();
            }
            if let Some(max_data) = credit {
                inner.receive.granted(max_data);
            }
            (inner.send.is_half_empty(), inner.send.queued() == 0)
        });
        if wake_writer {
            self.writer.wake();
        }
        if is_empty {
            self.flusher.wake();
        }
    }

    /// The state of a write half that was ended here or by the peer, once the carrier has taken all
    /// of its data.
    pub(crate) fn drained(&self) -> Option<WriteState> {
        let inner = self.inner();
        let write = inner.state.write;
        let ends = matches!(
            write,
            WriteState::Closing | WriteState::CutOff | WriteState::Stopped
        );
        // A reset discards the buffer: data that it held was not taken.
        let is_drained = inner.send.queued() == 0 && inner.state.end().is_none();
        (ends && is_drained).then_some(write)
    }

    /// The carrier was busy: the chunk from [`Self::take_data`] returns to the front of the queue.
    pub(crate) fn data_refused(&self, chunk: Chunk) {
        let mut inner = self.inner();
        if inner.state.sends_data() {
            inner.send.put_back(chunk);
        }
    }

    pub(crate) fn received_stop(self: &Arc<Self>, code: Option<u32>) -> Effects {
        self.apply_with(|inner| {
            if !matches!(
                inner.state.write,
                WriteState::Stopped | WriteState::Finished(_)
            ) {
                inner.stop_code = code;
            }
            Some(SubstreamEvent::StopSending)
        })
    }

    pub(crate) fn received_reset(self: &Arc<Self>, code: Option<u32>) -> Effects {
        self.reset_with(
            code,
            match code {
                // The peer sent it after all data that its application had written.
                Some(code::SHUTDOWN) => SubstreamEvent::CutOffByPeer,
                _ => SubstreamEvent::ResetStream,
            },
        )
    }

    pub(crate) fn own_stop_code(&self) -> Option<u32> {
        self.inner().own_stop_code.filter(|code| *code != 0)
    }

    pub(crate) fn reset_code(&self) -> Option<u32> {
        self.inner().reset_code
    }

    // Called by the handles.

    pub(crate) fn reset(self: &Arc<Self>, code: u32) {
        self.reset_with(Some(code), SubstreamEvent::Reset);
    }

    /// The peer violated the protocol: a reset that keeps data received before.
    pub(crate) fn violated(self: &Arc<Self>, code: u32) {
        self.reset_with(Some(code), SubstreamEvent::Violation);
    }

    /// Everything written before the connection began to close was sent.
    pub(crate) fn cut_off_drained(self: &Arc<Self>) {
        self.reset_with(Some(code::SHUTDOWN), SubstreamEvent::CutOffDrained);
    }

    fn reset_with(self: &Arc<Self>, code: Option<u32>, event: SubstreamEvent) -> Effects {
        self.apply_with(|inner| {
            inner.set_reset_code(code);
            Some(event)
        })
    }

    pub(crate) fn stop(self: &Arc<Self>, code: u32) {
        self.apply_with(|inner| Some(inner.stop(code)));
    }

    /// The connection closes: like [`Self::stop`], but the application has not asked for it, so its
    /// reads fail instead of returning the end of the stream. A stream that is complete stays
    /// readable.
    pub(crate) fn cut_off(self: &Arc<Self>, code: u32) {
        self.apply_with(|inner| {
            if inner.state.read != ReadState::Open {
                return None;
            }
            inner.cut_off = true;
            Some(inner.stop(code))
        });
    }

    /// The connection closes: both directions that the application has not ended are cut off.
    pub(crate) fn close(self: &Arc<Self>, code: u32) {
        self.apply(SubstreamEvent::ConnectionClosing);
        self.cut_off(code);
    }

    /// Makes a drop of the writer reset the substream, unless it was shut down before.
    pub(crate) fn set_reset_on_drop(&self, code: u32) {
        self.inner().reset_on_drop = Some(code);
    }

    pub(crate) fn drop_reader(self: &Arc<Self>) {
        self.apply_with(|inner| {
            inner.reader_dropped = true;
            Some(inner.stop(0))
        });
        self.request_service();
    }

    pub(crate) fn drop_writer(self: &Arc<Self>) {
        self.apply_with(|inner| {
            inner.writer_dropped = true;
            // A panic truncated the stream: FIN would make the part look complete.
            let code = match std::thread::panicking() {
                true => Some(code::PANICKED),
                false => inner.reset_on_drop,
            };
            match code {
                // After a shutdown the stream is complete.
                Some(_) if inner.state.write == WriteState::Open => {
                    inner.set_reset_code(code);
                    Some(SubstreamEvent::Reset)
                }
                _ => Some(SubstreamEvent::Shutdown),
            }
        });
        self.request_service();
    }

    /// Polls for room to write; `put` gets the buffer and returns how much it took, zero if it
    /// needs more room.
    pub(crate) fn poll_write_with(
        self: &Arc<Self>,
        cx: &mut Context<'_>,
        mut put: impl FnMut(&mut SendBuffer) -> usize,
    ) -> Poll<io::Result<usize>> {
        for registered in [false, true] {
            let written = self.update_send(|inner| match inner.state.write_permit() {
                WritePermit::Allowed if inner.send.has_room() => {
                    let written = put(&mut inner.send);
                    if written > 0 {
                        inner.record_usage(Usage::Answered);
                    }
                    Ok(written)
                }
                WritePermit::Allowed => Ok(0),
                refused => Err(refused),
            });
            match written {
                Ok(0) => {}
                Ok(written) => {
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

    /// Payload bytes accepted from the application that the carrier has not taken.
    pub(crate) fn buffered(&self) -> usize {
        self.inner().send.queued()
    }

    pub(crate) fn stats(&self) -> SubstreamStats {
        let inner = self.inner();
        SubstreamStats {
            sent: inner.send.total_sent(),
            buffered: inner.send.queued(),
            credit: inner.send.granted_credit(),
            received: inner.receive.received,
            unread: inner.receive.buffered(),
            receive_window: inner.receive.window,
        }
    }

    /// Payload bytes received that the application has not read.
    pub(crate) fn unread(&self) -> usize {
        self.inner().receive.buffered()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.siblings.adjust(inner.levels(), Default::default());
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod wakers;
