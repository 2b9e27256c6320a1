//! Reliable, backpressured, cleanly closing byte streams over WebRTC data channels.
//!
//! An `Endpoint` listens on UDP for peers and browsers (libp2p webrtc-direct v1 and v2), dials
//! other peers, and authenticates every peer with Noise. A [`Connection`] opens and accepts
//! [`Substream`]s: byte streams with `tokio::io` and `futures::io` traits, whose close is confirmed
//! by the peer. Where UDP is blocked, the same substreams run over a WebSocket.
//!
//! | module | feature | what it is |
//! |---|---|---|
//! | `endpoint` | `webrtc` | listening and dialling over UDP, and several addresses of a peer |
//! | `websocket` | `websocket` | the same connections over one WebSocket |
//! | `noise` | either | the handshake of both, on its own |
//! | [`delimited`] | | messages as a unit on a substream |
//! | [`payload`] | | large objects, with length, progress, limits, a hash and a receipt |
//! | [`connection`] | | connections, also over a [`carrier`] of your own |
//! | [`substream`] | | the byte streams |
//! | [`message`] | | the wire format, without a runtime |
//!
//! Connections and endpoints need a tokio runtime with time and I/O enabled.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

#[cfg(feature = "transport")]
pub mod address;
pub mod carrier;
#[cfg(feature = "transport")]
pub mod certificate;
pub mod connection;
pub mod delimited;
#[cfg(feature = "webrtc")]
pub mod endpoint;
mod error;
pub mod events;
pub mod identity;
#[cfg(any(feature = "webrtc", feature = "websocket"))]
mod interfaces;
pub mod message;
#[cfg(feature = "transport")]
pub mod noise;
pub mod payload;
#[cfg(test)]
mod random;
#[cfg(any(feature = "webrtc", feature = "websocket"))]
mod rates;
pub mod substream;
#[cfg(feature = "webrtc")]
pub mod udp;
#[cfg(feature = "webrtc")]
mod ufrag;
mod waiters;
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
    Negotiation, OpenError, Opening,
};
#[cfg(feature = "webrtc")]
pub use endpoint::{
    Accepting, BindError, CongestionControl, ConnectAnyError, ConnectError, Drained, Endpoint,
    EndpointBuilder, EndpointConfig, EngineFactory, Incoming, Reached, Security,
};
pub use error::{ConnectionError, LimitExceeded, SctpViolation, WebRtcError};
pub use events::{ConnectionInfo, Events, Initiator, SubstreamInfo};
pub use identity::PeerId;
#[cfg(feature = "transport")]
pub use identity::{Identity, PublicKey};
#[cfg(feature = "transport")]
pub use noise::NoiseError;
#[cfg(any(feature = "webrtc", feature = "websocket"))]
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

/// The listener for web pages compiles too.
#[cfg(doctest)]
#[doc = include_str!("../js/README.md")]
struct BrowserReadme;
