//! Frames about the connection itself.

use std::task::Context;

use super::WebRtcCarrier;
use crate::carrier::CarrierEvent;
use crate::message::{FrameDecoder, Message};

/// Messages on channel 0 that are looked at for one frame.
const MESSAGES_PER_NOTICE: usize = 64;

/// Frames about the connection itself, on channel 0, which has no other use once Noise is over.
#[derive(Debug, Default)]
pub(super) struct Notices {
    decoder: FrameDecoder,
    /// There may be more to read.
    pub(super) unread: bool,
    /// The peer knows them: it is one of ours.
    pub(super) are_known: bool,
    /// The reason that the peer has given for its close.
    pub(super) goodbye: Option<Message>,
    pub(super) said_goodbye: bool,
}

impl WebRtcCarrier {
    /// The next frame about the connection. Anything else that comes on channel 0 is left over from Noise: some peers
    /// end or close it. It is passed on all the same, as a frame without effect, of which there are few.
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
                // Not frames: whatever it is, it is not for us.
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
        // One frame in many parts: the driver has other work too.
        cx.waker().wake_by_ref();
        None
    }
}
