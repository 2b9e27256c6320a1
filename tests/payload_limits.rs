//! Payloads that do not arrive: limits, deadlines, lies, cuts and cancels.

#![allow(missing_docs)]

mod common;

use std::io::Cursor;
use std::time::Duration;

use anabranch::carrier::ChannelId;
use anabranch::carrier::memory::MemoryConfig;
use anabranch::message::{Flag, Message};
use anabranch::payload::{
    MessageError, Payload, PayloadConfig, PayloadError, Payloads, Receiver, Rejection, SendError,
    Sender, TimeLimit, code, receive, send_bytes,
};
use anabranch::{Config, Substream};
use bytes::Bytes;
use common::{Pair, Scripted, config, pattern, scripted, settle, within};
use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

/// A header behind its length: fields of numbers (1 length, 3 hash, 4 resumable) below 128.
fn header(fields: &[(u8, u64)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (field, mut value) in fields.iter().copied() {
        body.push(field << 3);
        while value >= 0x80 {
            body.push(value as u8 | 0x80);
            value >>= 7;
        }
        body.push(value as u8);
    }
    body.insert(0, body.len() as u8);
    body
}

fn payload_config(change: impl FnOnce(&mut PayloadConfig)) -> PayloadConfig {
    let mut config = PayloadConfig::default();
    change(&mut config);
    config
}

fn receiver(change: impl FnOnce(&mut PayloadConfig)) -> Receiver {
    Receiver::new(payload_config(change)).expect("it can work")
}

fn sender(substream: Substream) -> Sender {
    Sender::new(substream, PayloadConfig::default()).expect("the default is valid")
}

/// All bytes, and what came behind them.
async fn drained(payload: Payload) -> (Vec<u8>, Option<PayloadError>) {
    let mut stream = payload.into_stream();
    let mut all = Vec::new();
    while let Some(chunk) = within("a chunk", stream.next()).await {
        match chunk {
            Ok(chunk) => all.extend_from_slice(&chunk),
            Err(error) => {
                assert!(stream.next().await.is_none(), "nothing follows an error");
                return (all, Some(error));
            }
        }
    }
    (all, None)
}

/// The same from the header on: a reset can overtake it.
async fn received(substream: Substream) -> (Vec<u8>, Option<PayloadError>) {
    match receive(substream).await {
        Ok(payload) => drained(payload).await,
        Err(error) => (Vec::new(), Some(error)),
    }
}

/// A substream that the scripted peer has opened, with these bytes on it.
async fn peer_sends(s: &mut Scripted, bytes: &[u8]) -> (Substream, ChannelId) {
    let (substream, channel) = s.accept().await;
    for part in bytes.chunks(4000) {
        s.peer.data(channel, part);
    }
    settle().await;
    (substream, channel)
}

/// What the peer sees of the end of a payload.
async fn peer_is_told(s: &mut Scripted, channel: ChannelId, code: u32) {
    s.peer.expect(channel, Message::reset(code)).await;
    s.peer.expect_closed(channel).await;
}

/// Row F-5: refused by what its header claims, with both numbers, and not a byte of it is kept.
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
        peer_is_told(&mut s, channel, code::TOO_LARGE).await;
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

/// Row FR-5: without a length in the header what arrives is counted.
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
    peer_is_told(&mut s, channel, code::TOO_LARGE).await;
    assert_eq!(receiver.open(), 0);
    s.finish().await;
}

/// Rows F-5 and F-13: the ninth is refused, and the eight that run are not harmed.
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

/// Row FR-4: more streams than places, none of which is read: nothing waits for anything.
#[tokio::test(start_paused = true)]
async fn fr4_more_payloads_than_places_block_nobody() {
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

/// Row F-11: who is slow with the header delays nobody, and has a place only as long as a deadline.
#[tokio::test(start_paused = true)]
async fn f11_a_header_that_does_not_come_delays_no_other() {
    let pair = Pair::new();
    let receiver = Receiver::default();
    let mut payloads = Payloads::new(&pair.b, "", &receiver);
    let mut silent = pair.a.open("").await.unwrap();
    silent.write_all(&[200]).await.unwrap();
    let substream = pair.a.open("").await.unwrap();
    let sending = tokio::spawn(send_bytes(substream, pattern(10).into()));
    let payload = within("the other", payloads.accept())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(receiver.open(), 2);
    payload.assemble(10).await.unwrap();
    within("its receipt", sending).await.unwrap().unwrap();
    let expired = within("the deadline", payloads.accept())
        .await
        .unwrap()
        .unwrap_err();
    assert!(
        matches!(
            expired,
            PayloadError::Expired {
                limit: TimeLimit::Idle,
                received: 0,
                ..
            }
        ),
        "{expired:?}"
    );
    assert_eq!(receiver.open(), 0);
    drop((payloads, silent));
    pair.finish().await;
}

/// Rows F-6 and FR-3: a sender that falls silent, to the millisecond; what came before is handed over.
#[tokio::test(start_paused = true)]
async fn f6_a_payload_expires_60_s_after_its_last_byte() {
    let mut s = scripted(config(), MemoryConfig::default());
    let mut bytes = header(&[(1, 20_000)]);
    bytes.extend_from_slice(&pattern(10_000));
    let (substream, channel) = peer_sends(&mut s, &bytes).await;
    let receiver = Receiver::default();
    let payload = receiver.receive(substream).await.unwrap();
    // That the application takes its time is not the sender's fault.
    sleep(Duration::from_secs(200)).await;
    let began = Instant::now();
    let (all, error) = drained(payload).await;
    assert_eq!(began.elapsed().as_secs(), 60);
    assert!(all == pattern(10_000));
    assert!(
        matches!(error, Some(PayloadError::Expired { limit: TimeLimit::Idle, received: 10_000, after })
            if after == Duration::from_secs(60)),
        "{error:?}"
    );
    peer_is_told(&mut s, channel, code::EXPIRED).await;
    assert_eq!(receiver.open(), 0);
    s.finish().await;
}

/// Row F-6: a byte now and then does not keep a payload alive for ever.
#[tokio::test(start_paused = true)]
async fn f6_a_payload_that_drips_expires_as_a_whole() {
    let pair = Pair::new();
    let (mut here, there) = pair.substream().await;
    let receiver = receiver(|config| config.time_limit = Duration::from_secs(600));
    let began = Instant::now();
    let dripping = tokio::spawn(async move {
        here.write_all(&header(&[(1, 1000)])).await.unwrap();
        let mut dripped = 0;
        while here.write_all(&[dripped as u8]).await.is_ok() {
            dripped += 1;
            sleep(Duration::from_secs(50)).await;
        }
        dripped
    });
    let payload = receiver.receive(there).await.unwrap();
    let receiving = async {
        let (all, error) = drained(payload).await;
        (all.len(), error)
    };
    let (got, error) = timeout(Duration::from_secs(700), receiving).await.unwrap();
    assert_eq!((got, began.elapsed().as_secs()), (12, 600));
    assert!(
        matches!(
            error,
            Some(PayloadError::Expired {
                limit: TimeLimit::Total,
                received: 12,
                ..
            })
        ),
        "{error:?}"
    );
    assert!(within("the sender", dripping).await.unwrap() >= 12);
    pair.finish().await;
}

/// Row FR-3: places of senders that have fallen silent are free again.
#[tokio::test(start_paused = true)]
async fn fr3_abandoned_payloads_give_their_places_back() {
    let pair = Pair::new();
    let receiver = Receiver::default();
    let mut abandoned = Vec::new();
    let mut reading = Vec::new();
    for _ in 0..8 {
        let (mut here, there) = pair.substream().await;
        here.write_all(&header(&[(1, 1000)])).await.unwrap();
        let payload = receiver.receive(there).await.unwrap();
        reading.push(tokio::spawn(drained(payload)));
        abandoned.push(here);
    }
    assert_eq!(receiver.open(), 8);
    for reading in reading {
        let (_, error) = within("the deadline", reading).await.unwrap();
        assert!(
            matches!(error, Some(PayloadError::Expired { .. })),
            "{error:?}"
        );
    }
    assert_eq!(receiver.open(), 0);
    drop(abandoned);
    pair.finish().await;
}

/// A sender gives up too, when the receiver takes nothing for as long.
#[tokio::test(start_paused = true)]
async fn f6_a_sender_expires_when_nothing_moves() {
    let pair = Pair::new();
    let (here, there) = pair.substream().await;
    let began = Instant::now();
    let sent = within("the deadline", send_bytes(here, pattern(4_000_000).into())).await;
    assert!(
        matches!(sent, Err(SendError::Expired { limit: TimeLimit::Idle, sent, .. }) if sent > 0),
        "{sent:?}"
    );
    assert_eq!(began.elapsed().as_secs(), 60);
    drop(there);
    // A receiver that reads, and confirms nothing.
    let (here, mut there) = pair.substream().await;
    let sending = tokio::spawn(send_bytes(here, pattern(10).into()));
    let mut all = Vec::new();
    there.read_to_end(&mut all).await.unwrap();
    let sent = within("the deadline", sending).await.unwrap();
    assert!(matches!(sent, Err(SendError::Expired { .. })), "{sent:?}");
    // One that ends without a word.
    let (here, mut there) = pair.substream().await;
    let sending = tokio::spawn(send_bytes(here, pattern(10).into()));
    there.read_to_end(&mut all).await.unwrap();
    there.finish().await.unwrap();
    let sent = within("the end", sending).await.unwrap();
    assert!(matches!(sent, Err(SendError::Unconfirmed(_))), "{sent:?}");
    // And one that confirms something else.
    let (here, mut there) = pair.substream().await;
    let sending = tokio::spawn(send_bytes(here, pattern(10).into()));
    there.read_to_end(&mut all).await.unwrap();
    there.write_all(&header(&[(1, 9)])).await.unwrap();
    let sent = within("the end", sending).await.unwrap();
    assert!(
        matches!(
            sent,
            Err(SendError::BadAnswer(MessageError::BadReceipt {
                confirmed: 9,
                total: 10
            }))
        ),
        "{sent:?}"
    );
    drop(there);
    pair.finish().await;
}

/// Row F-8: an early FIN is no end.
#[tokio::test(start_paused = true)]
async fn f8_a_payload_that_ends_early_is_truncated_after_what_came() {
    let mut s = scripted(config(), MemoryConfig::default());
    let mut bytes = header(&[(1, 10_001)]);
    bytes.extend_from_slice(&pattern(10_000));
    let (substream, channel) = peer_sends(&mut s, &bytes).await;
    s.peer.flag(channel, Flag::Fin);
    let (all, error) = drained(receive(substream).await.unwrap()).await;
    assert!(all == pattern(10_000));
    assert!(
        matches!(
            error,
            Some(PayloadError::Truncated {
                got: 10_000,
                want: Some(10_001),
                cause: None
            })
        ),
        "{error:?}"
    );
    s.peer.expect(channel, Message::flag(Flag::FinAck)).await;
    peer_is_told(&mut s, channel, code::TRUNCATED).await;
    s.finish().await;
}

/// Row FR-10: when the carrier dies, what was received comes first, and then the cause.
#[tokio::test(start_paused = true)]
async fn fr10_a_connection_that_dies_truncates_after_what_came() {
    for fields in [&[(1, 20_000)][..], &[]] {
        let pair = Pair::new();
        let (mut here, there) = pair.substream().await;
        let mut bytes = header(fields);
        bytes.extend_from_slice(&pattern(10_000));
        here.write_all(&bytes).await.unwrap();
        let payload = receive(there).await.unwrap();
        settle().await;
        pair.faults.kill();
        within("the end", pair.b.closed()).await;
        let (all, error) = drained(payload).await;
        assert!(all == pattern(10_000));
        let Some(PayloadError::Truncated {
            got: 10_000,
            want,
            cause: Some(_),
        }) = error
        else {
            panic!("{error:?}");
        };
        assert_eq!(want, fields.first().map(|(_, total)| *total));
    }
}

/// Rows F-9 and FR-5: exact, without slack; by one byte and by many.
#[tokio::test(start_paused = true)]
async fn f9_a_payload_that_is_longer_than_it_said_overflows() {
    for (more, hash) in [(1, false), (9000, false), (1, true), (9000, true)] {
        let mut s = scripted(config(), MemoryConfig::default());
        let hash_len = if hash { 32 } else { 0 };
        let mut bytes = header(&[(1, 100), (3, u64::from(hash))]);
        bytes.extend_from_slice(&pattern(100 + hash_len + more));
        let (substream, channel) = peer_sends(&mut s, &bytes).await;
        let (all, error) = drained(receive(substream).await.unwrap()).await;
        assert!(all == pattern(100));
        let Some(PayloadError::Overflow { got, want: 100 }) = error else {
            panic!("{error:?}");
        };
        assert!(got > 100 && got <= 100 + more as u64, "{got}");
        peer_is_told(&mut s, channel, code::OVERFLOW).await;
        assert_eq!(s.us.stats().unread, 0);
        s.finish().await;
    }
}

/// A hash that is wrong is an error behind the bytes; so is one that is missing.
#[tokio::test(start_paused = true)]
async fn a_wrong_hash_is_an_error_behind_the_bytes() {
    for fields in [&[(1, 5000), (3, 1)][..], &[(3, 1)]] {
        for trailer in [32, 31, 0] {
            let known = fields.len() == 2;
            let mut s = scripted(config(), MemoryConfig::default());
            let mut bytes = header(fields);
            bytes.extend_from_slice(&pattern(5000));
            bytes.extend_from_slice(&vec![0xaa; trailer]);
            let (substream, channel) = peer_sends(&mut s, &bytes).await;
            s.peer.flag(channel, Flag::Fin);
            let (all, error) = drained(receive(substream).await.unwrap()).await;
            if known {
                assert!(all == pattern(5000));
            } else {
                assert!(all[..] == bytes[3..bytes.len() - 32], "but for the last 32");
            }
            match error {
                Some(PayloadError::HashMismatch { expected, actual }) => {
                    assert!(trailer == 32 || !known);
                    assert_eq!(expected == [0xaa; 32], trailer == 32);
                    assert_ne!(actual, expected);
                }
                Some(PayloadError::HashMissing) => assert!(trailer < 32 && known),
                other => panic!("{other:?}"),
            }
            s.peer.expect(channel, Message::flag(Flag::FinAck)).await;
            peer_is_told(&mut s, channel, code::HASH_MISMATCH).await;
            s.finish().await;
        }
    }
    // Shorter than a hash alone.
    let mut s = scripted(config(), MemoryConfig::default());
    let mut bytes = header(&[(3, 1)]);
    bytes.extend_from_slice(b"short");
    let (substream, channel) = peer_sends(&mut s, &bytes).await;
    s.peer.flag(channel, Flag::Fin);
    let (_, error) = drained(receive(substream).await.unwrap()).await;
    assert!(
        matches!(error, Some(PayloadError::HashMissing)),
        "{error:?}"
    );
    s.peer.expect(channel, Message::flag(Flag::FinAck)).await;
    peer_is_told(&mut s, channel, code::HASH_MISMATCH).await;
    s.finish().await;
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
        peer_is_told(&mut s, channel, code::BAD_MESSAGE).await;
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
        peer_is_told(&mut s, channel, code::BAD_MESSAGE).await;
        s.finish().await;
    }
    let mut s = scripted(config(), MemoryConfig::default());
    let (substream, channel) = peer_sends(&mut s, &[2, 0x08, 0x80]).await;
    let refused = within("the refusal", receive(substream)).await.unwrap_err();
    assert!(
        matches!(refused, PayloadError::BadHeader(MessageError::Protobuf(_))),
        "{refused:?}"
    );
    peer_is_told(&mut s, channel, code::BAD_MESSAGE).await;
    s.finish().await;
}

/// Row F-16: an error of that call, before the first byte.
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
    // Of a source of unknown length nothing beyond the limit goes out.
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

#[tokio::test(start_paused = true)]
async fn a_source_that_fails_or_ends_early_is_an_error_on_both_sides() {
    let pair = Pair::new();
    let (here, there) = pair.substream().await;
    let sending = sender(here).send_reader(Cursor::new(pattern(999)), Some(1000));
    let (sent, (_, error)) = tokio::join!(sending, received(there));
    assert!(
        matches!(
            sent,
            Err(SendError::SourceTruncated {
                got: 999,
                want: 1000
            })
        ),
        "{sent:?}"
    );
    assert!(
        matches!(
            error,
            Some(PayloadError::EndedBySender(Rejection::Truncated))
        ),
        "{error:?}"
    );
    // A longer one is read as far as it was announced.
    let (here, there) = pair.substream().await;
    let sending = sender(here).send_reader(Cursor::new(pattern(2000)), Some(1000));
    let (sent, all) = tokio::join!(sending, async {
        receive(there).await?.assemble(1000).await
    });
    assert_eq!(sent.unwrap().total, 1000);
    assert!(all.unwrap() == pattern(1000));
    // A writer that fails.
    let (here, there) = pair.substream().await;
    let (writer, reader) = tokio::io::duplex(10);
    drop(reader);
    let mut writer = writer;
    let (sent, received) = tokio::join!(send_bytes(here, pattern(1000).into()), async {
        receive(there).await?.copy_to(&mut writer).await
    });
    assert!(
        matches!(received, Err(PayloadError::Local(_))),
        "{received:?}"
    );
    assert!(
        matches!(sent, Err(SendError::Rejected(Rejection::LocalFailure))),
        "{sent:?}"
    );
    pair.finish().await;
}

/// Either side may end one payload, with its own code, while the other waits and while it does not.
#[tokio::test(start_paused = true)]
async fn a_payload_is_cancelled_from_either_side_with_a_code() {
    let pair = Pair::new();
    let big = Bytes::from(pattern(4_000_000));
    // The receiver, by its handle, while the sender waits for room.
    let (here, there) = pair.substream().await;
    let sending = tokio::spawn(send_bytes(here, big.clone()));
    let payload = receive(there).await.unwrap();
    let canceller = payload.canceller();
    let stream = payload.into_stream();
    sleep(Duration::from_secs(1)).await;
    canceller.cancel(77);
    let sent = within("the cancel", sending).await.unwrap();
    assert!(
        matches!(sent, Err(SendError::Rejected(Rejection::Code(77)))),
        "{sent:?}"
    );
    let mut stream = stream;
    let error = stream.next().await.unwrap().unwrap_err();
    assert!(matches!(error, PayloadError::Cancelled(77)), "{error:?}");
    assert!(stream.next().await.is_none());
    // The sender, by its handle, while the receiver waits for more.
    let (here, there) = pair.substream().await;
    let (silent, source) = tokio::io::duplex(10);
    let sender = sender(here);
    let canceller = sender.canceller();
    let sending = tokio::spawn(sender.send_reader(source, Some(10)));
    let payload = receive(there).await.unwrap();
    let receiving = tokio::spawn(drained(payload));
    sleep(Duration::from_secs(1)).await;
    canceller.cancel(78);
    canceller.cancel(79);
    let sent = within("the cancel", sending).await.unwrap();
    assert!(matches!(sent, Err(SendError::Cancelled(78))), "{sent:?}");
    let (_, error) = within("the cancel", receiving).await.unwrap();
    assert!(
        matches!(
            error,
            Some(PayloadError::EndedBySender(Rejection::Code(78)))
        ),
        "{error:?}"
    );
    drop(silent);
    // The receiver does not want what the header describes.
    let (here, there) = pair.substream().await;
    let sending = tokio::spawn(send_bytes(here, big.clone()));
    receive(there).await.unwrap().cancel(80);
    let sent = within("the cancel", sending).await.unwrap();
    assert!(
        matches!(sent, Err(SendError::Rejected(Rejection::Code(80)))),
        "{sent:?}"
    );
    // Drops.
    let (here, there) = pair.substream().await;
    let sending = tokio::spawn(send_bytes(here, big.clone()));
    drop(receive(there).await.unwrap().into_stream());
    let sent = within("the cancel", sending).await.unwrap();
    assert!(
        matches!(sent, Err(SendError::Rejected(Rejection::Cancelled))),
        "{sent:?}"
    );
    let (here, there) = pair.substream().await;
    let sending = tokio::spawn(send_bytes(here, big.clone()));
    let payload = receive(there).await.unwrap();
    sending.abort();
    let (_, error) = drained(payload).await;
    assert!(
        matches!(
            error,
            Some(PayloadError::EndedBySender(Rejection::Cancelled))
        ),
        "{error:?}"
    );
    pair.finish().await;
}

/// A receiver that goes while the source is silent is noticed at once.
#[tokio::test(start_paused = true)]
async fn a_sender_whose_source_is_silent_notices_a_cancel() {
    let pair = Pair::new();
    let (here, there) = pair.substream().await;
    let (silent, source) = tokio::io::duplex(10);
    let sending = tokio::spawn(sender(here).send_reader(source, None));
    let began = Instant::now();
    receive(there).await.unwrap().cancel(5);
    let sent = within("the cancel", sending).await.unwrap();
    assert!(
        matches!(sent, Err(SendError::Rejected(Rejection::Code(5)))),
        "{sent:?}"
    );
    assert!(began.elapsed() < Duration::from_secs(1));
    drop(silent);
    pair.finish().await;
}

/// A cancel that comes too late does nothing.
#[tokio::test(start_paused = true)]
async fn a_complete_payload_can_not_be_cancelled() {
    let pair = Pair::new();
    let (here, there) = pair.substream().await;
    let sender = sender(here);
    let ours = sender.canceller();
    let sending = tokio::spawn(sender.send_bytes(pattern(10).into()));
    let payload = receive(there).await.unwrap();
    let theirs = payload.canceller();
    payload.assemble(10).await.unwrap();
    theirs.cancel(1);
    assert_eq!(
        within("the receipt", sending).await.unwrap().unwrap().total,
        10
    );
    ours.cancel(2);
    pair.finish().await;
    ours.cancel(3);
}

/// Row FR-6: what still comes for a payload that has ended makes nothing new.
#[tokio::test(start_paused = true)]
async fn fr6_late_data_of_a_payload_that_has_ended_is_dropped() {
    let mut s = scripted(config(), MemoryConfig::default());
    let receiver = Receiver::default();
    let (substream, channel) = peer_sends(&mut s, &header(&[(1, 50_000)])).await;
    let payload = receiver.receive(substream).await.unwrap();
    drop(payload);
    for _ in 0..10 {
        s.peer.data(channel, &[1; 1000]);
    }
    s.peer
        .expect(channel, Message::reset(code::CANCELLED))
        .await;
    assert_eq!((s.us.stats().unread, receiver.open()), (0, 0));
    let nothing = timeout(Duration::from_secs(1), s.us.accept()).await;
    assert!(nothing.is_err(), "no substream comes of it");
    s.peer.expect_closed(channel).await;
    s.finish().await;
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
    // The reset can come before the opener knows that its protocol is spoken.
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
