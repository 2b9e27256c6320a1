//! A listener: an address to listen on, and the addresses at which it can be dialled.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use anabranch::Fingerprint;
use anabranch::endpoint::Listening;
use futures_core::Stream;
use futures_util::future::BoxFuture;
use if_watch::IfEvent;
use if_watch::tokio::IfWatcher;
use libp2p_core::multiaddr::Multiaddr;
use libp2p_core::transport::{ListenerId, TransportEvent};
use libp2p_identity::PeerId;

use crate::address;
use crate::connection::Connection;
use crate::error::Error;

/// The handshake with a peer.
pub(crate) type Upgrade = BoxFuture<'static, Result<(PeerId, Connection), Error>>;

pub(crate) type Event = TransportEvent<Upgrade, Error>;

/// Events in this order: NewAddress, AddressExpired, ListenerClosed. Ends after the last.
pub(crate) struct Listener {
    pub(crate) id: ListenerId,
    listening: Listening,
    certhash: Fingerprint,
    is_closed: bool,
    /// `None` once they can not be watched, and after the close.
    interfaces: Option<IfWatcher>,
    /// Addresses that were announced and have not expired.
    announced: Vec<IpAddr>,
    /// Whether there ever was one.
    was_announced: bool,
    events: VecDeque<Event>,
    waker: Option<Waker>,
}

impl Listener {
    pub(crate) fn new(
        id: ListenerId,
        listening: Listening,
        certhash: Fingerprint,
    ) -> Result<Self, Error> {
        let ip = listening.local_address().ip();
        let is_wildcard = ip.is_unspecified();
        let interfaces = match IfWatcher::new() {
            Ok(watcher) => Some(watcher),
            // Its address is known without one.
            Err(error) if !is_wildcard => {
                tracing::warn!(%ip, %error, "interfaces not watched");
                None
            }
            Err(error) => {
                listening.close();
                return Err(Error::Interfaces(error.into()));
            }
        };
        let mut listener = Self {
            id,
            listening,
            certhash,
            is_closed: false,
            interfaces,
            announced: Vec::new(),
            was_announced: false,
            events: VecDeque::new(),
            waker: None,
        };
        if !is_wildcard {
            listener.announce(ip);
        }
        Ok(listener)
    }

    /// Whether peers of this listener of anabranch are reported here.
    pub(crate) fn accepts_from(&self, inner: anabranch::endpoint::ListenerId) -> bool {
        !self.is_closed && self.listening.id() == inner
    }

    /// Whether peers may be reported: after the address at which they arrive. A peer may be faster
    /// than the watcher of interfaces.
    pub(crate) fn is_ready(&self) -> bool {
        self.was_announced || self.interfaces.is_none()
    }

    fn announce(&mut self, ip: IpAddr) {
        let local = self.listening.local_address().ip();
        let is_ours = match local.is_unspecified() {
            true => address::is_same_family(ip, local),
            // It comes back after it has expired.
            false => ip == local,
        };
        if !is_ours || self.announced.contains(&ip) {
            return;
        }
        self.announced.push(ip);
        self.was_announced = true;
        self.events.push_back(TransportEvent::NewAddress {
            listener_id: self.id,
            listen_addr: self.address(ip),
        });
    }

    fn expire(&mut self, ip: IpAddr) {
        let Some(index) = self.announced.iter().position(|other| *other == ip) else {
            return;
        };
        self.announced.swap_remove(index);
        self.events.push_back(TransportEvent::AddressExpired {
            listener_id: self.id,
            listen_addr: self.address(ip),
        });
    }

    /// The address with the certhash.
    pub(crate) fn address(&self, ip: IpAddr) -> Multiaddr {
        let socket = SocketAddr::new(ip, self.listening.local_address().port());
        address::of_listener(socket, self.certhash)
    }

    /// Stops listening. Connections and handshakes live on. Returns whether it was open.
    pub(crate) fn close(&mut self) -> bool {
        if self.is_closed {
            return false;
        }
        self.is_closed = true;
        for ip in self.announced.clone() {
            self.expire(ip);
        }
        self.events.push_back(TransportEvent::ListenerClosed {
            listener_id: self.id,
            reason: Ok(()),
        });
        self.interfaces = None;
        // Peers that wait are told, and dial elsewhere.
        self.listening.close();
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        true
    }

    /// `is_kept`: another network has the address of the event. When only the length of the prefix
    /// changes, the new network is up before the old one is down.
    fn on_interface(&mut self, event: IfEvent, is_kept: bool) {
        match event {
            IfEvent::Up(net) => self.announce(net.addr()),
            IfEvent::Down(net) if !is_kept => self.expire(net.addr()),
            IfEvent::Down(_) => {}
        }
    }

    fn poll_interfaces(&mut self, cx: &mut Context<'_>) {
        while let Some(interfaces) = &mut self.interfaces
            && let Poll::Ready(event) = interfaces.poll_if_event(cx)
        {
            match event {
                Ok(event) => {
                    let (IfEvent::Up(net) | IfEvent::Down(net)) = event;
                    let is_kept = interfaces.iter().any(|other| other.addr() == net.addr());
                    self.on_interface(event, is_kept);
                }
                Err(error) => {
                    self.events.push_back(TransportEvent::ListenerError {
                        listener_id: self.id,
                        error: Error::Interfaces(error.into()),
                    });
                    // It would fail again at once, for ever. The addresses stay.
                    self.interfaces = None;
                }
            }
        }
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
        if this.is_closed {
            return Poll::Ready(None);
        }
        this.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};

    use super::*;

    /// The address of a listening event, and whether it is new.
    fn change(listener: &mut Listener) -> Option<(bool, Multiaddr)> {
        match listener.next().now_or_never()?? {
            TransportEvent::NewAddress { listen_addr, .. } => Some((true, listen_addr)),
            TransportEvent::AddressExpired { listen_addr, .. } => Some((false, listen_addr)),
            _ => panic!("another event"),
        }
    }

    #[tokio::test]
    async fn the_address_of_one_interface_expires_and_comes_back_with_it() {
        let endpoint = anabranch::Endpoint::builder().dial_only();
        let endpoint = endpoint.expect("defaults work");
        let listening = endpoint.listen(SocketAddr::from(([127, 0, 0, 1], 0)));
        let listening = listening.expect("a free port");
        let certhash = endpoint.certificate().fingerprint();
        let listener = Listener::new(ListenerId::next(), listening, certhash);
        let mut listener = listener.expect("it is bound");
        // What the machine has is in the way of what the test says.
        listener.interfaces = None;
        let own = listener.address(IpAddr::from([127, 0, 0, 1]));
        assert_eq!(change(&mut listener), Some((true, own.clone())));
        let net = |text: &str| text.parse().expect("a network");
        listener.on_interface(IfEvent::Up(net("127.0.0.1/8")), true);
        listener.on_interface(IfEvent::Up(net("192.0.2.1/24")), true);
        listener.on_interface(IfEvent::Down(net("192.0.2.1/24")), false);
        listener.on_interface(IfEvent::Down(net("127.0.0.1/16")), true);
        assert_eq!(change(&mut listener), None, "addresses of other listeners");
        listener.on_interface(IfEvent::Down(net("127.0.0.1/8")), false);
        assert_eq!(change(&mut listener), Some((false, own.clone())));
        assert_eq!(change(&mut listener), None);
        listener.on_interface(IfEvent::Up(net("127.0.0.1/8")), true);
        assert_eq!(change(&mut listener), Some((true, own)));
        endpoint.close().await;
    }
}
