//! Reliable, backpressured, cleanly closing byte streams over WebRTC data channels.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod address;
pub mod certificate;
pub mod identity;
mod noise;
mod ufrag;

pub use address::Address;
pub use certificate::Certificate;
pub use certificate::Fingerprint;
pub use identity::Identity;
pub use identity::PeerId;
pub use identity::PublicKey;
pub use noise::NoiseError;
pub use ufrag::Version as WebRtcDirectVersion;
