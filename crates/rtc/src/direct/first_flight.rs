//! The listener's response to a ClientHello, kept for copies of it.
//!
//! dimpl answers a repeated ClientHello by retransmitting its flight, four times at most, and its
//! own timeouts count towards the four. An attacker who sees a dial and copies its ClientHello four
//! times from another address gets the responses; the dialler, whose first response was lost, gets
//! none. Here a copy of the request gets a copy of the response, as if the network had duplicated
//! both, and DTLS does not see it. `webrtc/reachability.rs` limits how much is sent to each
//! address.

use crate::client_hello::message_sequence;

/// Maximum bytes kept. A longer response, with a chain of certificates, is left to DTLS.
const MAX_KEPT: usize = 16 * 1024;

/// The datagrams sent after the last ClientHello that was passed to DTLS.
#[derive(Debug, Default)]
pub(super) struct FirstFlight {
    /// `message_seq` of that ClientHello.
    message_seq: Option<u16>,
    datagrams: Vec<Vec<u8>>,
    bytes: usize,
    /// DTLS is producing the response.
    is_recording: bool,
    /// A copy has arrived.
    is_resend_due: bool,
}

impl FirstFlight {
    /// Whether this is a copy of a ClientHello that was answered. If so, the response is due again.
    pub(super) fn take_copy(&mut self, datagram: &[u8]) -> bool {
        let message_seq = message_sequence(datagram);
        // An older one was answered with HelloRetryRequest, which was answered in turn.
        let is_known = message_seq.is_some() && message_seq <= self.message_seq;
        let is_copy = is_known && !self.is_recording && !self.datagrams.is_empty();
        self.is_resend_due |= is_copy && message_seq == self.message_seq;
        is_copy
    }

    /// Notes a record that is passed to DTLS.
    pub(super) fn on_input(&mut self, record: &[u8]) {
        if let Some(message_seq) = message_sequence(record) {
            *self = Self {
                message_seq: Some(message_seq),
                is_recording: true,
                ..Self::default()
            };
        }
    }

    /// Notes a datagram that DTLS sends.
    pub(super) fn on_output(&mut self, datagram: &[u8]) {
        if !self.is_recording {
            return;
        }
        self.bytes += datagram.len();
        if self.bytes > MAX_KEPT {
            *self = Self::default();
            return;
        }
        self.datagrams.push(datagram.to_vec());
    }

    /// DTLS is drained. Returns the response if a copy waits for it.
    pub(super) fn take_resend(&mut self) -> &[Vec<u8>] {
        self.is_recording &= self.datagrams.is_empty();
        match std::mem::take(&mut self.is_resend_due) {
            true => &self.datagrams,
            false => &[],
        }
    }
}
