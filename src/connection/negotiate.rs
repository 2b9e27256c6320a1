//! Which protocol a substream carries.

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

/// How the negotiation of an inbound substream ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The substream is ready for the application.
    Agreed(Substream),
    /// It is to be reset.
    Failed(Substream, String),
}

/// Inbound substreams whose protocol is being negotiated, polled by the driver.
///
/// Each is bounded by the open timeout, and their number by `max_inbound_substreams`.
#[derive(Default)]
pub(super) struct Negotiations(FuturesUnordered<BoxFuture<'static, Outcome>>);

impl Negotiations {
    /// Starts to negotiate; returns the outcome at once where there is nothing to negotiate.
    pub(super) fn begin(
        &mut self,
        mut substream: Substream,
        label: String,
        config: &Arc<Config>,
    ) -> Option<Outcome> {
        match config.negotiation {
            Negotiation::None => Some(Outcome::Agreed(substream)),
            Negotiation::ChannelLabel => Some(match config.protocols.contains(&label) {
                true => {
                    substream.set_protocol(label.into());
                    Outcome::Agreed(substream)
                }
                false => Outcome::Failed(substream, format!("no protocol {label:?}")),
            }),
            Negotiation::MultistreamSelect => {
                let config = Arc::clone(config);
                self.0.push(Box::pin(negotiate_inbound(substream, config)));
                None
            }
        }
    }

    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        match Pin::new(&mut self.0).poll_next(cx) {
            Poll::Ready(Some(outcome)) => Poll::Ready(outcome),
            // Polled again in the driver's next round, after which more may have begun.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    /// Drops what is being negotiated; the substreams close themselves.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// A substream on which offers are answered, as long as somebody reads the answers.
///
/// Who offers one protocol only may send its data right behind the offer, and read nothing, not even whether the
/// offer was taken. Its STOP_SENDING says nothing of what it sends.
struct Answering<'a>(&'a mut Substream);

impl Answering<'_> {
    fn is_unheard(&self) -> bool {
        matches!(self.0.close_outcome(), Some(CloseOutcome::Stopped(_)))
    }
}

impl AsyncRead for Answering<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        AsyncRead::poll_read(Pin::new(&mut *self.0), cx, out)
    }
}

impl AsyncWrite for Answering<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        match ready!(AsyncWrite::poll_write(Pin::new(&mut *self.0), cx, data)) {
            Err(_) if self.is_unheard() => Poll::Ready(Ok(data.len())),
            written => Poll::Ready(written),
        }
    }

    /// The driver sends what is written without being asked: to wait for that would put the header
    /// and the answer to an offer into packets of their own.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_close(Pin::new(&mut *self.0), cx)
    }
}

async fn negotiate_inbound(mut substream: Substream, config: Arc<Config>) -> Outcome {
    let protocols = config.protocols.iter().map(String::as_str);
    let selected = timeout(config.open_timeout, async {
        // By reference, so that the substream comes back without the wrapper of the negotiation.
        let (protocol, io) = listener_select_proto(Answering(&mut substream), protocols).await?;
        io.complete().await?;
        Ok::<_, NegotiationError>(protocol)
    })
    .await;
    match selected {
        Ok(Ok(protocol)) => {
            substream.set_protocol(protocol.into());
            Outcome::Agreed(substream)
        }
        Ok(Err(error)) => Outcome::Failed(substream, error.to_string()),
        Err(_) => Outcome::Failed(substream, "the peer chose no protocol in time".to_owned()),
    }
}

/// Agrees on one of `protocols`, best first, on a substream that was opened here.
pub(super) async fn negotiate_outbound(
    mut substream: Substream,
    protocols: &[&str],
    limit: Duration,
) -> Result<Substream, OpenError> {
    let selected = timeout(limit, async {
        // Not the lazy variant: peers may close a channel that gets data before they have agreed
        // (js-libp2p, docs/interop.md).
        // Owned: with borrowed names the compiler finds the future not `Send` for every lifetime, and
        // refuses to spawn what calls `open` through a reference.
        let offers: Vec<String> = protocols.iter().map(|name| (*name).to_owned()).collect();
        let io = Answering(&mut substream);
        let (protocol, io) = dialer_select_proto(io, offers, Version::V1).await?;
        // The peer has agreed, so it has all that was written. It may have answered and stopped reading since, which
        // fails this flush and nothing else.
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
