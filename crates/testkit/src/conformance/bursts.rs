//! Cases about bursts of opens and of small messages, resets, and closes with a reason.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::connections::{Pair, echo, serve_echo, within};
use super::pattern;
use anabranch::carrier::Carrier;
use anabranch::connection::Negotiation;
use anabranch::substream::code;
use anabranch::{Config, ConnectionError, SubstreamError};

fn config(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::default();
    config.negotiation = Negotiation::None;
    change(&mut config);
    config
}

/// Opens beyond the peer's substream limit wait for a free place: none is refused, and every echo
/// is complete.
pub async fn a_burst_of_opens_waits_for_room<F, Fut, A, B>(factory: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = (A, B)>,
    A: Carrier + 'static,
    B: Carrier + 'static,
{
    let config = config(|config| config.max_inbound_substreams = 80);
    let pair = Pair::with(factory, config).await;
    serve_echo(pair.b.clone());
    let echoes: Vec<_> = (0..500)
        .map(|nth| {
            let connection = pair.a.clone();
            tokio::spawn(async move { echo(&connection, pattern(nth % 300)).await })
        })
        .collect();
    for each in echoes {
        within("an echo", each).await.unwrap();
    }
    assert_eq!(pair.b.stats().refused, 0);
    assert_eq!(pair.b.stats().accepted, 500);
    pair.finish().await;
}

/// Messages of one byte, each flushed, arrive at a reader that starts late; a concurrent echo
/// completes meanwhile.
pub async fn tiny_messages_to_a_late_reader_all_arrive<F, Fut, A, B>(factory: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = (A, B)>,
    A: Carrier + 'static,
    B: Carrier + 'static,
{
    const MESSAGES: usize = 10_000;
    let pair = Pair::connect(factory, Negotiation::None).await;
    let (mut here, mut there) = pair.substream().await;
    let writing = tokio::spawn(async move {
        for byte in pattern(MESSAGES) {
            here.write_all(&[byte]).await?;
            here.flush().await?;
        }
        io::Result::Ok(here.finish().await?)
    });
    serve_echo(pair.b.clone());
    within("the echo", echo(&pair.a, pattern(5000))).await;
    let mut all = Vec::new();
    within("the reader", there.read_to_end(&mut all))
        .await
        .unwrap();
    assert!(all == pattern(MESSAGES), "{} bytes", all.len());
    drop(there);
    within("the writer", writing).await.unwrap().unwrap();
    pair.finish().await;
}

/// A reset of a substream with data in flight, by either side, loses no data of another substream.
pub async fn a_reset_in_flight_leaves_the_neighbour_alone<F, Fut, A, B>(factory: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = (A, B)>,
    A: Carrier + 'static,
    B: Carrier + 'static,
{
    let pair = Pair::connect(factory, Negotiation::None).await;
    for writer_resets in [true, false] {
        let (mut neighbour, mut reader) = pair.substream().await;
        let (mut writer, unread) = pair.substream().await;
        let mut blocks = 0;
        // Until it waits for the peer's credit or for the carrier.
        while let Ok(written) =
            tokio::time::timeout(super::QUIET, writer.write_all(&pattern(4096))).await
        {
            written.unwrap();
            blocks += 1;
            assert!(
                blocks < 100_000,
                "an unread substream does not stall its writer"
            );
        }
        if writer_resets {
            writer.reset(3);
        } else {
            unread.reset(3);
        }
        let (write, read) = tokio::join!(
            async {
                neighbour.write_all(&pattern(300_000)).await?;
                io::Result::Ok(neighbour.finish().await?)
            },
            within("the neighbour", async {
                let mut all = Vec::new();
                reader.read_to_end(&mut all).await.map(|_| all)
            }),
        );
        write.unwrap();
        assert!(read.unwrap() == pattern(300_000));
    }
    pair.finish().await;
}

/// The code and the reason of a close by the application reach the peer.
pub async fn a_close_carries_its_code_and_reason<F, Fut, A, B>(factory: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = (A, B)>,
    A: Carrier + 'static,
    B: Carrier + 'static,
{
    let pair = Pair::connect(factory, Negotiation::None).await;
    serve_echo(pair.b.clone());
    within("an echo", echo(&pair.a, pattern(100))).await;
    within("close", pair.a.close_with(70_000, "out of cheese")).await;
    let cause = within("the peer's end", pair.b.closed()).await;
    let reason = "out of cheese".to_owned();
    assert_eq!(
        cause,
        ConnectionError::ClosedByPeerWith {
            code: 70_000,
            reason
        }
    );
    for driver in pair.drivers {
        within("a driver ends", driver).await.unwrap();
    }
}

/// A peer that opens substreams and resets them before they are answered is disconnected, and
/// receives the cause. Resets after an answer do not count.
pub async fn a_peer_that_resets_in_a_loop_is_disconnected_with_the_cause<F, Fut, A, B>(factory: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = (A, B)>,
    A: Carrier + 'static,
    B: Carrier + 'static,
{
    let config = config(|config| config.max_unused_substreams = 30);
    let pair = Pair::with(factory, config).await;
    let serving = pair.b.clone();
    tokio::spawn(async move {
        while let Ok(Some(mut substream)) = serving.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 8];
                substream.read_exact(&mut request).await?;
                if &request == b"question" {
                    substream.write_all(b"answered").await?;
                }
                // Unanswered until the reset.
                substream.read_to_end(&mut Vec::new()).await
            });
        }
    });
    // Answered before the reset: no abuse.
    for _ in 0..40 {
        let mut substream = pair.a.open("").await.unwrap();
        substream.write_all(b"question").await.unwrap();
        within("the answer", substream.read_exact(&mut [0; 8]))
            .await
            .unwrap();
        substream.reset(1);
    }
    assert_eq!(pair.b.close_reason(), None);
    let resets = async {
        while let Ok(mut substream) = pair.a.open("").await {
            let _ = substream.write_all(b"workload").await;
            let _ = substream.flush().await;
            substream.reset(code::RESOURCE_LIMIT);
        }
    };
    within("the disconnect", resets).await;
    let cause = within("the listener's cause", pair.b.closed()).await;
    assert_eq!(cause, ConnectionError::TooManyUnusedSubstreams);
    let reported = within("the peer's cause", pair.a.closed())
        .await
        .to_string();
    assert!(reported.contains(&cause.to_string()), "{reported}");
    for driver in pair.drivers {
        within("a driver ends", driver).await.unwrap();
    }
}

/// A writer dropped by a panic resets the substream, so that a truncated stream does not look
/// complete. `reset_on_drop` does the same for every drop before a shutdown.
pub async fn a_writer_that_panics_resets<F, Fut, A, B>(factory: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = (A, B)>,
    A: Carrier + 'static,
    B: Carrier + 'static,
{
    let pair = Pair::connect(factory, Negotiation::None).await;
    for (panics, expected) in [(true, code::PANICKED), (false, 9)] {
        let (mut here, mut there) = pair.substream().await;
        here.reset_on_drop(9);
        here.write_all(b"a part").await.unwrap();
        let dropping = tokio::spawn(async move {
            // Unlike `panic!`, prints no message, which would look like a failure of the test.
            if panics {
                std::panic::resume_unwind(Box::new("intended"));
            }
            drop(here);
        });
        assert_eq!(within("the drop", dropping).await.is_err(), panics);
        let mut part = Vec::new();
        let read = there.read_to_end(&mut part);
        let error = within("the reader", read).await.unwrap_err();
        let source = error.get_ref().and_then(|source| source.downcast_ref());
        assert!(
            matches!(source, Some(SubstreamError::ResetByPeer(Some(code))) if *code == expected),
            "{error:?}"
        );
    }
    // After a shutdown the stream is complete, and a drop does not reset it.
    let (mut here, mut there) = pair.substream().await;
    here.reset_on_drop(9);
    here.write_all(b"all").await.unwrap();
    here.shutdown().await.unwrap();
    drop(here);
    let mut all = Vec::new();
    within("the end", there.read_to_end(&mut all))
        .await
        .unwrap();
    assert_eq!(all, b"all");
    drop(there);
    pair.finish().await;
}
