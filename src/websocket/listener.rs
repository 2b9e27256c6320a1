//! A listener with a TCP socket of its own.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::sync::Arc;

use futures_util::future::{Either, select};
use std::pin::pin;
use tokio::net::{TcpListener, TcpStream};

use super::config::{Authentication, ListenerConfig, ServerConfig};
use super::error::{HandshakeError, ListenError};
use super::gate::{Gate, Slot};
use super::proxy::{TrustedProxies, canonical};
use super::refused::Refused;
use super::server::{Arrival, accept_arrived, busy};
use crate::address::WebSocketAddress;
use crate::connection::{Config, Connection};
use crate::interfaces;

/// Maximum connections that the system queues until they are accepted, the default of tokio.
const BACKLOG: i32 = 1024;

/// Listens on a TCP socket for WebSocket connections.
///
/// It has no task: the system queues connections until they are accepted.
/// [`WebSocketListener::accept`] is cheap; run each [`WebSocketIncoming`] in a task of its own,
/// since a handshake can take up to its timeout.
///
/// Requests that are not upgraded get an HTTP response; see [`accept`](super::accept) and
/// [`ListenerConfig`]. [`ServerConfig::requests`] decides which web pages may connect.
///
/// # Drop
/// Closes the socket. Established connections live on.
pub struct WebSocketListener {
    socket: TcpListener,
    local: SocketAddr,
    config: Arc<ServerConfig>,
    gate: Arc<Gate>,
    proxies: Option<Arc<TrustedProxies>>,
    refusals: Arc<Refusals>,
}

/// How connections are refused before their handshake.
#[derive(Debug)]
struct Refusals {
    refused: Refused,
    /// The response; empty with TLS.
    busy: Vec<u8>,
}

impl Refusals {
    fn refuse(&self, stream: TcpStream) {
        if !self.busy.is_empty() {
            self.refused.answer(stream, &self.busy);
        }
    }
}

impl fmt::Debug for WebSocketListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebSocketListener")
            .field("local", &self.local)
            .field("book", &*self.gate.book())
            .finish_non_exhaustive()
    }
}

impl WebSocketListener {
    /// Binds a socket to `address`; port 0 selects a free port. A wildcard covers its own family
    /// only, as for WebRTC: `0.0.0.0` and `[::]` can share a port, and both are needed for both
    /// families.
    ///
    /// # Errors
    /// [`ListenError`] if the address can not be bound or a setting is out of range.
    ///
    /// # Cancel safety
    /// No socket is bound if the future is dropped.
    pub async fn bind(
        address: SocketAddr,
        config: ServerConfig,
        limits: ListenerConfig,
    ) -> Result<Self, ListenError> {
        Self::bind_now(address, config, limits)
    }

    /// [`Self::bind`], which waits for nothing. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Those of [`Self::bind`].
    pub fn bind_now(
        address: SocketAddr,
        config: ServerConfig,
        limits: ListenerConfig,
    ) -> Result<Self, ListenError> {
        config.websocket.validate()?;
        config.connection.validate()?;
        limits.validate()?;
        let failed = |source: io::Error| {
            let source = source.into();
            ListenError::Socket { address, source }
        };
        let socket = bind(address).map_err(failed)?;
        let socket = TcpListener::from_std(socket).map_err(failed)?;
        let local = socket.local_addr().map_err(failed)?;
        let busy = match config.tls {
            Some(_) => Vec::new(),
            None => busy().encode(true),
        };
        let proxies = limits.proxies.clone().map(Arc::new);
        Ok(Self {
            socket,
            local,
            config: Arc::new(config),
            gate: Arc::new(Gate::new(limits)),
            proxies,
            refusals: Arc::new(Refusals {
                refused: Refused::default(),
                busy,
            }),
        })
    }

    /// The address of the socket.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The first of [`Self::addresses`]. While there is none it has the IP address of the socket,
    /// which can not be dialled then: a wildcard, or an address that no interface has any more.
    pub fn address(&self) -> WebSocketAddress {
        let first = self.addresses().into_iter().next();
        first.unwrap_or_else(|| self.address_at(self.local))
    }

    /// The addresses for [`connect`](super::connect), with the peer id if Noise is used. A wildcard
    /// has the current addresses of all interfaces in its family; loopback only if there is no
    /// other. Any other address stands for itself, and the list is empty while its interface is
    /// down or gone, as for a wildcard without addresses.
    pub fn addresses(&self) -> Vec<WebSocketAddress> {
        interfaces::concrete(self.local)
            .into_iter()
            .map(|socket| self.address_at(socket))
            .collect()
    }

    fn address_at(&self, socket: SocketAddr) -> WebSocketAddress {
        let address = WebSocketAddress::new(socket, self.config.tls.is_some());
        match &self.config.authentication {
            Authentication::Noise { identity, .. } => address.with_peer_id(identity.peer_id()),
            Authentication::Tls | Authentication::DangerNone => address,
        }
    }

    /// Waits for the next TCP connection within the limits. Others are refused at once, with status
    /// 503 over plain `ws`.
    ///
    /// # Errors
    /// An error of the system, for example that file descriptors are exhausted. The listener stays
    /// usable.
    ///
    /// # Cancel safety
    /// No connection is lost if the future is dropped.
    pub async fn accept(&self) -> io::Result<WebSocketIncoming> {
        loop {
            let accepting = pin!(self.socket.accept());
            let expiring = pin!(self.refusals.refused.expire());
            let accepted = match select(accepting, expiring).await {
                Either::Left((accepted, _)) => accepted,
                Either::Right(_) => continue,
            };
            let (stream, remote) = match accepted {
                Ok((stream, remote)) => (stream, canonical(remote)),
                // The client has closed it before it was accepted.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
                    ) =>
                {
                    continue;
                }
                Err(error) => return Err(error),
            };
            let proxies = self
                .proxies
                .as_ref()
                .filter(|proxies| proxies.contains(remote.ip()));
            let client = match proxies {
                // The proxy has yet to report the client.
                Some(_) => None,
                None => Some(remote.ip()),
            };
            let Some(slot) = self.gate.admit(client) else {
                tracing::debug!(target: "anabranch::websocket", %remote, "refused");
                self.refusals.refuse(stream);
                continue;
            };
            // Fails only if the connection is closed already.
            let _ = stream.set_nodelay(true);
            return Ok(WebSocketIncoming {
                stream,
                remote,
                slot,
                config: Arc::clone(&self.config),
                gate: Arc::clone(&self.gate),
                proxies: proxies.cloned(),
                local: self.local,
                refusals: Arc::clone(&self.refusals),
            });
        }
    }

    /// Whether there is no handshake and no connection. For tests, which end with it.
    #[doc(hidden)]
    pub fn is_idle(&self) -> bool {
        self.gate.book().is_empty()
    }

    /// Number of refused connections that linger to read the response. For tests.
    #[doc(hidden)]
    pub fn refused(&self) -> usize {
        self.refusals.refused.len()
    }
}

/// Binds a socket for the address's family only. Must be called within a tokio runtime.
fn bind(address: SocketAddr) -> io::Result<StdTcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    if address.is_ipv6() {
        // An IPv4 client must not appear with a mapped address, and the wildcard must not take the
        // IPv4 port.
        socket.set_only_v6(true)?;
    }
    // As tokio: connections of an earlier listener may linger. On Windows the option has another
    // meaning.
    #[cfg(not(windows))]
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// An accepted TCP connection before its handshake.
///
/// It counts against [`ListenerConfig::max_handshakes`] until it is established or dropped.
///
/// # Drop
/// Closes the connection.
#[derive(Debug)]
pub struct WebSocketIncoming {
    stream: TcpStream,
    remote: SocketAddr,
    slot: Slot,
    config: Arc<ServerConfig>,
    gate: Arc<Gate>,
    /// Set if it comes from a trusted proxy.
    proxies: Option<Arc<TrustedProxies>>,
    /// The address of the listener.
    local: SocketAddr,
    refusals: Arc<Refusals>,
}

impl WebSocketIncoming {
    /// The remote address of the TCP connection: of the proxy, if there is one, since its header is
    /// read in the handshake.
    pub fn remote_address(&self) -> SocketAddr {
        self.remote
    }

    /// The address of this machine that the client, or its proxy, has connected to.
    pub fn local_address(&self) -> SocketAddr {
        self.stream.local_addr().map_or(self.local, canonical)
    }

    /// Runs the handshake, as [`accept`](super::accept) does.
    ///
    /// # Errors
    /// [`HandshakeError::TooManyConnections`] with [`ListenerConfig::max_connections`] open,
    /// [`HandshakeError::TooManyFromClient`] for a client that a trusted proxy names, and those of
    /// [`accept`](super::accept).
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub async fn accept(self) -> Result<Connection, HandshakeError> {
        let connection = Arc::clone(&self.config.connection);
        self.accept_guarded(connection, ()).await
    }

    /// The same, with this configuration of the connection, and a `guard` that is dropped when the
    /// connection ends.
    pub(crate) async fn accept_guarded<G: Send + 'static>(
        self,
        connection: Arc<Config>,
        guard: G,
    ) -> Result<Connection, HandshakeError> {
        let Self {
            stream,
            remote,
            mut slot,
            config,
            gate,
            proxies,
            ..
        } = self;
        // Others may have been established since it was admitted.
        let permit = gate.connect();
        let arrival = Arrival {
            remote: Some(remote),
            local: stream.local_addr().ok().map(canonical),
            proxies: proxies.as_deref(),
            slot: Some(&mut slot),
        };
        let result = match permit {
            Ok(permit) => {
                let guard = (permit, guard);
                accept_arrived(stream, &config, &connection, arrival, guard).await
            }
            Err(error) => {
                if config.tls.is_none() {
                    let limit = config.websocket.close_timeout;
                    busy().send(&mut { stream }, true, limit).await;
                }
                Err(error)
            }
        };
        // Releases the handshake slot.
        drop(slot);
        result
    }

    /// Closes the connection, over plain `ws` after an answer with status 503. Its request is not
    /// read.
    pub fn refuse(self) {
        self.refusals.refuse(self.stream);
    }
}
