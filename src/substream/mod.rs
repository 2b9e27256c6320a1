//! A reliable byte stream over one data channel.
//!
//! [`Substream`] and its halves implement the `tokio::io` and `futures::io` traits. What happens
//! underneath is in four files: [`state`](self) the pure transitions, `shared` the state and
//! buffers that a handle and the driver of the connection share, `send` and `recv` the buffers.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;

use crate::error::ConnectionError;

mod halves;
mod io_traits;
mod recv;
mod send;
mod shared;
mod siblings;
mod state;

pub use crate::error::code;
pub use crate::error::{CloseOutcome, FinishError, Finished, SubstreamError};
pub use crate::events::SubstreamStats;
pub use halves::{ReadHalf, WriteHalf};
pub(crate) use recv::{ReceiveBuffer, unpinned};
pub(crate) use send::{Chunk, Copied, INITIAL_CREDIT, SendBuffer};
pub(crate) use shared::{Shared, Usage};
pub(crate) use siblings::{Ceilings, Siblings};
pub(crate) use state::{ChannelState, Effects, Ended, Event, ReadState, WriteState};

/// A byte stream to the peer and one back.
///
/// # Closing
/// [`Substream::finish`] (or `shutdown()` of the I/O traits) ends the stream to the peer and waits
/// until the peer has confirmed that it has everything. The stream back lives on until it was read
/// to its end, so each direction closes by itself.
///
/// # Drop
/// Dropping a substream is graceful: what was written is still delivered, the peer sees the end of
/// the stream, and is told that nobody reads any more; bounded by
/// [`Config::teardown_timeout`](crate::Config::teardown_timeout). [`Substream::reset`] is the
/// abrupt end, and what a drop does after [`Substream::reset_on_drop`] or while the thread panics.
///
/// # Common issues
/// - A written byte is on its way as soon as the write returns; `flush` waits until the carrier
///   has taken it, which is not needed for it to be sent.
/// - A peer that does not know FIN_ACK lets `finish` wait for
///   [`Config::fin_ack_timeout`](crate::Config::fin_ack_timeout) and then fail with
///   [`FinishError::TimedOut`], although all was delivered. Tell the connection what the peer is
///   ([`Connection::expect_fin_ack`](crate::Connection::expect_fin_ack)), or use `shutdown()`.
/// - A task that writes all of a request and reads the answer only then waits for ever when the peer answers
///   while it reads, as an echo does, and both receive windows are full (1 MiB each by default). It is so with
///   every flow control (TCP, QUIC, HTTP/2). Read while you write: with [`Substream::split`] and `join!`, or
///   with [`Substream::into_split`] and a task for each half.
/// - A writer that fails half-way and returns by `?` drops its substream, and a drop ends the stream as `finish`
///   does: the reader takes the part for the whole. Where a part is worth nothing, call
///   [`Substream::reset_on_drop`] first; a panic resets in any case.
pub struct Substream {
    read: ReadHalf,
    write: WriteHalf,
}

impl Substream {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            read: ReadHalf::new(Arc::clone(&shared)),
            write: WriteHalf::new(shared),
        }
    }

    pub(crate) fn set_protocol(&mut self, protocol: Arc<str>) {
        self.read.protocol = Some(Arc::clone(&protocol));
        self.write.protocol = Some(protocol);
    }

    /// Number of this substream, unique within its connection.
    pub fn id(&self) -> u64 {
        self.read.id()
    }

    /// The protocol that was negotiated; `None` without negotiation.
    pub fn protocol(&self) -> Option<&str> {
        self.read.protocol()
    }

    /// Splits into halves that can move to different tasks. Dropping one keeps the other.
    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        (self.read, self.write)
    }

    /// Borrows both halves, to read and write at the same time within one task.
    pub fn split(&mut self) -> (&mut ReadHalf, &mut WriteHalf) {
        (&mut self.read, &mut self.write)
    }

    /// See [`WriteHalf::finish`].
    pub async fn finish(&mut self) -> Result<Finished, FinishError> {
        self.write.finish().await
    }

    /// See [`WriteHalf::stopped`].
    pub async fn stopped(&mut self) -> CloseOutcome {
        self.write.stopped().await
    }

    /// See [`ReadHalf::stop`].
    pub fn stop(&mut self, code: u32) {
        self.read.stop(code);
    }

    /// Ends both directions at once: what is not delivered is dropped, the peer gets
    /// RESET_STREAM with `code`, and every operation that waits fails with `ConnectionReset`.
    pub fn reset(&self, code: u32) {
        self.write.reset(code);
    }

    /// From now on a drop before [`Substream::finish`] or `shutdown()` resets both directions with `code`, in place
    /// of ending the stream to the peer: all or nothing. For writers that can fail half-way.
    ///
    /// ```
    /// # async fn send(mut substream: anabranch::Substream, parts: Vec<std::io::Result<Vec<u8>>>)
    /// #     -> std::io::Result<()> {
    /// # use tokio::io::AsyncWriteExt;
    /// substream.reset_on_drop(1);
    /// for part in parts {
    ///     substream.write_all(&part?).await?; // An error resets: no reader takes this for the end.
    /// }
    /// substream.finish().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn reset_on_drop(&self, code: u32) {
        self.write.reset_on_drop(code);
    }

    /// How the stream to the peer was closed, once that is known.
    pub fn close_outcome(&self) -> Option<CloseOutcome> {
        self.write.close_outcome()
    }

    /// See [`ReadHalf::read_chunk`].
    pub async fn read_chunk(&mut self, max: usize) -> io::Result<Option<Bytes>> {
        self.read.read_chunk(max).await
    }

    /// See [`WriteHalf::write_chunk`].
    pub async fn write_chunk(&mut self, chunk: Bytes) -> io::Result<()> {
        self.write.write_chunk(chunk).await
    }

    /// Payload bytes accepted for sending that the carrier has not taken yet.
    pub fn buffered(&self) -> usize {
        self.write.buffered()
    }

    /// What this substream has moved and holds.
    pub fn stats(&self) -> SubstreamStats {
        self.read.shared.stats()
    }

    /// Payload bytes received that were not read yet.
    pub fn unread(&self) -> usize {
        self.read.unread()
    }

    /// The state that this shares with the driver.
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.read.shared
    }

    /// Why the connection ended, if it has.
    pub(crate) fn connection_error(&self) -> Option<ConnectionError> {
        self.read.shared.siblings.cause()
    }
}

impl fmt::Debug for Substream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Substream")
            .field("id", &self.id())
            .field("protocol", &self.protocol())
            .field("state", &self.read.shared.state())
            .finish_non_exhaustive()
    }
}

/// Counts against the cooperative budget of tokio, so that a stream that is always ready lets
/// other tasks run.
fn poll_cooperative<T>(
    cx: &mut Context<'_>,
    poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
) -> Poll<T> {
    let budget = std::task::ready!(tokio::task::coop::poll_proceed(cx));
    let result = poll(cx);
    if result.is_ready() {
        budget.made_progress();
    }
    result
}
