//! The transport.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use anabranch::endpoint::DialOptions;
use anabranch::{Address, Endpoint, Incoming};
use futures_core::Stream;
use futures_util::FutureExt;
use futures_util::stream::SelectAll;
use libp2p_core::connection::Endpoint as Role;
use libp2p_core::multiaddr::Multiaddr;
use libp2p_core::transport::{DialOpts, ListenerId, PortUse, TransportError, TransportEvent};
use libp2p_identity::{Keypair, PeerId};

use crate::address;
use crate::config::{Config, ConfigError};
use crate::connection::Connection;
use crate::error::Error;
use crate::listener::{Event, Listener, Upgrade};
use crate::punching::{Arrival, Expected, punch};

/// WebRTC Direct as a [`libp2p_core::Transport`]: authenticated and multiplexed, so that nothing is
/// left to upgrade.
///
/// It listens for version 1 and 2 on `/ip4|ip6/<ip>/udp/<port>/webrtc-direct`, a wildcard on every
/// interface of its family, also on those that appear later. The addresses that it announces carry
/// the `/certhash` that diallers need.
///
/// A dial with [`PortUse::Reuse`], the default of the swarm, goes out from the port of a listener,
/// so that the peer sees the address at which this node can be reached. A dial as a listener
/// punches a hole for the peer, which has to dial meanwhile: so DCUtR works between two nodes of
/// this crate. All listeners and dials count against the same limits.
pub struct Transport {
    config: Config,
    listeners: SelectAll<Listener>,
    /// Made with the first use, which is within a runtime.
    endpoint: Option<Endpoint>,
    expected: Expected,
    /// Peers whose listener has announced no address yet. Each holds its place in the limit of
    /// handshakes.
    early: VecDeque<Incoming>,
    waker: Option<Waker>,
}

impl Transport {
    /// The transport with default settings, for the node with this key.
    ///
    /// # Errors
    /// [`ConfigError`] if the key can not be used.
    pub fn new(keypair: &Keypair) -> Result<Self, ConfigError> {
        Ok(Self::with_config(Config::new(keypair)?))
    }

    /// The transport with these settings.
    pub fn with_config(config: Config) -> Self {
        Self {
            config,
            listeners: SelectAll::new(),
            endpoint: None,
            expected: Expected::default(),
            early: VecDeque::new(),
            waker: None,
        }
    }

    fn endpoint(&mut self) -> Result<Endpoint, Error> {
        if let Some(endpoint) = &self.endpoint {
            return Ok(endpoint.clone());
        }
        let endpoint = self.config.builder().dial_only()?;
        self.endpoint = Some(endpoint.clone());
        self.wake();
        Ok(endpoint)
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn dial_as_listener(&mut self, address: &Address) -> Result<Upgrade, Error> {
        let endpoint = self.endpoint()?;
        let remote = address.socket_addr();
        let peer = address.peer_id();
        let peer = peer.and_then(|peer| PeerId::from_bytes(&peer.to_bytes()).ok());
        let arrival = self.expected.expect(remote, peer)?;
        let limit = self.config.endpoint.connect_timeout;
        let dial = async move {
            match punch(&endpoint, remote, arrival, limit).await? {
                Arrival::First(incoming) => Connection::new(incoming.accept().await?),
                Arrival::Accepted(peer, connection) => Ok((peer, connection)),
            }
        };
        Ok(dial.boxed())
    }

    /// A peer that has arrived.
    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let Some(endpoint) = &self.endpoint else {
            return Poll::Pending;
        };
        let of = |incoming: &Incoming| {
            let is_its = |listener: &&Listener| listener.accepts_from(incoming.listener());
            self.listeners.iter().find(is_its)
        };
        let is_due = |incoming: &Incoming| of(incoming).is_none_or(Listener::is_ready);
        loop {
            let held = self.early.iter().position(is_due);
            let incoming = match held.and_then(|index| self.early.remove(index)) {
                Some(incoming) => incoming,
                None => match ready!(endpoint.poll_accept(cx)) {
                    Some(incoming) => match self.expected.take_first(incoming) {
                        Some(incoming) if is_due(&incoming) => incoming,
                        Some(incoming) => {
                            self.early.push_back(incoming);
                            continue;
                        }
                        None => continue,
                    },
                    None => return Poll::Pending,
                },
            };
            let Some(listener) = of(&incoming) else {
                // It has just been removed.
                incoming.refuse();
                continue;
            };
            let local_addr = listener.address(incoming.local_address().ip());
            let remote = incoming.remote_address();
            let listener_id = listener.id;
            // Holds the endpoint: the transport may be dropped meanwhile.
            let endpoint = endpoint.clone();
            let expected = self.expected.clone();
            let upgrade = async move {
                let connection = incoming.accept().await;
                drop(endpoint);
                expected.take_accepted(remote, Connection::new(connection?)?)
            };
            return Poll::Ready(TransportEvent::Incoming {
                listener_id,
                upgrade: upgrade.boxed(),
                local_addr,
                send_back_addr: address::of_socket(remote),
            });
        }
    }
}

/// The swarm compares the peer with the one that it expects, and reports both.
fn without_peer_id(address: &Address) -> Address {
    let all = address.certhashes().iter().copied();
    all.fold(Address::new(address.socket_addr()), Address::with_certhash)
}

impl libp2p_core::Transport for Transport {
    type Output = (PeerId, Connection);
    type Error = Error;
    type ListenerUpgrade = Upgrade;
    type Dial = Upgrade;

    fn listen_on(
        &mut self,
        id: ListenerId,
        addr: Multiaddr,
    ) -> Result<(), TransportError<Self::Error>> {
        let Some(address) = address::parse(&addr) else {
            return Err(TransportError::MultiaddrNotSupported(addr));
        };
        let endpoint = self.endpoint().map_err(TransportError::Other)?;
        let listening = endpoint.listen(address.socket_addr());
        let listening = listening.map_err(|error| TransportError::Other(Error::from(error)))?;
        let certhash = endpoint.certificate().fingerprint();
        let listener = Listener::new(id, listening, certhash).map_err(TransportError::Other)?;
        self.listeners.push(listener);
        self.wake();
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        let listener = self.listeners.iter_mut().find(|listener| listener.id == id);
        listener.is_some_and(Listener::close)
    }

    fn dial(
        &mut self,
        addr: Multiaddr,
        opts: DialOpts,
    ) -> Result<Self::Dial, TransportError<Self::Error>> {
        let address = match opts.role {
            Role::Dialer => address::parse_remote(&addr),
            Role::Listener => address::parse_dialler(&addr),
        };
        let Some(address) = address else {
            return Err(TransportError::MultiaddrNotSupported(addr));
        };
        if opts.role == Role::Listener {
            let dial = self.dial_as_listener(&address);
            return dial.map_err(TransportError::Other);
        }
        let endpoint = self.endpoint().map_err(TransportError::Other)?;
        let options = DialOptions::from(self.config.version).with_port(match opts.port_use {
            PortUse::Reuse => anabranch::endpoint::PortUse::Reuse,
            PortUse::New => anabranch::endpoint::PortUse::New,
        });
        let address = without_peer_id(&address);
        let dial = async move { Connection::new(endpoint.connect_with(&address, options).await?) };
        Ok(dial.boxed())
    }

    fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        let this = self.get_mut();
        if let Poll::Ready(Some(event)) = Pin::new(&mut this.listeners).poll_next(cx) {
            return Poll::Ready(event);
        }
        let incoming = this.poll_incoming(cx);
        if incoming.is_pending() {
            this.waker = Some(cx.waker().clone());
        }
        incoming
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport")
            .field("listeners", &self.listeners.len())
            .finish_non_exhaustive()
    }
}
