//! Outbound connections.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::sleep;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_tungstenite::client_async_with_config;

use super::carrier::WebSocketCarrier;
use super::config::{Authentication, ChannelBinding, ClientConfig};
use super::error::{HandshakeError, HandshakePhase};
use super::handshake::{Deadline, EXPORTER_LABEL, HandshakeProgress, prove};
use super::heartbeat::Metered;
use super::tls::{ClientCertificate, Presented, connector, leaf};
use super::upgrade::{check_response, engine_config, request, upgrade_failed};
use super::{BoxedIo, Established, establish};
use crate::address::{Host, WebSocketAddress};
use crate::connection::Connection;
use crate::events::{ConnectionInfo, Initiator};

/// Delay between the attempts at two addresses of a name (RFC 8305 section 5).
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);

/// Maximum addresses of a name that are tried.
const MAX_CANDIDATES: usize = 16;

/// Connects to a listener: TCP, TLS for `wss` addresses, the HTTP upgrade, and Noise with
/// [`Authentication::Noise`], all within
/// [`WebSocketConfig::handshake_timeout`](super::WebSocketConfig::handshake_timeout).
///
/// # Errors
/// [`HandshakeError`]; [`HandshakeError::status`] is the status of an HTTP server that did not
/// upgrade.
///
/// # Cancel safety
/// Dropping the future aborts the handshake and closes the socket.
pub async fn connect(
    address: &WebSocketAddress,
    config: &ClientConfig,
) -> Result<Connection, HandshakeError> {
    connect_guarded(address, config, ()).await
}

/// The same as [`connect`], with a `guard` that is dropped when the connection ends.
pub(crate) async fn connect_guarded<G: Send + 'static>(
    address: &WebSocketAddress,
    config: &ClientConfig,
    guard: G,
) -> Result<Connection, HandshakeError> {
    check(address, config)?;
    let progress = HandshakeProgress::default();
    let deadline = Deadline::new(config.websocket.handshake_timeout, &progress);
    let opening = async {
        let tcp = connect_tcp(address)
            .await
            .map_err(|source| HandshakeError::Connect {
                target: format!("{}:{}", address.host().in_url(), address.port()),
                source: source.into(),
            })?;
        let remote = tcp.peer_addr().ok();
        if !address.is_tls() {
            let io = Secured::plain(Box::new(tcp));
            return open(io, address, config, remote, &progress).await;
        }
        progress.set(HandshakePhase::Tls);
        let own = ClientCertificate::new(config.certificate.as_ref());
        let connector = connector(&config.trust, Arc::clone(&own)).map_err(HandshakeError::tls)?;
        let name = server_name(address).map_err(HandshakeError::tls)?;
        let tls = connector
            .connect(name, tcp)
            .await
            .map_err(|error| HandshakeError::tls_at_client(error, own.presented()))?;
        let exported = tls
            .get_ref()
            .1
            .export_keying_material([0; 32], EXPORTER_LABEL, Some(&[]))
            .ok();
        let secured = Secured {
            exported,
            certificate: leaf(tls.get_ref().1.peer_certificates()),
            presented: own.presented(),
            io: Box::new(tls),
        };
        open(secured, address, config, remote, &progress).await
    };
    let info = ConnectionInfo::new(Initiator::Local, None);
    let opening = async { deadline.run(opening).await? };
    establish(&config.connection, info, &progress, opening, guard).await
}

/// Connects over an existing stream: through a proxy, over a socket of another kind, or in memory.
/// The caller provides TLS, if any; `address` supplies the host and path of the request and the
/// expected peer.
///
/// Errors and cancel safety are those of [`connect`].
pub async fn connect_over<S>(
    stream: S,
    address: &WebSocketAddress,
    config: &ClientConfig,
) -> Result<Connection, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    check(address, config)?;
    let progress = HandshakeProgress::default();
    let deadline = Deadline::new(config.websocket.handshake_timeout, &progress);
    let io = Secured::plain(Box::new(stream));
    let opening = open(io, address, config, None, &progress);
    let info = ConnectionInfo::new(Initiator::Local, None);
    let opening = async { deadline.run(opening).await? };
    establish(&config.connection, info, &progress, opening, ()).await
}

fn check(address: &WebSocketAddress, config: &ClientConfig) -> Result<(), HandshakeError> {
    config.websocket.validate()?;
    config.connection.validate()?;
    if matches!(config.authentication, Authentication::Tls) && !address.is_tls() {
        return Err(HandshakeError::PlaintextServer);
    }
    match (address.peer_id(), &config.authentication) {
        (Some(peer), Authentication::Tls | Authentication::DangerNone) => {
            Err(HandshakeError::PeerNeedsNoise(peer))
        }
        _ => Ok(()),
    }
}

async fn connect_tcp(address: &WebSocketAddress) -> io::Result<TcpStream> {
    let port = address.port();
    let candidates: Vec<SocketAddr> = match address.host() {
        Host::Ip(ip) => vec![SocketAddr::new(*ip, port)],
        Host::Dns(name) => lookup_host((name.as_str(), port)).await?.collect(),
        Host::Dns4(name) => {
            let all = lookup_host((name.as_str(), port)).await?;
            all.filter(SocketAddr::is_ipv4).collect()
        }
        Host::Dns6(name) => {
            let all = lookup_host((name.as_str(), port)).await?;
            all.filter(SocketAddr::is_ipv6).collect()
        }
    };
    let stream = first_to_connect(alternate(candidates)).await?;
    // The carrier batches frames itself, so Nagle's algorithm only adds delay.
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Interleaves the two families, beginning with that of the first address (RFC 8305 section 4),
/// since one of them may be broken.
fn alternate(candidates: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v4 = candidates.first().is_some_and(SocketAddr::is_ipv4);
    let (first, second): (Vec<_>, Vec<_>) = candidates
        .into_iter()
        .partition(|candidate| candidate.is_ipv4() == first_is_v4);
    let mut second = second.into_iter();
    let mut all = Vec::new();
    for candidate in first {
        all.push(candidate);
        all.extend(second.next());
    }
    all.extend(second);
    all.truncate(MAX_CANDIDATES);
    all
}

/// Tries the addresses in order, the next one when one fails or takes long. When one connects the
/// others are dropped.
async fn first_to_connect(candidates: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut waiting = candidates.into_iter();
    let mut running = FuturesUnordered::new();
    loop {
        let has_more = match waiting.next() {
            Some(candidate) => {
                running.push(TcpStream::connect(candidate));
                waiting.len() > 0
            }
            None => false,
        };
        let alone = async {
            match has_more {
                true => sleep(NEXT_ADDRESS_AFTER).await,
                false => std::future::pending().await,
            }
        };
        let mut alone = pin!(alone);
        loop {
            match select(running.next(), alone.as_mut()).await {
                Either::Left((Some(Ok(stream)), _)) => return Ok(stream),
                Either::Left((Some(Err(error)), _)) => {
                    last = error;
                    if has_more {
                        break;
                    }
                }
                Either::Left((None, _)) => return Err(last),
                Either::Right(_) => break,
            }
        }
    }
}

fn server_name(address: &WebSocketAddress) -> io::Result<ServerName<'static>> {
    match address.host() {
        Host::Ip(ip) => Ok(ServerName::IpAddress((*ip).into())),
        Host::Dns(name) | Host::Dns4(name) | Host::Dns6(name) => ServerName::try_from(name.clone())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error)),
    }
}

/// A stream after the TLS handshake, if there is one.
struct Secured {
    io: BoxedIo,
    exported: Option<[u8; 32]>,
    /// Of the server.
    certificate: Option<Bytes>,
    /// By this side.
    presented: Presented,
}

impl Secured {
    fn plain(io: BoxedIo) -> Self {
        Self {
            io,
            exported: None,
            certificate: None,
            presented: Presented::NotRequested,
        }
    }
}

async fn open(
    secured: Secured,
    address: &WebSocketAddress,
    config: &ClientConfig,
    remote: Option<SocketAddr>,
    progress: &HandshakeProgress,
) -> Result<Established, HandshakeError> {
    progress.set(HandshakePhase::Upgrade);
    let authentication = &config.authentication;
    let request = request(&address.url(), authentication, &config.headers)?;
    let engine = engine_config(&config.websocket);
    let (socket, response) =
        client_async_with_config(request, Metered::new(secured.io), Some(engine))
            .await
            .map_err(|error| upgrade_failed(error, authentication, secured.presented))?;
    check_response(&response, authentication)?;
    let mut carrier = WebSocketCarrier::new(socket, true, config.websocket.clone());
    let peer = match authentication {
        Authentication::Noise { identity, binding } => {
            progress.set(HandshakePhase::Noise);
            let binding = bound(*binding, secured.exported.as_ref())?;
            let expected = address.peer_id();
            let connection = &config.connection;
            let peer = prove(&mut carrier, true, identity, binding, expected, connection).await?;
            Some(peer)
        }
        Authentication::Tls | Authentication::DangerNone => None,
    };
    Ok(Established {
        carrier,
        peer,
        remote,
        certificate: secured.certificate,
        attachment: None,
    })
}

/// The channel binding for the prologue of Noise.
pub(super) fn bound(
    binding: ChannelBinding,
    exported: Option<&[u8; 32]>,
) -> Result<&[u8], HandshakeError> {
    match (binding, exported) {
        (ChannelBinding::None, _) => Ok(&[]),
        (ChannelBinding::TlsExporter, Some(exported)) => Ok(exported),
        (ChannelBinding::TlsExporter, None) => Err(HandshakeError::NoTlsToBind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_families_of_a_name_take_turns() {
        let addr = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let [a, b, c, x, y] =
            ["[::1]:1", "[::2]:1", "[::3]:1", "10.0.0.1:1", "10.0.0.2:1"].map(addr);
        assert_eq!(alternate(vec![a, b, c, x, y]), [a, x, b, y, c]);
        assert_eq!(alternate(vec![x, a, b]), [x, a, b]);
        assert_eq!(alternate(vec![]), []);
        assert_eq!(alternate(vec![a; 40]).len(), MAX_CANDIDATES);
    }

    #[tokio::test]
    async fn an_address_that_refuses_causes_no_delay() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a socket");
        let good = listener.local_addr().expect("an address");
        let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
        let bad = closed.local_addr().expect("an address");
        drop(closed);
        let stream = first_to_connect(vec![bad, bad, good])
            .await
            .expect("the third");
        assert_eq!(stream.peer_addr().expect("connected"), good);
        let error = first_to_connect(vec![bad, bad])
            .await
            .expect_err("nobody listens");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let error = first_to_connect(vec![]).await.expect_err("nowhere to go");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
