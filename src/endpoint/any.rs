//! Dials several addresses of one peer: WebRTC first, a WebSocket where UDP is blocked.
//!
//! ```text
//! 0 ms       webrtc-direct ──────────────────────────► authenticated: the others are cancelled
//! 100 ms     the next webrtc-direct address
//! 300 ms     ws, wss; at once if all earlier attempts have failed
//! 400 ms     the next of them
//! ```

use std::fmt;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, Either, select};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep_until};

use super::Inner;
use super::dial::{DialOptions, dial};
use super::error::ConnectError;
use crate::address::PeerAddress;
use crate::connection::Connection;
use crate::identity::PeerId;

/// Maximum number of addresses in one call. Limits the dials that an address book can cause to
/// which others can write.
pub const MAX_ADDRESSES: usize = 16;

/// The connection that [`Endpoint::connect_any`](super::Endpoint::connect_any) established, and
/// what became of the other addresses.
#[derive(Debug)]
#[non_exhaustive]
pub struct Reached {
    /// The connection.
    pub connection: Connection,
    /// The address of the peer that it uses.
    pub address: PeerAddress,
    /// The other addresses, and why they were not used.
    pub others: Vec<Lost>,
}

/// An address that was not used for the connection.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Lost {
    /// The address.
    pub address: PeerAddress,
    /// Why it was not used.
    pub reason: LostReason,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.address, self.reason)
    }
}

/// Why an address was not used for the connection.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LostReason {
    /// The attempt failed.
    #[error("{0}")]
    Failed(#[source] AttemptError),
    /// Another attempt succeeded first, and this one was cancelled.
    #[error("slower than the address that was used")]
    Slower,
    /// Another attempt succeeded before this one began.
    #[error("not tried")]
    NotTried,
}

/// Why the attempt at one address failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AttemptError {
    /// Over WebRTC.
    #[error(transparent)]
    WebRtc(#[from] ConnectError),
    /// Over a WebSocket.
    #[cfg(feature = "websocket")]
    #[error(transparent)]
    WebSocket(#[from] crate::websocket::HandshakeError),
    /// The address is `ws`, and
    /// [`EndpointBuilder::plaintext_websockets`](super::EndpointBuilder::plaintext_websockets) was
    /// not set.
    #[error("WebSockets without TLS are not allowed")]
    Plaintext,
    /// The address is a WebSocket address, and the crate was built without the feature `websocket`.
    #[error("built without the feature websocket")]
    NoWebSocket,
}

/// Why no address led to a connection.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectAnyError {
    /// No addresses were given.
    #[error("no addresses")]
    NoAddresses,
    /// More addresses than [`MAX_ADDRESSES`].
    #[error("{given} addresses, at most {MAX_ADDRESSES} are tried")]
    TooManyAddresses {
        /// How many there were.
        given: usize,
    },
    /// An address without `/p2p`: whoever answers there would be accepted. Use
    /// [`Endpoint::connect_peer`](super::Endpoint::connect_peer) to name the peer.
    #[error("{address} names no peer")]
    MissingPeer {
        /// The address.
        address: Box<PeerAddress>,
    },
    /// An address names another peer than the expected one, or than the addresses before it.
    #[error("{address} names another peer than {expected}")]
    AnotherPeer {
        /// The address.
        address: Box<PeerAddress>,
        /// The expected peer.
        expected: PeerId,
    },
    /// The endpoint has [`Security::CertificateHash`](super::Security::CertificateHash), with which
    /// no peer proves an identity.
    #[error("without Noise no peer can prove to be {expected}")]
    NoIdentities {
        /// The expected peer.
        expected: PeerId,
    },
    /// The endpoint is closed.
    #[error("the endpoint is closed")]
    EndpointClosed,
    /// Every address failed.
    #[error("all addresses failed: {}", list(.0))]
    AllFailed(Vec<Lost>),
}

impl From<ConnectAnyError> for io::Error {
    fn from(error: ConnectAnyError) -> Self {
        let kind = match &error {
            ConnectAnyError::EndpointClosed => io::ErrorKind::NotConnected,
            ConnectAnyError::AllFailed(_) => io::ErrorKind::HostUnreachable,
            _ => io::ErrorKind::InvalidInput,
        };
        Self::new(kind, error)
    }
}

fn list(lost: &[Lost]) -> String {
    let lines: Vec<String> = lost.iter().map(ToString::to_string).collect();
    lines.join("; ")
}

/// One address, and when to dial it.
struct Candidate {
    address: PeerAddress,
    begins_at: Instant,
}

/// Schedules WebRTC addresses first, then WebSockets, each kind in the given order.
fn schedule(addresses: &[PeerAddress], head_start: Duration, delay: Duration) -> Vec<Candidate> {
    let now = Instant::now();
    let (webrtc, websockets): (Vec<_>, Vec<_>) = addresses
        .iter()
        .cloned()
        .partition(|address| matches!(address, PeerAddress::WebRtcDirect(_)));
    let head_start = if webrtc.is_empty() {
        Duration::ZERO
    } else {
        head_start
    };
    let spread = |addresses: Vec<PeerAddress>, first: Duration| {
        addresses
            .into_iter()
            .zip(0..)
            .map(move |(address, index)| Candidate {
                address,
                begins_at: now + first + delay * index,
            })
    };
    let mut all: Vec<_> = spread(webrtc, Duration::ZERO)
        .chain(spread(websockets, head_start))
        .collect();
    // A WebSocket does not wait for a long list of WebRTC addresses. The sort is stable.
    all.sort_by_key(|candidate| candidate.begins_at);
    all
}

/// The addresses of `peer`, with its id added where they have none.
pub(super) fn addresses_of(
    endpoint: &Inner,
    peer: PeerId,
    addresses: &[PeerAddress],
) -> Result<Vec<PeerAddress>, ConnectAnyError> {
    if endpoint.noise_identity().is_none() {
        return Err(ConnectAnyError::NoIdentities { expected: peer });
    }
    check_number(addresses)?;
    check_peer(addresses, Some(peer))?;
    let with_id = |address: &PeerAddress| address.clone().with_peer_id(peer);
    Ok(addresses.iter().map(with_id).collect())
}

fn check_number(addresses: &[PeerAddress]) -> Result<(), ConnectAnyError> {
    match addresses.len() {
        0 => Err(ConnectAnyError::NoAddresses),
        1..=MAX_ADDRESSES => Ok(()),
        given => Err(ConnectAnyError::TooManyAddresses { given }),
    }
}

/// Checks that all addresses with a peer id name `peer`, or one and the same peer.
fn check_peer(addresses: &[PeerAddress], peer: Option<PeerId>) -> Result<(), ConnectAnyError> {
    let named = addresses.iter().find_map(PeerAddress::peer_id);
    let Some(expected) = peer.or(named) else {
        return Ok(());
    };
    let is_another = |address: &&PeerAddress| address.peer_id().is_some_and(|id| id != expected);
    match addresses.iter().find(is_another).cloned() {
        Some(address) => Err(ConnectAnyError::AnotherPeer {
            address: Box::new(address),
            expected,
        }),
        None => Ok(()),
    }
}

/// Runs before anything is sent. The first attempt that authenticates wins, so all have to lead to
/// the same peer.
fn check(endpoint: &Inner, addresses: &[PeerAddress]) -> Result<(), ConnectAnyError> {
    check_number(addresses)?;
    check_peer(addresses, None)?;
    let names_none = |address: &&PeerAddress| address.peer_id().is_none();
    match addresses.iter().find(names_none).cloned() {
        // Without Noise there are no peers, only certificates.
        Some(address) if endpoint.noise_identity().is_some() => {
            let address = Box::new(address);
            Err(ConnectAnyError::MissingPeer { address })
        }
        _ => Ok(()),
    }
}

pub(super) async fn connect_any(
    endpoint: &Arc<Inner>,
    addresses: &[PeerAddress],
    options: DialOptions,
) -> Result<Reached, ConnectAnyError> {
    check(endpoint, addresses)?;
    let config = &endpoint.config;
    let mut waiting = schedule(addresses, config.websocket_head_start, config.address_delay)
        .into_iter()
        .peekable();
    let mut running = FuturesUnordered::new();
    // In the order in which they began.
    let mut begun: Vec<PeerAddress> = Vec::new();
    let mut failed: Vec<(usize, AttemptError)> = Vec::new();
    loop {
        // With no attempt in progress the next one begins at once.
        let next_at = waiting.peek().map(|candidate| candidate.begins_at);
        let is_due = next_at.is_some_and(|at| running.is_empty() || at <= Instant::now());
        if is_due && let Some(candidate) = waiting.next() {
            let number = begun.len();
            begun.push(candidate.address.clone());
            let attempt = attempt(endpoint, candidate.address, options);
            running.push(async move { (number, attempt.await) });
            continue;
        }
        let next_begins = pin!(async {
            match next_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        });
        // `select` polls its first future first: a result takes precedence over the next attempt.
        let ended = match select(running.next(), next_begins).await {
            Either::Left((ended, _)) => ended,
            Either::Right(_) => continue,
        };
        match ended {
            Some((winner, Ok(connection))) => {
                drop(running);
                let rest = waiting.map(|candidate| candidate.address);
                return Ok(reached(connection, winner, begun, failed, rest));
            }
            Some((number, Err(error))) => failed.push((number, error)),
            None => break,
        }
    }
    if endpoint.is_closed() {
        return Err(ConnectAnyError::EndpointClosed);
    }
    let lost = failed.into_iter().filter_map(|(number, error)| {
        Some(Lost {
            address: begun.get(number)?.clone(),
            reason: LostReason::Failed(error),
        })
    });
    Err(ConnectAnyError::AllFailed(lost.collect()))
}

fn reached(
    connection: Connection,
    winner: usize,
    begun: Vec<PeerAddress>,
    failed: Vec<(usize, AttemptError)>,
    rest: impl Iterator<Item = PeerAddress>,
) -> Reached {
    let address = begun[winner].clone();
    let mut reasons: Vec<LostReason> = begun.iter().map(|_| LostReason::Slower).collect();
    for (number, error) in failed {
        reasons[number] = LostReason::Failed(error);
    }
    let begun = begun.into_iter().zip(reasons).enumerate();
    let mut others: Vec<Lost> = begun
        .filter(|(number, _)| *number != winner)
        .map(|(_, (address, reason))| Lost { address, reason })
        .collect();
    others.extend(rest.map(|address| Lost {
        address,
        reason: LostReason::NotTried,
    }));
    tracing::debug!(target: "anabranch::endpoint", %address, ?others, "reached");
    Reached {
        connection,
        address,
        others,
    }
}

fn attempt(
    endpoint: &Arc<Inner>,
    address: PeerAddress,
    options: DialOptions,
) -> BoxFuture<'static, Result<Connection, AttemptError>> {
    let endpoint = Arc::clone(endpoint);
    Box::pin(async move {
        match address {
            PeerAddress::WebRtcDirect(address) => Ok(dial(&endpoint, &address, options).await?),
            #[cfg(feature = "websocket")]
            PeerAddress::WebSocket(address) => endpoint.dial_websocket(&address, options).await,
            #[cfg(not(feature = "websocket"))]
            PeerAddress::WebSocket(_) => Err(AttemptError::NoWebSocket),
        }
    })
}
