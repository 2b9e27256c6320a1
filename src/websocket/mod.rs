//! Connections over one WebSocket, for where UDP is blocked: the same [`Connection`] and
//! [`Substream`](crate::Substream)s, with the same windows, closes and errors, as over WebRTC.
//!
//! [`connect`] dials `ws://` and `wss://`. [`WebSocketListener`] listens by itself; [`accept`] takes a stream that was
//! accepted elsewhere, and [`accept_upgraded`] what an HTTP server has upgraded.
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
//! The messages are binary, and make one stream of frames: where they begin and end means nothing.
//! Each frame is that of any other carrier with the field `stream`, and on the first frame of a
//! substream also `label`. Clients number their substreams 2, 4, 6, servers 1, 3, 5. What is queued
//! together goes out as one message; nothing waits for more. On stream 0 runs Noise, and after that
//! frames about the connection: how many substreams its sender accepts
//! ([`Message::max_substreams`](crate::message::Message::max_substreams)), and at last FIN, with
//! the code of [`Connection::close_with`](crate::Connection::close_with) if there is one, which
//! says that its sender opens and takes no more substreams. Then it ends those there are, and
//! closes the WebSocket with code 1000, or 4000 and up. A flag of value 4 ends a substream on which
//! not both ends have said everything.
//!
//! # Who reads along
//! Over `ws://` everybody on the path reads and can change what is carried; Noise proves who the peers are
//! and protects nothing after that. Over `wss://` TLS protects it, as far as the server's certificate is trusted, up
//! to where TLS ends. See [`Authentication`] and [`ChannelBinding`].

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

mod carrier;
mod channels;
mod client;
mod close;
mod config;
mod cutter;
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
// Configurations are changed as a user of the crate has to, and callbacks have the engine's types.
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
use handshake::Progress;
use heartbeat::Metered;
pub use listener::{Incoming, WebSocketListener};
pub use proxy::{InvalidNetwork, Network, ProxyHeader, TrustedProxies};
pub use request::RequestHead;
pub use request::answer::Answer;
pub use request::policy::{Origins, RequestPolicy};
pub use server::{accept, accept_upgraded};
pub use tls::{TlsIdentity, TlsIdentityError, TlsTrust};
pub use upgrade::UpgradeRequest;

use crate::carrier::Carrier;
use crate::connection::{Config, ConfigError, Connection, Guarded};
use crate::events::{Attempt, ConnectionInfo};
use crate::identity::PeerId;

/// The subprotocol of connections without Noise.
pub const SUBPROTOCOL: &str = "anabranch.v1";

/// The subprotocol of connections with Noise.
pub const SUBPROTOCOL_NOISE: &str = "anabranch.noise.v1";

/// What a WebSocket runs over.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// One type for all of them, so that there is one driver.
type BoxedIo = Box<dyn Io>;

/// A carrier over a WebSocket whose upgrade is done, without Noise: for
/// [`Connection::over`](crate::Connection::over) in tests and measurements. Nobody has proven anything.
///
/// # Errors
/// [`ConfigError`], if the settings can not work together.
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

/// What a handshake comes to.
struct Established {
    carrier: WebSocketCarrier<BoxedIo>,
    peer: Option<PeerId>,
    remote: Option<SocketAddr>,
}

/// Runs a handshake, makes the connection and spawns its driver, which keeps `guard` until the end.
async fn establish<G: Send + 'static>(
    config: &Arc<Config>,
    info: ConnectionInfo,
    progress: &Progress,
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
    info.peer = established.peer;
    info.remote = established.remote;
    let config = Arc::clone(config);
    let (connection, driver) = Connection::authenticated(established.carrier, config, info);
    tokio::spawn(Guarded::new(driver, guard));
    Ok(connection)
}
