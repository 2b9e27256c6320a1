//! Connections over one WebSocket, for networks that block UDP: the same [`Connection`] and
//! [`Substream`](crate::Substream)s, with the same flow control, closes and errors, as over WebRTC.
//!
//! [`connect`] dials `ws://` and `wss://`. [`WebSocketListener`] listens on a TCP socket of its
//! own; [`accept`] takes a stream that was accepted elsewhere, and [`accept_upgraded`] one that an
//! HTTP server has upgraded.
//!
//! ```no_run
//! use anabranch::Identity;
//! use anabranch::websocket::{self, Authentication, ClientConfig};
//!
//! # async fn dial() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let config = ClientConfig::new(Authentication::noise(Identity::generate()));
//! let address = "/dns4/example.org/tcp/443/wss".parse()?;
//! let connection = websocket::connect(&address, &config).await?;
//! let substream = connection.open("/echo/1.0.0").await?;
//! # Ok(())
//! # }
//! ```
//!
//! # On the wire
//! The messages are binary and form one stream of frames; their boundaries have no meaning. Each
//! frame is the same as on other carriers with the field `stream` added, and on the first frame of
//! a substream also `label`. Clients number their substreams 2, 4, 6, servers 1, 3, 5. Frames that
//! are queued together are sent as one message; a frame never waits for more.
//!
//! Stream 0 carries Noise, and after that frames about the connection: how many substreams the
//! sender accepts ([`Message::max_substreams`](crate::message::Message::max_substreams)), and
//! finally FIN, with the code of [`Connection::close_with`](crate::Connection::close_with) if there
//! is one, after which the sender opens and accepts no more substreams. The sender then ends the
//! existing ones, and closes the WebSocket with code 1000, or 4000 and up. Flag 4 closes a
//! substream that not both sides have finished.
//!
//! # Confidentiality
//! Over `ws://` everybody on the path can read and change the data: Noise authenticates the peers,
//! and protects nothing after that. Over `wss://` TLS protects the data up to where it terminates,
//! as far as the server's certificate is trusted. See [`Authentication`] and [`ChannelBinding`].

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

mod boundaries;
mod carrier;
mod channels;
mod client;
mod close;
mod config;

mod error;
mod front;
mod gate;
mod handshake;
mod heartbeat;
mod incoming;
mod listener;
mod outgoing;
pub(crate) mod proxy;
mod refused;
pub(crate) mod request;
mod server;
#[cfg(test)]
// Tests change configurations as users of the crate have to, and callbacks have the types of
// tungstenite.
#[allow(
    clippy::field_reassign_with_default,
    clippy::result_large_err,
    clippy::type_complexity
)]
mod tests;
mod tls;
mod upgrade;

use carrier::WebSocketCarrier;
#[cfg(feature = "webrtc")]
pub(crate) use client::connect_guarded;
pub use client::{connect, connect_over};
pub use config::{
    Authentication, ChannelBinding, ClientConfig, ListenerConfig, ServerConfig, WebSocketConfig,
};
pub use error::{HandshakeError, HandshakePhase, ListenError, UpgradeError, WebSocketError};
use handshake::HandshakeProgress;
use heartbeat::Metered;
pub use listener::{WebSocketIncoming, WebSocketListener};
pub use proxy::{InvalidNetwork, Network, ProxyHeader, TrustedProxies};
pub use request::RequestHead;
pub use request::answer::Answer;
pub use request::policy::{Origins, RequestPolicy};
#[cfg(feature = "webrtc")]
pub(crate) use server::accept_upgraded_guarded;
pub use server::{accept, accept_upgraded};
pub use tls::{TlsClientTrust, TlsIdentity, TlsIdentityError, TlsTrust};
pub use upgrade::UpgradeRequest;

use crate::carrier::Carrier;
use crate::connection::{self, Attachment, Config, ConfigError, Connection, Findings};
use crate::events::{Attempt, ConnectionInfo};
use crate::noise::Peer;

/// The WebSocket subprotocol of connections without Noise.
pub const SUBPROTOCOL: &str = "anabranch.v1";

/// The WebSocket subprotocol of connections with Noise.
pub const SUBPROTOCOL_NOISE: &str = "anabranch.noise.v1";

/// The stream under a WebSocket.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// One type for all streams, so that the driver is compiled once.
type BoxedIo = Box<dyn Io>;

/// A carrier over an upgraded WebSocket, without authentication, for
/// [`Connection::over`](crate::Connection::over) in tests and measurements.
///
/// # Errors
/// [`ConfigError`] if a setting is out of range.
///
/// # Cancel safety
/// Dropping the future drops the stream.
pub async fn carrier_over<S>(
    stream: S,
    is_client: bool,
    config: WebSocketConfig,
) -> Result<impl Carrier + use<S>, ConfigError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    config.validate()?;
    let role = if is_client {
        Role::Client
    } else {
        Role::Server
    };
    let engine = upgrade::engine_config(&config);
    let socket = WebSocketStream::from_raw_socket(Metered::new(stream), role, Some(engine)).await;
    Ok(WebSocketCarrier::new(socket, is_client, config))
}

/// The result of a handshake.
struct Established {
    carrier: WebSocketCarrier<BoxedIo>,
    peer: Option<Peer>,
    remote: Option<SocketAddr>,
    /// What the peer has proven in TLS.
    certificate: Option<Bytes>,
    /// What the hook of the upgrade request returned.
    attachment: Option<Attachment>,
}

/// Runs a handshake, creates the connection and spawns its driver, which holds `guard` until it
/// ends.
async fn establish<G: Send + 'static>(
    config: &Arc<Config>,
    info: ConnectionInfo,
    progress: &HandshakeProgress,
    handshake: impl Future<Output = Result<Established, HandshakeError>>,
    guard: G,
) -> Result<Connection, HandshakeError> {
    let mut attempt = Attempt::begin(config.events.as_ref(), info);
    let result = handshake.await;
    if let Some(client) = progress.client() {
        attempt.set_remote(client);
    }
    let established = match result {
        Ok(established) => established,
        Err(error) => {
            attempt.failed(&error);
            return Err(error);
        }
    };
    let mut info = attempt.succeeded();
    info.peer = established.peer.map(|peer| peer.id);
    info.remote = established.remote;
    let config = Arc::clone(config);
    let findings = Findings {
        takes_labels: established.peer.is_some_and(|peer| peer.takes_labels),
        certificate: established.certificate,
        attachment: established.attachment,
    };
    let (connection, driver) =
        Connection::authenticated(established.carrier, config, info, findings);
    connection::spawn("anabranch connection", driver, guard);
    Ok(connection)
}
