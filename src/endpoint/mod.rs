//! Endpoints: listening, dialling, and the state that their connections share.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::address::{Address, PeerAddress};
use crate::certificate::Certificate;
use crate::connection::{Config, Connection, ConnectionShared, Guarded};
use crate::events::{Attempt, ConnectionInfo, Initiator};
use crate::identity::{Identity, PeerId, PublicKey};
use crate::noise::Peer;
use crate::ufrag::Version;
use crate::webrtc::WebRtcCarrier;
use anabranch_rtc::Role;
pub use anabranch_rtc::{CongestionControl, EngineFactory};
pub use handshake::Phase;
use handshake::{Expectations, HandshakeProgress, establish};

mod any;
mod builder;
mod config;
mod dial;
mod error;
mod handshake;
mod listener;
mod signalling;

use crate::udp::Sockets;
use crate::udp::admission::Admission;
use crate::udp::router::Router;
pub use any::{AttemptError, ConnectAnyError, Lost, LostReason, MAX_ADDRESSES, Reached};
pub use builder::EndpointBuilder;
#[cfg(feature = "websocket")]
use builder::WebSocketDialling;
pub use config::EndpointConfig;
pub use error::{BindError, ConnectError};
use listener::IncomingQueue;
pub use listener::{Accepting, Incoming};
pub use signalling::{IceCredentials, Signalling, connect_signalled};

/// What [`Endpoint::drain`] has cut off at its limit: nothing, if all of it ended in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Drained {
    /// Established connections.
    pub cut_connections: usize,
    /// Substreams of these, unaccepted ones included that have ended.
    pub cut_substreams: usize,
}

/// How peers authenticate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Security {
    /// Noise with libp2p identities, as all libp2p peers use.
    #[default]
    Noise,
    /// The dialler authenticates the listener by the certificate hash in its address; the dialler
    /// stays anonymous. For applications without libp2p. Both sides have to use it.
    CertificateHash,
}

/// The receiving tasks, which own the listening sockets. They are aborted on drop, when neither the
/// application nor a connection holds the endpoint.
#[derive(Debug)]
struct Tasks(tokio::sync::Mutex<Vec<JoinHandle<()>>>);

impl Tasks {
    /// Aborts the tasks and waits until they are gone. Cancel safe: another call continues.
    async fn end(&self) {
        let mut tasks = self.0.lock().await;
        for task in tasks.iter() {
            task.abort();
        }
        while let Some(task) = tasks.last_mut() {
            // The error only reports the abort.
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

/// The state that the handles of an endpoint and the tasks of its connections share.
#[derive(Debug)]
pub(crate) struct Inner {
    identity: Identity,
    certificate: Certificate,
    security: Security,
    connection_config: Arc<Config>,
    config: EndpointConfig,
    /// The listening addresses.
    locals: Vec<SocketAddr>,
    routers: Vec<Arc<Router>>,
    sockets: Arc<dyn Sockets>,
    #[cfg(feature = "websocket")]
    websocket: WebSocketDialling,
    admission: Arc<Admission>,
    incoming: IncomingQueue,
    closed: AtomicBool,
    /// No more peers are accepted.
    stopped: AtomicBool,
    /// Connections are drained, also those that are established from now on.
    draining: AtomicBool,
    /// Every connection and, as `None`, every attempt; for [`Endpoint::close`].
    connections: Mutex<HashMap<u64, Option<Weak<ConnectionShared>>>>,
    next_connection: AtomicU64,
    connection_ended: Notify,
    close_begun: Notify,
    tasks: OnceLock<Tasks>,
}

impl Inner {
    fn connections(&self) -> MutexGuard<'_, HashMap<u64, Option<Weak<ConnectionShared>>>> {
        // Valid after a panic: no entry is half written.
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether first contacts are refused, and not only ignored.
    fn accepts_no_more(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Whether nobody takes first contacts.
    fn is_stopped(&self) -> bool {
        self.accepts_no_more() || self.is_closed()
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// The identity for Noise; `None` with [`Security::CertificateHash`].
    fn noise_identity(&self) -> Option<&Identity> {
        match self.security {
            Security::Noise => Some(&self.identity),
            Security::CertificateHash => None,
        }
    }

    /// Whether the maximum of connections, attempts included, is reached.
    fn is_full(&self) -> bool {
        self.connections().len() >= self.config.max_connections
    }

    /// Registers an attempt to dial.
    fn register_dial(self: &Arc<Self>) -> Result<Registration, ConnectError> {
        let registration = self.register()?;
        // After the entry: a drain that misses this attempt is seen here.
        if self.is_draining() {
            return Err(ConnectError::EndpointClosed);
        }
        Ok(registration)
    }

    /// Registers an attempt to connect.
    fn register(self: &Arc<Self>) -> Result<Registration, ConnectError> {
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
        let peer = match self.handshake(&mut carrier, expectations).await {
            Ok(peer) => peer,
            Err(error) => {
                attempt.failed(&error);
                return Err(error);
            }
        };
        let config = Arc::clone(&self.connection_config);
        let mut info = attempt.succeeded();
        info.peer = peer.map(|peer| peer.id);
        let labels = peer.is_some_and(|peer| peer.takes_labels);
        let (connection, driver) = Connection::authenticated(carrier, config, info, labels);
        self.enter(registration.number, &connection);
        tokio::spawn(Guarded::new(driver, registration));
        Ok(connection)
    }

    /// Replaces the entry of an attempt by its connection.
    fn enter(&self, number: u64, connection: &Connection) {
        if let Some(entry) = self.connections().get_mut(&number) {
            *entry = Some(Arc::downgrade(connection.shared()));
        }
        if self.is_draining() {
            connection.shared().begin_drain();
        }
        if self.is_closed() {
            // `close` ran between the handshake and the entry, and has missed this connection.
            connection.shared().begin_close();
        }
    }

    /// Runs the handshake within `connect_timeout`. Returns the peer, if Noise was run.
    async fn handshake(
        &self,
        carrier: &mut WebRtcCarrier,
        expectations: Expectations<'_>,
    ) -> Result<Option<Peer>, ConnectError> {
        let progress = HandshakeProgress::default();
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

    /// Completes when `work` returns `true`, which is asked again after every end of a connection
    /// or attempt.
    async fn until(&self, mut work: impl FnMut() -> bool) {
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
    fn established(&self) -> Vec<Arc<ConnectionShared>> {
        let connections = self.connections();
        connections
            .values()
            .flatten()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// Whether no connection is established and nobody attempts to.
    fn has_no_connections(&self) -> bool {
        self.connections().is_empty()
    }
}

/// The entry of a connection, or of an attempt, at its endpoint. Removed on drop.
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

/// Closes the endpoint to new connections on drop, with its last handle.
#[derive(Debug)]
struct Handle {
    inner: Arc<Inner>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.inner.close();
    }
}

/// Listens for connections and dials.
///
/// Cheap to clone; all clones are handles of the same endpoint.
///
/// # Drop
/// After the drop of its last handle an endpoint accepts and makes no more connections. Existing
/// ones live on until they are closed or dropped; [`Endpoint::close`] ends them too.
#[derive(Clone)]
pub struct Endpoint {
    handle: Arc<Handle>,
}

impl Endpoint {
    /// Returns a builder with default settings.
    pub fn builder() -> EndpointBuilder {
        EndpointBuilder::default()
    }

    fn inner(&self) -> &Arc<Inner> {
        &self.handle.inner
    }

    /// The id by which peers know this endpoint.
    pub fn peer_id(&self) -> PeerId {
        self.inner().identity.peer_id()
    }

    /// The public key of that identity.
    pub fn public_key(&self) -> PublicKey {
        self.inner().identity.public_key()
    }

    /// The DTLS certificate, whose hash is part of the addresses.
    pub fn certificate(&self) -> &Certificate {
        &self.inner().certificate
    }

    /// The addresses that peers can dial, with certificate hash, and with peer id under
    /// [`Security::Noise`]. A socket on a wildcard has one for every address of its family that the
    /// machine has now, without link-local IPv6, and without loopback unless there is no other.
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

    /// The addresses of the listening sockets, wildcards as they are.
    pub fn local_addresses(&self) -> &[SocketAddr] {
        &self.inner().locals
    }

    /// Waits for the next peer that wants to connect; `None` when the endpoint is closed, or
    /// accepts no more peers.
    ///
    /// Hardly anything has been allocated for it yet; the application decides whether to accept it:
    /// see [`Incoming`].
    ///
    /// # Cancel safety
    /// No first contact is lost if the future is dropped.
    pub async fn accept(&self) -> Option<Incoming> {
        let inner = self.inner();
        inner.incoming.next(|| inner.is_stopped()).await
    }

    /// [`Endpoint::accept`] as a poll function. Of several tasks that call it, the last is woken.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<Option<Incoming>> {
        let inner = self.inner();
        inner.incoming.poll_next(cx, || inner.is_stopped())
    }

    /// Connects to a listener with webrtc-direct v1, which all deployed listeners support.
    ///
    /// The connection survives a change of the local address: when that disappears, or the route to
    /// the listener moves to another interface, it continues from the address that the system
    /// selects.
    ///
    /// # Errors
    /// [`ConnectError::TimedOut`] names the phase that was not completed within
    /// [`EndpointConfig::connect_timeout`]. [`ConnectError::Unreachable`] reports after two thirds
    /// of a second that nobody listens at the port, where the system receives ICMP errors for it.
    /// See [`ConnectError`] for the others.
    ///
    /// # Cancel safety
    /// Dropping the future aborts the attempt.
    pub async fn connect(&self, address: &Address) -> Result<Connection, ConnectError> {
        self.connect_with(address, Version::V1).await
    }

    /// Connects to a listener with the given version of webrtc-direct. Errors and cancel safety are
    /// those of [`Endpoint::connect`].
    pub async fn connect_with(
        &self,
        address: &Address,
        version: Version,
    ) -> Result<Connection, ConnectError> {
        dial::dial(self.inner(), address, version).await
    }

    /// Connects to one peer by the first of its addresses that works: webrtc-direct, and after
    /// [`EndpointConfig::websocket_head_start`] WebSockets, for networks that block UDP. The first
    /// attempt that authenticates the peer wins; the others are cancelled.
    ///
    /// All addresses have to name the same peer by `/p2p`: otherwise another peer in an address
    /// book could win by being faster. [`Endpoint::connect_peer`] accepts addresses without a peer
    /// id. With [`Security::CertificateHash`] no peer proves an identity, and the certificate
    /// hashes alone decide.
    ///
    /// Over a WebSocket the peer authenticates by Noise, or with [`Security::CertificateHash`] by
    /// its TLS certificate. There TLS protects the data, not DTLS: `ws` addresses are dialled only
    /// with [`EndpointBuilder::plaintext_websockets`], and [`EndpointBuilder::websocket_binding`]
    /// protects against a man in the middle with a trusted certificate.
    ///
    /// # Errors
    /// [`ConnectAnyError::NoAddresses`], [`ConnectAnyError::MissingPeer`],
    /// [`ConnectAnyError::AnotherPeer`], and [`ConnectAnyError::TooManyAddresses`] for more than
    /// [`MAX_ADDRESSES`], before anything is sent; [`ConnectAnyError::AllFailed`] has the error of
    /// each address.
    ///
    /// # Cancel safety
    /// Dropping the future aborts all attempts.
    pub async fn connect_any(&self, addresses: &[PeerAddress]) -> Result<Reached, ConnectAnyError> {
        any::connect_any(self.inner(), addresses, Version::V1).await
    }

    /// Connects to `peer` as [`Endpoint::connect_any`] does, and expects it at addresses without a
    /// peer id too.
    ///
    /// # Errors
    /// [`ConnectAnyError::AnotherPeer`] if an address names another peer, and
    /// [`ConnectAnyError::NoIdentities`] with [`Security::CertificateHash`], before anything is
    /// sent; otherwise those of [`Endpoint::connect_any`].
    ///
    /// # Cancel safety
    /// Dropping the future aborts all attempts.
    pub async fn connect_peer(
        &self,
        peer: PeerId,
        addresses: &[PeerAddress],
    ) -> Result<Reached, ConnectAnyError> {
        let addresses = any::addresses_of(self.inner(), peer, addresses)?;
        self.connect_any(&addresses).await
    }

    /// Connects as [`Endpoint::connect_any`] does, with the given version of webrtc-direct. Errors
    /// and cancel safety are the same.
    pub async fn connect_any_with(
        &self,
        addresses: &[PeerAddress],
        version: Version,
    ) -> Result<Reached, ConnectAnyError> {
        any::connect_any(self.inner(), addresses, version).await
    }

    /// Accepts no more peers: [`Endpoint::accept`] returns `None`, and peers are refused as by
    /// [`Incoming::refuse`], those that wait now too. Connections live on, and dials work.
    pub fn stop_accepting(&self) {
        self.inner().stopped.store(true, Ordering::Release);
        self.inner().incoming.refuse_all();
    }

    /// Waits until there is no connection, and no attempt to establish one. It closes nothing.
    ///
    /// # Cancel safety
    /// Nothing changes if the future is dropped.
    pub async fn wait_idle(&self) {
        let inner = self.inner();
        inner.until(|| inner.has_no_connections()).await;
    }

    /// Ends the endpoint in peace, for a server that gets SIGTERM: accepts no more peers, as
    /// [`Endpoint::stop_accepting`], dials no more, drains every connection, as
    /// [`Connection::drain`], and closes the endpoint, as [`Endpoint::close`], when none is left.
    /// What is left after `limit` is cut off, and counted in the result. Programs go on to accept
    /// substreams on every connection until it ends.
    ///
    /// # Cancel safety
    /// The drain goes on if the future is dropped, without a limit, and the endpoint is not closed.
    pub async fn drain(&self, limit: Duration) -> Drained {
        let inner = self.inner();
        self.stop_accepting();
        inner.draining.store(true, Ordering::Release);
        let connections = inner.established();
        for connection in &connections {
            connection.begin_drain();
        }
        drop(connections);
        let mut drained = Drained::default();
        if timeout(limit, self.wait_idle()).await.is_err() {
            for connection in inner.established() {
                let substreams = connection.counters.snapshot(0, 0).substreams;
                drained.cut_connections += 1;
                drained.cut_substreams += usize::try_from(substreams).unwrap_or(usize::MAX);
                drained.cut_substreams += connection.ended_unaccepted();
            }
        }
        self.close().await;
        drained
    }

    /// Number of established connections.
    pub fn connections(&self) -> usize {
        self.inner().connections().values().flatten().count()
    }

    /// Closes the endpoint: rejects new connections, aborts attempts, closes existing connections
    /// as [`Connection::close`] does, and waits until all of them are gone, with their tasks,
    /// timers and sockets. The listening sockets are closed too, and their ports are free.
    ///
    /// # Cancel safety
    /// The close continues if the future is dropped; only the listening sockets then stay open
    /// until another call, or until the last handle is dropped.
    pub async fn close(&self) {
        let inner = self.inner();
        inner.close();
        let close_all = || {
            for connection in inner.established() {
                connection.begin_close();
            }
            inner.has_no_connections()
        };
        inner.until(close_all).await;
        if let Some(tasks) = inner.tasks.get() {
            tasks.end().await;
        }
    }

    /// Whether no connection, route or handshake is left. For tests, which end with it.
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
