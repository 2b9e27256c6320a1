#![doc = include_str!("../README.md")]
//!
//! ## Inside
//!
//! ```text
//! datagram ─► Path: ICE, address validation               Path ─► datagram
//!        └──► DTLS ─► plaintext ─► SCTP ─► Channels ─► SCTP ─► DTLS ─► datagram
//! ```

#![forbid(unsafe_code)]

pub mod client_hello;
mod direct;
mod downgrade;
pub mod dtls;
mod engine;
mod hmac;
mod limits;
mod opening;
mod record_number;
mod records;
mod transmit;

pub use anabranch_sctp::{Ack, CongestionControl, Controller, Cubic, Ecn, Heed, Lost, Violation};
pub use direct::{Direct, DirectEngine};
pub use engine::{
    CHANNEL_ZERO, Certificate, ChannelId, Class, Datagram, EndReason, Engine, EngineFactory, Event,
    LimitExceeded, MAX_ADDRESSES, MakeEngine, OpenError, PathState, Probe, Role, Setup, Written,
};
pub use hmac::sha1_hmac;
pub use limits::{CONTROL_ROOM, MAX_CHANNELS, MAX_DATAGRAM, MAX_EARLY_CHANNELS, MAX_LABEL};
pub use records::Protected;
pub use transmit::{Run, TransmitQueue};

#[cfg(feature = "testing")]
pub use direct::scripted::{MAX_REFUSED, encode_open};
#[cfg(feature = "testing")]
pub use direct::validation::Validations;
