//! Python stacks as peers: py-libp2p, and aiortc with webrtc-direct by hand.
//!
//! The protocols are those of `interop/python/README.md`. `interop/python/setup.sh` installs the
//! peers; `scripts/test.sh` calls it. `ANABRANCH_INTEROP_RUNS` repeats each test (default 1),
//! `ANABRANCH_INTEROP_LONG=1` makes the rounds of 200 substreams 100, and `ANABRANCH_ENGINE=direct` or
//! `str0m` chooses the engine.

use std::io::{ErrorKind, sink};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anabranch::{
    Address, Connection, ConnectionError, Endpoint, EndpointConfig, WebRtcDirectVersion,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

#[path = "../interop_js/identify.rs"]
mod identify;
mod openers;
mod process;
mod responders;

use process::{AIORTC, AIORTC_GAP, LIBP2P, Python};

/// How often each test is repeated.
fn runs() -> usize {
    std::env::var("ANABRANCH_INTEROP_RUNS").map_or(1, |runs| runs.parse().expect("a number"))
}

/// Settings with the engine that is asked for.
fn endpoint_config() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    if let Ok(engine) = std::env::var("ANABRANCH_ENGINE") {
        config.engine = engine.parse().expect("a known engine");
    }
    config
}

/// Shows what `RUST_LOG` asks for.
fn log() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
}

/// A listener on loopback that serves every protocol.
struct Listener {
    endpoint: Endpoint,
    failures: mpsc::UnboundedReceiver<Vec<String>>,
}

impl Listener {
    async fn bind() -> Self {
        log();
        let mut builder = Endpoint::builder().endpoint_config(endpoint_config());
        for protocol in responders::PROTOCOLS {
            builder = builder.protocol(protocol);
        }
        let endpoint = builder.bind("127.0.0.1:0").await.expect("a socket");
        let serving = endpoint.clone();
        let (report, failures) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(incoming) = serving.accept().await {
                let own = serving.public_key();
                let report = report.clone();
                tokio::spawn(async move {
                    let failures = match incoming.accept().await {
                        Ok(connection) => responders::serve(connection, own).await,
                        Err(error) => vec![format!("a dialler was not authenticated: {error}")],
                    };
                    let _ = report.send(failures);
                });
            }
        });
        Self { endpoint, failures }
    }

    fn address(&self) -> String {
        self.endpoint.addresses().remove(0).to_string()
    }

    /// Every connection has ended, and everything on each was answered in order.
    async fn succeed(mut self) {
        assert_nothing_left(self.endpoint).await;
        while let Some(failures) = self.failures.recv().await {
            assert!(failures.is_empty(), "{failures:#?}");
        }
    }
}

/// Everything is closed in the end: connections and routes.
async fn assert_nothing_left(endpoint: Endpoint) {
    tokio::time::timeout(Duration::from_secs(15), endpoint.close())
        .await
        .expect("connections end with their peers");
    assert!(endpoint.is_idle(), "{endpoint:?}");
}

async fn dialled_by(program: &'static str, options: &[&str]) {
    for _ in 0..runs() {
        let listener = Listener::bind().await;
        let address = listener.address();
        Python::run(program, &[&["dial", &address], options].concat()).await;
        listener.succeed().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn py_libp2p_dials_us() {
    dialled_by(LIBP2P, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn py_libp2p_dials_us_with_v2() {
    dialled_by(LIBP2P, &["--v2"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn py_libp2p_dials_us_many_times_in_a_row() {
    dialled_by(LIBP2P, &["dials-10"]).await;
    dialled_by(LIBP2P, &["dials-10", "--v2"]).await;
}

async fn connect(endpoint: &Endpoint, address: &str, version: WebRtcDirectVersion) -> Connection {
    let address: Address = address.parse().expect("a webrtc-direct address");
    let connection = endpoint.connect_with(&address, version).await;
    let connection = connection.expect("the peer answers");
    assert_eq!(connection.peer_id(), address.peer_id());
    connection
}

fn dialler() -> Endpoint {
    log();
    Endpoint::builder()
        .endpoint_config(endpoint_config())
        .dial_only()
        .expect("defaults work")
}

async fn close(connection: Connection) {
    connection.close().await;
    assert!(connection.is_idle());
}

async fn we_dial_py_libp2p(version: WebRtcDirectVersion) {
    for _ in 0..runs() {
        let (python, address) = Python::listen(LIBP2P).await;
        let endpoint = dialler();
        let connection = connect(&endpoint, &address, version).await;
        openers::identifies_and_pings(&connection).await;
        openers::run_all(&connection).await;
        close(connection).await;
        assert_nothing_left(endpoint).await;
        python.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn we_dial_py_libp2p_with_v1() {
    we_dial_py_libp2p(WebRtcDirectVersion::V1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_dial_py_libp2p_with_v2() {
    we_dial_py_libp2p(WebRtcDirectVersion::V2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aiortc_dials_us() {
    dialled_by(AIORTC, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aiortc_dials_us_with_v2() {
    dialled_by(AIORTC, &["--v2"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aiortc_dials_us_many_times_in_a_row() {
    dialled_by(AIORTC, &["dials-10"]).await;
    dialled_by(AIORTC, &["dials-10", "--v2"]).await;
}

/// Whoever dialled, either side may open substreams: `test` opens them to a peer that dials us.
/// Returns that peer, which waits for its stdin to end.
async fn open_to_a_dialler(
    program: &'static str,
    options: &[&str],
    test: impl AsyncFn(&Connection),
) -> Python {
    log();
    let endpoint = Endpoint::builder()
        .endpoint_config(endpoint_config())
        .bind("127.0.0.1:0")
        .await
        .expect("a socket");
    let address = endpoint.addresses().remove(0).to_string();
    let arguments = [&["dial", &address, "serve"], options].concat();
    let mut python = Python::start(program, &arguments);
    let incoming = endpoint.accept().await.expect("it dials");
    let connection = incoming.accept().await.expect("it is authenticated");
    python.next_line_with("\"connect\"").await;
    test(&connection).await;
    close(connection).await;
    assert_nothing_left(endpoint).await;
    python
}

async fn we_open_substreams_to_a_dialler(program: &'static str) {
    for _ in 0..runs() {
        let python = open_to_a_dialler(program, &[], openers::run_all).await;
        python.finish().await;
        let v2 = open_to_a_dialler(program, &["--v2"], openers::echoes_100_kb).await;
        v2.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn we_open_substreams_to_py_libp2p_that_dialled_us() {
    we_open_substreams_to_a_dialler(LIBP2P).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_open_substreams_to_aiortc_that_dialled_us() {
    we_open_substreams_to_a_dialler(AIORTC).await;
}

/// How often 200 substreams are opened at once.
fn rounds() -> usize {
    let is_long = std::env::var_os("ANABRANCH_INTEROP_LONG").is_some();
    if is_long { 100 } else { 1 }
}

/// On a connection each: py-libp2p counts a channel until it is closed in both directions, which no
/// application here sees, and takes 256.
#[tokio::test(flavor = "multi_thread")]
async fn we_open_200_substreams_at_once_to_py_libp2p() {
    for round in 0..rounds() {
        let test = async |connection: &Connection| {
            let began = Instant::now();
            openers::echoes_10_kb_on_200_substreams_at_once(connection).await;
            println!("round {round}: {:?}", began.elapsed());
        };
        open_to_a_dialler(LIBP2P, &[], test).await.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn we_open_200_substreams_at_once_to_aiortc() {
    let test = async |connection: &Connection| {
        for round in 0..rounds() {
            let began = Instant::now();
            openers::echoes_10_kb_on_200_substreams_at_once(connection).await;
            println!("round {round}: {:?}", began.elapsed());
        }
    };
    let options = ["--timeout-s", "900"];
    let python = open_to_a_dialler(AIORTC, &options, test).await;
    python.finish().await;
}

/// What Python sends and nobody here reads costs its substream, no other.
#[tokio::test(flavor = "multi_thread")]
async fn python_peers_are_reset_at_the_ceiling() {
    for program in [LIBP2P, AIORTC] {
        let mut python = open_to_a_dialler(program, &[], openers::is_overrun).await;
        // aiortc's writer sees the reset; what py-libp2p writes is all accepted by then.
        python.next_failure_with("Substream").await;
        python.kill().await;
    }
}

/// py-libp2p does not notice that a connection is over, and takes 8 of one peer: so each dial is of
/// another one.
#[tokio::test(flavor = "multi_thread")]
async fn we_dial_py_libp2p_many_times_in_a_row() {
    let (python, address) = Python::listen(LIBP2P).await;
    for version in [WebRtcDirectVersion::V1, WebRtcDirectVersion::V2].repeat(5) {
        let endpoint = dialler();
        let connection = connect(&endpoint, &address, version).await;
        openers::echoes_100_kb(&connection).await;
        close(connection).await;
        assert_nothing_left(endpoint).await;
    }
    python.finish().await;
}

/// Its limit. A connection that it refuses is one that it closes.
#[tokio::test(flavor = "multi_thread")]
async fn py_libp2p_takes_8_connections_of_a_peer_in_its_life() {
    let (python, address) = Python::listen(LIBP2P).await;
    let endpoint = dialler();
    for _ in 0..8 {
        let connection = connect(&endpoint, &address, WebRtcDirectVersion::V1).await;
        openers::echoes_100_kb(&connection).await;
        close(connection).await;
    }
    let refused = connect(&endpoint, &address, WebRtcDirectVersion::V1).await;
    let opened = refused.open("/echo/1.0.0").await;
    opened.expect_err("it has not noticed that eight are over");
    drop(refused);
    assert_nothing_left(endpoint).await;
    // By itself it would wait for each of the eight for some seconds.
    python.kill().await;
}

/// Its limit: neither side closes a channel whose halves have ended. At 256 no more are opened.
#[tokio::test(flavor = "multi_thread")]
async fn two_py_libp2p_close_no_channel() {
    let (listener, address) = Python::listen(LIBP2P).await;
    let arguments = ["dial", &address, "echo-100k", "close"];
    let mut dialler = Python::start(LIBP2P, &arguments);
    dialler.next_line_with("echo-100k").await;
    // `close` waits for 15 s.
    dialler.next_failure_with("TimeoutError").await;
    dialler.kill().await;
    listener.kill().await;
}

/// A limit below both: what came behind a lost packet waits until one more message of its stream
/// comes, as another stream's had a turn between.
#[tokio::test(flavor = "multi_thread")]
async fn aiortc_holds_back_what_came_behind_a_gap() {
    Python::run(AIORTC_GAP, &[]).await;
}

/// Its limit: a substream there holds 64 unread messages, and what comes then is dropped with a line
/// in its log. The FIN_ACK comes all the same; only the application sees that something is missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_in_py_libp2p_that_stalls_loses_what_comes() {
    let (mut python, address) = Python::listen(LIBP2P).await;
    let endpoint = dialler();
    let connection = connect(&endpoint, &address, WebRtcDirectVersion::V1).await;
    openers::overruns_a_stalled_reader(&connection).await;
    python.next_failure_with("bytes came of").await;
    openers::echoes_100_kb(&connection).await;
    close(connection).await;
    assert_nothing_left(endpoint).await;
    python.kill().await;
}

/// Not a test by itself: the process that [`Killed`] runs. It ends with its stdin.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a process for other tests"]
async fn a_listener_that_is_killed() {
    let listener = Listener::bind().await;
    println!("{LISTENING}{}", listener.address());
    let end = tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut sink()));
    end.await.expect("no panic").expect("a pipe");
}

const LISTENING: &str = "listening on ";

/// A listener of ours in a process of its own.
struct Killed {
    process: Child,
    address: String,
}

impl Killed {
    async fn start() -> Self {
        let mut process = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "a_listener_that_is_killed"])
            .args(["--ignored", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("this program starts");
        let stdout = process.stdout.take().expect("stdout is piped");
        let mut lines = BufReader::new(stdout).lines();
        while let Some(line) = lines.next_line().await.expect("lines of text") {
            if let Some((_, address)) = line.split_once(LISTENING) {
                let address = address.to_owned();
                return Self { process, address };
            }
        }
        panic!("it does not listen")
    }
}

/// Its reader learns within 45 s that we are gone. Returns whether its connection does.
async fn notices_that_we_die(program: &'static str) -> bool {
    let mut listener = Killed::start().await;
    let mut python = Python::start(program, &["dial", &listener.address, "killed"]);
    python.next_line_with("\"waiting\"").await;
    listener.process.kill().await.expect("it still ran");
    let line = python.next_line_with("\"connection\"").await;
    python.succeed().await;
    line.contains("\"over\": true")
}

/// py-libp2p listens to the state of its connection only until it is connected.
#[tokio::test(flavor = "multi_thread")]
async fn python_peers_notice_that_we_die() {
    let (aiortc, libp2p) = tokio::join!(notices_that_we_die(AIORTC), notices_that_we_die(LIBP2P));
    assert!(aiortc, "aiortc's connection ends");
    assert!(!libp2p, "py-libp2p's connection is never over");
}

/// `EndpointConfig::silence_timeout` is 15 s.
const WE_NOTICE: Duration = Duration::from_secs(20);

/// Kills `python`, for which a substream of `connection` waits.
async fn we_notice_that_it_dies(python: Python, connection: &Connection) {
    let mut substream = connection.open("/echo/1.0.0").await.expect("it lives");
    substream.write_u8(1).await.expect("a write");
    assert_eq!(substream.read_u8().await.expect("an echo"), 1);
    python.kill().await;
    let end = tokio::time::timeout(WE_NOTICE, connection.closed());
    let end = end.await.expect("it is noticed in time");
    assert!(matches!(end, ConnectionError::TimedOut), "{end}");
    let error = substream.read_u8().await.expect_err("nobody is there");
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}");
}

async fn we_notice_that_a_dialler_dies(program: &'static str) {
    let endpoint = Endpoint::builder()
        .endpoint_config(endpoint_config())
        .bind("127.0.0.1:0")
        .await
        .expect("a socket");
    let address = endpoint.addresses().remove(0).to_string();
    let python = Python::start(program, &["dial", &address, "serve"]);
    let incoming = endpoint.accept().await.expect("it dials");
    let connection = incoming.accept().await.expect("it is authenticated");
    we_notice_that_it_dies(python, &connection).await;
    assert_nothing_left(endpoint).await;
}

async fn we_notice_that_a_listener_dies() {
    let (python, address) = Python::listen(LIBP2P).await;
    let endpoint = dialler();
    let connection = connect(&endpoint, &address, WebRtcDirectVersion::V1).await;
    we_notice_that_it_dies(python, &connection).await;
    assert_nothing_left(endpoint).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_notice_that_python_peers_die() {
    tokio::join!(
        we_notice_that_a_dialler_dies(AIORTC),
        we_notice_that_a_dialler_dies(LIBP2P),
        we_notice_that_a_listener_dies()
    );
}
