//! The builder of [`Endpoint`].

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicU64};
use std::sync::{Arc, Mutex};

use tokio::net::ToSocketAddrs;
use tokio::sync::Notify;

use super::config::EndpointConfig;
use super::error::BindError;
use super::incoming::IncomingQueue;
use super::inner::{ConnectionConfigs, Inner, Stage};
use super::ports::{Ports, Purpose};
#[cfg(feature = "websocket")]
use super::websockets::WebSocketSettings;
use super::{Endpoint, Handle, Security};
use crate::certificate::Certificate;
use crate::connection::{Config, ConfigError};
use crate::identity::Identity;
use crate::udp::admission::{Admission, Limits};
use crate::udp::{Sockets, SystemSockets};

/// Builds an [`Endpoint`].
///
/// The defaults are a new identity, the certificate derived from it, and the default
/// configurations.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct EndpointBuilder {
    identity: Option<Identity>,
    certificate: Option<Certificate>,
    config: Config,
    endpoint_config: EndpointConfig,
    security: Security,
    /// `None`: the sockets of the operating system.
    sockets: Option<Arc<dyn Sockets>>,
    #[cfg(feature = "websocket")]
    websocket: WebSocketSettings,
}

impl EndpointBuilder {
    /// The identity that peers know this endpoint by. Default: a new one.
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identity = Some(identity);
        self
    }

    /// The DTLS certificate, whose hash is part of the addresses. Default: derived from the
    /// identity, so that addresses change only with the identity.
    pub fn certificate(mut self, certificate: Certificate) -> Self {
        self.certificate = Some(certificate);
        self
    }

    /// Adds a protocol for which peers may open substreams. Of several that both sides support the
    /// opener chooses.
    pub fn protocol(mut self, protocol: impl Into<String>) -> Self {
        self.config.protocols.push(protocol.into());
        self
    }

    /// Configures every connection. Protocols that were added before are kept.
    pub fn config(mut self, mut config: Config) -> Self {
        let mut protocols = std::mem::take(&mut self.config.protocols);
        protocols.append(&mut config.protocols);
        self.config = Config {
            protocols,
            ..config
        };
        self
    }

    /// Configures the endpoint itself.
    pub fn endpoint_config(mut self, config: EndpointConfig) -> Self {
        self.endpoint_config = config;
        self
    }

    /// How peers authenticate. Default: [`Security::Noise`].
    pub fn security(mut self, security: Security) -> Self {
        self.security = security;
        self
    }

    /// Limits of WebSockets, in both directions.
    /// [`EndpointConfig::connect_timeout`] replaces the handshake timeout in them.
    #[cfg(feature = "websocket")]
    pub fn websocket(mut self, limits: crate::websocket::WebSocketConfig) -> Self {
        self.websocket.limits = limits;
        self
    }

    /// Which TLS certificates [`Endpoint::connect_any`] accepts from `wss` addresses.
    #[cfg(feature = "websocket")]
    pub fn tls_trust(mut self, trust: crate::websocket::TlsTrust) -> Self {
        self.websocket.trust = trust;
        self
    }

    /// The certificate for listeners at `wss` addresses that require one of their clients
    /// ([`TlsIdentity::with_client_trust`](crate::websocket::TlsIdentity::with_client_trust)).
    /// Default: none.
    #[cfg(feature = "websocket")]
    pub fn client_certificate(mut self, certificate: crate::websocket::TlsIdentity) -> Self {
        self.websocket.certificate = Some(certificate);
        self
    }

    /// The channel binding of Noise over `wss` addresses of [`Endpoint::connect_any`]. Default:
    /// none. Both sides have to agree on it.
    #[cfg(feature = "websocket")]
    pub fn websocket_binding(mut self, binding: crate::websocket::ChannelBinding) -> Self {
        self.websocket.binding = binding;
        self
    }

    /// Whether [`Endpoint::connect_any`] dials `ws` addresses. Default: no.
    ///
    /// Noise authenticates the peer there too, but everybody on the path can read and change what
    /// is carried after it, and an attacker who blocks UDP can force the fallback.
    #[cfg(feature = "websocket")]
    pub fn plaintext_websockets(mut self, allowed: bool) -> Self {
        self.websocket.allows_plaintext = allowed;
        self
    }

    /// Where sockets come from, for listening and for dialling. Default: the operating system. The
    /// simulator of `anabranch-testkit` supplies others, and so can a program that sets options of
    /// its sockets ([`from_std`](crate::udp::from_std)).
    pub fn sockets(mut self, sockets: impl Sockets + 'static) -> Self {
        self.sockets = Some(Arc::new(sockets));
        self
    }

    /// Listens on every address that `addresses` resolves to, for example `"0.0.0.0:4001"` or
    /// `"[::]:0"`. A wildcard stands for every address of the machine in its family: for IPv4 and
    /// IPv6 give both. Port 0 selects a free port.
    ///
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`BindError::Config`] if a setting is out of range, [`BindError::Resolve`] if the name has
    /// no address, and [`BindError::Socket`], which names the address that failed.
    ///
    /// # Cancel safety
    /// No socket is bound if the future is dropped.
    pub async fn bind(self, addresses: impl ToSocketAddrs) -> Result<Endpoint, BindError> {
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host(addresses)
            .await
            .map_err(|error| BindError::Resolve(error.into()))?
            .collect();
        if addresses.is_empty() {
            let nothing = std::io::Error::other("the name has no address");
            return Err(BindError::Resolve(nothing.into()));
        }
        self.bind_now(&addresses)
    }

    /// Creates an endpoint that only dials, until it listens ([`Endpoint::listen`]).
    ///
    /// # Errors
    /// [`ConfigError`] if a setting is out of range.
    pub fn dial_only(self) -> Result<Endpoint, ConfigError> {
        let inner = self.build()?;
        Ok(Endpoint {
            handle: Arc::new(Handle { inner }),
        })
    }

    /// [`EndpointBuilder::bind`] for addresses without names, which need no waiting. Without any it
    /// is [`EndpointBuilder::dial_only`].
    ///
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`BindError::Config`] and [`BindError::Socket`], as for [`EndpointBuilder::bind`].
    pub fn bind_now(self, addresses: &[SocketAddr]) -> Result<Endpoint, BindError> {
        let inner = self.build()?;
        // All of them first: when one fails, no task holds the others.
        let mut bound = Vec::new();
        for &address in addresses {
            bound.push((address, inner.bind(address)?));
        }
        for (address, sockets) in bound {
            inner.listen_on(address, sockets, Purpose::Listen)?;
        }
        Ok(Endpoint {
            handle: Arc::new(Handle { inner }),
        })
    }

    /// The state of the endpoint, without a listener.
    fn build(self) -> Result<Arc<Inner>, ConfigError> {
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
        let factory = self
            .sockets
            .unwrap_or_else(|| Arc::new(SystemSockets::new()));
        Ok(Arc::new(Inner {
            identity,
            certificate,
            security: self.security,
            connection_configs: ConnectionConfigs::new(self.config),
            admission,
            incoming: IncomingQueue::default(),
            config: self.endpoint_config,
            ports: Ports::default(),
            sockets: factory,
            #[cfg(feature = "websocket")]
            websocket: self.websocket,
            stage: AtomicU8::new(Stage::Open as u8),
            connections: Mutex::new(HashMap::new()),
            next_connection: AtomicU64::new(0),
            connection_ended: Notify::new(),
            close_begun: Notify::new(),
        }))
    }
}
