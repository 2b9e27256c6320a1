//! Outbound connections.
//!
//! A dial has a socket of its own, or shares a port. On a shared port two connections to one
//! listener would have the same pair of addresses, so the second gets a socket of its own, and so
//! does a dial that yields to one of that listener ([`Dialling`]). A socket that only one task
//! reads needs no routing and no second copy of what arrives.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anabranch_rtc::Role;
use futures_util::future::{Either, select};
use tokio::time::{Instant, timeout};

use super::Inner;
use super::config::EnginePeers;
use super::error::ConnectError;
use super::handshake::{Expectations, HandshakeProgress, Phase};
use super::inner::{Registration, Settings};
use crate::address::Address;
use crate::connection::{Config, Connection, Negotiation};
use crate::udp::router::Dialling;
use crate::udp::{DatagramSocket, wildcard};
use crate::ufrag::{ClientCredentials, Version};
use crate::webrtc::{Source, WebRtcCarrier};

/// The local port of a dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum PortUse {
    /// A new socket, which the connection alone reads: the fastest, and each connection has buffers
    /// of its own in the system.
    #[default]
    New,
    /// The port of a listener, if the system would send from its address. The peer, and NATs on the
    /// way, then see the address at which this endpoint can be reached. Without such a listener one
    /// port for each family, which all these dials share. If another connection has the same pair
    /// of addresses, a new socket; also if the peer dials at the same time from the port that is
    /// dialled.
    Reuse,
}

/// How a connection is dialled: see [`Endpoint::connect_with`](super::Endpoint::connect_with).
///
/// ```
/// use anabranch::WebRtcDirectVersion;
/// use anabranch::endpoint::{DialOptions, PortUse};
///
/// let options = DialOptions::from(WebRtcDirectVersion::V2).with_port(PortUse::Reuse);
/// assert_eq!(options.timeout, None);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub struct DialOptions {
    /// The version of webrtc-direct. Default: v1, which all deployed listeners support.
    pub version: Version,
    /// The local port. Default: a new one.
    pub port: PortUse,
    /// Maximum duration of the dial, for each address. Default: `None`, which is
    /// [`EndpointConfig::connect_timeout`](super::EndpointConfig::connect_timeout).
    pub timeout: Option<Duration>,
    /// How protocols are negotiated on this connection. Default: `None`, which is
    /// [`Config::negotiation`](crate::Config::negotiation) of the endpoint.
    pub negotiation: Option<Negotiation>,
}

impl DialOptions {
    /// Sets the version of webrtc-direct.
    #[must_use]
    pub fn with_version(mut self, version: Version) -> Self {
        self.version = version;
        self
    }

    /// Sets the local port.
    #[must_use]
    pub fn with_port(mut self, port: PortUse) -> Self {
        self.port = port;
        self
    }

    /// Sets the maximum duration of the dial.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sets how protocols are negotiated on this connection.
    #[must_use]
    pub fn with_negotiation(mut self, negotiation: Negotiation) -> Self {
        self.negotiation = Some(negotiation);
        self
    }

    pub(super) fn limit(&self, endpoint: &Inner) -> Duration {
        self.timeout.unwrap_or(endpoint.config.connect_timeout)
    }
}

impl From<Version> for DialOptions {
    fn from(version: Version) -> Self {
        Self::default().with_version(version)
    }
}

/// How long a dial from a shared port waits for an answer before another one begins from a port of
/// its own beside it. The peer may still keep a connection with this pair of addresses that has
/// ended here without a word, and its listener leaves an address in use alone.
const PATIENCE: Duration = Duration::from_secs(2);

/// A dial with its time limit.
struct Dial<'a> {
    endpoint: &'a Arc<Inner>,
    address: &'a Address,
    version: Version,
    connection_config: &'a Arc<Config>,
    begun: Instant,
    limit: Duration,
}

/// Where a connection is dialled from.
struct Place {
    socket: Arc<dyn DatagramSocket>,
    source: Source,
    local: SocketAddr,
}

pub(super) async fn dial(
    endpoint: &Arc<Inner>,
    address: &Address,
    options: DialOptions,
) -> Result<Connection, ConnectError> {
    let registration = endpoint.register_dial()?;
    if address.certhashes().is_empty() {
        return Err(ConnectError::MissingCerthash);
    }
    let dial = Dial {
        endpoint,
        address,
        version: options.version,
        connection_config: endpoint.connection_configs.of(options.negotiation),
        begun: Instant::now(),
        limit: options.limit(endpoint),
    };
    if options.port == PortUse::Reuse {
        let credentials = ClientCredentials::generate(options.version);
        if let Some((place, dialling)) = dial.share_port(&credentials)? {
            let progress = HandshakeProgress::default();
            let first = dial.attempt(registration, credentials, place, &progress);
            return dial.go_on(first, dialling, &progress).await;
        }
    }
    dial.attempt_from_new_port(registration).await
}

impl Dial<'_> {
    fn no_socket(&self, source: io::Error) -> ConnectError {
        ConnectError::Socket {
            remote: self.address.socket_addr(),
            source: source.into(),
        }
    }

    fn share_port(
        &self,
        credentials: &ClientCredentials,
    ) -> Result<Option<(Place, Dialling)>, ConnectError> {
        let remote = self.address.socket_addr();
        let shared = self.endpoint.share_port(remote, credentials);
        let shared = shared.map_err(|source| self.no_socket(source))?;
        Ok(shared.map(|shared| {
            let source = Source::SharedPort {
                remote,
                route: shared.route,
                on_wildcard: shared.on_wildcard,
            };
            let place = Place {
                socket: shared.socket,
                source,
                local: shared.local,
            };
            (place, shared.dialling)
        }))
    }

    /// Runs an attempt from a shared port. In its place one from a new port, if it loses its pair
    /// of addresses, and beside it, if the peer does not answer it.
    async fn go_on(
        &self,
        first: impl Future<Output = Result<Connection, ConnectError>>,
        mut dialling: Dialling,
        progress: &HandshakeProgress,
    ) -> Result<Connection, ConnectError> {
        // Boxed, to be dropped early.
        let mut first = Box::pin(first);
        let is_displaced = {
            let another = pin!(async {
                let mut is_displaced = timeout(PATIENCE, dialling.displaced()).await.is_ok();
                if !is_displaced && progress.phase() > Phase::Ice {
                    dialling.displaced().await;
                    is_displaced = true;
                }
                is_displaced
            });
            match select(first.as_mut(), another).await {
                Either::Left((result, _)) => return result,
                Either::Right((is_displaced, _)) => is_displaced,
            }
        };
        let registration = self.endpoint.register_dial();
        if is_displaced {
            // What was sent from there can not be answered any more.
            drop(first);
            let registration = registration.or_else(|_| self.endpoint.register_dial());
            return self.attempt_from_new_port(registration?).await;
        }
        let Ok(registration) = registration else {
            return first.await;
        };
        let second = pin!(self.attempt_from_new_port(registration));
        match select(first, second).await {
            Either::Left((Err(_), second)) => second.await,
            Either::Right((Err(_), first)) => first.await,
            Either::Left((connection, _)) | Either::Right((connection, _)) => connection,
        }
    }

    async fn attempt_from_new_port(
        &self,
        registration: Registration,
    ) -> Result<Connection, ConnectError> {
        let remote = self.address.socket_addr();
        let bind = || {
            // On a wildcard the system selects another source address when the one in use
            // disappears or the route changes.
            let any = SocketAddr::new(wildcard(remote), 0);
            let socket = self.endpoint.sockets.bind(any)?;
            // ICE needs a candidate with a real address.
            let source = socket.source_towards(remote)?;
            let port = socket.local_addr()?.port();
            io::Result::Ok(Place {
                socket,
                source: Source::Socket { remote },
                local: SocketAddr::new(source, port),
            })
        };
        let place = bind().map_err(|source| self.no_socket(source))?;
        let credentials = ClientCredentials::generate(self.version);
        let progress = HandshakeProgress::default();
        self.attempt(registration, credentials, place, &progress)
            .await
    }

    async fn attempt(
        &self,
        registration: Registration,
        credentials: ClientCredentials,
        place: Place,
        progress: &HandshakeProgress,
    ) -> Result<Connection, ConnectError> {
        let endpoint = self.endpoint;
        let remote = self.address.socket_addr();
        let config = &endpoint.config;
        let refusal_password = credentials.remote_pwd.clone();
        let engine = config.make_engine(EnginePeers {
            role: Role::Client,
            certificate: (&endpoint.certificate).into(),
            local: place.local,
            remote,
            local_credentials: (credentials.local_ufrag, credentials.local_pwd),
            remote_credentials: (credentials.remote_ufrag, credentials.remote_pwd),
        })?;
        let mut carrier = WebRtcCarrier::new(
            engine,
            place.socket,
            place.source,
            place.local,
            config.carrier_limits(),
        );
        carrier.expect_refusal(refusal_password);
        carrier.watch_port(endpoint.sockets.watch_port(remote));
        let expectations = Expectations {
            role: Role::Client,
            certhashes: self.address.certhashes(),
            own_fingerprint: endpoint.certificate.fingerprint(),
            identity: endpoint.noise_identity(),
            peer_id: self.address.peer_id(),
            takes_labels: self.connection_config.takes_labels(),
            late_channel_zero: false,
        };
        let settings = Settings {
            connection_config: self.connection_config,
            remote,
            limit: self.limit.saturating_sub(self.begun.elapsed()),
        };
        let establishing =
            endpoint.establish(registration, carrier, expectations, settings, progress);
        Box::pin(establishing).await.map_err(|error| match error {
            // Another attempt may have taken a part of it.
            ConnectError::TimedOut { phase, .. } => ConnectError::TimedOut {
                phase,
                after: self.limit,
            },
            error => error,
        })
    }
}
