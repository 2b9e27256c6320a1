//! Python stacks as peers: py-libp2p, and aiortc with webrtc-direct by hand.
//!
//! The protocols are those of `interop/python/README.md`. `interop/python/setup.sh` installs the
//! peers; `scripts/test.sh` calls it. `ANABRANCH_INTEROP_RUNS` repeats each test (default 1),
//! `ANABRANCH_INTEROP_LONG=1` makes the rounds of 200 substreams 100, and `ANABRANCH_ENGINE=direct`
//! or `str0m` chooses the engine.

use std::io::{ErrorKind, sink};
use std::net::{IpAddr, Ipv4Addr};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anabranch::{
    Address, Connection, ConnectionError, Endpoint, Finished, RateLimit, WebRtcDirectVersion,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

#[path = "../interop/failures.rs"]
mod failures;
#[path = "../interop/identify.rs"]
mod identify;
mod openers;
mod process;
#[path = "../interop/record.rs"]
mod record;
#[path = "../interop/responders.rs"]
mod responders;
#[path = "../interop/server.rs"]
mod server;

use process::{AIORTC, AIORTC_GAP, LIBP2P, Python};
use record::{Direction, Record};
use responders::Habits;
use server::{Server, Serving, assert_nothing_left, close, endpoint_config, log};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

const VERSIONS: [WebRtcDirectVersion; 2] = [WebRtcDirectVersion::V1, WebRtcDirectVersion::V2];

/// Both peers confirm every FIN. py-libp2p reads no more of its own identify and ping once it has
/// the answer.
const HABITS: Habits = Habits {
    finished: Finished::Acked,
    stops: &["/ipfs/id/1.0.0", "/ipfs/ping/1.0.0"],
    drops: &[],
    leaves: false,
    codes: false,
};

/// The cases of a dialling peer, in this order, after `connect`.
const CASES: [&str; 13] = [
    "identify",
    "ping",
    "echo-100k",
    "bulk-3x4m",
    "sequential-50",
    "half-close-local",
    "half-close-remote",
    "reset-local",
    "reset-remote",
    "echo-200x10k",
    "sequential-500",
    "stall-up",
    "close",
];

/// aiortc has only data channels: `identify` and `ping` belong to a library.
fn cases_of(program: &str) -> &'static [&'static str] {
    if program == LIBP2P {
        &CASES
    } else {
        &CASES[2..]
    }
}

fn record(program: &str, direction: Direction, version: WebRtcDirectVersion) -> Record {
    let lock = include_str!("../../interop/python/requirements.txt");
    let aiortc = record::between(lock, "aiortc==", '\n');
    let record = match program {
        LIBP2P => {
            let libp2p = record::between(lock, "libp2p==", '\n');
            let release = format!("{libp2p}, aiortc {aiortc}");
            Record::new("py-libp2p", &release, direction)
        }
        _ => Record::new("aiortc, Noise and frames by hand", aiortc, direction),
    };
    record
        .version(version)
        .under("room in the kernel's buffers, so that no packet is lost")
}

fn options_of(version: WebRtcDirectVersion) -> &'static [&'static str] {
    match version {
        WebRtcDirectVersion::V2 => &["--v2"],
        _ => &[],
    }
}

/// The repetitions of each test.
fn runs() -> usize {
    std::env::var("ANABRANCH_INTEROP_RUNS").map_or(1, |runs| runs.parse().expect("a number"))
}

async fn serve() -> Server {
    let mut serving = Serving::by_default(HABITS);
    if is_long() {
        // Python dials from an address that is not on loopback: after 64 first contacts at once,
        // one every 5 s has an answer, and its dials take 3.5 or 7.5 s.
        serving.endpoint.first_contacts = RateLimit::UNLIMITED;
    }
    Server::start(LOOPBACK, serving).await
}

async fn dialled_by(program: &'static str, version: WebRtcDirectVersion, cases: &[&str]) {
    for _ in 0..runs() {
        let server = serve().await;
        let address = server.address().to_string();
        let arguments = [&["dial", &address], options_of(version), cases].concat();
        let record = record(program, Direction::ItDials, version);
        Python::run(program, &arguments, cases, &record).await;
        server.finish().await;
        record.passed("fin-ack");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn py_libp2p_dials_us() {
    dialled_by(LIBP2P, WebRtcDirectVersion::V1, cases_of(LIBP2P)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn py_libp2p_dials_us_with_v2() {
    dialled_by(LIBP2P, WebRtcDirectVersion::V2, cases_of(LIBP2P)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn py_libp2p_dials_us_many_times_in_a_row() {
    for version in VERSIONS {
        dialled_by(LIBP2P, version, &[dials()]).await;
    }
}

async fn connect(endpoint: &Endpoint, address: &str, version: WebRtcDirectVersion) -> Connection {
    let address: Address = address.parse().expect("a webrtc-direct address");
    let connection = endpoint.connect_with(&address, version).await;
    let connection = connection.expect("the peer answers");
    assert_eq!(connection.peer_id(), address.peer_id());
    connection
}

fn dialler() -> Endpoint {
    server::dialler(endpoint_config())
}

async fn we_dial_py_libp2p(version: WebRtcDirectVersion) {
    for _ in 0..runs() {
        let (python, address) = Python::listen(LIBP2P).await;
        let endpoint = dialler();
        let connection = connect(&endpoint, &address, version).await;
        let record = record(LIBP2P, Direction::WeDial, version);
        openers::identifies_and_pings(&connection, &record).await;
        openers::run_all(&connection, &record).await;
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
    dialled_by(AIORTC, WebRtcDirectVersion::V1, cases_of(AIORTC)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aiortc_dials_us_with_v2() {
    dialled_by(AIORTC, WebRtcDirectVersion::V2, cases_of(AIORTC)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aiortc_dials_us_many_times_in_a_row() {
    for version in VERSIONS {
        dialled_by(AIORTC, version, &[dials()]).await;
    }
}

/// Either side may open substreams, whoever dialled: `test` opens them to a peer that dials us.
/// Returns that peer, which waits for the end of its stdin.
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
        let [v1, v2] = VERSIONS.map(|v| record(program, Direction::ItDialsWeOpen, v));
        let all = async |connection: &Connection| openers::run_all(connection, &v1).await;
        let python = open_to_a_dialler(program, &[], all).await;
        python.finish().await;
        let python = open_to_a_dialler(program, &["--v2"], openers::echoes_100_kb).await;
        python.finish().await;
        v2.passed("echo-100k");
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

fn is_long() -> bool {
    std::env::var("ANABRANCH_INTEROP_LONG").is_ok_and(|long| long == "1")
}

/// The repetitions of 200 substreams at once.
fn rounds() -> usize {
    if is_long() { 100 } else { 1 }
}

/// The case of a dialler that dials many times.
fn dials() -> &'static str {
    if is_long() { "dials-200" } else { "dials-10" }
}

/// Each on a connection of its own: py-libp2p counts a channel until it is closed in both
/// directions, which its applications do not see, and allows 256.
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
    let record = record(LIBP2P, Direction::ItDialsWeOpen, WebRtcDirectVersion::V1);
    record.passed("echo-200x10k");
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
    let record = record(AIORTC, Direction::ItDialsWeOpen, WebRtcDirectVersion::V1);
    record.passed("echo-200x10k");
}

/// Unread data from Python costs its own substream, and no other.
#[tokio::test(flavor = "multi_thread")]
async fn python_peers_are_reset_at_the_ceiling() {
    for program in [LIBP2P, AIORTC] {
        let mut python = open_to_a_dialler(program, &[], openers::is_overrun).await;
        // aiortc's writer sees the reset; that of py-libp2p has written everything by then.
        python.next_failure_with("Substream").await;
        python.kill().await;
        let direction = Direction::ItDialsWeOpen;
        record(program, direction, WebRtcDirectVersion::V1).passed("ceiling");
    }
}

/// py-libp2p does not detect the end of a connection, and accepts 8 per peer: so each dial has
/// another identity.
#[tokio::test(flavor = "multi_thread")]
async fn we_dial_py_libp2p_many_times_in_a_row() {
    let (python, address) = Python::listen(LIBP2P).await;
    let dials = if is_long() { 100 } else { 5 };
    for version in [WebRtcDirectVersion::V1, WebRtcDirectVersion::V2].repeat(dials) {
        let endpoint = dialler();
        let connection = connect(&endpoint, &address, version).await;
        openers::echoes_100_kb(&connection).await;
        close(connection).await;
        assert_nothing_left(endpoint).await;
    }
    python.finish().await;
    for version in VERSIONS {
        record(LIBP2P, Direction::WeDial, version).passed(&format!("dials-{dials}"));
    }
}

/// A limit of py-libp2p. It refuses a connection by closing it.
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
    // By itself it would wait some seconds for each of the eight.
    python.kill().await;
    record(LIBP2P, Direction::WeDial, WebRtcDirectVersion::V1)
        .passed("it refuses our ninth connection");
}

/// A limit of py-libp2p: neither side closes a channel whose halves have ended. At 256 no more are
/// opened.
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
    let record = record(LIBP2P, Direction::TwoOfTheirs, WebRtcDirectVersion::V1);
    record.passed("no channel is ever closed");
}

/// A limit of the layer below both: after a loss, data waits for one more message of its stream if
/// a message of another stream came in between.
#[tokio::test(flavor = "multi_thread")]
async fn aiortc_holds_back_what_came_behind_a_gap() {
    Python::start(AIORTC_GAP, &[]).succeed().await;
    let record = record(AIORTC, Direction::TwoOfTheirs, WebRtcDirectVersion::V1);
    record.passed("what came behind a gap is held back, in its code alone");
}

/// A limit of py-libp2p: a substream holds 64 unread messages, and drops more with a line in its
/// log. FIN_ACK arrives all the same; only the application detects the missing data.
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
    let record = record(LIBP2P, Direction::WeDial, WebRtcDirectVersion::V1);
    record.passed("stall-remote of 1 MiB loses what comes above 64 messages");
}

/// Not a test of its own: the process that [`Killed`] runs. It ends with its stdin.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a process for other tests"]
async fn a_listener_that_is_killed() {
    let server = serve().await;
    println!("{LISTENING}{}", server.address());
    let end = tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut sink()));
    end.await.expect("no panic").expect("a pipe");
}

const LISTENING: &str = "listening on ";

/// A listener of this crate in a process of its own.
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

/// Asserts that its reader fails within 45 s. Returns whether its connection does.
async fn notices_that_we_die(program: &'static str) -> bool {
    let mut listener = Killed::start().await;
    let mut python = Python::start(program, &["dial", &listener.address, "killed"]);
    python.next_line_with("\"waiting\"").await;
    listener.process.kill().await.expect("it still ran");
    let line = python.next_line_with("\"connection\"").await;
    python.succeed().await;
    line.contains("\"over\": true")
}

/// py-libp2p watches the state of its connection only until it is connected.
#[tokio::test(flavor = "multi_thread")]
async fn python_peers_notice_that_we_die() {
    let (aiortc, libp2p) = tokio::join!(notices_that_we_die(AIORTC), notices_that_we_die(LIBP2P));
    assert!(aiortc, "aiortc's connection ends");
    assert!(!libp2p, "py-libp2p's connection is never over");
    let of = |program| record(program, Direction::ItDials, WebRtcDirectVersion::V1);
    of(AIORTC).passed("we are killed, it notices");
    of(LIBP2P).passed("we are killed, its reader notices, its connection never does");
}

/// `EndpointConfig::silence_timeout` is 15 s.
const WE_NOTICE: Duration = Duration::from_secs(20);

/// Kills `python`, while a substream of `connection` waits for it.
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
    let killed = |program, direction| {
        let record = record(program, direction, WebRtcDirectVersion::V1);
        record.passed("it is killed, we notice");
    };
    killed(AIORTC, Direction::ItDialsWeOpen);
    killed(LIBP2P, Direction::ItDialsWeOpen);
    killed(LIBP2P, Direction::WeDial);
}
