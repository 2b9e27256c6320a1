//! Large payloads, one per substream, with length, metadata, progress, limits and a confirmation.
//!
//! A payload is what an application sends as a unit: a file, a state, a response. The receiver
//! knows its length and metadata before the first byte, can refuse it, and can distinguish a
//! complete payload from a truncated one; the sender knows when the receiver has all of it.
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
//!             // This one was refused, for example for its header. Others follow.
//!             Err(error) => {
//!                 eprintln!("refused: {error}");
//!                 continue;
//!             }
//!         };
//!         // A task for each: they are received concurrently, and a failure affects only one.
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
//! `proto/payload.proto`: a length-prefixed header; then the bytes; then, if the header announces
//! it, 32 bytes of SHA-256; then FIN. The receiver answers with a receipt when it has delivered the
//! last byte. Without a length in the header the payload ends with the stream. The hash follows the
//! bytes because a sender that streams from a source does not know it earlier.
//!
//! # Resuming
//! [`Sender::send_resumable`] offers to skip what the receiver already has, and waits for its
//! answer: the length of that prefix, and its hash ([`Payload::resume`]). The sender compares the
//! hash with that of its own prefix, and answers with the offset at which it begins: the end of the
//! prefix, or zero if they differ. So neither side keeps state of an earlier attempt, a changed
//! file is detected, and the hash at the end covers the whole payload: both sides have hashed the
//! skipped part.
//!
//! # Choice of hash
//! SHA-256. On pieces of the size of frames it measured 1.1 to 1.4 GB/s, with the SHA instructions
//! that most machines have, against 0.8 to 0.9 GB/s of BLAKE3 (its `pure` form, which needs no C),
//! and it is a dependency already. The header names the hash function, so that another can be
//! added.
//!
//! # Events
//! [`Events`](crate::Events) of the connection report the beginning of a payload, its progress
//! every [`PayloadConfig::progress_interval`] bytes, and its end; [`Progress`] can be read at any
//! time.
//!
//! # Ends
//! Every error sends RESET_STREAM with a [`code`] for its cause, which the other side reports as
//! [`Rejection`]. A reset drops what the other side has not read.
//! [`Connection::close`](crate::Connection::close) resets payloads that are still being sent, with
//! the code [`SHUTDOWN`](crate::substream::code::SHUTDOWN), since FIN would look like the end of a
//! payload of unknown length; completely written payloads are delivered.

mod accept;
mod body;
mod config;
mod lease;

mod receive;
mod report;
mod send;
mod slots;

mod unconfirmed;
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
pub use unconfirmed::Unconfirmed;
pub use watch::{Canceller, Progress};

use bytes::Bytes;

use crate::substream::Substream;

/// Sends `payload` with default limits and without metadata, and waits for the confirmation of the
/// receiver; errors and cancel safety are those of [`Sender::send_bytes`].
pub async fn send_bytes(substream: Substream, payload: Bytes) -> Result<Sent, SendError> {
    Sender::over(substream, PayloadConfig::default())
        .send_bytes(payload)
        .await
}

/// Receives one payload with default limits; errors and cancel safety are those of
/// [`Receiver::receive`]. Unlike that it does not limit the number of concurrent payloads.
pub async fn receive(substream: Substream) -> Result<Payload, PayloadError> {
    Receiver::default().receive(substream).await
}
