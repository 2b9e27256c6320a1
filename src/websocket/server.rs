//! Inbound connections, over accepted or upgraded streams.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::carrier::WebSocketCarrier;
use super::client::bound;
use super::config::{Authentication, ServerConfig};
use super::error::{HandshakeError, HandshakePhase, UpgradeError, WebSocketError};
use super::front::{Bound, Front};
use super::gate::Slot;
use super::handshake::{Deadline, EXPORTER_LABEL, HandshakeProgress, prove};
use super::heartbeat::Metered;
use super::proxy::{ProxyHeader, TrustedProxies, forwarded, preamble};
use super::request::RequestHead;
use super::request::answer::{Answer, linger};
use super::request::reading::HeadBuffer;
use super::tls::{TlsIdentity, leaf};
use super::upgrade::{UpgradeRequest, engine_config, unproven_engine_config};
use super::{BoxedIo, Established, Io, establish};
use crate::connection::{Attachment, Config, Connection, ConnectionError};
use crate::events::{ConnectionInfo, Initiator};

/// Accepts a connection over an accepted stream, for example from a `TcpListener` of the caller:
/// TLS if [`ServerConfig::tls`] is set, the HTTP upgrade, and Noise with [`Authentication::Noise`],
/// all within [`WebSocketConfig::handshake_timeout`](super::WebSocketConfig::handshake_timeout).
/// Set TCP_NODELAY on the stream.
///
/// A request that is not upgraded is answered with [`UpgradeError::answer`], or with status 408 if
/// it is incomplete at the timeout. The stream is closed when the client has closed, or after
/// [`WebSocketConfig::close_timeout`](super::WebSocketConfig::close_timeout). The same holds for a
/// client whose certificate is refused, within the handshake timeout.
///
/// # Errors
/// [`HandshakeError`].
///
/// # Cancel safety
/// Dropping the future closes the stream.
pub async fn accept<S>(stream: S, config: &ServerConfig) -> Result<Connection, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let connection = &config.connection;
    accept_arrived(stream, config, connection, Arrival::default(), ()).await
}

/// Accepts a connection over a stream that an HTTP server has upgraded, after
/// [`UpgradeRequest::check`] and a response with status 101. Runs only Noise, within the handshake
/// timeout. [`ServerConfig::tls`] is not used, and
/// [`ChannelBinding::TlsExporter`](super::ChannelBinding::TlsExporter) is not possible.
///
/// Errors and cancel safety are those of [`accept`].
pub async fn accept_upgraded<S>(
    stream: S,
    config: &ServerConfig,
) -> Result<Connection, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    accept_upgraded_guarded(stream, config, ()).await
}

/// The same as [`accept_upgraded`], with a `guard` that is dropped when the connection ends.
pub(crate) async fn accept_upgraded_guarded<S, G>(
    stream: S,
    config: &ServerConfig,
    guard: G,
) -> Result<Connection, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    G: Send + 'static,
{
    validate(config)?;
    let progress = HandshakeProgress::default();
    let info = ConnectionInfo::new(Initiator::Remote, None);
    let finishing = Box::pin(async {
        let deadline = Deadline::new(config.websocket.handshake_timeout, &progress);
        let secured = Secured {
            io: Box::new(stream),
            exported: None,
            peer_certificate: None,
            bound: None,
        };
        deadline
            .run(Box::pin(finish(
                secured,
                config,
                &config.connection,
                None,
                &progress,
            )))
            .await?
    });
    establish(&config.connection, info, &progress, finishing, guard).await
}

/// What is known about an accepted stream.
#[derive(Debug, Default)]
pub(super) struct Arrival<'a> {
    /// The address of the client, or of the proxy that has yet to report it.
    pub(super) remote: Option<SocketAddr>,
    /// The local address.
    pub(super) local: Option<SocketAddr>,
    /// Set if it comes from a trusted proxy.
    pub(super) proxies: Option<&'a TrustedProxies>,
    /// Its handshake slot, which is counted by client once that is known.
    pub(super) slot: Option<&'a mut Slot>,
}

impl Arrival<'_> {
    fn proxy(
        &self,
        is_meant: impl Fn(ProxyHeader) -> bool,
    ) -> Option<(&TrustedProxies, SocketAddr)> {
        let proxies = self.proxies.filter(|proxies| is_meant(proxies.header))?;
        Some((proxies, self.remote?))
    }

    /// A proxy has reported the address of the client.
    fn found(
        &mut self,
        client: SocketAddr,
        progress: &HandshakeProgress,
    ) -> Result<(), HandshakeError> {
        self.remote = Some(client);
        progress.found_client(client);
        match &mut self.slot {
            Some(slot) => slot.count(client.ip()),
            None => true,
        }
        .then_some(())
        .ok_or(HandshakeError::TooManyFromClient { client })
    }
}

/// `connection` takes the place of [`ServerConfig::connection`].
pub(super) async fn accept_arrived<S, G>(
    stream: S,
    config: &ServerConfig,
    connection: &Arc<Config>,
    arrival: Arrival<'_>,
    guard: G,
) -> Result<Connection, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    G: Send + 'static,
{
    validate(config)?;
    let progress = HandshakeProgress::default();
    let info = ConnectionInfo::new(Initiator::Remote, arrival.remote);
    let receiving = Box::pin(receive(stream, config, connection, arrival, &progress));
    establish(connection, info, &progress, receiving, guard).await
}

fn validate(config: &ServerConfig) -> Result<(), HandshakeError> {
    config.websocket.validate()?;
    config.connection.validate()?;
    Ok(())
}

/// A stream after the TLS handshake, if there is one.
struct Secured {
    io: BoxedIo,
    exported: Option<[u8; 32]>,
    peer_certificate: Option<Bytes>,
    /// The limit on input of TLS until the peer is authenticated.
    bound: Option<Bound>,
}

/// The phases are boxed one by one: otherwise the future of each peer would have the size of the
/// largest phase from the beginning, several times over.
async fn receive<S>(
    mut stream: S,
    config: &ServerConfig,
    connection: &Config,
    mut arrival: Arrival<'_>,
    progress: &HandshakeProgress,
) -> Result<Established, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let deadline = Deadline::new(config.websocket.handshake_timeout, progress);
    if let Err(error) = read_preamble(&mut stream, &mut arrival, &deadline, progress).await {
        // A client that waits for TLS can not parse HTTP.
        if config.tls.is_none() {
            answer(&error, &mut stream, true, config).await;
        }
        return Err(error);
    }
    let mut secured = match &config.tls {
        None => Secured {
            io: Box::new(stream),
            exported: None,
            peer_certificate: None,
            bound: None,
        },
        Some(identity) => {
            progress.set(HandshakePhase::Tls);
            Box::pin(accept_tls(stream, identity, config, &deadline)).await?
        }
    };
    progress.set(HandshakePhase::Upgrade);
    let io = &mut secured.io;
    let attachment = Box::pin(upgrade(io, config, &mut arrival, &deadline, progress)).await?;
    let remote = arrival.remote;
    let finishing = Box::pin(finish(secured, config, connection, remote, progress));
    let mut established = deadline.run(finishing).await??;
    established.attachment = attachment;
    Ok(established)
}

/// Reads the PROXY header, if one is required.
async fn read_preamble<S>(
    stream: &mut S,
    arrival: &mut Arrival<'_>,
    deadline: &Deadline<'_>,
    progress: &HandshakeProgress,
) -> Result<(), HandshakeError>
where
    S: AsyncRead + Unpin,
{
    let Some((_, proxy)) = arrival.proxy(|header| header == ProxyHeader::ProxyProtocol) else {
        return Ok(());
    };
    match deadline.run(preamble::read(stream)).await? {
        Ok(client) => arrival.found(client.unwrap_or(proxy), progress),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(UpgradeError::Malformed(error.to_string()).into())
        }
        Err(error) => Err(ended(HandshakePhase::Tcp, &error)),
    }
}

async fn accept_tls<S>(
    stream: S,
    identity: &TlsIdentity,
    config: &ServerConfig,
    deadline: &Deadline<'_>,
) -> Result<Secured, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut front = Front::new(stream, identity.requires_clients());
    let begins_with_http = deadline.run(front.begins_with_http()).await?;
    if begins_with_http.map_err(HandshakeError::tls_at_server)? {
        let text = "This server requires TLS.";
        let limit = config.websocket.close_timeout;
        Answer::new(400, text).send(&mut front, true, limit).await;
        let error = io::Error::new(io::ErrorKind::InvalidData, text);
        return Err(HandshakeError::tls_at_server(error));
    }
    let bound = front.bound();
    let accepting = identity.acceptor().accept(front).into_fallible();
    let tls = match deadline.run(accepting).await? {
        Ok(tls) => tls,
        Err((error, mut front)) => {
            let error = HandshakeError::tls_at_server(error);
            if error.is_about_client_certificate() {
                // With TLS 1.3 the client has sent its request already: an immediate close would
                // lose the alert.
                let lingering = linger(&mut front, config.websocket.close_timeout);
                // Whoever is not there by the deadline loses it.
                let _ = deadline.run(lingering).await;
            }
            return Err(error);
        }
    };
    bound.begin_request();
    let peer_certificate = leaf(tls.get_ref().1.peer_certificates());
    let exported = tls
        .get_ref()
        .1
        .export_keying_material([0; 32], EXPORTER_LABEL, Some(&[]))
        .ok();
    Ok(Secured {
        io: Box::new(tls),
        exported,
        peer_certificate,
        bound: Some(bound),
    })
}

/// Reads the request and sends the response. Returns what the hook attaches to the connection.
async fn upgrade(
    io: &mut BoxedIo,
    config: &ServerConfig,
    arrival: &mut Arrival<'_>,
    deadline: &Deadline<'_>,
    progress: &HandshakeProgress,
) -> Result<Option<Attachment>, HandshakeError> {
    let mut head = HeadBuffer::default();
    let checked = match deadline.run(head.read(io)).await {
        Ok(Ok(Ok(()))) => check(&head, config, arrival, progress),
        Ok(Ok(Err(error))) => Err(error.into()),
        Ok(Err(error)) => Err(ended(HandshakePhase::Upgrade, &error)),
        Err(timed_out) => Err(timed_out),
    };
    match checked {
        Ok(request) => {
            let writing = async {
                io.write_all(&request.encode()).await?;
                io.flush().await
            };
            let written = deadline.run(writing).await?;
            written.map_err(|error| ended(HandshakePhase::Upgrade, &error))?;
            Ok(request.into_attachment())
        }
        Err(error) => {
            // Without a request there is no response: browsers connect in advance, and would take
            // one for the response to a later request.
            if !head.is_empty() {
                answer(&error, io, !head.is_of_head(), config).await;
            }
            Err(error)
        }
    }
}

fn check(
    head: &HeadBuffer,
    config: &ServerConfig,
    arrival: &mut Arrival<'_>,
    progress: &HandshakeProgress,
) -> Result<UpgradeRequest, HandshakeError> {
    let mut request = RequestHead::parse_checked(head.head())?;
    let header = arrival.proxies.and_then(|proxies| match proxies.header {
        ProxyHeader::XForwardedFor => Some("x-forwarded-for"),
        ProxyHeader::Forwarded => Some("forwarded"),
        ProxyHeader::ProxyProtocol => None,
    });
    if let Some(header) = header
        && let Some((proxies, proxy)) = arrival.proxy(|_| true)
    {
        let client = forwarded::client(request.headers(header), proxies, proxy)
            .map_err(|_| UpgradeError::Malformed(header.to_owned()))?;
        arrival.found(client, progress)?;
    }
    if let Some(remote) = arrival.remote {
        request = request.with_remote_address(remote);
    }
    if let Some(local) = arrival.local {
        request = request.with_local_address(local);
    }
    if config.tls.is_some() {
        request = request.over_tls();
    }
    Ok(UpgradeRequest::check(&request, config)?)
}

/// Sends the response for an error, if it has one.
async fn answer<S: Io + ?Sized>(
    error: &HandshakeError,
    mut stream: &mut S,
    with_body: bool,
    config: &ServerConfig,
) {
    let answer = match error {
        HandshakeError::Upgrade(error) => error.answer(),
        HandshakeError::TooManyConnections { .. } | HandshakeError::TooManyFromClient { .. } => {
            busy()
        }
        HandshakeError::TimedOut { .. } => {
            Answer::new(408, "The request was not completed in time.")
        }
        HandshakeError::Ended { .. } => Answer::new(400, "The request is incomplete."),
        _ => return,
    };
    let limit = config.websocket.close_timeout;
    answer.send(&mut stream, with_body, limit).await;
}

/// The response beyond a limit.
pub(super) fn busy() -> Answer {
    Answer::new(503, "Too many connections. Try again later.")
}

fn ended(phase: HandshakePhase, error: &io::Error) -> HandshakeError {
    let cause = match error.kind() {
        io::ErrorKind::UnexpectedEof => WebSocketError::Lost,
        kind => WebSocketError::Io {
            kind,
            message: error.to_string(),
        },
    };
    HandshakeError::Ended {
        phase,
        cause: ConnectionError::WebSocket(cause),
    }
}

async fn finish(
    secured: Secured,
    config: &ServerConfig,
    connection: &Config,
    remote: Option<SocketAddr>,
    progress: &HandshakeProgress,
) -> Result<Established, HandshakeError> {
    let limits = &config.websocket;
    let io = Metered::new(secured.io);
    let (carrier, peer) = match &config.authentication {
        Authentication::Noise { identity, binding } => {
            progress.set(HandshakePhase::Noise);
            let engine = unproven_engine_config(limits);
            let io = io.frame_by_frame();
            let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(engine)).await;
            let mut carrier = WebSocketCarrier::unproven(socket, limits);
            let binding = bound(*binding, secured.exported.as_ref())?;
            let peer = prove(&mut carrier, false, identity, binding, None, connection).await?;
            let carrier = carrier.proven(limits).await;
            let carrier = carrier.map_err(|cause| HandshakeError::Ended {
                phase: HandshakePhase::Noise,
                cause,
            })?;
            (carrier, Some(peer))
        }
        Authentication::Tls | Authentication::DangerNone => {
            let engine = engine_config(limits);
            let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(engine)).await;
            let carrier = WebSocketCarrier::new(socket, false, limits.clone());
            (carrier, None)
        }
    };
    if let Some(bound) = secured.bound {
        bound.lift();
    }
    Ok(Established {
        carrier,
        peer,
        remote,
        certificate: secured.peer_certificate,
        attachment: None,
    })
}
