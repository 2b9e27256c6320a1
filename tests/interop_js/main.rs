//! js-libp2p as a peer, in Node and in headless Chromium: it dials us, and we dial it.
//!
//! The protocols are those of `interop/js/README.md`. `interop/js/setup.sh` installs what this
//! needs; `scripts/test.sh` calls it. `ANABRANCH_INTEROP_RUNS` repeats each test (default 1).

use std::time::Duration;

use anabranch::{Endpoint, WebRtcDirectVersion};

mod identify;
mod js;
mod openers;
mod responders;

use js::Js;

/// How often each test is repeated.
fn runs() -> usize {
    std::env::var("ANABRANCH_INTEROP_RUNS").map_or(1, |runs| runs.parse().expect("a number"))
}

/// Listens on loopback and serves every protocol until it is dropped.
async fn serve() -> Endpoint {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
    let mut builder = Endpoint::builder();
    for protocol in responders::PROTOCOLS {
        builder = builder.protocol(protocol);
    }
    let endpoint = builder.bind("127.0.0.1:0").await.expect("a socket");
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
        let endpoint = serve().await;
        let address = endpoint.addresses().remove(0).to_string();
        let mut all = vec![arguments[0], address.as_str()];
        all.extend(&arguments[1..]);
        Js::run(program, &all).await;
        assert_nothing_left(endpoint).await;
    }
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
        let endpoint = Endpoint::builder().dial_only().expect("defaults work");
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
