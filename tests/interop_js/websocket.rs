//! WebSockets that are not ours, spoken to by hand-made frames: `ws` in Node, and those of browsers.

use std::sync::Arc;
use std::time::Duration;

use anabranch::websocket::{
    Authentication, HandshakeError, ListenerConfig, Origins, ServerConfig, UpgradeError,
    WebSocketListener,
};
use anabranch::{Config, Negotiation};

use super::js::Js;

/// Much longer than a browser under load takes to answer a ping.
const IDLE: Duration = Duration::from_secs(4);

/// Echoes every substream of every connection, while `program` runs against it.
async fn dialled_by(program: &str, command: &str, options: &[&str]) {
    let mut connection = Config::default();
    connection.negotiation = Negotiation::None;
    let mut config = ServerConfig::new(Authentication::DangerNone);
    config.connection = Arc::new(connection);
    // The page of the browser is not of this server.
    config.requests.origins = Origins::Any;
    config.websocket.ping_interval = IDLE / 4;
    config.websocket.idle_timeout = IDLE;
    let any = "127.0.0.1:0".parse().expect("an address");
    let listener = WebSocketListener::bind(any, config, ListenerConfig::default())
        .await
        .expect("a socket");
    let url = listener.address().url();
    let serving = async {
        loop {
            let incoming = listener.accept().await.expect("a connection");
            tokio::spawn(async move {
                let connection = match incoming.accept().await {
                    Ok(connection) => connection,
                    // Those without the subprotocol.
                    Err(error) => return println!("refused: {error}"),
                };
                while let Ok(Some(substream)) = connection.accept().await {
                    tokio::spawn(async move {
                        let (mut read, mut write) = substream.into_split();
                        let _ = tokio::io::copy(&mut read, &mut write).await;
                        let _ = write.finish().await;
                    });
                }
                println!("ended: {}", connection.closed().await);
            });
        }
    };
    let idle_ms = IDLE.as_millis().to_string();
    let arguments = [&[command, &url, &idle_ms], options].concat();
    tokio::select! {
        () = serving => {}
        _ = Js::run(program, &arguments) => {}
    }
    let idle = async {
        while !listener.is_idle() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(15), idle).await;
    ended.expect("connections end with their peers");
}

#[tokio::test(flavor = "multi_thread")]
async fn ws_in_node_opens_the_carrier() {
    dialled_by("websocket.mjs", "dial", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_websocket_of_chromium_opens_the_carrier() {
    dialled_by("browser.mjs", "websocket", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_websocket_of_firefox_opens_the_carrier() {
    dialled_by("browser.mjs", "websocket", &["--firefox", "dcsctp"]).await;
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
}
