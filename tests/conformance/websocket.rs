//! The conformance suite over WebSockets, on a pipe in memory.

use anabranch::carrier::Carrier;
use anabranch::websocket::{WebSocketConfig, carrier_over};
use tokio::io::{DuplexStream, duplex};

async fn carrier(stream: DuplexStream, is_client: bool) -> impl Carrier {
    let config = WebSocketConfig::default();
    let carrier = carrier_over(stream, is_client, config).await;
    carrier.expect("the defaults are valid")
}

/// Connects two carriers, of which the first is the client if `client_first`. The pipe between
/// them is shorter than the frames of the suite, so that a frame that is written to the socket has
/// been read by the peer.
async fn connect(client_first: bool) -> (impl Carrier, impl Carrier) {
    let (a, b) = duplex(2048);
    (
        carrier(a, client_first).await,
        carrier(b, !client_first).await,
    )
}

anabranch_testkit::carrier_conformance!(paused client_opens, || connect(true));
anabranch_testkit::carrier_conformance!(paused server_opens, || connect(false));
