//! The channels of one WebSocket: their numbers, and their unread frames.
//!
//! ```text
//! open ──► announced ──► in use ──► closed by either side, or by both
//! own      first frame              removed: frames of lower unknown numbers are late
//! ```
//!
//! Numbers are not reused. So a frame of an unknown channel is late if its number is not above the
//! highest one, and no state has to be kept for closed channels.

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::Bytes;

use super::error::WebSocketError;
use super::outgoing::Placed;
use crate::carrier::{ChannelId, OpenChannelError};
use crate::message::Flag;
use crate::message::mux::MAX_STREAM;

/// Maximum length of a label, in bytes, which the first frame of a channel has to hold.
pub(super) const MAX_LABEL: usize = 1024;

/// Maximum stream numbers remembered as answered with RESET_STREAM, so that a burst of late frames
/// is answered once.
const MAX_RESET: usize = 256;

/// Flags sent and received, from which both sides know that a channel is closed.
#[derive(Debug, Clone, Copy, Default)]
struct Passed(u8);

impl Passed {
    const FIN_SENT: u8 = 1;
    const FIN_RECEIVED: u8 = 2;
    const FIN_ACK_SENT: u8 = 4;
    const FIN_ACK_RECEIVED: u8 = 8;
    const ALL_FINS: u8 = 15;
    const RESET: u8 = 16;

    fn both_ends_know(self) -> bool {
        self.0 & Self::RESET != 0 || self.0 & Self::ALL_FINS == Self::ALL_FINS
    }
}

/// One channel.
#[derive(Debug, Default)]
pub(super) struct Channel {
    unread: VecDeque<Bytes>,
    passed: Passed,
    /// The peer has closed it; removed when it has been read.
    closed_by_peer: bool,
    pub(super) placed: Placed,
}

impl Channel {
    pub(super) fn is_open(&self) -> bool {
        !self.closed_by_peer
    }

    pub(super) fn sent(&mut self, flag: Flag) {
        self.passed.0 |= match flag {
            Flag::Fin => Passed::FIN_SENT,
            Flag::FinAck => Passed::FIN_ACK_SENT,
            Flag::ResetStream => Passed::RESET,
            Flag::StopSending => 0,
        };
    }

    fn received(&mut self, flag: Flag) {
        self.passed.0 |= match flag {
            Flag::Fin => Passed::FIN_RECEIVED,
            Flag::FinAck => Passed::FIN_ACK_RECEIVED,
            Flag::ResetStream => Passed::RESET,
            Flag::StopSending => 0,
        };
    }

    /// Whether the close has to be sent to the peer.
    pub(super) fn needs_close(&self) -> bool {
        !self.closed_by_peer && !self.passed.both_ends_know()
    }
}

/// The channel of a frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// A known channel.
    Known,
    /// A channel that this frame opens.
    New,
    /// A closed channel.
    Late,
}

/// All channels of a WebSocket.
#[derive(Debug)]
pub(super) struct Channels {
    known: HashMap<u64, Channel>,
    /// The parity of the numbers of this side.
    own_parity: u64,
    next_own: u64,
    highest_of_peer: u64,
    /// Channels whose first frame is not queued yet, in the order of their numbers.
    unannounced: VecDeque<(u64, String)>,
    reset: HashSet<u64>,
    reset_order: VecDeque<u64>,
}

impl Channels {
    pub(super) fn new(is_client: bool) -> Self {
        Self {
            known: HashMap::new(),
            own_parity: if is_client { 0 } else { 1 },
            // 0 is reserved.
            next_own: if is_client { 2 } else { 1 },
            highest_of_peer: 0,
            unannounced: VecDeque::new(),
            reset: HashSet::new(),
            reset_order: VecDeque::new(),
        }
    }

    pub(super) fn open(&mut self, label: &str) -> Result<ChannelId, OpenChannelError> {
        if label.len() > MAX_LABEL {
            return Err(OpenChannelError::LabelTooLong {
                len: label.len(),
                max: MAX_LABEL,
            });
        }
        let number = self.next_own;
        if number > MAX_STREAM {
            return Err(OpenChannelError::Exhausted);
        }
        self.next_own += 2;
        self.known.insert(number, Channel::default());
        self.unannounced.push_back((number, label.to_owned()));
        Ok(ChannelId::new(number))
    }

    /// The first channel that is not announced yet, if it is not above `up_to`. First frames are
    /// sent in the order of their numbers.
    pub(super) fn next_unannounced(&mut self, up_to: u64) -> Option<(u64, String)> {
        let (number, _) = self.unannounced.front()?;
        if *number > up_to {
            return None;
        }
        self.unannounced.pop_front()
    }

    pub(super) fn has_unannounced(&self) -> bool {
        !self.unannounced.is_empty()
    }

    pub(super) fn get_mut(&mut self, channel: ChannelId) -> Option<&mut Channel> {
        self.known.get_mut(&channel.get())
    }

    pub(super) fn remove(&mut self, channel: ChannelId) -> Option<Channel> {
        self.known.remove(&channel.get())
    }

    /// Returns the channel of a frame, and creates the one that it opens.
    pub(super) fn route(
        &mut self,
        stream: u64,
        label: Option<&str>,
    ) -> Result<Route, WebSocketError> {
        let is_own = stream % 2 == self.own_parity;
        let is_new = if is_own {
            if stream == 0 || stream >= self.next_own {
                return Err(WebSocketError::UnexpectedStream { stream });
            }
            false
        } else {
            stream > self.highest_of_peer
        };
        if !is_new {
            if label.is_some() {
                // Only a first frame has a label.
                return Err(if is_own || self.known.contains_key(&stream) {
                    WebSocketError::UnexpectedLabel { stream }
                } else {
                    WebSocketError::UnexpectedStream { stream }
                });
            }
            return Ok(match self.known.get(&stream) {
                Some(channel) if channel.is_open() => Route::Known,
                _ => Route::Late,
            });
        }
        if stream > MAX_STREAM {
            return Err(WebSocketError::UnexpectedStream { stream });
        }
        if label.is_none() {
            return Err(WebSocketError::MissingLabel { stream });
        }
        self.highest_of_peer = stream;
        self.known.insert(stream, Channel::default());
        Ok(Route::New)
    }

    /// Records a flag received on a known channel.
    pub(super) fn received_flag(&mut self, stream: u64, flag: Flag) {
        if let Some(channel) = self.known.get_mut(&stream) {
            channel.received(flag);
        }
    }

    /// Queues bytes received on a known channel.
    pub(super) fn received_bytes(&mut self, stream: u64, bytes: Bytes) {
        if let Some(channel) = self.known.get_mut(&stream) {
            channel.unread.push_back(bytes);
        }
    }

    /// The peer has closed a known channel. Unread bytes stay readable.
    pub(super) fn closed_by_peer(&mut self, stream: u64) {
        if let Some(channel) = self.known.get_mut(&stream) {
            channel.closed_by_peer = true;
        }
    }

    pub(super) fn read(&mut self, channel: ChannelId) -> Option<Bytes> {
        let entry = self.known.get_mut(&channel.get())?;
        let bytes = entry.unread.pop_front();
        if bytes.is_none() && entry.closed_by_peer {
            self.known.remove(&channel.get());
        }
        bytes
    }

    /// Whether to answer late data of this channel with RESET_STREAM: once.
    pub(super) fn resets_late_data(&mut self, stream: u64) -> bool {
        if !self.reset.insert(stream) {
            return false;
        }
        self.reset_order.push_back(stream);
        if self.reset_order.len() > MAX_RESET
            && let Some(oldest) = self.reset_order.pop_front()
        {
            self.reset.remove(&oldest);
        }
        true
    }

    /// The number of known channels, and of other remembered stream numbers.
    #[cfg(test)]
    pub(super) fn len(&self) -> (usize, usize) {
        (self.known.len(), self.reset.len() + self.unannounced.len())
    }
}
