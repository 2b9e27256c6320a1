//! One peer by several addresses: WebRTC first, a WebSocket where UDP does not get through.
//!
//! ```text
//! 0 ms       webrtc-direct ──────────────────────────► authenticated: the others are dropped
//! 100 ms     the next webrtc-direct address
//! 300 ms     ws, wss; at once if every attempt before has failed
//! 400 ms     the next of them
//! ```

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep_until};

use super::Inner;
use super::dial::dial;
use super::error::ConnectError;
use crate::address::PeerAddress;
use crate::connection::Connection;
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

pub(super) async fn connect_any(
    endpoint: &Arc<Inner>,
    addresses: &[PeerAddress],
    version: Version,
) -> Result<Reached, ConnectAnyError> {
    if addresses.is_empty() {
        return Err(ConnectAnyError::NoAddresses);
    }
    if addresses.len() > MAX_ADDRESSES {
        let given = addresses.len();
        return Err(ConnectAnyError::TooManyAddresses { given });
    }
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
        let turn = async {
            match next_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            ended = running.next() => match ended {
                Some((winner, Ok(connection))) => {
                    drop(running);
                    let rest = waiting.map(|candidate| candidate.address);
                    return Ok(reached(connection, winner, begun, failed, rest));
                }
                Some((number, Err(error))) => failed.push((number, error)),
                None => break,
            },
            () = turn => {}
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
