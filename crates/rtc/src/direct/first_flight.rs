//! The answer of a listener to a ClientHello, kept for copies of it.
//!
//! dimpl answers what comes again by sending its flight again, four times at most, and counts its
//! own timeouts in the same four. Whoever sees a dial and copies its ClientHello four times from
//! another address gets the answers; the dialler, whose first answer was lost, gets no other. Here
//! a copy of the question gets a copy of the answer, as if the network had made both, and DTLS does
//! not hear of it. `webrtc/reachability.rs` bounds how much goes to whom.

use crate::client_hello::message_sequence;

/// Bytes of an answer that are kept. A longer one, with a chain of certificates, is left to DTLS.
const MAX_KEPT: usize = 16 * 1024;

/// What was sent after the last ClientHello that DTLS was given.
#[derive(Debug, Default)]
pub(super) struct FirstFlight {
    /// Of that ClientHello.
    sequence: Option<u16>,
    datagrams: Vec<Vec<u8>>,
    bytes: usize,
    /// The answer is being made.
    is_recording: bool,
    /// A copy has come.
    is_asked_again: bool,
}

impl FirstFlight {
    /// Whether this is a ClientHello that was answered. If so the answer is due again.
    pub(super) fn take_copy(&mut self, datagram: &[u8]) -> bool {
        let sequence = message_sequence(datagram);
        // An older one was answered with HelloRetryRequest, and that was answered.
        let is_known = sequence.is_some() && sequence <= self.sequence;
        let is_copy = is_known && !self.is_recording && !self.datagrams.is_empty();
        self.is_asked_again |= is_copy && sequence == self.sequence;
        is_copy
    }

    /// DTLS is given this.
    pub(super) fn given(&mut self, record: &[u8]) {
        if let Some(sequence) = message_sequence(record) {
            *self = Self {
                sequence: Some(sequence),
                is_recording: true,
                ..Self::default()
            };
        }
    }

    /// DTLS sends this.
    pub(super) fn sent(&mut self, datagram: &[u8]) {
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

    /// DTLS has sent all that it has to. Returns the answer, if a copy waits for it.
    pub(super) fn drained(&mut self) -> &[Vec<u8>] {
        self.is_recording &= self.datagrams.is_empty();
        match std::mem::take(&mut self.is_asked_again) {
            true => &self.datagrams,
            false => &[],
        }
    }
}
