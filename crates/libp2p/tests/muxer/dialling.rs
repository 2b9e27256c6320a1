//! Dialling and listening as other transports do it, alone and beside them.

use std::sync::{Arc, Mutex};

use futures::FutureExt;
use libp2p_core::muxing::StreamMuxerBox;
use libp2p_core::transport::{Boxed, MemoryTransport, OrTransport};
use libp2p_core::upgrade::Version;

use super::*;

/// The dial of `dialler`, accepted by `listener`, and the address that it comes from.
async fn connect(
    dialler: &mut Transport,
    listener: &mut Transport,
    address: Multiaddr,
) -> ([Connection; 2], Multiaddr) {
    let dial = dialler.dial(address, DIAL).expect("an address");
    let accepting = async {
        match next(listener).await {
            TransportEvent::Incoming {
                upgrade,
                send_back_addr,
                ..
            } => (upgrade.await.expect("an honest peer"), send_back_addr),
            other => panic!("{other:?}"),
        }
    };
    let (dialled, (accepted, from)) = join(dial, accepting).await;
    ([dialled.expect("it listens").1, accepted.1], from)
}

/// The port of a dial is none of a listener.
#[tokio::test]
async fn nobody_is_reached_at_the_port_of_a_dial() {
    let keypair = Keypair::generate_ed25519();
    let mut endpoint = anabranch::EndpointConfig::default();
    endpoint.connect_timeout = Duration::from_secs(1);
    let config = Config::new(&keypair).expect("an Ed25519 key");
    let mut a = Transport::with_config(config.with_endpoint_config(endpoint));
    let (_, mut b) = transport();
    let (_, a_address) = listen(&mut a, "/ip4/127.0.0.1/udp/0/webrtc-direct").await;
    let (_kept, from) = connect(&mut b, &mut a, a_address.clone()).await;
    // As if it listened there.
    let (b_listener, b_address) = listen(&mut b, "/ip4/127.0.0.1/udp/0/webrtc-direct").await;
    let certhash = b_address.iter().nth(3).expect("a certhash");
    let dial = a.dial(from.with(certhash), DIAL).expect("an address");
    let error = dial.await.expect_err("nobody listens there");
    assert!(matches!(error, Error::Connect(_)), "{error}");
    // Where it listens it is reached, and from the port of the other's listener.
    let (_kept, from) = connect(&mut a, &mut b, b_address).await;
    let expected: Multiaddr = a_address.iter().take(3).collect();
    assert_eq!(from, expected);
    assert!(b.remove_listener(b_listener));
}

#[tokio::test]
async fn a_node_that_has_dialled_by_ipv4_dials_ipv6() {
    let (_, mut dialler) = transport();
    let (_, mut listener) = transport();
    for any in [
        "/ip4/127.0.0.1/udp/0/webrtc-direct",
        "/ip6/::1/udp/0/webrtc-direct",
    ] {
        let (_, address) = listen(&mut listener, any).await;
        let (mut connections, from) = connect(&mut dialler, &mut listener, address).await;
        let family = |address: &Multiaddr| address.iter().next().map(|protocol| protocol.tag());
        let any: Multiaddr = any.parse().expect("an address");
        assert_eq!(family(&from), family(&any));
        substream(&mut connections).await;
    }
}

/// A node that listens on all interfaces is observed at the port of that listener.
#[tokio::test]
async fn a_dial_from_a_wildcard_has_the_port_of_its_listener() {
    let (_, mut dialler) = transport();
    let (_, mut listener) = transport();
    let (_, own) = listen(&mut dialler, "/ip4/0.0.0.0/udp/0/webrtc-direct").await;
    let (_, address) = listen(&mut listener, "/ip4/127.0.0.1/udp/0/webrtc-direct").await;
    let (_, from) = connect(&mut dialler, &mut listener, address).await;
    let expected = Multiaddr::from(Ipv4Addr::LOCALHOST)
        .with(own.iter().nth(1).expect("a port"))
        .with(Protocol::WebRTCDirect);
    assert_eq!(from, expected);
}

/// The peer that dials proves who it is; peers without [`anabranch_libp2p::WithCerthash`] send to
/// DCUtR what was observed.
#[tokio::test]
async fn a_dial_as_a_listener_needs_no_certhash() {
    let (dialler_id, mut dialler) = transport();
    let (_, mut listener) = transport();
    let (_, from) = listen(&mut dialler, "/ip4/127.0.0.1/udp/0/webrtc-direct").await;
    let (_, to) = listen(&mut listener, "/ip4/127.0.0.1/udp/0/webrtc-direct").await;
    let as_listener = DialOpts {
        role: Endpoint::Listener,
        ..DIAL
    };
    let observed: Multiaddr = from.iter().take(3).collect();
    let punching = listener.dial(observed, as_listener);
    let punching = punching.expect("an address of a peer");
    let dial = dialler.dial(to, DIAL).expect("an address");
    let (punched, dialled) = tokio::select! {
        both = join(punching, dial) => both,
        event = next(&mut listener) => panic!("{event:?}"),
    };
    let (peer, punched) = punched.expect("it comes");
    assert_eq!(peer, dialler_id);
    substream(&mut [dialled.expect("it listens").1, punched]).await;
    for nowhere in [
        "/ip4/127.0.0.1/udp/0/webrtc-direct",
        "/ip4/0.0.0.0/udp/1/webrtc-direct",
    ] {
        let nowhere = nowhere.parse().expect("an address");
        let refused = listener.dial(nowhere, as_listener);
        assert!(matches!(
            refused.map(drop),
            Err(TransportError::MultiaddrNotSupported(_))
        ));
    }
}

/// Where no NAT keeps it out, a dial of the peer may be there before DCUtR dials as the listener.
#[tokio::test]
async fn a_dial_as_a_listener_takes_the_peer_that_has_just_arrived() {
    let (dialler_id, mut dialler) = transport();
    let (_, mut listener) = transport();
    let (_, from) = listen(&mut dialler, "/ip4/127.0.0.1/udp/0/webrtc-direct").await;
    let (_, to) = listen(&mut listener, "/ip4/127.0.0.1/udp/0/webrtc-direct").await;
    let dialling = tokio::spawn(dialler.dial(to, DIAL).expect("an address"));
    let TransportEvent::Incoming { upgrade, .. } = next(&mut listener).await else {
        panic!("nobody arrives");
    };
    let as_listener = DialOpts {
        role: Endpoint::Listener,
        ..DIAL
    };
    let punching = listener.dial(from, as_listener).expect("it listens");
    let (punched, upgraded) = timeout(LIMIT, join(punching, upgrade))
        .await
        .expect("in time");
    let error = upgraded.expect_err("the connection is that of the dial");
    assert!(matches!(error, Error::Punched), "{error}");
    let (peer, punched) = punched.expect("it has come");
    assert_eq!(peer, dialler_id);
    let (_, dialled) = dialling.await.expect("no panic").expect("it listens");
    substream(&mut [dialled, punched]).await;
}

/// A NAT may show another port to the listener than to the relay that DCUtR has asked.
#[tokio::test]
async fn a_dial_as_a_listener_takes_its_peer_from_another_port() {
    let (dialler_id, mut dialler) = transport();
    let (_, mut listener) = transport();
    let (_, expected) = listen(&mut dialler, "/ip4/127.0.0.1/udp/0/webrtc-direct").await;
    let (_, to) = listen(&mut listener, "/ip4/127.0.0.1/udp/0/webrtc-direct").await;
    let as_listener = DialOpts {
        role: Endpoint::Listener,
        ..DIAL
    };
    let expected = expected.with_p2p(dialler_id).expect("it has none");
    let punching = listener.dial(expected, as_listener).expect("it listens");
    let punching = tokio::spawn(punching);
    // Another one is not taken for it.
    for (is_expected, from) in [(false, transport().1), (true, dialler)] {
        let mut from = from;
        let opts = DialOpts {
            port_use: PortUse::New,
            ..DIAL
        };
        let dialling = tokio::spawn(from.dial(to.clone(), opts).expect("an address"));
        let TransportEvent::Incoming { upgrade, .. } = next(&mut listener).await else {
            panic!("nobody arrives");
        };
        let upgraded = upgrade.await;
        assert_eq!(upgraded.is_err(), is_expected);
        dialling.await.expect("no panic").expect("it listens");
    }
    let punched = timeout(PROMPT, punching).await.expect("at once");
    let (peer, _) = punched.expect("no panic").expect("it has come");
    assert_eq!(peer, dialler_id);
}

/// Whoever asks for the hole names the address: it may be that of another peer.
#[tokio::test]
async fn a_dial_as_a_listener_does_not_take_another_peer_from_the_address_it_was_given() {
    let (_, mut listener) = transport();
    let (asking_id, _asking) = transport();
    let (other_id, mut other) = transport();
    let (_, of_other) = listen(&mut other, "/ip4/127.0.0.1/udp/0/webrtc-direct").await;
    let (_, to) = listen(&mut listener, "/ip4/127.0.0.1/udp/0/webrtc-direct").await;
    let as_listener = DialOpts {
        role: Endpoint::Listener,
        ..DIAL
    };
    let named = of_other.with_p2p(asking_id).expect("it has none");
    let punching = listener.dial(named, as_listener).expect("it listens");
    let punching = tokio::spawn(punching);
    let dialling = tokio::spawn(other.dial(to, DIAL).expect("an address"));
    let TransportEvent::Incoming { upgrade, .. } = next(&mut listener).await else {
        panic!("nobody arrives");
    };
    let (peer, accepted) = upgrade.await.expect("it is the listener's");
    assert_eq!(peer, other_id);
    let (_, dialled) = dialling.await.expect("no panic").expect("it listens");
    substream(&mut [dialled, accepted]).await;
    assert!(!punching.is_finished(), "it still waits for its own peer");
    punching.abort();
}

/// DCUtR then tries again, and the next dial of the peer is the one that is expected.
#[tokio::test]
async fn a_dial_as_a_listener_to_a_peer_that_has_just_connected_fails_at_once_and_only_once() {
    let (dialler_id, mut dialler) = transport();
    let (_, mut listener) = transport();
    let (_, from) = listen(&mut dialler, "/ip4/127.0.0.1/udp/0/webrtc-direct").await;
    let from = from.with_p2p(dialler_id).expect("it has none");
    let (_, to) = listen(&mut listener, "/ip4/127.0.0.1/udp/0/webrtc-direct").await;
    let (_kept, _) = connect(&mut dialler, &mut listener, to.clone()).await;
    let as_listener = DialOpts {
        role: Endpoint::Listener,
        ..DIAL
    };
    let late = listener.dial(from.clone(), as_listener);
    assert!(matches!(
        late.map(drop),
        Err(TransportError::Other(Error::AlreadyConnected))
    ));
    let punching = listener.dial(from, as_listener).expect("it listens");
    let punching = tokio::spawn(punching);
    let dialling = tokio::spawn(dialler.dial(to, DIAL).expect("an address"));
    let TransportEvent::Incoming { upgrade, .. } = next(&mut listener).await else {
        panic!("nobody arrives");
    };
    assert!(matches!(upgrade.await, Err(Error::Punched)));
    dialling.await.expect("no panic").expect("it listens");
    let punched = timeout(PROMPT, punching).await.expect("at once");
    punched.expect("no panic").expect("it has come");
}

/// What is polled already has to be woken by what begins later.
#[tokio::test(flavor = "multi_thread")]
async fn a_transport_that_waits_is_woken_by_a_listener_and_by_a_dial() {
    let (_, other) = transport();
    let shared = Arc::new(Mutex::new(other));
    let (sender, mut events) = tokio::sync::mpsc::unbounded_channel();
    let polled = Arc::clone(&shared);
    let polling = tokio::spawn(async move {
        loop {
            let event = poll_fn(|cx| Pin::new(&mut *polled.lock().expect("no panic")).poll(cx));
            if sender.send(event.await).is_err() {
                return;
            }
        }
    });
    let mut next_event = async || timeout(LIMIT, events.recv()).await.expect("it is woken");
    tokio::time::sleep(Duration::from_millis(50)).await;
    let any = "/ip4/127.0.0.1/udp/0/webrtc-direct";
    let any: Multiaddr = any.parse().expect("an address");
    let listening = shared
        .lock()
        .expect("no panic")
        .listen_on(ListenerId::next(), any);
    listening.expect("a free port");
    let Some(TransportEvent::NewAddress { listen_addr, .. }) = next_event().await else {
        panic!("no address");
    };
    let (_, mut far) = transport();
    let dial = far.dial(listen_addr, DIAL).expect("an address");
    let dialling = tokio::spawn(dial);
    let Some(TransportEvent::Incoming { upgrade, .. }) = next_event().await else {
        panic!("nobody arrives");
    };
    let (_, accepted) = upgrade.await.expect("an honest peer");
    let (_, dialled) = dialling.await.expect("no panic").expect("it listens");
    substream(&mut [dialled, accepted]).await;
    // Its own dial needs nobody to poll the transport.
    let (_, address) = listen(&mut far, "/ip4/127.0.0.1/udp/0/webrtc-direct").await;
    let dial = shared.lock().expect("no panic").dial(address, DIAL);
    let dialling = tokio::spawn(dial.expect("an address"));
    let (_, accepted) = accept(&mut far).await;
    let (_, dialled) = dialling.await.expect("no panic").expect("it listens");
    substream(&mut [dialled, accepted]).await;
    polling.abort();
}

type AnyTransport = Boxed<(PeerId, StreamMuxerBox)>;

/// Beside another transport, the first or the second of both.
fn beside_another(is_first: bool) -> AnyTransport {
    let keypair = Keypair::generate_ed25519();
    let ours = Transport::new(&keypair).expect("an Ed25519 key");
    let ours = ours.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let noise = libp2p_noise::Config::new(&keypair).expect("an Ed25519 key");
    let other = MemoryTransport::default()
        .upgrade(Version::V1)
        .authenticate(noise)
        .multiplex(libp2p_yamux::Config::default())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    match is_first {
        true => OrTransport::new(ours, other)
            .map(|either, _| either.into_inner())
            .boxed(),
        false => OrTransport::new(other, ours)
            .map(|either, _| either.into_inner())
            .boxed(),
    }
}

#[tokio::test]
async fn each_of_two_transports_gets_its_addresses_in_either_order() {
    for is_first in [true, false] {
        let (mut dialler, mut listener) = (beside_another(is_first), beside_another(is_first));
        for any in ["/ip4/127.0.0.1/udp/0/webrtc-direct", "/memory/0"] {
            let any = any.parse().expect("an address");
            listener
                .listen_on(ListenerId::next(), any)
                .expect("a free port");
            let event = poll_fn(|cx| Pin::new(&mut listener).poll(cx)).await;
            let address = event.into_new_address().expect("a new address");
            let dial = dialler.dial(address, DIAL).expect("one of them dials it");
            let accepting = async {
                let event = poll_fn(|cx| Pin::new(&mut listener).poll(cx)).await;
                let (upgrade, _) = event.into_incoming().expect("a peer");
                upgrade.await.expect("an honest peer")
            };
            let (dialled, _) = timeout(LIMIT, join(dial, accepting))
                .await
                .expect("in time");
            dialled.expect("it listens");
        }
        let foreign = "/ip4/127.0.0.1/tcp/1".parse().expect("an address");
        let refused = dialler.dial(foreign, DIAL);
        assert!(matches!(
            refused.map(drop),
            Err(TransportError::MultiaddrNotSupported(_))
        ));
    }
}

#[tokio::test]
async fn eight_connections_of_sixteen_substreams_echo_at_once() {
    const LISTENERS: usize = 8;
    const STREAMS: usize = 16;
    const LENGTH: usize = 100_000;
    let (_, mut dialler) = transport();
    let mut exchanges = Vec::new();
    for _ in 0..LISTENERS {
        let (_, mut listener) = transport();
        let (_, address) = listen(&mut listener, "/ip4/127.0.0.1/udp/0/webrtc-direct").await;
        let dial = dialler.dial(address, DIAL).expect("an address");
        let (dialled, (_, mut accepted)) = join(dial, accept(&mut listener)).await;
        let (_, mut dialled) = dialled.expect("it listens");
        exchanges.push(tokio::spawn(async move {
            let mut echoes = Vec::new();
            for _ in 0..STREAMS {
                let mut stream = inbound(&mut accepted).await;
                echoes.push(tokio::spawn(async move {
                    // It answers before it has read all.
                    stream.write_all(b"PING").await.expect("it reads");
                    let mut all = vec![0; LENGTH];
                    stream.read_exact(&mut all).await.expect("all comes");
                    stream.write_all(&all).await.expect("it reads");
                    stream.close().await.expect("it has it");
                }));
            }
            for echo in join_all(echoes).await {
                echo.expect("no panic");
            }
            // Held: the listener, and what it has accepted.
            drop((listener, accepted));
        }));
        exchanges.push(tokio::spawn(async move {
            let mut all = Vec::new();
            for n in 0..STREAMS {
                let mut stream = outbound(&mut dialled).await;
                all.push(tokio::spawn(async move {
                    let sent: Vec<u8> = (0..LENGTH).map(|i| ((i + n) % 251) as u8).collect();
                    stream.write_all(&sent).await.expect("it reads");
                    let mut got = Vec::new();
                    stream.read_to_end(&mut got).await.expect("all comes back");
                    let (ping, back) = got.split_at(4);
                    assert!(ping == b"PING" && back == sent);
                }));
            }
            for exchange in join_all(all).await {
                exchange.expect("no panic");
            }
            drop(dialled);
        }));
    }
    let all = timeout(3 * LIMIT, join_all(exchanges));
    for exchange in all.await.expect("in time") {
        exchange.expect("no panic");
    }
}

/// More than any pause of a writer that has room.
const STALL: Duration = Duration::from_millis(500);

#[tokio::test]
async fn a_writer_waits_for_a_reader_that_does_not_read() {
    for mut connections in pairs().await {
        let [mut opened, mut accepted] = substream(&mut connections).await;
        let chunk = [7; 1 << 14];
        let mut sent = 0;
        // Until nothing goes on for a while.
        while let Ok(written) = timeout(STALL, opened.write(&chunk)).await {
            sent += written.expect("it lives");
        }
        let config = anabranch::Config::default();
        let most = config.receive_window as usize + config.send_buffer;
        assert!(sent <= most + chunk.len(), "{sent} > {most}");
        let mut got = vec![0; sent];
        accepted.read_exact(&mut got).await.expect("it has come");
        assert!(got.iter().all(|byte| *byte == 7));
        assert!(accepted.read(&mut [0]).now_or_never().is_none());
        let written = timeout(LIMIT, opened.write(&chunk)).await;
        written.expect("there is room").expect("it lives");
    }
}

#[tokio::test]
async fn what_was_written_is_read_after_the_writer_has_dropped_the_stream() {
    for mut connections in pairs().await {
        let [mut opened, mut accepted] = substream(&mut connections).await;
        // Its own half is closed meanwhile, and before.
        let _ = accepted.close().now_or_never();
        opened.write_all(b"0123456789").await.expect("room");
        opened.close().await.expect("the peer has it");
        drop(opened);
        accepted.close().await.expect("the peer has it");
        let mut got = Vec::new();
        accepted.read_to_end(&mut got).await.expect("all has come");
        assert_eq!(got, b"0123456789");
    }
}
