//! Codes that this crate itself sends in RESET_STREAM and STOP_SENDING.
//!
//! Values below `0x2000` are those of go-libp2p, so that its logs show their names.

/// Protocol negotiation failed or took too long.
pub const NEGOTIATION_FAILED: u32 = 0x1001;
/// The peer exceeded the limit of this side on substreams or unread bytes.
pub const RESOURCE_LIMIT: u32 = 0x1002;
/// The peer exceeded
/// [`Config::max_frames_without_effect`](crate::Config::max_frames_without_effect).
pub const RATE_LIMITED: u32 = 0x1003;
/// The peer violated the framing or the order of flags.
pub const PROTOCOL_VIOLATION: u32 = 0x1004;
/// The substream was dropped, and could not be closed gracefully in time.
pub const ABANDONED: u32 = 0x1006;
/// The connection closes before the stream has ended. Data received before stays readable; any
/// other RESET_STREAM before FIN drops it.
pub const SHUTDOWN: u32 = 0x1007;
/// The peer exceeded its flow control limit (`max_data`).
pub const FLOW_CONTROL: u32 = 0x2001;
/// The writing task panicked, so the stream is incomplete.
pub const PANICKED: u32 = 0x2002;
