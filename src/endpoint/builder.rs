//! How an endpoint is made.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock};

use tokio::net::ToSocketAddrs;
use tokio::sync::Notify;

use super::config::EndpointConfig;
use super::error::BindError;
use super::listener::{self, IncomingQueue, Listener};
use super::{Endpoint, Handle, Inner, Security, Tasks};
use crate::certificate::Certificate;
use crate::connection::Config;
use crate::identity::Identity;
use crate::udp::admission::{Admission, Limits};
use crate::udp::router::Router;
use crate::udp::{Sockets, SystemSockets};

/// Makes an [`Endpoint`].
///
/// Without settings it has a new identity, the certificate that belongs to it, and defaults.
#[derive(Debug, Default)]
#[must_use]
pub struct EndpointBuilder {
    identity: Option<Identity>,
    certificate: Option<Certificate>,
    config: Config,
    endpoint_config: EndpointConfig,
    security: Security,
    /// Those of the system, unless there are others.
    sockets: Option<Arc<dyn Sockets>>,
    #[cfg(feature = "websocket")]
    websocket: WebSocketDialling,
}

/// How [`Endpoint::connect_any`] dials WebSockets.
#[cfg(feature = "websocket")]
#[derive(Debug, Default)]
pub(super) struct WebSocketDialling {
    pub(super) limits: crate::websocket::WebSocketConfig,
    pub(super) trust: crate::websocket::TlsTrust,
    pub(super) binding: crate::websocket::ChannelBinding,
    pub(super) allows_plaintext: bool,
}

impl EndpointBuilder {
    /// The identity that peers know this endpoint by. Default: a new one.
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identity = Some(identity);
        self
    }

    /// The DTLS certificate, whose hash is in the addresses. Default: the one derived from the
    /// identity, so that addresses stay the same as long as the identity does.
    pub fn certificate(mut self, certificate: Certificate) -> Self {
        self.certificate = Some(certificate);
        self
    }

    /// Adds a protocol that peers may open substreams for. Of several that both sides speak the
    /// opener chooses.
    pub fn protocol(mut self, protocol: impl Into<String>) -> Self {
        self.config.protocols.push(protocol.into());
        self
    }

    /// Settings of every connection. Keeps protocols that were added before.
    pub fn config(mut self, mut config: Config) -> Self {
        let mut protocols = std::mem::take(&mut self.config.protocols);
        protocols.append(&mut config.protocols);
        self.config = Config {
            protocols,
            ..config
        };
        self
    }

    /// Settings of the endpoint itself.
    pub fn endpoint_config(mut self, config: EndpointConfig) -> Self {
        self.endpoint_config = config;
        self
    }

    /// How peers prove who they are. Default: Noise.
    pub fn security(mut self, security: Security) -> Self {
        self.security = security;
        self
    }

    /// Limits of the WebSockets that [`Endpoint::connect_any`] opens. Their handshake has
    /// [`EndpointConfig::connect_timeout`].
    #[cfg(feature = "websocket")]
    pub fn websocket(mut self, limits: crate::websocket::WebSocketConfig) -> Self {
        self.websocket.limits = limits;
        self
    }

    /// Which TLS certificates [`Endpoint::connect_any`] trusts, for `wss` addresses.
    #[cfg(feature = "websocket")]
    pub fn tls_trust(mut self, trust: crate::websocket::TlsTrust) -> Self {
        self.websocket.trust = trust;
        self
    }

    /// What Noise is bound to over the `wss` addresses of [`Endpoint::connect_any`]. Default: nothing. Has to be what
    /// the listeners have.
    #[cfg(feature = "websocket")]
    pub fn websocket_binding(mut self, binding: crate::websocket::ChannelBinding) -> Self {
        self.websocket.binding = binding;
        self
    }

    /// Whether [`Endpoint::connect_any`] dials `ws` addresses. Default: no. Noise proves the peer there, too, but what is
    /// carried after that can be read and changed by everybody on the path, and who blocks UDP
    /// would decide that it is used.
    #[cfg(feature = "websocket")]
    pub fn plaintext_websockets(mut self, allowed: bool) -> Self {
        self.websocket.allows_plaintext = allowed;
        self
    }

    /// Where sockets come from, for listening and for dialling. Default: the system. The simulator
    /// of `anabranch-testkit` gives others, and so can a program that has to mark or to route its
    /// sockets.
    pub fn sockets(mut self, sockets: impl Sockets + 'static) -> Self {
        self.sockets = Some(Arc::new(sockets));
        self
    }

    /// Listens on every address that `addresses` resolves to, for example `"0.0.0.0:4001"` or
    /// `"[::]:0"`. A wildcard stands for every address of the machine that is of its family: for IPv4 and IPv6 give
    /// both. Port 0 stands for a free one.
    ///
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`BindError::Config`] if the settings can not work, [`BindError::Resolve`], and
    /// [`BindError::Socket`], which names the address that failed.
    pub async fn bind(self, addresses: impl ToSocketAddrs) -> Result<Endpoint, BindError> {
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host(addresses)
            .await
            .map_err(BindError::Resolve)?
            .collect();
        if addresses.is_empty() {
            let nothing = std::io::Error::other("the name has no address");
            return Err(BindError::Resolve(nothing));
        }
        self.listen_on(&addresses)
    }

    /// An endpoint that only dials.
    ///
    /// # Errors
    /// [`BindError::Config`] if the settings can not work.
    pub fn dial_only(self) -> Result<Endpoint, BindError> {
        self.listen_on(&[])
    }

    fn listen_on(self, addresses: &[SocketAddr]) -> Result<Endpoint, BindError> {
        self.config.validate()?;
        self.endpoint_config.validate()?;
        #[cfg(feature = "websocket")]
        self.websocket.limits.validate()?;
        crate::certificate::warm_up();
        let identity = self.identity.unwrap_or_else(Identity::generate);
        let certificate = self
            .certificate
            .unwrap_or_else(|| Certificate::derive(&identity));
        let config = &self.endpoint_config;
        let admission = Arc::new(Admission::new(Limits {
            max_handshakes: config.max_handshakes,
            max_handshakes_per_prefix: config.max_handshakes_per_prefix,
            rate: config.first_contacts,
            site_rate: config.first_contacts_of_site,
            limit_loopback: config.limit_loopback,
        }));
        let factory = self.sockets.unwrap_or_else(|| Arc::new(SystemSockets));
        let mut listeners: Vec<Arc<Listener>> = Vec::new();
        for &address in addresses {
            let failed = |source| BindError::Socket { address, source };
            let sockets = factory.bind_many(address, config.sockets);
            // One router for all sockets of an address: the system may divide the senders anew, when
            // a peer comes from another address, and its connection is to be found all the same.
            let router = Arc::new(Router::new(Arc::clone(&admission), config.max_addresses));
            for socket in sockets.map_err(failed)? {
                let local = socket.local_addr().map_err(failed)?;
                listeners.push(Arc::new(Listener {
                    socket,
                    local,
                    router: Arc::clone(&router),
                }));
            }
        }
        let mut locals: Vec<_> = listeners.iter().map(|listener| listener.local).collect();
        locals.dedup();
        let inner = Arc::new(Inner {
            identity,
            certificate,
            security: self.security,
            connection_config: Arc::new(self.config),
            admission,
            incoming: IncomingQueue::default(),
            config: self.endpoint_config,
            locals,
            routers: listeners.iter().map(|l| Arc::clone(&l.router)).collect(),
            sockets: factory,
            #[cfg(feature = "websocket")]
            websocket: self.websocket,
            closed: AtomicBool::new(false),
            connections: Mutex::new(HashMap::new()),
            next_connection: AtomicU64::new(0),
            connection_ended: Notify::new(),
            close_begun: Notify::new(),
            tasks: OnceLock::new(),
        });
        let tasks = listeners
            .into_iter()
            .map(|listener| tokio::spawn(listener::receive(listener, Arc::downgrade(&inner))))
            .collect();
        let _ = inner.tasks.set(Tasks(tokio::sync::Mutex::new(tasks)));
        Ok(Endpoint {
            handle: Arc::new(Handle { inner }),
        })
    }
}
