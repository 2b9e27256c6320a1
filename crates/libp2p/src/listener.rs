//! A listener: its socket, and the addresses that it has.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use anabranch::Endpoint;
use futures_core::Stream;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use if_watch::IfEvent;
use if_watch::tokio::IfWatcher;
use libp2p_core::transport::{ListenerId, TransportEvent};
use libp2p_identity::PeerId;

use crate::address;
use crate::connection::Connection;
use crate::error::Error;

/// The handshake with a peer.
pub(crate) type Upgrade = BoxFuture<'static, Result<(PeerId, Connection), Error>>;

type Event = TransportEvent<Upgrade, Error>;

/// Events in this order: NewAddress, Incoming, AddressExpired, ListenerClosed.
pub(crate) struct Listener {
    pub(crate) id: ListenerId,
    /// Gone once the listener is closed: connections live on.
    endpoint: Option<Endpoint>,
    local: SocketAddr,
    /// For a wildcard.
    interfaces: Option<IfWatcher>,
    /// Addresses that were announced and have not expired.
    announced: Vec<IpAddr>,
    events: VecDeque<Event>,
    waker: Option<Waker>,
}

impl Listener {
    pub(crate) fn new(id: ListenerId, endpoint: Endpoint) -> Result<Self, Error> {
        let none = || std::io::Error::other("no socket was bound");
        let local = endpoint.local_addresses().first().copied();
        let local = local.ok_or_else(|| Error::Interfaces(none()))?;
        let interfaces = if local.ip().is_unspecified() {
            Some(IfWatcher::new().map_err(Error::Interfaces)?)
        } else {
            None
        };
        let is_wildcard = interfaces.is_some();
        let mut listener = Self {
            id,
            endpoint: Some(endpoint),
            local,
            interfaces,
            announced: Vec::new(),
            events: VecDeque::new(),
            waker: None,
        };
        if !is_wildcard {
            listener.announce(local.ip());
        }
        Ok(listener)
    }

    fn announce(&mut self, ip: IpAddr) {
        let is_ours = address::is_same_family(ip, self.local.ip());
        if !is_ours || self.announced.contains(&ip) {
            return;
        }
        if let Some(listen_addr) = self.address(ip) {
            self.announced.push(ip);
            self.events.push_back(TransportEvent::NewAddress {
                listener_id: self.id,
                listen_addr,
            });
        }
    }

    fn expire(&mut self, ip: IpAddr) {
        let Some(index) = self.announced.iter().position(|other| *other == ip) else {
            return;
        };
        self.announced.swap_remove(index);
        if let Some(listen_addr) = self.address(ip) {
            self.events.push_back(TransportEvent::AddressExpired {
                listener_id: self.id,
                listen_addr,
            });
        }
    }

    /// The address with the certhash, unless the listener is closed.
    fn address(&self, ip: IpAddr) -> Option<libp2p_core::Multiaddr> {
        let endpoint = self.endpoint.as_ref()?;
        let socket = SocketAddr::new(ip, self.local.port());
        Some(address::of_listener(socket, endpoint.certificate()))
    }

    /// Stops listening. Connections and handshakes live on. Returns whether it was open.
    pub(crate) fn close(&mut self) -> bool {
        if self.endpoint.is_none() {
            return false;
        }
        for ip in self.announced.clone() {
            self.expire(ip);
        }
        self.events.push_back(TransportEvent::ListenerClosed {
            listener_id: self.id,
            reason: Ok(()),
        });
        self.interfaces = None;
        if let Some(endpoint) = self.endpoint.take() {
            // Peers that wait are told, and dial elsewhere.
            endpoint.stop_accepting();
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        true
    }

    fn poll_interfaces(&mut self, cx: &mut Context<'_>) {
        while let Some(interfaces) = &mut self.interfaces
            && let Poll::Ready(event) = interfaces.poll_if_event(cx)
        {
            match event {
                Ok(IfEvent::Up(net)) => self.announce(net.addr()),
                Ok(IfEvent::Down(net)) => self.expire(net.addr()),
                Err(error) => {
                    self.events.push_back(TransportEvent::ListenerError {
                        listener_id: self.id,
                        error: Error::Interfaces(error),
                    });
                    // It would fail again at once, for ever. The addresses stay.
                    self.interfaces = None;
                }
            }
        }
    }

    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let Some(endpoint) = &self.endpoint else {
            return Poll::Pending;
        };
        let Poll::Ready(Some(incoming)) = endpoint.poll_accept(cx) else {
            return Poll::Pending;
        };
        let (local, remote) = (incoming.local_address(), incoming.remote_address());
        // The concrete address, which was announced.
        let local_addr = self.address(local.ip());
        // Holds the endpoint: its listener may be removed meanwhile.
        let endpoint = endpoint.clone();
        let upgrade = async move {
            let connection = incoming.accept().await;
            drop(endpoint);
            Connection::new(connection?)
        };
        Poll::Ready(TransportEvent::Incoming {
            listener_id: self.id,
            upgrade: upgrade.boxed(),
            local_addr: local_addr.unwrap_or_else(|| address::of_socket(local)),
            send_back_addr: address::of_socket(remote),
        })
    }
}

impl Stream for Listener {
    type Item = Event;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let this = self.get_mut();
        this.poll_interfaces(cx);
        if let Some(event) = this.events.pop_front() {
            return Poll::Ready(Some(event));
        }
        if this.endpoint.is_none() {
            return Poll::Ready(None);
        }
        // A peer may be faster than the watcher: it is accepted once an address is announced, or
        // none can be any more.
        if (!this.announced.is_empty() || this.interfaces.is_none())
            && let Poll::Ready(event) = this.poll_incoming(cx)
        {
            return Poll::Ready(Some(event));
        }
        this.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}
