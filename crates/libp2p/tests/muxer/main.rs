//! What a swarm, and the protocols above it, expect of a transport and its connections.

use std::collections::HashSet;
use std::future::{Future, poll_fn};
use std::net::Ipv4Addr;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use anabranch::WebRtcDirectVersion;
use anabranch_libp2p::{Config, Connection, Error, Stream, Transport};
use futures::future::{join, join_all};
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p_core::connection::Endpoint;
use libp2p_core::multiaddr::{Multiaddr, Protocol};
use libp2p_core::muxing::{StreamMuxer, StreamMuxerExt};
use libp2p_core::transport::{
    DialOpts, ListenerId, PortUse, Transport as _, TransportError, TransportEvent,
};
use libp2p_identity::{Keypair, PeerId};
use multistream_select::{Version, dialer_select_proto, listener_select_proto};
use tokio::time::timeout;

mod dialling;

const LIMIT: Duration = Duration::from_secs(20);

/// Less than any timeout of a close.
const PROMPT: Duration = Duration::from_secs(2);

const DIAL: DialOpts = DialOpts {
    role: Endpoint::Dialer,
    port_use: PortUse::Reuse,
};

fn transport() -> (PeerId, Transport) {
    let keypair = Keypair::generate_ed25519();
    let transport = Transport::new(&keypair).expect("an Ed25519 key");
    (keypair.public().to_peer_id(), transport)
}

type Event = TransportEvent<
    <Transport as libp2p_core::Transport>::ListenerUpgrade,
    <Transport as libp2p_core::Transport>::Error,
>;

async fn next(transport: &mut Transport) -> Event {
    let next = poll_fn(|cx| Pin::new(&mut *transport).poll(cx));
    timeout(LIMIT, next).await.expect("an event")
}

async fn listen(transport: &mut Transport, address: &str) -> (ListenerId, Multiaddr) {
    let id = ListenerId::next();
    let address = address.parse().expect("an address");
    transport.listen_on(id, address).expect("a free port");
    match next(transport).await {
        TransportEvent::NewAddress {
            listener_id,
            listen_addr,
        } => {
            assert_eq!(listener_id, id);
            (id, listen_addr)
        }
        other => panic!("{other:?}"),
    }
}

async fn accept(transport: &mut Transport) -> (PeerId, Connection) {
    match next(transport).await {
        TransportEvent::Incoming { upgrade, .. } => upgrade.await.expect("an honest peer"),
        other => panic!("{other:?}"),
    }
}

/// A dialler and a listener, connected.
async fn pair(version: WebRtcDirectVersion) -> [Connection; 2] {
    let keypair = Keypair::generate_ed25519();
    let config = Config::new(&keypair).expect("an Ed25519 key");
    let mut dialler = Transport::with_config(config.with_version(version));
    let (listener_id, mut listener) = transport();
    let (_, address) = listen(&mut listener, "/ip4/127.0.0.1/udp/0/webrtc-direct").await;
    let dial = dialler.dial(address, DIAL).expect("our own address");
    let (dialled, accepted) = join(dial, accept(&mut listener)).await;
    let (peer, dialled) = dialled.expect("it listens");
    assert_eq!(peer, listener_id);
    assert_eq!(accepted.0, keypair.public().to_peer_id());
    [dialled, accepted.1]
}

async fn outbound(connection: &mut Connection) -> Stream {
    let opened = poll_fn(|cx| connection.poll_outbound_unpin(cx));
    timeout(LIMIT, opened)
        .await
        .expect("it opens")
        .expect("it lives")
}

async fn inbound(connection: &mut Connection) -> Stream {
    let accepted = poll_fn(|cx| connection.poll_inbound_unpin(cx));
    timeout(LIMIT, accepted)
        .await
        .expect("one comes")
        .expect("it lives")
}

/// Both ends of a substream that the first opens. A muxer announces it with its first bytes.
async fn substream(connections: &mut [Connection; 2]) -> [Stream; 2] {
    let [opener, acceptor] = connections;
    let mut opened = outbound(opener).await;
    opened.write_all(b"!").await.expect("room");
    let mut accepted = inbound(acceptor).await;
    accepted.read_exact(&mut [0]).await.expect("it comes");
    [opened, accepted]
}

/// What `future` returns at once, if it does.
async fn poll_once<F: Future>(future: &mut Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

fn reversed([a, b]: [Connection; 2]) -> [Connection; 2] {
    [b, a]
}

/// Every version, opened by either side.
async fn pairs() -> Vec<[Connection; 2]> {
    let mut all = Vec::new();
    for version in [WebRtcDirectVersion::V1, WebRtcDirectVersion::V2] {
        all.push(pair(version).await);
        all.push(reversed(pair(version).await));
    }
    all
}

#[tokio::test]
async fn a_close_implies_a_flush() {
    for mut connections in pairs().await {
        let [mut opened, mut accepted] = substream(&mut connections).await;
        let content = vec![7; 100_000];
        let mut got = Vec::new();
        let (closed, read) = join(
            async {
                opened.write_all(&content).await?;
                opened.close().await
            },
            accepted.read_to_end(&mut got),
        )
        .await;
        closed.expect("the peer reads");
        read.expect("all comes, and the end");
        assert!(got == content);
        // As often as somebody asks.
        opened.close().await.expect("it is closed");
    }
}

#[tokio::test]
async fn a_stream_is_read_after_it_is_closed_for_writing() {
    for mut connections in pairs().await {
        let [mut opened, mut accepted] = substream(&mut connections).await;
        // It waits for the peer's transport, and for nothing that the peer's program does.
        let closed = timeout(PROMPT, opened.close()).await.expect("at once");
        closed.expect("the peer has it");
        accepted
            .write_all(b"still here")
            .await
            .expect("half is open");
        let closed = timeout(PROMPT, accepted.close()).await.expect("at once");
        closed.expect("the peer has it");
        let mut got = Vec::new();
        opened.read_to_end(&mut got).await.expect("all comes");
        assert_eq!(got, b"still here");
        assert_eq!(accepted.read(&mut [0]).await.expect("the end"), 0);
    }
}

#[tokio::test]
async fn a_dropped_stream_ends_what_the_other_side_reads_and_writes() {
    let mut connections = pair(WebRtcDirectVersion::V1).await;
    let [opened, mut accepted] = substream(&mut connections).await;
    drop(opened);
    assert_eq!(accepted.read(&mut [0]).await.expect("the end"), 0);
    let writing = async {
        loop {
            if let Err(error) = accepted.write_all(&[7; 1 << 16]).await {
                return error;
            }
        }
    };
    let error = timeout(LIMIT, writing).await.expect("nobody reads");
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe, "{error}");
}

/// Identify answers, closes and drops at once, which stops the dialler's write half while that
/// still flushes what it has proposed.
#[tokio::test]
async fn the_answer_of_a_peer_that_drops_the_stream_at_once_is_negotiated_and_read() {
    for [mut dialler, mut listener] in pairs().await {
        let opened = outbound(&mut dialler).await;
        let negotiating = async {
            let mut proposing = pin!(dialer_select_proto(opened, ["/id/1"], Version::V1));
            // The proposal goes out, and then nobody polls until the peer is done.
            assert!(poll_once(&mut proposing).await.is_none());
            let stream = inbound(&mut listener).await;
            let selected = listener_select_proto(stream, ["/id/1"]).await;
            let (_, mut answering) = selected.expect("its protocol");
            answering.write_all(b"answer").await.expect("room");
            answering.close().await.expect("it arrives");
            drop(answering);
            // What is sent after the stop arrives after it.
            let mut after = outbound(&mut listener).await;
            after.write_all(b"!").await.expect("room");
            inbound(&mut dialler).await;

            let (_, mut stream) = proposing.await.expect("the peer has confirmed it");
            stream.flush().await.expect("nothing was discarded");
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.expect("the answer");
            assert_eq!(answer, b"answer");
            stream.close().await.expect("nothing was discarded");
        };
        timeout(LIMIT, negotiating).await.expect("in time");
    }
}

#[tokio::test]
async fn a_closed_connection_ends_the_other_one_and_what_was_closed_before_arrives() {
    let mut connections = pair(WebRtcDirectVersion::V1).await;
    let [mut opened, mut accepted] = substream(&mut connections).await;
    opened.write_all(b"goodbye").await.expect("room");
    opened.close().await.expect("the peer has it");
    let [mut near, mut far] = connections;
    let closing = timeout(LIMIT, poll_fn(|cx| near.poll_close_unpin(cx)));
    let ended = timeout(LIMIT, poll_fn(|cx| far.poll_unpin(cx)));
    let reading = async {
        let mut got = Vec::new();
        accepted.read_to_end(&mut got).await.expect("all comes");
        drop(accepted);
        got
    };
    let ((closed, ended), got) = join(join(closing, ended), reading).await;
    closed.expect("it is bounded").expect("a close never fails");
    let cause = ended.expect("the peer is told").expect_err("it is over");
    assert!(matches!(cause, Error::Connection(_)), "{cause}");
    assert_eq!(got, b"goodbye");
    let refused = timeout(LIMIT, poll_fn(|cx| far.poll_outbound_unpin(cx)));
    assert!(refused.await.expect("at once").is_err());
    let none = timeout(LIMIT, poll_fn(|cx| far.poll_inbound_unpin(cx)));
    assert!(none.await.expect("at once").is_err());
}

/// A peer may open, write, close the substream and the connection before anybody looks.
#[tokio::test]
async fn what_a_peer_has_sent_before_it_closed_is_accepted_before_the_end() {
    let [mut near, mut far] = pair(WebRtcDirectVersion::V1).await;
    let mut opened = outbound(&mut near).await;
    opened.write_all(b"goodbye").await.expect("room");
    opened.close().await.expect("the peer has it");
    drop(opened);
    let closed = timeout(LIMIT, poll_fn(|cx| near.poll_close_unpin(cx)));
    closed.await.expect("in time").expect("a close never fails");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let early = poll_fn(|cx| Poll::Ready(far.poll_unpin(cx))).await;
    assert!(early.is_pending(), "a substream is left");
    let mut got = Vec::new();
    let mut accepted = inbound(&mut far).await;
    accepted.read_to_end(&mut got).await.expect("all has come");
    assert_eq!(got, b"goodbye");
    let ended = timeout(LIMIT, poll_fn(|cx| far.poll_unpin(cx))).await;
    ended.expect("at once").expect_err("it is over");
}

/// A swarm stops to poll for inbound substreams while many are negotiated.
#[tokio::test]
async fn a_peer_waits_while_inbound_substreams_are_not_accepted() {
    let [mut near, mut far] = pair(WebRtcDirectVersion::V1).await;
    let max = anabranch::Config::default().max_inbound_substreams;
    let mut opened = Vec::new();
    loop {
        let open = poll_fn(|cx| near.poll_outbound_unpin(cx));
        match timeout(Duration::from_millis(500), open).await {
            Ok(stream) => {
                let mut stream = stream.expect("it waits, and does not fail");
                stream.write_all(b"!").await.expect("room");
                opened.push(stream);
            }
            Err(_) => break,
        }
    }
    assert_eq!(opened.len(), max);
    // Each that is accepted and ends makes room for another.
    drop(inbound(&mut far).await);
    drop(opened.swap_remove(0));
    let mut more = outbound(&mut near).await;
    more.write_all(b"!").await.expect("room");
}

#[tokio::test]
async fn a_thousand_substreams_at_once() {
    let [mut near, mut far] = pair(WebRtcDirectVersion::V1).await;
    let answering = tokio::spawn(async move {
        let mut answers = Vec::new();
        for _ in 0..1000 {
            let mut stream = inbound(&mut far).await;
            answers.push(tokio::spawn(async move {
                let mut got = Vec::new();
                stream.read_to_end(&mut got).await.expect("all comes");
                stream.write_all(&got).await.expect("it reads");
                stream.close().await.expect("it has it");
            }));
        }
        join_all(answers).await;
        far
    });
    let mut exchanges = Vec::new();
    for n in 0..1000_u32 {
        let mut stream = outbound(&mut near).await;
        exchanges.push(tokio::spawn(async move {
            stream.write_all(&n.to_be_bytes()).await.expect("it reads");
            stream.close().await.expect("it has it");
            let mut got = Vec::new();
            stream.read_to_end(&mut got).await.expect("all comes back");
            assert_eq!(got, n.to_be_bytes());
        }));
    }
    for exchange in join_all(exchanges).await {
        exchange.expect("no panic");
    }
    answering.await.expect("no panic");
}

#[test]
fn addresses_of_other_transports_are_not_supported() {
    let (_, mut transport) = transport();
    for address in [
        "/ip4/127.0.0.1/udp/4001/quic-v1",
        "/ip4/127.0.0.1/tcp/4001",
        "/dns4/example.org/udp/4001/webrtc-direct",
        "/ip4/127.0.0.1/udp/4001/webrtc-direct/p2p-circuit",
    ] {
        let address: Multiaddr = address.parse().expect("an address");
        let dialled = transport.dial(address.clone(), DIAL);
        assert!(matches!(dialled, Err(TransportError::MultiaddrNotSupported(a)) if a == address));
        let listening = transport.listen_on(ListenerId::next(), address.clone());
        assert!(matches!(listening, Err(TransportError::MultiaddrNotSupported(a)) if a == address));
    }
    let without_certhash = "/ip4/127.0.0.1/udp/4001/webrtc-direct";
    let address = without_certhash.parse().expect("an address");
    let dialled = transport.dial(address, DIAL);
    assert!(matches!(
        dialled,
        Err(TransportError::MultiaddrNotSupported(_))
    ));
}

#[tokio::test]
async fn an_address_is_still_valid_when_the_node_starts_again() {
    let keypair = Keypair::generate_ed25519();
    let mut first = Transport::new(&keypair).expect("an Ed25519 key");
    let (id, address) = listen(&mut first, "/ip4/127.0.0.1/udp/0/webrtc-direct").await;
    assert!(first.remove_listener(id));
    drop(first);
    let mut again = Transport::new(&keypair).expect("an Ed25519 key");
    let port = address.iter().nth(1).expect("a port");
    let same = Multiaddr::from(Ipv4Addr::LOCALHOST)
        .with(port)
        .with(Protocol::WebRTCDirect);
    // The port is free again a moment later.
    let (_, announced) = loop {
        let id = ListenerId::next();
        match again.listen_on(id, same.clone()) {
            Ok(()) => match next(&mut again).await {
                TransportEvent::NewAddress { listen_addr, .. } => break (id, listen_addr),
                other => panic!("{other:?}"),
            },
            Err(_) => tokio::task::yield_now().await,
        }
    };
    assert_eq!(announced, address);
}

#[tokio::test]
async fn a_wildcard_has_every_interface_and_connections_outlive_their_listener() {
    let (_, mut listener) = transport();
    let id = ListenerId::next();
    let any = "/ip4/0.0.0.0/udp/0/webrtc-direct"
        .parse()
        .expect("an address");
    listener.listen_on(id, any).expect("a free port");
    let mut announced = HashSet::new();
    let loopback = loop {
        let TransportEvent::NewAddress { listen_addr, .. } = next(&mut listener).await else {
            panic!("no address");
        };
        assert!(announced.insert(listen_addr.clone()));
        if listen_addr.iter().next() == Some(Protocol::Ip4([127, 0, 0, 1].into())) {
            break listen_addr;
        }
    };
    let (_, mut dialler) = transport();
    let dial = dialler
        .dial(loopback.clone(), DIAL)
        .expect("our own address");
    let accepting = async {
        loop {
            match next(&mut listener).await {
                TransportEvent::NewAddress { listen_addr, .. } => {
                    assert!(announced.insert(listen_addr));
                }
                TransportEvent::Incoming {
                    upgrade,
                    local_addr,
                    ..
                } => {
                    assert!(announced.contains(&local_addr), "{local_addr}");
                    break upgrade.await.expect("an honest peer");
                }
                other => panic!("{other:?}"),
            }
        }
    };
    let (dialled, accepted) = join(dial, accepting).await;
    let mut connections = [dialled.expect("it listens").1, accepted.1];

    assert!(listener.remove_listener(id));
    assert!(!listener.remove_listener(ListenerId::next()));
    loop {
        match next(&mut listener).await {
            TransportEvent::AddressExpired { listen_addr, .. } => {
                assert!(announced.remove(&listen_addr));
            }
            TransportEvent::ListenerClosed {
                listener_id,
                reason,
            } => {
                assert_eq!(listener_id, id);
                reason.expect("in order");
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(announced.is_empty(), "{announced:?}");
    assert!(!listener.remove_listener(id));
    substream(&mut connections).await;
    let again = dialler.dial(loopback, DIAL).expect("our own address");
    let refused = again.await.expect_err("nobody listens");
    assert!(matches!(refused, Error::Connect(_)), "{refused}");
}

/// So identify reports an address at which the node can be dialled.
#[tokio::test]
async fn a_dial_with_port_reuse_comes_from_the_address_of_the_listener() {
    let (_, mut server) = transport();
    let (_, address) = listen(&mut server, "/ip4/127.0.0.1/udp/0/webrtc-direct").await;
    let (_, mut client) = transport();
    let (_, own) = listen(&mut client, "/ip4/127.0.0.1/udp/0/webrtc-direct").await;
    let own: Multiaddr = own.iter().take(3).collect();
    for (port_use, is_own) in [(PortUse::Reuse, true), (PortUse::New, false)] {
        let opts = DialOpts { port_use, ..DIAL };
        let dial = client.dial(address.clone(), opts).expect("an address");
        let accepting = async {
            match next(&mut server).await {
                TransportEvent::Incoming {
                    upgrade,
                    send_back_addr,
                    ..
                } => (upgrade.await.expect("an honest peer"), send_back_addr),
                other => panic!("{other:?}"),
            }
        };
        let (dialled, ((_, accepted), from)) = join(dial, accepting).await;
        assert_eq!(from == own, is_own, "{from}, {own}");
        substream(&mut [dialled.expect("it listens").1, accepted]).await;
    }
}

/// As DCUtR has it: one side dials, the other as a listener.
#[tokio::test]
async fn a_dial_as_a_listener_meets_the_dial_of_the_peer() {
    let (dialler_id, mut dialler) = transport();
    let (_, dialler_address) = listen(&mut dialler, "/ip4/127.0.0.1/udp/0/webrtc-direct").await;
    let (listener_id, mut listener) = transport();
    let (_, listener_address) = listen(&mut listener, "/ip4/127.0.0.1/udp/0/webrtc-direct").await;
    let as_listener = DialOpts {
        role: Endpoint::Listener,
        ..DIAL
    };
    let punching = listener
        .dial(dialler_address.clone(), as_listener)
        .expect("it listens");
    let again = listener.dial(dialler_address, as_listener);
    assert!(matches!(
        again,
        Err(TransportError::Other(Error::PunchInProgress))
    ));
    let dial = dialler.dial(listener_address, DIAL).expect("an address");
    // Its transport has to be polled, and reports nothing.
    let both = join(punching, dial);
    let (punched, dialled) = tokio::select! {
        both = both => both,
        event = next(&mut listener) => panic!("{event:?}"),
    };
    let ((peer_a, a), (peer_b, b)) = (punched.expect("it comes"), dialled.expect("it listens"));
    assert_eq!((peer_a, peer_b), (dialler_id, listener_id));
    substream(&mut [b, a]).await;
    // A node that listens nowhere has no port to be reached at.
    let (_, mut nowhere) = transport();
    let (_, somebody) = listen(&mut dialler, "/ip4/127.0.0.1/udp/0/webrtc-direct").await;
    let dial = nowhere.dial(somebody, as_listener).expect("an address");
    let error = dial.await.expect_err("it has no listener");
    assert!(matches!(error, Error::NoListener), "{error}");
}

#[tokio::test]
async fn the_error_of_a_dial_names_the_phase() {
    let (_, mut dialler) = transport();
    let (_, mut listener) = transport();
    let (_, address) = listen(&mut listener, "/ip4/127.0.0.1/udp/0/webrtc-direct").await;
    // Of another certificate.
    let other = Keypair::generate_ed25519();
    let mut other = Transport::new(&other).expect("an Ed25519 key");
    let (_, foreign) = listen(&mut other, "/ip4/127.0.0.1/udp/0/webrtc-direct").await;
    let certhash = foreign.iter().nth(3).expect("a certhash");
    let mut wrong: Multiaddr = address.iter().take(3).collect();
    wrong.push(certhash);
    let dial = dialler.dial(wrong, DIAL).expect("an address of this kind");
    let accepting = async {
        match next(&mut listener).await {
            TransportEvent::Incoming { upgrade, .. } => upgrade.await.expect_err("it gives up"),
            other => panic!("{other:?}"),
        }
    };
    let (failed, accepted) = timeout(LIMIT, join(dial, accepting))
        .await
        .expect("both end");
    let failed = failed.expect_err("another certificate");
    println!("{failed}; {accepted}");
    assert!(matches!(failed, Error::Connect(_)), "{failed}");
}

/// The bounds of `SwarmBuilder::with_other_transport`, and of a boxed muxer.
#[test]
fn it_fits_a_swarm() {
    fn fits<T>(_: &T)
    where
        T: libp2p_core::Transport<Output = (PeerId, Connection)> + Send + Unpin + 'static,
        T::Dial: Send,
        T::ListenerUpgrade: Send,
        T::Error: Send + Sync,
    {
    }
    fn boxes<M>()
    where
        M: StreamMuxer + Send + 'static,
        M::Substream: Send + 'static,
        M::Error: Send + Sync + 'static,
    {
    }
    fits(&transport().1);
    boxes::<Connection>();
}
