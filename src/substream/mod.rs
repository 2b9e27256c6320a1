//! A reliable byte stream over one data channel.
//!
//! [`Substream`] and its halves implement the `tokio::io` and `futures::io` traits. The
//! implementation is in four files: `state` has the pure transitions, `shared` the state and
//! buffers that the handles and the driver of the connection share, `send` and `recv` the buffers.

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
pub(crate) use shared::{NextData, Shared, Usage};
pub(crate) use siblings::{Ceilings, Siblings};
pub(crate) use state::{ChannelState, Effects, Ended, ReadState, SubstreamEvent, WriteState};

/// A bidirectional byte stream to the peer.
///
/// # Closing
/// [`Substream::finish`] (or `shutdown()` of the I/O traits) ends the stream to the peer and waits
/// until the peer has confirmed that it has everything. The stream from the peer stays open until
/// it was read to its end: each direction closes on its own.
///
/// # Drop
/// Dropping a substream is graceful: written data is still delivered, followed by FIN, and the peer
/// is asked with STOP_SENDING to send no more; all within
/// [`Config::teardown_timeout`](crate::Config::teardown_timeout). Received data that was not read
/// is discarded. [`Substream::reset`] ends a substream abruptly, and so does a drop after
/// [`Substream::reset_on_drop`] or while the thread panics.
///
/// # Cancel safety
/// A read that is cancelled has taken nothing. A cancelled `write` has written nothing; a cancelled
/// `write_all` or [`Substream::write_chunk`] may have written a part. A close that
/// [`Substream::finish`] or `shutdown()` has begun continues when its future is dropped.
///
/// # Errors
/// The I/O traits return an [`io::Error`] of these kinds. Its inner error ([`io::Error::get_ref`])
/// is a [`SubstreamError`], for `shutdown()` and `close()` a [`FinishError`].
///
/// | kind | cause |
/// |---|---|
/// | `ConnectionReset` | either side has reset the substream |
/// | `BrokenPipe` | write after a shutdown, after STOP_SENDING, or on a closed channel |
/// | `UnexpectedEof` | read: the channel or the connection ended without FIN |
/// | `ConnectionAborted` | write: the connection has ended or is closing |
/// | `TimedOut` | `shutdown()` over a WebSocket: no FIN_ACK in time |
///
/// # Common issues
/// - Written data is sent without a flush. `flush` waits until the carrier has taken everything.
/// - With a peer that does not send FIN_ACK, `finish` waits for
///   [`Config::fin_ack_timeout`](crate::Config::fin_ack_timeout) and then fails with
///   [`FinishError::TimedOut`], although everything was delivered. Declare such a peer with
///   [`Connection::expect_fin_ack`](crate::Connection::expect_fin_ack), or use `shutdown()`.
/// - A task that writes a whole request before it reads the response deadlocks if the peer responds
///   while it reads, as an echo server does, and both receive windows are full (1 MiB each by
///   default). This holds for every flow control (TCP, QUIC, HTTP/2). Read while writing: with
///   [`Substream::split`] and `join!`, or with [`Substream::into_split`] and a task for each half.
/// - A writer that fails half-way and returns by `?` drops its substream, and a drop ends the
///   stream as `finish` does: the reader takes the part for the whole. Where a part is useless,
///   call [`Substream::reset_on_drop`] first. A panic before the shutdown resets in any case.
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

    /// The negotiated protocol; `None` without negotiation.
    pub fn protocol(&self) -> Option<&str> {
        self.read.protocol()
    }

    /// Splits into halves that can move to different tasks. Each half has the drop behaviour that
    /// its type describes.
    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        (self.read, self.write)
    }

    /// Borrows both halves, to read and write concurrently within one task.
    pub fn split(&mut self) -> (&mut ReadHalf, &mut WriteHalf) {
        (&mut self.read, &mut self.write)
    }

    /// See [`WriteHalf::priority`].
    pub fn priority(&self) -> i32 {
        self.write.priority()
    }

    /// See [`WriteHalf::set_priority`].
    pub fn set_priority(&self, priority: i32) {
        self.write.set_priority(priority);
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

    /// Ends both directions at once: data that is not delivered yet is dropped, unread data is
    /// discarded, the peer gets RESET_STREAM with `code`, and every pending operation fails with
    /// `ConnectionReset`. No effect after the substream has ended.
    pub fn reset(&self, code: u32) {
        self.write.reset(code);
    }

    /// From now on, a drop before [`Substream::finish`] or `shutdown()` resets both directions with
    /// `code` instead of ending the stream to the peer: all or nothing. For writers that can fail
    /// half-way.
    ///
    /// ```
    /// # async fn send(mut substream: anabranch::Substream, parts: Vec<std::io::Result<Vec<u8>>>)
    /// #     -> std::io::Result<()> {
    /// # use tokio::io::AsyncWriteExt;
    /// substream.reset_on_drop(1);
    /// for part in parts {
    ///     // An error resets: the reader does not take the part for the whole.
    ///     substream.write_all(&part?).await?;
    /// }
    /// substream.finish().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn reset_on_drop(&self, code: u32) {
        self.write.reset_on_drop(code);
    }

    /// The result of closing the stream to the peer; `None` until it is known.
    pub fn close_outcome(&self) -> Option<CloseOutcome> {
        self.write.close_outcome()
    }

    /// See [`ReadHalf::read_chunk`].
    pub async fn read_chunk(&mut self, max: usize) -> io::Result<Option<Bytes>> {
        self.read.read_chunk(max).await
    }

    /// Reads to the end of the stream, at most `limit` bytes: see [`ReadHalf::read_all`].
    ///
    /// # Errors
    /// As of [`ReadHalf::read_all`].
    pub async fn read_all(&mut self, limit: usize) -> io::Result<Bytes> {
        self.read.read_all(limit).await
    }

    /// See [`WriteHalf::write_chunk`].
    pub async fn write_chunk(&mut self, chunk: Bytes) -> io::Result<()> {
        self.write.write_chunk(chunk).await
    }

    /// Payload bytes accepted for sending that the carrier has not taken yet.
    pub fn buffered(&self) -> usize {
        self.write.buffered()
    }

    /// Counters and buffer levels of this substream.
    pub fn stats(&self) -> SubstreamStats {
        self.read.shared.stats()
    }

    /// Payload bytes received that were not read yet.
    pub fn unread(&self) -> usize {
        self.read.unread()
    }

    /// The state shared with the driver.
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.read.shared
    }

    /// The cause of the end of the connection, if it has ended.
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

/// Charges tokio's cooperative budget, so that a stream that is always ready lets other tasks run.
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

impl From<Substream> for (ReadHalf, WriteHalf) {
    /// [`Substream::into_split`].
    fn from(substream: Substream) -> Self {
        substream.into_split()
    }
}
