//! A substream that is being opened.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use super::config::Negotiation;
use super::error::OpenError;
use super::shared::{ConnectionShared, OpenRequest};
use super::{negotiate, report};
use crate::error::ConnectionError;
use crate::substream::Substream;

/// A substream that is being opened; see [`Connection::open`](super::Connection::open).
///
/// It owns what it needs, so that it can be kept and polled anywhere, and does nothing before it is
/// polled. Until its substream is open it does not keep the connection open, and then as any
/// substream does.
///
/// # Drop
/// The substream is closed, if it was opened meanwhile.
#[must_use = "futures do nothing unless polled"]
pub struct Opening {
    conn: Arc<ConnectionShared>,
    state: State,
}

enum State {
    Created(Vec<String>),
    /// The driver answers when the peer has room, or when the connection ends: without a time
    /// limit.
    Requested {
        opened: oneshot::Receiver<Result<Substream, OpenError>>,
        then: Then,
    },
    Negotiating(BoxFuture<'static, Result<Substream, OpenError>>),
    Done,
}

/// What is left to do with an open channel.
enum Then {
    Nothing,
    /// The label has named this protocol.
    Named(Arc<str>),
    Negotiate(Vec<String>),
}

impl Opening {
    pub(super) fn new(conn: &Arc<ConnectionShared>, protocols: &[&str]) -> Self {
        let protocols = protocols.iter().map(|&name| name.to_owned()).collect();
        Self {
            conn: Arc::clone(conn),
            state: State::Created(protocols),
        }
    }

    fn request(&self, protocols: Vec<String>) -> State {
        let config = &self.conn.config;
        let is_by_label = match (config.negotiation, &protocols[..]) {
            (Negotiation::MultistreamSelect, [protocol]) => self.conn.may_name_by_label(protocol),
            (negotiation, _) => negotiation == Negotiation::ChannelLabel,
        };
        let (label, then) = match config.negotiation {
            _ if is_by_label => {
                let label = protocols.into_iter().next().unwrap_or_default();
                let named = Then::Named(label.as_str().into());
                (label, named)
            }
            Negotiation::MultistreamSelect => (String::new(), Then::Negotiate(protocols)),
            Negotiation::ChannelLabel | Negotiation::None => (String::new(), Then::Nothing),
        };
        let (reply, opened) = oneshot::channel();
        self.conn.request_open(OpenRequest { label, reply });
        State::Requested { opened, then }
    }

    /// The cause of the end, for a driver that was dropped without an answer.
    fn ended(&self) -> OpenError {
        let cause = self.conn.siblings.cause();
        OpenError::Connection(cause.unwrap_or(ConnectionError::ClosedLocally))
    }
}

impl Future for Opening {
    type Output = Result<Substream, OpenError>;

    /// # Panics
    /// After it has completed.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            let mut substream = match &mut this.state {
                State::Created(protocols) => {
                    let protocols = std::mem::take(protocols);
                    this.state = this.request(protocols);
                    continue;
                }
                State::Requested { opened, .. } => match ready!(Pin::new(opened).poll(cx)) {
                    Ok(Ok(substream)) => substream,
                    Ok(Err(error)) => {
                        this.state = State::Done;
                        return Poll::Ready(Err(error));
                    }
                    Err(_) => {
                        this.state = State::Done;
                        return Poll::Ready(Err(this.ended()));
                    }
                },
                State::Negotiating(negotiation) => {
                    let negotiated = ready!(negotiation.as_mut().poll(cx));
                    this.state = State::Done;
                    if let Ok(substream) = &negotiated {
                        report::negotiated(&this.conn, substream);
                    }
                    return Poll::Ready(negotiated);
                }
                State::Done => panic!("polled after it has completed"),
            };
            match std::mem::replace(&mut this.state, State::Done) {
                State::Requested {
                    then: Then::Negotiate(protocols),
                    ..
                } => {
                    let limit = this.conn.config.open_timeout;
                    let negotiation = negotiate::negotiate_outbound(substream, protocols, limit);
                    this.state = State::Negotiating(Box::pin(negotiation));
                }
                State::Requested {
                    then: Then::Named(protocol),
                    ..
                } => {
                    substream.set_protocol(protocol);
                    report::negotiated(&this.conn, &substream);
                    return Poll::Ready(Ok(substream));
                }
                _ => return Poll::Ready(Ok(substream)),
            }
        }
    }
}

impl fmt::Debug for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Created(_) => "Created",
            State::Requested { .. } => "Requested",
            State::Negotiating(_) => "Negotiating",
            State::Done => "Done",
        };
        f.debug_struct("Opening")
            .field("state", &state)
            .finish_non_exhaustive()
    }
}
