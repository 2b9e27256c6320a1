//! Settings of the transport.

use std::sync::Arc;

use anabranch::udp::Sockets;
use anabranch::{EndpointConfig, FinAckPolicy, Identity, Negotiation, WebRtcDirectVersion};
use libp2p_identity::Keypair;

/// Settings of a [`Transport`](crate::Transport).
#[derive(Debug, Clone)]
pub struct Config {
    pub(crate) identity: Identity,
    pub(crate) version: WebRtcDirectVersion,
    pub(crate) connection: anabranch::Config,
    pub(crate) endpoint: EndpointConfig,
    sockets: Option<Arc<dyn Sockets>>,
}

/// The settings can not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The key can not be an identity: it is neither an Ed25519 key, nor an RSA key with the
    /// feature `rsa` of anabranch.
    #[error("the key can not be an identity: {0}")]
    Identity(#[source] anabranch::identity::IdentityError),
    /// The private key can not be taken out of the keypair.
    #[error("the private key can not be encoded: {0}")]
    Key(#[source] libp2p_identity::DecodingError),
}

impl Config {
    /// The defaults, for the node with this key.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn new(keypair: &Keypair) -> Result<Self, ConfigError> {
        let key = keypair.to_protobuf_encoding().map_err(ConfigError::Key)?;
        let identity = Identity::from_protobuf(&key).map_err(ConfigError::Identity)?;
        Ok(Self {
            identity,
            version: WebRtcDirectVersion::V1,
            connection: anabranch::Config::default(),
            endpoint: EndpointConfig::default(),
            sockets: None,
        })
    }

    /// The version of webrtc-direct to dial with. Listeners take both. Default: version 1, which
    /// every deployed listener takes.
    #[must_use]
    pub fn with_version(mut self, version: WebRtcDirectVersion) -> Self {
        self.version = version;
        self
    }

    /// Limits and timeouts of connections. The swarm negotiates protocols, and libp2p-webrtc reads
    /// no FIN_ACK before the answer that it waits for, and sends none: so
    /// [`negotiation`](anabranch::Config::negotiation), [`fin_ack`](anabranch::Config::fin_ack) and
    /// [`expect_fin_ack`](anabranch::Config::expect_fin_ack) are set to [`Negotiation::None`],
    /// [`FinAckPolicy::AfterOwnFin`] and `false`, whatever is given here.
    #[must_use]
    pub fn with_connection_config(mut self, config: anabranch::Config) -> Self {
        self.connection = config;
        self
    }

    /// Limits and timeouts of sockets and handshakes.
    #[must_use]
    pub fn with_endpoint_config(mut self, config: EndpointConfig) -> Self {
        self.endpoint = config;
        self
    }

    /// Where sockets come from, for listening and for dialling: for options of one's own, and for
    /// the simulated network of `anabranch-testkit`. Interfaces are those of the system anyway.
    /// Default: the operating system.
    #[must_use]
    pub fn with_sockets(mut self, sockets: impl Sockets + 'static) -> Self {
        self.sockets = Some(Arc::new(sockets));
        self
    }

    pub(crate) fn builder(&self) -> anabranch::EndpointBuilder {
        let mut connection = self.connection.clone();
        connection.negotiation = Negotiation::None;
        connection.fin_ack = FinAckPolicy::AfterOwnFin;
        connection.expect_fin_ack = false;
        connection.protocols = Vec::new();
        let builder = anabranch::Endpoint::builder()
            .identity(self.identity.clone())
            .config(connection)
            .endpoint_config(self.endpoint.clone());
        match &self.sockets {
            Some(sockets) => builder.sockets(Arc::clone(sockets)),
            None => builder,
        }
    }
}
