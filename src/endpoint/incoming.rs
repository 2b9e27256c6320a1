//! Peers that want to connect, and the queue in which they wait for the application.

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, IntoFuture};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};

use anabranch_rtc::Role;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::config::EnginePeers;
use super::error::ConnectError;
use super::handshake::{Expectations, HandshakeProgress};
use super::inner::{Inner, Settings, Stage};
use super::ports::ListenerId;
use super::receiving::send_once;
use crate::connection::{Connection, Negotiation};
use crate::udp::DatagramSocket;
use crate::udp::admission::challenge::{PeerCredentials, refusal};
use crate::udp::router::FirstContact;
use crate::ufrag::Version;
use crate::waiters::Waiters;
use crate::webrtc::{Source, WebRtcCarrier};

/// Peers that wait for the application, on all carriers. Each holds a slot of its listener's
/// admission, which bounds their number, and expires.
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

    /// Drops the peers that were not accepted in time: they have given up. Returns when the next
    /// one expires.
    pub(super) fn drop_expired(&self) -> Option<Instant> {
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

    /// The next peer; `None` once `is_closed` returns `true`. Cancel safe.
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

    /// Refuses those of one listener.
    pub(super) fn refuse_those_of(&self, listener: ListenerId) {
        let refused = {
            let mut waiting = self.lock();
            let (refused, kept) = std::mem::take(&mut *waiting)
                .into_iter()
                .partition(|incoming| incoming.listener == listener);
            *waiting = kept;
            let refused: VecDeque<Incoming> = refused;
            refused
        };
        // Outside of the lock, as above.
        refused.into_iter().for_each(Incoming::refuse);
    }

    pub(super) fn close(&self) {
        let waiting = std::mem::take(&mut *self.lock());
        drop(waiting);
        self.accept.wake_all();
    }
}

impl Inner {
    /// Offers a peer to the application, unless that takes no more, or its listener is closed.
    pub(super) fn offer(&self, incoming: Incoming, listens: impl Fn() -> bool) {
        let accepts_no_more = || self.has_reached(Stage::Stopped) || !listens();
        if self.is_closed() {
            incoming.ignore();
        } else if accepts_no_more() || self.is_full() {
            incoming.refuse();
        } else {
            let listener = incoming.listener;
            self.incoming.push(incoming);
            // Since the look above: nobody takes it any more.
            if self.is_closed() {
                self.incoming.close();
            } else if accepts_no_more() {
                self.incoming.refuse_those_of(listener);
            }
        }
    }
}

/// How a peer is accepted: see [`Incoming::accept_with`].
///
/// ```
/// use anabranch::endpoint::{AcceptOptions, ListenerId};
/// use anabranch::{ConnectError, Connection, Incoming, Negotiation};
///
/// /// libp2p peers dial one listener, and peers with this program another.
/// async fn accept(incoming: Incoming, own: ListenerId) -> Result<Connection, ConnectError> {
///     let options = match incoming.listener() == own {
///         true => AcceptOptions::from(Negotiation::ChannelLabel),
///         false => AcceptOptions::default(),
///     };
///     incoming.accept_with(options).await
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct AcceptOptions {
    /// How protocols are negotiated on this connection. Default: `None`, which is
    /// [`Config::negotiation`](crate::Config::negotiation) of the endpoint.
    pub negotiation: Option<Negotiation>,
}

impl AcceptOptions {
    /// Sets how protocols are negotiated on this connection.
    #[must_use]
    pub fn with_negotiation(mut self, negotiation: Negotiation) -> Self {
        self.negotiation = Some(negotiation);
        self
    }
}

impl From<Negotiation> for AcceptOptions {
    fn from(negotiation: Negotiation) -> Self {
        Self::default().with_negotiation(negotiation)
    }
}

/// A peer that wants to connect. On UDP only its place in the queue has been allocated; over a
/// WebSocket its TCP connection is accepted, and nothing read.
///
/// It counts against [`EndpointConfig::max_handshakes`](super::EndpointConfig::max_handshakes), or
/// against that of its WebSocket listener, until it is established, refused or dropped: decide
/// soon. While it waits for [`Endpoint::accept`](super::Endpoint::accept) it expires after
/// [`EndpointConfig::connect_timeout`](super::EndpointConfig::connect_timeout).
///
/// # Drop
/// The same as [`Incoming::ignore`].
pub struct Incoming {
    contact: Contact,
    listener: ListenerId,
    expires: Instant,
    /// Weak: the endpoint owns the queue of these.
    endpoint: Weak<Inner>,
}

enum Contact {
    Datagram {
        first: Box<FirstContact>,
        /// Weak: an [`Incoming`] that the application keeps must not hold the port of a closed
        /// endpoint.
        socket: Weak<dyn DatagramSocket>,
    },
    #[cfg(feature = "websocket")]
    WebSocket(Box<crate::websocket::WebSocketIncoming>),
}

impl Incoming {
    fn new(contact: Contact, listener: ListenerId, endpoint: &Arc<Inner>) -> Self {
        Self {
            contact,
            listener,
            expires: Instant::now() + endpoint.config.connect_timeout,
            endpoint: Arc::downgrade(endpoint),
        }
    }

    pub(super) fn by_datagram(
        first: Box<FirstContact>,
        listener: ListenerId,
        socket: &Arc<dyn DatagramSocket>,
        endpoint: &Arc<Inner>,
    ) -> Self {
        let socket = Arc::downgrade(socket);
        Self::new(Contact::Datagram { first, socket }, listener, endpoint)
    }

    #[cfg(feature = "websocket")]
    pub(super) fn by_websocket(
        accepted: crate::websocket::WebSocketIncoming,
        listener: ListenerId,
        endpoint: &Arc<Inner>,
    ) -> Self {
        Self::new(Contact::WebSocket(Box::new(accepted)), listener, endpoint)
    }

    /// The listener at which the peer has arrived.
    pub fn listener(&self) -> ListenerId {
        self.listener
    }

    /// The source address of the peer. On UDP it may be forged: it is not validated yet. Over a
    /// WebSocket it is that of the proxy, if there is one.
    pub fn remote_address(&self) -> SocketAddr {
        match &self.contact {
            Contact::Datagram { first, .. } => first.source,
            #[cfg(feature = "websocket")]
            Contact::WebSocket(accepted) => accepted.remote_address(),
        }
    }

    /// The address of this machine at which the peer has arrived.
    pub fn local_address(&self) -> SocketAddr {
        match &self.contact {
            Contact::Datagram { first, .. } => first.destination,
            #[cfg(feature = "websocket")]
            Contact::WebSocket(accepted) => accepted.local_address(),
        }
    }

    /// The version of webrtc-direct that the peer uses; `None` over a WebSocket.
    pub fn version(&self) -> Option<Version> {
        match &self.contact {
            Contact::Datagram { first, .. } => Some(first.credentials.version),
            #[cfg(feature = "websocket")]
            Contact::WebSocket(_) => None,
        }
    }

    /// Drops the peer without an answer; the same as dropping this. On UDP its next check, which
    /// follows soon, is a new first contact. A TCP connection is closed.
    pub fn ignore(self) {}

    /// Refuses the peer. On UDP nothing is retransmitted: if the answer is lost, the next check of
    /// the peer is a new first contact.
    ///
    /// The answer on UDP is an error response to the peer's STUN check, with the code 403
    /// (Forbidden). A dial of this crate then fails at once, with [`ConnectError::Refused`];
    /// libwebrtc, and so Chromium, discards the candidate pair, and its ICE fails once it has no
    /// other; str0m ignores the answer and continues until its timeout, as after
    /// [`Incoming::ignore`]. Over a WebSocket without TLS it is the HTTP status 503; with TLS the
    /// connection is closed.
    pub fn refuse(self) {
        match self.contact {
            Contact::Datagram { first, socket } => {
                let answer = refusal(first.request, &first.credentials.local_pwd);
                if let Some(socket) = socket.upgrade() {
                    send_once(&*socket, &answer, first.destination, first.source);
                }
            }
            #[cfg(feature = "websocket")]
            Contact::WebSocket(accepted) => accepted.refuse(),
        }
    }

    /// Runs the handshake: DTLS and the first data channel, or TLS, if there is any, and the HTTP
    /// upgrade; then Noise, unless the endpoint has
    /// [`Security::CertificateHash`](super::Security::CertificateHash).
    ///
    /// # Errors
    /// [`ConnectError::WebSocket`] has the errors over a WebSocket. On UDP
    /// [`ConnectError::TimedOut`] if the handshake takes longer than
    /// [`EndpointConfig::connect_timeout`](super::EndpointConfig::connect_timeout);
    /// [`ConnectError::TooManyConnections`] beyond
    /// [`EndpointConfig::max_connections`](super::EndpointConfig::max_connections).
    ///
    /// # Cancel safety
    /// Dropping the future aborts the handshake.
    pub fn accept(self) -> Accepting {
        self.accept_with(AcceptOptions::default())
    }

    /// Accepts the peer as [`Incoming::accept`] does, with other options, for example those of the
    /// [listener](Incoming::listener) at which it has arrived. Errors and cancel safety are the
    /// same.
    pub fn accept_with(self, options: impl Into<AcceptOptions>) -> Accepting {
        // Boxed: the task that accepts often serves the connection, and would keep the room of the
        // handshake as long.
        Accepting(Box::pin(self.establish(options.into())))
    }

    async fn establish(self, options: AcceptOptions) -> Result<Connection, ConnectError> {
        let endpoint = self.endpoint.upgrade();
        let endpoint = endpoint.ok_or(ConnectError::EndpointClosed)?;
        match self.contact {
            Contact::Datagram { first, socket } => {
                let socket = socket.upgrade().ok_or(ConnectError::EndpointClosed)?;
                establish_on(&endpoint, *first, socket, options).await
            }
            #[cfg(feature = "websocket")]
            Contact::WebSocket(accepted) => endpoint.accept_websocket(*accepted, options).await,
        }
    }
}

async fn establish_on(
    endpoint: &Arc<Inner>,
    first: FirstContact,
    socket: Arc<dyn DatagramSocket>,
    options: AcceptOptions,
) -> Result<Connection, ConnectError> {
    let registration = endpoint.register()?;
    let FirstContact {
        credentials,
        source,
        destination,
        slot,
        route,
        ..
    } = first;
    let config = &endpoint.config;
    let late_channel_zero = credentials.are_of_libp2p_webrtc();
    let peer = PeerCredentials::from(&credentials);
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
        Source::Inbox { route, peer },
        destination,
        config.carrier_limits(),
    );
    let connection_config = endpoint.connection_configs.of(options.negotiation);
    let expectations = Expectations {
        role: Role::Server,
        certhashes: &[],
        own_fingerprint: endpoint.certificate.fingerprint(),
        identity: endpoint.noise_identity(),
        peer_id: None,
        takes_labels: connection_config.takes_labels(),
        late_channel_zero,
    };
    let settings = Settings {
        connection_config,
        remote: source,
        limit: config.connect_timeout,
    };
    let progress = HandshakeProgress::default();
    let established = endpoint
        .establish(registration, carrier, expectations, settings, &progress)
        .await;
    drop(slot);
    established
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
