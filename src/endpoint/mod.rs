//! Listening, dialling, and what all connections of a program share.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use futures_util::future::{Either, select};
use tokio::net::ToSocketAddrs;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::address::{Address, PeerAddress};
use crate::certificate::Certificate;
use crate::connection::{Config, Connection, Link};
use crate::events::{Attempt, ConnectionInfo, Initiator};
use crate::identity::{Identity, PeerId, PublicKey};
use crate::ufrag::Version;
use crate::webrtc::WebRtcCarrier;
use crate::webrtc::engine::Role;
pub use crate::webrtc::handshake::Phase;
use crate::webrtc::handshake::{Expectations, Progress, establish};
pub use crate::webrtc::{EngineKind, UnknownEngine};

pub(crate) mod admission;
mod any;
mod config;
mod dial;
mod error;
mod factory;
pub(crate) mod inbox;
mod interfaces;
mod listener;
pub(crate) mod router;
pub(crate) mod socket;

pub use admission::RateLimit;
use admission::{Admission, Limits};
pub use any::{AttemptError, ConnectAnyError, Lost, LostReason, MAX_ADDRESSES, Reached};
pub use config::EndpointConfig;
pub use error::{BindError, ConnectError};
use factory::SocketFactory;
pub use listener::Incoming;
use listener::{IncomingQueue, Listener};
use router::Router;

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
    sockets: SocketFactory,
    #[cfg(feature = "websocket")]
    websocket: WebSocketDialling,
}

/// How [`Endpoint::connect_any`] dials WebSockets.
#[cfg(feature = "websocket")]
#[derive(Debug, Default)]
struct WebSocketDialling {
    limits: crate::websocket::WebSocketConfig,
    trust: crate::websocket::TlsTrust,
    binding: crate::websocket::ChannelBinding,
    allows_plaintext: bool,
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

    /// Adds a protocol that peers may open substreams for; the first added is preferred.
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

    /// Uses the sockets of a simulated host, for listening and for dialling, in place of those of
    /// the system. Addresses have to be literal, and its own or a wildcard.
    #[cfg(any(test, feature = "testing"))]
    pub fn simulated(mut self, host: &crate::simulator::Host) -> Self {
        self.sockets = SocketFactory::Simulated(host.clone());
        self
    }

    /// Listens on every address that `addresses` resolves to, for example `"0.0.0.0:4001"` or
    /// `"[::]:0"`. A wildcard stands for every address of the machine, port 0 for a free one.
    ///
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`BindError`] names the address that failed.
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
        crate::webrtc::warm_up();
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
        let mut listeners: Vec<Arc<Listener>> = Vec::new();
        for &address in addresses {
            let failed = |source| BindError::Socket { address, source };
            let sockets = self.sockets.bind_many(address, config.sockets);
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
            sockets: self.sockets,
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
    sockets: SocketFactory,
    #[cfg(feature = "websocket")]
    websocket: WebSocketDialling,
    admission: Arc<Admission>,
    incoming: IncomingQueue,
    closed: AtomicBool,
    /// Every connection and, as `None`, every attempt at one; for [`Endpoint::close`].
    connections: Mutex<HashMap<u64, Option<Weak<Link>>>>,
    next_connection: AtomicU64,
    connection_ended: Notify,
    close_begun: Notify,
    tasks: OnceLock<Tasks>,
}

impl Inner {
    fn connections(&self) -> MutexGuard<'_, HashMap<u64, Option<Weak<Link>>>> {
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
            *entry = Some(Arc::downgrade(connection.link()));
        }
        if self.is_closed() {
            // Closed between the handshake and the entry: nobody else will tell it.
            connection.link().begin_close();
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

    /// The full addresses that peers can dial, with certificate hash and peer id. A socket on a
    /// wildcard has one for every address that the machine has now.
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
    /// # Errors
    /// [`ConnectError::TimedOut`] names the phase that was not completed within
    /// [`EndpointConfig::connect_timeout`]; see [`ConnectError`] for the rest.
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
    /// Over WebSockets the peer proves itself by Noise, or with [`Security::CertificateHash`] by its TLS
    /// certificate. There TLS and not DTLS protects what is carried: addresses with `ws` are dialled only with
    /// [`EndpointBuilder::plaintext_websockets`], and against somebody in the middle whose certificate is trusted
    /// [`EndpointBuilder::websocket_binding`] helps.
    ///
    /// # Errors
    /// [`ConnectAnyError::AllFailed`] says why each address failed.
    ///
    /// # Cancel safety
    /// If the future is dropped, all attempts are.
    pub async fn connect_any(&self, addresses: &[PeerAddress]) -> Result<Reached, ConnectAnyError> {
        any::connect_any(self.inner(), addresses, Version::V1).await
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
            let links: Vec<_> = inner.connections().values().cloned().collect();
            if links.is_empty() {
                break;
            }
            for link in links.iter().flatten().filter_map(Weak::upgrade) {
                link.begin_close();
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
