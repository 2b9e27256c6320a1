//! Notices: frames about the connection itself, on channel 0.

use std::task::Context;

use super::WebRtcCarrier;
use crate::carrier::CarrierEvent;
use crate::message::{FrameDecoder, Message};

/// Messages read from channel 0 in one call.
const MESSAGES_PER_NOTICE: usize = 64;

/// The state of notices: frames about the connection itself on channel 0, which has no other use
/// after Noise.
#[derive(Debug, Default)]
pub(super) struct Notices {
    decoder: FrameDecoder,
    /// Channel 0 may have more to read.
    pub(super) unread: bool,
    /// The peer supports notices: it runs this crate.
    pub(super) are_known: bool,
    /// The frame in which the peer gave the reason of its close.
    pub(super) goodbye: Option<Message>,
    pub(super) said_goodbye: bool,
}

impl Notices {
    /// Continues where Noise has ended.
    pub(super) fn resume(&mut self, decoder: FrameDecoder) {
        self.decoder = decoder;
        self.unread = true;
    }
}

impl WebRtcCarrier {
    /// Reads the next notice. Other frames on channel 0 belong to the end of Noise, after which
    /// some peers end or close the channel. They are passed on too, and count as frames without
    /// effect.
    pub(super) fn read_notice(&mut self, cx: &mut Context<'_>) -> Option<CarrierEvent> {
        self.notices.unread = true;
        for _ in 0..MESSAGES_PER_NOTICE {
            let message = match self.notices.decoder.next_message() {
                Ok(Some(message)) => message,
                Ok(None) => match self.engine.read(anabranch_rtc::CHANNEL_ZERO) {
                    Some(bytes) => {
                        self.notices.decoder.push(bytes);
                        continue;
                    }
                    None => {
                        self.notices.unread = false;
                        return None;
                    }
                },
                // Malformed: counted as a frame without effect.
                Err(_) => {
                    self.notices.decoder = FrameDecoder::new();
                    Message::default()
                }
            };
            if message.reason.is_some() && self.notices.goodbye.is_none() {
                self.notices.goodbye = Some(message);
                continue;
            }
            return Some(CarrierEvent::Notice { message });
        }
        // A frame in many parts: yields to the driver's other work.
        cx.waker().wake_by_ref();
        None
    }
}
