//! The entry `/node`: the same cases in a process of Node, over WebRTC and over its own WebSocket.

use crate::connecting::listener_closes_and_drains;
use crate::driver::{self, Browser};
use crate::flow::STOPPED;
use crate::payloads;
use crate::server::Server;
use crate::{NOISE, NOTES, PLAIN, SUBSTREAMS, WEBSOCKET, WEBSOCKET_NOISE, passes};

const NODE: Browser = Browser::Node;

#[tokio::test(flavor = "multi_thread")]
async fn substreams_of_node() {
    for way in [PLAIN, NOISE, WEBSOCKET, WEBSOCKET_NOISE] {
        passes(NODE, way, &SUBSTREAMS, &NOTES).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_reader_in_node_holds_up_its_writer_and_takes_no_memory() {
    for way in [PLAIN, WEBSOCKET] {
        passes(NODE, way, &["stalled-in-memory"], &[STOPPED]).await;
        passes(NODE, way, &["stalled-in-the-page"], &[STOPPED]).await;
        passes(NODE, way, &["stalled-in-the-listener"], &[]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_refuses_another_certificate_and_another_peer() {
    for (way, cases) in [
        (
            PLAIN,
            &["wrong-certhash", "aborted-dial", "nobody-listens"][..],
        ),
        (NOISE, &["wrong-peer", "wrong-certhash"]),
        (WEBSOCKET_NOISE, &["wrong-peer"]),
    ] {
        let server = Server::start(NODE.ip(), way, |_| ()).await;
        driver::run(NODE, &server.parameters(), cases).await;
        server.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_listener_closes_and_drains_a_session_of_node() {
    for way in [PLAIN, WEBSOCKET] {
        listener_closes_and_drains(NODE, way).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_of_node() {
    passes(NODE, PLAIN, &["payloads"], &payloads::NOTES).await;
}
