//! Peers that fall silent, in every phase of the handshake and after it, in both roles.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::peer::{MTU, Peer, PeerEvent, address};
use super::{CONNECT_TIMEOUT, CREDENTIALS, ENGINES, World};
use anabranch::endpoint::{ConnectError, EngineFactory, Phase};
use anabranch::message::{FrameDecoder, Message};
use anabranch_rtc::ChannelId;
use anabranch_rtc::dtls::forced;
use anabranch_rtc::{CHANNEL_ZERO, Engine, Role};

/// The last step of a peer before it falls silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LastStep {
    /// A listener: none. A dialler: its first check.
    Beginning,
    /// ICE.
    Ice,
    /// This number of DTLS datagrams.
    Dtls(usize),
    /// The whole DTLS handshake, and no SCTP packet.
    WholeDtls,
    /// One SCTP packet: INIT or INIT-ACK.
    Init,
    /// SCTP and channel 0, and no byte on it.
    ChannelZero,
    /// Half of a Noise message.
    HalfMessage,
    /// Message 1 of a listener.
    FirstMessage,
}

impl LastStep {
    /// The phase in which the victim's handshake times out. `without_cookie`: one SCTP packet
    /// establishes the association.
    fn phase(self, without_cookie: bool) -> Phase {
        match self {
            Self::Beginning => Phase::Ice,
            Self::Ice | Self::Dtls(_) => Phase::Dtls,
            Self::Init if without_cookie => Phase::Noise,
            Self::WholeDtls | Self::Init => Phase::DataChannel,
            Self::ChannelZero | Self::HalfMessage | Self::FirstMessage => Phase::Noise,
        }
    }

    /// Lets the peer send up to this step, and then only ICE, as a dead process behind a live
    /// proxy.
    fn apply(self, peer: &mut Peer) {
        let mut left = match self {
            Self::Beginning | Self::Ice => 0,
            Self::Dtls(datagrams) => datagrams,
            _ => usize::MAX,
        };
        let mut checks = usize::from(self == Self::Beginning && peer.role == Role::Client);
        peer.send_filter = Box::new(move |datagram| {
            let count = match datagram.first() {
                Some(0..=3) if self != Self::Beginning => return true,
                Some(0..=3) => &mut checks,
                _ => &mut left,
            };
            let send = *count > 0;
            *count -= usize::from(send);
            send
        });
        match self {
            Self::WholeDtls => peer.sctp_enabled = false,
            Self::Init => {
                let mut sent = false;
                peer.mangle = Box::new(move |packet| {
                    if std::mem::replace(&mut sent, true) {
                        Vec::new()
                    } else {
                        vec![packet]
                    }
                });
            }
            _ => {}
        }
    }
}

/// Runs a peer up to its last step, and then until its connection ends.
async fn run_script(mut peer: Peer, last: LastStep) {
    last.apply(&mut peer);
    if last.phase(false) == Phase::Noise {
        let victim = peer.connect().await;
        let (identity, _) = &CREDENTIALS[2];
        let mut noise = peer.noise(identity, &peer.own_fingerprint(), &victim);
        match last {
            LastStep::HalfMessage => {
                let message = match noise.poll_send() {
                    Some(first) => first,
                    None => {
                        let frame = peer.message(CHANNEL_ZERO).await;
                        noise.receive(&payload(frame)).expect("message 1");
                        noise.poll_send().expect("message 2")
                    }
                };
                peer.send_noise(&message[..message.len() / 2]);
            }
            LastStep::FirstMessage => peer.send_noise(&noise.poll_send().expect("message 1")),
            _ => {}
        }
    }
    loop {
        if let PeerEvent::Ended(_) = peer.next_event().await {
            return;
        }
    }
}

fn payload(frame: bytes::Bytes) -> bytes::Bytes {
    let mut decoder = FrameDecoder::new();
    decoder.push(frame);
    let message: Message = decoder.next_message().expect("valid").expect("whole");
    message.payload
}

fn assert_timed_out(error: &ConnectError, after: Duration, last: LastStep, engine: EngineFactory) {
    let context = format!("{last:?} on {engine:?}: {error} after {after:?}");
    let ConnectError::TimedOut { phase, .. } = error else {
        panic!("{context}");
    };
    // The certificate may have arrived with this part of DTLS.
    let within_dtls = matches!(last, LastStep::Dtls(_)) && *phase == Phase::DataChannel;
    assert!(
        *phase == last.phase(engine.name() == "direct") || within_dtls,
        "{context}"
    );
    let late = Duration::from_millis(50);
    assert!(
        (CONNECT_TIMEOUT..CONNECT_TIMEOUT + late).contains(&after),
        "{context}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_dial_to_a_listener_that_falls_silent_ends_in_time_in_every_phase() {
    let (identity, certificate) = &CREDENTIALS[2];
    for engine in ENGINES {
        for last in [
            LastStep::Beginning,
            LastStep::Ice,
            LastStep::Dtls(1),
            LastStep::WholeDtls,
            LastStep::Init,
            LastStep::ChannelZero,
            LastStep::HalfMessage,
            LastStep::FirstMessage,
        ] {
            let world = World::new(engine).await;
            let host = world.attacker.clone();
            let peer_task = tokio::spawn(async move {
                let peer = Peer::listener(&host, &CREDENTIALS[2].1).await;
                run_script(peer, last).await;
            });
            // Until the peer listens.
            sleep(Duration::from_millis(1)).await;
            if let LastStep::Dtls(_) = last {
                // In DTLS 1.3 a listener's whole flight fits into one datagram.
                forced::set_12(MTU);
            }
            let begin = Instant::now();
            let error = world.victim.connect(&address(certificate, identity)).await;
            let after = begin.elapsed();
            assert_timed_out(&error.expect_err("silence"), after, last, engine);
            assert_eq!(world.victim.connections(), 1, "{last:?} on {engine:?}");
            forced::set_12(usize::MAX);
            peer_task.abort();
            let _ = peer_task.await;
            world.finish().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_handshake_with_a_dialler_that_falls_silent_ends_in_time_in_every_phase() {
    for engine in ENGINES {
        for last in [
            LastStep::Beginning,
            LastStep::Ice,
            LastStep::Dtls(1),
            LastStep::WholeDtls,
            LastStep::Init,
            LastStep::ChannelZero,
            LastStep::HalfMessage,
        ] {
            let mut world = World::new(engine).await;
            let peer = Peer::dialler(&world.attacker, &world.address, &CREDENTIALS[2].1);
            let peer_task = tokio::spawn(run_script(peer, last));
            let (result, after) = world.outcome().await;
            let error = result.expect_err("silence");
            if last == LastStep::Beginning {
                // The phase may be later: the check has shown that there is a path.
                assert!(matches!(error, ConnectError::TimedOut { .. }), "{error}");
                assert!(after <= CONNECT_TIMEOUT + Duration::from_millis(50));
            } else {
                assert_timed_out(&error, after, last, engine);
            }
            peer_task.abort();
            let _ = peer_task.await;
            world.finish().await;
        }
    }
}

/// A peer that sends nothing, not even ICE, after the handshake: `silence_timeout`.
#[tokio::test(start_paused = true)]
async fn a_peer_that_falls_silent_after_the_handshake_ends_with_every_substream() {
    for engine in ENGINES {
        let mut world = World::without_noise(engine).await;
        let mut peer = Peer::dialler(&world.attacker, &world.address, &CREDENTIALS[2].1);
        peer.connect().await;
        let (connection, _) = world.outcome().await;
        let connection = connection.expect("a connection");
        let channel: ChannelId = peer.engine.open("").expect("a channel");
        peer.write(channel, &Message::data("first".into()).encode());
        peer.run(Duration::from_secs(1)).await;
        let mut substream = connection.accept().await.expect("alive").expect("one");
        let begin = Instant::now();
        peer.send_filter = Box::new(|_| false);
        let peer_task = tokio::spawn(async move { peer.run(Duration::from_secs(60)).await });
        let mut all = Vec::new();
        let error = tokio::io::AsyncReadExt::read_to_end(&mut substream, &mut all)
            .await
            .expect_err("silence");
        assert_eq!(all, b"first");
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
        assert!(begin.elapsed() < Duration::from_secs(17), "{engine:?}");
        let cause = connection.closed().await;
        assert_eq!(cause, anabranch::connection::ConnectionError::TimedOut);
        drop((substream, connection));
        peer_task.await.expect("no panic");
        world.finish().await;
    }
}

/// As pion, and so go-libp2p: it sends no ICE checks while there is traffic.
#[tokio::test(start_paused = true)]
async fn a_dialler_that_sends_data_and_no_more_checks_is_not_silent() {
    for engine in ENGINES {
        let mut world = World::without_noise(engine).await;
        let mut peer = Peer::dialler(&world.attacker, &world.address, &CREDENTIALS[2].1);
        peer.connect().await;
        let (connection, _) = world.outcome().await;
        let connection = connection.expect("a connection");
        let channel: ChannelId = peer.engine.open("").expect("a channel");
        peer.send_filter = Box::new(|datagram| datagram[0] > 3);
        // The peer's ICE agent gets no answers, and gives up after 23 s.
        for second in 0..21 {
            peer.write(channel, &Message::data("more".into()).encode());
            peer.run(Duration::from_secs(1)).await;
            let ended = connection.close_reason();
            assert_eq!(ended, None, "{engine:?}, after {second} s");
        }
        peer.send_filter = Box::new(|_| false);
        let peer_task = tokio::spawn(async move { peer.run(Duration::from_secs(60)).await });
        let cause = connection.closed().await;
        assert_eq!(cause, anabranch::connection::ConnectionError::TimedOut);
        drop(connection);
        peer_task.await.expect("no panic");
        world.finish().await;
    }
}

/// As go-libp2p, whose checks are up to 17 s apart: it answers the victim's checks meanwhile.
#[tokio::test(start_paused = true)]
async fn a_dialler_that_is_idle_is_probed_before_it_counts_as_dead() {
    for engine in ENGINES {
        let mut world = World::without_noise(engine).await;
        let mut peer = Peer::dialler(&world.attacker, &world.address, &CREDENTIALS[2].1);
        peer.connect().await;
        let (connection, _) = world.outcome().await;
        let connection = connection.expect("a connection");
        // Everything but Binding requests.
        peer.send_filter = Box::new(|datagram| datagram[..2] != [0, 1]);
        for second in 0..21 {
            peer.run(Duration::from_secs(1)).await;
            let ended = connection.close_reason();
            assert_eq!(ended, None, "{engine:?}, after {second} s");
        }
        peer.send_filter = Box::new(|_| false);
        let begin = Instant::now();
        let peer_task = tokio::spawn(async move { peer.run(Duration::from_secs(60)).await });
        let cause = connection.closed().await;
        assert_eq!(cause, anabranch::connection::ConnectionError::TimedOut);
        assert!(begin.elapsed() < Duration::from_secs(16), "{engine:?}");
        drop(connection);
        peer_task.await.expect("no panic");
        world.finish().await;
    }
}
