//! Payloads that the peer of a connection sends.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::body::Payload;
use super::receive::Receiver;
use crate::connection::{Connection, ConnectionError};
use crate::error::payload::PayloadError;
use crate::substream::{Substream, code};

type Header = Pin<Box<dyn Future<Output = Result<Payload, PayloadError>> + Send>>;
type Accept = Pin<Box<dyn Future<Output = Result<Option<Substream>, ConnectionError>> + Send>>;

/// Accepts the payloads that the peer of a connection sends.
///
/// It takes every substream of the connection. Where a connection carries other protocols too, accept
/// substreams yourself and give those of payloads to [`Receiver::receive`].
///
/// # Drop
/// Payloads whose header has not come yet are cancelled, others live on.
pub struct Payloads {
    connection: Connection,
    protocol: Arc<str>,
    receiver: Receiver,
    /// Payloads of this connection that are open.
    open: Arc<AtomicUsize>,
    accept: Option<Accept>,
    /// Substreams whose header has not come yet. Each has a place of `receiver`, which bounds them.
    headers: FuturesUnordered<Header>,
    /// Why the connection ended, to tell when nothing else is left.
    end: Option<ConnectionError>,
}

impl Payloads {
    /// Payloads on substreams of `protocol`, within the limits of `receiver`, which connections can
    /// share; of its places this takes
    /// [`PayloadConfig::max_open_per_connection`](super::PayloadConfig::max_open_per_connection) at most.
    ///
    /// A substream of another protocol is reset; on a connection that negotiates none, all are taken.
    pub fn new(connection: &Connection, protocol: &str, receiver: &Receiver) -> Self {
        let connection = connection.clone();
        Self {
            accept: Some(accept(&connection)),
            connection,
            protocol: protocol.into(),
            receiver: receiver.clone(),
            open: Arc::default(),
            headers: FuturesUnordered::new(),
            end: None,
        }
    }

    /// The next payload whose header has come, or the reason why one was refused. `None` when the
    /// connection has ended, after [`PayloadError::Connection`] if that was for a failure.
    ///
    /// A sender that is slow with its header delays no other. The payloads are independent of each
    /// other and of this: hand each to a task of its own, or no more is received than
    /// [`PayloadConfig::max_open`](super::PayloadConfig::max_open) and
    /// [`PayloadConfig::max_open_per_connection`](super::PayloadConfig::max_open_per_connection).
    ///
    /// # Cancel safety
    /// Nothing is lost if the future is dropped. While nobody waits here no header is read and
    /// nothing is refused.
    pub async fn accept(&mut self) -> Option<Result<Payload, PayloadError>> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// Poll form of [`Payloads::accept`].
    pub fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Payload, PayloadError>>> {
        while let Some(accepting) = &mut self.accept {
            let Poll::Ready(accepted) = accepting.as_mut().poll(cx) else {
                break;
            };
            self.accept = None;
            match accepted {
                Ok(Some(substream)) => {
                    self.accept = Some(accept(&self.connection));
                    if let Some(refused) = self.admit(substream) {
                        return Poll::Ready(Some(Err(refused)));
                    }
                }
                Ok(None) => {}
                Err(error) => self.end = Some(error),
            }
        }
        match self.headers.poll_next_unpin(cx) {
            Poll::Ready(Some(payload)) => return Poll::Ready(Some(payload)),
            Poll::Ready(None) if self.accept.is_none() => {}
            Poll::Ready(None) | Poll::Pending => return Poll::Pending,
        }
        let end = self.end.take();
        Poll::Ready(end.map(|error| Err(PayloadError::Connection(error))))
    }

    fn admit(&self, substream: Substream) -> Option<PayloadError> {
        if substream
            .protocol()
            .is_some_and(|protocol| *protocol != *self.protocol)
        {
            substream.reset(code::NEGOTIATION_FAILED);
            return None;
        }
        match self.receiver.admit(substream, Some(&self.open)) {
            Ok(admitted) => {
                let receiver = self.receiver.clone();
                self.headers.push(Box::pin(
                    async move { receiver.read_header(admitted).await },
                ));
                None
            }
            Err(refused) => Some(refused),
        }
    }
}

/// Lives on between calls, since it is polled until it is ready.
fn accept(connection: &Connection) -> Accept {
    let connection = connection.clone();
    Box::pin(async move { connection.accept().await })
}

impl fmt::Debug for Payloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Payloads")
            .field("protocol", &self.protocol)
            .field("receiver", &self.receiver)
            .field("headers", &self.headers.len())
            .finish_non_exhaustive()
    }
}
