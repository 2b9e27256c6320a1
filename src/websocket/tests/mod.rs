//! Tests of the WebSocket carrier: hostile peers, and whole connections.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::WebSocketConfig;
use super::carrier::WebSocketCarrier;
use super::heartbeat::Metered;
use super::upgrade::engine_config;

mod bounds;
mod clients;
mod connections;
mod defaults;
mod ends;
mod hostile;
mod mutual_tls;
mod proxies;
mod random;
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
