//! Addresses of either kind.

use std::fmt;
use std::str::FromStr;

use super::{Address, AddressError, WebSocketAddress};
use crate::identity::PeerId;

/// The address of a listener, over WebRTC or WebSocket.
///
/// ```
/// use anabranch::address::PeerAddress;
///
/// let address: PeerAddress = "/dns4/example.org/tcp/443/wss".parse()?;
/// assert!(matches!(address, PeerAddress::WebSocket(_)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum PeerAddress {
    /// For [`Endpoint::connect`](crate::Endpoint::connect).
    WebRtcDirect(Address),
    /// For `websocket::connect`.
    WebSocket(WebSocketAddress),
}

impl PeerAddress {
    /// Sets the id of the listening peer.
    #[must_use]
    pub fn with_peer_id(self, peer_id: PeerId) -> Self {
        match self {
            Self::WebRtcDirect(address) => Self::WebRtcDirect(address.with_peer_id(peer_id)),
            Self::WebSocket(address) => Self::WebSocket(address.with_peer_id(peer_id)),
        }
    }

    /// The id of the listening peer, if the address has one.
    pub fn peer_id(&self) -> Option<PeerId> {
        match self {
            Self::WebRtcDirect(address) => address.peer_id(),
            Self::WebSocket(address) => address.peer_id(),
        }
    }
}

impl From<Address> for PeerAddress {
    fn from(address: Address) -> Self {
        Self::WebRtcDirect(address)
    }
}

impl From<WebSocketAddress> for PeerAddress {
    fn from(address: WebSocketAddress) -> Self {
        Self::WebSocket(address)
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WebRtcDirect(address) => address.fmt(f),
            Self::WebSocket(address) => address.fmt(f),
        }
    }
}

#[cfg(feature = "serde")]
crate::identity::serialize_as_text!(PeerAddress, "a multiaddr", |address| match address {
    Self::WebRtcDirect(_) => true,
    Self::WebSocket(address) => address.is_multiaddr(),
});

impl FromStr for PeerAddress {
    type Err = AddressError;

    /// The component after the host decides: `tcp` is a WebSocket, everything else webrtc-direct.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.split('/').nth(3) == Some("tcp") {
            text.parse().map(Self::WebSocket)
        } else {
            text.parse().map(Self::WebRtcDirect)
        }
    }
}
