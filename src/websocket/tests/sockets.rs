//! What only a socket of the system does.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as WsMessage;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::carrier;
use super::connections::plain;
use crate::connection::{Connection, ConnectionError};
use crate::websocket::{WebSocketConfig, WebSocketError};

/// A socket that is closed with bytes unread resets the connection, and what was written to it before is lost.
#[tokio::test]
async fn why_a_message_was_refused_reaches_a_peer_that_is_still_sending_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
    let mut config = WebSocketConfig::default();
    config.max_message = 20_000;
    config.close_timeout = std::time::Duration::from_secs(30);
    let carrier = carrier(server.unwrap().0, false, config).await;
    let (ours, driver) = Connection::over(carrier, plain());
    let driver = tokio::spawn(driver);
    let peer = WebSocketStream::from_raw_socket(client.unwrap(), Role::Client, None).await;
    let (mut sending, mut receiving) = peer.split();
    let message = WsMessage::Binary(Bytes::from(vec![0; 2 << 20]));
    // All of it, though its first bytes were too many.
    let (sent, close) = tokio::join!(sending.send(message), async {
        loop {
            match receiving
                .next()
                .await
                .expect("a close frame")
                .expect("no reset")
            {
                WsMessage::Close(close) => return close.expect("with a code"),
                _ => continue,
            }
        }
    });
    sent.expect("it is read to its end");
    assert_eq!(u16::from(close.code), 1009);
    drop((sending, receiving));
    let cause = driver.await.unwrap();
    let expected = WebSocketError::MessageTooLong {
        size: 2 << 20,
        max: 20_000,
    };
    assert_eq!(cause, ConnectionError::WebSocket(expected));
    assert!(ours.is_idle());
}
