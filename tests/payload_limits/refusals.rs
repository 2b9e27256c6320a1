//! What a receiver refuses, and a sender does not begin: lengths, numbers, headers, protocols.

use std::io::Cursor;
use std::time::Duration;

use anabranch::Config;
use anabranch::message::{Flag, Message};
use anabranch::payload::{
    MessageError, PayloadError, Payloads, Receiver, Rejection, SendError, Sender, code, receive,
    send_bytes,
};
use anabranch_testkit::memory::MemoryConfig;
use bytes::Bytes;
use tokio::time::Instant;

use crate::common::{Pair, config, pattern, scripted, within};
use crate::payloads::{
    drained, header, payload_config, peer_gets_reset, peer_sends, received, receiver, sender,
};

/// Row F-5: refused by the length in its header; the error has both numbers, and no byte is kept.
#[tokio::test(start_paused = true)]
async fn f5_a_payload_that_claims_too_much_is_refused_by_its_header() {
    for claimed in [64 * 1024 * 1024 + 1, u64::MAX] {
        let mut s = scripted(config(), MemoryConfig::default());
        let mut bytes = header(&[(1, claimed)]);
        bytes.extend_from_slice(&[7; 5000]);
        let (substream, channel) = peer_sends(&mut s, &bytes).await;
        let refused = receive(substream).await.unwrap_err();
        assert!(
            matches!(refused, PayloadError::TooLarge { len, max }
                if len == claimed && max == 64 * 1024 * 1024),
            "{refused:?}"
        );
        peer_gets_reset(&mut s, channel, code::TOO_LARGE).await;
        assert_eq!(s.us.stats().unread, 0);
        s.finish().await;
    }
}

/// Rows F-9 and F-5: the caller's own limit.
#[tokio::test(start_paused = true)]
async fn f9_assemble_refuses_more_than_its_limit() {
    for total in [Some(1001), None] {
        let pair = Pair::new();
        let (here, there) = pair.substream().await;
        let sending = sender(here).send_reader(Cursor::new(pattern(1001)), total);
        let receiving = async { receive(there).await?.assemble(1000).await };
        let (sent, received) = tokio::join!(sending, receiving);
        assert!(
            matches!(
                received,
                Err(PayloadError::TooLarge {
                    len: 1001,
                    max: 1000
                })
            ),
            "{received:?}"
        );
        assert!(
            matches!(sent, Err(SendError::Rejected(Rejection::TooLarge))),
            "{sent:?}"
        );
        pair.finish().await;
    }
}

/// Row FR-5: without a length in the header the received bytes are counted.
#[tokio::test(start_paused = true)]
async fn fr5_a_payload_of_unknown_length_is_stopped_at_the_limit() {
    let mut s = scripted(config(), MemoryConfig::default());
    let mut bytes = header(&[]);
    bytes.extend_from_slice(&pattern(30_000));
    let (substream, channel) = peer_sends(&mut s, &bytes).await;
    let receiver = receiver(|config| config.max_total = 10_000);
    let payload = receiver.receive(substream).await.unwrap();
    let (all, error) = drained(payload).await;
    assert!(all.len() <= 10_000 && all == pattern(all.len()));
    let Some(PayloadError::TooLarge { len, max: 10_000 }) = error else {
        panic!("{error:?}");
    };
    assert!(len > 10_000 && len <= 14_000, "{len}");
    peer_gets_reset(&mut s, channel, code::TOO_LARGE).await;
    assert_eq!(receiver.open(), 0);
    s.finish().await;
}

/// Rows F-5 and F-13: the ninth is refused, and the eight open ones are not affected.
#[tokio::test(start_paused = true)]
async fn f13_the_ninth_payload_is_refused_while_eight_run() {
    let pair = Pair::new();
    let receiver = Receiver::default();
    let mut running = Vec::new();
    for _ in 0..8 {
        let (here, there) = pair.substream().await;
        let sending = tokio::spawn(send_bytes(here, pattern(200_000).into()));
        running.push((sending, receiver.receive(there).await.unwrap()));
    }
    assert_eq!(receiver.open(), 8);
    let (here, there) = pair.substream().await;
    let ninth = tokio::spawn(send_bytes(here, pattern(200_000).into()));
    let refused = receiver.receive(there).await.unwrap_err();
    assert!(
        matches!(refused, PayloadError::TooMany { open: 8, max: 8 }),
        "{refused:?}"
    );
    let ninth = within("the refusal", ninth).await.unwrap();
    assert!(
        matches!(ninth, Err(SendError::Rejected(Rejection::TooMany))),
        "{ninth:?}"
    );
    for (sending, payload) in running {
        assert!(payload.assemble(200_000).await.unwrap() == pattern(200_000));
        within("a receipt", sending).await.unwrap().unwrap();
    }
    assert_eq!(receiver.open(), 0);
    let (here, there) = pair.substream().await;
    let (sent, received) = tokio::join!(send_bytes(here, Bytes::new()), async {
        receiver.receive(there).await?.assemble(0).await
    });
    assert!(sent.is_ok() && received.is_ok(), "there is room again");
    pair.finish().await;
}

/// Row FR-4: more streams than slots, none of which is read, cause no deadlock.
#[tokio::test(start_paused = true)]
async fn fr4_more_payloads_than_slots_cause_no_deadlock() {
    let pair = Pair::new();
    let receiver = receiver(|config| config.max_open = 3);
    let mut payloads = Payloads::new(&pair.b, "", &receiver);
    let mut sending = Vec::new();
    for _ in 0..20 {
        let substream = pair.a.open("").await.unwrap();
        sending.push(tokio::spawn(send_bytes(substream, pattern(100_000).into())));
    }
    let (mut held, mut refused) = (Vec::new(), 0);
    for _ in 0..20 {
        match within("an answer", payloads.accept()).await.unwrap() {
            Ok(payload) => held.push(payload),
            Err(PayloadError::TooMany { open: 3, max: 3 }) => refused += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!((held.len(), refused), (3, 17));
    let began = Instant::now();
    for payload in held {
        assert!(payload.assemble(100_000).await.unwrap() == pattern(100_000));
    }
    let mut confirmed = 0;
    for sending in sending {
        match within("an outcome", sending).await.unwrap() {
            Ok(_) => confirmed += 1,
            Err(SendError::Rejected(Rejection::TooMany)) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(confirmed, 3);
    assert!(began.elapsed() < Duration::from_secs(1));
    drop(payloads);
    pair.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_bad_header_resets_its_substream_and_says_why() {
    let overlong = [&[0xff; 9][..], &[2]].concat();
    let mut metadata = vec![0x84, 0x20, 0x12, 0x81, 0x20];
    metadata.extend_from_slice(&[b'm'; 4097]);
    let cases: [(&[u8], MessageError); 8] = [
        (&[0x80, 0x00], MessageError::Length),
        (&overlong, MessageError::Length),
        (
            &[0x81, 0x22, 1],
            MessageError::TooLong {
                len: 4353,
                max: 4352,
            },
        ),
        (
            &[0xff, 0xff, 0xff, 0xff, 0x0f],
            MessageError::TooLong {
                len: 0xffff_ffff,
                max: 4352,
            },
        ),
        (
            &metadata,
            MessageError::MetadataTooLong {
                len: 4097,
                max: 4096,
            },
        ),
        (&header(&[(3, 99)]), MessageError::UnknownHash(99)),
        (&header(&[(4, 1), (1, 5)]), MessageError::NotResumable),
        (&header(&[(4, 1), (3, 1)]), MessageError::NotResumable),
    ];
    for (bytes, expected) in cases {
        let mut s = scripted(config(), MemoryConfig::default());
        let (substream, channel) = peer_sends(&mut s, bytes).await;
        let refused = within("the refusal", receive(substream)).await.unwrap_err();
        let PayloadError::BadHeader(error) = refused else {
            panic!("{expected:?}: {refused:?}");
        };
        assert_eq!(error, expected);
        peer_gets_reset(&mut s, channel, code::BAD_MESSAGE).await;
        assert_eq!(s.us.stats().unread, 0);
        s.finish().await;
    }
    for bytes in [&[][..], &[5, 0x08]] {
        let mut s = scripted(config(), MemoryConfig::default());
        let (substream, channel) = peer_sends(&mut s, bytes).await;
        s.peer.flag(channel, Flag::Fin);
        let refused = within("the refusal", receive(substream)).await.unwrap_err();
        assert!(
            matches!(refused, PayloadError::BadHeader(MessageError::End)),
            "{refused:?}"
        );
        s.peer.expect(channel, Message::flag(Flag::FinAck)).await;
        peer_gets_reset(&mut s, channel, code::BAD_MESSAGE).await;
        s.finish().await;
    }
    let mut s = scripted(config(), MemoryConfig::default());
    let (substream, channel) = peer_sends(&mut s, &[2, 0x08, 0x80]).await;
    let refused = within("the refusal", receive(substream)).await.unwrap_err();
    assert!(
        matches!(refused, PayloadError::BadHeader(MessageError::Protobuf(_))),
        "{refused:?}"
    );
    peer_gets_reset(&mut s, channel, code::BAD_MESSAGE).await;
    s.finish().await;
}

/// Row F-16: an error of the call, before the first byte.
#[tokio::test(start_paused = true)]
async fn f16_a_sender_fails_before_it_sends_what_is_too_large() {
    let limits = payload_config(|config| config.max_total = 1000);
    let pair = Pair::new();
    let sender = |substream| Sender::new(substream, limits.clone()).unwrap();
    let (here, there) = pair.substream().await;
    let sent = sender(here).send_bytes(pattern(1001).into()).await;
    assert!(
        matches!(
            sent,
            Err(SendError::TooLarge {
                len: 1001,
                max: 1000
            })
        ),
        "{sent:?}"
    );
    let (here, there2) = pair.substream().await;
    let metadata = vec![0; 4097];
    let sent = sender(here)
        .metadata(metadata)
        .send_bytes(Bytes::new())
        .await;
    assert!(
        matches!(
            sent,
            Err(SendError::MetadataTooLong {
                len: 4097,
                max: 4096
            })
        ),
        "{sent:?}"
    );
    assert_eq!(pair.a.stats().payload_sent, 0);
    // With a source of unknown length nothing beyond the limit is sent.
    let (here, there3) = pair.substream().await;
    let sending = sender(here).send_reader(Cursor::new(pattern(200_000)), None);
    let (sent, ()) = tokio::join!(sending, async {
        let error = received(there3).await.1;
        assert!(
            matches!(
                error,
                Some(PayloadError::EndedBySender(Rejection::TooLarge))
            ),
            "{error:?}"
        );
    });
    assert!(
        matches!(sent, Err(SendError::TooLarge { max: 1000, .. })),
        "{sent:?}"
    );
    drop((there, there2));
    pair.finish().await;
}

/// On a connection with protocols, substreams of others are refused.
#[tokio::test(start_paused = true)]
async fn payloads_of_another_protocol_are_reset() {
    let named = |protocols: &[&str]| {
        let mut config = Config::default();
        config.protocols = protocols.iter().map(|name| (*name).to_owned()).collect();
        config
    };
    let theirs = named(&["/payload/1", "/other/1"]);
    let pair = Pair::with(named(&[]), theirs, MemoryConfig::default());
    let receiver = Receiver::default();
    let mut payloads = Payloads::new(&pair.b, "/payload/1", &receiver);
    let receiving = tokio::spawn(async move {
        let payload = payloads.accept().await.unwrap().unwrap();
        payload.assemble(10).await.unwrap()
    });
    // The reset can arrive before the opener has the answer to its negotiation.
    if let Ok(other) = pair.a.open("/other/1").await {
        let sent = within("the refusal", send_bytes(other, pattern(10).into())).await;
        assert!(
            matches!(sent, Err(SendError::Rejected(Rejection::Code(_)))),
            "{sent:?}"
        );
    }
    let ours = pair.a.open("/payload/1").await.unwrap();
    within("the receipt", send_bytes(ours, pattern(10).into()))
        .await
        .unwrap();
    within("the payload", receiving).await.unwrap();
    pair.finish().await;
}

/// Row FR-4: a connection that holds all its slots leaves those of others free.
#[tokio::test(start_paused = true)]
async fn fr4_one_connection_holds_no_more_than_its_share() {
    let receiver = receiver(|config| {
        config.max_open = 3;
        config.max_open_per_connection = 2;
    });
    let (greedy, other) = (Pair::new(), Pair::new());
    let mut payloads = Payloads::new(&greedy.b, "", &receiver);
    let mut held = Vec::new();
    let mut sending = Vec::new();
    for i in 0..3 {
        let substream = greedy.a.open("").await.unwrap();
        sending.push(tokio::spawn(send_bytes(substream, pattern(1000).into())));
        match within("an answer", payloads.accept()).await.unwrap() {
            Ok(payload) if i < 2 => held.push(payload),
            Err(PayloadError::TooMany { open: 2, max: 2 }) if i == 2 => {}
            unexpected => panic!("{unexpected:?}"),
        }
    }
    assert_eq!(receiver.open(), 2);
    let mut others = Payloads::new(&other.b, "", &receiver);
    let substream = other.a.open("").await.unwrap();
    let theirs = tokio::spawn(send_bytes(substream, pattern(1000).into()));
    let payload = within("a place", others.accept()).await.unwrap().unwrap();
    payload.assemble(1000).await.unwrap();
    within("its receipt", theirs).await.unwrap().unwrap();
    for payload in held {
        payload.assemble(1000).await.unwrap();
    }
    let mut refused = 0;
    for sending in sending {
        match within("an outcome", sending).await.unwrap() {
            Ok(_) => {}
            Err(SendError::Rejected(Rejection::TooMany)) => refused += 1,
            Err(unexpected) => panic!("{unexpected:?}"),
        }
    }
    assert_eq!((refused, receiver.open()), (1, 0));
    // There is room again for the same connection.
    let substream = greedy.a.open("").await.unwrap();
    let (sent, received) = tokio::join!(send_bytes(substream, pattern(10).into()), async {
        within("a place", payloads.accept())
            .await
            .unwrap()?
            .assemble(10)
            .await
    });
    assert!(sent.is_ok() && received.is_ok());
    drop((payloads, others));
    greedy.finish().await;
    other.finish().await;
}
