//! Limits that every engine has.

/// No peer sends longer datagrams.
pub const MAX_DATAGRAM: usize = 2000;

/// Most data that waits below, beside the budget of data: control frames of many substreams.
pub const CONTROL_ROOM: usize = 1024 * 1024;

/// Longest label of a data channel, in bytes; DCEP could carry 65 535 (RFC 8832).
pub const MAX_LABEL: usize = 1024;

/// Channels, of the 65 535 that SCTP has.
pub const MAX_CHANNELS: usize = 32_768;

/// Channels before the peer is authenticated. No known peer opens any; js-libp2p allows 10.
pub const MAX_EARLY_CHANNELS: usize = 16;
