//! Writes frames to channels.
//!
//! Control frames are written when their substream is serviced. Data is written by priority, and
//! within one in turns of one frame, so that a large write does not delay other substreams.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::BytesMut;

use super::entry::Entry;
use super::shared::ConnectionShared;
use super::substreams::Substreams;
use super::turns::{Turn, Turns};
use crate::carrier::{Carrier, ChannelId, Class, Written};
use crate::message::{DATA_TAILROOM, DataFrameEnds, Message, max_payload, seal_data_frame};
use crate::substream::{Chunk, Copied, NextData, Shared};

/// Which substreams write next, and how a frame is written.
#[derive(Debug)]
pub(super) struct FrameWriter {
    conn: Arc<ConnectionShared>,
    /// The substreams with data to send.
    scheduled: Turns,
    /// Substreams that have data to carry the credit they owe. It goes alone if their data has to
    /// wait for others of a greater priority.
    owed: VecDeque<ChannelId>,
    /// Substreams to service again when the carrier reports room: a control frame found it busy, or
    /// their channel is still being opened.
    blocked: VecDeque<ChannelId>,
    /// Substreams that were in `blocked` when the carrier last reported room.
    retrying: VecDeque<ChannelId>,
    /// No data is written before the carrier reports room.
    is_busy: bool,
    /// Control frames are encoded here.
    scratch: BytesMut,
}

impl FrameWriter {
    pub(super) fn new(conn: Arc<ConnectionShared>) -> Self {
        Self {
            conn,
            scheduled: Turns::default(),
            owed: VecDeque::new(),
            blocked: VecDeque::new(),
            retrying: VecDeque::new(),
            is_busy: false,
            scratch: BytesMut::with_capacity(64),
        }
    }

    /// The length of the longest frame that the peer accepts.
    pub(super) fn max_frame<C: Carrier>(&self, carrier: &C, supports_credit: bool) -> usize {
        let config = &self.conn.config;
        let limit = if supports_credit {
            config.max_frame
        } else {
            config.max_frame_without_credit
        };
        let limit = limit.min(carrier.max_message());
        match carrier.packet_payload() {
            Some(packet) if (1..=limit).contains(&packet) => limit - limit % packet,
            _ => limit,
        }
    }

    /// The carrier has room.
    ///
    /// Every refused write is retried, not only those of the channel that has room: the budget is
    /// shared, and the low mark of one channel says nothing about the others (row H-6).
    pub(super) fn on_writable(&mut self) {
        self.is_busy = false;
        self.retrying.append(&mut self.blocked);
    }

    /// The next substream to service because the carrier has room.
    pub(super) fn next_retry(&mut self) -> Option<ChannelId> {
        self.retrying.pop_front()
    }

    /// Whether data has to wait until the carrier reports room.
    pub(super) fn is_busy(&self) -> bool {
        self.is_busy
    }

    /// Queues a substream with data to send, if it is not queued with its priority.
    pub(super) fn schedule(&mut self, entry: &mut Entry) {
        let priority = entry.shared.priority();
        if entry.turn.is_none_or(|turn| turn.priority() != priority) {
            self.reschedule(entry);
        }
    }

    /// The substream whose turn it is to send data, unless it has got another one meanwhile; `None`
    /// while the carrier is busy.
    pub(super) fn next_scheduled(&mut self) -> Option<(ChannelId, Turn)> {
        if self.is_busy {
            return None;
        }
        self.scheduled.pop()
    }

    /// Queues a substream for another turn.
    pub(super) fn reschedule(&mut self, entry: &mut Entry) {
        let priority = entry.shared.priority();
        entry.turn = Some(self.scheduled.push_back(entry.shared.id, priority));
    }

    /// The carrier was busy in the turn of this substream, which stays first.
    pub(super) fn on_busy(&mut self, channel: ChannelId, turn: Turn) {
        self.scheduled.push_front(channel, turn);
        self.is_busy = true;
    }

    /// The data of this substream carries the credit that is due, unless it has to wait.
    pub(super) fn owe(&mut self, entry: &mut Entry) {
        if !std::mem::replace(&mut entry.is_owed, true) {
            self.owed.push_back(entry.shared.id);
        }
    }

    /// The next substream whose data may have to wait, and whose credit must not.
    pub(super) fn next_owed(&mut self) -> Option<ChannelId> {
        match self.scheduled.has_priorities() {
            true => self.owed.pop_front(),
            false => None,
        }
    }

    /// Removes what changes of priorities have left in the order, once it is the larger part of it.
    pub(super) fn prune_turns(&mut self, substreams: &Substreams) {
        if self.scheduled.len() > substreams.max_queue() {
            let turn_of = |channel| substreams.get(channel).and_then(|entry| entry.turn);
            self.scheduled
                .retain(|channel, turn| turn_of(channel) == Some(turn));
        }
    }

    /// Services a substream again when the carrier reports room.
    pub(super) fn block(&mut self, entry: &mut Entry) {
        if !std::mem::replace(&mut entry.is_blocked, true) {
            self.blocked.push_back(entry.shared.id);
        }
    }

    /// Writes one control frame of a substream. If the carrier is busy, the substream is serviced
    /// again when it has room.
    pub(super) fn write_control<C: Carrier>(
        &mut self,
        carrier: &mut C,
        entry: &mut Entry,
        message: &Message,
    ) -> Written {
        let written = self.write_uncounted(carrier, entry.shared.id, message);
        match written {
            Written::Taken => self.conn.counters.frames_sent.add(1),
            Written::Closed => {}
            Written::Busy | Written::NotOpen => self.block(entry),
        }
        written
    }

    /// Writes one control frame, on a channel with a substream or without, and leaves it to the
    /// caller to count it and to try again.
    pub(super) fn write_uncounted<C: Carrier>(
        &mut self,
        carrier: &mut C,
        channel: ChannelId,
        message: &Message,
    ) -> Written {
        carrier.write(channel, self.encode(message), Class::Control)
    }

    /// Writes one frame about the connection.
    pub(super) fn write_notice<C: Carrier>(
        &mut self,
        carrier: &mut C,
        message: &Message,
    ) -> Written {
        carrier.write_notice(self.encode(message))
    }

    fn encode(&mut self, message: &Message) -> &[u8] {
        self.scratch.clear();
        message.encode_into(&mut self.scratch);
        &self.scratch
    }

    /// Writes a credit frame. `false` if the carrier is busy.
    pub(super) fn write_credit<C: Carrier>(
        &mut self,
        carrier: &mut C,
        entry: &mut Entry,
        max_data: u64,
    ) -> bool {
        match self.write_control(carrier, entry, &Message::credit(max_data)) {
            Written::Taken | Written::Closed => {
                entry.shared.credit_sent(max_data);
                true
            }
            Written::Busy | Written::NotOpen => false,
        }
    }

    /// Writes one data frame; `None` if there is none to write.
    pub(super) fn write_data<C: Carrier>(
        &mut self,
        carrier: &mut C,
        entry: &mut Entry,
        supports_credit: bool,
    ) -> Option<Written> {
        let shared = Arc::clone(&entry.shared);
        let max_frame = self.max_frame(carrier, supports_credit);
        // Credit follows the payload, where a chunk that is sent in parts still has its rest.
        let NextData {
            mut chunk,
            length,
            credit: mut offer,
        } = shared.take_data(max_payload(max_frame, false), supports_credit)?;
        let has_tailroom = matches!(chunk, Chunk::Slice(_)) || length == chunk.len();
        let fits = has_tailroom && length <= max_payload(max_frame, true);
        if !fits
            && let Some(max_data) = offer.take()
            && supports_credit
        {
            // A full frame, or a window smaller than the chunk: without this the peer would assume
            // that we do not support credit.
            self.write_credit(carrier, entry, max_data);
        }
        let written = match &mut chunk {
            Chunk::Copied(copied) => write_copied(carrier, shared.id, copied, length, offer),
            Chunk::Slice(slice) => {
                let ends = DataFrameEnds::new(length, offer);
                let payload = slice.get(..length).unwrap_or_default();
                let pieces = [ends.head(), payload, ends.tail()];
                carrier.write_vectored(shared.id, &pieces, Class::Data)
            }
        };
        match written {
            Written::Taken => self.on_data_taken(&shared, chunk, length, offer),
            Written::Busy | Written::NotOpen | Written::Closed => shared.data_refused(chunk),
        }
        Some(written)
    }

    fn on_data_taken(&self, shared: &Shared, chunk: Chunk, length: usize, offer: Option<u64>) {
        let counters = &self.conn.counters;
        counters.frames_sent.add(1);
        counters.payload_sent.add(length as u64);
        shared.data_sent(chunk, length, offer);
    }

    /// Called when a substream was forgotten.
    pub(super) fn prune(&mut self, substreams: &Substreams) {
        self.prune_turns(substreams);
        for queue in [&mut self.owed, &mut self.blocked, &mut self.retrying] {
            substreams.prune(queue);
        }
    }

    pub(super) fn clear(&mut self) {
        self.scheduled.clear();
        self.owed.clear();
        self.blocked.clear();
        self.retrying.clear();
    }
}

/// Writes the first `length` bytes of a payload, framed in the buffer that holds it.
fn write_copied<C: Carrier>(
    carrier: &mut C,
    channel: ChannelId,
    copied: &mut Copied,
    length: usize,
    max_data: Option<u64>,
) -> Written {
    let payload = copied.start..copied.start + length;
    let end = copied.buf.len();
    if max_data.is_some() {
        copied.buf.resize(end + DATA_TAILROOM, 0);
    }
    let written = match seal_data_frame(&mut copied.buf, payload, max_data) {
        Ok(frame) => {
            let frame = copied.buf.get(frame).unwrap_or_default();
            carrier.write(channel, frame, Class::Data)
        }
        Err(error) => {
            // Every chunk is made with room for a header.
            debug_assert!(false, "no room for a frame header: {error}");
            Written::Closed
        }
    };
    copied.buf.truncate(end);
    written
}
