//! Whether what was written to a channel has arrived.
//!
//! A peer may close a channel while the last data written to it is in flight: webrtc-rs resets a
//! stream up to 200 ms before it acknowledges what it has read. Whether that was delivered is known
//! once it is acknowledged, and `Closed` follows then. What the peer's reset drops before it was
//! sent is never delivered.

use super::{Channel, Channels, stream_of};
use crate::engine::{ChannelId, Event};

impl Channels {
    pub(in super::super) fn notify_delivered(&mut self, id: ChannelId) {
        let stream = stream_of(id);
        let is_under_way = self.sctp.unacknowledged(stream) > 0;
        let written = self.sctp.written(stream);
        let Some(channel) = self.get(id) else {
            return;
        };
        channel.notify_delivered = is_under_way.then_some(written);
        if !is_under_way && !self.sctp.has_dropped(stream, written) {
            self.events.push_back(Event::Delivered { channel: id });
        }
    }

    /// The peer has closed a channel. Returns whether `Closed` has to wait for what is in flight.
    pub(super) fn await_delivery(&mut self, stream: u16, channel: &Channel) -> bool {
        let is_awaited = channel
            .notify_delivered
            .is_some_and(|written| !self.sctp.has_dropped(stream, written));
        if is_awaited {
            self.awaited.insert(stream, channel.id);
        }
        is_awaited
    }

    /// This side has closed a channel: nobody asks any more.
    pub(super) fn forget_delivery(&mut self, id: ChannelId) {
        if self.awaited.get(&stream_of(id)) == Some(&id) {
            self.awaited.remove(&stream_of(id));
        }
    }

    /// Everything written to a stream has arrived, or was dropped.
    pub(super) fn on_acknowledged(&mut self, stream: u16) {
        if let Some(channel) = self.awaited.remove(&stream) {
            self.events.push_back(Event::Delivered { channel });
            self.events.push_back(Event::Closed { channel });
            return;
        }
        let Some(channel) = self.table.get_mut(&stream) else {
            return;
        };
        let id = channel.id;
        if let Some(written) = channel.notify_delivered.take()
            && !self.sctp.has_dropped(stream, written)
        {
            self.events.push_back(Event::Delivered { channel: id });
        }
    }
}
