//! Receives a payload.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::{self, StreamExt};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::coop::consume_budget;
use tokio::time::timeout;

use super::lease::Lease;
use super::report::Reporter;
use super::slots::Permit;
use super::watch::{Canceller, Progress, Watch};
use super::wire::{self, HASH_LEN, Hash, Header, MAX_FIELDS, Receipt, Resume, Start};
use crate::error::payload::Interrupt;
use crate::error::payload::PayloadError;
use crate::error::payload::{MessageError, ReadError, TimeLimit};

/// Maximum bytes allocated on the strength of a header.
const PREALLOCATED: u64 = 1024 * 1024;

/// Bytes of a prefix that are read and hashed at once.
const PREFIX_PIECE: usize = 128 * 1024;

/// A received payload, whose header has arrived.
///
/// Its bytes are available as a stream ([`Payload::into_stream`]), in one piece
/// ([`Payload::assemble`]), or are copied to a writer ([`Payload::copy_to`]). The receipt is sent
/// to the sender when the last byte has been delivered, the length is exact, and the hash, if there
/// is one, is right.
///
/// # Drop
/// Cancels the payload: the sender gets RESET_STREAM with
/// [`code::CANCELLED`](super::code::CANCELLED).
pub struct Payload {
    pub(super) body: Body,
}

/// A completely received payload.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Received {
    /// Length of the whole payload in bytes.
    pub total: u64,
    /// The offset at which receiving began: the length of the prefix that was here before.
    pub resumed_from: u64,
    /// The SHA-256 of the whole payload, if the sender sent it.
    pub hash: Option<[u8; HASH_LEN]>,
}

impl Payload {
    pub(super) fn new(body: Body) -> Self {
        Self { body }
    }

    /// Length of the whole payload in bytes; `None` if the sender did not know it.
    pub fn total(&self) -> Option<u64> {
        self.body.total
    }

    /// The metadata that the sending application has put into the header.
    pub fn metadata(&self) -> &Bytes {
        &self.body.metadata
    }

    /// Whether the sender sends a hash, which is then verified.
    pub fn is_hashed(&self) -> bool {
        self.body.hasher.is_some()
    }

    /// Whether the sender can skip what is here already, see [`Payload::resume`].
    pub fn is_resumable(&self) -> bool {
        self.body.resumable
    }

    /// How far it has come, for another task.
    pub fn progress(&self) -> Progress {
        Progress::new(&self.body.watch.state)
    }

    /// What ends it from another task.
    pub fn canceller(&self) -> Canceller {
        Canceller::new(&self.body.watch.state, self.body.lease.write.shared())
    }

    /// Cancels the payload: the sender gets RESET_STREAM with `code`.
    pub fn cancel(mut self, code: u32) {
        self.body.cancel(code);
    }

    /// Reports to the sender that the first `have` bytes are here already; `prefix` is read for
    /// their hash. Returns the offset at which the received bytes begin: `have`, or zero if the
    /// payload has another prefix, in which case the old one has to be discarded.
    ///
    /// It is zero as well if the payload is not [resumable](Payload::is_resumable), or is shorter
    /// than `have`. Only the first call sends the report; later ones return its result.
    ///
    /// # Errors
    /// [`PayloadError::Local`] if `prefix` can not be read, or ends before `have` bytes; otherwise
    /// those of [`Payload::assemble`].
    ///
    /// # Cancel safety
    /// None: after dropping the future, drop the payload too.
    pub async fn resume<R>(&mut self, have: u64, prefix: &mut R) -> Result<u64, PayloadError>
    where
        R: AsyncRead + Unpin,
    {
        let begun = self.body.begin(have, prefix).await;
        self.body.checked(begun)?;
        Ok(self.body.resumed_from)
    }

    /// Returns the bytes as a stream.
    pub fn into_stream(self) -> PayloadStream {
        let progress = self.progress();
        let canceller = self.canceller();
        let chunks = stream::unfold(Some(self.body), |body| async move {
            let mut body = body?;
            match body.next_or_end().await {
                Ok(Some(chunk)) => Some((Ok(chunk), Some(body))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        });
        PayloadStream {
            chunks: Box::pin(chunks.fuse()),
            progress,
            canceller,
        }
    }

    /// Receives the whole payload in one piece, if it has at most `limit` bytes.
    ///
    /// At most 1 MiB is allocated in advance, and never more than `limit`.
    ///
    /// # Errors
    /// [`PayloadError::TooLarge`], before anything is allocated if the length is known. For the
    /// others see [`PayloadError`].
    ///
    /// # Cancel safety
    /// Dropping the future cancels the payload.
    pub async fn assemble(mut self, limit: u64) -> Result<Bytes, PayloadError> {
        let assembled = self.body.assemble(limit).await;
        self.body.checked(assembled)
    }

    /// Copies the payload to `writer`, and flushes it before the receipt is sent.
    ///
    /// # Errors
    /// [`PayloadError::Local`] if `writer` fails; otherwise those of [`Payload::assemble`]. After
    /// an error, also a cancellation or expiry, everything that was received has been written, and
    /// flushed if that was possible within
    /// [`PayloadConfig::idle_timeout`](super::PayloadConfig::idle_timeout).
    ///
    /// # Cancel safety
    /// Dropping the future cancels the payload; a part of it may have been written.
    pub async fn copy_to<W>(mut self, writer: &mut W) -> Result<Received, PayloadError>
    where
        W: AsyncWrite + Unpin,
    {
        self.body.copy(writer).await?;
        self.body.confirm_copy().await
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Payload")
            .field("progress", &self.progress())
            .field("metadata", &self.metadata().len())
            .field("hashed", &self.is_hashed())
            .field("resumable", &self.is_resumable())
            .finish_non_exhaustive()
    }
}

/// The bytes of a payload as a stream.
///
/// Ends with `None` when the payload is complete, its hash right and the receipt sent; and after an
/// error, which follows all bytes that were received and not dropped by a reset of the sender.
/// Unread bytes exert backpressure on the sender. With a hash and without a length, the last 32
/// bytes are held back until the stream ends, since they may be the hash.
///
/// # Drop
/// Cancels the payload, as the drop of [`Payload`] does, unless it has ended.
pub struct PayloadStream {
    chunks: Pin<Box<dyn Stream<Item = Result<Bytes, PayloadError>> + Send>>,
    progress: Progress,
    canceller: Canceller,
}

impl PayloadStream {
    /// How far it has come, for another task.
    pub fn progress(&self) -> Progress {
        self.progress.anew()
    }

    /// What ends it from another task.
    pub fn canceller(&self) -> Canceller {
        self.canceller.clone()
    }
}

impl Stream for PayloadStream {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.chunks.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for PayloadStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PayloadStream")
            .field("progress", &self.progress)
            .finish_non_exhaustive()
    }
}

/// The state of a payload that is being received.
pub(super) struct Body {
    lease: Lease,
    /// After the lease in drop order: the reset is sent before the event.
    reporter: Reporter,
    watch: Watch,
    total: Option<u64>,
    metadata: Bytes,
    resumable: bool,
    max_total: u64,
    /// Present if a hash follows the bytes.
    hasher: Option<Sha256>,
    hash: Option<[u8; HASH_LEN]>,
    /// The offset has been negotiated.
    begun: bool,
    resumed_from: u64,
    /// Bytes delivered so far, including those that were here before.
    received: u64,
    /// Without a length: the last bytes, which may be the hash.
    held: VecDeque<Bytes>,
    held_len: usize,
    _permit: Permit,
}

impl Body {
    pub(super) fn new(
        lease: Lease,
        reporter: Reporter,
        watch: Watch,
        permit: Permit,
        header: Header,
        max_total: u64,
    ) -> Self {
        Self {
            lease,
            reporter,
            watch,
            total: header.total_len,
            resumable: header.resumable(),
            hasher: (header.hash() == Hash::Sha256).then(Sha256::new),
            metadata: header.metadata.unwrap_or_default(),
            max_total,
            hash: None,
            begun: false,
            resumed_from: 0,
            received: 0,
            held: VecDeque::new(),
            held_len: 0,
            _permit: permit,
        }
    }

    /// Reports an error to the sender, and to [`Events`](crate::Events).
    fn checked<T>(&mut self, result: Result<T, PayloadError>) -> Result<T, PayloadError> {
        if let Err(error) = &result {
            if let Some(code) = error.code() {
                self.lease.reset(code);
            }
            self.reporter.receive_failed(error);
        }
        result
    }

    pub(super) fn cancel(&mut self, code: u32) {
        self.lease.reset(code);
        self.reporter.receive_failed(&PayloadError::Cancelled(code));
    }

    async fn next_or_end(&mut self) -> Result<Option<Bytes>, PayloadError> {
        let next = async {
            match self.next().await? {
                Some(chunk) => {
                    self.delivered(chunk.len());
                    Ok(Some(chunk))
                }
                None => {
                    self.confirm().await?;
                    Ok(None)
                }
            }
        };
        let next = next.await;
        self.checked(next)
    }

    async fn assemble(&mut self, max: u64) -> Result<Bytes, PayloadError> {
        if let Some(len) = self.total
            && len > max
        {
            return Err(PayloadError::TooLarge { len, max });
        }
        let hint = self.total.unwrap_or(0).min(PREALLOCATED);
        let mut all = Vec::with_capacity(usize::try_from(hint).unwrap_or(0));
        while let Some(chunk) = self.next().await? {
            let len = all.len() + chunk.len();
            if len as u64 > max {
                let len = len as u64;
                return Err(PayloadError::TooLarge { len, max });
            }
            if len > all.capacity() {
                // Doubled, as by `Vec`, but not beyond the maximum.
                let most = usize::try_from(self.total.unwrap_or(max)).unwrap_or(usize::MAX);
                let capacity = all.capacity().saturating_mul(2).min(most).max(len);
                all.reserve_exact(capacity - all.len());
            }
            all.extend_from_slice(&chunk);
            self.delivered(chunk.len());
        }
        self.confirm().await?;
        Ok(all.into())
    }

    /// Copies all of it, without a receipt. After an error what has arrived is flushed.
    pub(super) async fn copy<W>(&mut self, writer: &mut W) -> Result<(), PayloadError>
    where
        W: AsyncWrite + Unpin,
    {
        let copied = async {
            while let Some(chunk) = self.next().await? {
                self.local(writer.write_all(&chunk)).await?;
                self.delivered(chunk.len());
            }
            self.local(writer.flush()).await
        };
        let copied = copied.await;
        let copied = self.checked(copied);
        if copied.is_err() {
            // The received bytes are valid, and the payload can be resumed from them. The flush has
            // a timeout of its own, since the payload may have been cancelled or have expired.
            let _ = timeout(self.watch.idle_timeout, writer.flush()).await;
        }
        copied
    }

    /// Sends the receipt for what was [copied](Self::copy).
    pub(super) async fn confirm_copy(&mut self) -> Result<Received, PayloadError> {
        let confirmed = self.confirm().await;
        self.checked(confirmed)?;
        Ok(self.summary())
    }

    pub(super) fn summary(&self) -> Received {
        Received {
            total: self.received,
            resumed_from: self.resumed_from,
            hash: self.hash,
        }
    }

    /// Waits for the reader or writer of the application.
    async fn local<T>(
        &mut self,
        operation: impl Future<Output = std::io::Result<T>>,
    ) -> Result<T, PayloadError> {
        let done = self.watch.guard(operation).await;
        done.map_err(|interrupt| self.interrupted(interrupt))?
            .map_err(|error| PayloadError::Local(Arc::new(error)))
    }

    /// Counts bytes of [`Self::next`] when they have been delivered.
    fn delivered(&mut self, bytes: usize) {
        self.received = self.received.saturating_add(bytes as u64);
        self.watch.state.set_transferred(self.received);
        self.reporter.progressed();
    }

    /// Returns the next bytes; `None` at the end, once length and hash have been verified. Returned
    /// bytes have to be [counted](Self::delivered) before the next call.
    async fn next(&mut self) -> Result<Option<Bytes>, PayloadError> {
        if !self.begun {
            self.begin(0, &mut tokio::io::empty()).await?;
        }
        let chunk = match self.total {
            Some(total) => self.next_of(total).await?,
            None => self.next_until_end().await?,
        };
        let Some(chunk) = chunk else {
            return Ok(None);
        };
        let len = self.received.saturating_add(chunk.len() as u64);
        let max = self.max_total;
        if len > max {
            return Err(PayloadError::TooLarge { len, max });
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&chunk);
        }
        Ok(Some(chunk))
    }

    async fn next_of(&mut self, total: u64) -> Result<Option<Bytes>, PayloadError> {
        let left = total.saturating_sub(self.received);
        if left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX);
            return match self.read_chunk(most).await? {
                Some(chunk) => Ok(Some(chunk)),
                None => Err(self.truncated()),
            };
        }
        let mut trailer = Bytes::new();
        if self.hasher.is_some() {
            let read = wire::exactly(&mut self.lease.read, HASH_LEN);
            trailer = match self.watch.guard(read).await {
                Ok(Ok(trailer)) => trailer,
                Ok(Err(ReadError::Io(error))) => return Err(self.read_error(error)),
                Ok(Err(_)) => return Err(PayloadError::HashMissing),
                Err(interrupt) => return Err(self.interrupted(interrupt)),
            };
        }
        if let Some(more) = self.read_chunk(usize::MAX).await? {
            let got = total.saturating_add(more.len() as u64);
            return Err(PayloadError::Overflow { got, want: total });
        }
        self.check_hash(&trailer)?;
        Ok(None)
    }

    /// Without a length the payload, and the hash after it, end with the stream.
    async fn next_until_end(&mut self) -> Result<Option<Bytes>, PayloadError> {
        let hold = if self.hasher.is_some() { HASH_LEN } else { 0 };
        loop {
            if self.held_len > hold
                && let Some(mut first) = self.held.pop_front()
            {
                let free = (self.held_len - hold).min(first.len());
                if free < first.len() {
                    self.held.push_front(first.split_off(free));
                }
                self.held_len -= free;
                return Ok(Some(first));
            }
            match self.read_chunk(usize::MAX).await? {
                Some(chunk) => {
                    self.held_len += chunk.len();
                    self.held.push_back(chunk);
                }
                None if self.held_len < hold => return Err(PayloadError::HashMissing),
                None => {
                    let trailer = std::mem::take(&mut self.held);
                    let trailer: Vec<u8> = trailer.iter().flatten().copied().collect();
                    self.check_hash(&trailer)?;
                    self.watch.state.set_total(self.received);
                    return Ok(None);
                }
            }
        }
    }

    fn check_hash(&mut self, trailer: &[u8]) -> Result<(), PayloadError> {
        let Some(hasher) = self.hasher.take() else {
            return Ok(());
        };
        let actual: [u8; HASH_LEN] = hasher.finalize().into();
        let Ok(expected) = <[u8; HASH_LEN]>::try_from(trailer) else {
            return Err(PayloadError::HashMissing);
        };
        if actual != expected {
            return Err(PayloadError::HashMismatch { expected, actual });
        }
        self.hash = Some(actual);
        Ok(())
    }

    /// Negotiates the offset with the sender, if the payload is resumable.
    async fn begin<R>(&mut self, have: u64, prefix: &mut R) -> Result<(), PayloadError>
    where
        R: AsyncRead + Unpin,
    {
        if std::mem::replace(&mut self.begun, true) || !self.resumable {
            return Ok(());
        }
        let total = self.total.unwrap_or(0);
        let have = if have <= total { have } else { 0 };
        let mut left = have;
        let mut piece = vec![0; if have > 0 { PREFIX_PIECE } else { 0 }];
        while left > 0 {
            let most = usize::try_from(left).map_or(piece.len(), |left| left.min(piece.len()));
            let into = piece.get_mut(..most).unwrap_or_default();
            let read = self.local(prefix.read(into)).await?;
            if read == 0 {
                let short = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                return Err(PayloadError::Local(Arc::new(short)));
            }
            left -= read as u64;
            // A prefix in memory is always ready.
            consume_budget().await;
            if let Some(hasher) = &mut self.hasher {
                hasher.update(piece.get(..read).unwrap_or_default());
            }
        }
        let prefix_hash = self.hasher.clone().filter(|_| have > 0);
        let prefix_hash = prefix_hash.map(|hasher| Bytes::copy_from_slice(&hasher.finalize()[..]));
        let answer = Resume {
            have: Some(have),
            prefix_hash,
        };
        self.write_message(wire::encode(&answer)).await?;
        let start = wire::read::<Start>(&mut self.lease.read, MAX_FIELDS);
        // The sender hashes the prefix before it answers.
        let start = match self.watch.guard_silent(have > 0, start).await {
            Ok(Ok(start)) => start,
            Ok(Err(error)) => return Err(PayloadError::message(error, 0, self.total)),
            Err(interrupt) => return Err(self.interrupted(interrupt)),
        };
        let offset = start.offset.unwrap_or(0);
        if offset != 0 && offset != have {
            return Err(PayloadError::BadHeader(MessageError::BadOffset { offset }));
        }
        if offset == 0 {
            self.hasher = Some(Sha256::new());
        }
        self.resumed_from = offset;
        self.received = offset;
        self.watch.state.set_transferred(offset);
        self.reporter.resumed(offset);
        Ok(())
    }

    /// Sends the receipt.
    async fn confirm(&mut self) -> Result<(), PayloadError> {
        if self.watch.is_over() {
            // A receipt would not be sent any more. No effect after a cancellation.
            self.watch.state.expire();
        }
        if !self.watch.state.complete() {
            return Err(match self.watch.state.cancelled() {
                Some(code) => PayloadError::Cancelled(code),
                None => self.interrupted(self.watch.expired(TimeLimit::Total)),
            });
        }
        let receipt = Receipt {
            received: Some(self.received),
        };
        // An error means that the sender did not wait for it. The payload is complete all the same.
        let _ = self.write_message(wire::encode(&receipt)).await;
        self.lease.release();
        self.reporter.completed();
        Ok(())
    }

    async fn write_message(&mut self, message: Bytes) -> Result<(), PayloadError> {
        let written = self
            .watch
            .guard(self.lease.write.write_chunk(message))
            .await;
        written
            .map_err(|interrupt| self.interrupted(interrupt))?
            .map_err(|error| self.read_error(error))
    }

    async fn read_chunk(&mut self, max: usize) -> Result<Option<Bytes>, PayloadError> {
        let read = self.watch.guard(self.lease.read.read_chunk(max)).await;
        read.map_err(|interrupt| self.interrupted(interrupt))?
            .map_err(|error| self.read_error(error))
    }

    fn truncated(&self) -> PayloadError {
        PayloadError::Truncated {
            got: self.received,
            want: self.total,
            cause: None,
        }
    }

    fn read_error(&self, error: std::io::Error) -> PayloadError {
        PayloadError::read(error, self.received, self.total)
    }

    fn interrupted(&self, interrupt: Interrupt) -> PayloadError {
        PayloadError::interrupted(interrupt, self.received)
    }
}
