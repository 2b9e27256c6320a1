//! Accepts the payloads of a connection.

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
/// It accepts every substream of the connection. If a connection carries other protocols too,
/// accept substreams yourself, and pass those of payloads to [`Receiver::receive`].
///
/// # Drop
/// Cancels payloads whose header has not arrived yet; others live on.
pub struct Payloads {
    connection: Connection,
    protocol: Arc<str>,
    receiver: Receiver,
    /// Number of open payloads of this connection.
    open: Arc<AtomicUsize>,
    accept: Option<Accept>,
    /// Substreams whose header has not arrived yet. Each holds a slot of `receiver`, which bounds
    /// them.
    headers: FuturesUnordered<Header>,
    /// Why the connection ended, reported after everything else.
    end: Option<ConnectionError>,
}

impl Payloads {
    /// Accepts payloads on substreams of `protocol`, within the limits of `receiver`. Several
    /// connections can share a receiver; this one uses at most
    /// [`PayloadConfig::max_open_per_connection`](super::PayloadConfig::max_open_per_connection) of
    /// its slots.
    ///
    /// Substreams of other protocols are reset. On a connection without negotiation all are
    /// accepted.
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

    /// Waits for the next payload whose header has arrived, or the reason why one was refused.
    /// Returns `None` when the connection has ended, after [`PayloadError::Connection`] if it
    /// failed.
    ///
    /// A sender that is slow with its header delays no other. The payloads are independent of each
    /// other and of this: run each in a task of its own. No more than
    /// [`PayloadConfig::max_open`](super::PayloadConfig::max_open) and
    /// [`PayloadConfig::max_open_per_connection`](super::PayloadConfig::max_open_per_connection)
    /// are open at once.
    ///
    /// # Cancel safety
    /// No payload is lost if the future is dropped. Headers are read, and payloads refused, only
    /// while this is polled.
    pub async fn accept(&mut self) -> Option<Result<Payload, PayloadError>> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// The poll form of [`Payloads::accept`].
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

/// Kept between calls, since it has to be polled until it is ready.
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
