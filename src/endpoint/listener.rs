//! Inbound connections: one task for each listening socket, and the queue of first contacts.

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, IntoFuture, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use anabranch_rtc::{Ecn, Role};
use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep_until};

use super::Inner;
use super::config::EnginePeers;
use super::error::ConnectError;
use super::handshake::Expectations;
use crate::connection::Connection;
use crate::udp::admission::challenge::refusal;
use crate::udp::router::{FirstContact, Router, Stranger};
use crate::udp::{DatagramSocket, Transmit};
use crate::ufrag::Version;
use crate::waiters::Waiters;
use crate::webrtc::{Source, WebRtcCarrier};

/// Receive calls in one poll of the task, before it yields to other tasks.
const RECEIVES_PER_POLL: usize = 16;

/// A listening socket with its router.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) socket: Arc<dyn DatagramSocket>,
    pub(super) local: SocketAddr,
    pub(super) router: Arc<Router>,
}

/// First contacts that wait for the application. Each holds an admission slot, which bounds their
/// number, and expires.
#[derive(Debug, Default)]
pub(super) struct IncomingQueue {
    waiting: Mutex<VecDeque<Incoming>>,
    /// Wakes those who wait for one of these, or for the close.
    accept: Waiters,
}

impl IncomingQueue {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Incoming>> {
        // The queue is valid after a panic: no entry is half written.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops the contacts that were not accepted in time: their peers have given up. Returns when
    /// the next one expires.
    fn drop_expired(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut expired = Vec::new();
        let next = {
            let mut waiting = self.lock();
            while waiting.front().is_some_and(|first| first.expires <= now) {
                expired.extend(waiting.pop_front());
            }
            waiting.front().map(|first| first.expires)
        };
        // Outside of the lock: the drop of a contact locks its router.
        drop(expired);
        next
    }

    fn push(&self, incoming: Incoming) {
        self.lock().push_back(incoming);
        self.accept.wake_one();
    }

    /// The next first contact; `None` once `is_closed` returns `true`. Cancel safe.
    pub(super) async fn next(&self, is_closed: impl Fn() -> bool) -> Option<Incoming> {
        self.accept.wait(|| self.take_next(&is_closed)).await
    }

    pub(super) fn poll_next(
        &self,
        cx: &Context<'_>,
        is_closed: impl Fn() -> bool,
    ) -> Poll<Option<Incoming>> {
        self.accept.poll_wait(cx, || self.take_next(&is_closed))
    }

    fn take_next(&self, is_closed: &impl Fn() -> bool) -> Poll<Option<Incoming>> {
        self.drop_expired();
        if is_closed() {
            return Poll::Ready(None);
        }
        let mut waiting = self.lock();
        let Some(incoming) = waiting.pop_front() else {
            return Poll::Pending;
        };
        if !waiting.is_empty() {
            // Another task may wait for the remaining ones.
            self.accept.wake_one();
        }
        Poll::Ready(Some(incoming))
    }

    /// Refuses those that wait.
    pub(super) fn refuse_all(&self) {
        let waiting = std::mem::take(&mut *self.lock());
        waiting.into_iter().for_each(Incoming::refuse);
        self.accept.wake_all();
    }

    pub(super) fn close(&self) {
        let waiting = std::mem::take(&mut *self.lock());
        drop(waiting);
        self.accept.wake_all();
    }
}

/// Receives on a listening socket until its endpoint is dropped.
///
/// Never waits for a connection or the application: datagrams without room are dropped.
pub(super) async fn receive(listener: Arc<Listener>, endpoint: Weak<Inner>) {
    let mut expiry = pin!(sleep_until(Instant::now()));
    poll_fn(|cx| {
        let Some(endpoint) = endpoint.upgrade() else {
            return Poll::Ready(());
        };
        // Here as well, for a socket that is so busy that this never returns `Pending` below.
        endpoint.incoming.drop_expired();
        for _ in 0..RECEIVES_PER_POLL {
            let mut strangers = Vec::new();
            let now = Instant::now();
            let polled = listener.socket.poll_receive(cx, &mut |received| {
                strangers.extend(listener.router.route(now, received, listener.local));
            });
            for stranger in strangers {
                handle_stranger(&listener, &endpoint, stranger);
            }
            match polled {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    // Errors of a UDP socket concern single datagrams. A broken socket fails again,
                    // at the pace of the scheduler.
                    tracing::warn!(target: "anabranch::endpoint", %error, "receive failed");
                    break;
                }
                Poll::Pending => {
                    // After the first contacts that have just arrived.
                    while let Some(next) = endpoint.incoming.drop_expired() {
                        if expiry.deadline() != next {
                            expiry.as_mut().reset(next);
                        }
                        ready!(expiry.as_mut().poll(cx));
                    }
                    return Poll::Pending;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn handle_stranger(listener: &Arc<Listener>, endpoint: &Arc<Inner>, stranger: Stranger) {
    match stranger {
        Stranger::Admitted(contact) => {
            let incoming = Incoming {
                expires: Instant::now() + endpoint.config.connect_timeout,
                contact,
                socket: Arc::downgrade(&listener.socket),
                endpoint: Arc::downgrade(endpoint),
            };
            if endpoint.accepts_no_more() || (endpoint.is_full() && !endpoint.is_closed()) {
                incoming.refuse();
            } else if endpoint.is_closed() {
                incoming.ignore();
            } else {
                endpoint.incoming.push(incoming);
                if endpoint.accepts_no_more() {
                    // Since the look above: nobody takes it any more.
                    endpoint.incoming.refuse_all();
                }
            }
        }
        Stranger::Challenged {
            source,
            destination,
            datagrams,
        } => {
            for datagram in datagrams {
                send_once(&*listener.socket, &datagram, destination, source);
            }
        }
    }
}

/// Sends a datagram if the socket takes it at once, and drops it otherwise.
fn send_once(socket: &dyn DatagramSocket, contents: &[u8], from: SocketAddr, to: SocketAddr) {
    let transmit = Transmit {
        destination: to,
        source: from.ip(),
        contents,
        segment_size: None,
        ecn: Ecn::NotEct,
    };
    if let Err(error) = socket.try_send(&transmit) {
        tracing::trace!(target: "anabranch::endpoint", %to, %error, "answer not sent");
    }
}

/// A first contact: a peer that wants to connect. Only its place in the queue has been allocated.
///
/// It counts against [`EndpointConfig::max_handshakes`](super::EndpointConfig::max_handshakes)
/// until it is established, refused or dropped: decide soon. While it waits for
/// [`Endpoint::accept`](super::Endpoint::accept) it expires after
/// [`EndpointConfig::connect_timeout`](super::EndpointConfig::connect_timeout).
///
/// # Drop
/// The same as [`Incoming::ignore`].
pub struct Incoming {
    contact: Box<FirstContact>,
    expires: Instant,
    /// Weak: an `Incoming` that the application keeps must not hold the port of a closed endpoint.
    socket: Weak<dyn DatagramSocket>,
    /// Weak: the endpoint owns the queue of these.
    endpoint: Weak<Inner>,
}

impl Incoming {
    /// The source address of the peer. It may be forged: it is not validated yet.
    pub fn remote_address(&self) -> SocketAddr {
        self.contact.source
    }

    /// The address of this machine at which the peer has arrived.
    pub fn local_address(&self) -> SocketAddr {
        self.contact.destination
    }

    /// The version of webrtc-direct that the peer uses.
    pub fn version(&self) -> Version {
        self.contact.credentials.version
    }

    /// Drops the first contact without an answer; the same as dropping this. The next check of the
    /// peer, which follows soon, is a new first contact.
    pub fn ignore(self) {}

    /// Refuses the peer and drops the first contact. Nothing is retransmitted: if the answer is
    /// lost, the next check of the peer is a new first contact.
    ///
    /// The answer is an error response to the peer's STUN check, with the code 403 (Forbidden). A
    /// dial of this crate then fails at once, with [`ConnectError::Refused`]; libwebrtc, and so
    /// Chromium, discards the candidate pair, and its ICE fails once it has no other; str0m ignores
    /// the answer and continues until its timeout, as after [`Incoming::ignore`].
    pub fn refuse(self) {
        let contact = &self.contact;
        let answer = refusal(contact.request, &contact.credentials.local_pwd);
        if let Some(socket) = self.socket.upgrade() {
            send_once(&*socket, &answer, contact.destination, contact.source);
        }
    }

    /// Runs the handshake: DTLS, the first data channel, and Noise unless the endpoint has
    /// [`Security::CertificateHash`](super::Security::CertificateHash).
    ///
    /// # Errors
    /// [`ConnectError::TimedOut`] if the handshake takes longer than
    /// [`EndpointConfig::connect_timeout`](super::EndpointConfig::connect_timeout);
    /// [`ConnectError::TooManyConnections`] beyond
    /// [`EndpointConfig::max_connections`](super::EndpointConfig::max_connections).
    ///
    /// # Cancel safety
    /// Dropping the future aborts the handshake.
    pub fn accept(self) -> Accepting {
        // Boxed: the task that accepts often serves the connection, and would keep the room of the
        // handshake as long.
        Accepting(Box::pin(self.establish()))
    }

    async fn establish(self) -> Result<Connection, ConnectError> {
        let Self {
            contact,
            socket,
            endpoint,
            ..
        } = self;
        let endpoint = endpoint.upgrade().ok_or(ConnectError::EndpointClosed)?;
        let socket = socket.upgrade().ok_or(ConnectError::EndpointClosed)?;
        let registration = endpoint.register()?;
        let FirstContact {
            credentials,
            source,
            destination,
            slot,
            route,
            ..
        } = *contact;
        let config = &endpoint.config;
        let late_channel_zero = credentials.are_of_libp2p_webrtc();
        let engine = config.make_engine(EnginePeers {
            role: Role::Server,
            certificate: (&endpoint.certificate).into(),
            local: destination,
            remote: source,
            local_credentials: (credentials.local_ufrag, credentials.local_pwd),
            remote_credentials: (credentials.remote_ufrag, credentials.remote_pwd),
        })?;
        let carrier = WebRtcCarrier::new(
            engine,
            socket,
            Source::Inbox(route),
            destination,
            config.carrier_limits(),
        );
        let expectations = Expectations {
            role: Role::Server,
            certhashes: &[],
            own_fingerprint: endpoint.certificate.fingerprint(),
            identity: endpoint.noise_identity(),
            peer_id: None,
            takes_labels: endpoint.connection_config.takes_labels(),
            late_channel_zero,
        };
        let established = endpoint
            .establish(registration, carrier, expectations, source)
            .await;
        drop(slot);
        established
    }
}

impl IntoFuture for Incoming {
    type Output = Result<Connection, ConnectError>;
    type IntoFuture = Accepting;

    /// [`Incoming::accept`].
    fn into_future(self) -> Accepting {
        self.accept()
    }
}

/// The handshake with a peer that wants to connect; see [`Incoming::accept`]. It begins when it is
/// polled.
///
/// # Drop
/// Aborts the handshake.
#[must_use = "futures do nothing unless polled"]
pub struct Accepting(BoxFuture<'static, Result<Connection, ConnectError>>);

impl Future for Accepting {
    type Output = Result<Connection, ConnectError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for Accepting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accepting").finish_non_exhaustive()
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("remote_address", &self.remote_address())
            .field("version", &self.version())
            .finish_non_exhaustive()
    }
}
