//! pion as a peer, with the behaviour of go-libp2p: it dials us, and we dial it, with v1 and v2.
//!
//! The protocols are those of `interop/go/README.md`. `interop/go/setup.sh` builds the peer;
//! `scripts/test.sh` calls it. `ANABRANCH_INTEROP_RUNS` repeats each test (default 1),
//! `ANABRANCH_INTEROP_LONG=1` makes 100 rounds of 200 echoes and 200 dials where there are 3 and
//! 20, and leaves all timeouts as deployed peers have them; `ANABRANCH_ENGINE=direct` or `str0m`
//! chooses the engine.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anabranch::{Address, Connection, Endpoint, EndpointConfig, Finished, WebRtcDirectVersion};

#[path = "../interop/failures.rs"]
mod failures;
#[path = "../interop/identify.rs"]
mod identify;
mod killed;
mod openers;
mod process;
#[path = "../interop/record.rs"]
mod record;
#[path = "../interop/responders.rs"]
mod responders;
#[path = "../interop/server.rs"]
mod server;

use process::{Pion, number, text};
use record::{Direction, Record};
use responders::Habits;
use server::{Server, Serving, assert_nothing_left, close, dialler, endpoint_config};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The pion peer acknowledges every FIN, and resets with codes.
const HABITS: Habits = Habits {
    finished: Finished::Acked,
    stops: &[],
    drops: &[],
    leaves: false,
    codes: true,
};

const VERSIONS: [WebRtcDirectVersion; 2] = [WebRtcDirectVersion::V1, WebRtcDirectVersion::V2];

/// Maximum duration of a dial over loopback among many. The peer's ICE alone would add 200 ms.
const MEDIAN_DIAL: Duration = Duration::from_millis(30);

/// More stream numbers than the table of go-libp2p holds if they are reused after 256.
const KEPT: usize = 600;

/// The repetitions of each test.
fn runs() -> usize {
    std::env::var("ANABRANCH_INTEROP_RUNS").map_or(1, |runs| runs.parse().expect("a number"))
}

fn is_long() -> bool {
    std::env::var("ANABRANCH_INTEROP_LONG").is_ok_and(|long| long == "1")
}

fn rounds() -> usize {
    if is_long() { 100 } else { 3 }
}

fn dials() -> usize {
    if is_long() { 200 } else { 20 }
}

async fn serve(endpoint: EndpointConfig) -> Server {
    let mut serving = Serving::by_default(HABITS);
    serving.endpoint = endpoint;
    Server::start(LOOPBACK, serving).await
}

fn record(direction: Direction, version: WebRtcDirectVersion) -> Record {
    let package = |name: &str| {
        let version = record::printed_by("dpkg-query", &["-W", "-f", "${Version}", name]);
        version.split('-').next().unwrap_or_default().to_owned()
    };
    let webrtc = package("golang-github-pion-webrtc.v3-dev");
    let sctp = package("golang-github-pion-sctp-dev");
    let release = format!("webrtc {webrtc}, sctp {sctp}");
    Record::new("pion, as go-libp2p uses it", &release, direction).version(version)
}

async fn connect(
    endpoint: &Endpoint,
    address: &Address,
    version: WebRtcDirectVersion,
) -> Connection {
    let connection = endpoint.connect_with(address, version).await;
    let connection = connection.expect("the peer answers");
    assert_eq!(connection.peer_id(), address.peer_id());
    connection
}

/// Runs these cases of pion against us, with each version, and asserts that each succeeds.
async fn pion_dials_us(cases: &[&str]) {
    pion_dials_us_with(&[], cases).await;
}

async fn pion_dials_us_with(options: &[&str], cases: &[&str]) {
    for _ in 0..runs() {
        for version in VERSIONS {
            let server = serve(endpoint_config()).await;
            let record = record(Direction::ItDials, version);
            let options = with_version(version, options);
            Pion::run(&server.address(), &options, cases, &record).await;
            server.finish().await;
            record.passed("fin-ack");
        }
    }
}

fn with_version<'a>(version: WebRtcDirectVersion, arguments: &[&'a str]) -> Vec<&'a str> {
    let mut all = arguments.to_vec();
    if version == WebRtcDirectVersion::V2 {
        all.push("--v2");
    }
    all
}

/// Dials pion with each version, runs `test`, which covers these cases, over the connection, and
/// asserts that every responder there succeeds.
async fn we_dial_pion(cases: &[&str], test: impl AsyncFn(&Connection)) {
    for _ in 0..runs() {
        for version in VERSIONS {
            let (pion, address) = Pion::listen(&[]).await;
            let endpoint = dialler(endpoint_config());
            let connection = connect(&endpoint, &address, version).await;
            test(&connection).await;
            assert!(connection.close_reason().is_none());
            close(connection).await;
            assert_nothing_left(endpoint).await;
            pion.finish().await;
            record(Direction::WeDial, version).all_passed(cases);
        }
    }
}

/// Lets pion dial us, and runs `test`, which covers these cases, over the connection from our side.
async fn we_open_to_pion_that_dialled(cases: &[&str], test: impl AsyncFn(&Connection)) {
    for _ in 0..runs() {
        for version in VERSIONS {
            let mut server = serve(endpoint_config()).await;
            let pion = Pion::dial(&server.address(), &with_version(version, &["serve"]));
            let connection = server.connection().await;
            test(&connection).await;
            assert!(connection.close_reason().is_none());
            close(connection).await;
            let lines = pion.finish().await;
            let ends = lines.iter().filter_map(|line| text(line, "end"));
            assert_eq!(ends.collect::<Vec<_>>(), ["closed by the peer"]);
            server.finish().await;
            record(Direction::ItDialsWeOpen, version).all_passed(cases);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pion_dials_us_in_milliseconds() {
    for version in VERSIONS {
        let server = serve(endpoint_config()).await;
        let dials = dials().to_string();
        let options = with_version(version, &["--connects", &dials]);
        let record = record(Direction::ItDials, version);
        let lines = Pion::run(&server.address(), &options, &["ping", "close"], &record).await;
        let mut all = lines.iter().filter_map(|line| number(line, "median_ms"));
        let median = Duration::from_secs_f64(all.next().expect("a median") / 1e3);
        assert!(median < MEDIAN_DIAL, "{median:?}");
        server.finish().await;
        let figure = format!("median {:.1} ms", median.as_secs_f64() * 1e3);
        record.passed_with(&format!("dials-{dials}"), &figure);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pion_dials_us_identifies_and_pings() {
    pion_dials_us(&["identify", "ping", "close"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pion_dials_us_and_moves_bytes_both_ways() {
    pion_dials_us(&["echo-100k", "bulk-3x4m", "close"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pion_dials_us_and_opens_500_substreams_one_after_another() {
    pion_dials_us(&["sequential-50", "sequential-500", "close"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pion_dials_us_and_echoes_on_200_substreams_at_once() {
    let rounds = rounds().to_string();
    pion_dials_us_with(&["--rounds", &rounds], &["echo-200x10k", "close"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pion_dials_us_half_closes_and_resets() {
    let cases = [
        "half-close-local",
        "half-close-remote",
        "reset-local",
        "reset-remote",
        "close",
    ];
    pion_dials_us(&cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pion_dials_us_and_its_reader_stalls_for_a_while() {
    pion_dials_us(&["stall-local", "close"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pion_dials_us_and_our_reader_stalls_for_a_while() {
    pion_dials_us(&["stall-remote", "close"]).await;
}

/// No ICE check arrives meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn pion_dials_us_and_is_busy_for_longer_than_ice_waits() {
    let server = serve(endpoint_config()).await;
    let record = record(Direction::ItDials, WebRtcDirectVersion::V1);
    Pion::run(&server.address(), &[], &["busy-17s", "close"], &record).await;
    server.finish().await;
}

/// go-libp2p checks an idle path 15 to 17 s after the last packet.
#[tokio::test(flavor = "multi_thread")]
async fn pion_dials_us_and_is_idle_for_longer_than_ice_waits() {
    let mut server = serve(endpoint_config()).await;
    let pion = Pion::dial(&server.address(), &["serve"]);
    let connection = server.connection().await;
    tokio::select! {
        cause = connection.closed() => panic!("{cause}"),
        () = tokio::time::sleep(Duration::from_secs(20)) => {}
    }
    openers::ping(&connection).await;
    close(connection).await;
    pion.finish().await;
    server.finish().await;
    record(Direction::ItDialsWeOpen, WebRtcDirectVersion::V1).passed("idle-20s");
}

/// The listener has odd stream numbers.
#[tokio::test(flavor = "multi_thread")]
async fn pion_that_dialled_keeps_what_we_reset_and_the_connection_lives() {
    we_open_to_pion_that_dialled(&["keep-600"], async |connection| {
        openers::reset_what_is_kept(connection, KEPT).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pion_that_dialled_answers_what_we_open() {
    let cases = [
        "identify",
        "ping",
        "echo-100k",
        "sequential-50",
        "bulk-3x1m",
        "reset-local",
        "reset-remote",
        "fin-ack",
    ];
    we_open_to_pion_that_dialled(&cases, async |connection| {
        openers::identify(connection).await;
        openers::ping(connection).await;
        openers::echo(connection, 100_000).await;
        openers::sequence(connection, 50).await;
        openers::bench(connection, 3, 1 << 20).await;
        openers::reset(connection).await;
        openers::be_reset(connection).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_dial_pion_in_milliseconds() {
    let (pion, address) = Pion::listen(&[]).await;
    for version in VERSIONS {
        let endpoint = dialler(endpoint_config());
        let mut times = Vec::new();
        for _ in 0..dials() {
            let began = Instant::now();
            let connection = connect(&endpoint, &address, version).await;
            times.push(began.elapsed());
            openers::ping(&connection).await;
            close(connection).await;
        }
        times.sort();
        let median = times[times.len() / 2];
        println!("{version:?}: {median:?}");
        assert!(median < MEDIAN_DIAL, "{median:?}");
        assert_nothing_left(endpoint).await;
        let figure = format!("median {:.1} ms", median.as_secs_f64() * 1e3);
        let record = record(Direction::WeDial, version);
        record.passed_with(&format!("dials-{}", dials()), &figure);
    }
    pion.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_dial_pion_identify_and_ping() {
    we_dial_pion(&["identify", "ping"], async |connection| {
        openers::identify(connection).await;
        openers::ping(connection).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_dial_pion_and_move_bytes_both_ways() {
    we_dial_pion(&["echo-100k", "bulk-3x4m", "fin-ack"], async |connection| {
        openers::echo(connection, 100_000).await;
        openers::bench(connection, 3, 4 << 20).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_dial_pion_and_open_500_substreams_one_after_another() {
    we_dial_pion(&["sequential-500"], async |connection| {
        openers::sequence(connection, 500).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_dial_pion_and_echo_on_200_substreams_at_once() {
    we_dial_pion(&["echo-200x10k"], async |connection| {
        for _ in 0..rounds() {
            openers::echoes(connection, 200, 10_000).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_dial_pion_half_close_and_reset() {
    let cases = [
        "half-close-local",
        "half-close-remote",
        "reset-local",
        "reset-remote",
    ];
    we_dial_pion(&cases, async |connection| {
        openers::read_after_own_end(connection).await;
        openers::write_after_the_peers_end(connection).await;
        openers::reset(connection).await;
        openers::be_reset(connection).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_dial_pion_and_its_reader_stalls_for_a_while() {
    we_dial_pion(&["stall-remote"], async |connection| {
        openers::write_to_a_stalled_reader(connection).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_dial_pion_and_our_reader_stalls_for_a_while() {
    we_dial_pion(&["stall-local"], async |connection| {
        openers::stall(connection).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_dial_pion_that_keeps_what_we_reset_and_the_connection_lives() {
    we_dial_pion(&["keep-600"], async |connection| {
        openers::reset_what_is_kept(connection, KEPT).await
    })
    .await;
}

/// go-libp2p's `Write` does not detect a reset, since nobody reads: that application blocks, and
/// nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn we_dial_pion_and_reset_its_writer_at_the_ceiling() {
    let (pion, address) = Pion::listen(&[]).await;
    let endpoint = dialler(endpoint_config());
    let connection = connect(&endpoint, &address, WebRtcDirectVersion::V1).await;
    openers::read_nothing_up_to_the_ceiling(&connection).await;
    assert!(connection.close_reason().is_none());
    close(connection).await;
    assert_nothing_left(endpoint).await;
    pion.kill().await;
    record(Direction::WeDial, WebRtcDirectVersion::V1).passed("ceiling");
}

/// A limit of pion, and so of go-libp2p: an association has one window, and a stalled reader fills
/// it.
#[tokio::test(flavor = "multi_thread")]
async fn two_pion_wait_for_each_others_stalled_readers() {
    for case in ["stall-local", "stall-remote"] {
        let (listener, address) = Pion::listen(&[]).await;
        let mut dialler = Pion::dial(&address, &["--agent", "anabranch-interop-go/", case]);
        let line = dialler.line_of(&format!("{{\"case\":\"{case}\"")).await;
        let error = text(&line, "error").expect("it fails");
        assert!(error.starts_with("neighbour"), "{error}");
        dialler.ended().await;
        listener.kill().await;
        let record = record(Direction::TwoOfTheirs, WebRtcDirectVersion::V1);
        record.passed(&format!("{case} holds up its neighbours"));
    }
}
