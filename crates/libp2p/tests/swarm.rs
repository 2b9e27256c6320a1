//! Swarms with the protocols that every node has.

use std::time::Duration;

use anabranch_libp2p::Transport;
use futures::StreamExt;
use libp2p_core::Transport as _;
use libp2p_core::multiaddr::{Multiaddr, Protocol};
use libp2p_core::muxing::StreamMuxerBox;
use libp2p_identity::{Keypair, PeerId};
use libp2p_request_response as request_response;
use libp2p_swarm::{
    Config, DialError, NetworkBehaviour, StreamProtocol, Swarm, SwarmEvent, dial_opts::DialOpts,
};
use serde_bytes::ByteBuf;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(60);

const MIB: usize = 1 << 20;

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
struct Behaviour {
    ping: libp2p_ping::Behaviour,
    identify: libp2p_identify::Behaviour,
    /// The response has the length that the request names.
    fetch: request_response::cbor::Behaviour<u64, ByteBuf>,
}

/// A node. With another transport this is the one line that differs.
fn node() -> Swarm<Behaviour> {
    let keypair = Keypair::generate_ed25519();
    let transport = Transport::new(&keypair).expect("an Ed25519 key");
    let transport = transport
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed();
    let ping = libp2p_ping::Config::new().with_interval(Duration::from_millis(100));
    let identify = libp2p_identify::Config::new("/test/1.0.0".to_owned(), keypair.public());
    let protocol = StreamProtocol::new("/fetch/1.0.0");
    let fetch = request_response::cbor::Behaviour::new(
        [(protocol, request_response::ProtocolSupport::Full)],
        request_response::Config::default().with_request_timeout(LIMIT),
    );
    let behaviour = Behaviour {
        ping: libp2p_ping::Behaviour::new(ping),
        identify: libp2p_identify::Behaviour::new(identify),
        fetch,
    };
    let config = Config::with_tokio_executor().with_idle_connection_timeout(LIMIT);
    Swarm::new(transport, behaviour, keypair.public().to_peer_id(), config)
}

fn content(length: usize) -> ByteBuf {
    ByteBuf::from((0..length).map(|i| (i % 251) as u8).collect::<Vec<u8>>())
}

/// Listens on every interface. Returns the node and its loopback address, with its peer id.
async fn listening() -> (Swarm<Behaviour>, Multiaddr) {
    let mut node = node();
    let any = "/ip4/0.0.0.0/udp/0/webrtc-direct"
        .parse()
        .expect("an address");
    node.listen_on(any).expect("a free port");
    let loopback = Protocol::Ip4([127, 0, 0, 1].into());
    loop {
        if let SwarmEvent::NewListenAddr { address, .. } = node.select_next_some().await
            && address.iter().next() == Some(loopback.clone())
        {
            let address = address.with_p2p(*node.local_peer_id());
            return (node, address.expect("it has none"));
        }
    }
}

/// Answers requests, and pings.
async fn serve(mut node: Swarm<Behaviour>) {
    loop {
        let event = node.select_next_some().await;
        if let SwarmEvent::Behaviour(BehaviourEvent::Fetch(request_response::Event::Message {
            message:
                request_response::Message::Request {
                    request, channel, ..
                },
            ..
        })) = event
        {
            let response = content(usize::try_from(request).expect("a few MiB"));
            let sent = node.behaviour_mut().fetch.send_response(channel, response);
            sent.expect("the peer waits");
        }
    }
}

/// What one run has seen.
#[derive(Default)]
struct Seen {
    pings: usize,
    responses: usize,
    identified: Option<libp2p_identify::Info>,
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_ping_identify_and_fetch_8_mib() {
    const FETCHES: usize = 4;
    let (server, address) = listening().await;
    let server_id = *server.local_peer_id();
    let serving = tokio::spawn(serve(server));
    let mut client = node();
    client.dial(address.clone()).expect("it can be dialled");
    let mut seen = Seen::default();
    let run = async {
        while seen.pings < 3 || seen.responses < FETCHES || seen.identified.is_none() {
            match client.select_next_some().await {
                SwarmEvent::ConnectionEstablished { peer_id, .. } => {
                    assert_eq!(peer_id, server_id);
                    for _ in 0..FETCHES {
                        let fetch = &mut client.behaviour_mut().fetch;
                        fetch.send_request(&server_id, 8 * MIB as u64);
                    }
                }
                SwarmEvent::Behaviour(BehaviourEvent::Ping(event)) => {
                    event.result.expect("it answers");
                    seen.pings += 1;
                }
                SwarmEvent::Behaviour(BehaviourEvent::Identify(
                    libp2p_identify::Event::Received { info, .. },
                )) => seen.identified = Some(info),
                SwarmEvent::Behaviour(BehaviourEvent::Fetch(event)) => match event {
                    request_response::Event::Message {
                        message: request_response::Message::Response { response, .. },
                        ..
                    } => {
                        assert!(response == content(8 * MIB), "the bytes are the same");
                        seen.responses += 1;
                    }
                    request_response::Event::OutboundFailure { error, .. } => panic!("{error}"),
                    _ => {}
                },
                SwarmEvent::ConnectionClosed { cause, .. } => panic!("{cause:?}"),
                SwarmEvent::OutgoingConnectionError { error, .. } => panic!("{error}"),
                _ => {}
            }
        }
    };
    timeout(LIMIT, run).await.expect("all of it in time");
    // What others learn of the node can be dialled.
    let info = seen.identified.expect("it was received");
    let without_peer: Multiaddr = address.iter().take(4).collect();
    assert!(
        info.listen_addrs.contains(&without_peer),
        "{:?}",
        info.listen_addrs
    );
    serving.abort();
}

#[tokio::test]
async fn a_peer_that_is_another_than_expected_is_refused_with_both_ids() {
    let (server, address) = listening().await;
    let server_id = *server.local_peer_id();
    let serving = tokio::spawn(serve(server));
    let mut client = node();
    let expected = PeerId::random();
    let without_peer: Multiaddr = address.iter().take(4).collect();
    let dial = DialOpts::peer_id(expected).addresses(vec![without_peer]);
    client.dial(dial.build()).expect("it can be dialled");
    let failed = async {
        loop {
            if let SwarmEvent::OutgoingConnectionError { peer_id, error, .. } =
                client.select_next_some().await
            {
                return (peer_id, error);
            }
        }
    };
    let (peer, error) = timeout(LIMIT, failed).await.expect("it fails");
    assert_eq!(peer, Some(expected));
    match error {
        DialError::WrongPeerId { obtained, .. } => assert_eq!(obtained, server_id),
        other => panic!("{other}"),
    }
    serving.abort();
}
