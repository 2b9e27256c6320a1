//! A TCP socket of one's own, and who gets in.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::config::{Authentication, ListenerConfig, ServerConfig};
use super::error::{HandshakeError, ListenError};
use super::server::accept_guarded;
use crate::address::WebSocketAddress;
use crate::connection::Connection;
use crate::endpoint::admission::{Prefix, Rates};

/// Listens on a TCP socket for connections over WebSockets.
///
/// It has no task: the system queues what nobody accepts. [`WebSocketListener::accept`] is cheap; give
/// each [`Incoming`] to a task of its own, since its handshake can take as long as it may.
///
/// # Drop
/// The socket is closed. Connections live on.
pub struct WebSocketListener {
    socket: TcpListener,
    local: SocketAddr,
    config: Arc<ServerConfig>,
    gate: Arc<Gate>,
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
    /// Listens at an address; port 0 lets the system choose one.
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
        let socket = TcpListener::bind(address).await.map_err(failed)?;
        let local = socket.local_addr().map_err(failed)?;
        Ok(Self {
            socket,
            local,
            config: Arc::new(config),
            gate: Arc::new(Gate::new(limits)),
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Its address for [`connect`](super::connect), with the peer id if Noise is run.
    pub fn address(&self) -> WebSocketAddress {
        let address = WebSocketAddress::new(self.local, self.config.tls.is_some());
        match &self.config.authentication {
            Authentication::Noise { identity, .. } => address.with_peer_id(identity.peer_id()),
            Authentication::Tls | Authentication::DangerNone => address,
        }
    }

    /// The next connection to be that the limits let in; others are closed at once.
    ///
    /// # Errors
    /// What the system says, for instance that there are no file descriptors. The listener goes on working.
    ///
    /// # Cancel safety
    /// Nothing is lost if the future is dropped.
    pub async fn accept(&self) -> io::Result<Incoming> {
        loop {
            let (stream, remote) = match self.socket.accept().await {
                Ok(accepted) => accepted,
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
            let Some(slot) = self.gate.admit(remote) else {
                tracing::debug!(target: "anabranch::websocket", %remote, "not let in");
                continue;
            };
            // One that fails here is gone already.
            let _ = stream.set_nodelay(true);
            return Ok(Incoming {
                stream,
                remote,
                slot,
                config: Arc::clone(&self.config),
            });
        }
    }

    /// Whether no handshake is under way and no connection open. For tests that end with it.
    #[doc(hidden)]
    pub fn is_idle(&self) -> bool {
        let book = self.gate.book();
        book.handshakes == 0 && book.connections == 0 && book.by_prefix.is_empty()
    }
}

/// A TCP connection that may become more. Dropping it closes it.
#[derive(Debug)]
pub struct Incoming {
    stream: TcpStream,
    remote: SocketAddr,
    slot: Slot,
    config: Arc<ServerConfig>,
}

impl Incoming {
    /// Where it comes from; a proxy in front hides that.
    pub fn remote_address(&self) -> SocketAddr {
        self.remote
    }

    /// Runs the handshake, as [`accept`](super::accept) does.
    ///
    /// # Errors
    /// [`HandshakeError::TooManyConnections`] with [`ListenerConfig::max_connections`] open, and those of
    /// [`accept`](super::accept).
    ///
    /// # Cancel safety
    /// If the future is dropped, so is the connection.
    pub async fn accept(self) -> Result<Connection, HandshakeError> {
        let Self {
            stream,
            remote,
            slot,
            config,
        } = self;
        let permit = slot.gate.connect()?;
        let result = accept_guarded(stream, &config, Some(remote), permit).await;
        // The place among the handshakes is free from here on.
        drop(slot);
        result
    }

    /// Closes it.
    pub fn refuse(self) {}
}

/// Counts what is under way.
#[derive(Debug)]
struct Gate {
    limits: ListenerConfig,
    start: Instant,
    book: Mutex<Book>,
}

#[derive(Debug)]
struct Book {
    handshakes: usize,
    /// The same by prefix. No entry is zero, so there are at most `max_handshakes`.
    by_prefix: HashMap<Prefix, usize>,
    rates: Rates,
    /// Connections, with those in their handshake that were accepted.
    connections: usize,
}

impl Gate {
    fn new(limits: ListenerConfig) -> Self {
        let rates = Rates::new(limits.connections, limits.connections_of_site);
        Self {
            limits,
            start: Instant::now(),
            book: Mutex::new(Book {
                handshakes: 0,
                by_prefix: HashMap::new(),
                rates,
                connections: 0,
            }),
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Counters only; nothing under this lock panics.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(self: &Arc<Self>, remote: SocketAddr) -> Option<Slot> {
        let limits = &self.limits;
        let exempt = remote.ip().to_canonical().is_loopback() && !limits.limit_loopback;
        let prefix = Prefix::of(remote.ip());
        let time = Instant::now().saturating_duration_since(self.start);
        let mut book = self.book();
        if book.handshakes >= limits.max_handshakes || book.connections >= limits.max_connections {
            return None;
        }
        let share = book.by_prefix.get(&prefix).copied().unwrap_or_default();
        if !exempt && (share >= limits.max_handshakes_per_prefix || !book.rates.take(time, prefix))
        {
            return None;
        }
        book.handshakes += 1;
        *book.by_prefix.entry(prefix).or_default() += 1;
        Some(Slot {
            gate: Arc::clone(self),
            prefix,
        })
    }

    fn connect(self: &Arc<Self>) -> Result<Permit, HandshakeError> {
        let mut book = self.book();
        let max = self.limits.max_connections;
        if book.connections >= max {
            return Err(HandshakeError::TooManyConnections { max });
        }
        book.connections += 1;
        Ok(Permit {
            gate: Arc::clone(self),
        })
    }
}

/// A place among the handshakes.
#[derive(Debug)]
struct Slot {
    gate: Arc<Gate>,
    prefix: Prefix,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut book = self.gate.book();
        book.handshakes -= 1;
        if let Some(share) = book.by_prefix.get_mut(&self.prefix) {
            *share -= 1;
            if *share == 0 {
                book.by_prefix.remove(&self.prefix);
            }
        }
    }
}

/// A place among the connections.
#[derive(Debug)]
struct Permit {
    gate: Arc<Gate>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gate.book().connections -= 1;
    }
}
