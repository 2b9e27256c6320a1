//! A connection as a stream muxer.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use anabranch::{OpenError, Opening, Substream};
use futures_io::{AsyncRead, AsyncWrite};
use libp2p_core::muxing::{StreamMuxer, StreamMuxerEvent};
use libp2p_identity::PeerId;

use crate::error::Error;

/// A connection to a peer, as a [`StreamMuxer`].
///
/// Inbound substreams wait in it, up to
/// [`max_inbound_substreams`](anabranch::Config::max_inbound_substreams) and for
/// [`accept_timeout`](anabranch::Config::accept_timeout), while the swarm does not poll for them; a
/// peer that runs anabranch opens no more then.
///
/// # Drop
/// The connection closes when its last substream is dropped too.
pub struct Connection {
    inner: anabranch::Connection,
    opening: Option<Opening>,
    /// The peer takes no new substreams.
    is_draining: bool,
    /// Inbound substreams that were left when the connection had ended.
    left: VecDeque<Substream>,
}

impl Connection {
    /// The connection, with the peer that it has proven to be.
    pub(crate) fn new(inner: anabranch::Connection) -> Result<(PeerId, Self), Error> {
        let peer = inner.peer_id().ok_or(Error::NoPeerId)?;
        let peer = PeerId::from_bytes(&peer.to_bytes()).map_err(|_| Error::NoPeerId)?;
        let connection = Self {
            inner,
            opening: None,
            is_draining: false,
            left: VecDeque::new(),
        };
        Ok((peer, connection))
    }

    /// Counters, and what is queued.
    pub fn stats(&self) -> anabranch::ConnectionStats {
        self.inner.stats()
    }
}

impl StreamMuxer for Connection {
    type Substream = Stream;
    type Error = Error;

    fn poll_inbound(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        let this = self.get_mut();
        if let Some(substream) = this.left.pop_front() {
            return Poll::Ready(Ok(Stream(substream)));
        }
        match ready!(this.inner.poll_accept(cx))? {
            Some(substream) => Poll::Ready(Ok(Stream(substream))),
            // The end is an error to a swarm, with the side that has closed.
            None => this.inner.poll_closed(cx).map(|cause| Err(cause.into())),
        }
    }

    fn poll_outbound(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        let this = self.get_mut();
        if this.is_draining {
            return this.inner.poll_closed(cx).map(|cause| Err(cause.into()));
        }
        let opening = this.opening.get_or_insert_with(|| this.inner.open(""));
        let opened = ready!(Pin::new(opening).poll(cx));
        this.opening = None;
        match opened {
            Ok(substream) => Poll::Ready(Ok(Stream(substream))),
            // An error would end the connection, and with it the substreams that are let finish.
            Err(OpenError::Draining) => {
                this.is_draining = true;
                this.inner.poll_closed(cx).map(|cause| Err(cause.into()))
            }
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_close(cx).map(Ok)
    }

    fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        let this = self.get_mut();
        let cause = ready!(this.inner.poll_closed(cx));
        // An error ends everything: what the peer has sent before the end comes first.
        while let Poll::Ready(Ok(Some(substream))) = this.inner.poll_accept(cx) {
            this.left.push_back(substream);
        }
        match this.left.is_empty() {
            true => Poll::Ready(Err(cause.into())),
            false => Poll::Pending,
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

/// A substream. Its [`AsyncWrite::poll_close`] completes when the peer's transport has everything,
/// or when the peer has stopped reading after everything was sent.
///
/// # Drop
/// See [`anabranch::Substream`]: what was written is delivered, and the stream ended.
#[derive(Debug)]
pub struct Stream(Substream);

impl Stream {
    /// The substream of anabranch, for its resets, codes and counters.
    pub fn into_inner(self) -> Substream {
        self.0
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        AsyncRead::poll_read(Pin::new(&mut self.0), cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.0), cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.0), cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_close(Pin::new(&mut self.0), cx)
    }
}
