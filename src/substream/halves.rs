//! The two directions of a substream, as handles that can move to different tasks.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::poll_cooperative;
use super::shared::Shared;
use crate::error::{CloseOutcome, FinishError, Finished, code};

/// The read half of a substream.
///
/// # Drop
/// Unless the peer has already ended its stream, it is asked with STOP_SENDING to send no more, and
/// data that still arrives is discarded. Unread data is discarded too. The write half is not
/// affected.
pub struct ReadHalf {
    pub(super) shared: Arc<Shared>,
    pub(super) protocol: Option<Arc<str>>,
    /// The unconsumed part of the slice that the last `fill_buf` returned. The receive buffer holds
    /// it too: it stays unread until it is consumed.
    pub(super) filled: Bytes,
}

impl ReadHalf {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            protocol: None,
            filled: Bytes::new(),
        }
    }

    /// See [`Substream::id`](super::Substream::id).
    pub fn id(&self) -> u64 {
        self.shared.id.get()
    }

    /// See [`Substream::protocol`](super::Substream::protocol).
    pub fn protocol(&self) -> Option<&str> {
        self.protocol.as_deref()
    }

    /// Reads up to `max` bytes without a copy; `None` at the end of the stream.
    ///
    /// # Errors
    /// `ConnectionReset` after a reset by either side, `UnexpectedEof` when the channel or the
    /// connection ended without FIN. Data received before an end without FIN is returned first. A
    /// reset discards unread data, except for a reset by the peer after FIN or with
    /// [`code::SHUTDOWN`](super::code::SHUTDOWN).
    ///
    /// # Cancel safety
    /// No data is lost if the future is dropped.
    pub async fn read_chunk(&mut self, max: usize) -> io::Result<Option<Bytes>> {
        poll_fn(|cx| self.poll_read_chunk(cx, max)).await
    }

    /// Poll form of [`ReadHalf::read_chunk`].
    pub fn poll_read_chunk(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<io::Result<Option<Bytes>>> {
        if max == 0 {
            return Poll::Ready(Ok(Some(Bytes::new())));
        }
        self.filled = Bytes::new();
        poll_cooperative(cx, |cx| {
            self.shared
                .poll_read_with(cx, |receive| receive.read_chunk(max))
        })
    }

    /// Reads to the end of the stream, at most `limit` bytes: a request or a response as a whole.
    ///
    /// # Errors
    /// Those of [`ReadHalf::read_chunk`]. `InvalidData` as soon as more than `limit` bytes have
    /// arrived; the peer is asked with
    /// [`code::RESOURCE_LIMIT`](super::code::RESOURCE_LIMIT) to send no more.
    ///
    /// # Cancel safety
    /// What was read is lost if the future is dropped.
    pub async fn read_all(&mut self, limit: usize) -> io::Result<Bytes> {
        let mut first = Bytes::new();
        let mut all = Vec::new();
        let mut length = 0_usize;
        while let Some(chunk) = self.read_chunk(usize::MAX).await? {
            length = length.saturating_add(chunk.len());
            if length > limit {
                self.stop(code::RESOURCE_LIMIT);
                let message = format!("more than {limit} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            if length == chunk.len() {
                // Mostly the only one, and then not copied.
                first = chunk;
                continue;
            }
            if all.is_empty() {
                all.extend_from_slice(&std::mem::take(&mut first));
            }
            all.extend_from_slice(&chunk);
        }
        Ok(if all.is_empty() { first } else { all.into() })
    }

    /// Sends STOP_SENDING with `code` to the peer and discards unread data. From now on reads
    /// return the end of the stream.
    pub fn stop(&mut self, code: u32) {
        self.filled = Bytes::new();
        self.shared.stop(code);
    }

    /// See [`Substream::reset`](super::Substream::reset): both directions end, whether the other
    /// half still exists or not.
    pub fn reset(&self, code: u32) {
        self.shared.reset(code);
    }

    /// Payload bytes received that were not read yet. Data returned by `fill_buf` is unread until
    /// it is consumed.
    pub fn unread(&self) -> usize {
        self.shared.unread()
    }
}

impl Drop for ReadHalf {
    fn drop(&mut self) {
        self.shared.drop_reader();
    }
}

impl fmt::Debug for ReadHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadHalf")
            .field("id", &self.id())
            .field("state", &self.shared.state().read)
            .finish_non_exhaustive()
    }
}

/// The write half of a substream.
///
/// # Drop
/// Written data is still delivered, followed by FIN; the read half is not affected. A writer that
/// returns early, by `?` or because its task is cancelled, therefore ends its stream as if it were
/// complete: use [`WriteHalf::reset_on_drop`] where a part is useless. While the thread panics, the
/// substream is reset with [`code::PANICKED`](super::code::PANICKED) unless it was shut down
/// before.
pub struct WriteHalf {
    pub(super) shared: Arc<Shared>,
    pub(super) protocol: Option<Arc<str>>,
}

impl WriteHalf {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            protocol: None,
        }
    }

    /// See [`Substream::id`](super::Substream::id).
    pub fn id(&self) -> u64 {
        self.shared.id.get()
    }

    /// See [`Substream::protocol`](super::Substream::protocol).
    pub fn protocol(&self) -> Option<&str> {
        self.protocol.as_deref()
    }

    /// Writes the whole of `chunk`.
    ///
    /// Full frames are not copied: they stay slices of `chunk` until the carrier takes them, and
    /// the memory of `chunk` is freed with the last of them.
    ///
    /// # Errors
    /// `BrokenPipe` after a shutdown, after STOP_SENDING by the peer, or when the peer has closed
    /// the data channel; `ConnectionReset` after a reset; `ConnectionAborted` when the connection
    /// has ended or is closing.
    ///
    /// # Cancel safety
    /// If the future is dropped, a part of the chunk may have been written. Use
    /// [`WriteHalf::poll_write_chunk`] to learn how much.
    pub async fn write_chunk(&mut self, mut chunk: Bytes) -> io::Result<()> {
        poll_fn(|cx| self.poll_write_chunk(cx, &mut chunk)).await
    }

    /// Poll form of [`WriteHalf::write_chunk`]: completes when `chunk` is empty. Written bytes are
    /// removed from the front of `chunk`, also when it returns `Pending`.
    pub fn poll_write_chunk(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut Bytes,
    ) -> Poll<io::Result<()>> {
        while !chunk.is_empty() {
            ready!(poll_cooperative(cx, |cx| {
                self.shared
                    .poll_write_with(cx, |send| send.write_bytes(chunk))
            }))?;
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_write_bytes(
        &mut self,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        poll_cooperative(cx, |cx| {
            self.shared.poll_write_with(cx, |send| send.write(data))
        })
    }

    /// Ends the stream to the peer: delivers written data, sends FIN, and waits until the peer has
    /// confirmed with FIN_ACK that it has everything.
    ///
    /// For a peer that is known not to send FIN_ACK it waits until the peer's transport has
    /// everything (over a WebSocket: the local socket), and returns [`Finished::Delivered`]: see
    /// [`Config::expect_fin_ack`](crate::Config::expect_fin_ack).
    ///
    /// A later call returns the same result.
    ///
    /// # Errors
    /// [`FinishError`] in every other case: the peer did not confirm within
    /// [`Config::fin_ack_timeout`](crate::Config::fin_ack_timeout) after it received the FIN,
    /// stopped reading, reset the substream, closed the channel, or was lost. It converts to an
    /// [`io::Error`] with `?`. `shutdown()` of the I/O traits is less strict: it succeeds once the
    /// peer's transport has everything and FIN, or the peer has stopped reading after all data was
    /// sent. Over a WebSocket, which reports nothing about the
    /// peer's transport, it fails with `TimedOut` as this does.
    ///
    /// # Cancel safety
    /// The close continues if the future is dropped.
    pub async fn finish(&mut self) -> Result<Finished, FinishError> {
        poll_fn(|cx| self.shared.poll_finish(cx)).await;
        self.shared.finish_result()
    }

    /// The priority of the data that is written here; 0 at first.
    pub fn priority(&self) -> i32 {
        self.shared.priority()
    }

    /// Sets the priority of the data that is written here, among the substreams of the connection.
    ///
    /// Data of a greater priority is sent first, and of equal ones one frame of each in turn. It is
    /// strict: a lower one waits as long as a greater one has data and credit. What the carrier has
    /// taken is sent before: over WebRTC what the congestion window holds, and two frames. Credit,
    /// STOP_SENDING and resets do not wait; FIN follows the data of its own substream, so one that
    /// is dropped while it waits can run into
    /// [`Config::teardown_timeout`](crate::Config::teardown_timeout).
    ///
    /// New substreams are negotiated with 0: lower what may wait, rather than raise what must not.
    /// A change takes effect soon, and puts the substream at the end of its new priority. The peer
    /// does not learn of it.
    pub fn set_priority(&self, priority: i32) {
        self.shared.set_priority(priority);
    }

    /// Waits until this direction has ended in any way: confirmed after a shutdown, stopped by the
    /// peer, reset, or lost with the connection. Does not shut it down itself. Cancel safe.
    pub async fn stopped(&mut self) -> CloseOutcome {
        poll_fn(|cx| self.shared.poll_outcome(cx)).await
    }

    /// See [`Substream::reset`](super::Substream::reset).
    pub fn reset(&self, code: u32) {
        self.shared.reset(code);
    }

    /// See [`Substream::reset_on_drop`](super::Substream::reset_on_drop).
    pub fn reset_on_drop(&self, code: u32) {
        self.shared.set_reset_on_drop(code);
    }

    /// See [`Substream::close_outcome`](super::Substream::close_outcome).
    pub fn close_outcome(&self) -> Option<CloseOutcome> {
        self.shared.outcome()
    }

    /// The state shared with the driver.
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Payload bytes accepted for sending that the carrier has not taken yet.
    pub fn buffered(&self) -> usize {
        self.shared.buffered()
    }
}

impl Drop for WriteHalf {
    fn drop(&mut self) {
        self.shared.drop_writer();
    }
}

impl fmt::Debug for WriteHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteHalf")
            .field("id", &self.id())
            .field("state", &self.shared.state().write)
            .finish_non_exhaustive()
    }
}
