//! Datagrams of unknown hosts to a listening endpoint.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::sleep;

use super::stun::{ForgedStun, STUN_HEADER};
use super::{Input, in_virtual_time};
use crate::simulator::{Host, Network, Verdict};
use anabranch::certificate::Certificate;
use anabranch::endpoint::Endpoint;
use anabranch::identity::Identity;

/// Datagrams of one session.
const MAX_DATAGRAMS: usize = 40;

/// Maximum ratio of bytes sent to bytes received: the endpoint must not be a reflector.
const MAX_AMPLIFICATION: u64 = 3;

static CREDENTIALS: LazyLock<(Identity, Certificate)> = LazyLock::new(|| {
    let identity = Identity::from_ed25519_seed([9; 32]);
    let certificate = Certificate::derive(&identity);
    (identity, certificate)
});

pub(super) fn run(bytes: &[u8]) {
    in_virtual_time(session(Input::new(bytes)));
}

async fn session(mut input: Input<'_>) {
    let network = Network::new(1);
    let host = network.host([10, 0, 0, 1]);
    let (identity, certificate) = CREDENTIALS.clone();
    let endpoint = Endpoint::builder()
        .identity(identity)
        .certificate(certificate)
        .sockets(host.clone())
        .bind("10.0.0.1:4001")
        .await
        .expect("an address is free");
    let listener = SocketAddr::new(host.ip(), 4001);
    network.set_tap(move |datagram| {
        assert_eq!(datagram.source, listener, "only the listener has a socket");
        Verdict::Pass
    });
    let accepting = tokio::spawn(accept(endpoint.clone()));
    let mut sent: HashMap<IpAddr, u64> = HashMap::new();
    let mut valid = false;
    let mut earlier: Vec<Vec<u8>> = Vec::new();
    for _ in 0..MAX_DATAGRAMS {
        if input.is_empty() {
            break;
        }
        let stranger = IpAddr::from([192, 0, 2, 1 + input.u8() % 3]);
        let source = SocketAddr::new(stranger, 1000 + u16::from(input.u8() % 4));
        let datagram = match input.below(8) {
            0 => {
                let length = usize::from(input.u8()) * 4;
                input.take(length).to_vec()
            }
            1 => changed(&mut input, &earlier, &mut valid),
            2 => {
                // A DTLS record of a handshake message.
                let length = usize::from(input.u8());
                [&[22, 254, 253, 0, 0][..], input.take(length)].concat()
            }
            _ => stun(&mut input, &mut valid),
        };
        *sent.entry(stranger).or_default() += datagram.len() as u64;
        network.inject(source, listener, datagram.clone());
        earlier.push(datagram);
        sleep(Duration::from_millis(input.pick(&[0, 1, 20, 600]))).await;
        check(&network, &host, &sent, &endpoint, valid).await;
    }
    // Every admitted handshake has timed out by now.
    sleep(Duration::from_secs(40)).await;
    check(&network, &host, &sent, &endpoint, valid).await;
    assert!(endpoint.is_idle(), "state of a stranger is left");
    endpoint.close().await;
    drop(endpoint);
    accepting.await.expect("no panic");
    sleep(Duration::from_secs(1)).await;
    assert_eq!((network.sockets(), network.in_flight()), (0, 0));
}

/// An application that accepts everybody.
async fn accept(endpoint: Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            assert!(incoming.accept().await.is_err(), "no stranger has keys");
        });
    }
}

async fn check(
    network: &Network,
    host: &Host,
    sent: &HashMap<IpAddr, u64>,
    endpoint: &Endpoint,
    valid: bool,
) {
    for (stranger, sent) in sent {
        let answered = network
            .link_counters(host, &network.host(*stranger))
            .sent_bytes;
        assert!(
            answered <= MAX_AMPLIFICATION * sent,
            "{answered} bytes for {sent}"
        );
        if !valid {
            assert_eq!(answered, 0, "an answer to an invalid datagram");
        }
    }
    assert!(valid || endpoint.is_idle(), "state for an invalid datagram");
}

/// An earlier datagram with up to three changed bytes. Sets `valid` if it may still be valid.
fn changed(input: &mut Input<'_>, earlier: &[Vec<u8>], valid: &mut bool) -> Vec<u8> {
    let index = usize::from(input.u8()).checked_rem(earlier.len());
    let Some(mut datagram) = index.and_then(|index| earlier.get(index).cloned()) else {
        return Vec::new();
    };
    *valid |= datagram.len() >= STUN_HEADER && datagram[0] < 4;
    for _ in 0..input.below(4) {
        let at = usize::from(input.u16()) % datagram.len().max(1);
        let value = input.u8();
        if let Some(byte) = datagram.get_mut(at) {
            *byte = value;
        }
    }
    datagram
}

/// A STUN message. Sets `valid` if a listener may accept it.
fn stun(input: &mut Input<'_>, valid: &mut bool) -> Vec<u8> {
    let kind = input.pick(&[
        0x0001, 0x0001, 0x0001, 0x0001, 0x0101, 0x0111, 0x0011, 0x0003,
    ]);
    let username = username(input);
    let mut message = ForgedStun::new(kind, input.u8());
    let mut is_valid = kind == 0x0001;
    for _ in 0..input.below(4) {
        let attribute = input.pick(&[0x0006, 0x0008, 0x0020, 0x0024, 0x0025, 0x8022, 0x8028]);
        let attribute = if input.bool() { attribute } else { input.u16() };
        let length = usize::from(input.u8());
        message.add(attribute, input.take(length));
        // Whether a message with these attributes is valid is not modelled: assumes that it is.
        *valid = true;
    }
    match &username {
        Some(username) => message.add(0x0006, username),
        None => is_valid = false,
    }
    match input.below(4) {
        // The attribute that Chromium fills with a ClientHello.
        0 => message.add(0xc070, &vec![0x5a; usize::from(input.u8()) * 4]),
        1 => message.add(0x0024, &[0x6e, 0, 1, 0xff]),
        2 => message.add(0x8029, &[0; 8]),
        _ => {}
    }
    let password = username.as_deref().unwrap_or_default();
    let password = password
        .split(|byte| *byte == b':')
        .next()
        .unwrap_or_default();
    match input.below(8) {
        0 => is_valid = false,
        1 => {
            message.add(0x0008, &[0x33; 20]);
            is_valid = false;
        }
        _ => message.sign(password),
    }
    if input.bool() {
        let length = u16::try_from(message.0.len() - STUN_HEADER).unwrap_or(0);
        let error = input.pick(&[0, 0, 0, 4, 1, u16::MAX]);
        message.set_length(length.wrapping_add(error));
        is_valid &= error == 0;
    }
    *valid |= is_valid;
    message.0
}

/// The value of USERNAME, valid or not; `None` for a message without it.
fn username(input: &mut Input<'_>) -> Option<Vec<u8>> {
    let random = b"0123456789abcdefghijklmnopqrstuv";
    let v1 = [b"libp2p+webrtc+v1/", &random[..]].concat();
    let v2 = [b"libp2p+webrtc+v2/", &random[..]].concat();
    Some(match input.below(10) {
        0..=2 => [&v1[..], b":", &v1[..]].concat(),
        3 | 4 => [&v2[..], b":client+ufrag"].concat(),
        5 => [&v1[..], b"\r\na=candidate:x:", &v1[..], b"\r\n"].concat(),
        6 => [&b"libp2p+webrtc+v9/"[..], random, b":", random].concat(),
        7 => {
            // One byte is replaced.
            let mut username = [&v2[..], b":client+ufrag"].concat();
            let at = input.below(username.len());
            username[at] = input.u8();
            username
        }
        8 => {
            let length = usize::from(input.u8()) * 4;
            input.take(length).to_vec()
        }
        _ => return None,
    })
}
