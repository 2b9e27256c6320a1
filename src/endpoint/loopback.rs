//! Two WebRTC carriers over UDP on loopback, without an endpoint, for benchmarks and the
//! conformance suite of carriers.

use std::sync::Arc;

use anabranch_rtc::{EngineFactory, Role, Setup};
use tokio::time::Instant;

use super::EndpointConfig;
use super::handshake::{Expectations, HandshakeProgress, establish};
use crate::carrier::Carrier;
use crate::certificate::Certificate;
use crate::udp::socket::{DatagramSocket, UdpDatagramSocket};
use crate::webrtc::{Source, WebRtcCarrier};

const MAX_IN_FLIGHT: usize = 1024 * 1024;

/// Two connected carriers, each on a socket of its own, without Noise. The first one dialled.
///
/// # Panics
/// If the machine has no loopback interface, or the two do not connect.
pub async fn webrtc_pair(engines: [EngineFactory; 2]) -> (impl Carrier, impl Carrier) {
    connect(engines).await
}

async fn connect(engines: [EngineFactory; 2]) -> (WebRtcCarrier, WebRtcCarrier) {
    let sockets = [(); 2].map(|()| {
        let any = "127.0.0.1:0".parse().expect("an address");
        Arc::new(UdpDatagramSocket::bind(any).expect("a socket"))
    });
    let addresses = [0, 1].map(|i: usize| sockets[i].local_addr().expect("an address"));
    let certificates = [(); 2].map(|()| Certificate::generate());
    let credentials = ["a", "b"].map(|name| (name.repeat(4), name.repeat(24)));
    let roles = [Role::Client, Role::Server];
    let carrier = |own: usize| {
        let other = 1 - own;
        let setup = Setup {
            role: roles[own],
            certificate: certificates[own].to_engine(),
            local: addresses[own],
            remote: (roles[own] == Role::Client).then_some(addresses[other]),
            local_credentials: credentials[own].clone(),
            remote_credentials: credentials[other].clone(),
            mtu: 1200,
            max_in_flight: MAX_IN_FLIGHT,
            receive_buffer: 4 * 1024 * 1024,
            progress_timeout: std::time::Duration::from_secs(30),
        };
        let now = Instant::now().into_std();
        let engine = engines[own].make(setup, now).expect("an engine");
        let socket: Arc<dyn DatagramSocket> = sockets[own].clone();
        let local = addresses[own];
        let limits = EndpointConfig::default().carrier_limits();
        let remote = addresses[other];
        WebRtcCarrier::new(engine, socket, Source::Socket { remote }, local, limits)
    };
    let (mut client, mut server) = (carrier(0), carrier(1));
    let hashes = certificates.each_ref().map(Certificate::fingerprint);
    let expect = |own: usize| Expectations {
        role: roles[own],
        certhashes: std::slice::from_ref(&hashes[1 - own]),
        own_fingerprint: hashes[own],
        identity: None,
        peer_id: None,
        late_channel_zero: false,
    };
    let (progress, other_progress) = (HandshakeProgress::default(), HandshakeProgress::default());
    let (a, b) = tokio::join!(
        establish(&mut client, expect(0), &progress),
        establish(&mut server, expect(1), &other_progress)
    );
    a.expect("the client connects");
    b.expect("the server connects");
    (client, server)
}

#[cfg(test)]
mod tests {
    use super::*;

    use anabranch_str0m::STR0M;

    use std::future::poll_fn;
    use std::task::Poll;
    use std::time::Duration;

    use crate::carrier::{CarrierEvent, Class, Written};
    use crate::message::Message;

    /// `LEFT_TO_PEER`: after a RESET the peer has 2 s to close the channel. Here it does not.
    #[tokio::test]
    async fn a_channel_that_the_peer_does_not_close_is_closed_after_2_s() {
        let (mut a, mut b) = connect([EngineFactory::DIRECT, EngineFactory::DIRECT]).await;
        let channel = a.open("").expect("a channel is free");
        let frame = Message::reset(7).encode();
        let mut abandoned = None;
        let closing = poll_fn(|cx| {
            loop {
                let mut moved = match a.poll_event(cx) {
                    Poll::Ready(event) => event.map(|_| true).expect("alive"),
                    Poll::Pending => false,
                };
                if abandoned.is_none() && a.write(channel, &frame, Class::Control) == Written::Taken
                {
                    a.abandon_channel(channel);
                    abandoned = Some(Instant::now());
                    moved = true;
                }
                if let Poll::Ready(event) = b.poll_event(cx) {
                    match event.expect("alive") {
                        CarrierEvent::Closed { .. } => return Poll::Ready(()),
                        CarrierEvent::Readable { channel } => while b.read(channel).is_some() {},
                        _ => {}
                    }
                    moved = true;
                }
                if !moved {
                    return Poll::Pending;
                }
            }
        });
        tokio::time::timeout(Duration::from_secs(30), closing)
            .await
            .expect("it is closed in the end");
        let after = abandoned.expect("written").elapsed();
        assert!(
            (Duration::from_secs(2)..Duration::from_secs(4)).contains(&after),
            "{after:?}"
        );
        // Row S-14, over WebRTC: the frame was a message.
        assert_eq!(
            (a.message_counts().sent, b.message_counts().received),
            (1, 1)
        );
    }

    crate::carrier_conformance!(str0m, || connect([STR0M, STR0M]));
    crate::carrier_conformance!(direct, || connect([
        EngineFactory::DIRECT,
        EngineFactory::DIRECT
    ]));
    crate::carrier_conformance!(direct_dials_str0m, || {
        connect([EngineFactory::DIRECT, STR0M])
    });
    crate::carrier_conformance!(str0m_dials_direct, || {
        connect([STR0M, EngineFactory::DIRECT])
    });
}
