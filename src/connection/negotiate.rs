//! Negotiates the protocol of a substream.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_io::{AsyncRead, AsyncWrite};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, Stream};
use multistream_select::{NegotiationError, Version, dialer_select_proto, listener_select_proto};
use tokio::time::timeout;

use super::config::{Config, Negotiation};
use super::error::OpenError;
use crate::substream::{CloseOutcome, Substream, code};

/// Result of the negotiation of an inbound substream.
#[derive(Debug)]
pub(super) enum NegotiationOutcome {
    /// The substream is ready for the application.
    Agreed(Substream),
    /// The substream has to be reset, for this reason.
    Failed(Substream, String),
}

/// Negotiations of inbound substreams, polled by the driver.
///
/// The open timeout bounds each of them, and `max_inbound_substreams` their number.
#[derive(Default)]
pub(super) struct Negotiations(FuturesUnordered<BoxFuture<'static, NegotiationOutcome>>);

impl Negotiations {
    /// Starts a negotiation; returns the outcome at once if there is nothing to negotiate.
    /// `takes_labels`: both sides have announced that the label may name the protocol.
    pub(super) fn begin(
        &mut self,
        mut substream: Substream,
        label: String,
        takes_labels: bool,
        config: &Arc<Config>,
    ) -> Option<NegotiationOutcome> {
        let by_label = match config.negotiation {
            Negotiation::MultistreamSelect => takes_labels && !label.is_empty(),
            negotiation => negotiation == Negotiation::ChannelLabel,
        };
        match config.negotiation {
            Negotiation::None => Some(NegotiationOutcome::Agreed(substream)),
            _ if by_label => Some(match config.protocols.contains(&label) {
                true => {
                    substream.set_protocol(label.into());
                    NegotiationOutcome::Agreed(substream)
                }
                false => {
                    NegotiationOutcome::Failed(substream, format!("unsupported protocol {label:?}"))
                }
            }),
            Negotiation::MultistreamSelect | Negotiation::ChannelLabel => {
                let config = Arc::clone(config);
                self.0.push(Box::pin(negotiate_inbound(substream, config)));
                None
            }
        }
    }

    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<NegotiationOutcome> {
        match Pin::new(&mut self.0).poll_next(cx) {
            Poll::Ready(Some(outcome)) => Poll::Ready(outcome),
            // The driver polls again in its next round, when more may have started.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Drops all negotiations; their substreams close themselves.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// A substream during negotiation, which ignores write errors after STOP_SENDING.
///
/// A peer that offers a single protocol may send its data right after the offer and read nothing,
/// not even whether the offer was accepted. Its STOP_SENDING says nothing about the data that it
/// sends.
struct NegotiationIo<'a>(&'a mut Substream);

impl NegotiationIo<'_> {
    fn peer_stopped_reading(&self) -> bool {
        matches!(self.0.close_outcome(), Some(CloseOutcome::Stopped(_)))
    }
}

impl AsyncRead for NegotiationIo<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        AsyncRead::poll_read(Pin::new(&mut *self.0), cx, out)
    }
}

impl AsyncWrite for NegotiationIo<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        match ready!(AsyncWrite::poll_write(Pin::new(&mut *self.0), cx, data)) {
            Err(_) if self.peer_stopped_reading() => Poll::Ready(Ok(data.len())),
            written => Poll::Ready(written),
        }
    }

    /// The driver sends written data without a flush. Waiting for it would put the header and the
    /// answer to an offer into separate packets.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_close(Pin::new(&mut *self.0), cx)
    }
}

async fn negotiate_inbound(mut substream: Substream, config: Arc<Config>) -> NegotiationOutcome {
    let protocols = config.protocols.iter().map(String::as_str);
    let selected = timeout(config.open_timeout, async {
        // By reference, so that the substream is returned without the wrapper of the negotiation.
        let (protocol, io) =
            listener_select_proto(NegotiationIo(&mut substream), protocols).await?;
        io.complete().await?;
        Ok::<_, NegotiationError>(protocol)
    })
    .await;
    match selected {
        Ok(Ok(protocol)) => {
            substream.set_protocol(protocol.into());
            NegotiationOutcome::Agreed(substream)
        }
        Ok(Err(error)) => NegotiationOutcome::Failed(substream, error.to_string()),
        Err(_) => NegotiationOutcome::Failed(
            substream,
            "the peer selected no protocol in time".to_owned(),
        ),
    }
}

/// Negotiates one of `protocols`, in order of preference, on a substream opened by this side.
pub(super) async fn negotiate_outbound(
    mut substream: Substream,
    protocols: Vec<String>,
    limit: Duration,
) -> Result<Substream, OpenError> {
    let selected = timeout(limit, async {
        // Not the lazy variant: peers may close a channel that receives data before the negotiation
        // is complete, as js-libp2p does, and a listener that refuses a protocol takes what follows
        // for the name of another.
        let offers = protocols.clone();
        let io = NegotiationIo(&mut substream);
        let (protocol, io) = dialer_select_proto(io, offers, Version::V1).await?;
        // The peer has agreed, so it has everything that was written. It may have answered and
        // stopped reading since, which fails only this flush.
        let _ = io.complete().await;
        Ok::<_, NegotiationError>(protocol)
    })
    .await;
    let error = match selected {
        Ok(Ok(protocol)) => {
            substream.set_protocol(protocol.into());
            return Ok(substream);
        }
        Ok(Err(NegotiationError::Failed)) => OpenError::UnsupportedProtocol(protocols.join(", ")),
        Ok(Err(error)) => match substream.connection_error() {
            Some(cause) => OpenError::Connection(cause),
            None => OpenError::Negotiation(error.to_string()),
        },
        Err(_) => OpenError::TimedOut,
    };
    substream.reset(code::NEGOTIATION_FAILED);
    Err(error)
}
