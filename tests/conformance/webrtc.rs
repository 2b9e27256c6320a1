//! The conformance suite over WebRTC, on either engine and between them, over UDP on loopback.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use anabranch::carrier::{Carrier, CarrierEvent, Class, Written};
use anabranch::endpoint::EngineFactory;
use anabranch::message::Message;
use anabranch_str0m::STR0M;
use anabranch_testkit::loopback::webrtc_pair;
use tokio::time::Instant;

const DIRECT: EngineFactory = EngineFactory::DIRECT;

anabranch_testkit::carrier_conformance!(str0m, || webrtc_pair([STR0M, STR0M]));
anabranch_testkit::carrier_conformance!(direct, || webrtc_pair([DIRECT, DIRECT]));
anabranch_testkit::carrier_conformance!(direct_dials_str0m, || webrtc_pair([DIRECT, STR0M]));
anabranch_testkit::carrier_conformance!(str0m_dials_direct, || webrtc_pair([STR0M, DIRECT]));

/// After a RESET the carrier leaves the close of the channel to the peer for 2 s (`LEFT_TO_PEER`).
/// This peer never closes it.
#[tokio::test]
async fn a_channel_that_the_peer_does_not_close_is_closed_after_2_s() {
    let (mut a, mut b) = webrtc_pair([EngineFactory::DIRECT, EngineFactory::DIRECT]).await;
    let channel = a.open("").expect("a channel is free");
    let frame = Message::reset(7).encode();
    let mut abandoned = None;
    let closing = poll_fn(|cx| {
        loop {
            let mut moved = match a.poll_event(cx) {
                Poll::Ready(event) => event.map(|_| true).expect("alive"),
                Poll::Pending => false,
            };
            if abandoned.is_none() && a.write(channel, &frame, Class::Control) == Written::Taken {
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
        .expect("the channel closes");
    let after = abandoned.expect("written").elapsed();
    assert!(
        (Duration::from_secs(2)..Duration::from_secs(4)).contains(&after),
        "{after:?}"
    );
    // Row S-14: over WebRTC a frame is one message.
    assert_eq!(
        (a.message_counts().sent, b.message_counts().received),
        (1, 1)
    );
}
