//! Tests of the WebSocket carrier: the conformance suite, hostile peers, and whole connections.

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, duplex};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::WebSocketConfig;
use super::carrier::WebSocketCarrier;
use super::heartbeat::Metered;
use super::upgrade::engine_config;

mod bounds;
mod connections;
mod defaults;
mod ends;
mod hostile;
mod proxies;
mod requests;
mod rfc6455;
mod simulated;
mod sockets;
mod unproven;
mod wildcards;
mod wire;

/// A carrier over a stream, without a handshake.
async fn carrier<S>(stream: S, is_client: bool, config: WebSocketConfig) -> WebSocketCarrier<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let role = if is_client {
        Role::Client
    } else {
        Role::Server
    };
    let engine = engine_config(&config);
    let socket = WebSocketStream::from_raw_socket(Metered::new(stream), role, Some(engine)).await;
    WebSocketCarrier::new(socket, is_client, config)
}

type InMemory = WebSocketCarrier<DuplexStream>;

/// Two carriers, of which the first is the client. The pipe between them is shorter than the frames
/// of the suite, so that "written to the socket" means "read by the peer".
async fn connect(client_first: bool) -> (InMemory, InMemory) {
    let (a, b) = duplex(2048);
    let config = WebSocketConfig::default();
    let client = carrier(a, true, config.clone()).await;
    let server = carrier(b, false, config).await;
    if client_first {
        (client, server)
    } else {
        (server, client)
    }
}

crate::carrier_conformance!(paused client_opens, || connect(true));
crate::carrier_conformance!(paused server_opens, || connect(false));
