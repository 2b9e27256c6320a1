//! One peer by several addresses: WebRTC first, a WebSocket where UDP does not get through.
//!
//! ```text
//! 0 ms       webrtc-direct ──────────────────────────► authenticated: the others are dropped
//! 100 ms     the next webrtc-direct address
//! 300 ms     ws, wss; at once if every attempt before has failed
//! 400 ms     the next of them
//! ```

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, Either, select};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep_until};

use super::Inner;
use super::dial::dial;
use super::error::ConnectError;
use crate::address::PeerAddress;
use crate::connection::Connection;
use crate::identity::PeerId;
use crate::ufrag::Version;

/// Addresses that one call tries. Answers address books that others can write to.
pub const MAX_ADDRESSES: usize = 16;

/// A connection by one of several addresses, from [`Endpoint::connect_any`](super::Endpoint::connect_any).
#[derive(Debug)]
#[non_exhaustive]
pub struct Reached {
    /// The connection.
    pub connection: Connection,
    /// The address that it was reached by.
    pub address: PeerAddress,
    /// The other addresses, and why they did not win.
    pub others: Vec<Lost>,
}

/// An address that did not win.
#[derive(Debug)]
#[non_exhaustive]
pub struct Lost {
    /// The address.
    pub address: PeerAddress,
    /// Why.
    pub reason: LostReason,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.address, self.reason)
    }
}

/// Why an address did not win.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LostReason {
    /// The attempt failed.
    #[error("{0}")]
    Failed(#[source] AttemptError),
    /// It was under way when another one was done, and was broken off.
    #[error("slower than the one that was reached")]
    Slower,
    /// Another one was done before this one began.
    #[error("not tried any more")]
    NotTried,
}

/// Why the attempt at one address failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttemptError {
    /// Over WebRTC.
    #[error(transparent)]
    WebRtc(#[from] ConnectError),
    /// Over a WebSocket.
    #[cfg(feature = "websocket")]
    #[error(transparent)]
    WebSocket(#[from] crate::websocket::HandshakeError),
    /// The address is `ws`, and [`EndpointBuilder::plaintext_websockets`](super::EndpointBuilder::plaintext_websockets) was not set.
    #[error("a WebSocket without TLS, which is not allowed")]
    Plaintext,
    /// The address is that of a WebSocket, and the crate was built without the feature `websocket`.
    #[error("built without WebSockets")]
    NoWebSocket,
}

/// Why no address led to a connection.
#[derive(Debug, thiserror::Error)]
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
    /// An address names no peer, so whoever is there would be taken for the one that is wanted. Name it with
    /// [`Endpoint::connect_peer`](super::Endpoint::connect_peer).
    #[error("{address} names no peer")]
    MissingPeer {
        /// The address.
        address: Box<PeerAddress>,
    },
    /// An address names another peer than the one that is wanted, or than the addresses before it.
    #[error("{address} is one of another peer than {expected}")]
    AnotherPeer {
        /// The address.
        address: Box<PeerAddress>,
        /// The peer that is wanted.
        expected: PeerId,
    },
    /// The endpoint has [`Security::CertificateHash`](super::Security::CertificateHash), with which nobody proves to
    /// be a peer.
    #[error("without Noise nobody proves to be {expected}")]
    NoIdentities {
        /// The peer that is wanted.
        expected: PeerId,
    },
    /// The endpoint is closed.
    #[error("the endpoint is closed")]
    EndpointClosed,
    /// Every address failed.
    #[error("no address worked: {}", list(.0))]
    AllFailed(Vec<Lost>),
}

fn list(lost: &[Lost]) -> String {
    let lines: Vec<String> = lost.iter().map(ToString::to_string).collect();
    lines.join("; ")
}

/// One address, and when its turn comes.
struct Candidate {
    address: PeerAddress,
    begins_at: Instant,
}

/// WebRTC addresses first, then the WebSockets, each kind in the order that was given.
fn in_turn(addresses: &[PeerAddress], head_start: Duration, delay: Duration) -> Vec<Candidate> {
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
    let turns = |addresses: Vec<PeerAddress>, first: Duration| {
        addresses
            .into_iter()
            .zip(0..)
            .map(move |(address, index)| Candidate {
                address,
                begins_at: now + first + delay * index,
            })
    };
    let mut all: Vec<_> = turns(webrtc, Duration::ZERO)
        .chain(turns(websockets, head_start))
        .collect();
    // Many WebRTC addresses do not make the WebSocket wait. The sort is stable.
    all.sort_by_key(|candidate| candidate.begins_at);
    all
}

/// The addresses of `peer`, with its id where they have none.
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

/// Whether all addresses that name a peer name this one, or the same.
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

/// Before anything is sent: the first that authenticates wins, so it must not matter which that is.
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
    version: Version,
) -> Result<Reached, ConnectAnyError> {
    check(endpoint, addresses)?;
    let config = &endpoint.config;
    let mut waiting = in_turn(addresses, config.websocket_head_start, config.address_delay)
        .into_iter()
        .peekable();
    let mut running = FuturesUnordered::new();
    // In the order of their beginning.
    let mut begun: Vec<PeerAddress> = Vec::new();
    let mut failed: Vec<(usize, AttemptError)> = Vec::new();
    loop {
        // With nothing under way the next one has no reason to wait.
        let next_at = waiting.peek().map(|candidate| candidate.begins_at);
        let is_due = next_at.is_some_and(|at| running.is_empty() || at <= Instant::now());
        if is_due && let Some(candidate) = waiting.next() {
            let number = begun.len();
            begun.push(candidate.address.clone());
            let attempt = attempt(endpoint, candidate.address, version);
            running.push(async move { (number, attempt.await) });
            continue;
        }
        let turn = pin!(async {
            match next_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        });
        // The first is looked at first.
        let ended = match select(running.next(), turn).await {
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
    version: Version,
) -> BoxFuture<'static, Result<Connection, AttemptError>> {
    let endpoint = Arc::clone(endpoint);
    Box::pin(async move {
        match address {
            PeerAddress::WebRtcDirect(address) => Ok(dial(&endpoint, &address, version).await?),
            #[cfg(feature = "websocket")]
            PeerAddress::WebSocket(address) => endpoint.dial_websocket(&address).await,
            #[cfg(not(feature = "websocket"))]
            PeerAddress::WebSocket(_) => Err(AttemptError::NoWebSocket),
        }
    })
}

#[cfg(feature = "websocket")]
mod websocket {
    use std::pin::pin;
    use std::sync::Arc;

    use futures_util::future::{Either, select};

    use super::AttemptError;
    use crate::address::WebSocketAddress;
    use crate::connection::Connection;
    use crate::endpoint::{ConnectError, Inner};
    use crate::websocket::{self, Authentication, ChannelBinding, ClientConfig};

    impl Inner {
        /// Over a WebSocket, with the identity and the settings of this endpoint, which counts and closes it
        /// like any other of its connections.
        pub(super) async fn dial_websocket(
            self: &Arc<Self>,
            address: &WebSocketAddress,
        ) -> Result<Connection, AttemptError> {
            if !address.is_tls() && !self.websocket.allows_plaintext {
                return Err(AttemptError::Plaintext);
            }
            let registration = self.register()?;
            let number = registration.number;
            let authentication = match self.noise_identity() {
                Some(identity) => Authentication::Noise {
                    identity: identity.clone(),
                    // Plaintext has nothing to be bound to.
                    binding: match address.is_tls() {
                        true => self.websocket.binding,
                        false => ChannelBinding::None,
                    },
                },
                None => Authentication::Tls,
            };
            let mut config = ClientConfig::new(authentication);
            config.connection = Arc::clone(&self.connection_config);
            config.websocket = self.websocket.limits.clone();
            config.websocket.handshake_timeout = self.config.connect_timeout;
            config.trust = self.websocket.trust.clone();
            let connecting = pin!(websocket::connect_guarded(address, &config, registration));
            let closing = pin!(self.closing());
            let connection = match select(connecting, closing).await {
                Either::Left((result, _)) => result?,
                Either::Right(_) => return Err(ConnectError::EndpointClosed.into()),
            };
            self.enter(number, &connection);
            Ok(connection)
        }
    }
}
