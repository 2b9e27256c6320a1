//! The send queue: at most one message of data, and urgent frames.
//!
//! Frames are appended to one message, which is sent with the next poll of the driver: frames that
//! are queued together are sent together, and none waits for more. While the socket is blocked,
//! flags and credit go into a message of their own, which is sent before the queued data. The
//! required order within a channel is kept.

use bytes::{Bytes, BytesMut};

use crate::carrier::ChannelId;

/// Which queued frames a frame may overtake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overtake {
    /// None: for payload, and for all frames while the socket is not blocked.
    Nothing,
    /// Those of other channels: for FIN, and everything that ends a channel.
    Others,
    /// Those of its own channel too, except the first, which opens it: for FIN_ACK, STOP_SENDING
    /// and credit, which concern the other direction.
    Own,
}

/// The batches of the first and the last frame of a channel; zero for none.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Placed {
    first: u64,
    last: u64,
}

/// A message that is being assembled.
#[derive(Debug, Default)]
struct Batch {
    bytes: BytesMut,
    /// Channels to notify when it is written.
    notify: Vec<ChannelId>,
}

impl Batch {
    /// Takes a message of at most `limit` bytes. The channels to notify come with the last one.
    fn take(&mut self, limit: usize) -> Option<(Bytes, Vec<ChannelId>)> {
        if self.bytes.is_empty() && self.notify.is_empty() {
            return None;
        }
        if self.bytes.len() > limit {
            return Some((self.bytes.split_to(limit).freeze(), Vec::new()));
        }
        Some((
            self.bytes.split().freeze(),
            std::mem::take(&mut self.notify),
        ))
    }
}

/// The send queue of a carrier.
#[derive(Debug)]
pub(super) struct OutgoingFrames {
    urgent: Batch,
    bulk: Batch,
    /// The number of the batch in `bulk`.
    number: u64,
    /// `bulk` has first frames of channels, so later ones have to follow there.
    bulk_announces: bool,
    /// A part of `bulk` has been sent, which may end within a frame.
    bulk_is_cut: bool,
    /// Maximum length of a message, and of the data in `bulk`, in bytes.
    limit: usize,
}

impl OutgoingFrames {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            urgent: Batch::default(),
            bulk: Batch::default(),
            // Zero stands for no batch.
            number: 1,
            bulk_announces: false,
            bulk_is_cut: false,
            limit,
        }
    }

    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Whether there is room for a data frame of this length. An empty queue has always room.
    pub(super) fn has_room(&self, len: usize) -> bool {
        self.bulk.bytes.is_empty() || self.bulk.bytes.len() + len <= self.limit
    }

    /// Number of queued bytes.
    pub(super) fn len(&self) -> usize {
        self.urgent.bytes.len() + self.bulk.bytes.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.urgent.bytes.is_empty()
            && self.bulk.bytes.is_empty()
            && self.urgent.notify.is_empty()
            && self.bulk.notify.is_empty()
    }

    /// The buffer for the next frame of a channel.
    pub(super) fn for_frame(
        &mut self,
        overtake: Overtake,
        announces: bool,
        placed: &mut Placed,
    ) -> &mut BytesMut {
        let may_overtake = match overtake {
            Overtake::Nothing => false,
            Overtake::Others => placed.last != self.number,
            Overtake::Own => placed.first != self.number,
        };
        // The rest of a partly sent bulk goes out next, with everything that is appended to it. A
        // first frame in the urgent batch would arrive after the data of its own channel.
        let stays = announces && (self.bulk_announces || self.bulk_is_cut);
        let overtakes = may_overtake && !self.bulk.bytes.is_empty() && !stays;
        if overtakes {
            return &mut self.urgent.bytes;
        }
        self.bulk_announces |= announces;
        if announces {
            placed.first = self.number;
        }
        placed.last = self.number;
        &mut self.bulk.bytes
    }

    /// Notifies the channel when everything that is queued now has been written. Returns `false` if
    /// the queue is empty.
    pub(super) fn notify(&mut self, channel: ChannelId) -> bool {
        let batch = if !self.bulk.bytes.is_empty() {
            &mut self.bulk
        } else if !self.urgent.bytes.is_empty() {
            &mut self.urgent
        } else {
            return false;
        };
        batch.notify.push(channel);
        true
    }

    /// Takes the next message, and the channels to notify when it is written. Flags and credit are
    /// appended regardless of the limit, so the queue may exceed one message.
    pub(super) fn take(&mut self) -> Option<(Bytes, Vec<ChannelId>)> {
        // Nothing may be sent between the parts of a frame.
        if !self.bulk_is_cut
            && let Some(urgent) = self.urgent.take(self.limit)
        {
            return Some(urgent);
        }
        let bulk = self.bulk.take(self.limit)?;
        self.bulk_is_cut = !self.bulk.bytes.is_empty();
        if !self.bulk_is_cut {
            self.number += 1;
            self.bulk_announces = false;
        }
        Some(bulk)
    }
}

#[cfg(test)]
mod tests {
    use super::Overtake::*;
    use super::*;

    /// Queues a frame of one byte.
    fn put(
        outgoing: &mut OutgoingFrames,
        byte: u8,
        overtake: Overtake,
        announces: bool,
        placed: &mut Placed,
    ) {
        let out = outgoing.for_frame(overtake, announces, placed);
        out.extend_from_slice(&[byte]);
    }

    fn drain(outgoing: &mut OutgoingFrames) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| outgoing.take().map(|(bytes, _)| bytes.to_vec())).collect()
    }

    #[test]
    fn o11_what_is_urgent_overtakes_the_data_of_others_but_never_its_own() {
        let mut outgoing = OutgoingFrames::new(64);
        let (mut a, mut b) = Default::default();
        put(&mut outgoing, 1, Nothing, false, &mut a);
        put(&mut outgoing, 2, Others, false, &mut b);
        put(&mut outgoing, 3, Others, false, &mut a);
        put(&mut outgoing, 4, Nothing, false, &mut b);
        put(&mut outgoing, 5, Others, false, &mut b);
        put(&mut outgoing, 6, Own, false, &mut a);
        // After the own data still, although the last frame was urgent.
        put(&mut outgoing, 7, Others, false, &mut a);
        assert_eq!(drain(&mut outgoing), [vec![2, 6], vec![1, 3, 4, 5, 7]]);
        assert!(outgoing.is_empty());
        // The next batch starts from scratch.
        put(&mut outgoing, 8, Others, false, &mut a);
        assert_eq!(drain(&mut outgoing), [vec![8]]);
    }

    #[test]
    fn j3_first_frames_keep_their_order() {
        let mut outgoing = OutgoingFrames::new(64);
        let (mut a, mut b, mut c) = Default::default();
        put(&mut outgoing, 1, Nothing, false, &mut c);
        put(&mut outgoing, 2, Others, true, &mut a);
        assert_eq!(drain(&mut outgoing), [vec![2], vec![1]]);
        let mut d = Placed::default();
        put(&mut outgoing, 3, Nothing, true, &mut d);
        put(&mut outgoing, 4, Others, true, &mut b);
        // Nothing overtakes the first frame of its channel.
        put(&mut outgoing, 5, Own, false, &mut d);
        assert_eq!(drain(&mut outgoing), [vec![3, 4, 5]]);
    }

    #[test]
    fn s7_a_frame_that_does_not_fit_waits_for_the_next_batch_unless_it_is_the_first() {
        let mut outgoing = OutgoingFrames::new(10);
        assert!(outgoing.has_room(100));
        put(&mut outgoing, 1, Nothing, false, &mut Placed::default());
        assert!(outgoing.has_room(9) && !outgoing.has_room(10));
        drain(&mut outgoing);
        assert!(outgoing.has_room(100));
    }

    #[test]
    fn s9_no_message_is_longer_than_the_limit_and_nothing_comes_into_a_frame_that_is_cut() {
        let mut outgoing = OutgoingFrames::new(4);
        let (mut a, mut b) = Default::default();
        let out = outgoing.for_frame(Nothing, false, &mut a);
        out.extend_from_slice(&[1, 1, 1, 1, 1, 1]);
        assert!(outgoing.notify(ChannelId::new(2)));
        assert_eq!(outgoing.take().unwrap(), (vec![1; 4].into(), vec![]));
        put(&mut outgoing, 2, Others, false, &mut b);
        let rest = outgoing.take().unwrap();
        assert_eq!(rest, (vec![1; 2].into(), vec![ChannelId::new(2)]));
        assert_eq!(drain(&mut outgoing), [vec![2]]);
    }

    #[test]
    fn a_channel_is_notified_with_the_last_batch() {
        let mut outgoing = OutgoingFrames::new(64);
        assert!(!outgoing.notify(ChannelId::new(2)));
        put(&mut outgoing, 1, Nothing, false, &mut Placed::default());
        put(&mut outgoing, 2, Others, false, &mut Placed::default());
        assert!(outgoing.notify(ChannelId::new(2)));
        assert_eq!(outgoing.take().unwrap().1, []);
        assert_eq!(outgoing.take().unwrap().1, [ChannelId::new(2)]);
    }

    /// Found by random operations: the peer failed the connection for a first frame without a
    /// label.
    #[test]
    fn nothing_of_a_channel_passes_its_first_frame_where_the_bulk_was_cut() {
        let mut outgoing = OutgoingFrames::new(100);
        let mut placed = Placed::default();
        let bulk = outgoing.for_frame(Overtake::Nothing, false, &mut Placed::default());
        bulk.extend_from_slice(&[b'.'; 150]);
        let (part, _) = outgoing.take().expect("a part");
        assert_eq!(part.len(), 100);
        outgoing
            .for_frame(Overtake::Others, true, &mut placed)
            .extend_from_slice(b"open");
        outgoing
            .for_frame(Overtake::Nothing, false, &mut placed)
            .extend_from_slice(b"data");
        outgoing
            .for_frame(Overtake::Own, false, &mut placed)
            .extend_from_slice(b"flag");
        let mut all = Vec::new();
        while let Some((bytes, _)) = outgoing.take() {
            all.extend_from_slice(&bytes);
        }
        let all = String::from_utf8(all).expect("text");
        assert_eq!(all.trim_start_matches('.'), "opendataflag");
    }
}
