//! js-libp2p as a peer, in Node and in headless Chromium and Firefox: it dials us, and we dial it.
//!
//! The protocols are those of `interop/js/README.md`. `interop/js/setup.sh` installs what this
//! needs; `scripts/test.sh` calls it. `ANABRANCH_INTEROP_RUNS` repeats each test (default 1), and
//! `ANABRANCH_ENGINE=direct` or `str0m` chooses the engine.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anabranch::{Endpoint, EndpointConfig, RateLimit, WebRtcDirectVersion};

mod firefox;
mod identify;
mod js;
mod openers;
mod responders;
#[cfg(feature = "websocket")]
mod websocket;

use js::Js;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

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

/// Listens on `ip` and serves every protocol until it is dropped.
async fn serve(ip: IpAddr, config: EndpointConfig) -> Endpoint {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
    let mut builder = Endpoint::builder().endpoint_config(config);
    for protocol in responders::PROTOCOLS {
        builder = builder.protocol(protocol);
    }
    let endpoint = builder.bind((ip, 0)).await.expect("a socket");
    let serving = endpoint.clone();
    tokio::spawn(async move {
        while let Some(incoming) = serving.accept().await {
            let own = serving.public_key();
            tokio::spawn(async move {
                match incoming.accept().await {
                    Ok(connection) => responders::serve(connection, own).await,
                    // The page that speaks v2 by hand leaves in the middle of Noise.
                    Err(error) => println!("a dialler was not authenticated: {error}"),
                }
            });
        }
    });
    endpoint
}

/// Everything is closed in the end: connections, routes, and the peer's process.
async fn assert_nothing_left(endpoint: Endpoint) {
    tokio::time::timeout(Duration::from_secs(15), endpoint.close())
        .await
        .expect("connections end with their peers");
    assert!(endpoint.is_idle(), "{endpoint:?}");
}

async fn dialled_by(program: &str, arguments: &[&str]) {
    for _ in 0..runs() {
        dialled_on(LOOPBACK, program, arguments).await;
    }
}

/// Runs a program against a listener on `ip`, and returns the cases that have run.
async fn dialled_on(ip: IpAddr, program: &str, arguments: &[&str]) -> Vec<String> {
    let endpoint = serve(ip, endpoint_config()).await;
    let cases = run_against(&endpoint, program, arguments).await;
    assert_nothing_left(endpoint).await;
    cases
}

async fn run_against(endpoint: &Endpoint, program: &str, arguments: &[&str]) -> Vec<String> {
    let address = endpoint.addresses().remove(0).to_string();
    let mut all = vec![arguments[0], address.as_str()];
    all.extend(&arguments[1..]);
    Js::run(program, &all).await
}

/// A listener whose rate for this machine is used up, so that it challenges whoever comes.
async fn serve_the_proven(ip: IpAddr) -> Endpoint {
    const BURST: u32 = 8;
    let mut config = endpoint_config();
    config.limit_loopback = true;
    config.first_contacts = RateLimit::new(Duration::from_secs(3600), BURST);
    let endpoint = serve(ip, config).await;
    let dialler = Endpoint::builder().dial_only().expect("defaults work");
    for _ in 0..BURST {
        let connection = dialler.connect(&endpoint.addresses()[0]).await;
        connection.expect("within the rate").close().await;
    }
    dialler.close().await;
    endpoint
}

async fn proven_by(ip: IpAddr, program: &str, arguments: &[&str]) {
    let endpoint = serve_the_proven(ip).await;
    run_against(&endpoint, program, arguments).await;
    assert_nothing_left(endpoint).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn js_libp2p_in_node_answers_a_challenge() {
    proven_by(LOOPBACK, "node.mjs", &["dial"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn js_libp2p_in_chromium_answers_a_challenge() {
    proven_by(LOOPBACK, "browser.mjs", &["dial"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn js_libp2p_in_node_dials_us() {
    dialled_by("node.mjs", &["dial"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn js_libp2p_in_chromium_dials_us() {
    dialled_by("browser.mjs", &["dial"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn js_libp2p_in_chromium_dials_us_with_v2_and_without_munging() {
    dialled_by("browser.mjs", &["dial", "--v2", "--no-munge"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chromium_gets_the_first_noise_message_over_v2() {
    dialled_by("browser.mjs", &["v2"]).await;
    dialled_by("browser.mjs", &["v2", "--no-munge"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_dial_js_libp2p_in_node() {
    for _ in 0..runs() {
        let mut js = Js::start("node.mjs", &["listen"]);
        let address = js
            .listen_address()
            .await
            .parse()
            .expect("a webrtc-direct address");
        let endpoint = Endpoint::builder()
            .endpoint_config(endpoint_config())
            .dial_only()
            .expect("defaults work");
        // js listeners speak v1 only.
        let connection = endpoint
            .connect_with(&address, WebRtcDirectVersion::V1)
            .await
            .expect("js answers");
        assert_eq!(connection.peer_id(), address.peer_id());
        openers::run_all(&connection).await;
        connection.close().await;
        assert!(connection.is_idle());
        drop(connection);
        assert_nothing_left(endpoint).await;
        js.finish().await;
    }
}
