//! STUN messages with arbitrary contents.

use anabranch_rtc::sha1_hmac;

/// Bytes of a STUN header (RFC 8489 section 5).
pub(super) const STUN_HEADER: usize = 20;

/// A STUN message under construction, whose encoded bytes are its field. Nothing is validated.
#[derive(Debug)]
pub struct ForgedStun(pub Vec<u8>);

impl ForgedStun {
    /// A message of type `kind` without attributes. Its transaction ID is 12 times `transaction`.
    pub fn new(kind: u16, transaction: u8) -> Self {
        let mut bytes = kind.to_be_bytes().to_vec();
        bytes.extend_from_slice(&[0, 0, 0x21, 0x12, 0xa4, 0x42]);
        bytes.extend_from_slice(&[transaction; 12]);
        Self(bytes)
    }

    /// Overwrites the length field of the header.
    pub fn set_length(&mut self, length: u16) {
        self.0[2..4].copy_from_slice(&length.to_be_bytes());
    }

    /// Appends an attribute with its padding, and updates the length field.
    pub fn add(&mut self, kind: u16, value: &[u8]) {
        self.0.extend_from_slice(&kind.to_be_bytes());
        let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        let length = u16::try_from(self.0.len() - STUN_HEADER).unwrap_or(u16::MAX);
        self.set_length(length);
    }

    /// Appends MESSAGE-INTEGRITY, over a header whose length includes it (RFC 8489 section 14.5).
    pub fn sign(&mut self, password: &[u8]) {
        let length = u16::try_from(self.0.len() - STUN_HEADER + 24).unwrap_or(u16::MAX);
        self.set_length(length);
        let integrity = sha1_hmac(password, &[&self.0]);
        self.add(0x0008, &integrity);
    }
}
