//! The behaviour of sockets of the operating system.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

use super::carrier;
use super::connections::plain;
use crate::connection::{Connection, ConnectionError};
use crate::websocket::{WebSocketConfig, WebSocketError};

/// A socket that is closed with unread bytes resets the connection, and what was written to it
/// before is lost.
#[tokio::test]
async fn why_a_message_was_refused_reaches_a_peer_that_is_still_sending_it() {
    // Small buffers: the system must not buffer the whole message of the peer.
    let socket = || {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_send_buffer_size(16 * 1024).unwrap();
        socket.set_recv_buffer_size(16 * 1024).unwrap();
        socket
    };
    let listening = socket();
    listening.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = listening.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let (client, server) = tokio::join!(socket().connect(address), listener.accept());
    let mut config = WebSocketConfig::default();
    config.max_message = 20_000;
    config.close_timeout = std::time::Duration::from_secs(30);
    let carrier = carrier(server.unwrap().0, false, config).await;
    let (ours, driver) = Connection::over(carrier, plain());
    let driver = tokio::spawn(driver);
    // A scripted peer: tungstenite stops sending after the close frame, and would not show whether
    // the rest was read.
    let (mut receiving, mut sending) = client.unwrap().into_split();
    let mut message = vec![0x82, 0x80 | 127];
    message.extend_from_slice(&(2u64 << 20).to_be_bytes());
    message.resize(message.len() + 4 + (2 << 20), 0);
    let mut received = Vec::new();
    let (sent, read) = tokio::join!(
        async {
            // All of it, although its first bytes exceeded the limit.
            sending.write_all(&message).await?;
            sending.shutdown().await
        },
        receiving.read_to_end(&mut received),
    );
    sent.expect("it is read to its end");
    read.expect("no reset");
    // Close, its length, its code.
    assert_eq!(received[0], 0x88);
    assert_eq!(received[2..4], 1009u16.to_be_bytes());
    let cause = driver.await.unwrap();
    let expected = WebSocketError::MessageTooLong {
        size: 2 << 20,
        max: 20_000,
    };
    assert_eq!(cause, ConnectionError::WebSocket(expected));
    assert!(ours.is_idle());
}
