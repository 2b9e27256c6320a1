//! An engine controlled by a script, which decides what its SCTP sends.

use std::time::Instant;

use anabranch_sctp::Association;
use bytes::Bytes;

use super::DirectEngine;
use crate::transmit::TransmitQueue;

/// Maximum refused channels that the peer has not closed.
pub const MAX_REFUSED: usize = super::channels::MAX_REFUSED;

/// Encodes DATA_CHANNEL_OPEN for an ordered and reliable channel (RFC 8832 section 5.1).
pub fn encode_open(label: &str) -> Vec<u8> {
    super::dcep::encode_open(label)
}

impl DirectEngine {
    /// The association, without the rules of channels.
    pub fn association(&mut self) -> &mut Association {
        &mut self.channels.sctp
    }

    /// From now on SCTP only sends what is passed to [`DirectEngine::encrypt_packets`].
    pub fn script(&mut self) {
        self.is_scripted = true;
    }

    /// Whether nothing is left of any channel but channel 0.
    pub fn is_idle(&self) -> bool {
        self.channels.is_idle()
    }

    /// Whether the DTLS handshake is complete.
    pub fn is_dtls_up(&self) -> bool {
        self.is_dtls_established()
    }

    /// Whether the DTLS handshake has started.
    pub fn has_dtls(&self) -> bool {
        self.dtls.is_some()
    }

    /// Takes the packets that SCTP has to send. For a scripted engine, after `poll`.
    pub fn take_packets(&mut self, now: Instant) -> Vec<Bytes> {
        let packets = self.channels.sctp.poll_transmit(now);
        self.channels.handle_events();
        packets.unwrap_or_default()
    }

    /// Encrypts SCTP packets of any origin.
    pub fn encrypt_packets(&mut self, now: Instant, packets: &[Bytes], out: &mut TransmitQueue) {
        self.encrypt(now, packets, out);
        self.channels.handle_events();
    }

    /// As `poll`, but returns the packets of SCTP unencrypted, and the next timeout.
    pub fn poll_packets(
        &mut self,
        now: Instant,
        out: &mut TransmitQueue,
    ) -> Option<(Vec<Bytes>, Instant)> {
        if self.channels.is_ended() {
            return None;
        }
        let path_timeout = self.path.poll(now, out);
        self.handle_path_event(now);
        self.pump_inbound(now, out);
        let packets = self.take_packets(now);
        self.channels.update_backpressure();
        let timeouts = [self.dtls_timeout, self.channels.sctp.next_timeout()];
        let timeout = timeouts
            .into_iter()
            .flatten()
            .fold(path_timeout, Instant::min);
        Some((packets, timeout))
    }
}
