//! A TCP socket of one's own, and who gets in.

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
use crate::connection::Connection;
use crate::interfaces;

/// Connections that the system queues until they are accepted, as tokio asks for.
const BACKLOG: i32 = 1024;

/// Listens on a TCP socket for connections over WebSockets.
///
/// It has no task: the system queues what nobody accepts. [`WebSocketListener::accept`] is cheap; give
/// each [`Incoming`] to a task of its own, since its handshake can take as long as it may.
///
/// What is no upgrade gets an HTTP answer; see [`accept`](super::accept) and [`ListenerConfig`]. Which pages of browsers
/// may connect is a matter of [`ServerConfig::requests`].
///
/// # Drop
/// The socket is closed. Connections live on.
pub struct WebSocketListener {
    socket: TcpListener,
    local: SocketAddr,
    config: Arc<ServerConfig>,
    gate: Arc<Gate>,
    proxies: Option<Arc<TrustedProxies>>,
    refused: Refused,
    /// What those are sent for whom there is no room; empty where TLS is spoken.
    busy: Vec<u8>,
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
    /// Listens at an address; port 0 lets the system choose one. A wildcard is one of its family, as for WebRTC:
    /// `0.0.0.0` and `[::]` can have the same port, and both are needed for both families.
    ///
    /// # Errors
    /// [`ListenError`], if the address can not be had or the settings can not work.
    pub async fn bind(
        address: SocketAddr,
        config: ServerConfig,
        limits: ListenerConfig,
    ) -> Result<Self, ListenError> {
        config.websocket.validate()?;
        config.connection.validate()?;
        limits.validate()?;
        let failed = |source| ListenError::Socket { address, source };
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
            refused: Refused::default(),
            busy,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// One of [`Self::addresses`]: the first, or the wildcard itself where the machine has no address.
    pub fn address(&self) -> WebSocketAddress {
        let first = self.addresses().into_iter().next();
        first.unwrap_or_else(|| self.address_at(self.local))
    }

    /// The addresses for [`connect`](super::connect), with the peer id if Noise is run. A wildcard stands for the
    /// addresses of all interfaces now, in its family; loopback is among them only if there are no others.
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

    /// The next connection to be that the limits let in; others are refused at once, with status 503 over plain `ws`.
    ///
    /// # Errors
    /// What the system says, for instance that there are no file descriptors. The listener goes on working.
    ///
    /// # Cancel safety
    /// Nothing is lost if the future is dropped.
    pub async fn accept(&self) -> io::Result<Incoming> {
        loop {
            let accepting = pin!(self.socket.accept());
            let expiring = pin!(self.refused.expire());
            let accepted = match select(accepting, expiring).await {
                Either::Left((accepted, _)) => accepted,
                Either::Right(_) => continue,
            };
            let (stream, remote) = match accepted {
                Ok((stream, remote)) => (stream, canonical(remote)),
                // It was there, and has gone again.
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
                // The client is somewhere behind it.
                Some(_) => None,
                None => Some(remote.ip()),
            };
            let Some(slot) = self.gate.admit(client) else {
                tracing::debug!(target: "anabranch::websocket", %remote, "not let in");
                if !self.busy.is_empty() {
                    self.refused.tell(stream, &self.busy);
                }
                continue;
            };
            // One that fails here is gone already.
            let _ = stream.set_nodelay(true);
            return Ok(Incoming {
                stream,
                remote,
                slot,
                config: Arc::clone(&self.config),
                gate: Arc::clone(&self.gate),
                proxies: proxies.cloned(),
            });
        }
    }

    /// Whether no handshake is under way and no connection open. For tests that end with it.
    #[doc(hidden)]
    pub fn is_idle(&self) -> bool {
        self.gate.book().is_empty()
    }

    /// How many refused connections are kept until they have read why. For tests.
    #[doc(hidden)]
    pub fn refused(&self) -> usize {
        self.refused.len()
    }
}

/// A socket of the address's own family. Must be called within a tokio runtime.
fn bind(address: SocketAddr) -> io::Result<StdTcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    if address.is_ipv6() {
        // An IPv4 client is not to show up under a mapped address, nor the wildcard to take the port of the other.
        socket.set_only_v6(true)?;
    }
    // As tokio does: connections of a listener before may still linger. On Windows it means another thing.
    #[cfg(not(windows))]
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A TCP connection that may become more. Dropping it closes it.
#[derive(Debug)]
pub struct Incoming {
    stream: TcpStream,
    remote: SocketAddr,
    slot: Slot,
    config: Arc<ServerConfig>,
    gate: Arc<Gate>,
    /// Set if it comes from one of these.
    proxies: Option<Arc<TrustedProxies>>,
}

impl Incoming {
    /// Where it comes from. A proxy in front hides that until its header is read, also one that is trusted.
    pub fn remote_address(&self) -> SocketAddr {
        self.remote
    }

    /// Runs the handshake, as [`accept`](super::accept) does.
    ///
    /// # Errors
    /// [`HandshakeError::TooManyConnections`] with [`ListenerConfig::max_connections`] open,
    /// [`HandshakeError::TooManyFromClient`] for a client that a trusted proxy names, and those of
    /// [`accept`](super::accept).
    ///
    /// # Cancel safety
    /// If the future is dropped, so is the connection.
    pub async fn accept(self) -> Result<Connection, HandshakeError> {
        let Self {
            stream,
            remote,
            mut slot,
            config,
            gate,
            proxies,
        } = self;
        // There was room when it was let in. Others may have come in between, and it is refused now.
        let permit = gate.connect();
        let arrival = Arrival {
            remote: Some(remote),
            local: stream.local_addr().ok().map(canonical),
            proxies: proxies.as_deref(),
            slot: Some(&mut slot),
        };
        let result = match permit {
            Ok(permit) => accept_arrived(stream, &config, arrival, permit).await,
            Err(error) => {
                if config.tls.is_none() {
                    let limit = config.websocket.close_timeout;
                    busy().send(&mut { stream }, true, limit).await;
                }
                Err(error)
            }
        };
        // The place among the handshakes is free from here on.
        drop(slot);
        result
    }

    /// Closes it.
    pub fn refuse(self) {}
}
