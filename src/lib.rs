//! Reliable, backpressured, cleanly closing byte streams over WebRTC data channels.
//!
//! An [`Endpoint`] listens on UDP for peers and browsers (libp2p webrtc-direct v1 and v2), dials
//! others, and authenticates both with Noise. A [`Connection`] opens and accepts [`Substream`]s: byte
//! streams with `tokio::io` and `futures::io` traits, whose close is confirmed by the peer.
//!
//! | layer | module | use it alone for |
//! |---|---|---|
//! | frames | [`message`] | reading and writing the wire format, without a runtime |
//! | substreams | [`substream`] | what every user holds |
//! | payloads | [`payload`] | whole files and the like, with length, progress and a confirmation |
//! | connection | [`connection`] | substreams over a [`carrier`] of your own |
//! | endpoint | [`endpoint`] | WebRTC over UDP |
//!
//! Connections and endpoints need a tokio runtime with time and I/O enabled.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod address;
pub mod carrier;
pub mod certificate;
pub mod connection;
pub mod endpoint;
mod error;
pub mod events;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod identity;
pub mod message;
mod noise;
pub mod payload;
#[cfg(test)]
mod random;
#[cfg(any(test, feature = "testing"))]
pub mod simulator;
pub mod substream;
mod udp;
mod ufrag;
mod webrtc;
#[cfg(feature = "websocket")]
pub mod websocket;

pub use address::Address;
pub use certificate::{Certificate, Fingerprint};
pub use connection::{
    CeilingPolicy, Config, ConfigError, Connection, ConnectionStats, Driver, FinAckPolicy,
    Negotiation, OpenError,
};
pub use endpoint::{
    BindError, ConnectAnyError, ConnectError, Endpoint, EndpointBuilder, EndpointConfig,
    EngineFactory, Incoming, RateLimit, Reached, Security,
};
pub use error::{ConnectionError, LimitExceeded, SctpViolation, WebRtcError};
pub use events::{ConnectionInfo, Events, Initiator, SubstreamInfo};
pub use identity::{Identity, PeerId, PublicKey};
pub use noise::NoiseError;
pub use substream::{
    CloseOutcome, FinishError, Finished, ReadHalf, Substream, SubstreamError, SubstreamStats,
    WriteHalf,
};
pub use ufrag::Version as WebRtcDirectVersion;

/// The examples of the README compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
