//! Peers that violate the Noise handshake, against whole endpoints in both roles. The unit tests in
//! `src/noise` do the same to a single handshake.

use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::sleep;

use super::peer::{Peer, PeerEvent, address};
use super::{CONNECT_TIMEOUT, CREDENTIALS, ENGINES, World};
use anabranch::endpoint::ConnectError;
use anabranch::message::{Flag, FrameDecoder, Message};
use anabranch::noise::Handshake;
use anabranch_rtc::{CHANNEL_ZERO, Engine};

/// What a peer sends in place of its first Noise message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Misbehaviour {
    /// Random bytes after their correct length prefix.
    Random,
    /// Random bytes without a length prefix.
    RandomWithoutLength,
    /// Bytes that are not a frame.
    NoFrame,
    /// The truncated message and FIN.
    CutAndFin,
    /// The truncated message and RESET.
    CutAndReset,
    /// A close of the channel.
    ChannelClosed,
    /// A length prefix of 65 535.
    OversizeLength,
    /// A frame whose length is 16 MiB.
    OversizeFrame,
    /// A varint without an end.
    EndlessVarint,
    /// Messages of 0 and of 1 byte.
    TooShort,
    /// The message of a handshake with another prologue.
    OtherPrologue,
    /// A message of the length of a later one, then the message.
    TooEarly,
    /// The message twice.
    Twice,
    /// A thousand empty frames, and nothing else.
    EmptyFrames,
}

const MISBEHAVIOURS: [Misbehaviour; 14] = [
    Misbehaviour::Random,
    Misbehaviour::RandomWithoutLength,
    Misbehaviour::NoFrame,
    Misbehaviour::CutAndFin,
    Misbehaviour::CutAndReset,
    Misbehaviour::ChannelClosed,
    Misbehaviour::OversizeLength,
    Misbehaviour::OversizeFrame,
    Misbehaviour::EndlessVarint,
    Misbehaviour::TooShort,
    Misbehaviour::OtherPrologue,
    Misbehaviour::TooEarly,
    Misbehaviour::Twice,
    Misbehaviour::EmptyFrames,
];

/// The message that the peer has to send first: message 1 of a listener, message 2 of a dialler.
async fn first_message(peer: &mut Peer, noise: &mut Handshake) -> Vec<u8> {
    if let Some(first) = noise.poll_send() {
        return first;
    }
    let mut decoder = FrameDecoder::new();
    decoder.push(peer.message(CHANNEL_ZERO).await);
    let message = decoder.next_message().expect("valid").expect("whole");
    noise.receive(&message.payload).expect("message 1");
    noise.poll_send().expect("message 2")
}

/// Runs a misbehaving peer until its connection ends.
async fn run_script(mut peer: Peer, misbehaviour: Misbehaviour) {
    let victim = peer.connect().await;
    let (identity, _) = &CREDENTIALS[2];
    let own = if misbehaviour == Misbehaviour::OtherPrologue {
        CREDENTIALS[1].1.fingerprint()
    } else {
        peer.own_fingerprint()
    };
    let mut rng = StdRng::seed_from_u64(7);
    let mut random = vec![0; 200];
    rng.fill(&mut random[..]);
    let mut noise = peer.noise(identity, &own, &victim);
    match misbehaviour {
        Misbehaviour::Random => peer.send_noise(&[&[0, 200][..], &random].concat()),
        Misbehaviour::RandomWithoutLength => {
            random[0] = 0xa0;
            peer.send_noise(&random);
        }
        Misbehaviour::NoFrame => peer.write(CHANNEL_ZERO, &[0x03, 0xff, 0xff, 0xff, 0x01]),
        Misbehaviour::CutAndFin | Misbehaviour::CutAndReset => {
            let message = first_message(&mut peer, &mut noise).await;
            peer.send_noise(&message[..message.len() - 1]);
            let flag = match misbehaviour {
                Misbehaviour::CutAndFin => Flag::Fin,
                _ => Flag::ResetStream,
            };
            peer.write(CHANNEL_ZERO, &Message::flag(flag).encode());
        }
        Misbehaviour::ChannelClosed => peer.engine.close_channel(CHANNEL_ZERO),
        Misbehaviour::OversizeLength => peer.send_noise(&[&[0xff, 0xff][..], &random].concat()),
        Misbehaviour::OversizeFrame => {
            // 16 MiB as a varint.
            peer.write(CHANNEL_ZERO, &[0x80, 0x80, 0x80, 0x08]);
            peer.write(CHANNEL_ZERO, &random);
        }
        Misbehaviour::EndlessVarint => {
            for _ in 0..20 {
                peer.write(CHANNEL_ZERO, &[0xff; 1000]);
            }
        }
        Misbehaviour::TooShort => {
            peer.send_noise(&[0, 0]);
            peer.send_noise(&[0, 1, 7]);
        }
        Misbehaviour::OtherPrologue | Misbehaviour::Twice => {
            let message = first_message(&mut peer, &mut noise).await;
            peer.send_noise(&message);
            if misbehaviour == Misbehaviour::Twice {
                peer.send_noise(&message);
            } else {
                // The victim detects a listener's prologue only by message 3.
                answer(&mut peer, noise).await;
            }
        }
        Misbehaviour::TooEarly => {
            // As long as message 2 or 3, before any keys are agreed.
            peer.send_noise(&[&[0, 200][..], &random].concat());
            let message = first_message(&mut peer, &mut noise).await;
            peer.send_noise(&message);
        }
        Misbehaviour::EmptyFrames => {
            for _ in 0..1000 {
                peer.write(CHANNEL_ZERO, &Message::data(Bytes::new()).encode());
            }
        }
    }
    while !matches!(peer.next_event().await, PeerEvent::Ended(_)) {}
}

/// Receives message 2 of the victim and answers with message 3.
async fn answer(peer: &mut Peer, mut noise: Handshake) {
    if noise.finished().is_some() {
        return;
    }
    let mut decoder = FrameDecoder::new();
    decoder.push(peer.message(CHANNEL_ZERO).await);
    let message = decoder.next_message().expect("valid").expect("whole");
    // The two sides have different keys, so any bytes serve as message 3.
    noise
        .receive(&message.payload)
        .expect_err("another prologue");
    peer.send_noise(&[&[0, 200][..], &[7; 200]].concat());
}

fn assert_typed(error: &ConnectError, after: Duration, misbehaviour: Misbehaviour, context: &str) {
    let expected = match misbehaviour {
        Misbehaviour::NoFrame | Misbehaviour::OversizeFrame | Misbehaviour::EndlessVarint => {
            matches!(error, ConnectError::Framing(_))
        }
        Misbehaviour::CutAndFin | Misbehaviour::CutAndReset => {
            matches!(error, ConnectError::HandshakeAborted)
        }
        Misbehaviour::ChannelClosed => matches!(
            error,
            ConnectError::HandshakeAborted
                | ConnectError::Ended { .. }
                | ConnectError::TimedOut { .. }
        ),
        Misbehaviour::EmptyFrames => matches!(error, ConnectError::TimedOut { .. }),
        _ => matches!(error, ConnectError::Noise(_)),
    };
    assert!(expected, "{context}: {error}");
    let limit = match error {
        ConnectError::TimedOut { .. } => CONNECT_TIMEOUT + Duration::from_millis(50),
        // Each flight takes one round trip of 20 ms.
        _ => Duration::from_secs(2),
    };
    assert!(after < limit, "{context}: after {after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_dialler_that_garbles_noise_is_refused_with_a_typed_error() {
    for engine in ENGINES {
        for misbehaviour in MISBEHAVIOURS {
            let mut world = World::new(engine).await;
            let peer = Peer::dialler(&world.attacker, &world.address, &CREDENTIALS[2].1);
            let peer_task = tokio::spawn(run_script(peer, misbehaviour));
            let (result, after) = world.outcome().await;
            let context = format!("{misbehaviour:?} on {engine:?}");
            match result {
                // Bytes after the handshake are ignored: channel 0 has no other use.
                Ok(connection) if misbehaviour == Misbehaviour::Twice => connection.close().await,
                Ok(_) => panic!("{context}: a connection"),
                Err(error) => assert_typed(&error, after, misbehaviour, &context),
            }
            peer_task.abort();
            let _ = peer_task.await;
            world.finish().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_garbles_noise_is_refused_with_a_typed_error() {
    let (identity, certificate) = &CREDENTIALS[2];
    for engine in ENGINES {
        for misbehaviour in MISBEHAVIOURS {
            let world = World::new(engine).await;
            let host = world.attacker.clone();
            let peer_task = tokio::spawn(async move {
                let peer = Peer::listener(&host, &CREDENTIALS[2].1).await;
                run_script(peer, misbehaviour).await;
            });
            sleep(Duration::from_millis(1)).await;
            let begin = tokio::time::Instant::now();
            let dialled = world.victim.connect(&address(certificate, identity)).await;
            let after = begin.elapsed();
            let context = format!("{misbehaviour:?} on {engine:?}");
            let error = dialled.err().unwrap_or_else(|| panic!("{context}"));
            match misbehaviour {
                // Message 1 is an unauthenticated key, so these bytes pass for one. What follows
                // does not, or nothing follows.
                Misbehaviour::Random | Misbehaviour::TooEarly => {
                    let typed = matches!(
                        error,
                        ConnectError::Noise(_) | ConnectError::TimedOut { .. }
                    );
                    assert!(typed, "{context}: {error}");
                }
                _ => assert_typed(&error, after, misbehaviour, &context),
            }
            peer_task.abort();
            let _ = peer_task.await;
            world.finish().await;
        }
    }
}
