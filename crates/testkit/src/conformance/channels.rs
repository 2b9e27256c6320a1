//! Cases about the channels of a carrier.

use std::collections::HashSet;
use std::future::poll_fn;
use std::task::Poll;

use bytes::Bytes;

use super::ends::Ends;
use super::{QUIET, pattern};
use anabranch::carrier::{Carrier, ChannelId, Class, Written};
use anabranch::connection::ConnectionError;
use anabranch::message::{MAX_FRAME, Message};

macro_rules! case {
    ($(#[$doc:meta])* $name:ident, $ends:ident, $body:block) => {
        $(#[$doc])*
        pub async fn $name<F, Fut, A, B>(factory: F)
        where
            F: Fn() -> Fut,
            Fut: Future<Output = (A, B)>,
            A: Carrier,
            B: Carrier,
        {
            #[allow(unused_mut)]
            let mut $ends = Ends::connect(factory).await;
            $body
        }
    };
}

case!(
    /// A channel opened by either side is reported to the peer with its label.
    open_carries_the_label, ends, {
        let labels = ["", "/echo/1.0.0", "zweig-übung"];
        for label in labels {
            ends.a.open(label);
            ends.b.open(label);
        }
        ends.until("all labels at both ends", |a, b| {
            a.opened.len() == labels.len() && b.opened.len() == labels.len()
        })
        .await;
        let names = |opened: &[(ChannelId, String)]| {
            opened.iter().map(|(_, label)| label.clone()).collect::<HashSet<_>>()
        };
        let expected: HashSet<String> = labels.iter().map(|label| (*label).to_owned()).collect();
        assert_eq!(names(&ends.a.opened), expected);
        assert_eq!(names(&ends.b.opened), expected);
    }
);

case!(
    /// No two channels of one carrier share an id, whichever side opened them.
    channel_ids_are_unique, ends, {
        let mut at_a = HashSet::new();
        let mut at_b = HashSet::new();
        for _ in 0..20 {
            assert!(at_a.insert(ends.a.open("")));
            assert!(at_b.insert(ends.b.open("")));
        }
        ends.until("twenty channels each", |a, b| a.opened.len() == 20 && b.opened.len() == 20)
            .await;
        for (channel, _) in &ends.a.opened {
            assert!(at_a.insert(*channel), "{channel} is used twice");
        }
        for (channel, _) in &ends.b.opened {
            assert!(at_b.insert(*channel), "{channel} is used twice");
        }
    }
);

case!(
    /// Data on many channels at once, in both directions and in frames of all sizes, arrives
    /// complete and in order.
    data_arrives_complete_and_in_order, ends, {
        const CHANNELS: usize = 10;
        let data = pattern(100_000);
        let mut pairs = Vec::new();
        for _ in 0..CHANNELS {
            pairs.push(ends.channel().await);
        }
        let max = ends.a.max_payload().min(ends.b.max_payload());
        let sizes = [1, 3, 100, 1000, 1200, 5000, 8192, max];
        let mut sent = [[(0, 0); CHANNELS]; 2];
        ends.until("all data of all channels", |a, b| {
            for (index, (at_a, at_b)) in pairs.iter().enumerate() {
                let mut next = |side: usize, write: &mut dyn FnMut(&[u8]) -> Written| {
                    let (offset, frames) = &mut sent[side][index];
                    let size = sizes[(*frames + index) % sizes.len()];
                    let frame = &data[*offset..(*offset + size).min(data.len())];
                    if !frame.is_empty() && write(frame) == Written::Taken {
                        *offset += frame.len();
                        *frames += 1;
                    }
                };
                next(0, &mut |frame| a.write(*at_a, frame, Class::Data));
                next(1, &mut |frame| b.write(*at_b, frame, Class::Data));
            }
            pairs.iter().all(|(at_a, at_b)| {
                a.received(*at_a).len() >= data.len() && b.received(*at_b).len() >= data.len()
            })
        })
        .await;
        for (at_a, at_b) in pairs {
            assert!(ends.a.received(at_a) == data, "{at_a} of a");
            assert!(ends.b.received(at_b) == data, "{at_b} of b");
        }
    }
);

case!(
    /// A frame of `max_message` bytes arrives, and `max_message` is within the limit of the
    /// specification.
    frames_of_the_largest_size_arrive, ends, {
        let max = ends.a.carrier.max_message();
        assert!((64..=MAX_FRAME).contains(&max), "max_message is {max}");
        let (here, there) = ends.channel().await;
        let max = ends.a.max_payload();
        let frame = pattern(max);
        ends.until("a frame is taken", |a, _| {
            a.write(here, &frame, Class::Data) == Written::Taken
        })
        .await;
        ends.until("the whole frame", |_, b| b.received(there).len() >= max).await;
        assert!(ends.b.received(there) == frame);
    }
);

case!(
    /// A frame passed to `write_vectored` in pieces, some of them empty, arrives as one passed
    /// whole.
    frames_in_pieces_arrive_whole, ends, {
        let (here, there) = ends.channel().await;
        let max = ends.a.max_payload();
        let mut expected = Vec::new();
        for (nth, length) in [1, 100, 1200, 5000, max].into_iter().enumerate() {
            let mut payload = pattern(length);
            payload.rotate_left(nth % length);
            let frame = Message::data(Bytes::from(payload.clone())).encode();
            // Within the header, after it, in the middle, and before the last byte.
            let mut cuts = [1, 3, frame.len() / 2, frame.len() - 1].map(|at| at.min(frame.len()));
            cuts.sort_unstable();
            let [first, second, third, fourth] = cuts;
            let pieces = [
                &frame[..first],
                &[],
                &frame[first..second],
                &frame[second..third],
                &frame[third..fourth],
                &frame[fourth..],
            ];
            for class in [Class::Data, Class::Control] {
                ends.until("a frame in pieces is taken", |a, _| {
                    a.carrier.write_vectored(here, &pieces, class) == Written::Taken
                })
                .await;
                expected.extend_from_slice(&payload);
                // A whole frame follows.
                ends.until("a whole frame is taken", |a, _| {
                    a.write(here, &[nth as u8], class) == Written::Taken
                })
                .await;
                expected.push(nth as u8);
                ends.until("both", |_, b| b.received(there).len() >= expected.len()).await;
            }
        }
        assert!(ends.b.received(there) == expected, "{} bytes", expected.len());
    }
);

case!(
    /// A carrier accepts a bounded amount of data, and reports `Writable` when there is room again.
    busy_is_followed_by_writable, ends, {
        let (here, there) = ends.channel().await;
        let mut taken = ends.a.fill(here, 8000);
        assert!(taken > 0, "busy although nothing was written");
        for _ in 0..3 {
            let before = ends.a.writable;
            ends.until("Writable", |a, _| a.writable > before).await;
            let more = ends.a.fill(here, 8000);
            assert!(more > 0, "Writable without room");
            taken += more;
        }
        ends.until("all accepted data", |_, b| b.received(there).len() == taken).await;
    }
);

case!(
    /// Row H-8: control frames are accepted while the budget for data is exhausted.
    control_passes_while_data_is_busy, ends, {
        let (busy, _) = ends.channel().await;
        let (free, there) = ends.channel().await;
        ends.a.fill(busy, 8000);
        for byte in 0..100 {
            let written = ends.a.write(free, &[byte], Class::Control);
            assert_eq!(written, Written::Taken, "control frame {byte}");
        }
        ends.until("the control frames", |_, b| b.received(there).len() == 100).await;
        assert_eq!(ends.b.received(there), pattern(100));
    }
);

case!(
    /// `Delivered` is reported once for each request: at once, or when the peer has all data.
    delivered_is_reported_at_once_or_after_the_peer_has_it, ends, {
        let (here, _) = ends.channel().await;
        ends.a.carrier.notify_delivered(here);
        ends.until("Delivered of nothing", |a, _| a.delivered == [here]).await;
        ends.until("a frame is taken", |a, _| {
            a.write(here, &pattern(5000), Class::Data) == Written::Taken
        })
        .await;
        ends.a.carrier.notify_delivered(here);
        ends.drive_for(QUIET, false).await;
        assert_eq!(ends.a.delivered, [here], "the peer was not polled");
        ends.until("Delivered of a frame", |a, _| a.delivered.len() == 2).await;
        ends.drive_for(QUIET, true).await;
        assert_eq!(ends.a.delivered, [here, here]);
    }
);

case!(
    /// Data written before a close arrives before it, and both sides report the close.
    a_closed_channel_delivers_what_was_written_before, ends, {
        let (here, there) = ends.channel().await;
        let data = pattern(50_000);
        let mut sent = 0;
        ends.until("all data is taken", |a, _| {
            while sent < data.len() {
                let frame = &data[sent..(sent + 8000).min(data.len())];
                if a.write(here, frame, Class::Data) != Written::Taken {
                    return false;
                }
                sent += frame.len();
            }
            true
        })
        .await;
        ends.a.carrier.close_channel(here);
        assert_eq!(ends.a.write(here, b"late", Class::Control), Written::Closed);
        ends.until("both ends see the close", |a, b| {
            a.closed == [here] && b.closed == [there]
        })
        .await;
        assert!(ends.b.received(there) == data);
        assert_eq!(ends.b.write(there, b"late", Class::Control), Written::Closed);
    }
);

case!(
    /// Data for a channel that the peer has closed is dropped, and other channels are unaffected.
    data_after_a_close_is_dropped, ends, {
        let (here, there) = ends.channel().await;
        let (other, other_there) = ends.channel().await;
        ends.b.carrier.close_channel(there);
        let _ = ends.a.write(here, &pattern(1000), Class::Data);
        ends.until("the close", |a, b| a.closed == [here] && b.closed == [there]).await;
        assert_eq!(ends.a.write(here, b"x", Class::Data), Written::Closed);
        assert_eq!(ends.b.carrier.read(there), None);
        ends.until("another channel's frame is taken", |a, _| {
            a.write(other, b"alive", Class::Data) == Written::Taken
        })
        .await;
        ends.until("another channel's frame", |_, b| b.received(other_there) == b"alive").await;
    }
);

case!(
    /// Closes of one channel that cross are reported once on each side.
    both_ends_may_close_a_channel_at_once, ends, {
        let (here, there) = ends.channel().await;
        ends.a.carrier.close_channel(here);
        ends.b.carrier.close_channel(there);
        ends.a.carrier.close_channel(here);
        ends.until("the close at both ends", |a, b| {
            a.closed == [here] && b.closed == [there]
        })
        .await;
        ends.drive_for(QUIET, true).await;
        assert_eq!((&ends.a.closed, &ends.b.closed), (&vec![here], &vec![there]), "only once");
    }
);

case!(
    /// Row H-11: closed channels free their resources, and no id is used twice.
    a_thousand_channels_come_and_go, ends, {
        const BATCH: usize = 50;
        let mut names = HashSet::new();
        for round in 0..1000 / BATCH {
            let known = ends.b.opened.len();
            let closed = (ends.a.closed.len(), ends.b.closed.len());
            let opened: Vec<ChannelId> = (0..BATCH).map(|_| ends.a.open("")).collect();
            let mut unsent = opened.clone();
            ends.until("a batch of channels", |a, b| {
                unsent.retain(|channel| {
                    a.write(*channel, b"hello", Class::Data) != Written::Taken
                });
                unsent.is_empty()
                    && b.opened.len() == known + BATCH
                    && b.opened[known..].iter().all(|(channel, _)| {
                        b.received(*channel).len() == 5
                    })
            })
            .await;
            for channel in opened {
                assert!(names.insert(channel), "round {round}: {channel} is used twice");
                ends.a.carrier.close_channel(channel);
            }
            ends.until("the batch is closed", |a, b| {
                a.closed.len() == closed.0 + BATCH && b.closed.len() == closed.1 + BATCH
            })
            .await;
            ends.b.received.clear();
        }
    }
);

case!(
    /// Calls with the id of a channel that never existed do nothing.
    unknown_channels_are_harmless, ends, {
        let unknown = ChannelId::new(u64::MAX - 1);
        assert_eq!(ends.a.write(unknown, b"x", Class::Data), Written::Closed);
        assert_eq!(ends.a.write(unknown, b"x", Class::Control), Written::Closed);
        assert_eq!(ends.a.carrier.read(unknown), None);
        ends.a.carrier.notify_delivered(unknown);
        ends.a.carrier.close_channel(unknown);
        ends.channel().await;
        assert!(ends.a.closed.is_empty() && ends.a.delivered.is_empty());
    }
);

case!(
    /// `poll_close` sends queued data first; the peer then ends with `ClosedByPeer`. Afterwards
    /// every call is harmless.
    a_close_reaches_the_peer_after_all_data, ends, {
        let (here, there) = ends.channel().await;
        let data = pattern(30_000);
        let mut rest = &data[..];
        ends.until("all data is taken", |a, _| {
            while let Some(frame) = rest.chunks(8000).next() {
                if a.write(here, frame, Class::Data) != Written::Taken {
                    return false;
                }
                rest = &rest[frame.len()..];
            }
            true
        })
        .await;
        let mut closed = false;
        let Ends { a, b } = &mut ends;
        let driven = poll_fn(|cx| {
            loop {
                closed = closed || a.carrier.poll_close(cx).is_ready();
                let moved = b.poll(cx);
                if closed && b.ended.is_some() {
                    return Poll::Ready(());
                }
                if !moved {
                    return Poll::Pending;
                }
            }
        });
        tokio::time::timeout(super::TIMEOUT, driven).await.expect("the close reaches the peer");
        assert_eq!(b.ended, Some(ConnectionError::ClosedByPeer));
        assert!(b.received(there) == data, "{} bytes arrived", b.received(there).len());
        // After the end every call is harmless.
        assert!(b.carrier.open("").is_err());
        assert_eq!(b.write(there, b"x", Class::Data), Written::Closed);
        b.carrier.notify_delivered(there);
        b.carrier.close_channel(there);
        while b.carrier.read(there).is_some() {}
        assert!(a.carrier.open("").is_err());
    }
);

/// When a carrier is dropped without a close, its peer ends, and not with a cause of its own side.
pub async fn a_carrier_that_is_dropped_ends_its_peer<F, Fut, A, B>(factory: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = (A, B)>,
    A: Carrier,
    B: Carrier,
{
    let mut ends = Ends::connect(factory).await;
    ends.channel().await;
    let Ends { a, mut b } = ends;
    drop(a);
    let ended = poll_fn(|cx| {
        loop {
            match b.carrier.poll_event(cx) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(cause)) => return Poll::Ready(cause),
                Poll::Pending => return Poll::Pending,
            }
        }
    });
    let cause = tokio::time::timeout(super::TIMEOUT, ended)
        .await
        .expect("the peer ends");
    let is_own = matches!(
        cause,
        ConnectionError::ClosedLocally
            | ConnectionError::ClosedWith { .. }
            | ConnectionError::Idle
            | ConnectionError::Panicked
    );
    assert!(!is_own, "this side has not caused the end: {cause}");
}
