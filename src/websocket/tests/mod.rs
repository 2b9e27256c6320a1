//! The WebSocket carrier: the suite of every carrier, hostile peers, and whole connections.

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, duplex};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::WebSocketConfig;
use super::carrier::WebSocketCarrier;
use super::heartbeat::Metered;
use super::upgrade::engine_config;

mod connections;
mod hostile;
mod proxies;
mod requests;
mod simulated;
mod sockets;
mod unproven;
mod wildcards;

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

/// Two carriers; the first one is the client. The pipe between them is shorter than the frames of the suite, so
/// that "written to the socket" is "read by the peer".
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

/// Row O-R1: what the documentation says is what the code does.
#[test]
fn r1_the_documented_defaults_are_those_of_the_code() {
    use std::time::Duration;

    use super::ListenerConfig;

    const DOCUMENT: &str = include_str!("../../../docs/reliability.md");
    let time = |duration: Duration| format!("{} s", duration.as_secs());
    let bytes = |bytes: usize| match bytes / 1024 {
        kib if kib % 1024 == 0 => format!("{} MiB", kib / 1024),
        kib => format!("{kib} KiB"),
    };
    let number = |n: usize| match n / 1000 {
        0 => n.to_string(),
        thousands => format!("{thousands} {:03}", n % 1000),
    };
    let config = WebSocketConfig::default();
    let limits = ListenerConfig::default();
    for (field, value) in [
        ("W::handshake_timeout", time(config.handshake_timeout)),
        ("W::ping_interval", time(config.ping_interval)),
        ("W::idle_timeout", time(config.idle_timeout)),
        ("W::close_timeout", time(config.close_timeout)),
        ("W::max_message", bytes(config.max_message)),
        ("W::batch", bytes(config.batch)),
        ("W::control_backlog", bytes(config.control_backlog)),
        ("L::max_handshakes", number(limits.max_handshakes)),
        (
            "L::max_handshakes_per_prefix",
            number(limits.max_handshakes_per_prefix),
        ),
        (
            "L::connections",
            number(limits.connections.burst() as usize),
        ),
        ("L::max_connections", number(limits.max_connections)),
    ] {
        let cell = format!("| `{field}`");
        let line = DOCUMENT
            .lines()
            .find(|line| line.contains(&format!("{cell} |")) || line.contains(&format!("{cell},")));
        let line = line.unwrap_or_else(|| panic!("{field} is not documented"));
        assert!(
            line.contains(&value),
            "{field} is {value}, documented: {line}"
        );
    }
}
