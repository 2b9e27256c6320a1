//! The engine in the hands of a script, which decides what its SCTP says.

use std::time::Instant;

use anabranch_sctp::Association;
use bytes::Bytes;

use super::DirectEngine;
use crate::transmit::TransmitQueue;

/// Channels that were refused and that the peer has not closed.
pub const MAX_REFUSED: usize = super::channels::MAX_REFUSED;

/// A `DATA_CHANNEL_OPEN` for an ordered and reliable channel (RFC 8832 section 5.1).
pub fn encode_open(label: &str) -> Vec<u8> {
    super::dcep::encode_open(label)
}

impl DirectEngine {
    /// The association, without the rules of channels.
    pub fn association(&mut self) -> &mut Association {
        &mut self.channels.sctp
    }

    /// From now on SCTP says only what goes through [`DirectEngine::encrypt_packets`].
    pub fn script(&mut self) {
        self.is_scripted = true;
    }

    /// Whether nothing is left of any channel but channel 0.
    pub fn is_idle(&self) -> bool {
        self.channels.is_idle()
    }

    /// Whether the handshake of DTLS is done.
    pub fn is_dtls_up(&self) -> bool {
        self.dtls_up
    }

    /// Whether the handshake of DTLS has begun.
    pub fn has_dtls(&self) -> bool {
        self.dtls.is_some()
    }

    /// The packets that SCTP has to send. Of a scripted engine, after `poll`.
    pub fn take_packets(&mut self, now: Instant) -> Vec<Bytes> {
        let packets = self.channels.sctp.poll_transmit(now);
        self.channels.handle_events();
        packets.unwrap_or_default()
    }

    /// Encrypts packets of SCTP, whoever made them.
    pub fn encrypt_packets(&mut self, now: Instant, packets: &[Bytes], out: &mut TransmitQueue) {
        self.encrypt(now, packets, out);
        self.channels.handle_events();
    }

    /// As `poll`, but that the packets of SCTP are returned, not encrypted. With when to call
    /// `handle_timeout` next.
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
        self.pump_in(now, out);
        let packets = self.take_packets(now);
        self.channels.relieve();
        let timeouts = [self.dtls_timeout, self.channels.sctp.next_timeout()];
        let timeout = timeouts
            .into_iter()
            .flatten()
            .fold(path_timeout, Instant::min);
        Some((packets, timeout))
    }
}
