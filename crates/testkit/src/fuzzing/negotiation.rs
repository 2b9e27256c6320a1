//! Arbitrary bytes of a peer during negotiation: Noise and multistream-select.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{sleep, timeout};

use super::peer::{Checked, Peer};
use super::{Input, in_virtual_time};
use crate::memory::{MemoryConfig, pair};
use anabranch::certificate::Fingerprint;
use anabranch::connection::{Config, Connection};
use anabranch::identity::Identity;
use anabranch::message::{Flag, Message};
use anabranch::noise::{Handshake, NoiseError};

const CLIENT: Fingerprint = Fingerprint::from_bytes([0xc1; 32]);
const SERVER: Fingerprint = Fingerprint::from_bytes([0x5e; 32]);

/// Maximum bytes that a handshake accepts: three messages with their length prefixes.
const MAX_NOISE: usize = 3 * (4096 + 2);

/// Longer than the open timeout and every timeout of a close.
const LIMIT: Duration = Duration::from_secs(60);

pub(super) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    match input.below(4) {
        0 => arbitrary_noise(input),
        1 => changed_noise(input),
        2 => arbitrary_identity(input),
        _ => in_virtual_time(multistream(input)),
    }
}

fn handshake(server: bool) -> Handshake {
    let identity = Identity::from_ed25519_seed([1 + u8::from(server); 32]);
    if server {
        Handshake::server(&identity, &CLIENT, &SERVER).expect("a handshake")
    } else {
        Handshake::client(&identity, &CLIENT, &SERVER).expect("a handshake")
    }
}

/// A Noise state of snow, for messages that `Handshake` does not send.
fn bare_noise(initiator: bool) -> snow::HandshakeState {
    let prologue = [
        &b"libp2p-webrtc-noise:"[..],
        &CLIENT.to_multihash(),
        &SERVER.to_multihash(),
    ]
    .concat();
    let pattern = "Noise_XX_25519_ChaChaPoly_SHA256";
    let builder = snow::Builder::new(pattern.parse().expect("a pattern"))
        .local_private_key(&[3; 32])
        .and_then(|builder| builder.prologue(&prologue))
        .expect("a key");
    let built = match initiator {
        true => builder.build_initiator(),
        false => builder.build_responder(),
    };
    built.expect("a handshake")
}

/// Passes bytes to a handshake in pieces, and checks that an error is final.
fn feed(handshake: &mut Handshake, mut bytes: &[u8], cut: usize) -> Result<(), NoiseError> {
    while !bytes.is_empty() {
        let (piece, rest) = bytes.split_at(cut.clamp(1, bytes.len()));
        bytes = rest;
        let result = handshake.receive(piece);
        if result.is_err() {
            assert!(handshake.finished().is_none());
            assert!(handshake.poll_send().is_none(), "output after an error");
            assert_eq!(handshake.receive(&[0]), Err(NoiseError::AlreadyFailed));
            return result;
        }
    }
    Ok(())
}

/// A peer that sends arbitrary bytes.
fn arbitrary_noise(mut input: Input<'_>) {
    let mut handshake = handshake(input.bool());
    let cut = usize::from(input.u8());
    let times = input.pick(&[1, 1, 1, 100]);
    let bytes = input.rest().repeat(times);
    let result = feed(&mut handshake, &bytes, cut);
    assert!(
        result.is_err() || bytes.len() <= MAX_NOISE,
        "more than the bound"
    );
    assert!(handshake.finished().is_none(), "finished without a proof");
}

/// Two handshakes whose messages are changed in transit.
fn changed_noise(mut input: Input<'_>) {
    let mut sides = [handshake(false), handshake(true)];
    let cut = usize::from(input.u8());
    let mut unchanged = true;
    for from in [1, 0, 1] {
        let Some(mut bytes) = sides[from].poll_send() else {
            break;
        };
        let before = bytes.clone();
        match input.below(8) {
            0 => bytes.truncate(usize::from(input.u16()) % (bytes.len() + 1)),
            1 => {
                let at = usize::from(input.u16()) % bytes.len();
                bytes[at] ^= input.u8();
            }
            2 => {
                let length = usize::from(input.u8());
                bytes.extend_from_slice(input.take(length));
            }
            3 => bytes = bytes.repeat(2),
            _ => {}
        }
        unchanged &= bytes == before;
        if feed(&mut sides[1 - from], &bytes, cut).is_err() {
            break;
        }
    }
    for side in &sides {
        assert!(
            !unchanged || side.finished().is_some(),
            "honest peers agree"
        );
    }
}

/// A peer that encrypts correctly, with an arbitrary identity payload.
fn arbitrary_identity(mut input: Input<'_>) {
    let server = input.bool();
    let mut handshake = handshake(server);
    let mut noise = bare_noise(!server);
    let mut buffer = vec![0; 8192];
    let mut write = |noise: &mut snow::HandshakeState, payload: &[u8]| {
        let length = noise.write_message(payload, &mut buffer).expect("it fits");
        let prefix = u16::try_from(length).expect("short");
        [&prefix.to_be_bytes()[..], &buffer[..length]].concat()
    };
    let first = usize::from(input.u8());
    let payload = input.take(first).to_vec();
    let read = |noise: &mut snow::HandshakeState, bytes: Vec<u8>| {
        let mut buffer = vec![0; 8192];
        noise
            .read_message(&bytes[2..], &mut buffer)
            .expect("an honest message");
    };
    let rest = input.rest();
    let result = if server {
        read(&mut noise, handshake.poll_send().expect("message 1"));
        let second = write(&mut noise, rest);
        feed(&mut handshake, &second, 100)
    } else {
        let first = write(&mut noise, &payload);
        feed(&mut handshake, &first, 100).and_then(|()| {
            read(&mut noise, handshake.poll_send().expect("message 2"));
            let third = write(&mut noise, rest);
            feed(&mut handshake, &third, 100)
        })
    };
    // Only a signature of the static key [3; 32] may pass, which the fuzzer cannot produce.
    assert!(result.is_err(), "no identity has signed this key");
    assert!(handshake.finished().is_none());
}

/// A peer that sends arbitrary bytes where multistream-select is expected, in either role.
async fn multistream(mut input: Input<'_>) {
    let mut config = Config::default();
    config.protocols = vec!["/echo/1".to_owned(), "/bulk/1".to_owned()];
    let (a, b, _) = pair(MemoryConfig::default());
    let (connection, driver) = Connection::over(Checked::new(a), Arc::new(config));
    let driver = tokio::spawn(driver);
    let mut peer = Peer::new(b);

    let opening = tokio::spawn({
        let connection = connection.clone();
        async move { connection.open("/echo/1").await.map(drop) }
    });
    let accepting = tokio::spawn({
        let connection = connection.clone();
        async move { while let Ok(Some(_)) = connection.accept().await {} }
    });
    let inbound = peer.open();
    peer.settle().await;
    let mut channels = peer.opened();
    channels.push(inbound);
    while !input.is_empty() {
        let Some(&channel) = channels.get(input.below(channels.len())) else {
            break;
        };
        let bytes = match input.below(6) {
            0 => b"\x13/multistream/1.0.0\n".to_vec(),
            1 => b"\x08/echo/1\n".to_vec(),
            2 => b"\x03na\n".to_vec(),
            3 => input
                .pick(&[&b"\x03ls\n"[..], b"\x01\n", b"\xff\xff\x03", b"\x00"])
                .to_vec(),
            _ => {
                let length = usize::from(input.u8());
                input.take(length).repeat(input.pick(&[1, 1, 60]))
            }
        };
        // As the payload of a frame in most cases.
        let frame = match input.below(16) {
            0 => Bytes::from(bytes),
            1 => {
                let flags = [
                    Flag::Fin,
                    Flag::StopSending,
                    Flag::ResetStream,
                    Flag::FinAck,
                ];
                Message::flag(input.pick(&flags)).encode()
            }
            _ => Message::data(Bytes::from(bytes)).encode(),
        };
        peer.send(channel, &frame);
        peer.settle().await;
        peer.received();
    }
    // The open timeout ends a negotiation that the peer did not complete.
    let opened = peer.drive(timeout(LIMIT, opening)).await;
    // Either result is valid: a negotiated substream or a typed error.
    let _ = opened.expect("opening ends").expect("no panic");
    peer.drive(sleep(LIMIT)).await;
    assert_eq!(connection.stats().substreams, 0, "{:?}", connection.stats());
    peer.drive(timeout(LIMIT, connection.close()))
        .await
        .expect("closing ends");
    accepting.await.expect("no panic");
    driver.await.expect("no panic");
    assert!(connection.is_idle());
}
