//! The calls of `Events`, their order and number (row O-16).

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anabranch::{
    Address, CloseOutcome, ConnectError, ConnectionError, ConnectionInfo, Endpoint, Events,
    Finished, Initiator, OpenError, SubstreamInfo, SubstreamStats,
};
use anabranch_testkit::memory::MemoryConfig;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;

mod common;
use common::seeds::seeds;
use common::{Pair, config, pattern, within};

/// Records every event as a line of text with the connection's number.
#[derive(Debug, Default)]
struct Recorder(Mutex<Vec<(u64, String)>>);

impl Recorder {
    fn add(&self, connection: &ConnectionInfo, line: impl Into<String>) {
        self.0.lock().unwrap().push((connection.id, line.into()));
    }

    fn lines(&self) -> Vec<String> {
        let lines = self.0.lock().unwrap();
        lines.iter().map(|(_, line)| line.clone()).collect()
    }

    fn count(&self, prefix: &str) -> usize {
        let lines = self.lines();
        lines.iter().filter(|line| line.starts_with(prefix)).count()
    }
}

impl Events for Recorder {
    fn connection_opening(&self, connection: &ConnectionInfo) {
        self.add(connection, format!("opening {}", connection.initiator));
    }

    fn connect_failed(&self, connection: &ConnectionInfo, error: Option<&(dyn Error + 'static)>) {
        let error = match error.map(|error| error.downcast_ref::<ConnectError>()) {
            None => "dropped".to_owned(),
            Some(Some(ConnectError::TimedOut { .. })) => "timed out".to_owned(),
            Some(other) => format!("{other:?}"),
        };
        self.add(connection, format!("connect failed: {error}"));
    }

    fn connection_open(&self, connection: &ConnectionInfo) {
        let identified = connection.peer.is_some();
        self.add(connection, format!("open, identified: {identified}"));
    }

    fn connection_closing(&self, connection: &ConnectionInfo, cause: &ConnectionError) {
        self.add(connection, format!("closing: {cause}"));
    }

    fn connection_closed(&self, connection: &ConnectionInfo, cause: &ConnectionError) {
        self.add(connection, format!("closed: {cause}"));
    }

    fn connection_failed(&self, connection: &ConnectionInfo, cause: &ConnectionError) {
        self.add(connection, format!("failed: {cause}"));
    }

    fn substream_opened(&self, connection: &ConnectionInfo, substream: SubstreamInfo) {
        let SubstreamInfo { id, initiator, .. } = substream;
        self.add(connection, format!("{id} opened by {initiator}"));
    }

    fn substream_negotiated(&self, connection: &ConnectionInfo, s: SubstreamInfo, protocol: &str) {
        self.add(connection, format!("{} is {protocol}", s.id));
    }

    fn substream_refused(&self, connection: &ConnectionInfo, code: u32) {
        self.add(connection, format!("refused with {code:#x}"));
    }

    fn substream_closed(
        &self,
        connection: &ConnectionInfo,
        substream: SubstreamInfo,
        outcome: CloseOutcome,
        stats: &SubstreamStats,
    ) {
        let (id, sent, received) = (substream.id, stats.sent, stats.received);
        let line = format!("{id} closed: {outcome:?}, {sent} sent, {received} received");
        self.add(connection, line);
    }

    fn substream_reset(
        &self,
        connection: &ConnectionInfo,
        substream: SubstreamInfo,
        code: Option<u32>,
        by: Initiator,
        _: &SubstreamStats,
    ) {
        let id = substream.id;
        self.add(connection, format!("{id} reset by {by}: {code:?}"));
    }

    fn credit_stalled(&self, connection: &ConnectionInfo, substream: SubstreamInfo) {
        self.add(connection, format!("{} stalled", substream.id));
    }

    fn credit_resumed(
        &self,
        connection: &ConnectionInfo,
        substream: SubstreamInfo,
        waited: Duration,
    ) {
        self.add(
            connection,
            format!("{} resumed after {waited:?}", substream.id),
        );
    }
}

/// Two connections, each with a recorder of its own.
fn recorded(memory: MemoryConfig) -> (Pair, [Arc<Recorder>; 2]) {
    let recorders = [Arc::<Recorder>::default(), Arc::default()];
    let configs = recorders.each_ref().map(|recorder| {
        let mut config = config();
        config.max_inbound_substreams = 20;
        config.receive_window = 64 * 1024;
        config.max_receive_window = 64 * 1024;
        config.events = Some(Arc::clone(recorder) as Arc<dyn Events>);
        config
    });
    let [a, b] = configs;
    (Pair::with(a, b, memory), recorders)
}

#[tokio::test(start_paused = true)]
async fn the_events_of_a_connection_are_in_order() {
    let (pair, [here, there]) = recorded(MemoryConfig::default());
    let (mut a, mut b) = pair.substream().await;
    a.write_all(b"hello").await.unwrap();
    let (outcome, _) = tokio::join!(a.finish(), async {
        let mut all = Vec::new();
        b.read_to_end(&mut all).await.unwrap();
        b.finish().await.unwrap();
    });
    assert_eq!(outcome.unwrap(), Finished::Acked);
    let (id, other) = (a.id(), b.id());
    drop((a, b));
    pair.finish().await;
    assert_eq!(
        here.lines(),
        [
            "open, identified: false".to_owned(),
            format!("{id} opened by local"),
            format!("{id} closed: Acked, 5 sent, 0 received"),
            "closing: closed locally".to_owned(),
            "closed: closed locally".to_owned(),
        ]
    );
    assert_eq!(
        there.lines(),
        [
            "open, identified: false".to_owned(),
            format!("{other} opened by remote"),
            format!("{other} closed: Acked, 0 sent, 5 received"),
            "closed: closed by the peer".to_owned(),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_reset_reports_its_code_and_its_sender() {
    let (pair, [here, there]) = recorded(MemoryConfig::default());
    let (a, b) = pair.substream().await;
    a.reset(7);
    pair.idle().await;
    assert_eq!(
        here.count(&format!("{} reset by local: Some(7)", a.id())),
        1
    );
    assert_eq!(
        there.count(&format!("{} reset by remote: Some(7)", b.id())),
        1
    );
    drop((a, b));
    pair.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_waits_for_credit_is_reported_and_when_it_continues() {
    let (pair, [here, _]) = recorded(MemoryConfig::default());
    let (mut a, mut b) = pair.substream().await;
    let id = a.id();
    let data = pattern(200_000);
    let writing = async {
        a.write_all(&data).await.unwrap();
        a.finish().await.unwrap();
    };
    let reading = async {
        sleep(Duration::from_secs(3)).await;
        // Perhaps once before the first grant, and later for the reader.
        let resumed = here.count(&format!("{id} resumed"));
        assert_eq!(here.count(&format!("{id} stalled")), resumed + 1);
        let mut all = Vec::new();
        b.read_to_end(&mut all).await.unwrap();
        assert!(all == data);
    };
    tokio::join!(writing, reading);
    let stalls = here.count(&format!("{id} stalled"));
    assert_eq!(here.count(&format!("{id} resumed")), stalls);
    assert!(
        here.count(&format!("{id} resumed after 3")) >= 1,
        "{:?}",
        here.lines()
    );
    drop((a, b));
    pair.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_substream_is_reported_once_with_its_code() {
    let (pair, [_, there]) = recorded(MemoryConfig::default());
    let mut open = Vec::new();
    for _ in 0..21 {
        open.push(pair.a.open("").await.unwrap());
    }
    let last = open.last_mut().unwrap();
    within("the refusal", last.read_u8()).await.unwrap_err();
    assert_eq!(there.count("refused with 0x1002"), 1);
    assert_eq!(
        there
            .lines()
            .iter()
            .filter(|l| l.contains("opened"))
            .count(),
        20
    );
    for _ in 0..20 {
        open.push(within("accept", pair.b.accept()).await.unwrap().unwrap());
    }
    drop(open);
    pair.finish().await;
}

/// Substreams that end in every way, and a connection that ends in one of three, over a carrier
/// that splits and merges messages: each begins once and ends once.
async fn every_beginning_has_one_end(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let (pair, recorders) = recorded(MemoryConfig::hostile(seed));
    let mut open = Vec::new();
    for _ in 0..random.random_range(1..15) {
        let (mut a, mut b) = pair.substream().await;
        match random.random_range(0..8) {
            0 => {
                let _ = tokio::join!(a.finish(), b.finish());
            }
            1 => a.reset(1),
            2 => b.reset(2),
            3 => drop((a, b)),
            4 => b.stop(3),
            5 => {
                let _ = a.write_all(&pattern(random.random_range(0..60_000))).await;
                drop(a);
            }
            6 => {
                let (read, write) = a.into_split();
                drop(read);
                open.push((None, Some(write), Some(b)));
            }
            _ => open.push((Some(a), None, Some(b))),
        }
    }
    match random.random_range(0..3) {
        0 => pair.a.close().await,
        1 => pair.faults.kill(),
        _ => pair.drivers.iter().for_each(|driver| driver.abort()),
    }
    drop(open);
    within("the end", pair.a.closed()).await;
    within("the other end", pair.b.closed()).await;
    for driver in pair.drivers {
        let _ = within("a driver ends", driver).await;
    }
    for recorder in recorders {
        let mut ends = HashMap::<String, (usize, usize)>::new();
        let lines = recorder.lines();
        for line in &lines {
            let (subject, what) = line.split_once(' ').unwrap();
            if subject.parse::<u64>().is_err() {
                continue;
            }
            let (begun, ended) = ends.entry(subject.to_owned()).or_default();
            *begun += usize::from(what.starts_with("opened"));
            *ended += usize::from(what.starts_with("closed") || what.starts_with("reset"));
            assert!(ended <= begun, "seed {seed}: {line}");
        }
        for (subject, count) in ends {
            assert_eq!(count, (1, 1), "seed {seed}: {subject} in {lines:?}");
        }
        let last = lines.last().unwrap();
        let is_end = |line: &&String| line.starts_with("closed:") || line.starts_with("failed:");
        assert!(is_end(&last), "seed {seed}: {lines:?}");
        assert_eq!(lines.iter().filter(is_end).count(), 1, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_happens_each_beginning_has_one_end() {
    for seed in seeds(300) {
        every_beginning_has_one_end(seed).await;
    }
}

fn endpoint(recorder: &Arc<Recorder>) -> anabranch::EndpointBuilder {
    let mut config = anabranch::Config::default();
    config.protocols = vec!["/echo".to_owned()];
    config.events = Some(Arc::clone(recorder) as Arc<dyn Events>);
    Endpoint::builder().config(config)
}

#[tokio::test]
async fn both_ends_of_an_attempt_report_its_initiator() {
    let [here, there] = [Arc::<Recorder>::default(), Arc::default()];
    let listener = endpoint(&there).bind("127.0.0.1:0").await.unwrap();
    let address = listener.addresses().remove(0);
    let dialler = endpoint(&here).dial_only().unwrap();
    let (ours, theirs) = tokio::join!(dialler.connect(&address), async {
        listener.accept().await.unwrap().accept().await.unwrap()
    });
    let ours = ours.unwrap();
    let (opened, accepted) = tokio::join!(ours.open("/echo"), theirs.accept());
    let (opened, accepted) = (opened.unwrap(), accepted.unwrap().unwrap());
    let lines = [
        vec![
            "opening local".to_owned(),
            "open, identified: true".to_owned(),
        ],
        vec![
            "opening remote".to_owned(),
            "open, identified: true".to_owned(),
        ],
    ];
    assert_eq!(here.lines()[..2], lines[0]);
    assert_eq!(there.lines()[..2], lines[1]);
    assert_eq!(here.count(&format!("{} is /echo", opened.id())), 1);
    assert_eq!(there.count(&format!("{} is /echo", accepted.id())), 1);
    assert!(
        here.0
            .lock()
            .unwrap()
            .iter()
            .all(|(id, _)| *id == ours.id())
    );
    drop((opened, accepted));
    dialler.close().await;
    listener.close().await;
    assert_eq!(here.count("closed:"), 1);
    assert_eq!(there.count("closed:"), 1);
}

#[tokio::test]
async fn an_attempt_that_fails_or_is_dropped_is_reported_once() {
    let recorder = Arc::<Recorder>::default();
    // A peer that never answers.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let hash = anabranch::Certificate::generate()
        .fingerprint()
        .to_certhash();
    let address: Address = format!("/ip4/127.0.0.1/udp/{port}/webrtc-direct/certhash/{hash}")
        .parse()
        .unwrap();
    let mut limits = anabranch::EndpointConfig::default();
    limits.connect_timeout = Duration::from_millis(300);
    let dialler = endpoint(&recorder)
        .endpoint_config(limits)
        .dial_only()
        .unwrap();
    dialler.connect(&address).await.unwrap_err();
    let dropped = tokio::time::timeout(Duration::from_millis(50), dialler.connect(&address));
    dropped.await.unwrap_err();
    assert_eq!(
        recorder.lines(),
        [
            "opening local",
            "connect failed: timed out",
            "opening local",
            "connect failed: dropped",
        ]
    );
    dialler.close().await;
}

/// The log lines of a subscriber.
#[derive(Debug, Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_logged_of_a_substream_lies_in_its_span_within_that_of_its_connection() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _default = tracing::subscriber::set_default(subscriber);
    let (pair, _) = recorded(MemoryConfig::default());
    let (a, b) = pair.substream().await;
    a.reset(1);
    let expected = format!(
        "connection{{id={} initiator=\"local\"}}:substream{{id={}}}: anabranch::substream: state",
        pair.a.id(),
        a.id()
    );
    drop((a, b));
    pair.finish().await;
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains(&expected), "{expected}\n{text}");
}

/// A panic in any callback ends its connection with a cause of its own.
#[tokio::test(start_paused = true)]
async fn a_panic_in_a_callback_is_named_as_the_cause() {
    #[derive(Debug)]
    struct Panics;
    impl Events for Panics {
        fn substream_opened(&self, _: &ConnectionInfo, _: SubstreamInfo) {
            // Hides the message of the panic, which would look like a failure of the test.
            std::panic::resume_unwind(Box::new("in a callback"));
        }
    }
    let mut panicking = config();
    panicking.events = Some(Arc::new(Panics));
    let pair = Pair::with(panicking, config(), MemoryConfig::default());
    let opened = within("an answer", pair.a.open("")).await;
    assert!(
        matches!(
            opened,
            Err(OpenError::Connection(ConnectionError::Panicked))
        ),
        "{opened:?}"
    );
    let cause = within("the end", pair.a.closed()).await;
    assert_eq!(cause, ConnectionError::Panicked);
    assert!(!cause.is_orderly());
    assert_eq!(pair.a.accept().await.unwrap_err(), cause);
    within("the peer's end", pair.b.closed()).await;
    assert!(pair.a.is_idle());
}
