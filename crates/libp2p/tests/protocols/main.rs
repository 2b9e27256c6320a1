//! Protocols of rust-libp2p among several nodes, over loopback.
//!
//! `ANABRANCH_REPETITIONS` says how often each runs.

use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use anabranch_libp2p::Transport;
use futures::StreamExt;
use libp2p_core::Transport as _;
use libp2p_core::multiaddr::Multiaddr;
use libp2p_core::muxing::StreamMuxerBox;
use libp2p_identity::{Keypair, PeerId};
use libp2p_swarm::{Config, NetworkBehaviour, Swarm, SwarmEvent};
use tokio::time::timeout;

mod autonat;
mod gossip;
mod kademlia;

const LIMIT: Duration = Duration::from_secs(60);

fn repetitions() -> usize {
    let value = std::env::var("ANABRANCH_REPETITIONS");
    value.map_or(1, |value| value.parse().expect("a number"))
}

fn node<B: NetworkBehaviour>(behaviour: impl FnOnce(&Keypair) -> B) -> Swarm<B> {
    let keypair = Keypair::generate_ed25519();
    let transport = Transport::new(&keypair).expect("an Ed25519 key");
    let transport = transport
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed();
    let behaviour = behaviour(&keypair);
    let config = Config::with_tokio_executor().with_idle_connection_timeout(LIMIT);
    Swarm::new(transport, behaviour, keypair.public().to_peer_id(), config)
}

/// Swarms that run together.
struct Nodes<B: NetworkBehaviour> {
    swarms: Vec<Swarm<B>>,
    /// Each at its loopback address, with its peer id.
    addresses: Vec<Multiaddr>,
    /// The one whose turn it is, so that a busy one does not hold up the others.
    turn: usize,
}

impl<B: NetworkBehaviour> Nodes<B> {
    /// Nodes that listen.
    async fn new(count: usize, behaviour: impl Fn(&Keypair) -> B) -> Self {
        let mut nodes = Self {
            swarms: (0..count).map(|_| node(&behaviour)).collect(),
            addresses: Vec::new(),
            turn: 0,
        };
        for swarm in &mut nodes.swarms {
            let any = "/ip4/127.0.0.1/udp/0/webrtc-direct";
            swarm
                .listen_on(any.parse().expect("an address"))
                .expect("a free port");
            let address = loop {
                if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                    break address;
                }
            };
            let with_peer = address.with_p2p(*swarm.local_peer_id());
            nodes.addresses.push(with_peer.expect("it has none"));
        }
        nodes
    }

    fn peers(&self) -> Vec<PeerId> {
        self.swarms
            .iter()
            .map(|swarm| *swarm.local_peer_id())
            .collect()
    }

    fn dial(&mut self, from: usize, to: usize) {
        let address = self.addresses[to].clone();
        self.swarms[from].dial(address).expect("it can be dialled");
    }

    /// The next event of any node.
    async fn next(&mut self) -> (usize, SwarmEvent<B::ToSwarm>) {
        let next = poll_fn(|cx| {
            let count = self.swarms.len();
            for index in (0..count).map(|offset| (self.turn + offset) % count) {
                if let Poll::Ready(Some(event)) = self.swarms[index].poll_next_unpin(cx) {
                    self.turn = index + 1;
                    return Poll::Ready((index, event));
                }
            }
            Poll::Pending
        });
        let (index, event) = timeout(LIMIT, next).await.expect("something happens");
        match event {
            SwarmEvent::ConnectionClosed { cause, .. } => panic!("{index}: {cause:?}"),
            SwarmEvent::OutgoingConnectionError { error, .. } => panic!("{index}: {error}"),
            SwarmEvent::IncomingConnectionError { error, .. } => panic!("{index}: {error}"),
            event => (index, event),
        }
    }
}
