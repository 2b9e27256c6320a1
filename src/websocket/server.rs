//! Accepting, over streams that others have accepted or upgraded.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::{WebSocketStream, accept_hdr_async_with_config};

use super::carrier::WebSocketCarrier;
use super::client::bound;
use super::config::{Authentication, ServerConfig};
use super::error::{HandshakeError, HandshakePhase};
use super::handshake::{EXPORTER_LABEL, Progress, prove};
use super::heartbeat::Metered;
use super::upgrade::{answer, engine_config, upgrade_failed};
use super::{BoxedIo, Established, establish};
use crate::connection::Connection;
use crate::events::{ConnectionInfo, Initiator};

/// Takes a connection over a stream that was accepted, for instance from a `TcpListener` of the caller: TLS if
/// [`ServerConfig::tls`] is set, the HTTP upgrade, whatever its path is, and Noise if that is chosen, all within
/// [`WebSocketConfig::handshake_timeout`](super::WebSocketConfig::handshake_timeout). Set TCP_NODELAY on it.
///
/// A request that offers another subprotocol is answered with status 400.
///
/// # Errors
/// [`HandshakeError`].
///
/// # Cancel safety
/// If the future is dropped, so is the stream.
pub async fn accept<S>(stream: S, config: &ServerConfig) -> Result<Connection, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    accept_guarded(stream, config, None, ()).await
}

/// Takes a connection over what an HTTP server has upgraded, after
/// [`UpgradeRequest::check`](super::UpgradeRequest::check) and an answer with status 101: only Noise is left to be run, within
/// the handshake timeout. [`ServerConfig::tls`] is not used, and
/// [`ChannelBinding::TlsExporter`](super::ChannelBinding::TlsExporter) is not possible.
///
/// Errors and cancel safety as [`accept`].
pub async fn accept_upgraded<S>(
    stream: S,
    config: &ServerConfig,
) -> Result<Connection, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    validate(config)?;
    let progress = Progress::default();
    let io: BoxedIo = Box::new(stream);
    let socket = WebSocketStream::from_raw_socket(
        Metered::new(io),
        Role::Server,
        Some(engine_config(&config.websocket)),
    )
    .await;
    let after = config.websocket.handshake_timeout;
    let info = ConnectionInfo::new(Initiator::Remote, None);
    let finishing = finish(socket, None, config, None, &progress);
    establish(&config.connection, info, after, &progress, finishing, ()).await
}

pub(super) async fn accept_guarded<S, G>(
    stream: S,
    config: &ServerConfig,
    remote: Option<SocketAddr>,
    guard: G,
) -> Result<Connection, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    G: Send + 'static,
{
    validate(config)?;
    let progress = Progress::default();
    let accepting = async {
        let Some(identity) = &config.tls else {
            return upgrade(Box::new(stream), None, config, remote, &progress).await;
        };
        progress.set(HandshakePhase::Tls);
        let tls = identity
            .acceptor()
            .accept(stream)
            .await
            .map_err(HandshakeError::Tls)?;
        let exported = tls
            .get_ref()
            .1
            .export_keying_material([0; 32], EXPORTER_LABEL, Some(&[]))
            .ok();
        upgrade(Box::new(tls), exported, config, remote, &progress).await
    };
    let after = config.websocket.handshake_timeout;
    let info = ConnectionInfo::new(Initiator::Remote, remote);
    establish(&config.connection, info, after, &progress, accepting, guard).await
}

fn validate(config: &ServerConfig) -> Result<(), HandshakeError> {
    config.websocket.validate()?;
    config.connection.validate()?;
    Ok(())
}

async fn upgrade(
    io: BoxedIo,
    exported: Option<[u8; 32]>,
    config: &ServerConfig,
    remote: Option<SocketAddr>,
    progress: &Progress,
) -> Result<Established, HandshakeError> {
    progress.set(HandshakePhase::Upgrade);
    let authentication = &config.authentication;
    let mut refusal = None;
    // The type is the engine's.
    #[allow(clippy::result_large_err)]
    let callback = |request: &_, response| answer(request, response, authentication, &mut refusal);
    let engine = engine_config(&config.websocket);
    let result = accept_hdr_async_with_config(Metered::new(io), callback, Some(engine)).await;
    let socket = match (result, refusal) {
        (Ok(socket), _) => socket,
        (Err(_), Some(refusal)) => return Err(refusal.into()),
        (Err(error), None) => return Err(upgrade_failed(error, authentication)),
    };
    finish(socket, exported, config, remote, progress).await
}

async fn finish(
    socket: WebSocketStream<Metered<BoxedIo>>,
    exported: Option<[u8; 32]>,
    config: &ServerConfig,
    remote: Option<SocketAddr>,
    progress: &Progress,
) -> Result<Established, HandshakeError> {
    let mut carrier = WebSocketCarrier::new(socket, false, config.websocket.clone());
    let peer = match &config.authentication {
        Authentication::Noise { identity, binding } => {
            progress.set(HandshakePhase::Noise);
            let binding = bound(*binding, exported.as_ref())?;
            Some(prove(&mut carrier, false, identity, binding, None).await?)
        }
        Authentication::Tls | Authentication::DangerNone => None,
    };
    Ok(Established {
        carrier,
        peer,
        remote,
    })
}
