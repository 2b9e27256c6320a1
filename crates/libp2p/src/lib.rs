//! WebRTC Direct for [rust-libp2p](https://github.com/libp2p/rust-libp2p), on
//! [`anabranch`](https://docs.rs/anabranch): browsers, go-libp2p, js-libp2p and other peers reach a
//! node without TLS certificates, and every substream has backpressure and a close that loses
//! nothing.
//!
//! It takes the place of `libp2p-webrtc` in one line:
//!
//! ```
//! # use libp2p_identity::Keypair;
//! # fn main() -> Result<(), anabranch_libp2p::ConfigError> {
//! # let keypair = Keypair::generate_ed25519();
//! let transport = anabranch_libp2p::Transport::new(&keypair)?;
//! # Ok(())
//! # }
//! ```
//!
//! With `libp2p::SwarmBuilder` that is
//! `.with_other_transport(|keypair| Ok(anabranch_libp2p::Transport::new(keypair)?))`. Dialling,
//! listening and closing need a tokio runtime.
//!
//! The identity of the node gives the certificate too, so an address with its `/certhash` stays
//! valid when the node starts again.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod address;
mod certhash;
mod config;
mod connection;
mod error;
mod listener;
mod punching;
mod transport;

pub use certhash::WithCerthash;
pub use config::{Config, ConfigError};
pub use connection::{Connection, Stream};
pub use error::Error;
pub use transport::Transport;

/// The example of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
