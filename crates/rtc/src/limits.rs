//! Limits that every engine has.

/// Maximum length of inbound datagrams: a DTLS record of 16 KiB (RFC 9147 section 4) with its
/// header.
pub const MAX_DATAGRAM: usize = 16 * 1024 + 64;

/// Memory for outgoing control frames of many substreams, in addition to the limit of data.
pub const CONTROL_ROOM: usize = 1024 * 1024;

/// Maximum length of a data channel label in bytes; DCEP allows 65 535 (RFC 8832).
pub const MAX_LABEL: usize = 1024;

/// Maximum channels, of the 65 535 that SCTP allows.
pub const MAX_CHANNELS: usize = 32_768;

/// Maximum channels before the peer is authenticated. No known peer opens any; js-libp2p allows 10.
pub const MAX_EARLY_CHANNELS: usize = 16;
