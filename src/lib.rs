//! Reliable, backpressured, cleanly closing byte streams over WebRTC data channels.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod address;
pub mod carrier;
pub mod certificate;
pub mod connection;
pub mod endpoint;
pub mod identity;
pub mod message;
mod noise;
#[cfg(any(test, feature = "testing"))]
pub mod simulator;
pub mod substream;
mod ufrag;
mod webrtc;

pub use address::Address;
pub use certificate::{Certificate, Fingerprint};
pub use connection::{
    Config, ConfigError, Connection, ConnectionError, ConnectionStats, Driver, FinAckPolicy,
    Negotiation, OpenError,
};
pub use endpoint::{
    BindError, ConnectError, Endpoint, EndpointBuilder, EndpointConfig, Incoming, Security,
};
pub use identity::{Identity, PeerId, PublicKey};
pub use noise::NoiseError;
pub use substream::{CloseOutcome, ReadHalf, Substream, SubstreamError, WriteHalf};
pub use ufrag::Version as WebRtcDirectVersion;
