//! Noise of peers that do not keep to it: what the unit tests of `src/noise` do to one handshake, here to
//! whole endpoints in either role.

use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::sleep;

use super::peer::{Heard, Peer, address};
use super::{CONNECT_TIMEOUT, CREDENTIALS, ENGINES, World};
use anabranch::endpoint::ConnectError;
use anabranch::message::{Flag, FrameDecoder, Message};
use anabranch::noise::Handshake;
use anabranch_rtc::{CHANNEL_ZERO, Engine};

/// What a peer says in place of its first message of Noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    /// Bytes of no meaning, with a length in front that is right.
    Random,
    /// The same, without a length.
    RandomWithoutLength,
    /// Bytes that are no frame.
    NoFrame,
    /// The message without its end, and the end of the stream.
    CutAndFin,
    /// The message without its end, and a reset.
    CutAndReset,
    /// The channel is closed.
    ChannelClosed,
    /// A length of 65 535.
    OversizeLength,
    /// A frame that says it has 16 MiB.
    OversizeFrame,
    /// A number whose bytes all say that another follows.
    EndlessNumber,
    /// A length of 0 and of 1, which no message has.
    TooShort,
    /// The right message, made with another prologue.
    OtherPrologue,
    /// What belongs into a later message.
    TooEarly,
    /// The message twice.
    Twice,
    /// An empty payload a thousand times, then nothing.
    EmptyFrames,
}

const LIES: [Lie; 14] = [
    Lie::Random,
    Lie::RandomWithoutLength,
    Lie::NoFrame,
    Lie::CutAndFin,
    Lie::CutAndReset,
    Lie::ChannelClosed,
    Lie::OversizeLength,
    Lie::OversizeFrame,
    Lie::EndlessNumber,
    Lie::TooShort,
    Lie::OtherPrologue,
    Lie::TooEarly,
    Lie::Twice,
    Lie::EmptyFrames,
];

/// The message that is due: the first of a listener, the second of a dialler.
async fn due(peer: &mut Peer, noise: &mut Handshake) -> Vec<u8> {
    if let Some(first) = noise.poll_send() {
        return first;
    }
    let mut decoder = FrameDecoder::new();
    decoder.push(peer.message(CHANNEL_ZERO).await);
    let message = decoder.next_message().expect("sound").expect("whole");
    noise.receive(&message.payload).expect("a first message");
    noise.poll_send().expect("a second message")
}

async fn play(mut peer: Peer, lie: Lie) {
    let victim = peer.connect().await;
    let (identity, _) = &CREDENTIALS[2];
    let own = if lie == Lie::OtherPrologue {
        CREDENTIALS[1].1.fingerprint()
    } else {
        peer.own_print()
    };
    let mut rng = StdRng::seed_from_u64(7);
    let mut random = vec![0; 200];
    rng.fill(&mut random[..]);
    let mut noise = peer.noise(identity, &own, &victim);
    match lie {
        Lie::Random => peer.say(&[&[0, 200][..], &random].concat()),
        Lie::RandomWithoutLength => {
            random[0] = 0xa0;
            peer.say(&random);
        }
        Lie::NoFrame => peer.write(CHANNEL_ZERO, &[0x03, 0xff, 0xff, 0xff, 0x01]),
        Lie::CutAndFin | Lie::CutAndReset => {
            let message = due(&mut peer, &mut noise).await;
            peer.say(&message[..message.len() - 1]);
            let flag = match lie {
                Lie::CutAndFin => Flag::Fin,
                _ => Flag::ResetStream,
            };
            peer.write(CHANNEL_ZERO, &Message::flag(flag).encode());
        }
        Lie::ChannelClosed => peer.engine.close_channel(CHANNEL_ZERO),
        Lie::OversizeLength => peer.say(&[&[0xff, 0xff][..], &random].concat()),
        Lie::OversizeFrame => {
            // 16 MiB as a varint.
            peer.write(CHANNEL_ZERO, &[0x80, 0x80, 0x80, 0x08]);
            peer.write(CHANNEL_ZERO, &random);
        }
        Lie::EndlessNumber => {
            for _ in 0..20 {
                peer.write(CHANNEL_ZERO, &[0xff; 1000]);
            }
        }
        Lie::TooShort => {
            peer.say(&[0, 0]);
            peer.say(&[0, 1, 7]);
        }
        Lie::OtherPrologue | Lie::Twice => {
            let message = due(&mut peer, &mut noise).await;
            peer.say(&message);
            if lie == Lie::Twice {
                peer.say(&message);
            } else {
                // A listener is found out by its third message.
                answer(&mut peer, noise).await;
            }
        }
        Lie::TooEarly => {
            // As long as a second or third message, before there are any keys.
            peer.say(&[&[0, 200][..], &random].concat());
            let message = due(&mut peer, &mut noise).await;
            peer.say(&message);
        }
        Lie::EmptyFrames => {
            for _ in 0..1000 {
                peer.write(CHANNEL_ZERO, &Message::data(Bytes::new()).encode());
            }
        }
    }
    while !matches!(peer.next().await, Heard::Ended(_)) {}
}

/// Takes what the victim says and answers as far as Noise goes.
async fn answer(peer: &mut Peer, mut noise: Handshake) {
    if noise.finished().is_some() {
        return;
    }
    let mut decoder = FrameDecoder::new();
    decoder.push(peer.message(CHANNEL_ZERO).await);
    let message = decoder.next_message().expect("sound").expect("whole");
    // The two do not agree on the keys any more, so whatever comes last is as good as any.
    noise
        .receive(&message.payload)
        .expect_err("another prologue");
    peer.say(&[&[0, 200][..], &[7; 200]].concat());
}

fn assert_typed(error: &ConnectError, after: Duration, lie: Lie, story: &str) {
    let expected = match lie {
        Lie::NoFrame | Lie::OversizeFrame | Lie::EndlessNumber => {
            matches!(error, ConnectError::Framing(_))
        }
        Lie::CutAndFin | Lie::CutAndReset => matches!(error, ConnectError::HandshakeAborted),
        Lie::ChannelClosed => matches!(
            error,
            ConnectError::HandshakeAborted
                | ConnectError::Ended { .. }
                | ConnectError::TimedOut { .. }
        ),
        Lie::EmptyFrames => matches!(error, ConnectError::TimedOut { .. }),
        _ => matches!(error, ConnectError::Noise(_)),
    };
    assert!(expected, "{story}: {error}");
    let limit = match error {
        ConnectError::TimedOut { .. } => CONNECT_TIMEOUT + Duration::from_millis(50),
        // A round trip of 20 ms for each flight.
        _ => Duration::from_secs(2),
    };
    assert!(after < limit, "{story}: after {after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_dialler_that_garbles_noise_is_refused_with_a_typed_error() {
    for engine in ENGINES {
        for lie in LIES {
            let mut world = World::new(engine).await;
            let peer = Peer::dialler(&world.attacker, &world.address, &CREDENTIALS[2].1);
            let playing = tokio::spawn(play(peer, lie));
            let (result, after) = world.outcome().await;
            let story = format!("{lie:?} on {engine:?}");
            match result {
                // What comes behind the end of Noise is no matter: channel 0 has no other use.
                Ok(connection) if lie == Lie::Twice => connection.close().await,
                Ok(_) => panic!("{story}: a connection"),
                Err(error) => assert_typed(&error, after, lie, &story),
            }
            playing.abort();
            let _ = playing.await;
            world.finish().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_garbles_noise_is_refused_with_a_typed_error() {
    let (identity, certificate) = &CREDENTIALS[2];
    for engine in ENGINES {
        for lie in LIES {
            let world = World::new(engine).await;
            let host = world.attacker.clone();
            let playing = tokio::spawn(async move {
                let peer = Peer::listener(&host, &CREDENTIALS[2].1).await;
                play(peer, lie).await;
            });
            sleep(Duration::from_millis(1)).await;
            let begin = tokio::time::Instant::now();
            let dialled = world.victim.connect(&address(certificate, identity)).await;
            let after = begin.elapsed();
            let story = format!("{lie:?} on {engine:?}");
            let error = dialled.err().unwrap_or_else(|| panic!("{story}"));
            match lie {
                // A first message is a key without any proof: these bytes pass for one, and what
                // stands behind it is noticed.
                Lie::Random | Lie::TooEarly => {
                    let typed = matches!(
                        error,
                        ConnectError::Noise(_) | ConnectError::TimedOut { .. }
                    );
                    assert!(typed, "{story}: {error}");
                }
                _ => assert_typed(&error, after, lie, &story),
            }
            playing.abort();
            let _ = playing.await;
            world.finish().await;
        }
    }
}
