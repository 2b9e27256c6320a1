//! Dials that fail with a typed error, other ways to connect, and how sessions end.

use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::time::{sleep, timeout};

use crate::driver::{self, Browser};
use crate::server::{PLAIN, Server, Way};
use crate::{BROWSERS, CHROMIUM, CLOSED, FIREFOX, NOISE, WEBSOCKET, WEBSOCKET_NOISE, passes};

/// Chromium, when it refuses the SDP that version 1 needs: for every address, and for some.
const REFUSES_MUNGING: [Browser; 2] = [
    Browser::ChromiumWith(&["--force-fieldtrials=WebRTC-NoSdpMangleUfrag/Enabled/"]),
    Browser::ChromiumWith(&[
        "--force-fieldtrials=WebRTC-NoSdpMangleUfragRestrictedAddresses/127.0.0.1:*/",
    ]),
];

/// The page counts as one of the internet, and may not reach this machine.
const DENIES_LOOPBACK: Browser = Browser::ChromiumWith(&[
    "--ip-address-space-overrides={page}=public",
    "--enable-features=LocalNetworkAccessChecksWebRTC",
]);

/// Runs cases without asking what the listener notes of attempts that fail.
async fn fails(browser: Browser, way: Way, cases: &[&str]) {
    let server = Server::start(browser.ip(), way, |_| ()).await;
    driver::run(browser, &server.parameters(), cases).await;
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_addresses_and_certificates_are_typed_errors() {
    for browser in BROWSERS {
        fails(
            browser,
            PLAIN,
            &["bad-addresses", "wrong-certhash", "aborted-dial"],
        )
        .await;
        fails(browser, NOISE, &["wrong-peer", "wrong-certhash"]).await;
        fails(browser, WEBSOCKET_NOISE, &["wrong-peer"]).await;
    }
    // Firefox reports nothing earlier than its own timeout either.
    fails(CHROMIUM, PLAIN, &["nobody-listens"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn version_1_works_until_a_browser_refuses_it() {
    for browser in BROWSERS {
        passes(browser, PLAIN, &["echo-over-version1"], &[]).await;
    }
    for browser in REFUSES_MUNGING {
        fails(browser, PLAIN, &["munging-is-refused"]).await;
        passes(browser, PLAIN, &["echo"], &[]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_without_the_permission_for_this_machine_learns_that_within_a_second() {
    fails(DENIES_LOOPBACK, PLAIN, &["local-network-is-denied"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_address_that_works_wins() {
    for browser in BROWSERS {
        let cases = ["any-prefers-webrtc", "any-falls-back"];
        passes(browser, WEBSOCKET_NOISE, &cases, &[]).await;
        fails(browser, NOISE, &["all-fail"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_can_not_dial() {
    for browser in BROWSERS {
        fails(browser, PLAIN, &["dial-in-a-worker"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_listener_closes_and_drains() {
    for (browser, way) in [
        (CHROMIUM, PLAIN),
        (CHROMIUM, WEBSOCKET),
        (FIREFOX, PLAIN),
        (FIREFOX, WEBSOCKET),
    ] {
        let server = Server::start(browser.ip(), way, |_| ()).await;
        let cases = ["listener-closes", "listener-drains", "echo"];
        driver::run(browser, &server.parameters(), &cases).await;
        let notes = [
            "ended: closed locally: maintenance (code 0x11170)",
            "ended: closed locally",
            CLOSED,
        ];
        server.finish(&notes).await;
    }
}

/// A listener whose process dies: its sockets are gone, and nothing is said.
#[test]
fn a_dead_listener_is_noticed_within_15_seconds() {
    for (browser, way) in [(CHROMIUM, PLAIN), (FIREFOX, PLAIN), (CHROMIUM, WEBSOCKET)] {
        let dying = Runtime::new().expect("a runtime");
        let server = dying.block_on(Server::start(browser.ip(), way, |_| ()));
        let living = Runtime::new().expect("a runtime");
        living.block_on(async {
            let parameters = server.parameters();
            let cases = ["listener-dies"];
            let page = driver::run(browser, &parameters, &cases);
            let death = async {
                let noted = async {
                    while !server.has_noted("dying") {
                        sleep(Duration::from_millis(10)).await;
                    }
                };
                timeout(Duration::from_secs(60), noted)
                    .await
                    .expect("the page asks for it");
                dying.shutdown_background();
            };
            tokio::join!(page, death);
        });
    }
}
