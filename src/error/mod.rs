//! Why a connection ended: what every room above the frames can say.

use std::io;

use crate::message::Message;

pub mod code;
pub(crate) mod payload;
mod substream;
mod webrtc;
mod websocket;

pub use substream::{CloseOutcome, FinishError, Finished, SubstreamError};
pub use webrtc::{LimitExceeded, SctpViolation, WebRtcError};
pub use websocket::WebSocketError;

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
    /// There was no substream for [`Config::idle_timeout`](crate::Config::idle_timeout), and this
    /// side closed it.
    #[error("closed for idleness")]
    Idle,
    /// The peer opened substreams and ended them unused, more often than
    /// [`Config::max_unused_substreams`](crate::Config::max_unused_substreams).
    #[error("the peer opens substreams and ends them unused, all the time")]
    TooManyUnusedSubstreams,
    /// The peer sent frames that change nothing, more often than
    /// [`Config::max_frames_without_effect`](crate::Config::max_frames_without_effect).
    #[error("the peer sends too many frames without effect")]
    TooManyFramesWithoutEffect,
    /// The DTLS 1.2 connection has carried as many records as it may; see
    /// [`EndpointConfig::max_dtls12_records`](crate::EndpointConfig::max_dtls12_records).
    #[error("DTLS 1.2 key usage limit reached")]
    KeysUsedUp,
    /// WebRTC failed, or the peer violated its protocols.
    #[error("WebRTC: {0}")]
    WebRtc(#[source] WebRtcError),
    /// The WebSocket failed, or the peer broke a rule of it.
    #[error("WebSocket: {0}")]
    WebSocket(#[source] WebSocketError),
    /// The task of the connection has panicked: in a callback of [`Events`](crate::Events), or by a fault of this
    /// crate. Nothing more is reported to `Events`.
    #[error("the task of the connection has panicked")]
    Panicked,
    /// A carrier of the application's own failed.
    #[error("the carrier failed: {0}")]
    Carrier(String),
}

/// Bytes of the reason of a close that are sent to the peer.
const MAX_REASON: usize = 1024;

impl ConnectionError {
    /// What the peer is told when this side closes the connection for this cause.
    pub(crate) fn goodbye(&self) -> Message {
        let shortened = |reason: &str| {
            let mut ends = (0..=reason.len().min(MAX_REASON)).rev();
            let end = ends.find(|end| reason.is_char_boundary(*end));
            reason
                .get(..end.unwrap_or(0))
                .unwrap_or_default()
                .to_owned()
        };
        match self {
            Self::ClosedWith { code, reason } => Message::goodbye(Some(*code), shortened(reason)),
            cause if cause.is_orderly() => Message::goodbye(None, ""),
            cause @ Self::TooManyFramesWithoutEffect => {
                Message::goodbye(Some(code::RATE_LIMITED), cause.to_string())
            }
            cause => Message::goodbye(Some(code::RESOURCE_LIMIT), shortened(&cause.to_string())),
        }
    }

    /// The cause of an orderly end, with what the peer has told about it before.
    pub(crate) fn explained(self, goodbye: Option<Message>) -> Self {
        match (self, goodbye) {
            (
                Self::ClosedByPeer,
                Some(Message {
                    error_code: Some(code),
                    reason,
                    ..
                }),
            ) => {
                let reason = reason.unwrap_or_default();
                Self::ClosedByPeerWith { code, reason }
            }
            (cause, _) => cause,
        }
    }

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

impl From<ConnectionError> for io::Error {
    fn from(error: ConnectionError) -> Self {
        let kind = match &error {
            ConnectionError::TimedOut | ConnectionError::NoProgress => io::ErrorKind::TimedOut,
            ConnectionError::WebRtc(cause) => cause.kind(),
            ConnectionError::WebSocket(WebSocketError::Io { kind, .. }) => *kind,
            _ => io::ErrorKind::ConnectionAborted,
        };
        Self::new(kind, error)
    }
}
