//! Which channel is read next, and how much of it.
//!
//! Channels that have something to read are read in turns of a few frames, so that one whose frames are many and small
//! holds up neither its neighbours nor writes, timers and other tasks.

use std::sync::Arc;

use super::driver::Turn;
use super::work::STEPS_PER_TURN;
use crate::carrier::{Carrier, ChannelId};
use crate::message::{DecodeError, Message};
use crate::substream::{Shared, SubstreamEvent, unpinned};

/// How a turn of reading ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Read {
    /// All that has come was read, or the rest is left to the carrier.
    Done,
    /// There may be more.
    Unfinished,
}

impl<C: Carrier> Turn<'_, C> {
    /// A channel has something to read. It is read at once, as far as its turn goes, if the round allows.
    pub(super) fn on_readable(&mut self, channel: ChannelId) {
        let entry = self.core.substreams.get(&channel);
        if entry.is_some_and(|entry| entry.reading) {
            return;
        }
        match self.core.work.reads_at_once() {
            true => self.read_in_turn(channel),
            false => self.queue(channel),
        }
    }

    fn queue(&mut self, channel: ChannelId) {
        if let Some(entry) = self.core.substreams.get_mut(&channel) {
            entry.reading = true;
        }
        self.core.reading.push_back(channel);
    }

    /// The peer has closed a channel, or its close is complete: it ends when it is read.
    pub(super) fn on_channel_closed(&mut self, channel: ChannelId) {
        if let Some(entry) = self.core.substreams.get_mut(&channel) {
            entry.closed = true;
        }
        self.on_readable(channel);
    }

    /// Reads the channels whose turn has come, as far as the round goes. Returns whether any was.
    pub(super) fn read_queued(&mut self) -> bool {
        let has_any = !self.core.reading.is_empty();
        while !self.core.work.round_is_read()
            && let Some(channel) = self.core.reading.pop_front()
        {
            self.read_in_turn(channel);
        }
        has_any
    }

    /// Gives a channel its turn, and queues it for another if that was not enough.
    fn read_in_turn(&mut self, channel: ChannelId) {
        let read = self.read_channel(channel);
        if read == Read::Unfinished {
            return self.queue(channel);
        }
        if let Some(entry) = self.core.substreams.get_mut(&channel) {
            entry.reading = false;
            if entry.closed {
                entry.shared.apply(SubstreamEvent::ChannelClosed);
                self.remove(channel);
            }
        }
    }

    /// Reads what has arrived on a channel; all of it, or as much as its substream is to hold where
    /// the carrier holds back the sender of what is left.
    fn read_channel(&mut self, channel: ChannelId) -> Read {
        let window = self.core.conn.config.receive_window as usize;
        for _ in 0..STEPS_PER_TURN {
            if !self.core.work.step() {
                return Read::Unfinished;
            }
            if let Some(message) = self.next_message(channel) {
                self.on_message(channel, message);
                continue;
            }
            if let Some(entry) = self.core.substreams.get_mut(&channel)
                && !entry.closed
                // A peer with credit sends no more than there is room for.
                && !(entry.peer_credit && entry.credit_shown)
                && self.core.carrier.holds_back_unread()
                && !entry.shared.has_room_unread(window)
            {
                if !std::mem::replace(&mut entry.reads_paused, true) {
                    self.core.reads_paused += 1;
                    self.core.conn.siblings.set_reads_awaited(true);
                    // The reader may have taken all of it before it was asked to tell.
                    entry.shared.request_service();
                }
                return Read::Done;
            }
            let Some(bytes) = self.core.carrier.read(channel) else {
                return Read::Done;
            };
            // Late data of a substream that is gone is dropped, never a new entry (row FR-6).
            if let Some(entry) = self.core.substreams.get_mut(&channel) {
                entry.decoder.push(bytes);
            }
        }
        Read::Unfinished
    }

    /// The next frame of what was read.
    fn next_message(&mut self, channel: ChannelId) -> Option<Message> {
        let entry = self.core.substreams.get_mut(&channel)?;
        match entry.decoder.next_message() {
            Ok(message) => {
                let mut message = message?;
                message.payload = unpinned(message.payload, entry.decoder.backing());
                Some(message)
            }
            Err(error) => {
                self.on_bad_framing(channel, &error);
                None
            }
        }
    }

    fn on_bad_framing(&mut self, channel: ChannelId, error: &DecodeError) {
        if let Some(entry) = self.core.substreams.get(&channel) {
            tracing::debug!(
                target: "anabranch::connection", id = channel.get(), %error, "bad framing"
            );
            let shared = Arc::clone(&entry.shared);
            self.violation(&shared);
        }
    }

    /// Reads on where a reader has made room.
    pub(super) fn resume_reading(&mut self, shared: &Shared) {
        let window = self.core.conn.config.receive_window as usize;
        if let Some(entry) = self.core.substreams.get_mut(&shared.id)
            && entry.reads_paused
            && entry.shared.has_room_unread(window / 2 + 1)
        {
            entry.reads_paused = false;
            self.release_pause();
            self.on_readable(shared.id);
        }
    }

    pub(super) fn release_pause(&mut self) {
        debug_assert!(self.core.reads_paused > 0, "a hold that was not counted");
        self.core.reads_paused = self.core.reads_paused.saturating_sub(1);
        self.core
            .conn
            .siblings
            .set_reads_awaited(self.core.reads_paused > 0);
    }
}
