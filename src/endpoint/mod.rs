//! Listening, dialling, and what all connections of a program share.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use futures_util::future::{Either, select};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::address::{Address, PeerAddress};
use crate::certificate::Certificate;
use crate::connection::{Config, Connection, ConnectionShared};
use crate::events::{Attempt, ConnectionInfo, Initiator};
use crate::identity::{Identity, PeerId, PublicKey};
use crate::ufrag::Version;
use crate::webrtc::WebRtcCarrier;
pub use anabranch_rtc::EngineFactory;
use anabranch_rtc::Role;
pub use handshake::Phase;
use handshake::{Expectations, Progress, establish};

mod any;
mod builder;
mod config;
mod dial;
mod error;
mod handshake;
mod listener;
#[cfg(any(test, feature = "testing"))]
mod loopback;

use crate::udp::admission::Admission;
pub use crate::udp::admission::RateLimit;
use crate::udp::router::Router;
use crate::udp::sockets::Sockets;
pub use any::{AttemptError, ConnectAnyError, Lost, LostReason, MAX_ADDRESSES, Reached};
pub use builder::EndpointBuilder;
#[cfg(feature = "websocket")]
use builder::WebSocketDialling;
pub use config::EndpointConfig;
pub use error::{BindError, ConnectError};
pub use listener::Incoming;
use listener::IncomingQueue;
#[cfg(any(test, feature = "testing"))]
pub use loopback::webrtc_pair;

/// How peers prove who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Security {
    /// Noise with libp2p identities, as every libp2p peer does.
    #[default]
    Noise,
    /// The dialler knows the listener by the certificate hash in its address; the dialler itself is
    /// anybody. For plain applications whose peers are ours. Both sides have to be set to it.
    CertificateHash,
}

/// The receiving tasks, which own the listening sockets. They end when nobody needs them: neither the
/// application nor a connection.
#[derive(Debug)]
struct Tasks(tokio::sync::Mutex<Vec<JoinHandle<()>>>);

impl Tasks {
    /// Ends the tasks and waits until they are gone. Cancel safe: another call goes on.
    async fn end(&self) {
        let mut tasks = self.0.lock().await;
        for task in tasks.iter() {
            task.abort();
        }
        while let Some(task) = tasks.last_mut() {
            // An error says that it was aborted.
            let _ = task.await;
            tasks.pop();
        }
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        for task in self.0.get_mut() {
            task.abort();
        }
    }
}

/// What an endpoint's handles and the tasks of its connections share.
#[derive(Debug)]
pub(crate) struct Inner {
    identity: Identity,
    certificate: Certificate,
    security: Security,
    connection_config: Arc<Config>,
    config: EndpointConfig,
    /// The addresses that are listened on.
    locals: Vec<SocketAddr>,
    routers: Vec<Arc<Router>>,
    sockets: Arc<dyn Sockets>,
    #[cfg(feature = "websocket")]
    websocket: WebSocketDialling,
    admission: Arc<Admission>,
    incoming: IncomingQueue,
    closed: AtomicBool,
    /// Every connection and, as `None`, every attempt at one; for [`Endpoint::close`].
    connections: Mutex<HashMap<u64, Option<Weak<ConnectionShared>>>>,
    next_connection: AtomicU64,
    connection_ended: Notify,
    close_begun: Notify,
    tasks: OnceLock<Tasks>,
}

impl Inner {
    fn connections(&self) -> MutexGuard<'_, HashMap<u64, Option<Weak<ConnectionShared>>>> {
        // Whole entries only.
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// The identity for Noise, if Noise is run.
    fn noise_identity(&self) -> Option<&Identity> {
        match self.security {
            Security::Noise => Some(&self.identity),
            Security::CertificateHash => None,
        }
    }

    /// Whether there may be no more connections, counting attempts.
    fn is_full(&self) -> bool {
        self.connections().len() >= self.config.max_connections
    }

    /// Enters an attempt to connect.
    fn register(self: &Arc<Self>) -> Result<Registration, ConnectError> {
        let number = self.next_connection.fetch_add(1, Ordering::Relaxed);
        let mut connections = self.connections();
        // Under the lock that `close` takes behind the flag: it sees this one, or we see the flag.
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
    async fn establish(
        self: &Arc<Self>,
        registration: Registration,
        mut carrier: WebRtcCarrier,
        expectations: Expectations<'_>,
        remote: SocketAddr,
    ) -> Result<Connection, ConnectError> {
        let initiator = match expectations.role {
            Role::Client => Initiator::Local,
            Role::Server => Initiator::Remote,
        };
        let info = ConnectionInfo::new(initiator, Some(remote));
        let attempt = Attempt::begin(self.connection_config.events.as_ref(), info);
        let peer = match self.shake_hands(&mut carrier, expectations).await {
            Ok(peer) => peer,
            Err(error) => {
                attempt.failed(&error);
                return Err(error);
            }
        };
        let config = Arc::clone(&self.connection_config);
        let mut info = attempt.succeeded();
        info.peer = peer;
        let (connection, driver) = Connection::authenticated(carrier, config, info);
        self.enter(registration.number, &connection);
        tokio::spawn(async move {
            driver.await;
            drop(registration);
        });
        Ok(connection)
    }

    /// Puts a connection in the place of the attempt that it was.
    fn enter(&self, number: u64, connection: &Connection) {
        if let Some(entry) = self.connections().get_mut(&number) {
            *entry = Some(Arc::downgrade(connection.shared()));
        }
        if self.is_closed() {
            // Closed between the handshake and the entry: nobody else will tell it.
            connection.shared().begin_close();
        }
    }

    /// Returns who the peer is, where there is Noise.
    async fn shake_hands(
        &self,
        carrier: &mut WebRtcCarrier,
        expectations: Expectations<'_>,
    ) -> Result<Option<PeerId>, ConnectError> {
        let progress = Progress::default();
        let limit = self.config.connect_timeout;
        let handshake = pin!(timeout(limit, establish(carrier, expectations, &progress)));
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
    async fn closing(&self) {
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

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.incoming.close();
        self.close_begun.notify_waiters();
    }
}

/// A connection, or an attempt at one, in the books of its endpoint until it is dropped.
#[derive(Debug)]
struct Registration {
    inner: Arc<Inner>,
    number: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.inner.connections().remove(&self.number);
        self.inner.connection_ended.notify_waiters();
    }
}

/// Closes the endpoint to new connections with its last handle.
#[derive(Debug)]
struct Handle {
    inner: Arc<Inner>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.inner.close();
    }
}

/// A place to listen and to dial from.
///
/// Cheap to clone; every clone is the same endpoint.
///
/// # Drop
/// With its last handle an endpoint takes no new connections. Those that exist live on until they
/// are closed or dropped themselves; [`Endpoint::close`] ends them too.
#[derive(Clone)]
pub struct Endpoint {
    handle: Arc<Handle>,
}

impl Endpoint {
    /// Settings for a new endpoint.
    pub fn builder() -> EndpointBuilder {
        EndpointBuilder::default()
    }

    fn inner(&self) -> &Arc<Inner> {
        &self.handle.inner
    }

    /// The identity that peers know this endpoint by.
    pub fn peer_id(&self) -> PeerId {
        self.inner().identity.peer_id()
    }

    /// The public key of that identity.
    pub fn public_key(&self) -> PublicKey {
        self.inner().identity.public_key()
    }

    /// The certificate whose hash is in the addresses.
    pub fn certificate(&self) -> &Certificate {
        &self.inner().certificate
    }

    /// The full addresses that peers can dial, with certificate hash, and peer id with
    /// [`Security::Noise`]. A socket on a wildcard has one for every address of its family that the
    /// machine has now; link-local IPv6 is left out, and loopback unless there is nothing else.
    pub fn addresses(&self) -> Vec<Address> {
        let inner = self.inner();
        let full = |socket: SocketAddr| {
            let address = Address::new(socket).with_certhash(inner.certificate.fingerprint());
            match inner.security {
                Security::Noise => address.with_peer_id(inner.identity.peer_id()),
                Security::CertificateHash => address,
            }
        };
        inner
            .locals
            .iter()
            .flat_map(|socket| inner.sockets.concrete(*socket))
            .map(full)
            .collect()
    }

    /// The next peer that wants to connect; `None` when the endpoint is closed.
    ///
    /// Nothing has been spent on it yet, so accepting or not is up to the application:
    /// see [`Incoming`].
    ///
    /// # Cancel safety
    /// Nothing is lost if the future is dropped.
    pub async fn accept(&self) -> Option<Incoming> {
        let inner = self.inner();
        inner.incoming.next(|| inner.is_closed()).await
    }

    /// Connects to a listener, with webrtc-direct v1, which every deployed one speaks.
    ///
    /// The connection outlives the address that it is made from: when that disappears, or the route to the listener
    /// moves to another interface, it goes on from the address that the system chooses then.
    ///
    /// # Errors
    /// [`ConnectError::TimedOut`] names the phase that was not completed within
    /// [`EndpointConfig::connect_timeout`]; [`ConnectError::Unreachable`] says after two thirds of a second that nobody
    /// listens at the port, where the system hears of that; see [`ConnectError`] for the rest.
    ///
    /// # Cancel safety
    /// If the future is dropped, the attempt ends.
    pub async fn connect(&self, address: &Address) -> Result<Connection, ConnectError> {
        self.connect_with(address, Version::V1).await
    }

    /// Connects to a listener with a version of webrtc-direct. Errors and cancel safety as
    /// [`Endpoint::connect`].
    pub async fn connect_with(
        &self,
        address: &Address,
        version: Version,
    ) -> Result<Connection, ConnectError> {
        dial::dial(self.inner(), address, version).await
    }

    /// Connects to one peer by whichever of its addresses works first: webrtc-direct, and a WebSocket after
    /// [`EndpointConfig::websocket_head_start`], for networks where UDP is blocked. The first attempt that
    /// authenticates the peer wins, the others are broken off.
    ///
    /// All addresses have to name the same peer by `/p2p`, so that it does not matter which of them wins: an entry of
    /// another peer in an address book would win by being faster. [`Endpoint::connect_peer`] takes addresses that
    /// name none. With [`Security::CertificateHash`] nobody proves to be a peer, and the addresses alone decide.
    ///
    /// Over WebSockets the peer proves itself by Noise, or with [`Security::CertificateHash`] by its TLS
    /// certificate. There TLS and not DTLS protects what is carried: addresses with `ws` are dialled only with
    /// [`EndpointBuilder::plaintext_websockets`], and against somebody in the middle whose certificate is trusted
    /// [`EndpointBuilder::websocket_binding`] helps.
    ///
    /// # Errors
    /// [`ConnectAnyError::MissingPeer`], [`ConnectAnyError::AnotherPeer`], and
    /// [`ConnectAnyError::TooManyAddresses`] for more than [`MAX_ADDRESSES`], before anything is
    /// sent; [`ConnectAnyError::AllFailed`] says why each address failed.
    ///
    /// # Cancel safety
    /// If the future is dropped, all attempts are.
    pub async fn connect_any(&self, addresses: &[PeerAddress]) -> Result<Reached, ConnectAnyError> {
        any::connect_any(self.inner(), addresses, Version::V1).await
    }

    /// As [`Endpoint::connect_any`], to a peer that is named: it is expected at addresses that name none, too.
    ///
    /// # Errors
    /// [`ConnectAnyError::AnotherPeer`] if an address names another one, and [`ConnectAnyError::NoIdentities`] with
    /// [`Security::CertificateHash`], before anything is sent; else those of [`Endpoint::connect_any`].
    ///
    /// # Cancel safety
    /// If the future is dropped, all attempts are.
    pub async fn connect_peer(
        &self,
        peer: PeerId,
        addresses: &[PeerAddress],
    ) -> Result<Reached, ConnectAnyError> {
        let addresses = any::addresses_of(self.inner(), peer, addresses)?;
        self.connect_any(&addresses).await
    }

    /// As [`Endpoint::connect_any`], with a version of webrtc-direct.
    pub async fn connect_any_with(
        &self,
        addresses: &[PeerAddress],
        version: Version,
    ) -> Result<Reached, ConnectAnyError> {
        any::connect_any(self.inner(), addresses, version).await
    }

    /// Connections that are established now.
    pub fn connections(&self) -> usize {
        self.inner().connections().values().flatten().count()
    }

    /// Takes no new connections, ends attempts that are under way, closes the connections that exist
    /// as [`Connection::close`] does, and waits until all are gone, with their tasks, timers and sockets, the
    /// listening ones as well: their ports are free again.
    ///
    /// # Cancel safety
    /// The close goes on if the future is dropped; only the listening sockets then stay until another
    /// call, or until the last handle is dropped.
    pub async fn close(&self) {
        let inner = self.inner();
        inner.close();
        loop {
            let ended = inner.connection_ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            let open: Vec<_> = inner.connections().values().cloned().collect();
            if open.is_empty() {
                break;
            }
            for connection in open.iter().flatten().filter_map(Weak::upgrade) {
                connection.begin_close();
            }
            ended.await;
        }
        if let Some(tasks) = inner.tasks.get() {
            tasks.end().await;
        }
    }

    /// Whether no listening socket knows a connection any more. For tests that end with it.
    #[doc(hidden)]
    pub fn is_idle(&self) -> bool {
        self.inner().connections().is_empty()
            && self.inner().routers.iter().all(|router| router.is_empty())
            && self.inner().admission.is_idle()
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("peer_id", &self.peer_id())
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}
