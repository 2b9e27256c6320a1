//! The payload calls of `Events`, their order and number.

#![allow(missing_docs)]

use std::io::Cursor;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anabranch::events::{PayloadDirection, PayloadOutcome, PayloadProgress};
use anabranch::payload::{
    PayloadConfig, PayloadError, Progress, Receiver, SendError, Sender, receive,
};
use anabranch::{ConnectionInfo, Events, Initiator, Substream, SubstreamInfo};
use anabranch_testkit::memory::MemoryConfig;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::AsyncReadExt;
use tokio::time::{sleep, timeout};

mod common;
use common::seeds::seeds;
use common::{Pair, config, pattern, within};

const MIB: u64 = 1024 * 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Event {
    Begun,
    Refused(&'static str),
    Progress,
    /// With [`PayloadOutcome::as_str`], and the error's text.
    Ended(&'static str, String),
}

#[derive(Debug, Clone)]
struct Entry {
    substream: SubstreamInfo,
    progress: Option<PayloadProgress>,
    event: Event,
}

/// Records every event.
#[derive(Debug, Default)]
struct Recorder(Mutex<Vec<Entry>>);

impl Recorder {
    fn add(&self, substream: SubstreamInfo, progress: Option<PayloadProgress>, event: Event) {
        self.0.lock().unwrap().push(Entry {
            substream,
            progress,
            event,
        });
    }

    fn entries(&self) -> Vec<Entry> {
        self.0.lock().unwrap().clone()
    }

    fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        let entries = self.entries();
        entries.iter().filter(|entry| wanted(&entry.event)).count()
    }

    /// The outcomes of the payloads, in their order.
    fn outcomes(&self) -> Vec<&'static str> {
        let entries = self.entries();
        let outcome = |entry: &Entry| match entry.event {
            Event::Ended(outcome, _) => Some(outcome),
            _ => None,
        };
        entries.iter().filter_map(outcome).collect()
    }

    /// For each substream: begun, progress at least once, ended; with consistent numbers.
    #[track_caller]
    fn check(&self, direction: PayloadDirection, interval: u64) {
        let mut entries = self.entries();
        entries.sort_by_key(|entry| entry.substream.id);
        for payload in entries.chunk_by(|a, b| a.substream == b.substream) {
            if let [only] = payload {
                assert!(matches!(only.event, Event::Refused(_)), "{only:?}");
                continue;
            }
            let kinds: Vec<_> = payload.iter().map(|entry| &entry.event).collect();
            let [Event::Begun, middle @ .., Event::Ended(outcome, _)] = &kinds[..] else {
                panic!("{payload:#?}");
            };
            assert!(!middle.is_empty(), "{payload:#?}");
            assert!(middle.iter().all(|event| **event == Event::Progress));
            let progress: Vec<_> = payload.iter().filter_map(|entry| entry.progress).collect();
            assert!(
                progress
                    .iter()
                    .all(|progress| progress.direction == direction)
            );
            assert!(progress.is_sorted_by_key(|progress| progress.transferred));
            let (first, last) = (progress[0], progress[progress.len() - 1]);
            assert_eq!((first.transferred, first.moved, last.moved), (0, 0, 0));
            let moved: u64 = progress.iter().map(|progress| progress.moved).sum();
            assert_eq!(moved, last.transferred - last.resumed_from, "{payload:#?}");
            if *outcome == "complete" {
                assert_eq!(last.total, Some(last.transferred));
            }
            // All except the last progress event, and the end.
            for early in &progress[1..progress.len() - 2] {
                assert!(early.moved >= interval, "{early:?} in {payload:#?}");
            }
        }
    }
}

impl Events for Recorder {
    fn payload_begun(&self, _: &ConnectionInfo, s: SubstreamInfo, progress: PayloadProgress) {
        self.add(s, Some(progress), Event::Begun);
    }

    fn payload_refused(&self, _: &ConnectionInfo, s: SubstreamInfo, error: &PayloadError) {
        let why = match error {
            PayloadError::TooMany { .. } => "too many",
            PayloadError::TooLarge { .. } => "too large",
            PayloadError::BadHeader(_) => "bad header",
            PayloadError::EndedBySender(_) => "ended by sender",
            _ => "other",
        };
        self.add(s, None, Event::Refused(why));
    }

    fn payload_progress(&self, _: &ConnectionInfo, s: SubstreamInfo, progress: PayloadProgress) {
        self.add(s, Some(progress), Event::Progress);
    }

    fn payload_ended(
        &self,
        _: &ConnectionInfo,
        substream: SubstreamInfo,
        progress: PayloadProgress,
        outcome: PayloadOutcome<'_>,
    ) {
        let why = match outcome {
            PayloadOutcome::SendFailed(error) => error.to_string(),
            PayloadOutcome::ReceiveFailed(error) => error.to_string(),
            _ => String::new(),
        };
        let event = Event::Ended(outcome.as_str(), why);
        self.add(substream, Some(progress), event);
    }
}

/// Two connections, each with a recorder of its own.
fn recorded(memory: MemoryConfig) -> (Pair, [Arc<Recorder>; 2]) {
    let recorders = [Arc::<Recorder>::default(), Arc::default()];
    let [a, b] = recorders.each_ref().map(|recorder| {
        let mut config = config();
        config.events = Some(Arc::clone(recorder) as Arc<dyn Events>);
        config
    });
    (Pair::with(a, b, memory), recorders)
}

fn payload_config(change: impl FnOnce(&mut PayloadConfig)) -> PayloadConfig {
    let mut config = PayloadConfig::default();
    change(&mut config);
    config
}

fn sender(substream: Substream) -> Sender {
    Sender::new(substream, PayloadConfig::default()).unwrap()
}

/// In one write, which the sender does not split, and in hashed pieces.
#[tokio::test(start_paused = true)]
async fn both_sides_report_every_mebibyte_and_the_end() {
    let (pair, [here, there]) = recorded(MemoryConfig::default());
    let total = 3 * MIB + MIB / 2;
    let data = Bytes::from(pattern(total as usize));
    for hashed in [false, true] {
        let (a, b) = pair.substream().await;
        let mut sender = sender(a);
        if hashed {
            sender = sender.hashed();
        }
        let (sent, received) = tokio::join!(sender.send_bytes(data.clone()), async {
            receive(b).await?.assemble(total).await
        });
        assert_eq!(sent.unwrap().total, total);
        assert!(received.unwrap() == data);
    }
    pair.finish().await;
    here.check(PayloadDirection::Sent, MIB);
    there.check(PayloadDirection::Received, MIB);
    for recorder in [&here, &there] {
        assert_eq!(recorder.outcomes(), ["complete", "complete"]);
        assert_eq!(recorder.count(|event| *event == Event::Progress), 2 * 4);
        let entries = recorder.entries();
        let begun = entries[0].progress.unwrap();
        assert_eq!((begun.total, begun.resumed_from), (Some(total), 0));
    }
    let opened = |recorder: &Recorder| recorder.entries()[0].substream.initiator;
    assert_eq!(
        (opened(&here), opened(&there)),
        (Initiator::Local, Initiator::Remote)
    );
}

#[tokio::test(start_paused = true)]
async fn the_interval_is_a_field_and_an_empty_payload_is_reported_once() {
    let (pair, [here, there]) = recorded(MemoryConfig::default());
    let limits = payload_config(|config| config.progress_interval = 1000);
    let receiver = Receiver::new(limits.clone()).unwrap();
    for (size, known) in [
        (0, true),
        (0, false),
        (999, true),
        (100_000, true),
        (100_000, false),
    ] {
        let (a, b) = pair.substream().await;
        let before = [here.entries().len(), there.entries().len()];
        let total = known.then_some(size as u64);
        let sender = Sender::new(a, limits.clone()).unwrap();
        let (sent, received) = tokio::join!(
            sender.send_reader(Cursor::new(pattern(size)), total),
            async { receiver.receive(b).await?.assemble(100_000).await }
        );
        assert_eq!(sent.unwrap().total, size as u64);
        assert_eq!(received.unwrap().len(), size);
        for (recorder, before) in [&here, &there].into_iter().zip(before) {
            let calls = recorder.entries().len() - before - 2;
            if size < 1000 {
                assert_eq!(calls, 1, "{size}");
            } else {
                // As often as frames and writes allow, and no more.
                assert!((2..=size / 1000 + 1).contains(&calls), "{calls} of {size}");
            }
        }
    }
    pair.finish().await;
    here.check(PayloadDirection::Sent, 1000);
    there.check(PayloadDirection::Received, 1000);
}

#[tokio::test(start_paused = true)]
async fn what_was_skipped_is_not_counted_as_moved() {
    let (pair, [here, there]) = recorded(MemoryConfig::default());
    let data = pattern(3_000_000);
    let (a, b) = pair.substream().await;
    let (sent, received) = tokio::join!(sender(a).send_resumable(Cursor::new(&data)), async {
        let mut payload = receive(b).await?;
        payload.resume(1_900_000, &mut &data[..]).await?;
        payload.assemble(3_000_000).await
    });
    assert_eq!(sent.unwrap().resumed_from, 1_900_000);
    assert_eq!(received.unwrap().len(), 1_100_000);
    pair.finish().await;
    here.check(PayloadDirection::Sent, MIB);
    there.check(PayloadDirection::Received, MIB);
    for recorder in [here, there] {
        let last = recorder.entries().pop().unwrap().progress.unwrap();
        assert_eq!(
            (last.transferred, last.resumed_from),
            (3_000_000, 1_900_000)
        );
        // 1 MiB, and the rest.
        assert_eq!(recorder.count(|event| *event == Event::Progress), 2);
    }
}

/// The side that ends the payload, and the error on each side.
#[tokio::test(start_paused = true)]
async fn every_end_has_an_outcome_on_both_sides() {
    let (pair, [here, there]) = recorded(MemoryConfig::default());
    let data = Bytes::from(pattern(4_000_000));
    let begin = async || {
        let (a, b) = pair.substream().await;
        let sender = sender(a);
        let canceller = sender.canceller();
        let sending = tokio::spawn(sender.send_bytes(data.clone()));
        (canceller, sending, receive(b).await.unwrap())
    };
    // The receiver refuses it.
    let (_, sending, payload) = begin().await;
    payload.cancel(7);
    within("the end", sending).await.unwrap().unwrap_err();
    // The receiver drops it.
    let (_, sending, payload) = begin().await;
    drop(payload.into_stream());
    within("the end", sending).await.unwrap().unwrap_err();
    // The receiver cancels it from another task, while it is not polled.
    let (_, sending, payload) = begin().await;
    payload.canceller().cancel(9);
    within("the end", sending).await.unwrap().unwrap_err();
    assert_eq!(there.outcomes().len(), 2, "it is not dropped yet");
    drop(payload);
    // The sender cancels it.
    let (canceller, sending, payload) = begin().await;
    canceller.cancel(8);
    within("the end", sending).await.unwrap().unwrap_err();
    payload.assemble(4_000_000).await.unwrap_err();
    // The sender drops it.
    let (_, sending, payload) = begin().await;
    sending.abort();
    payload.assemble(4_000_000).await.unwrap_err();
    // The receiver waits for a silent sender.
    let (a, b) = pair.substream().await;
    let (silent, source) = tokio::io::duplex(10);
    let sending = tokio::spawn(sender(a).send_reader(source, Some(10)));
    sleep(Duration::from_secs(1)).await;
    let receiving = receive(b).await.unwrap().assemble(10);
    within("the deadline", receiving).await.unwrap_err();
    within("the end", sending).await.unwrap().unwrap_err();
    drop(silent);
    pair.finish().await;
    here.check(PayloadDirection::Sent, MIB);
    there.check(PayloadDirection::Received, MIB);
    assert_eq!(
        there.outcomes(),
        [
            "cancelled",
            "dropped",
            "cancelled",
            "rejected",
            "rejected",
            "rejected"
        ]
    );
    assert_eq!(
        here.outcomes(),
        [
            "rejected",
            "rejected",
            "rejected",
            "cancelled",
            "dropped",
            "expired"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_receiver_refuses_has_no_beginning() {
    let (pair, [here, there]) = recorded(MemoryConfig::default());
    let receiver = Receiver::new(payload_config(|config| {
        config.max_open = 1;
        config.max_total = 1000;
    }));
    let receiver = receiver.unwrap();
    // Refused by its header.
    let (a, b) = pair.substream().await;
    let (sent, received) = tokio::join!(
        sender(a).send_bytes(pattern(1001).into()),
        receiver.receive(b)
    );
    assert!(matches!(sent, Err(SendError::Rejected(_))), "{sent:?}");
    assert!(received.is_err());
    // Refused without a free slot.
    let (a, b) = pair.substream().await;
    let sending = tokio::spawn(sender(a).send_bytes(pattern(10).into()));
    let payload = receiver.receive(b).await.unwrap();
    let (a, b) = pair.substream().await;
    let (sent, received) = tokio::join!(
        sender(a).send_bytes(pattern(10).into()),
        receiver.receive(b)
    );
    assert!(sent.is_err() && received.is_err());
    payload.assemble(10).await.unwrap();
    within("the receipt", sending).await.unwrap().unwrap();
    let refusals: Vec<_> = there
        .entries()
        .into_iter()
        .map(|entry| entry.event)
        .collect();
    assert_eq!(refusals[0], Event::Refused("too large"));
    assert_eq!(there.count(|event| *event == Event::Refused("too many")), 1);
    assert_eq!(there.outcomes(), ["complete"]);
    assert_eq!(here.outcomes(), ["rejected", "rejected", "complete"]);
    // A sender that never sends, and one with an invalid payload: nothing begins.
    let told = here.entries().len();
    let (a, b) = pair.substream().await;
    drop(sender(a));
    let (a, b2) = pair.substream().await;
    let limits = payload_config(|config| config.max_total = 5);
    let sender = Sender::new(a, limits).unwrap();
    sender.send_bytes(pattern(6).into()).await.unwrap_err();
    assert_eq!(here.entries().len(), told);
    drop((b, b2));
    pair.finish().await;
    here.check(PayloadDirection::Sent, MIB);
    there.check(PayloadDirection::Received, MIB);
}

/// Random actions at random times: as many ends as beginnings, in the right order.
#[tokio::test(start_paused = true)]
async fn every_beginning_has_one_end_whatever_happens() {
    for seed in seeds(100) {
        println!("seed {seed}");
        let rng = &mut StdRng::seed_from_u64(seed);
        let (pair, [here, there]) = recorded(MemoryConfig::hostile(seed));
        let interval = [1, 1000, 50_000][rng.random_range(0..3)];
        let limits = payload_config(|config| config.progress_interval = interval);
        let size = rng.random_range(0..300_000);
        let (a, b) = pair.substream().await;
        let sender = Sender::new(a, limits.clone()).unwrap();
        let ours = sender.canceller();
        let data = Bytes::from(pattern(size));
        let sending = tokio::spawn(match rng.random_range(0..3) {
            0 => futures_util::FutureExt::boxed(sender.send_bytes(data)),
            1 => futures_util::FutureExt::boxed(sender.send_reader(Cursor::new(data), None)),
            _ => futures_util::FutureExt::boxed(sender.send_resumable(Cursor::new(data))),
        });
        let receiver = Receiver::new(limits).unwrap();
        let give_up = Duration::from_millis(rng.random_range(0..60));
        let receiving = tokio::spawn(timeout(give_up, async move {
            receiver.receive(b).await?.assemble(300_000).await
        }));
        sleep(Duration::from_millis(rng.random_range(0..60))).await;
        match rng.random_range(0..5) {
            0 => sending.abort(),
            1 => receiving.abort(),
            2 => ours.cancel(5),
            3 => drop(pair.a.close()),
            _ => {}
        }
        // A waiting side ends by the other side, or by its own deadline.
        let _ = timeout(Duration::from_secs(200), receiving).await;
        let _ = timeout(Duration::from_secs(200), sending)
            .await
            .expect("it ends");
        pair.finish().await;
        for (recorder, direction) in [
            (&here, PayloadDirection::Sent),
            (&there, PayloadDirection::Received),
        ] {
            recorder.check(direction, interval);
            let begun = recorder.count(|event| *event == Event::Begun);
            assert_eq!(recorder.outcomes().len(), begun);
        }
    }
}

/// A connection that dies ends its payloads.
#[tokio::test(start_paused = true)]
async fn a_connection_that_ends_ends_its_payloads() {
    let (pair, [here, there]) = recorded(MemoryConfig::default());
    let (a, b) = pair.substream().await;
    let (mut source, sink) = tokio::io::duplex(100_000);
    let sending = tokio::spawn(sender(a).send_reader(sink, Some(200_000)));
    tokio::io::AsyncWriteExt::write_all(&mut source, &pattern(50_000))
        .await
        .unwrap();
    let receiving = tokio::spawn(async { receive(b).await?.assemble(200_000).await });
    sleep(Duration::from_secs(1)).await;
    pair.faults.kill();
    within("the end", receiving).await.unwrap().unwrap_err();
    within("the end", sending).await.unwrap().unwrap_err();
    assert_eq!(source.read(&mut [0]).await.unwrap(), 0);
    here.check(PayloadDirection::Sent, MIB);
    there.check(PayloadDirection::Received, MIB);
    assert_eq!(
        (here.outcomes(), there.outcomes()),
        (vec!["failed"], vec!["failed"])
    );
}

/// Waits for changes until there are none. Returns what was seen.
async fn watch(mut progress: Progress) -> Vec<u64> {
    let mut seen = Vec::new();
    while within("a change or the end", progress.changed()).await {
        seen.push(progress.transferred());
    }
    seen
}

#[tokio::test(start_paused = true)]
async fn progress_wakes_who_waits_for_it_until_the_payload_has_ended() {
    const LENGTH: usize = 1_000_000;
    let pair = Pair::new();
    let (here, there) = pair.substream().await;
    let sender = Sender::new(here, PayloadConfig::default()).expect("the default is valid");
    let watchers = [sender.progress(), sender.progress().clone()];
    let [first, second] = watchers.map(|progress| tokio::spawn(watch(progress)));
    let sending = tokio::spawn(sender.send_bytes(pattern(LENGTH).into()));
    let payload = receive(there).await.expect("a good header");
    let received = tokio::spawn(watch(payload.progress()));
    let late = payload.progress();
    let all = payload.assemble(LENGTH as u64).await.expect("all of it");
    assert_eq!(all.len(), LENGTH);
    sending.await.expect("no panic").expect("it is confirmed");
    for watching in [first, second, received] {
        let seen = within("the end", watching).await.expect("no panic");
        assert!(seen.len() > 2, "not only the end: {seen:?}");
        assert!(seen.is_sorted(), "{seen:?}");
        assert_eq!(seen.last(), Some(&(LENGTH as u64)));
    }
    // Who looks late sees one change, and the end.
    assert_eq!(watch(late.clone()).await, [LENGTH as u64]);
    assert_eq!(watch(late).await, [LENGTH as u64], "each handle for itself");
    pair.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_change_is_not_lost_with_a_dropped_wait() {
    let pair = Pair::new();
    let (here, there) = pair.substream().await;
    let sending = tokio::spawn(async move {
        let sender = Sender::new(here, PayloadConfig::default()).expect("valid");
        sender.send_bytes(pattern(1000).into()).await
    });
    let payload = receive(there).await.expect("a good header");
    let mut progress = payload.progress();
    for _ in 0..3 {
        let waiting = timeout(Duration::from_secs(1), progress.changed());
        waiting.await.expect_err("nobody reads");
    }
    payload.assemble(1000).await.expect("all of it");
    assert!(progress.changed().await);
    assert_eq!(
        (progress.transferred(), progress.total()),
        (1000, Some(1000))
    );
    assert!(!progress.changed().await && !progress.changed().await);
    sending.await.expect("no panic").expect("it is confirmed");
    pair.finish().await;
}

/// Whatever ends a payload: nobody waits for ever.
#[tokio::test(start_paused = true)]
async fn progress_ends_with_a_payload_that_is_dropped_or_cancelled() {
    for is_cancelled in [false, true] {
        let pair = Pair::new();
        let (here, there) = pair.substream().await;
        let sender = Sender::new(here, PayloadConfig::default()).expect("valid");
        let sent = sender.progress();
        let cancels = sender.canceller();
        // It waits for a source that never ends.
        let (source, feeder) = tokio::io::simplex(16);
        let sending = tokio::spawn(sender.send_reader(source, Some(5)));
        let payload = receive(there).await.expect("a good header");
        let waiting = [sent, payload.progress()];
        let waiting = waiting.map(|progress| tokio::spawn(watch(progress)));
        match is_cancelled {
            true => cancels.cancel(7),
            false => sending.abort(),
        }
        let _ = sending.await;
        let [sent, received] = waiting;
        // The length is known with the header, which no byte has followed.
        let seen = within("the end", sent).await.expect("no panic");
        assert!(seen.iter().all(|bytes| *bytes == 0), "{seen:?}");
        assert!(!received.is_finished(), "it has not looked yet");
        drop((payload, feeder));
        let seen = within("the end", received).await.expect("no panic");
        assert!(seen.is_empty(), "{seen:?}");
        pair.finish().await;
    }
}
