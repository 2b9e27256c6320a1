//! External addresses that carry the certhash of the transport.

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::task::{Context, Poll};

use anabranch::{Address, Fingerprint};
use libp2p_core::Endpoint;
use libp2p_core::multiaddr::{Multiaddr, Protocol};
use libp2p_core::transport::PortUse;
use libp2p_identity::PeerId;
use libp2p_swarm::behaviour::FromSwarm;
use libp2p_swarm::{
    ConnectionDenied, ConnectionId, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
    ToSwarm,
};

use crate::address;

/// A behaviour whose external addresses can be dialled: it completes the webrtc-direct addresses
/// that the inner behaviour reports as external with the certhash of this node. Made for identify:
///
/// ```
/// # use libp2p_identity::Keypair;
/// use anabranch_libp2p::WithCerthash;
///
/// # let keypair = Keypair::generate_ed25519();
/// let config = libp2p_identify::Config::new("/app/1.0.0".to_owned(), keypair.public());
/// let identify = WithCerthash::new(libp2p_identify::Behaviour::new(config));
/// ```
///
/// Peers observe `/ip4/<ip>/udp/<port>/webrtc-direct`, which nobody can dial without the
/// certificate hash, and identify passes that on as it is. Through this wrapper AutoNAT tests,
/// DCUtR offers, and identify and Kademlia announce the complete address.
///
/// # Candidates
/// - The certhash is that of the listen addresses. Without a listener of the family of the observed
///   address the node can not be reached there, and the candidate is dropped.
/// - A port that is none of a listener is either that of a NAT that changes ports, or of a dial
///   that did not reuse the port of the listener. Both candidates are reported: the observed
///   address, and its IP address with the port of every listener.
/// - What is observed over a relay is dropped. AutoNAT would test it: the server dials the node by
///   the relay, fails if it is the relay itself, and its Kademlia then forgets the address that the
///   reservation has confirmed.
/// - Addresses of other transports pass unchanged.
#[derive(Debug)]
pub struct WithCerthash<B> {
    inner: B,
    listeners: HashSet<Listener>,
    /// Further candidates of the last observed address.
    candidates: VecDeque<Multiaddr>,
}

/// A listen address of the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Listener {
    socket: SocketAddr,
    certhash: Fingerprint,
}

impl Listener {
    fn parse(address: &Multiaddr) -> Option<Self> {
        let address = address::parse_remote(address)?;
        Some(Self {
            socket: address.socket_addr(),
            certhash: address.certhash()?,
        })
    }

    /// Whether datagrams to this address of the node may arrive at the listener.
    fn is_reached_by(&self, observed: SocketAddr) -> bool {
        let (own, observed) = (self.socket.ip(), observed.ip());
        address::is_same_family(own, observed) && own.is_loopback() == observed.is_loopback()
    }
}

/// Whether the address was observed over a relay: that of the circuit, or a peer id alone.
fn is_relayed(observed: &Multiaddr) -> bool {
    let mut protocols = observed.iter();
    matches!(protocols.next(), None | Some(Protocol::P2p(_)))
        || protocols.any(|protocol| protocol == Protocol::P2pCircuit)
}

impl<B> WithCerthash<B> {
    /// Wraps a behaviour.
    pub fn new(inner: B) -> Self {
        Self {
            inner,
            listeners: HashSet::new(),
            candidates: VecDeque::new(),
        }
    }

    /// The wrapped behaviour.
    pub fn get_ref(&self) -> &B {
        &self.inner
    }

    /// The wrapped behaviour, mutably.
    pub fn get_mut(&mut self) -> &mut B {
        &mut self.inner
    }

    /// Returns the wrapped behaviour.
    pub fn into_inner(self) -> B {
        self.inner
    }

    /// The socket of a webrtc-direct address; `None` for an address of another kind.
    fn observed(address: &Multiaddr) -> Option<SocketAddr> {
        address::parse(address).as_ref().map(Address::socket_addr)
    }

    /// The addresses at which peers that dial an observed address may reach a listener.
    fn reachable_at(&self, observed: SocketAddr) -> Vec<Multiaddr> {
        if observed.port() == 0 || observed.ip().is_unspecified() {
            return Vec::new();
        }
        let reached = |listener: &&Listener| listener.is_reached_by(observed);
        let reached: Vec<&Listener> = self.listeners.iter().filter(reached).collect();
        let is_reused = |listener: &&&Listener| listener.socket.port() == observed.port();
        if let Some(listener) = reached.iter().find(is_reused) {
            return vec![address::of_listener(observed, listener.certhash)];
        }
        let mut sockets: Vec<(SocketAddr, Fingerprint)> = Vec::new();
        for listener in reached {
            for port in [observed.port(), listener.socket.port()] {
                let candidate = (SocketAddr::new(observed.ip(), port), listener.certhash);
                // A wildcard has one port on many addresses.
                if !sockets.contains(&candidate) {
                    sockets.push(candidate);
                }
            }
        }
        let of_socket = |(socket, certhash)| address::of_listener(socket, certhash);
        sockets.into_iter().map(of_socket).collect()
    }

    /// The external address with the certhash of this node.
    fn completed(&self, external: Multiaddr) -> Multiaddr {
        let Some(socket) = Self::observed(&external) else {
            return external;
        };
        let mut listeners = self.listeners.iter();
        match listeners.find(|listener| listener.is_reached_by(socket)) {
            Some(listener) => address::of_listener(socket, listener.certhash),
            None => external,
        }
    }
}

impl<B: NetworkBehaviour> NetworkBehaviour for WithCerthash<B> {
    type ConnectionHandler = B::ConnectionHandler;
    type ToSwarm = B::ToSwarm;

    fn handle_pending_inbound_connection(
        &mut self,
        connection_id: ConnectionId,
        local_addr: &Multiaddr,
        remote_addr: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.inner
            .handle_pending_inbound_connection(connection_id, local_addr, remote_addr)
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection_id: ConnectionId,
        peer: PeerId,
        local_addr: &Multiaddr,
        remote_addr: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner.handle_established_inbound_connection(
            connection_id,
            peer,
            local_addr,
            remote_addr,
        )
    }

    fn handle_pending_outbound_connection(
        &mut self,
        connection_id: ConnectionId,
        maybe_peer: Option<PeerId>,
        addresses: &[Multiaddr],
        effective_role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.inner.handle_pending_outbound_connection(
            connection_id,
            maybe_peer,
            addresses,
            effective_role,
        )
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection_id: ConnectionId,
        peer: PeerId,
        addr: &Multiaddr,
        role_override: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner.handle_established_outbound_connection(
            connection_id,
            peer,
            addr,
            role_override,
            port_use,
        )
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match &event {
            FromSwarm::NewListenAddr(new) => self.listeners.extend(Listener::parse(new.addr)),
            FromSwarm::ExpiredListenAddr(expired) => {
                if let Some(listener) = Listener::parse(expired.addr) {
                    self.listeners.remove(&listener);
                }
            }
            _ => {}
        }
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(
        &mut self,
        peer_id: PeerId,
        connection_id: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        self.inner
            .on_connection_handler_event(peer_id, connection_id, event);
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            if let Some(candidate) = self.candidates.pop_front() {
                return Poll::Ready(ToSwarm::NewExternalAddrCandidate(candidate));
            }
            let event = match std::task::ready!(self.inner.poll(cx)) {
                ToSwarm::NewExternalAddrCandidate(observed) if is_relayed(&observed) => continue,
                ToSwarm::NewExternalAddrCandidate(observed) => match Self::observed(&observed) {
                    Some(socket) => {
                        self.candidates.extend(self.reachable_at(socket));
                        continue;
                    }
                    None => ToSwarm::NewExternalAddrCandidate(observed),
                },
                ToSwarm::ExternalAddrConfirmed(external) => {
                    ToSwarm::ExternalAddrConfirmed(self.completed(external))
                }
                ToSwarm::ExternalAddrExpired(external) => {
                    ToSwarm::ExternalAddrExpired(self.completed(external))
                }
                event => event,
            };
            return Poll::Ready(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::task::noop_waker;
    use libp2p_core::transport::ListenerId;
    use libp2p_swarm::dummy;
    use libp2p_swarm::{ExpiredListenAddr, NewListenAddr};

    use super::*;

    /// Reports these addresses.
    #[derive(Default)]
    struct Observer {
        candidates: VecDeque<Multiaddr>,
        confirmed: VecDeque<Multiaddr>,
    }

    impl NetworkBehaviour for Observer {
        type ConnectionHandler = dummy::ConnectionHandler;
        type ToSwarm = Infallible;

        fn handle_established_inbound_connection(
            &mut self,
            _: ConnectionId,
            _: PeerId,
            _: &Multiaddr,
            _: &Multiaddr,
        ) -> Result<THandler<Self>, ConnectionDenied> {
            Ok(dummy::ConnectionHandler)
        }

        fn handle_established_outbound_connection(
            &mut self,
            _: ConnectionId,
            _: PeerId,
            _: &Multiaddr,
            _: Endpoint,
            _: PortUse,
        ) -> Result<THandler<Self>, ConnectionDenied> {
            Ok(dummy::ConnectionHandler)
        }

        fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

        fn on_connection_handler_event(
            &mut self,
            _: PeerId,
            _: ConnectionId,
            event: THandlerOutEvent<Self>,
        ) {
            match event {}
        }

        fn poll(
            &mut self,
            _: &mut Context<'_>,
        ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
            if let Some(address) = self.candidates.pop_front() {
                return Poll::Ready(ToSwarm::NewExternalAddrCandidate(address));
            }
            match self.confirmed.pop_front() {
                Some(address) => Poll::Ready(ToSwarm::ExternalAddrConfirmed(address)),
                None => Poll::Pending,
            }
        }
    }

    const OWN: &str = "/certhash/uEiDDq4_xNyDorZBH3TlGazyJdOWSwvo4PUo5YHFMrvDE8g";
    const OTHER: &str = "/certhash/uEiAwn5tyCTgf0tB-93ymzO3CzuYBhbT5Ezq5D6CBhKOnWA";
    const PEER: &str = "/p2p/12D3KooWRNQrS2BCPWXLUQPJ9hTcbPRRpxLmFRmQ5WTo8S6sDZ7Q";

    fn multiaddr(text: &str) -> Multiaddr {
        text.parse().expect("a multiaddr")
    }

    fn own(socket: &str) -> String {
        format!("{socket}/webrtc-direct{OWN}")
    }

    /// A node that listens at these addresses.
    fn listening(sockets: &[&str]) -> WithCerthash<Observer> {
        let mut behaviour = WithCerthash::new(Observer::default());
        for socket in sockets {
            let addr = multiaddr(&own(socket));
            behaviour.on_swarm_event(FromSwarm::NewListenAddr(NewListenAddr {
                listener_id: ListenerId::next(),
                addr: &addr,
            }));
        }
        behaviour
    }

    fn next(behaviour: &mut WithCerthash<Observer>) -> Option<(bool, String)> {
        let waker = noop_waker();
        match behaviour.poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(ToSwarm::NewExternalAddrCandidate(a)) => Some((false, a.to_string())),
            Poll::Ready(ToSwarm::ExternalAddrConfirmed(a)) => Some((true, a.to_string())),
            Poll::Ready(other) => panic!("{other:?}"),
            Poll::Pending => None,
        }
    }

    /// The candidates of a node that listens at `sockets` and is observed at `address`.
    fn candidates(sockets: &[&str], address: &str) -> Vec<String> {
        let mut behaviour = listening(sockets);
        behaviour.inner.candidates.push_back(multiaddr(address));
        let mut all: Vec<String> = std::iter::from_fn(|| next(&mut behaviour))
            .map(|(is_confirmed, address)| {
                assert!(!is_confirmed);
                address
            })
            .collect();
        all.sort();
        all
    }

    const LISTENERS: [&str; 3] = [
        "/ip4/127.0.0.1/udp/4001",
        "/ip4/192.168.1.2/udp/4001",
        "/ip6/2001:db8::1/udp/4002",
    ];

    #[test]
    fn an_observed_port_of_a_listener_gets_the_certhash() {
        for observed in [
            "/ip4/198.51.100.2/udp/4001/webrtc-direct".to_owned(),
            // A peer may observe any certhash, and name us.
            format!("/ip4/198.51.100.2/udp/4001/webrtc-direct{OTHER}{PEER}"),
            own("/ip4/198.51.100.2/udp/4001"),
        ] {
            let all = candidates(&LISTENERS, &observed);
            assert_eq!(all, [own("/ip4/198.51.100.2/udp/4001")], "{observed}");
        }
    }

    #[test]
    fn another_port_is_a_candidate_beside_that_of_the_listener() {
        let observed = "/ip4/198.51.100.2/udp/24001/webrtc-direct";
        let all = candidates(&LISTENERS, observed);
        let expected = [
            own("/ip4/198.51.100.2/udp/24001"),
            own("/ip4/198.51.100.2/udp/4001"),
        ];
        assert_eq!(all, expected);
        let observed = "/ip6/2001:db8::2/udp/24001/webrtc-direct";
        let all = candidates(&LISTENERS, observed);
        let expected = [
            own("/ip6/2001:db8::2/udp/24001"),
            own("/ip6/2001:db8::2/udp/4002"),
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn an_address_that_reaches_no_listener_is_no_candidate() {
        let public = "/ip4/198.51.100.2/udp/4001/webrtc-direct";
        for sockets in [
            &[][..],
            &["/ip4/127.0.0.1/udp/4001"],
            &["/ip6/2001:db8::1/udp/4001"],
        ] {
            assert!(candidates(sockets, public).is_empty(), "{sockets:?}");
        }
        for observed in [
            "/ip4/198.51.100.2/udp/0/webrtc-direct",
            "/ip4/0.0.0.0/udp/4001/webrtc-direct",
        ] {
            assert!(candidates(&LISTENERS, observed).is_empty(), "{observed}");
        }
        let mut expired = listening(&LISTENERS);
        for socket in LISTENERS {
            let addr = multiaddr(&own(socket));
            expired.on_swarm_event(FromSwarm::ExpiredListenAddr(ExpiredListenAddr {
                listener_id: ListenerId::next(),
                addr: &addr,
            }));
        }
        expired.inner.candidates.push_back(multiaddr(public));
        assert_eq!(next(&mut expired), None);
    }

    #[test]
    fn addresses_of_other_transports_pass() {
        for address in [
            "/ip4/198.51.100.2/udp/4001/quic-v1",
            "/ip4/198.51.100.2/tcp/4001",
            "/dns4/example.org/udp/4001/webrtc-direct",
        ] {
            assert_eq!(candidates(&LISTENERS, address), [address]);
        }
    }

    #[test]
    fn what_is_observed_over_a_relay_is_no_candidate() {
        for address in [
            format!("/ip4/192.0.2.1/udp/4001/webrtc-direct{OTHER}{PEER}/p2p-circuit"),
            format!("/ip4/192.0.2.1/tcp/4001{PEER}/p2p-circuit{PEER}"),
            PEER.to_owned(),
        ] {
            assert!(candidates(&LISTENERS, &address).is_empty(), "{address}");
        }
    }

    #[test]
    fn a_confirmed_address_gets_the_certhash_too() {
        let mut behaviour = listening(&LISTENERS);
        let confirmed = multiaddr("/ip4/198.51.100.2/udp/24001/webrtc-direct");
        behaviour.inner.confirmed.push_back(confirmed);
        let expected = own("/ip4/198.51.100.2/udp/24001");
        assert_eq!(next(&mut behaviour), Some((true, expected)));
        assert_eq!(next(&mut behaviour), None);
    }
}
