//! Splits messages into frames, whatever the boundaries of the messages.

use bytes::{Buf, Bytes, BytesMut};

use super::error::WebSocketError;
use super::upgrade::READ_BUFFER;
use crate::message::Flag;
use crate::message::mux::{Head, Notice, peek};

/// A slice keeps its whole message alive. A slice of less than this fraction of it is copied, so
/// that a stalled reader holds at most this many times its bytes.
const MAX_PINNED: usize = 4;

/// Smaller frames are copied when they are queued for a reader, so they are not copied here.
const COPIED_LATER: usize = 512;

/// Maximum length of a run of frames of one channel that is delivered as one slice, so that other
/// channels get their turn.
const MAX_RUN: usize = 64 * 1024;

/// Maximum frames in a run, as parsing takes time for each of them, however short.
const MAX_RUN_FRAMES: usize = 256;

/// A frame with the fields that the carrier needs.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) stream: u64,
    pub(super) label: Option<String>,
    pub(super) flag: Option<Flag>,
    pub(super) error_code: Option<u32>,
    pub(super) closes_channel: bool,
    pub(super) has_payload: bool,
    pub(super) notice: Notice,
    /// The whole frame, and those of its run.
    pub(super) bytes: Bytes,
}

impl Frame {
    fn new(head: &Head<'_>) -> Result<Self, WebSocketError> {
        Ok(Self {
            stream: head.stream.ok_or(WebSocketError::MissingStream)?,
            label: head.label.map(str::to_owned),
            flag: head.flag,
            error_code: head.error_code,
            closes_channel: head.closes_channel,
            has_payload: head.has_payload,
            notice: head.notice,
            bytes: Bytes::new(),
        })
    }
}

/// The stream of frames in the messages.
#[derive(Debug, Default)]
pub(super) struct IncomingFrames {
    /// The rest of the last message.
    message: Bytes,
    /// Length of the whole message.
    message_len: usize,
    /// The beginning of a frame that continues in the next message.
    partial: BytesMut,
    /// Maximum length of a frame in bytes; zero for the general maximum.
    max_frame: usize,
}

impl IncomingFrames {
    /// Accepts frames of at most `max_frame` bytes.
    pub(super) fn limited(max_frame: usize) -> Self {
        Self {
            max_frame,
            ..Self::default()
        }
    }

    /// Accepts frames up to the general maximum.
    pub(super) fn unlimit(&mut self) {
        self.max_frame = 0;
    }

    /// Rejects a frame that will be longer than `max_frame`.
    fn check(&self, len: usize) -> Result<(), WebSocketError> {
        if self.max_frame > 0 && len > self.max_frame {
            return Err(WebSocketError::MessageTooLong {
                size: len,
                max: self.max_frame,
            });
        }
        Ok(())
    }

    /// Adds a message, once the last one has been consumed.
    pub(super) fn push(&mut self, message: Bytes) {
        debug_assert!(self.message.is_empty(), "the last message is consumed");
        self.message_len = message.len();
        self.message = message;
    }

    /// Returns the next frame; `None` if it is incomplete.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, WebSocketError> {
        if self.message.is_empty() {
            return Ok(None);
        }
        if !self.partial.is_empty() {
            return self.complete_partial();
        }
        let Some(head) = peek(&self.message).map_err(WebSocketError::Framing)? else {
            self.check(self.message.len().saturating_add(missing(&self.message)))?;
            self.partial.extend_from_slice(&self.message);
            self.message = Bytes::new();
            return Ok(None);
        };
        let mut frame = Frame::new(&head)?;
        let mut len = head.len;
        if is_plain(&head) {
            // Consecutive frames of one channel form one slice.
            let mut frames = 1;
            while len < MAX_RUN
                && frames < MAX_RUN_FRAMES
                && let Some(more) = self.run_on(frame.stream, len)
            {
                len += more;
                frames += 1;
            }
        }
        frame.bytes = self.split(len);
        Ok(Some(frame))
    }

    /// Length of the frame at `at`, if it is one of `stream` with payload only.
    fn run_on(&self, stream: u64, at: usize) -> Option<usize> {
        // An error in it is reported when it is processed itself.
        let head = peek(self.message.get(at..)?).ok()??;
        (head.stream == Some(stream) && is_plain(&head)).then_some(head.len)
    }

    /// Splits `len` bytes off the message, which has at least as many.
    fn split(&mut self, len: usize) -> Bytes {
        let bytes = if len >= self.message.len() {
            std::mem::take(&mut self.message)
        } else {
            self.message.split_to(len)
        };
        let backing = self.message_len.max(READ_BUFFER);
        if len > COPIED_LATER && len.saturating_mul(MAX_PINNED) < backing {
            return Bytes::copy_from_slice(&bytes);
        }
        bytes
    }

    fn complete_partial(&mut self) -> Result<Option<Frame>, WebSocketError> {
        // The length prefix of a frame has at most three bytes. Bytes are added until the prefix is
        // complete, and then exactly the missing ones.
        loop {
            if let Some(head) = peek(&self.partial).map_err(WebSocketError::Framing)? {
                let len = head.len;
                let mut frame = Frame::new(&head)?;
                debug_assert_eq!(len, self.partial.len(), "exactly one frame");
                frame.bytes = self.partial.split_to(len).freeze();
                return Ok(Some(frame));
            }
            let missing = missing(&self.partial);
            self.check(self.partial.len().saturating_add(missing))?;
            let missing = missing.min(self.message.len());
            if missing == 0 {
                return Ok(None);
            }
            self.partial
                .extend_from_slice(self.message.get(..missing).unwrap_or_default());
            self.message.advance(missing);
        }
    }
}

fn is_plain(head: &Head<'_>) -> bool {
    head.flag.is_none() && !head.closes_channel && head.label.is_none() && head.notice.is_empty()
}

/// Number of missing bytes of the frame in `partial`, as far as known: one while the prefix is
/// incomplete.
fn missing(partial: &[u8]) -> usize {
    let mut len = 0_usize;
    for (index, byte) in partial.iter().enumerate().take(3) {
        len |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return (len + index + 1).saturating_sub(partial.len());
        }
    }
    1
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::message::mux::append_routed;
    use crate::message::{FrameDecoder, Message};

    #[test]
    fn s3_any_regrouping_gives_the_same_frames() {
        for seed in crate::random::seeds(200) {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut all = BytesMut::new();
            let mut expected = Vec::new();
            for _ in 0..50 {
                let stream = rng.random_range(1..300_u64);
                let len = match rng.random_range(0..4) {
                    0 => rng.random_range(0..4),
                    1 => rng.random_range(0..2000),
                    _ => rng.random_range(0..300),
                };
                let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
                let frame = Message::data(payload.clone().into()).encode();
                assert!(append_routed(&mut all, &frame, stream, None));
                expected.push((stream, payload));
            }
            let mut all = all.freeze();
            let mut incoming = IncomingFrames::default();
            let mut got = Vec::new();
            while !all.is_empty() {
                let cut = rng.random_range(1..=all.len().min(1500));
                incoming.push(all.split_to(cut));
                while let Some(frame) = incoming
                    .next()
                    .unwrap_or_else(|e| panic!("seed {seed}: {e}"))
                {
                    let mut decoder = FrameDecoder::new();
                    decoder.push(frame.bytes);
                    while let Some(message) = decoder.next_message().unwrap() {
                        got.push((frame.stream, message.payload.to_vec()));
                    }
                    assert!(decoder.is_empty());
                }
            }
            assert_eq!(got, expected, "seed {seed}");
            assert!(incoming.partial.is_empty());
        }
    }

    /// The limit of an incomplete frame, whose rest may never arrive.
    #[test]
    fn the_beginning_of_a_frame_is_16_kib_at_most() {
        let mut frame = BytesMut::new();
        let longest = Message::data(vec![7; 16_360].into()).encode();
        assert!(append_routed(&mut frame, &longest, 300, None));
        let mut incoming = IncomingFrames::default();
        let mut most = 0;
        for byte in frame.split_to(frame.len() - 1) {
            incoming.push(Bytes::copy_from_slice(&[byte]));
            assert!(incoming.next().unwrap().is_none());
            most = most.max(incoming.partial.len());
        }
        assert!((16_000..=16_384).contains(&most), "{most}");
        // The length prefix of a frame beyond the maximum.
        let mut incoming = IncomingFrames::default();
        incoming.push(Bytes::from_static(&[0xff, 0xff, 0x01]));
        assert!(matches!(incoming.next(), Err(WebSocketError::Framing(_))));
        assert!(incoming.partial.is_empty());
    }

    #[test]
    fn a_small_part_of_a_large_message_does_not_keep_it() {
        let mut incoming = IncomingFrames::default();
        let mut message = BytesMut::new();
        for (stream, len) in [(2, 1000), (4, 16_000), (4, 16_000), (2, 100)] {
            let frame = Message::data(vec![0; len].into()).encode();
            append_routed(&mut message, &frame, stream, None);
        }
        let message = message.freeze();
        let range = message.as_ptr_range();
        incoming.push(message);
        let mut within = || range.contains(&incoming.next().unwrap().unwrap().bytes.as_ptr());
        // The two frames in the middle are one run.
        assert_eq!([within(), within(), within()], [false, true, true]);
    }
}
