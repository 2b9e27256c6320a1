//! Reads frames from channels.
//!
//! Channels with data are read in turns of a few frames, so that a channel with many small frames
//! does not delay the others, nor writes, timers and other tasks.

use std::collections::VecDeque;

use super::entry::{Entry, ReadProgress};
use super::substreams::Substreams;
use crate::carrier::{Carrier, ChannelId};
use crate::message::{DecodeError, Message};
use crate::substream::unpinned;

/// One step in the turn of a channel.
#[derive(Debug)]
pub(super) enum ReadStep {
    /// The next frame.
    Frame(Message),
    /// The bytes are not frames; reported once. Later bytes are dropped.
    BadFraming(DecodeError),
    /// Bytes were taken from the carrier.
    Advanced,
    /// Everything that has arrived was read, or the rest is left to the carrier.
    Done,
}

/// The round-robin queue of channels with data, and how a channel is read.
#[derive(Debug)]
pub(super) struct FrameReader {
    queue: VecDeque<ChannelId>,
}

impl FrameReader {
    pub(super) fn new() -> Self {
        Self {
            queue: VecDeque::new(),
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// Number of channels that wait for a turn.
    pub(super) fn backlog(&self) -> usize {
        self.queue.len()
    }

    /// Queues a channel for a turn. It is in the queue at most once as long as it is known.
    pub(super) fn enqueue(&mut self, substreams: &mut Substreams, channel: ChannelId) {
        substreams.resume(channel);
        if let Some(entry) = substreams.get_mut(channel) {
            entry.reading = ReadProgress::Queued;
        }
        self.queue.push_back(channel);
    }

    pub(super) fn next_channel(&mut self) -> Option<ChannelId> {
        self.queue.pop_front()
    }

    /// Begins the turn of a channel.
    pub(super) fn begin_turn(&self, substreams: &mut Substreams, channel: ChannelId) {
        substreams.resume(channel);
        if let Some(entry) = substreams.get_mut(channel) {
            entry.reading = ReadProgress::Idle;
        }
    }

    /// Reads on: all that has arrived, or as much as the substream may hold where the carrier
    /// applies backpressure.
    pub(super) fn step<C: Carrier>(
        &self,
        carrier: &mut C,
        substreams: &mut Substreams,
        channel: ChannelId,
    ) -> ReadStep {
        if let Some(entry) = substreams.get_mut(channel) {
            match next_message(entry) {
                Ok(Some(message)) => return ReadStep::Frame(message),
                Ok(None) => {}
                Err(error) if entry.shared.state().end().is_none() => {
                    return ReadStep::BadFraming(error);
                }
                Err(_) => {}
            }
            if !entry.is_channel_closed
                && carrier.holds_back_unread()
                && !entry.shared.may_take_message(entry.window as usize)
            {
                substreams.pause(channel);
                return ReadStep::Done;
            }
        }
        let Some(bytes) = carrier.read(channel) else {
            return ReadStep::Done;
        };
        // Late data of a substream that has ended is dropped, and never makes a new entry.
        if let Some(entry) = substreams.get_mut(channel) {
            entry.decoder.push(bytes);
        }
        ReadStep::Advanced
    }

    /// Whether a paused channel can be read again.
    pub(super) fn can_resume(&self, entry: &Entry) -> bool {
        let half = entry.window as usize / 2 + 1;
        entry.reading == ReadProgress::Paused && entry.shared.has_room_unread(half)
    }

    /// Called when a substream was forgotten.
    pub(super) fn prune(&mut self, substreams: &Substreams) {
        substreams.prune(&mut self.queue);
    }

    pub(super) fn clear(&mut self) {
        self.queue.clear();
    }
}

/// The next frame of the bytes that were read.
fn next_message(entry: &mut Entry) -> Result<Option<Message>, DecodeError> {
    let message = entry.decoder.next_message()?;
    Ok(message.map(|mut message| {
        message.payload = unpinned(message.payload, entry.decoder.backing());
        message
    }))
}
