//! Reliable, backpressured, cleanly closing byte streams over WebRTC data channels.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod carrier;
pub mod connection;
pub mod identity;
pub mod message;
pub mod substream;

pub use connection::{
    Config, ConfigError, Connection, ConnectionError, ConnectionStats, Driver, FinAckPolicy,
    Negotiation, OpenError,
};
pub use identity::PeerId;
pub use substream::{CloseOutcome, ReadHalf, Substream, SubstreamError, WriteHalf};
