//! js-libp2p as a peer, in Node and in headless Chromium and Firefox: it dials us, and we dial it.
//!
//! The protocols are those of `interop/js/README.md`. `interop/js/setup.sh` installs what this
//! needs; `scripts/test.sh` calls it. `ANABRANCH_INTEROP_RUNS` repeats each test (default 1),
//! `ANABRANCH_INTEROP_LONG=1` makes 200 dials where there are 20, and
//! `ANABRANCH_ENGINE=direct` or `str0m` chooses the engine.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anabranch::{Endpoint, Finished, RateLimit, WebRtcDirectVersion};

#[path = "../interop/failures.rs"]
mod failures;
mod firefox;
#[path = "../interop/identify.rs"]
mod identify;
mod js;
mod openers;
#[path = "../interop/own_address.rs"]
mod own_address;
#[path = "../interop/record.rs"]
mod record;
#[path = "../interop/responders.rs"]
mod responders;
#[path = "../interop/server.rs"]
mod server;
#[cfg(feature = "websocket")]
mod websocket;

use js::Js;
use own_address::own_address;
use record::{Direction, Record};
use responders::Habits;
use server::{Server, Serving, assert_nothing_left, close, dialler, endpoint_config};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// js-libp2p confirms every FIN, except after STOP_SENDING, since it knows the length of a pong.
/// Its resets have no code.
const HABITS: Habits = Habits {
    finished: Finished::Acked,
    stops: &["/ipfs/ping/1.0.0"],
    drops: &[],
    leaves: false,
    codes: false,
};

/// The cases of a js-libp2p dialler, in this order, after `connect`.
const CASES: [&str; 11] = [
    "identify",
    "ping",
    "echo-100k",
    "bulk-1x4m",
    "bulk-3x4m",
    "sequential-50",
    "half-close-local",
    "half-close-remote",
    "reset-local",
    "reset-remote",
    "close",
];

/// The repetitions of each test.
fn runs() -> usize {
    std::env::var("ANABRANCH_INTEROP_RUNS").map_or(1, |runs| runs.parse().expect("a number"))
}

fn is_long() -> bool {
    std::env::var("ANABRANCH_INTEROP_LONG").is_ok_and(|long| long == "1")
}

/// A browser or Node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Runtime {
    Node,
    Chromium,
    Firefox(&'static str),
}

impl Runtime {
    fn program(self) -> &'static str {
        match self {
            Self::Node => "node.mjs",
            _ => "browser.mjs",
        }
    }

    fn options(self) -> Vec<&'static str> {
        match self {
            Self::Firefox(sctp) => vec!["--firefox", sctp],
            _ => Vec::new(),
        }
    }

    /// The address at which it reaches our listener.
    fn ip(self) -> IpAddr {
        match self {
            Self::Firefox(_) => own_address(),
            _ => LOOPBACK,
        }
    }

    fn release(self) -> String {
        match self {
            Self::Node => format!("Node {}", record::printed_by("node", &["--version"])),
            Self::Chromium => browser("CHROMIUM", "/usr/bin/chromium"),
            Self::Firefox(_) => browser("FIREFOX", "/usr/bin/firefox-esr"),
        }
    }

    fn name(self) -> String {
        match self {
            Self::Node => "Node".to_owned(),
            Self::Chromium => "Chromium".to_owned(),
            Self::Firefox(sctp) => format!("Firefox with {sctp}"),
        }
    }

    fn record(self, direction: Direction) -> Record {
        let lock = include_str!("../../interop/js/package.json");
        let libp2p = record::between(lock, "\"libp2p\": \"", '"');
        let release = format!("libp2p {libp2p}, {}", self.release());
        Record::new(
            &format!("js-libp2p in {}", self.name()),
            &release,
            direction,
        )
    }
}

fn browser(variable: &str, default: &str) -> String {
    let program = std::env::var(variable).unwrap_or_else(|_| default.to_owned());
    let printed = record::printed_by(&program, &["--version"]);
    let words = printed.split(' ').filter(|word| *word != "Mozilla").take(2);
    words.collect::<Vec<_>>().join(" ")
}

/// How a page dials.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialling {
    /// As js-libp2p: v1.
    V1,
    /// With the shim below it.
    V2,
    /// The same in a Chromium that rejects a munged ufrag (`WebRTC-NoSdpMangleUfrag`).
    V2Unmunged,
}

impl Dialling {
    fn options(self) -> &'static [&'static str] {
        match self {
            Self::V1 => &[],
            Self::V2 => &["--v2"],
            Self::V2Unmunged => &["--v2", "--no-munge"],
        }
    }

    fn record(self, record: Record) -> Record {
        const SHIM: &str = "a shim of ours below js-libp2p";
        match self {
            Self::V1 => record,
            Self::V2 => record.version(WebRtcDirectVersion::V2).under(SHIM),
            Self::V2Unmunged => record
                .version(WebRtcDirectVersion::V2)
                .under(SHIM)
                .under("WebRTC-NoSdpMangleUfrag"),
        }
    }
}

/// Lets it dial us and run these cases, and asserts that each case, and each responder, passes.
async fn dials_us(runtime: Runtime, dialling: Dialling, cases: &[&str]) {
    for _ in 0..runs() {
        dials_us_with(HABITS, runtime, dialling, cases)
            .await
            .passed("fin-ack");
    }
}

async fn dials_us_with(
    habits: Habits,
    runtime: Runtime,
    dialling: Dialling,
    cases: &[&str],
) -> Record {
    let serving = Serving::by_default(habits);
    let record = dialling.record(runtime.record(Direction::ItDials));
    let record = record.config(&serving.config).endpoint(&serving.endpoint);
    let server = Server::start(runtime.ip(), serving).await;
    run(runtime, &server, dialling.options(), cases, &record).await;
    server.finish().await;
    record
}

async fn run(runtime: Runtime, server: &Server, options: &[&str], cases: &[&str], record: &Record) {
    let address = server.address().to_string();
    let arguments = [&["dial", &address], cases, &runtime.options(), options].concat();
    let expected = [&["connect"], cases].concat();
    Js::run(runtime.program(), &arguments, &expected, record).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn js_libp2p_in_node_dials_us() {
    dials_us(Runtime::Node, Dialling::V1, &CASES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn js_libp2p_in_chromium_dials_us() {
    dials_us(Runtime::Chromium, Dialling::V1, &CASES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn js_libp2p_in_chromium_dials_us_with_v2_and_without_munging() {
    dials_us(Runtime::Chromium, Dialling::V2Unmunged, &CASES).await;
}

async fn dials_us_many_times(runtime: Runtime, dialling: Dialling) {
    let case = if is_long() { "dials-200" } else { "dials-20" };
    // js-libp2p closes a connection whose streams count as closed before their FIN_ACK has left.
    let habits = Habits {
        leaves: true,
        ..HABITS
    };
    dials_us_with(habits, runtime, dialling, &[case]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn js_libp2p_in_node_dials_us_many_times_in_a_row() {
    dials_us_many_times(Runtime::Node, Dialling::V1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn js_libp2p_in_chromium_dials_us_many_times_in_a_row() {
    dials_us_many_times(Runtime::Chromium, Dialling::V1).await;
    dials_us_many_times(Runtime::Chromium, Dialling::V2).await;
}

/// A listener whose rate for this machine is used up challenges every contact, and serves those
/// that answer.
async fn answers_a_challenge(runtime: Runtime, cases: &[&str]) {
    const BURST: u32 = 8;
    let mut serving = Serving::by_default(HABITS);
    serving.endpoint.limit_loopback = true;
    serving.endpoint.first_contacts = RateLimit::new(Duration::from_secs(3600), BURST);
    let record = runtime
        .record(Direction::ItDials)
        .endpoint(&serving.endpoint);
    let server = Server::start(runtime.ip(), serving).await;
    let endpoint = Endpoint::builder().dial_only().expect("defaults work");
    for _ in 0..BURST {
        let connection = endpoint.connect(&server.address()).await;
        close(connection.expect("within the rate")).await;
    }
    assert_nothing_left(endpoint).await;
    run(runtime, &server, &[], cases, &record).await;
    server.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn js_libp2p_in_node_answers_a_challenge() {
    answers_a_challenge(Runtime::Node, &CASES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn js_libp2p_in_chromium_answers_a_challenge() {
    answers_a_challenge(Runtime::Chromium, &CASES).await;
}

/// A page without js-libp2p that uses v2 up to the first Noise message, and leaves.
async fn gets_the_first_noise_message(runtime: Runtime, options: &[&str], condition: Option<&str>) {
    for _ in 0..runs() {
        let name = match runtime {
            Runtime::Firefox(sctp) => format!("Firefox with {sctp}"),
            other => other.name(),
        };
        let mut record = Record::new(&name, &runtime.release(), Direction::ItDials)
            .version(WebRtcDirectVersion::V2);
        if let Some(condition) = condition {
            record = record.under(condition);
        }
        let server = Server::start(runtime.ip(), Serving::by_default(HABITS)).await;
        let address = server.address().to_string();
        let arguments = [&["v2", &address], &runtime.options()[..], options].concat();
        Js::run(runtime.program(), &arguments, &["v2"], &record).await;
        server
            .finish_with(&["a dialler was not authenticated"])
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chromium_gets_the_first_noise_message_over_v2() {
    gets_the_first_noise_message(Runtime::Chromium, &[], None).await;
    let unmunged = Some("WebRTC-NoSdpMangleUfrag");
    gets_the_first_noise_message(Runtime::Chromium, &["--no-munge"], unmunged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_dial_js_libp2p_in_node() {
    for _ in 0..runs() {
        let mut js = Js::start("node.mjs", &["listen"]);
        let address = js.listen_address().await;
        let address = address.parse().expect("a webrtc-direct address");
        let record = Runtime::Node.record(Direction::WeDial);
        let endpoint = dialler(endpoint_config());
        // js listeners support v1 only.
        let connection = endpoint
            .connect_with(&address, WebRtcDirectVersion::V1)
            .await
            .expect("js answers");
        assert_eq!(connection.peer_id(), address.peer_id());
        openers::run_all(&connection, &record).await;
        close(connection).await;
        assert_nothing_left(endpoint).await;
        // The responder that fills the ceiling of this side fails.
        js.finish(&["/bench/1.0.0"]).await;
        record.passed("fin-ack");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn we_dial_js_libp2p_in_node_many_times_in_a_row() {
    let dials = if is_long() { 200 } else { 20 };
    let mut js = Js::start("node.mjs", &["listen"]);
    let address = js.listen_address().await;
    let address = address.parse().expect("a webrtc-direct address");
    let endpoint = dialler(endpoint_config());
    for _ in 0..dials {
        let connecting = endpoint.connect_with(&address, WebRtcDirectVersion::V1);
        let connection = connecting.await.expect("js answers");
        openers::echoes_100_kb(&connection).await;
        close(connection).await;
    }
    assert_nothing_left(endpoint).await;
    js.finish(&[]).await;
    let record = Runtime::Node.record(Direction::WeDial);
    record.passed(&format!("dials-{dials}"));
}
