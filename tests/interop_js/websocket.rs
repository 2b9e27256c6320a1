//! Foreign WebSockets with hand-made frames: `ws` in Node, and those of browsers.

use std::sync::Arc;
use std::time::Duration;

use anabranch::websocket::{
    Authentication, HandshakeError, ListenerConfig, Origins, ServerConfig, UpgradeError,
    WebSocketIncoming, WebSocketListener,
};
use anabranch::{Config, Connection, Finished, Negotiation, Substream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::failures::Failures;
use super::js::Js;
use super::record::{Direction, Record, between};
use super::{Runtime, firefox};

/// Much longer than a browser under load needs to answer a ping.
const IDLE: Duration = Duration::from_secs(4);

/// The cases in their order; the last only with `ws`, where a pong can be held back.
const CASES: [&str; 7] = [
    "refused without the subprotocol",
    "refused with another subprotocol",
    "substreams are echoed",
    "pings are answered, and an idle connection lives",
    "text is closed with 1003",
    "a number that is not above the last is closed with 1002",
    "who answers no ping is left with 1011",
];

/// The messages of our side for them, in any order.
const SAID: [&str; 8] = [
    "refused: upgrade: subprotocol None for the offer []",
    "refused: upgrade: subprotocol None for the offer [\"chat\", \"anabranch.v9\"]",
    "ended: closed by the peer",
    "ended: closed by the peer",
    "ended: WebSocket: text message",
    "ended: WebSocket: invalid number 6 for a new substream of the peer",
    "a substream did not end as it should: \
     Err(Custom { kind: UnexpectedEof, error: ConnectionLost(WebSocket(",
    "ended: the peer does not respond",
];

async fn respond(substream: Substream, failures: Failures) {
    let (mut read, mut write) = substream.into_split();
    let copied = tokio::io::copy(&mut read, &mut write).await;
    match (copied, write.finish().await) {
        (Ok(_), Ok(Finished::Acked)) => {}
        (copied, finished) => {
            let outcome = format!("{copied:?}, {finished:?}");
            failures.add("a substream did not end as it should", &outcome);
        }
    }
}

async fn serve(incoming: WebSocketIncoming, failures: Failures) {
    let connection: Connection = match incoming.accept().await {
        Ok(connection) => connection,
        Err(error) => return failures.add("refused", &error),
    };
    let mut responding = JoinSet::new();
    while let Ok(Some(substream)) = connection.accept().await {
        responding.spawn(respond(substream, failures.clone()));
    }
    while let Some(done) = responding.join_next().await {
        done.expect("responders do not panic");
    }
    failures.add("ended", &connection.closed().await);
}

/// Echoes every substream of every connection while `program` runs.
async fn dialled_by(
    program: &str,
    command: &str,
    options: &[&str],
    cases: &[&str],
    record: Record,
) {
    let mut connection = Config::default();
    connection.negotiation = Negotiation::None;
    let record = record.websocket().config(&connection);
    let record = record.under("frames by hand, no Noise, `Origins::Any`, pings each second");
    let mut config = ServerConfig::new(Authentication::DangerNone);
    config.connection = Arc::new(connection);
    // The page in the browser has another origin.
    config.requests.origins = Origins::Any;
    config.websocket.ping_interval = IDLE / 4;
    config.websocket.idle_timeout = IDLE;
    let any = "127.0.0.1:0".parse().expect("an address");
    let listener = WebSocketListener::bind(any, config, ListenerConfig::default())
        .await
        .expect("a socket");
    let url = listener.address().url();
    let failures = Failures::default();
    let mut serving = JoinSet::new();
    let accepting = async {
        loop {
            let incoming = listener.accept().await.expect("a connection");
            serving.spawn(serve(incoming, failures.clone()));
        }
    };
    let idle_ms = IDLE.as_millis().to_string();
    let arguments = [&[command, &url, &idle_ms], options].concat();
    tokio::select! {
        () = accepting => {}
        () = Js::run(program, &arguments, cases, &record) => {}
    }
    let idle = async {
        while !listener.is_idle() {
            sleep(Duration::from_millis(10)).await;
        }
        while let Some(done) = serving.join_next().await {
            done.expect("serving does not panic");
        }
    };
    let ended = timeout(Duration::from_secs(15), idle).await;
    ended.expect("connections end with their peers");
    // The last case and the last message belong together.
    let said = SAID.len() - (CASES.len() - cases.len());
    failures.assert_are(&SAID[..said]);
}

fn record(name: &str, release: &str) -> Record {
    Record::new(name, release, Direction::ItDials)
}

#[tokio::test(flavor = "multi_thread")]
async fn ws_in_node_opens_the_carrier() {
    let ws = between(
        include_str!("../../interop/js/package.json"),
        "\"ws\": \"",
        '"',
    );
    let release = format!("ws {ws}, {}", Runtime::Node.release());
    dialled_by(
        "websocket.mjs",
        "dial",
        &[],
        &CASES,
        record("ws in Node", &release),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_websocket_of_chromium_opens_the_carrier() {
    let record = record("WebSocket of Chromium", &Runtime::Chromium.release());
    dialled_by("browser.mjs", "websocket", &[], &CASES[..6], record).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_websocket_of_firefox_opens_the_carrier() {
    let record = record("WebSocket of Firefox", &firefox::DCSCTP.release());
    let options = firefox::DCSCTP.options();
    dialled_by("browser.mjs", "websocket", &options, &CASES[..6], record).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_origin_is_refused_where_no_noise_protects() {
    let config = ServerConfig::new(Authentication::DangerNone);
    let any = "127.0.0.1:0".parse().expect("an address");
    let listener = WebSocketListener::bind(any, config, ListenerConfig::default())
        .await
        .expect("a socket");
    let url = listener.address().url();
    let _page = Js::start("browser.mjs", &["websocket", &url, "4000"]);
    let incoming = listener.accept().await.expect("a connection");
    match incoming.accept().await {
        Err(HandshakeError::Upgrade(UpgradeError::ForeignOrigin { origin })) => {
            assert_ne!(format!("{origin}/"), url.replace("ws://", "http://"));
        }
        other => panic!("{other:?}"),
    }
    let record = record("WebSocket of Chromium", &Runtime::Chromium.release());
    record
        .websocket()
        .passed("a page of another origin is refused with 403");
}
