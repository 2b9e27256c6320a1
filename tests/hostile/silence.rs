//! Peers that fall silent, in every phase of the handshake and in either role.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::peer::{Heard, MTU, Peer, address};
use super::{CONNECT_TIMEOUT, CREDENTIALS, ENGINES, World};
use anabranch::endpoint::{ConnectError, EngineFactory, Phase};
use anabranch::message::{FrameDecoder, Message};
use anabranch_rtc::ChannelId;
use anabranch_rtc::dtls::forced;
use anabranch_rtc::{CHANNEL_ZERO, Engine, Role};

/// The last that a peer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    /// A listener: nothing. A dialler: its first check.
    Beginning,
    /// All that ICE asks for.
    Ice,
    /// So many datagrams of DTLS.
    Dtls(usize),
    /// All of DTLS, and no packet of SCTP.
    WholeDtls,
    /// One packet of SCTP: the INIT or its answer.
    Init,
    /// SCTP with its channel 0, and no byte on it.
    ChannelZero,
    /// Half of a message of Noise.
    HalfMessage,
    /// The first message of a listener, and no other.
    FirstMessage,
}

impl Last {
    /// What a victim of it got as far as.
    fn phase(self) -> Phase {
        match self {
            Self::Beginning => Phase::Ice,
            Self::Ice | Self::Dtls(_) => Phase::Dtls,
            Self::WholeDtls | Self::Init => Phase::DataChannel,
            Self::ChannelZero | Self::HalfMessage | Self::FirstMessage => Phase::Noise,
        }
    }

    /// Lets through what comes before the silence of one that goes on with ICE, as a dead process behind a
    /// live proxy.
    fn apply(self, peer: &mut Peer) {
        let mut left = match self {
            Self::Beginning | Self::Ice => 0,
            Self::Dtls(datagrams) => datagrams,
            _ => usize::MAX,
        };
        let mut checks = usize::from(self == Self::Beginning && peer.role == Role::Client);
        peer.sends = Box::new(move |datagram| {
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
            Self::WholeDtls => peer.speaks_sctp = false,
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

/// Goes on until the silence, and then only with what keeps a path alive.
async fn play(mut peer: Peer, last: Last) {
    last.apply(&mut peer);
    if last.phase() == Phase::Noise {
        let victim = peer.connect().await;
        let (identity, _) = &CREDENTIALS[2];
        let mut noise = peer.noise(identity, &peer.own_print(), &victim);
        match last {
            Last::HalfMessage => {
                let message = match noise.poll_send() {
                    Some(first) => first,
                    None => {
                        let frame = peer.message(CHANNEL_ZERO).await;
                        noise.receive(&payload(frame)).expect("a first message");
                        noise.poll_send().expect("a second message")
                    }
                };
                peer.say(&message[..message.len() / 2]);
            }
            Last::FirstMessage => peer.say(&noise.poll_send().expect("a first message")),
            _ => {}
        }
    }
    loop {
        if let Heard::Ended(_) = peer.next().await {
            return;
        }
    }
}

fn payload(frame: bytes::Bytes) -> bytes::Bytes {
    let mut decoder = FrameDecoder::new();
    decoder.push(frame);
    let message: Message = decoder.next_message().expect("sound").expect("whole");
    message.payload
}

fn assert_timed_out(error: &ConnectError, after: Duration, last: Last, engine: EngineFactory) {
    let story = format!("{last:?} on {engine:?}: {error} after {after:?}");
    let ConnectError::TimedOut { phase, .. } = error else {
        panic!("{story}");
    };
    // The certificate may have come with the part of DTLS that did.
    let within_dtls = matches!(last, Last::Dtls(_)) && *phase == Phase::DataChannel;
    assert!(*phase == last.phase() || within_dtls, "{story}");
    let late = Duration::from_millis(50);
    assert!(
        (CONNECT_TIMEOUT..CONNECT_TIMEOUT + late).contains(&after),
        "{story}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_dial_to_a_listener_that_falls_silent_ends_in_time_in_every_phase() {
    let (identity, certificate) = &CREDENTIALS[2];
    for engine in ENGINES {
        for last in [
            Last::Beginning,
            Last::Ice,
            Last::Dtls(1),
            Last::WholeDtls,
            Last::Init,
            Last::ChannelZero,
            Last::HalfMessage,
            Last::FirstMessage,
        ] {
            let world = World::new(engine).await;
            let host = world.attacker.clone();
            let playing = tokio::spawn(async move {
                let peer = Peer::listener(&host, &CREDENTIALS[2].1).await;
                play(peer, last).await;
            });
            // Until it listens.
            sleep(Duration::from_millis(1)).await;
            if let Last::Dtls(_) = last {
                // All that a listener says in DTLS 1.3 fits one datagram.
                forced::set_12(MTU);
            }
            let begin = Instant::now();
            let error = world.victim.connect(&address(certificate, identity)).await;
            let after = begin.elapsed();
            assert_timed_out(&error.expect_err("silence"), after, last, engine);
            assert_eq!(world.victim.connections(), 1, "{last:?} on {engine:?}");
            forced::set_12(usize::MAX);
            playing.abort();
            let _ = playing.await;
            world.finish().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_handshake_with_a_dialler_that_falls_silent_ends_in_time_in_every_phase() {
    for engine in ENGINES {
        for last in [
            Last::Beginning,
            Last::Ice,
            Last::Dtls(1),
            Last::WholeDtls,
            Last::Init,
            Last::ChannelZero,
            Last::HalfMessage,
        ] {
            let mut world = World::new(engine).await;
            let peer = Peer::dialler(&world.attacker, &world.address, &CREDENTIALS[2].1);
            let playing = tokio::spawn(play(peer, last));
            let (result, after) = world.outcome().await;
            let error = result.expect_err("silence");
            if last == Last::Beginning {
                // The check itself has shown that there is a path.
                assert!(matches!(error, ConnectError::TimedOut { .. }), "{error}");
                assert!(after <= CONNECT_TIMEOUT + Duration::from_millis(50));
            } else {
                assert_timed_out(&error, after, last, engine);
            }
            playing.abort();
            let _ = playing.await;
            world.finish().await;
        }
    }
}

/// A peer that is silent from then on in ICE as well, behind the handshake: `silence_timeout`.
#[tokio::test(start_paused = true)]
async fn a_peer_that_falls_silent_behind_the_handshake_ends_with_every_substream() {
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
        peer.sends = Box::new(|_| false);
        let playing = tokio::spawn(async move { peer.run(Duration::from_secs(60)).await });
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
        playing.await.expect("no panic");
        world.finish().await;
    }
}

/// As pion does, and with it go-libp2p: while there is traffic, no check of ICE is due.
#[tokio::test(start_paused = true)]
async fn a_dialler_that_sends_data_and_no_more_checks_is_not_silent() {
    for engine in ENGINES {
        let mut world = World::without_noise(engine).await;
        let mut peer = Peer::dialler(&world.attacker, &world.address, &CREDENTIALS[2].1);
        peer.connect().await;
        let (connection, _) = world.outcome().await;
        let connection = connection.expect("a connection");
        let channel: ChannelId = peer.engine.open("").expect("a channel");
        peer.sends = Box::new(|datagram| datagram[0] > 3);
        // Its own agent, which gets no answers, gives up after 23 s.
        for second in 0..21 {
            peer.write(channel, &Message::data("more".into()).encode());
            peer.run(Duration::from_secs(1)).await;
            let ended = connection.close_reason();
            assert_eq!(ended, None, "{engine:?}, after {second} s");
        }
        peer.sends = Box::new(|_| false);
        let playing = tokio::spawn(async move { peer.run(Duration::from_secs(60)).await });
        let cause = connection.closed().await;
        assert_eq!(cause, anabranch::connection::ConnectionError::TimedOut);
        drop(connection);
        playing.await.expect("no panic");
        world.finish().await;
    }
}

/// As go-libp2p, whose checks are up to 17 s apart: ours are answered meanwhile.
#[tokio::test(start_paused = true)]
async fn a_dialler_that_is_idle_is_asked_before_it_counts_as_dead() {
    for engine in ENGINES {
        let mut world = World::without_noise(engine).await;
        let mut peer = Peer::dialler(&world.attacker, &world.address, &CREDENTIALS[2].1);
        peer.connect().await;
        let (connection, _) = world.outcome().await;
        let connection = connection.expect("a connection");
        // All but Binding requests.
        peer.sends = Box::new(|datagram| datagram[..2] != [0, 1]);
        for second in 0..21 {
            peer.run(Duration::from_secs(1)).await;
            let ended = connection.close_reason();
            assert_eq!(ended, None, "{engine:?}, after {second} s");
        }
        peer.sends = Box::new(|_| false);
        let begin = Instant::now();
        let playing = tokio::spawn(async move { peer.run(Duration::from_secs(60)).await });
        let cause = connection.closed().await;
        assert_eq!(cause, anabranch::connection::ConnectionError::TimedOut);
        assert!(begin.elapsed() < Duration::from_secs(16), "{engine:?}");
        drop(connection);
        playing.await.expect("no panic");
        world.finish().await;
    }
}
