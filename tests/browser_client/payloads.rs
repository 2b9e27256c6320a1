//! Payloads between a page and this library.

use crate::{BROWSERS, NOISE, PLAIN, WEBSOCKET, passes};

/// What the listener notes of the case `payloads`.
pub(crate) const NOTES: [&str; 6] = [
    "received: river.png from 0",
    "sent from: 0",
    "sent from: 1000000",
    "sent from: 0",
    "received: again from 3000000",
    "received: stream from 0",
];

#[tokio::test(flavor = "multi_thread")]
async fn payloads_go_each_way_and_are_resumed() {
    for browser in BROWSERS {
        for way in [PLAIN, NOISE, WEBSOCKET] {
            passes(browser, way, &["payloads"], &NOTES).await;
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
