//! Payloads between a page and this library.

use crate::{BROWSERS, NOISE, PLAIN, WEBSOCKET, passes};

#[tokio::test(flavor = "multi_thread")]
async fn payloads_go_each_way_and_are_resumed() {
    let notes = [
        "received: river.png from 0",
        "sent from: 0",
        "sent from: 1000000",
        "sent from: 0",
        "received: again from 3000000",
        "received: stream from 0",
    ];
    for browser in BROWSERS {
        for way in [PLAIN, NOISE, WEBSOCKET] {
            passes(browser, way, &["payloads"], &notes).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_fail_with_a_typed_error_on_both_sides() {
    let notes = [
        "received: stored from 0",
        "/put: ",
        "/get: ",
        "/get: ",
        "/put: ",
        "/put: ",
        "/get: ",
    ];
    for browser in BROWSERS {
        passes(browser, PLAIN, &["payloads-that-fail"], &notes).await;
    }
}
