//! The transport.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use anabranch::{Address, Endpoint};
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
use crate::listener::{Listener, Upgrade};

/// WebRTC Direct as a [`libp2p_core::Transport`]: authenticated and multiplexed, so that nothing is
/// left to upgrade.
///
/// It listens for version 1 and 2 on `/ip4|ip6/<ip>/udp/<port>/webrtc-direct`, a wildcard on every
/// interface of its family, also on those that appear later. The addresses that it announces carry
/// the `/certhash` that diallers need. It dials from a port of its own for each connection. Hole
/// punching, which is a dial as a listener from a new port, is not supported.
pub struct Transport {
    config: Config,
    listeners: SelectAll<Listener>,
    dialler: Option<Endpoint>,
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
            dialler: None,
            waker: None,
        }
    }

    fn dialler(&mut self) -> Result<Endpoint, Error> {
        if let Some(dialler) = &self.dialler {
            return Ok(dialler.clone());
        }
        let dialler = self.config.builder().dial_only()?;
        self.dialler = Some(dialler.clone());
        Ok(dialler)
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
        let bound = self.config.builder().bind_now(&[address.socket_addr()]);
        let endpoint = bound.map_err(|error| TransportError::Other(Error::from(error)))?;
        let listener = Listener::new(id, endpoint).map_err(TransportError::Other)?;
        self.listeners.push(listener);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
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
        let Some(address) = address::parse_remote(&addr) else {
            return Err(TransportError::MultiaddrNotSupported(addr));
        };
        if opts.role == Role::Listener && opts.port_use == PortUse::New {
            return Err(TransportError::Other(Error::HolePunching));
        }
        let endpoint = self.dialler().map_err(TransportError::Other)?;
        let version = self.config.version;
        let address = without_peer_id(&address);
        let dial = async move { Connection::new(endpoint.connect_with(&address, version).await?) };
        Ok(dial.boxed())
    }

    fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        let this = self.get_mut();
        match Pin::new(&mut this.listeners).poll_next(cx) {
            Poll::Ready(Some(event)) => Poll::Ready(event),
            // There is no listener yet.
            Poll::Ready(None) | Poll::Pending => {
                this.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport")
            .field("listeners", &self.listeners.len())
            .finish_non_exhaustive()
    }
}
