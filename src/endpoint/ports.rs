//! The ports of an endpoint, which come and go while it runs, and the tasks that receive on them.
//!
//! A port belongs to its tasks: when the last of them ends, its sockets are closed. The endpoint
//! and [`Listening`] only refer to it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::error::{BindError, PunchError};
use super::inner::Inner;
use super::receiving::receive;
#[cfg(feature = "websocket")]
use super::websockets::WebSocketPort;
use crate::address::PeerAddress;
use crate::connection;
use crate::udp::router::{Dialling, RouteGuard, Router, Unshared};
use crate::udp::{DatagramSocket, Transmit, indication, wildcard};
use crate::ufrag::ClientCredentials;
use crate::waiters::Waiters;

/// Identifies a listener within its endpoint: [`Listening::id`], and
/// [`Incoming::listener`](super::Incoming::listener).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerId(u64);

/// UDP sockets of one address with their router. There are several if the system distributes the
/// peers among them (SO_REUSEPORT).
#[derive(Debug)]
pub(super) struct UdpPort {
    pub(super) id: ListenerId,
    /// The address that the sockets are bound to.
    pub(super) local: SocketAddr,
    pub(super) sockets: Vec<Arc<dyn DatagramSocket>>,
    pub(super) router: Arc<Router>,
    purpose: Purpose,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To listen; dials may share it as long as it does.
    Listen,
    /// The same, on sockets that the application has supplied.
    ListenOnSupplied,
    /// To be shared by dials.
    Dial,
}

impl UdpPort {
    /// Whether peers are offered to the application.
    pub(super) fn listens(&self) -> bool {
        self.router.admits()
    }

    /// The address, if it has to be taken as it is: a socket of the application may be in another
    /// network namespace, or lead elsewhere, and the machine need not have its address.
    pub(super) fn supplied_address(&self) -> Option<SocketAddr> {
        let is_supplied = self.purpose == Purpose::ListenOnSupplied;
        (is_supplied && !self.local.ip().is_unspecified()).then_some(self.local)
    }

    /// Refuses peers from now on. The sockets are closed with the last connection.
    fn close(&self) {
        self.router.end_when_empty();
    }

    /// The address of this port towards `remote`, if the system sends from there.
    fn towards(&self, remote: SocketAddr) -> Option<SocketAddr> {
        if self.local.is_ipv4() != remote.is_ipv4() {
            return None;
        }
        let source = self.sockets.first()?.source_towards(remote).ok()?;
        let ip = self.local.ip();
        (ip.is_unspecified() || ip == source).then(|| SocketAddr::new(source, self.local.port()))
    }
}

/// Where a connection is dialled from: a port that it shares.
pub(super) struct SharedPort {
    pub(super) socket: Arc<dyn DatagramSocket>,
    pub(super) local: SocketAddr,
    pub(super) on_wildcard: bool,
    pub(super) route: RouteGuard,
    pub(super) dialling: Dialling,
}

/// The tasks of one port.
#[derive(Debug)]
struct Tasks {
    running: AtomicUsize,
    ended: Waiters,
    /// Of the endpoint: [`Ports::changed`].
    changed: Arc<Waiters>,
}

impl Tasks {
    fn new(changed: &Arc<Waiters>) -> Self {
        Self {
            running: AtomicUsize::new(0),
            ended: Waiters::default(),
            changed: Arc::clone(changed),
        }
    }

    fn have_ended(&self) -> bool {
        self.running.load(Ordering::Acquire) == 0
    }

    /// Completes when all of them have ended. Cancel safe.
    async fn end(&self) {
        self.ended.until(|| self.have_ended()).await;
    }
}

/// Counts a task until it has ended and has dropped all that it holds.
struct Running(Arc<Tasks>);

impl Running {
    fn of(tasks: &Arc<Tasks>) -> Self {
        tasks.running.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(tasks))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.ended.wake_all();
            self.0.changed.wake_all();
        }
    }
}

#[derive(Debug, Clone)]
pub(super) enum Port {
    Udp {
        port: Weak<UdpPort>,
        /// Outlives the port while a connection holds it.
        router: Weak<Router>,
    },
    #[cfg(feature = "websocket")]
    WebSocket(Weak<WebSocketPort>),
}

#[derive(Debug)]
struct Entry {
    port: Port,
    tasks: Arc<Tasks>,
    handles: Vec<AbortHandle>,
}

/// The ports of an endpoint. Their tasks are aborted on drop, when neither the application nor a
/// connection holds the endpoint.
#[derive(Debug, Default)]
pub(super) struct Ports {
    book: Mutex<Vec<Entry>>,
    next: AtomicU64,
    /// Woken when a listener has come or gone.
    changed: Arc<Waiters>,
}

impl Ports {
    fn book(&self) -> MutexGuard<'_, Vec<Entry>> {
        // Valid after a panic: no entry is half written.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Woken when a listener has come or gone.
    pub(super) fn changed(&self) -> &Arc<Waiters> {
        &self.changed
    }

    pub(super) fn next_id(&self) -> ListenerId {
        ListenerId(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// The UDP ports whose tasks run.
    fn udp(&self) -> Vec<Arc<UdpPort>> {
        let of_entry = |entry: &Entry| match &entry.port {
            Port::Udp { port, .. } => port.upgrade(),
            #[cfg(feature = "websocket")]
            Port::WebSocket(_) => None,
        };
        self.book().iter().filter_map(of_entry).collect()
    }

    #[cfg(feature = "websocket")]
    pub(super) fn websockets(&self) -> Vec<Arc<WebSocketPort>> {
        let of_entry = |entry: &Entry| match &entry.port {
            Port::Udp { .. } => None,
            Port::WebSocket(port) => port.upgrade(),
        };
        self.book().iter().filter_map(of_entry).collect()
    }

    /// The addresses of the UDP sockets that listen, wildcards as they are.
    pub(super) fn locals(&self) -> Vec<SocketAddr> {
        self.listening().map(|port| port.local).collect()
    }

    /// The UDP ports that listen.
    pub(super) fn listening(&self) -> impl Iterator<Item = Arc<UdpPort>> {
        self.udp().into_iter().filter(|port| port.listens())
    }

    /// Whether no port has a connection.
    pub(super) fn are_idle(&self) -> bool {
        #[cfg(feature = "websocket")]
        if self.websockets().iter().any(|port| !port.is_idle()) {
            return false;
        }
        let has_no_route = |entry: &Entry| match &entry.port {
            Port::Udp { router, .. } => router.upgrade().is_none_or(|router| router.is_empty()),
            #[cfg(feature = "websocket")]
            Port::WebSocket(_) => true,
        };
        self.book().iter().all(has_no_route)
    }

    /// Aborts the tasks and waits until they are gone. Cancel safe: another call continues.
    pub(super) async fn end(&self) {
        let mut all = Vec::new();
        for entry in self.book().iter() {
            entry.handles.iter().for_each(AbortHandle::abort);
            all.push(Arc::clone(&entry.tasks));
        }
        for tasks in all {
            tasks.end().await;
        }
    }
}

impl Drop for Ports {
    fn drop(&mut self) {
        for entry in self.book().iter() {
            entry.handles.iter().for_each(AbortHandle::abort);
        }
    }
}

impl Inner {
    /// Binds the sockets of an address.
    pub(super) fn bind(
        &self,
        address: SocketAddr,
    ) -> Result<Vec<Arc<dyn DatagramSocket>>, BindError> {
        let failed = |source: io::Error| {
            let source = source.into();
            BindError::Socket { address, source }
        };
        let sockets = self.sockets.bind_many(address, self.config.sockets);
        let sockets = sockets.map_err(failed)?;
        match sockets.is_empty() {
            true => Err(failed(io::Error::other("no socket was bound"))),
            false => Ok(sockets),
        }
    }

    /// Listens on sockets of one address.
    pub(super) fn listen_on(
        self: &Arc<Self>,
        address: SocketAddr,
        sockets: Vec<Arc<dyn DatagramSocket>>,
        purpose: Purpose,
    ) -> Result<Listening, BindError> {
        let failed = |source: io::Error| {
            let source = source.into();
            BindError::Socket { address, source }
        };
        let none = || failed(io::Error::other("no socket was bound"));
        let local = sockets.first().ok_or_else(none)?.local_addr();
        let port = self.make_port(local.map_err(failed)?, sockets, purpose);
        self.add_udp(&port).ok_or(BindError::EndpointClosed)
    }

    fn make_port(
        &self,
        local: SocketAddr,
        sockets: Vec<Arc<dyn DatagramSocket>>,
        purpose: Purpose,
    ) -> Arc<UdpPort> {
        let admission = Arc::clone(&self.admission);
        Arc::new(UdpPort {
            id: self.ports.next_id(),
            local,
            sockets,
            // One router for all sockets of an address: the system may assign a peer that changes
            // its address to another socket, and its connection has to be found there too.
            router: Arc::new(Router::new(admission, self.config.max_addresses)),
            purpose,
        })
    }

    fn add_udp(self: &Arc<Self>, port: &Arc<UdpPort>) -> Option<Listening> {
        let of_port = Port::Udp {
            port: Arc::downgrade(port),
            router: Arc::downgrade(&port.router),
        };
        let tasks = port.sockets.iter();
        let tasks = tasks.map(|socket| {
            let socket = Arc::clone(socket);
            receive(Arc::clone(port), socket, Arc::downgrade(self))
        });
        self.add(port.id, port.local, of_port, tasks.collect())
    }

    /// Adds a port with its tasks; `None` if the endpoint is closed.
    pub(super) fn add<F: Future<Output = ()> + Send + 'static>(
        self: &Arc<Self>,
        id: ListenerId,
        local: SocketAddr,
        port: Port,
        futures: Vec<F>,
    ) -> Option<Listening> {
        let mut book = self.ports.book();
        // Under the lock that the end takes after the flag: it sees this port, or this sees the
        // flag.
        if self.is_closed() {
            return None;
        }
        book.retain(|entry| !entry.tasks.have_ended());
        let tasks = Arc::new(Tasks::new(&self.ports.changed));
        let spawn = |future| {
            let running = Running::of(&tasks);
            connection::spawn("anabranch port", future, running).abort_handle()
        };
        let handles = futures.into_iter().map(spawn).collect();
        book.push(Entry {
            port: port.clone(),
            tasks: Arc::clone(&tasks),
            handles,
        });
        drop(book);
        self.ports.changed.wake_all();
        Some(Listening {
            id,
            local,
            port,
            tasks,
            endpoint: Arc::downgrade(self),
        })
    }

    /// A route for a dial from a port that listens, or else from one that dials share. `None` if
    /// the dial needs a port of its own: another connection has this pair of addresses, or it goes
    /// to the port itself.
    ///
    /// # Errors
    /// Those of the system, if no port can be bound.
    pub(super) fn share_port(
        self: &Arc<Self>,
        remote: SocketAddr,
        credentials: &ClientCredentials,
    ) -> io::Result<Option<SharedPort>> {
        if is_link_local(remote) {
            // Its address arrives with another scope, and is not found in a table.
            return Ok(None);
        }
        let ports = self.ports.udp();
        let listening = ports.iter().filter(|port| port.listens());
        let dialling = ports.iter().filter(|port| port.purpose == Purpose::Dial);
        for port in listening.chain(dialling) {
            let Some(local) = port.towards(remote) else {
                continue;
            };
            if local == remote {
                return Ok(None);
            }
            match share(port, local, remote, credentials) {
                Ok(shared) => return Ok(Some(shared)),
                Err(Unshared::Taken) => return Ok(None),
                // Its last connection has just ended.
                Err(Unshared::Over) => {}
            }
        }
        let socket = self.sockets.bind(SocketAddr::new(wildcard(remote), 0))?;
        let port = self.make_port(socket.local_addr()?, vec![socket], Purpose::Dial);
        let Some(local) = port.towards(remote) else {
            return Err(io::ErrorKind::NetworkUnreachable.into());
        };
        // Before its task begins, which ends when there is no connection.
        let shared = share(&port, local, remote, credentials);
        port.router.end_when_empty();
        let is_added = self.add_udp(&port).is_some();
        Ok(shared.ok().filter(|_| is_added))
    }

    /// Sends a datagram that no peer answers from a port that listens.
    pub(super) fn punch(&self, remote: SocketAddr) -> Result<(), PunchError> {
        let ports = self.ports.udp();
        let mut ports = ports.iter().filter(|port| port.listens());
        let socket = ports.find_map(|port| {
            port.towards(remote)?;
            port.sockets.first()
        });
        let socket = socket.ok_or(PunchError::NoListener { remote })?;
        let sent = socket.try_send(&Transmit::new(remote, &indication()));
        sent.map_err(|source| PunchError::Socket {
            remote,
            source: source.into(),
        })
    }

    /// Closes all listeners.
    pub(super) fn close_listeners(&self) {
        for port in self.ports.udp() {
            port.close();
        }
        #[cfg(feature = "websocket")]
        for port in self.ports.websockets() {
            port.close();
        }
        self.ports.changed.wake_all();
    }
}

fn is_link_local(remote: SocketAddr) -> bool {
    matches!(remote, SocketAddr::V6(remote) if remote.ip().is_unicast_link_local())
}

fn share(
    port: &Arc<UdpPort>,
    local: SocketAddr,
    remote: SocketAddr,
    credentials: &ClientCredentials,
) -> Result<SharedPort, Unshared> {
    let socket = Arc::clone(port.sockets.first().ok_or(Unshared::Over)?);
    let (route, dialling) = port.router.dial(Instant::now(), remote, credentials)?;
    Ok(SharedPort {
        socket,
        local,
        on_wildcard: port.local.ip().is_unspecified(),
        route,
        dialling,
    })
}

/// One of the addresses that an endpoint listens on: see
/// [`Endpoint::listen`](super::Endpoint::listen).
///
/// # Drop
/// Changes nothing: the endpoint listens on.
#[derive(Clone)]
pub struct Listening {
    id: ListenerId,
    local: SocketAddr,
    port: Port,
    tasks: Arc<Tasks>,
    /// Weak: it must not hold the endpoint.
    endpoint: Weak<Inner>,
}

impl Listening {
    /// Which of the listeners it is.
    pub fn id(&self) -> ListenerId {
        self.id
    }

    /// The address of the socket, a wildcard as it is.
    pub fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// The addresses that peers can dial now, as
    /// [`Endpoint::addresses`](super::Endpoint::addresses) has them: none while the machine does
    /// not have the address, and once this is closed.
    pub fn addresses(&self) -> Vec<PeerAddress> {
        let Some(endpoint) = self.endpoint.upgrade() else {
            return Vec::new();
        };
        match &self.port {
            Port::Udp { port, .. } => match port.upgrade().filter(|port| port.listens()) {
                Some(port) => endpoint.addresses_of(&port).map(Into::into).collect(),
                None => Vec::new(),
            },
            #[cfg(feature = "websocket")]
            Port::WebSocket(port) => port
                .upgrade()
                .map_or_else(Vec::new, |port| port.addresses()),
        }
    }

    /// Stops listening on this address, and refuses the peers that wait to be accepted there.
    /// Connections live on. The port is free when [`Self::closed`] completes.
    pub fn close(&self) {
        match &self.port {
            Port::Udp { port, .. } => {
                if let Some(port) = port.upgrade() {
                    port.close();
                }
            }
            #[cfg(feature = "websocket")]
            Port::WebSocket(port) => {
                if let Some(port) = port.upgrade() {
                    port.close();
                }
            }
        }
        if let Some(endpoint) = self.endpoint.upgrade() {
            endpoint.incoming.refuse_those_of(self.id);
            endpoint.ports.changed.wake_all();
        }
    }

    /// Waits until the socket is closed: after [`Self::close`] that is at once for a WebSocket
    /// listener, and with the last of its connections for one on UDP, whose socket they share. The
    /// end of the endpoint closes it too.
    ///
    /// # Cancel safety
    /// Nothing changes if the future is dropped.
    pub async fn closed(&self) {
        self.tasks.end().await;
    }
}

impl fmt::Debug for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listening")
            .field("id", &self.id)
            .field("local", &self.local)
            .finish_non_exhaustive()
    }
}
