//! Large payloads: one on a substream, with its length, metadata, progress, limits and a confirmation.
//!
//! A substream already carries any number of bytes. A payload is what an application sends as one
//! thing: a file, a state, an answer. Its receiver knows before the first byte how long it is and what
//! it is, refuses what it does not want, and can tell a whole one from one that was cut; its sender
//! knows when the receiver has all of it.
//!
//! ```no_run
//! use anabranch::Connection;
//! use anabranch::payload::{PayloadConfig, PayloadError, Payloads, Receiver, Sender};
//! use bytes::Bytes;
//!
//! # type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
//! async fn send(connection: &Connection, picture: Bytes) -> Result<()> {
//!     let substream = connection.open("/pictures/1").await?;
//!     let sender = Sender::new(substream, PayloadConfig::default())?;
//!     let sent = sender.metadata("river.png").hashed().send_bytes(picture).await?;
//!     println!("the receiver has all {} bytes", sent.total);
//!     Ok(())
//! }
//!
//! async fn receive(connection: &Connection) -> Result<()> {
//!     let receiver = Receiver::new(PayloadConfig::default())?;
//!     let mut payloads = Payloads::new(connection, "/pictures/1", &receiver);
//!     while let Some(payload) = payloads.accept().await {
//!         let payload = match payload {
//!             Ok(payload) => payload,
//!             Err(PayloadError::Connection(error)) => return Err(error.into()),
//!             // This one was refused, for its header for instance: others follow.
//!             Err(error) => {
//!                 eprintln!("refused: {error}");
//!                 continue;
//!             }
//!         };
//!         // A task for each: more can be received at once, and none ends another.
//!         tokio::spawn(async move {
//!             println!("{:?}, {:?} bytes", payload.metadata(), payload.total());
//!             match payload.assemble(1 << 20).await {
//!                 Ok(picture) => println!("{} bytes are here", picture.len()),
//!                 Err(error) => eprintln!("not received: {error}"),
//!             }
//!         });
//!     }
//!     Ok(())
//! }
//! ```
//!
//! # On the wire
//! `proto/payload.proto`: a header behind its length; then the bytes; then, if the header
//! announces one, 32 bytes of SHA-256; then FIN. The receiver answers with a receipt when it has
//! handed over the last byte. Without a length in the header the payload ends where the stream does. The hash
//! lies behind the bytes because who reads a source to send it does not know it earlier.
//!
//! # Resuming
//! [`Sender::send_resumable`] offers to leave out what the receiver has, and waits for its answer:
//! how many bytes from the beginning, and their hash ([`Payload::resume`]). The sender compares that with
//! its own first bytes, and says where it begins: there, or at zero because it has something else.
//! So neither side has to remember anything of an earlier attempt, a changed file is noticed, and the
//! hash at the end covers the whole payload: both sides have hashed the part that was skipped.
//!
//! # Which hash
//! SHA-256. It was measured beside BLAKE3 (its `pure` form, which needs no C) on pieces as they come from
//! frames: 1.1 to 1.4 GB/s against 0.8 to 0.9 with the SHA instructions that most machines have, and it
//! is in the tree of dependencies in any case. The header names the kind, so that another can be added.
//!
//! # Events
//! [`Events`](crate::Events) of the connection are told when a payload begins, how far it has come every
//! [`PayloadConfig::progress_interval`] bytes, and how it ends; [`Progress`] can be asked at any time.
//!
//! # Ends
//! Every error ends in a RESET_STREAM with a [`code`] that tells the other side why; it sees that as
//! [`Rejection`]. A reset drops what the other side has not read.
//! [`Connection::close`](crate::Connection::close) resets the payloads that are still being sent, with the
//! code [`SHUTDOWN`](crate::substream::code::SHUTDOWN), since its FIN would look like the end of one
//! whose length is not known; what is written to its end is delivered.

mod accept;
mod body;
mod config;
mod lease;
mod places;
mod receive;
mod send;
mod tell;
mod watch;
mod wire;

pub use crate::error::payload::{
    MessageError, PayloadError, Rejection, SendError, TimeLimit, code,
};
pub use accept::Payloads;
pub use body::{Payload, PayloadStream, Received};
pub use config::{PayloadConfig, PayloadConfigError};
pub use receive::Receiver;
pub use send::{Sender, Sent};
pub use watch::{Canceller, Progress};

use bytes::Bytes;

use crate::substream::Substream;

/// Sends `payload` with default limits and without metadata, and waits until the receiver has confirmed it;
/// see [`Sender::send_bytes`].
pub async fn send_bytes(substream: Substream, payload: Bytes) -> Result<Sent, SendError> {
    Sender::over(substream, PayloadConfig::default())
        .send_bytes(payload)
        .await
}

/// Receives one payload with default limits; see [`Receiver::receive`], which also bounds how many are
/// received at once.
pub async fn receive(substream: Substream) -> Result<Payload, PayloadError> {
    Receiver::default().receive(substream).await
}
