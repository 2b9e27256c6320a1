//! Payloads that are truncated, too long, or do not match their hash.

use std::io::{Cursor, ErrorKind};

use anabranch::message::{Flag, Message};
use anabranch::payload::{PayloadError, Rejection, SendError, code, receive, send_bytes};
use anabranch::substream::code as substream_code;
use anabranch_testkit::memory::MemoryConfig;
use tokio::io::AsyncWriteExt;

use crate::common::{Pair, config, pattern, scripted, settle, within};
use crate::payloads::{drained, header, peer_gets_reset, peer_sends, received, sender};

/// Row F-8: an early FIN is not the end of the payload.
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
    peer_gets_reset(&mut s, channel, code::TRUNCATED).await;
    s.finish().await;
}

/// Row FR-10: when the carrier fails, received data comes first, then the cause.
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

/// Rows F-9 and FR-5: lengths are exact; off by one byte and by many.
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
        peer_gets_reset(&mut s, channel, code::OVERFLOW).await;
        assert_eq!(s.us.stats().unread, 0);
        s.finish().await;
    }
}

/// A wrong or missing hash is an error after the bytes.
#[tokio::test(start_paused = true)]
async fn a_wrong_hash_is_an_error_after_the_bytes() {
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
            peer_gets_reset(&mut s, channel, code::HASH_MISMATCH).await;
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
    peer_gets_reset(&mut s, channel, code::HASH_MISMATCH).await;
    s.finish().await;
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
    // A longer payload is read up to the announced length.
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

/// Row F-7: a FIN from the close of the connection is not the end of the payload.
#[tokio::test(start_paused = true)]
async fn f7_a_close_amid_a_payload_of_unknown_length_is_no_end() {
    for hashed in [false, true] {
        let pair = Pair::new();
        let (here, there) = pair.substream().await;
        let (mut source, reader) = tokio::io::duplex(10_000);
        source.write_all(&pattern(5000)).await.unwrap();
        let mut sender = sender(here);
        if hashed {
            sender = sender.hashed();
        }
        let sending = tokio::spawn(sender.send_reader(reader, None));
        let payload = receive(there).await.unwrap();
        let receiving = tokio::spawn(drained(payload));
        settle().await;
        within("the close", pair.a.close()).await;
        let (all, error) = within("its end", receiving).await.unwrap();
        assert!(pattern(5000).starts_with(&all));
        assert!(
            matches!(
                error,
                Some(PayloadError::EndedBySender(Rejection::Code(
                    substream_code::SHUTDOWN
                )))
            ),
            "{error:?}"
        );
        let sent = within("its end", sending).await.unwrap();
        assert!(
            matches!(&sent, Err(SendError::Unconfirmed(error))
                if error.kind() == ErrorKind::ConnectionAborted),
            "{sent:?}"
        );
        pair.finish().await;
    }
}

/// A completely written payload is delivered when the connection closes.
#[tokio::test(start_paused = true)]
async fn a_close_after_the_last_byte_of_a_payload_delivers_it() {
    let pair = Pair::new();
    let (here, there) = pair.substream().await;
    let sending = tokio::spawn(sender(here).send_reader(Cursor::new(pattern(5000)), None));
    settle().await;
    let (_, received) = tokio::join!(pair.a.close(), received(there));
    let (all, error) = received;
    assert!(all == pattern(5000) && error.is_none(), "{error:?}");
    // The close has prevented its confirmation.
    let sent = within("its end", sending).await.unwrap();
    assert!(matches!(sent, Err(SendError::Unconfirmed(_))), "{sent:?}");
    pair.finish().await;
}
