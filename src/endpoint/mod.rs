//! Endpoints: listening, dialling, and the state that their connections share.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::timeout;

use crate::address::{Address, PeerAddress};
use crate::certificate::Certificate;
use crate::connection::Connection;
use crate::identity::{PeerId, PublicKey};
use crate::udp::DatagramSocket;
pub use anabranch_rtc::{CongestionControl, EngineFactory};

mod address_changes;
mod any;
mod builder;
mod config;
mod dial;
mod error;
mod handshake;
mod incoming;
mod inner;
mod ports;
mod receiving;
mod signalling;
#[cfg(feature = "websocket")]
mod websockets;

pub use address_changes::{AddressChanges, AddressEvent};
pub use any::{AttemptError, ConnectAnyError, Lost, LostReason, MAX_ADDRESSES, Reached};
pub use builder::EndpointBuilder;
pub use config::EndpointConfig;
pub use dial::{DialOptions, PortUse};
pub use error::{BindError, ConnectError, PunchError};
pub use handshake::Phase;
pub use incoming::{AcceptOptions, Accepting, Incoming};
use inner::{Inner, Stage};
use ports::Purpose;
pub use ports::{ListenerId, Listening};
pub use signalling::{IceCredentials, Signalling, connect_signalled};
#[cfg(feature = "websocket")]
pub use websockets::WebSocketOptions;

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

    /// The webrtc-direct addresses that peers can dial, with certificate hash, and with peer id
    /// under [`Security::Noise`]. A socket on a wildcard has one for every address of its family
    /// that the machine has now, without link-local IPv6, and without loopback unless there is no
    /// other; any other socket has its own while the machine has it, and one that the application
    /// has supplied always.
    pub fn addresses(&self) -> Vec<Address> {
        self.inner().addresses().collect()
    }

    /// The addresses that peers can dial on all carriers: [`Self::addresses`], and those of the
    /// WebSocket listeners. For [`Endpoint::connect_any`] of the peers.
    pub fn peer_addresses(&self) -> Vec<PeerAddress> {
        self.inner().peer_addresses()
    }

    /// The changes of [`Self::peer_addresses`]: listeners that come and go, and addresses of the
    /// machine behind a wildcard. For those who announce them.
    pub fn address_changes(&self) -> AddressChanges {
        AddressChanges::new(self.inner())
    }

    /// The addresses of the UDP sockets that listen, wildcards as they are.
    pub fn local_addresses(&self) -> Vec<SocketAddr> {
        self.inner().ports.locals()
    }

    /// Listens on one more address for webrtc-direct: see [`EndpointBuilder::bind`]. It waits for
    /// nothing, and must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`BindError::Socket`] if the address can not be bound, and [`BindError::EndpointClosed`].
    pub fn listen(&self, address: SocketAddr) -> Result<Listening, BindError> {
        let inner = self.inner();
        inner.listen_on(address, inner.bind(address)?, Purpose::Listen)
    }

    /// The same on a socket that the application supplies, for example one that it has bound with
    /// options of its own ([`from_std`](crate::udp::from_std)) or that a service manager has passed
    /// to it. Nothing else may receive from it.
    ///
    /// # Errors
    /// [`BindError::Socket`] if the socket has no address, and [`BindError::EndpointClosed`].
    pub fn listen_on_socket(
        &self,
        socket: Arc<dyn DatagramSocket>,
    ) -> Result<Listening, BindError> {
        let unknown = SocketAddr::from(([0; 4], 0));
        let address = socket.local_addr().unwrap_or(unknown);
        self.inner()
            .listen_on(address, vec![socket], Purpose::ListenOnSupplied)
    }

    /// Listens on a TCP socket for WebSockets, for peers behind networks that block UDP. They
    /// arrive at [`Endpoint::accept`] with all others, and count against the same limits. Must be
    /// called within a tokio runtime.
    ///
    /// # Errors
    /// [`BindError::Config`] if a limit is out of range, [`BindError::Socket`] if the address can
    /// not be bound, and [`BindError::EndpointClosed`].
    #[cfg(feature = "websocket")]
    pub fn listen_websocket(
        &self,
        address: SocketAddr,
        options: WebSocketOptions,
    ) -> Result<Listening, BindError> {
        self.inner().listen_websocket(address, options)
    }

    /// The configuration for [`UpgradeRequest::check`](crate::websocket::UpgradeRequest::check),
    /// for streams that go to [`Self::accept_upgraded`].
    #[cfg(feature = "websocket")]
    pub fn upgrade_config(&self) -> crate::websocket::ServerConfig {
        self.inner()
            .server_config(crate::websocket::ChannelBinding::None)
    }

    /// Accepts a connection over a stream that an HTTP server of the application has upgraded: see
    /// [`websocket::accept_upgraded`](crate::websocket::accept_upgraded). The endpoint counts,
    /// drains and closes it like its others.
    ///
    /// # Errors
    /// [`ConnectError::WebSocket`] if the handshake fails, [`ConnectError::TooManyConnections`],
    /// and [`ConnectError::EndpointClosed`] also if the endpoint accepts no more peers.
    ///
    /// # Cancel safety
    /// Dropping the future closes the stream.
    #[cfg(feature = "websocket")]
    pub async fn accept_upgraded<S>(&self, stream: S) -> Result<Connection, ConnectError>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    {
        self.accept_upgraded_with(stream, AcceptOptions::default())
            .await
    }

    /// Accepts a connection as [`Endpoint::accept_upgraded`] does, with other options. Errors and
    /// cancel safety are the same.
    #[cfg(feature = "websocket")]
    pub async fn accept_upgraded_with<S>(
        &self,
        stream: S,
        options: impl Into<AcceptOptions>,
    ) -> Result<Connection, ConnectError>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    {
        self.inner().accept_upgraded(stream, options.into()).await
    }

    /// Sends one datagram from a port that listens to `remote`, which no peer answers, so that a
    /// NAT in front of this machine lets datagrams from there in. For hole punching: the peer dials
    /// meanwhile with [`PortUse::Reuse`]. Datagrams are lost, and NATs forget: repeat it until the
    /// peer has arrived.
    ///
    /// # Errors
    /// [`PunchError`]. The datagram is lost then.
    pub fn punch(&self, remote: SocketAddr) -> Result<(), PunchError> {
        self.inner().punch(remote)
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
        inner
            .incoming
            .next(|| inner.has_reached(Stage::Stopped))
            .await
    }

    /// [`Endpoint::accept`] as a poll function. Of several tasks that call it, the last is woken.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<Option<Incoming>> {
        let inner = self.inner();
        inner
            .incoming
            .poll_next(cx, || inner.has_reached(Stage::Stopped))
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
        self.connect_with(address, DialOptions::default()).await
    }

    /// Connects to a listener as [`Endpoint::connect`] does, with another version of webrtc-direct,
    /// from another port, with another time limit, or with another negotiation of protocols. Errors
    /// and cancel safety are the same.
    pub async fn connect_with(
        &self,
        address: &Address,
        options: impl Into<DialOptions>,
    ) -> Result<Connection, ConnectError> {
        dial::dial(self.inner(), address, options.into()).await
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
        any::connect_any(self.inner(), addresses, DialOptions::default()).await
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

    /// Connects as [`Endpoint::connect_any`] does, with other options. Errors and cancel safety are
    /// the same.
    pub async fn connect_any_with(
        &self,
        addresses: &[PeerAddress],
        options: impl Into<DialOptions>,
    ) -> Result<Reached, ConnectAnyError> {
        any::connect_any(self.inner(), addresses, options.into()).await
    }

    /// Accepts no more peers: [`Endpoint::accept`] returns `None`, and peers are refused as by
    /// [`Incoming::refuse`], those that wait now too. Connections live on, and dials work.
    pub fn stop_accepting(&self) {
        self.inner().reach(Stage::Stopped);
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
        inner.reach(Stage::Draining);
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

    /// Whether the endpoint drains ([`Endpoint::drain`]) or is closed: it accepts no peers and
    /// dials none. [`Endpoint::stop_accepting`] alone is no drain.
    pub fn is_draining(&self) -> bool {
        self.inner().has_reached(Stage::Draining)
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
        inner.ports.end().await;
    }

    /// Whether no connection, route or handshake is left. For tests, which end with it.
    #[doc(hidden)]
    pub fn is_idle(&self) -> bool {
        self.inner().connections().is_empty()
            && self.inner().ports.are_idle()
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
