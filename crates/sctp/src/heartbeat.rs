//! Outgoing HEARTBEATs (RFC 9260 section 8.3), which verify that the peer receives at an address.
//!
//! Below DTLS, SCTP has one path, and ICE does what heartbeats do elsewhere. But a peer that
//! returns a nonce from a HEARTBEAT has the DTLS keys and receives at the destination. An ICE check
//! does not prove that, since anybody can read it. RFC 9853 does the same in DTLS, but no deployed
//! peer supports it; every SCTP answers a HEARTBEAT.

use bytes::{Bytes, BytesMut};

use super::bundle::Packets;
use super::packet::{kind, put_parameter};
use super::{Association, PORT, entropy};

/// The Heartbeat Info parameter (RFC 9260 section 3.3.6).
const HEARTBEAT_INFO: u16 = 1;

/// The information in a HEARTBEAT that its HEARTBEAT-ACK returns.
pub type Nonce = [u8; 16];

/// The value of a HEARTBEAT with this nonce.
pub(super) fn information(nonce: &Nonce) -> Vec<u8> {
    let mut value = Vec::with_capacity(4 + nonce.len());
    put_parameter(&mut value, HEARTBEAT_INFO, nonce);
    value
}

/// A new nonce.
pub(super) fn nonce() -> Nonce {
    let mut nonce = [0; 16];
    for word in nonce.as_chunks_mut().0 {
        *word = entropy::choose(0..=u32::MAX).to_be_bytes();
    }
    nonce
}

impl Association {
    /// A packet with nothing but a HEARTBEAT; `None` unless the association is established.
    pub fn heartbeat(&self, nonce: &Nonce) -> Option<Bytes> {
        if !self.is_up() {
            return None;
        }
        let peer = self.peer?;
        let header = ([PORT, self.peer_port], peer.tag);
        let mut packets = Packets::new(
            self.path_mtu.base(),
            header,
            peer.zero_checksum,
            BytesMut::new(),
        );
        packets.put(kind::HEARTBEAT, 0, &information(nonce));
        packets.finish().0.pop()
    }

    /// Takes the nonce of the last HEARTBEAT-ACK.
    pub fn take_heartbeat_ack(&mut self) -> Option<Nonce> {
        self.heartbeat_ack.take()
    }

    pub(super) fn on_heartbeat_ack(&mut self, value: &[u8]) {
        let nonce = value
            .strip_prefix(&[0, 1, 0, 20])
            .and_then(|nonce| Nonce::try_from(nonce).ok());
        if nonce.is_some_and(|nonce| self.on_mtu_answer(&nonce)) {
            return;
        }
        self.heartbeat_ack = nonce.or(self.heartbeat_ack);
    }
}
