//! Codes that anabranch itself puts into RESET_STREAM and STOP_SENDING.
//!
//! The values below `0x2000` are those of go-libp2p, so that its logs name them.

/// Protocol negotiation failed or took too long.
pub const NEGOTIATION_FAILED: u32 = 0x1001;
/// More substreams, or more unread bytes, than this side allows.
pub const RESOURCE_LIMIT: u32 = 0x1002;
/// The peer sent more frames without effect than it may
/// ([`Config::max_frames_without_effect`](crate::Config::max_frames_without_effect)).
pub const RATE_LIMITED: u32 = 0x1003;
/// The peer broke the framing or the order of flags.
pub const PROTOCOL_VIOLATION: u32 = 0x1004;
/// The substream was dropped and could not be closed gracefully in time.
pub const ABANDONED: u32 = 0x1006;
/// The connection closes, and the stream had not been ended. What was received before stays
/// readable; any other RESET_STREAM that arrives before FIN drops it.
pub const SHUTDOWN: u32 = 0x1007;
/// The peer sent more payload than it was granted (`max_data`).
pub const FLOW_CONTROL: u32 = 0x2001;
/// The task that wrote has panicked: what came before is not the whole stream.
pub const PANICKED: u32 = 0x2002;
