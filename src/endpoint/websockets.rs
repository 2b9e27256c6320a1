//! WebSockets of an endpoint: its listeners, connections that an HTTP server hands over, and dials.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{sleep, sleep_until};

use super::any::AttemptError;
use super::dial::DialOptions;
use super::incoming::{AcceptOptions, Incoming};
use super::inner::{Inner, Stage};
use super::ports::{ListenerId, Listening, Port};
use super::{BindError, ConnectError};
use crate::address::{PeerAddress, WebSocketAddress};
use crate::connection::Connection;
use crate::waiters::Waiters;
use crate::websocket::{
    self, Authentication, ChannelBinding, ClientConfig, HandshakeError, ListenerConfig,
    RequestPolicy, ServerConfig, TlsIdentity, TlsTrust, WebSocketConfig, WebSocketIncoming,
    WebSocketListener,
};

/// Pause after an error of the system, for example that file descriptors are exhausted, so that
/// the task does not spin.
const PAUSE: Duration = Duration::from_millis(100);

/// What holds for all WebSockets of an endpoint, and how it dials them.
#[derive(Debug, Clone, Default)]
pub(super) struct WebSocketSettings {
    pub(super) limits: WebSocketConfig,
    pub(super) trust: TlsTrust,
    /// For servers that require one of their clients.
    pub(super) certificate: Option<TlsIdentity>,
    pub(super) binding: ChannelBinding,
    pub(super) allows_plaintext: bool,
}

/// How an endpoint listens for WebSockets: see
/// [`Endpoint::listen_websocket`](super::Endpoint::listen_websocket).
///
/// Identity, timeouts and limits of connections are those of the endpoint.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct WebSocketOptions {
    /// Certificate and key for TLS. Default: `None`, which is plain `ws`, for example behind a
    /// proxy that terminates TLS.
    pub tls: Option<TlsIdentity>,
    /// The channel binding of Noise. Default: none. Both sides have to agree on it.
    pub binding: ChannelBinding,
    /// Which requests are upgraded. Default: pages of foreign origins are refused without Noise.
    pub requests: RequestPolicy,
    /// Limits of this listener. Those of the endpoint hold too.
    pub limits: ListenerConfig,
}

impl WebSocketOptions {
    /// Sets certificate and key for TLS.
    #[must_use]
    pub fn with_tls(mut self, tls: TlsIdentity) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Sets the channel binding of Noise.
    #[must_use]
    pub fn with_binding(mut self, binding: ChannelBinding) -> Self {
        self.binding = binding;
        self
    }

    /// Sets which requests are upgraded.
    #[must_use]
    pub fn with_requests(mut self, requests: RequestPolicy) -> Self {
        self.requests = requests;
        self
    }

    /// Sets the limits of this listener.
    #[must_use]
    pub fn with_limits(mut self, limits: ListenerConfig) -> Self {
        self.limits = limits;
        self
    }
}

/// A TCP socket on which an endpoint listens for WebSockets.
#[derive(Debug)]
pub(super) struct WebSocketPort {
    id: ListenerId,
    listener: WebSocketListener,
    closed: AtomicBool,
    close_begun: Waiters,
}

impl WebSocketPort {
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.close_begun.wake_all();
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Completes when the port is closed.
    async fn closing(&self) {
        self.close_begun.until(|| self.is_closed()).await;
    }

    pub(super) fn is_idle(&self) -> bool {
        self.listener.is_idle()
    }

    /// The addresses that peers can dial now.
    pub(super) fn addresses(&self) -> Vec<PeerAddress> {
        match self.is_closed() {
            true => Vec::new(),
            false => self
                .listener
                .addresses()
                .into_iter()
                .map(Into::into)
                .collect(),
        }
    }
}

/// Offers accepted TCP connections to the application until the port is closed.
async fn accept(port: Arc<WebSocketPort>, endpoint: Weak<Inner>) {
    let closing = pin!(port.closing());
    let accepting = pin!(accept_all(&port, endpoint));
    select(accepting, closing).await;
}

async fn accept_all(port: &Arc<WebSocketPort>, endpoint: Weak<Inner>) {
    loop {
        let Some(strong) = endpoint.upgrade() else {
            return;
        };
        let expires = strong.incoming.drop_expired();
        drop(strong);
        let expiring = pin!(async {
            match expires {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        });
        let accepted = match select(pin!(port.listener.accept()), expiring).await {
            Either::Left((accepted, _)) => accepted,
            Either::Right(_) => continue,
        };
        let Some(endpoint) = endpoint.upgrade() else {
            return;
        };
        match accepted {
            Ok(accepted) => {
                let incoming = Incoming::by_websocket(accepted, port.id, &endpoint);
                endpoint.offer(incoming, || !port.is_closed());
            }
            Err(error) => {
                tracing::warn!(target: "anabranch::endpoint", %error, "accept failed");
                drop(endpoint);
                sleep(PAUSE).await;
            }
        }
    }
}

impl Inner {
    fn authentication(&self, binding: ChannelBinding) -> Authentication {
        match self.noise_identity() {
            Some(identity) => Authentication::Noise {
                identity: identity.clone(),
                binding,
            },
            None => Authentication::Tls,
        }
    }

    fn websocket_config(&self) -> WebSocketConfig {
        let mut config = self.websocket.limits.clone();
        config.handshake_timeout = self.config.connect_timeout;
        config
    }

    pub(super) fn server_config(&self, binding: ChannelBinding) -> ServerConfig {
        let mut config = ServerConfig::new(self.authentication(binding));
        config.connection = Arc::clone(self.connection_configs.of(None));
        config.websocket = self.websocket_config();
        config
    }

    pub(super) fn listen_websocket(
        self: &Arc<Self>,
        address: SocketAddr,
        options: WebSocketOptions,
    ) -> Result<Listening, BindError> {
        let mut config = self.server_config(options.binding);
        config.tls = options.tls;
        config.requests = options.requests;
        let listener = WebSocketListener::bind_now(address, config, options.limits)?;
        let local = listener.local_addr();
        let port = Arc::new(WebSocketPort {
            id: self.ports.next_id(),
            listener,
            closed: AtomicBool::new(false),
            close_begun: Waiters::default(),
        });
        let of_port = Port::WebSocket(Arc::downgrade(&port));
        let id = port.id;
        let task = accept(port, Arc::downgrade(self));
        let added = self.add(id, local, of_port, vec![task]);
        added.ok_or(BindError::EndpointClosed)
    }

    pub(super) async fn accept_websocket(
        self: &Arc<Self>,
        accepted: WebSocketIncoming,
        options: AcceptOptions,
    ) -> Result<Connection, ConnectError> {
        let registration = match self.register() {
            Ok(registration) => registration,
            Err(error) => {
                accepted.refuse();
                return Err(error);
            }
        };
        let number = registration.number;
        let connection = Arc::clone(self.connection_configs.of(options.negotiation));
        let accepting = accepted.accept_guarded(connection, registration);
        self.run_websocket(number, accepting).await
    }

    pub(super) async fn accept_upgraded<S>(
        self: &Arc<Self>,
        stream: S,
        options: AcceptOptions,
    ) -> Result<Connection, ConnectError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        if self.has_reached(Stage::Stopped) {
            return Err(ConnectError::EndpointClosed);
        }
        let registration = self.register()?;
        let number = registration.number;
        let mut config = self.server_config(ChannelBinding::None);
        config.connection = Arc::clone(self.connection_configs.of(options.negotiation));
        let accepting = websocket::accept_upgraded_guarded(stream, &config, registration);
        self.run_websocket(number, accepting).await
    }

    /// Dials a WebSocket with the identity and the settings of this endpoint. The endpoint counts
    /// and closes the connection like its others.
    pub(super) async fn dial_websocket(
        self: &Arc<Self>,
        address: &WebSocketAddress,
        options: DialOptions,
    ) -> Result<Connection, AttemptError> {
        if !address.is_tls() && !self.websocket.allows_plaintext {
            return Err(AttemptError::Plaintext);
        }
        let registration = self.register_dial()?;
        let number = registration.number;
        // Without TLS there is no channel to bind to.
        let binding = match address.is_tls() {
            true => self.websocket.binding,
            false => ChannelBinding::None,
        };
        let mut config = ClientConfig::new(self.authentication(binding));
        config.connection = Arc::clone(self.connection_configs.of(options.negotiation));
        config.websocket = self.websocket_config();
        config.websocket.handshake_timeout = options.limit(self);
        config.trust = self.websocket.trust.clone();
        config.certificate = self.websocket.certificate.clone();
        let connecting = websocket::connect_guarded(address, &config, registration);
        match self.run_websocket(number, connecting).await {
            Ok(connection) => Ok(connection),
            Err(ConnectError::WebSocket(error)) => Err(AttemptError::WebSocket(*error)),
            Err(error) => Err(AttemptError::WebRtc(error)),
        }
    }

    /// Runs a handshake until the endpoint closes, and enters its connection.
    async fn run_websocket(
        &self,
        number: u64,
        handshake: impl Future<Output = Result<Connection, HandshakeError>>,
    ) -> Result<Connection, ConnectError> {
        let handshake = pin!(handshake);
        let closing = pin!(self.closing());
        let connection = match select(handshake, closing).await {
            Either::Left((result, _)) => result.map_err(Box::new)?,
            Either::Right(_) => return Err(ConnectError::EndpointClosed),
        };
        self.enter(number, &connection);
        Ok(connection)
    }
}
