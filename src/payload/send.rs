//! Sends a payload.

use std::future::poll_fn;
use std::io::{self, SeekFrom};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, ready};

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeek, AsyncSeekExt};
use tokio::task::coop::consume_budget;

use super::config::{PayloadConfig, PayloadConfigError};
use super::lease::Lease;
use super::report::Reporter;
use super::watch::{Canceller, Mover, Progress, State, Watch};
use super::wire::{self, HASH_LEN, Hash, Header, MAX_FIELDS, Receipt, Resume, Start};
use crate::error::payload::Interrupt;
use crate::error::payload::MessageError;
use crate::error::payload::{SendError, code};
use crate::events::PayloadDirection;
use crate::substream::{CloseOutcome, FinishError, Substream};

/// Bytes that are read, and hashed, before they are written.
///
/// Several frames, since the frame at each end of a write is copied; and little enough to be hashed
/// before the send buffer has drained.
const PIECE: usize = 128 * 1024;

/// Minimum size of a read buffer: about a frame.
const MIN_READ: usize = 16 * 1024;

/// A sent payload that the receiver has confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sent {
    /// Length of the whole payload in bytes.
    pub total: u64,
    /// The offset at which sending began: the length of the prefix that the receiver already had.
    pub resumed_from: u64,
    /// The SHA-256 of the whole payload, if it was sent with its hash.
    pub hash: Option<[u8; HASH_LEN]>,
}

/// Sends one payload over one substream.
///
/// # Drop
/// If a sender, or the future of one of its `send` methods, is dropped before the receiver has
/// confirmed the payload, the substream is reset with [`code::CANCELLED`].
#[derive(Debug)]
pub struct Sender {
    lease: Lease,
    config: PayloadConfig,
    metadata: Bytes,
    hashed: bool,
    state: Mover,
}

impl Sender {
    /// Takes over a substream that was opened for this payload.
    ///
    /// # Errors
    /// [`PayloadConfigError`] if `config` does not [validate](PayloadConfig::validate); the
    /// substream is then reset.
    pub fn new(substream: Substream, config: PayloadConfig) -> Result<Self, PayloadConfigError> {
        match config.validate() {
            Ok(()) => Ok(Self::over(substream, config)),
            Err(error) => {
                substream.reset(code::CANCELLED);
                Err(error)
            }
        }
    }

    pub(super) fn over(substream: Substream, config: PayloadConfig) -> Self {
        let lease = Lease::new(substream);
        // Resets on drop: a FIN would look like the end of a payload of unknown length.
        Self {
            lease,
            config,
            metadata: Bytes::new(),
            hashed: false,
            state: Mover(State::new(None)),
        }
    }

    /// Sets the metadata for the receiving application, for example a name, which it gets before
    /// the payload. At most [`PayloadConfig::max_metadata`] bytes.
    #[must_use]
    pub fn metadata(mut self, metadata: impl Into<Bytes>) -> Self {
        self.metadata = metadata.into();
        self
    }

    /// Sends the SHA-256 of the payload after it, which the receiver verifies.
    ///
    /// The substream already protects its data against errors and, over WebRTC, against attackers.
    /// A hash detects changes before the data reaches the substream, and between the parts of a
    /// resumed payload.
    #[must_use]
    pub fn hashed(mut self) -> Self {
        self.hashed = true;
        self
    }

    /// How far it has come, for another task.
    pub fn progress(&self) -> Progress {
        Progress::new(&self.state)
    }

    /// What ends it from another task.
    pub fn canceller(&self) -> Canceller {
        Canceller::new(&self.state, self.lease.write.shared())
    }

    /// Sends `payload`, and waits until the receiver has confirmed it.
    ///
    /// It is passed to the carrier without a copy, except for the parts of frames at the ends of
    /// each write; with a hash it is written in pieces of 128 KiB.
    ///
    /// # Errors
    /// [`SendError::TooLarge`] and [`SendError::MetadataTooLong`] before anything is sent; see
    /// [`SendError`] for the others.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the payload.
    pub async fn send_bytes(self, payload: Bytes) -> Result<Sent, SendError> {
        let total = payload.len() as u64;
        let (mut sending, metadata) = self.start();
        let sent = async {
            sending.begin(Some(total), metadata, false).await?;
            sending.write_all(payload).await?;
            sending.end().await
        };
        let sent = sent.await;
        sending.close(sent)
    }

    /// Sends `total` bytes from `source`, or up to its end if `total` is `None`, and waits until
    /// the receiver has confirmed them. Reads no more than `total` bytes.
    ///
    /// # Errors
    /// [`SendError::SourceTruncated`] if `source` ends before `total` bytes; otherwise those of
    /// [`Sender::send_bytes`]. If `total` is `None`, [`SendError::TooLarge`] is returned only when
    /// `source` has returned too many bytes.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the payload.
    pub async fn send_reader<R>(self, mut source: R, total: Option<u64>) -> Result<Sent, SendError>
    where
        R: AsyncRead + Unpin,
    {
        let (mut sending, metadata) = self.start();
        let sent = async {
            sending.begin(total, metadata, false).await?;
            sending.write_from(&mut source, total).await?;
            sending.end().await
        };
        let sent = sent.await;
        sending.close(sent)
    }

    /// Sends all of `source` as [`Sender::send_reader`] does, with its hash, and offers the
    /// receiver to skip what it already has.
    ///
    /// The receiver answers with the length of its prefix and the hash of that. If the prefix of
    /// `source` has the same hash, only the rest is sent, otherwise all. Both sides hash the
    /// skipped part within the time limits: a gigabyte takes about a second.
    ///
    /// Use [`std::io::Cursor`] for bytes in memory.
    ///
    /// # Errors, cancel safety
    /// Those of [`Sender::send_reader`].
    pub async fn send_resumable<R>(mut self, mut source: R) -> Result<Sent, SendError>
    where
        R: AsyncRead + AsyncSeek + Unpin,
    {
        self.hashed = true;
        let (mut sending, metadata) = self.start();
        let sent = async {
            let total = sending.length_of(&mut source).await?;
            sending.begin(Some(total), metadata, true).await?;
            let offset = sending.resume(&mut source, total).await?;
            sending
                .write_from(&mut source, Some(total - offset))
                .await?;
            sending.end().await
        };
        let sent = sent.await;
        sending.close(sent)
    }

    fn start(self) -> (Sending, Metadata) {
        let sending = Sending {
            watch: Watch::new(self.state, &self.config),
            lease: self.lease,
            reporter: Reporter::silent(),
            progress_interval: self.config.progress_interval,
            hasher: self.hashed.then(Sha256::new),
            max_total: self.config.max_total,
            position: 0,
            resumed_from: 0,
            read: BytesMut::new(),
        };
        let metadata = Metadata {
            bytes: self.metadata,
            max: self.config.max_metadata,
        };
        (sending, metadata)
    }
}

struct Metadata {
    bytes: Bytes,
    max: usize,
}

/// The state of a payload that is being sent.
struct Sending {
    lease: Lease,
    /// After the lease in drop order: the reset is sent before the event.
    reporter: Reporter,
    watch: Watch,
    progress_interval: u64,
    hasher: Option<Sha256>,
    max_total: u64,
    /// Bytes sent or skipped so far.
    position: u64,
    resumed_from: u64,
    /// The read buffer. Small reads share one allocation.
    read: BytesMut,
}

impl Sending {
    async fn begin(
        &mut self,
        total: Option<u64>,
        Metadata { bytes, max }: Metadata,
        resumable: bool,
    ) -> Result<(), SendError> {
        let len = bytes.len();
        if len > max {
            return Err(SendError::MetadataTooLong { len, max });
        }
        if let Some(len) = total {
            self.check_total(len)?;
            self.watch.state.set_total(len);
        }
        self.reporter = Reporter::begin(
            self.lease.write.shared(),
            &self.watch.state,
            PayloadDirection::Sent,
            self.progress_interval,
        );
        let header = Header {
            total_len: total,
            metadata: (len > 0).then_some(bytes),
            hash: self.hasher.is_some().then_some(Hash::Sha256.into()),
            resumable: resumable.then_some(true),
        };
        self.write_message(wire::encode(&header)).await
    }

    async fn length_of(&mut self, source: &mut (impl AsyncSeek + Unpin)) -> Result<u64, SendError> {
        let sought = async {
            let total = source.seek(SeekFrom::End(0)).await?;
            source.seek(SeekFrom::Start(0)).await?;
            Ok(total)
        };
        let total = self.watch.guard(sought).await;
        total
            .map_err(|interrupt| self.interrupted(interrupt))?
            .map_err(|error| SendError::Source(Arc::new(error)))
    }

    fn check_total(&self, len: u64) -> Result<(), SendError> {
        let max = self.max_total;
        if len > max {
            return Err(SendError::TooLarge { len, max });
        }
        Ok(())
    }

    /// Negotiates the offset, and leaves `source` there.
    async fn resume<R>(&mut self, source: &mut R, total: u64) -> Result<u64, SendError>
    where
        R: AsyncRead + AsyncSeek + Unpin,
    {
        let answer = wire::read::<Resume>(&mut self.lease.read, MAX_FIELDS);
        // The receiver hashes its prefix before it answers.
        let answer = self.watch.guard_silent(true, answer).await;
        let answer = answer.map_err(|interrupt| self.interrupted(interrupt))??;
        let have = answer.have.unwrap_or(0);
        if have > total {
            let error = MessageError::BadOffset { offset: have };
            return Err(SendError::BadAnswer(error));
        }
        if have > 0 {
            let theirs = answer.prefix_hash.unwrap_or_default();
            if theirs.len() != HASH_LEN {
                return Err(SendError::BadAnswer(MessageError::HashLength(theirs.len())));
            }
            let mut left = have;
            while left > 0 {
                let piece = self.read_piece(source, left).await?;
                if piece.is_empty() {
                    let (got, want) = (have - left, total);
                    return Err(SendError::SourceTruncated { got, want });
                }
                left -= piece.len() as u64;
                // A source in memory is always ready.
                consume_budget().await;
                self.hash(&piece);
            }
            // The sent bytes begin in a new buffer, in whole pieces.
            self.read = BytesMut::new();
            let ours = self.hasher.clone().map(|hasher| hasher.finalize());
            if ours.is_some_and(|ours| ours[..] == theirs[..]) {
                self.position = have;
                self.resumed_from = have;
                self.watch.state.set_transferred(have);
                self.reporter.resumed(have);
            } else {
                // The receiver has the prefix of another payload, or of another version.
                self.hasher = Some(Sha256::new());
                let rewound = self.watch.guard(source.seek(SeekFrom::Start(0))).await;
                rewound
                    .map_err(|interrupt| self.interrupted(interrupt))?
                    .map_err(|error| SendError::Source(Arc::new(error)))?;
            }
        }
        let offset = Some(self.position);
        self.write_message(wire::encode(&Start { offset })).await?;
        Ok(self.position)
    }

    async fn write_from<R>(&mut self, source: &mut R, want: Option<u64>) -> Result<(), SendError>
    where
        R: AsyncRead + Unpin,
    {
        let mut left = want.unwrap_or(u64::MAX);
        while left > 0 {
            let piece = self.read_piece(source, left).await?;
            if piece.is_empty() {
                return match want {
                    None => Ok(()),
                    Some(want) => Err(SendError::SourceTruncated {
                        got: self.position,
                        want: want + self.resumed_from,
                    }),
                };
            }
            left -= piece.len() as u64;
            self.write(piece).await?;
        }
        Ok(())
    }

    /// Reads the next bytes of `source`, at most `left`; empty at its end.
    async fn read_piece<R>(&mut self, source: &mut R, left: u64) -> Result<Bytes, SendError>
    where
        R: AsyncRead + Unpin,
    {
        let most = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
        if self.read.capacity() < most.min(MIN_READ) {
            self.read.reserve(most);
        }
        let read = async {
            let mut limited = (&mut *source).take(most as u64);
            let mut read = pin!(limited.read_buf(&mut self.read));
            // Detects a STOP_SENDING or an end of the connection while the source is silent.
            let mut stopping = pin!(self.lease.write.stopped());
            poll_fn(|cx| {
                if let Poll::Ready(read) = read.as_mut().poll(cx) {
                    return Poll::Ready(read.map_err(|error| SendError::Source(Arc::new(error))));
                }
                stopping
                    .as_mut()
                    .poll(cx)
                    .map(|outcome| Err(stopped(outcome)))
            })
            .await
        };
        let read = self.watch.guard(read).await;
        read.map_err(|interrupt| self.interrupted(interrupt))??;
        Ok(self.read.split().freeze())
    }

    fn hash(&mut self, piece: &[u8]) {
        if let Some(hasher) = &mut self.hasher {
            hasher.update(piece);
        }
    }

    async fn write_all(&mut self, mut rest: Bytes) -> Result<(), SendError> {
        while !rest.is_empty() {
            let piece = if self.hasher.is_some() {
                rest.split_to(rest.len().min(PIECE))
            } else {
                std::mem::take(&mut rest)
            };
            self.write(piece).await?;
        }
        Ok(())
    }

    async fn write(&mut self, mut piece: Bytes) -> Result<(), SendError> {
        let len = self.position.saturating_add(piece.len() as u64);
        self.check_total(len)?;
        self.hash(&piece);
        let (write, state) = (&mut self.lease.write, Arc::clone(&self.watch.state));
        let reporter = &mut self.reporter;
        let written = poll_fn(|cx| {
            let before = piece.len();
            let written = write.poll_write_chunk(cx, &mut piece);
            state.add_transferred(before - piece.len());
            reporter.progressed();
            Poll::Ready(ready!(written))
        });
        let written = self.watch.guard(written).await;
        written.map_err(|interrupt| self.interrupted(interrupt))??;
        self.position = len;
        Ok(())
    }

    async fn write_message(&mut self, message: Bytes) -> Result<(), SendError> {
        let written = self
            .watch
            .guard(self.lease.write.write_chunk(message))
            .await;
        Ok(written.map_err(|interrupt| self.interrupted(interrupt))??)
    }

    /// Sends FIN, and waits for the receipt.
    async fn end(&mut self) -> Result<Sent, SendError> {
        let hash = self.hasher.take().map(|hasher| hasher.finalize());
        if let Some(hash) = &hash {
            self.write_message(Bytes::copy_from_slice(hash)).await?;
        }
        let total = self.position;
        self.watch.state.set_total(total);
        // Everything is written: from here on a FIN is correct.
        let finished = self.watch.guard(self.lease.write.finish()).await;
        match finished.map_err(|interrupt| self.interrupted(interrupt))? {
            // The receipt is the confirmation, and may arrive without FIN_ACK.
            Ok(_) | Err(FinishError::TimedOut | FinishError::ChannelClosed) => {}
            Err(FinishError::Stopped(code) | FinishError::ResetByPeer(code)) => {
                return Err(SendError::Rejected(code.into()));
            }
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let receipt = wire::read::<Receipt>(&mut self.lease.read, MAX_FIELDS);
        let receipt = self.watch.guard(receipt).await;
        let receipt = receipt.map_err(|interrupt| self.interrupted(interrupt))??;
        let confirmed = receipt.received.unwrap_or(0);
        if confirmed != total {
            let error = MessageError::BadReceipt { confirmed, total };
            return Err(SendError::BadAnswer(error));
        }
        self.watch.state.complete();
        Ok(Sent {
            total,
            resumed_from: self.resumed_from,
            hash: hash.map(Into::into),
        })
    }

    /// Releases or resets the substream, and reports the result.
    fn close(mut self, sent: Result<Sent, SendError>) -> Result<Sent, SendError> {
        match &sent {
            Ok(_) => {
                self.lease.release();
                self.reporter.completed();
            }
            Err(error) => {
                self.lease.reset(error.code());
                self.reporter.send_failed(error);
            }
        }
        sent
    }

    fn interrupted(&self, interrupt: Interrupt) -> SendError {
        SendError::interrupted(interrupt, self.progress())
    }

    fn progress(&self) -> u64 {
        self.watch.state.transferred()
    }
}

/// The write half ended before the payload did.
fn stopped(outcome: CloseOutcome) -> SendError {
    match outcome {
        CloseOutcome::Stopped(code) | CloseOutcome::Reset(code) => SendError::Rejected(code.into()),
        _ => SendError::Unconfirmed(Arc::new(io::ErrorKind::ConnectionAborted.into())),
    }
}
