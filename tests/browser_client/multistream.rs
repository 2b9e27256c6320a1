//! The entry `/multistream`, against a listener that takes no labels for protocols.

use crate::driver::{self, Browser};
use crate::server::{Server, Way};
use crate::{BROWSERS, CLOSED, NOISE, WEBSOCKET_NOISE};

const CASES: [&str; 4] = [
    "echo-by-multistream",
    "many-by-multistream",
    "opened-by-multistream",
    "refused-by-multistream",
];

async fn negotiates(browser: Browser, way: Way) {
    let server = Server::start(browser.ip(), way, |config| config.lazy_negotiation = false).await;
    driver::run(browser, &server.parameters(), &CASES).await;
    // The last case refuses what the listener opens for it.
    let refused = "/call-back: the peer does not support \"/from-listener\"";
    let notes = [refused, CLOSED, CLOSED, CLOSED, CLOSED];
    server.finish(&notes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_negotiate_by_multistream_select() {
    for browser in BROWSERS {
        for way in [NOISE, WEBSOCKET_NOISE] {
            negotiates(browser, way).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_negotiates_by_multistream_select() {
    negotiates(Browser::Node, NOISE).await;
}
