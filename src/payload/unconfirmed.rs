//! The time between the last byte of a payload and its receipt.

use std::fmt;

use tokio::io::AsyncWrite;

use super::body::{Body, Payload, Received};
use crate::error::payload::PayloadError;

/// A payload that has arrived completely, and whose receipt the sender waits for: see
/// [`Payload::copy_unconfirmed`].
///
/// # Drop
/// Cancels the payload, as the drop of [`Payload`] does.
pub struct Unconfirmed {
    body: Body,
}

impl Payload {
    /// Copies the payload to `writer`, flushes it, and checks length and hash, as
    /// [`Payload::copy_to`] does, but sends no receipt yet: for a receiver that first has to store
    /// what it has received, so that the sender does not take it for stored before.
    ///
    /// ```no_run
    /// # use std::path::Path;
    /// # use anabranch::payload::Payload;
    /// # use tokio::fs;
    /// async fn store(
    ///     payload: Payload,
    ///     part: &Path,
    ///     name: &Path,
    /// ) -> Result<(), Box<dyn std::error::Error>> {
    ///     let mut file = fs::File::create(part).await?;
    ///     let complete = payload.copy_unconfirmed(&mut file).await?;
    ///     file.sync_all().await?;
    ///     fs::rename(part, name).await?;
    ///     complete.confirm().await?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors, cancel safety
    /// Those of [`Payload::copy_to`].
    pub async fn copy_unconfirmed<W>(mut self, writer: &mut W) -> Result<Unconfirmed, PayloadError>
    where
        W: AsyncWrite + Unpin,
    {
        self.body.copy(writer).await?;
        Ok(Unconfirmed { body: self.body })
    }
}

impl Unconfirmed {
    /// What has been received.
    pub fn received(&self) -> Received {
        self.body.summary()
    }

    /// Sends the receipt. The sender waits for it no longer than its
    /// [`PayloadConfig::idle_timeout`](super::PayloadConfig::idle_timeout).
    ///
    /// # Errors
    /// [`PayloadError::Cancelled`] if a [`Canceller`](super::Canceller) was faster, and
    /// [`PayloadError::Expired`] once
    /// [`PayloadConfig::time_limit`](super::PayloadConfig::time_limit) is over and another payload
    /// has taken the slot. Whether the receipt arrives is unknown: a sender that misses it sends
    /// the payload again.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the payload, if the receipt has not been sent.
    pub async fn confirm(mut self) -> Result<Received, PayloadError> {
        self.body.confirm_copy().await
    }

    /// Cancels the payload: the sender gets RESET_STREAM with `code`.
    pub fn cancel(mut self, code: u32) {
        self.body.cancel(code);
    }
}

impl fmt::Debug for Unconfirmed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unconfirmed")
            .field("received", &self.received())
            .finish_non_exhaustive()
    }
}
