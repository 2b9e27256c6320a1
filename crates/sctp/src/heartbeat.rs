//! HEARTBEATs of this side (RFC 9260 section 8.3), to ask whether the peer receives at an address.
//!
//! Below DTLS there is one path for SCTP, so what they are for there is done by ICE. But whoever brings back a nonce that
//! went out in one has the keys of the peer and receives where it went: what a challenge of ICE, which anybody can read,
//! can not show. RFC 9853 does the same in DTLS itself, which no deployed peer has; every SCTP answers a HEARTBEAT.

use bytes::{Bytes, BytesMut};

use super::packet::{Packets, kind, put_parameter};
use super::{Association, PORT};

/// The parameter Heartbeat Info (RFC 9260 section 3.3.6).
const HEARTBEAT_INFO: u16 = 1;

/// What a HEARTBEAT asks for.
pub type Nonce = [u8; 16];

impl Association {
    /// A packet of its own with a HEARTBEAT, if the association is up.
    pub fn heartbeat(&self, nonce: &Nonce) -> Option<Bytes> {
        if !self.is_up() {
            return None;
        }
        let peer = self.peer?;
        let header = ([PORT, self.peer_port], peer.tag);
        let mut packets = Packets::new(
            self.config.max_packet,
            header,
            peer.zero_checksum,
            BytesMut::new(),
        );
        let mut value = Vec::with_capacity(4 + nonce.len());
        put_parameter(&mut value, HEARTBEAT_INFO, nonce);
        packets.put(kind::HEARTBEAT, 0, &value);
        packets.finish().0.pop()
    }

    /// The nonce that a HEARTBEAT-ACK has brought since this was last asked; the last of several.
    pub fn take_heartbeat_ack(&mut self) -> Option<Nonce> {
        self.heartbeat_ack.take()
    }

    pub(super) fn on_heartbeat_ack(&mut self, value: &[u8]) {
        let nonce = value
            .strip_prefix(&[0, 1, 0, 20])
            .and_then(|nonce| nonce.try_into().ok());
        self.heartbeat_ack = nonce.or(self.heartbeat_ack);
    }
}
