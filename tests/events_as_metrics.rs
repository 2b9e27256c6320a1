//! `MetricsEvents` reports to the installed recorder.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use anabranch::events::MetricsEvents;
use anabranch::payload::{PayloadConfig, Receiver, Sender, receive, send_bytes};
use anabranch_testkit::memory::MemoryConfig;
use bytes::Bytes;
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

mod common;
use common::{Pair, config, pattern};

/// The sum of a metric of any kind.
#[derive(Debug, Default)]
struct Sum(AtomicU64);

impl CounterFn for Sum {
    fn increment(&self, value: u64) {
        self.0.fetch_add(value, Ordering::Relaxed);
    }

    fn absolute(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

impl GaugeFn for Sum {
    fn increment(&self, value: f64) {
        self.0.fetch_add(value as u64, Ordering::Relaxed);
    }

    fn decrement(&self, value: f64) {
        self.0.fetch_sub(value as u64, Ordering::Relaxed);
    }

    fn set(&self, value: f64) {
        self.0.store(value as u64, Ordering::Relaxed);
    }
}

impl HistogramFn for Sum {
    fn record(&self, _: f64) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Keeps a [`Sum`] for each name with its labels.
#[derive(Debug, Default)]
struct Sums(Mutex<BTreeMap<String, Arc<Sum>>>);

impl Sums {
    fn of(&self, key: &Key) -> Arc<Sum> {
        let labels: Vec<_> = key.labels().map(|label| label.value()).collect();
        let name = format!("{} {}", key.name(), labels.join(" "));
        let mut sums = self.0.lock().unwrap();
        Arc::clone(sums.entry(name.trim().to_owned()).or_default())
    }

    fn get(&self, name: &str) -> Option<u64> {
        let sums = self.0.lock().unwrap();
        sums.get(name).map(|sum| sum.0.load(Ordering::Relaxed))
    }
}

impl Recorder for Sums {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.of(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.of(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.of(key))
    }
}

/// Runs `session` on a paused clock, and compares the metrics.
#[track_caller]
fn counts(session: impl Future<Output = ()>, expected: &[(&str, u64)]) -> Sums {
    let sums = Sums::default();
    metrics::with_local_recorder(&sums, || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(session);
    });
    for (name, expected) in expected {
        assert_eq!(sums.get(name), Some(*expected), "{name}: {sums:#?}");
    }
    sums
}

#[test]
fn a_transfer_and_a_reset_are_counted() {
    let sums = counts(
        transfer_and_reset(),
        &[
            ("anabranch_connections_total local", 1),
            ("anabranch_connections", 0),
            ("anabranch_substreams_total local", 2),
            ("anabranch_substreams", 0),
            ("anabranch_substreams_closed_total acked", 1),
            ("anabranch_substreams_reset_total local", 1),
            ("anabranch_substream_sent_bytes_total", 100_000),
            ("anabranch_substream_received_bytes_total", 0),
            ("anabranch_credit_stalls_total", 1),
            ("anabranch_credit_wait_seconds", 1),
        ],
    );
    assert_eq!(sums.get("anabranch_connection_failures_total"), None);
}

#[test]
fn payloads_and_their_bytes_are_counted() {
    counts(
        payloads(),
        &[
            ("anabranch_payloads_total sent", 2),
            ("anabranch_payloads_total received", 1),
            ("anabranch_payloads sent", 0),
            ("anabranch_payloads received", 0),
            ("anabranch_payloads_refused_total", 1),
            ("anabranch_payloads_ended_total sent complete", 1),
            ("anabranch_payloads_ended_total sent rejected", 1),
            ("anabranch_payloads_ended_total received complete", 1),
            ("anabranch_payload_bytes_total sent", 2_000_000),
            ("anabranch_payload_bytes_total received", 1_500_000),
        ],
    );
}

/// Two sent payloads, of which one is cancelled, and two received ones, of which one is refused.
/// Half a megabyte of one is here already.
async fn payloads() {
    let mut counted = config();
    counted.events = Some(Arc::new(MetricsEvents));
    let pair = Pair::with(counted, config(), MemoryConfig::default());
    let data = pattern(2_000_000);
    let (a, b) = pair.substream().await;
    let (sent, received) = tokio::join!(send_bytes(a, data.clone().into()), async {
        receive(b).await?.assemble(2_000_000).await
    });
    assert!(sent.is_ok() && received.is_ok());
    let (a, b) = pair.substream().await;
    let (sent, ()) = tokio::join!(send_bytes(a, Bytes::new()), async {
        receive(b).await.unwrap().cancel(5)
    });
    sent.unwrap_err();
    let (a, b) = pair.substream().await;
    let sender = Sender::new(b, PayloadConfig::default()).unwrap();
    let (sent, received) = tokio::join!(sender.send_resumable(Cursor::new(&data)), async {
        let mut payload = receive(a).await?;
        payload.resume(500_000, &mut &data[..]).await?;
        payload.assemble(2_000_000).await
    });
    assert!(sent.is_ok() && received.is_ok());
    let (a, b) = pair.substream().await;
    let mut limits = PayloadConfig::default();
    limits.max_total = 1000;
    let receiver = Receiver::new(limits).unwrap();
    let (sent, received) = tokio::join!(send_bytes(b, data.into()), receiver.receive(a));
    assert!(sent.is_err() && received.is_err());
    pair.finish().await;
}

async fn transfer_and_reset() {
    let mut counted = config();
    counted.events = Some(Arc::new(MetricsEvents));
    let pair = Pair::with(counted, config(), MemoryConfig::default());
    let (mut a, mut b) = pair.substream().await;
    let sending = async {
        a.write_all(&[5; 100_000]).await.unwrap();
        a.finish().await.unwrap();
    };
    let receiving = async {
        b.read_to_end(&mut Vec::new()).await.unwrap();
        b.finish().await.unwrap();
    };
    tokio::join!(sending, receiving);
    let (other, _) = pair.substream().await;
    other.reset(1);
    drop((a, b, other));
    pair.finish().await;
}

/// The names of metrics in a text.
fn named(text: &str) -> BTreeSet<&str> {
    let is_part = |c: char| c.is_ascii_lowercase() || c == '_';
    let words = text.split(|c| !is_part(c));
    words
        .filter(|word| word.starts_with("anabranch_"))
        // Prometheus counts a histogram in buckets.
        .map(|word| word.strip_suffix("_bucket").unwrap_or(word))
        .collect()
}

/// `docs/operating.md` names no others, and the dashboard shows them all.
#[test]
fn the_dashboard_shows_the_metrics_that_are_exported() {
    let exported = named(include_str!("../src/events/metrics.rs"));
    let page = named(include_str!("../docs/operating.md"));
    assert_eq!(page.difference(&exported).collect::<Vec<_>>(), [&""; 0]);
    let dashboard = named(include_str!("../docs/operating/dashboard.json"));
    assert_eq!(dashboard, exported);
}
