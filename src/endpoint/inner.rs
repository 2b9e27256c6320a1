//! The state that the handles of an endpoint and the tasks of its connections share.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use anabranch_rtc::Role;
use futures_util::future::{Either, select};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::handshake::{Expectations, HandshakeProgress, establish};
use super::incoming::IncomingQueue;
use super::ports::{Ports, UdpPort};
#[cfg(feature = "websocket")]
use super::websockets::WebSocketSettings;
use super::{ConnectError, EndpointConfig, Security};
use crate::address::{Address, PeerAddress};
use crate::certificate::Certificate;
use crate::connection::{self, Config, Connection, ConnectionShared, Findings, Negotiation};
use crate::events::{Attempt, ConnectionInfo, Initiator};
use crate::identity::Identity;
use crate::noise::Peer;
use crate::udp::Sockets;
use crate::udp::admission::Admission;
use crate::webrtc::WebRtcCarrier;

/// The configuration of connections with each [`Negotiation`], of which the application may choose
/// another for a dial or a peer. Made when it is first chosen, and shared by all connections.
#[derive(Debug)]
pub(super) struct ConnectionConfigs {
    default: Arc<Config>,
    others: [OnceLock<Arc<Config>>; 3],
}

impl ConnectionConfigs {
    pub(super) fn new(default: Config) -> Self {
        Self {
            default: Arc::new(default),
            others: Default::default(),
        }
    }

    /// The configuration with this negotiation; `None` for that of the endpoint.
    pub(super) fn of(&self, negotiation: Option<Negotiation>) -> &Arc<Config> {
        let Some(negotiation) = negotiation.filter(|chosen| *chosen != self.default.negotiation)
        else {
            return &self.default;
        };
        let [multistream, label, none] = &self.others;
        let other = match negotiation {
            Negotiation::MultistreamSelect => multistream,
            Negotiation::ChannelLabel => label,
            Negotiation::None => none,
        };
        other.get_or_init(|| {
            Arc::new(Config {
                negotiation,
                ..(*self.default).clone()
            })
        })
    }
}

/// What holds for one attempt to connect, and for its connection.
pub(super) struct Settings<'a> {
    pub(super) connection_config: &'a Arc<Config>,
    pub(super) remote: SocketAddr,
    /// Of the handshake.
    pub(super) limit: Duration,
}

/// How far the end of an endpoint has come; it only rises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Stage {
    Open,
    /// No more peers are accepted.
    Stopped,
    /// Connections are drained, also those that are established from now on.
    Draining,
    Closed,
}

/// The state that the handles of an endpoint and the tasks of its connections share.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(super) identity: Identity,
    pub(super) certificate: Certificate,
    pub(super) security: Security,
    pub(super) connection_configs: ConnectionConfigs,
    pub(super) config: EndpointConfig,
    pub(super) ports: Ports,
    pub(super) sockets: Arc<dyn Sockets>,
    #[cfg(feature = "websocket")]
    pub(super) websocket: WebSocketSettings,
    pub(super) admission: Arc<Admission>,
    pub(super) incoming: IncomingQueue,
    /// A [`Stage`].
    pub(super) stage: AtomicU8,
    /// Every connection and, as `None`, every attempt; for [`Endpoint::close`].
    pub(super) connections: Mutex<HashMap<u64, Option<Weak<ConnectionShared>>>>,
    pub(super) next_connection: AtomicU64,
    pub(super) connection_ended: Notify,
    pub(super) close_begun: Notify,
}

impl Inner {
    pub(super) fn connections(
        &self,
    ) -> MutexGuard<'_, HashMap<u64, Option<Weak<ConnectionShared>>>> {
        // Valid after a panic: no entry is half written.
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this stage is reached.
    pub(super) fn has_reached(&self, stage: Stage) -> bool {
        self.stage.load(Ordering::Acquire) >= stage as u8
    }

    pub(super) fn reach(&self, stage: Stage) {
        self.stage.fetch_max(stage as u8, Ordering::AcqRel);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.has_reached(Stage::Closed)
    }

    /// The addresses at which peers can dial a UDP port.
    pub(super) fn addresses_of(&self, port: &UdpPort) -> impl Iterator<Item = Address> + use<'_> {
        let sockets = match port.supplied_address() {
            Some(supplied) => vec![supplied],
            None => self.sockets.concrete(port.local),
        };
        sockets.into_iter().map(|socket| {
            let address = Address::new(socket).with_certhash(self.certificate.fingerprint());
            match self.security {
                Security::Noise => address.with_peer_id(self.identity.peer_id()),
                Security::CertificateHash => address,
            }
        })
    }

    /// The webrtc-direct addresses that peers can dial.
    pub(super) fn addresses(&self) -> impl Iterator<Item = Address> + use<'_> {
        let ports = self.ports.listening();
        ports.flat_map(|port| self.addresses_of(&port))
    }

    /// The addresses that peers can dial on all carriers.
    pub(super) fn peer_addresses(&self) -> Vec<PeerAddress> {
        let webrtc = self.addresses().map(PeerAddress::from);
        #[cfg(feature = "websocket")]
        let websockets = self.ports.websockets();
        #[cfg(feature = "websocket")]
        let webrtc = webrtc.chain(websockets.iter().flat_map(|port| port.addresses()));
        webrtc.collect()
    }

    /// The identity for Noise; `None` with [`Security::CertificateHash`].
    pub(super) fn noise_identity(&self) -> Option<&Identity> {
        match self.security {
            Security::Noise => Some(&self.identity),
            Security::CertificateHash => None,
        }
    }

    /// Whether the maximum of connections, attempts included, is reached.
    pub(super) fn is_full(&self) -> bool {
        self.connections().len() >= self.config.max_connections
    }

    /// Registers an attempt to dial.
    pub(super) fn register_dial(self: &Arc<Self>) -> Result<Registration, ConnectError> {
        let registration = self.register()?;
        // After the entry: a drain that misses this attempt is seen here.
        if self.has_reached(Stage::Draining) {
            return Err(ConnectError::EndpointClosed);
        }
        Ok(registration)
    }

    /// Registers an attempt to connect.
    pub(super) fn register(self: &Arc<Self>) -> Result<Registration, ConnectError> {
        let number = self.next_connection.fetch_add(1, Ordering::Relaxed);
        let mut connections = self.connections();
        // Under the lock that `close` takes after it has set the flag: it sees this attempt, or
        // this sees the flag.
        if self.is_closed() {
            return Err(ConnectError::EndpointClosed);
        }
        let max = self.config.max_connections;
        if connections.len() >= max {
            return Err(ConnectError::TooManyConnections { max });
        }
        connections.insert(number, None);
        Ok(Registration {
            inner: Arc::clone(self),
            number,
        })
    }

    /// Runs the handshake on `carrier` and spawns the driver of the connection.
    pub(super) async fn establish(
        self: &Arc<Self>,
        registration: Registration,
        mut carrier: WebRtcCarrier,
        expectations: Expectations<'_>,
        settings: Settings<'_>,
        progress: &HandshakeProgress,
    ) -> Result<Connection, ConnectError> {
        let initiator = match expectations.role {
            Role::Client => Initiator::Local,
            Role::Server => Initiator::Remote,
        };
        let info = ConnectionInfo::new(initiator, Some(settings.remote));
        let config = Arc::clone(settings.connection_config);
        let attempt = Attempt::begin(config.events.as_ref(), info);
        let peer = match self
            .handshake(&mut carrier, expectations, settings.limit, progress)
            .await
        {
            Ok(peer) => peer,
            Err(error) => {
                attempt.failed(&error);
                return Err(error);
            }
        };
        let mut info = attempt.succeeded();
        info.peer = peer.map(|peer| peer.id);
        let findings = Findings::of_labels(peer.is_some_and(|peer| peer.takes_labels));
        let (connection, driver) = Connection::authenticated(carrier, config, info, findings);
        self.enter(registration.number, &connection);
        connection::spawn("anabranch connection", driver, registration);
        Ok(connection)
    }

    /// Replaces the entry of an attempt by its connection.
    pub(super) fn enter(&self, number: u64, connection: &Connection) {
        if let Some(entry) = self.connections().get_mut(&number) {
            *entry = Some(Arc::downgrade(connection.shared()));
        }
        if self.has_reached(Stage::Draining) {
            connection.shared().begin_drain();
        }
        if self.is_closed() {
            // `close` ran between the handshake and the entry, and has missed this connection.
            connection.shared().begin_close();
        }
    }

    /// Runs the handshake within `limit`. Returns the peer, if Noise was run.
    async fn handshake(
        &self,
        carrier: &mut WebRtcCarrier,
        expectations: Expectations<'_>,
        limit: Duration,
        progress: &HandshakeProgress,
    ) -> Result<Option<Peer>, ConnectError> {
        let handshake = pin!(timeout(limit, establish(carrier, expectations, progress)));
        let closing = pin!(self.closing());
        match select(handshake, closing).await {
            Either::Left((Ok(result), _)) => Ok(result?),
            Either::Left((Err(_), _)) => Err(ConnectError::TimedOut {
                phase: progress.phase(),
                after: limit,
            }),
            Either::Right(_) => Err(ConnectError::EndpointClosed),
        }
    }

    /// Completes when the endpoint is closed.
    pub(super) async fn closing(&self) {
        loop {
            let closing = self.close_begun.notified();
            tokio::pin!(closing);
            closing.as_mut().enable();
            if self.is_closed() {
                return;
            }
            closing.await;
        }
    }

    pub(super) fn close(&self) {
        self.reach(Stage::Closed);
        self.close_listeners();
        self.incoming.close();
        self.close_begun.notify_waiters();
    }

    /// Completes when `work` returns `true`, which is asked again after every end of a connection
    /// or attempt.
    pub(super) async fn until(&self, mut work: impl FnMut() -> bool) {
        loop {
            let ended = self.connection_ended.notified();
            tokio::pin!(ended);
            // Before the question: otherwise a wake-up in between could be missed.
            ended.as_mut().enable();
            if work() {
                return;
            }
            ended.await;
        }
    }

    /// Every connection that is established.
    pub(super) fn established(&self) -> Vec<Arc<ConnectionShared>> {
        let connections = self.connections();
        connections
            .values()
            .flatten()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// Whether no connection is established and nobody attempts to.
    pub(super) fn has_no_connections(&self) -> bool {
        self.connections().is_empty()
    }
}

/// The entry of a connection, or of an attempt, at its endpoint. Removed on drop.
#[derive(Debug)]
pub(super) struct Registration {
    inner: Arc<Inner>,
    pub(super) number: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.inner.connections().remove(&self.number);
        self.inner.connection_ended.notify_waiters();
    }
}
