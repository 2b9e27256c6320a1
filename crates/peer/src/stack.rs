//! What a stack has to provide.

use std::fmt;
use std::future::Future;
use std::io;
use std::ops::Deref;
use std::str::FromStr;

use bytes::Bytes;

/// A stack, ready to dial.
pub trait Stack: Sized + Send + Sync + 'static {
    /// Name of the program.
    const NAME: &'static str;

    /// Where `listen` binds by default.
    const LISTEN: &'static str;

    /// Flags of `dial` that only this stack has.
    const FLAGS: &'static [Flag] = &[];

    /// The last lines of the help.
    const HELP: &'static str = "";

    /// Address to listen on or to dial.
    type Address: FromStr<Err: fmt::Display> + Clone + fmt::Debug + Send + Sync + 'static;

    /// A connection that was dialled.
    type Connection: Connection;

    /// Binds to addresses, serves from then on, and returns the addresses as diallers need them.
    fn listen(addresses: &[Self::Address]) -> impl Future<Output = io::Result<Vec<String>>> + Send;

    /// Prepares for dialling.
    fn dialler(settings: &Settings) -> impl Future<Output = io::Result<Self>> + Send;

    /// Connects, and authenticates the peer.
    fn dial(
        &self,
        address: &Self::Address,
    ) -> impl Future<Output = io::Result<Self::Connection>> + Send;

    /// Closes what the stack still holds before the process ends.
    fn close(&self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// A flag of `dial`.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    /// Its text, `--v2` for example.
    pub name: &'static str,
    /// Its description in the help.
    pub help: &'static str,
}

/// The options of `dial` that a stack needs.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// `--nofin`: the peer may have no half-close, and confirm no end of a stream.
    pub nofin: bool,
    /// Those of [`Stack::FLAGS`] that were given.
    pub flags: Vec<&'static str>,
}

/// A connection that was dialled.
pub trait Connection: Send + Sync + 'static {
    /// A substream of the connection.
    type Substream: Substream;

    /// Opens a substream and negotiates its protocol.
    fn open(
        &self,
        protocol: &'static str,
    ) -> impl Future<Output = io::Result<Self::Substream>> + Send;

    /// Closes the connection and waits until that is done. Fails if the connection ended before.
    fn close(&self) -> impl Future<Output = io::Result<()>> + Send;
}

/// A substream.
pub trait Substream: Send + Sized + 'static {
    /// The read half.
    type Reader: Reader;
    /// The write half.
    type Writer: Writer;

    /// Splits into halves that can be used at the same time.
    fn into_split(self) -> (Self::Reader, Self::Writer);

    /// Resets both directions.
    fn reset(reader: Self::Reader, writer: Self::Writer);
}

/// The read half of a substream.
pub trait Reader: Send + 'static {
    /// Reads up to `max` bytes. An empty chunk is the end of the stream.
    fn read(&mut self, max: usize) -> impl Future<Output = io::Result<Chunk<'_>>> + Send;

    /// Bytes that have arrived and are unread, if the stack reports them.
    fn unread(&self) -> Option<u64> {
        None
    }
}

/// The write half of a substream.
pub trait Writer: Send + 'static {
    /// Writes all of `chunk`. What is written may wait for [`Writer::flush`].
    fn write(&mut self, chunk: Chunk<'_>) -> impl Future<Output = io::Result<()>> + Send;

    /// Sends what was written.
    fn flush(&mut self) -> impl Future<Output = io::Result<()>> + Send;

    /// Ends the stream, and waits until the peer has confirmed that, if the stack has such a
    /// confirmation.
    fn finish(&mut self) -> impl Future<Output = io::Result<Finished>> + Send;

    /// Ends the stream without waiting for a confirmation.
    fn close(self) -> impl Future<Output = io::Result<()>> + Send;
}

/// What is known after [`Writer::finish`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    /// The peer has confirmed every byte and the end.
    Confirmed,
    /// The stack has no confirmation: the peer may not have got the end yet.
    Sent,
}

/// Bytes that are read or written.
#[derive(Debug, Clone)]
pub enum Chunk<'a> {
    /// Bytes that a stack can take over without a copy.
    Shared(Bytes),
    /// Bytes in somebody's buffer.
    Borrowed(&'a [u8]),
}

impl Chunk<'_> {
    /// The bytes themselves, copied where they are borrowed.
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Shared(bytes) => bytes,
            Self::Borrowed(bytes) => Bytes::copy_from_slice(bytes),
        }
    }
}

impl Deref for Chunk<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Shared(bytes) => bytes,
            Self::Borrowed(bytes) => bytes,
        }
    }
}

impl From<Bytes> for Chunk<'_> {
    fn from(bytes: Bytes) -> Self {
        Self::Shared(bytes)
    }
}
