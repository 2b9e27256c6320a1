//! Reliable, backpressured, cleanly closing byte streams over WebRTC data channels.
//!
//! An [`Endpoint`] listens on UDP for peers and browsers (libp2p webrtc-direct v1 and v2), dials
//! others, and authenticates both with Noise. A [`Connection`] opens and accepts [`Substream`]s:
//! byte streams with `tokio::io` and `futures::io` traits, whose close is confirmed by the peer.
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

#[cfg(feature = "transport")]
pub mod address;
pub mod carrier;
#[cfg(feature = "transport")]
pub mod certificate;
pub mod connection;
#[cfg(feature = "webrtc")]
pub mod endpoint;
mod error;
pub mod events;
pub mod identity;
#[cfg(feature = "transport")]
mod interfaces;
pub mod message;
#[cfg(feature = "transport")]
pub mod noise;
pub mod payload;
#[cfg(test)]
mod random;
#[cfg(feature = "transport")]
mod rates;
pub mod substream;
#[cfg(feature = "webrtc")]
pub mod udp;
#[cfg(feature = "webrtc")]
mod ufrag;
#[cfg(feature = "webrtc")]
mod webrtc;
#[cfg(feature = "websocket")]
pub mod websocket;

#[cfg(feature = "transport")]
pub use address::Address;
#[cfg(feature = "webrtc")]
pub use anabranch_rtc as rtc;
#[cfg(feature = "transport")]
pub use certificate::{Certificate, Fingerprint};
pub use connection::{
    CeilingPolicy, Config, ConfigError, Connection, ConnectionStats, Driver, FinAckPolicy,
    Negotiation, OpenError,
};
#[cfg(feature = "webrtc")]
pub use endpoint::{
    BindError, ConnectAnyError, ConnectError, Endpoint, EndpointBuilder, EndpointConfig,
    EngineFactory, Incoming, Reached, Security,
};
pub use error::{ConnectionError, LimitExceeded, SctpViolation, WebRtcError};
pub use events::{ConnectionInfo, Events, Initiator, SubstreamInfo};
pub use identity::PeerId;
#[cfg(feature = "transport")]
pub use identity::{Identity, PublicKey};
#[cfg(feature = "transport")]
pub use noise::NoiseError;
#[cfg(feature = "transport")]
pub use rates::RateLimit;
pub use substream::{
    CloseOutcome, FinishError, Finished, ReadHalf, Substream, SubstreamError, SubstreamStats,
    WriteHalf,
};
#[cfg(feature = "webrtc")]
pub use ufrag::Version as WebRtcDirectVersion;

/// The examples of the README compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
