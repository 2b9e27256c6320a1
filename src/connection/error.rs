//! Why a connection, or an operation on it, ended.

use crate::carrier::OpenChannelError;

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// This side closed it, or dropped every handle to it.
    #[error("closed locally")]
    ClosedLocally,
    /// This side closed it with [`Connection::close_with`](crate::Connection::close_with).
    #[error("closed locally: {reason} (code {code:#x})")]
    ClosedWith {
        /// The code that was given.
        code: u32,
        /// The reason that was given.
        reason: String,
    },
    /// The peer closed it.
    #[error("closed by the peer")]
    ClosedByPeer,
    /// The peer closed it and said why. Only over carriers that can carry that.
    #[error("closed by the peer: {reason} (code {code:#x})")]
    ClosedByPeerWith {
        /// The peer's code.
        code: u32,
        /// The peer's reason.
        reason: String,
    },
    /// Nothing came from the peer for too long.
    #[error("the peer does not answer any more")]
    TimedOut,
    /// The peer has acknowledged nothing of what was sent, although it had room for it, for
    /// [`EndpointConfig::progress_timeout`](crate::EndpointConfig::progress_timeout).
    #[error("the peer acknowledges nothing any more")]
    NoProgress,
    /// Nothing was carried for [`Config::idle_timeout`](crate::Config::idle_timeout), and this side
    /// closed it.
    #[error("closed for idleness")]
    Idle,
    /// The peer opened substreams and ended them unused, more often than
    /// [`Config::max_unused_substreams`](crate::Config::max_unused_substreams).
    #[error("the peer opens substreams and ends them unused, all the time")]
    TooManyUnusedSubstreams,
    /// The DTLS 1.2 connection has carried as much as it may; see
    /// [`EndpointConfig::max_dtls12_bytes`](crate::EndpointConfig::max_dtls12_bytes).
    #[error("the keys of the DTLS 1.2 connection have been used enough")]
    KeysUsedUp,
    /// The WebSocket failed, or the peer broke a rule of it.
    #[cfg(feature = "websocket")]
    #[error("WebSocket: {0}")]
    WebSocket(#[source] crate::websocket::WebSocketError),
    /// The carrier failed.
    #[error("the carrier failed: {0}")]
    Carrier(String),
}

impl ConnectionError {
    /// Whether the connection ended because one side wanted it to, and nothing was wrong.
    pub fn is_orderly(&self) -> bool {
        matches!(
            self,
            Self::ClosedLocally
                | Self::ClosedWith { .. }
                | Self::ClosedByPeer
                | Self::ClosedByPeerWith { .. }
                | Self::Idle
        )
    }
}

/// Why a substream could not be opened.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The connection has ended.
    #[error("the connection ended: {0}")]
    Connection(#[source] ConnectionError),
    /// The carrier has no channel for it.
    #[error("no channel: {0}")]
    Channel(#[source] OpenChannelError),
    /// The peer speaks none of the protocols that were offered.
    #[error("the peer does not speak {0:?}")]
    UnsupportedProtocol(String),
    /// The peer did not answer in time.
    #[error("no answer within the open timeout")]
    TimedOut,
    /// The peer broke the negotiation off, or spoke something else.
    #[error("negotiation failed: {0}")]
    Negotiation(String),
}
