//! Sending a payload.

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
use super::tell::Teller;
use super::watch::{Canceller, Progress, State, Watch};
use super::wire::{self, HASH_LEN, Hash, Header, MAX_FIELDS, Receipt, Resume, Start};
use crate::error::payload::Interrupt;
use crate::error::payload::MessageError;
use crate::error::payload::{SendError, code};
use crate::events::PayloadDirection;
use crate::substream::{CloseOutcome, FinishError, Substream};

/// Bytes to read, and to hash, before they are written.
///
/// Several frames, since the frame at each end of a write is copied; and few enough that hashing takes
/// less time than the send buffer takes to drain.
const PIECE: usize = 128 * 1024;

/// Room for less than this is not worth a read: about a frame.
const MIN_READ: usize = 16 * 1024;

/// A payload that the receiver has confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sent {
    /// Bytes of the whole payload.
    pub total: u64,
    /// Where sending began: bytes that the receiver already had.
    pub resumed_from: u64,
    /// SHA-256 of the whole payload, if it was sent with its hash.
    pub hash: Option<[u8; HASH_LEN]>,
}

/// Sends one payload over one substream.
///
/// # Drop
/// A sender, or the future of one of its `send` methods, that is dropped before the receiver has
/// confirmed the payload resets the substream with [`code::CANCELLED`].
#[derive(Debug)]
pub struct Sender {
    lease: Lease,
    config: PayloadConfig,
    metadata: Bytes,
    hashed: bool,
    state: Arc<State>,
}

impl Sender {
    /// Takes a substream over that was opened for this payload.
    ///
    /// # Errors
    /// If `config` does not [validate](PayloadConfig::validate); the substream is then reset.
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
        // A FIN before the end would look like the end where no length was announced.
        Self {
            lease,
            config,
            metadata: Bytes::new(),
            hashed: false,
            state: State::new(None),
        }
    }

    /// Bytes for the receiving application, a name for instance, which it sees before the payload.
    /// At most [`PayloadConfig::max_metadata`].
    #[must_use]
    pub fn metadata(mut self, metadata: impl Into<Bytes>) -> Self {
        self.metadata = metadata.into();
        self
    }

    /// Sends the SHA-256 of the payload behind it, which the receiver checks.
    ///
    /// The substream already protects what it carries against errors and, over WebRTC, against others.
    /// A hash finds what changes on the way to it, and what changes between the parts of a payload
    /// that is resumed.
    #[must_use]
    pub fn hashed(mut self) -> Self {
        self.hashed = true;
        self
    }

    /// How far it has come, for another task.
    pub fn progress(&self) -> Progress {
        Progress(Arc::clone(&self.state))
    }

    /// What ends it from another task.
    pub fn canceller(&self) -> Canceller {
        Canceller::new(&self.state, self.lease.write.shared())
    }

    /// Sends `payload`, and waits until the receiver has confirmed it.
    ///
    /// It is not copied on its way to the carrier's messages, but for the parts of frames at the
    /// ends of each write; one with a hash is written in pieces of 128 KiB.
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

    /// Sends what `source` reads, `total` bytes, or until its end where that is `None`; and waits until
    /// the receiver has confirmed it. More than `total` bytes are not read.
    ///
    /// # Errors
    /// [`SendError::SourceTruncated`] if `source` ends before `total` bytes; otherwise as
    /// [`Sender::send_bytes`], but [`SendError::TooLarge`] comes when `source` has given too much
    /// if `total` is `None`.
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

    /// As [`Sender::send_reader`] for all of `source`, with its hash, and offers the receiver to send
    /// only what it does not have.
    ///
    /// The receiver says how many bytes it has and what their hash is. If the first bytes of `source`
    /// have the same one, only the others are sent, else all. Both sides hash the part that is
    /// skipped, within the time limits: a gigabyte takes about a second.
    ///
    /// [`std::io::Cursor`] makes a source of bytes in memory.
    ///
    /// # Errors, cancel safety
    /// As [`Sender::send_reader`].
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
            watch: Watch::new(Arc::clone(&self.state), &self.config),
            lease: self.lease,
            teller: Teller::silent(),
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

/// A payload on its way out.
struct Sending {
    lease: Lease,
    /// Behind the lease: the reset is on its way when a drop is told.
    teller: Teller,
    watch: Watch,
    progress_interval: u64,
    hasher: Option<Sha256>,
    max_total: u64,
    /// Bytes of the payload up to here were sent, or skipped.
    position: u64,
    resumed_from: u64,
    /// Where the source is read to. Small reads share one allocation.
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
        self.teller = Teller::begin(
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
            .map_err(SendError::Source)
    }

    fn check_total(&self, len: u64) -> Result<(), SendError> {
        let max = self.max_total;
        if len > max {
            return Err(SendError::TooLarge { len, max });
        }
        Ok(())
    }

    /// Finds out where to begin, and leaves `source` there.
    async fn resume<R>(&mut self, source: &mut R, total: u64) -> Result<u64, SendError>
    where
        R: AsyncRead + AsyncSeek + Unpin,
    {
        let answer = wire::read::<Resume>(&mut self.lease.read, MAX_FIELDS);
        // Before it answers the receiver hashes what it has.
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
            // What is sent begins in a buffer of its own, in whole pieces.
            self.read = BytesMut::new();
            let ours = self.hasher.clone().map(|hasher| hasher.finalize());
            if ours.is_some_and(|ours| ours[..] == theirs[..]) {
                self.position = have;
                self.resumed_from = have;
                self.watch.state.set_transferred(have);
                self.teller.resumed(have);
            } else {
                // Another payload, or another version of it.
                self.hasher = Some(Sha256::new());
                let rewound = self.watch.guard(source.seek(SeekFrom::Start(0))).await;
                rewound
                    .map_err(|interrupt| self.interrupted(interrupt))?
                    .map_err(SendError::Source)?;
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

    /// The next bytes of `source`, at most `left`; none at its end.
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
            // The source may be silent for long: a receiver that has gone is noticed.
            let mut stopping = pin!(self.lease.write.stopped());
            poll_fn(|cx| {
                if let Poll::Ready(read) = read.as_mut().poll(cx) {
                    return Poll::Ready(read.map_err(SendError::Source));
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
        let teller = &mut self.teller;
        let written = poll_fn(|cx| {
            let before = piece.len();
            let written = write.poll_write_chunk(cx, &mut piece);
            state.add_transferred(before - piece.len());
            teller.moved();
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

    /// Ends the stream, and waits for the confirmation.
    async fn end(&mut self) -> Result<Sent, SendError> {
        let hash = self.hasher.take().map(|hasher| hasher.finalize());
        if let Some(hash) = &hash {
            self.write_message(Bytes::copy_from_slice(hash)).await?;
        }
        let total = self.position;
        self.watch.state.set_total(total);
        // All is written: from here on FIN is right, whoever sends it.
        let finished = self.watch.guard(self.lease.write.finish()).await;
        match finished.map_err(|interrupt| self.interrupted(interrupt))? {
            // It is the receipt that confirms, and it may have come without FIN_ACK.
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

    /// The end of it, in either way.
    fn close(mut self, sent: Result<Sent, SendError>) -> Result<Sent, SendError> {
        match &sent {
            Ok(_) => {
                self.lease.release();
                self.teller.completed();
            }
            Err(error) => {
                self.lease.reset(error.code());
                self.teller.send_failed(error);
            }
        }
        sent
    }

    fn interrupted(&self, interrupt: Interrupt) -> SendError {
        SendError::interrupted(interrupt, self.progress())
    }

    fn progress(&self) -> u64 {
        Progress(Arc::clone(&self.watch.state)).transferred()
    }
}

/// The write half ended before the payload did.
fn stopped(outcome: CloseOutcome) -> SendError {
    match outcome {
        CloseOutcome::Stopped(code) | CloseOutcome::Reset(code) => SendError::Rejected(code.into()),
        _ => SendError::Unconfirmed(io::ErrorKind::ConnectionAborted.into()),
    }
}
