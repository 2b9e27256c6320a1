//! The errors that several modules share.

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
    /// The peer closed it with a code and a reason. Only over carriers that can transmit these.
    #[error("closed by the peer: {reason} (code {code:#x})")]
    ClosedByPeerWith {
        /// The peer's code.
        code: u32,
        /// The peer's reason.
        reason: String,
    },
    /// The peer was silent for too long.
    #[error("the peer does not respond")]
    TimedOut,
    /// The peer acknowledged nothing for
    /// [`EndpointConfig::progress_timeout`](crate::EndpointConfig::progress_timeout), although its
    /// receive window was open.
    #[error("the peer acknowledges nothing")]
    NoProgress,
    /// This side closed it after [`Config::idle_timeout`](crate::Config::idle_timeout) without
    /// substreams.
    #[error("closed for idleness")]
    Idle,
    /// The peer exceeded [`Config::max_unused_substreams`](crate::Config::max_unused_substreams):
    /// it opens substreams and ends them unused.
    #[error("the peer opens too many substreams and ends them unused")]
    TooManyUnusedSubstreams,
    /// The peer exceeded
    /// [`Config::max_frames_without_effect`](crate::Config::max_frames_without_effect).
    #[error("the peer sends too many frames without effect")]
    TooManyFramesWithoutEffect,
    /// The DTLS 1.2 connection reached
    /// [`EndpointConfig::max_dtls12_records`](crate::EndpointConfig::max_dtls12_records).
    #[error("DTLS 1.2 key usage limit reached")]
    KeysUsedUp,
    /// WebRTC failed, or the peer violated its protocols.
    #[error("WebRTC: {0}")]
    WebRtc(#[source] WebRtcError),
    /// The WebSocket failed, or the peer violated its protocol.
    #[error("WebSocket: {0}")]
    WebSocket(#[source] WebSocketError),
    /// The task of the connection panicked, in a callback of [`Events`](crate::Events) or by a bug
    /// of this crate. Nothing more is reported to `Events`.
    #[error("the task of the connection panicked")]
    Panicked,
    /// A carrier of the application's own failed.
    #[error("the carrier failed: {0}")]
    Carrier(String),
}

/// Maximum length of the close reason that is sent to the peer, in bytes.
const MAX_REASON: usize = 1024;

impl ConnectionError {
    /// The frame that reports this cause to the peer when this side closes the connection: FIN on
    /// channel 0 (`docs/wire.md`), with the code and reason of a `close_with`, nothing for any
    /// other orderly close, and else `RESOURCE_LIMIT` or `RATE_LIMITED` with the text of this
    /// error. For implementations of [`Carrier`](crate::carrier::Carrier).
    pub fn goodbye(&self) -> Message {
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

    /// Adds the code and reason from the peer's [`goodbye`](Self::goodbye) to an orderly end. For
    /// implementations of [`Carrier`](crate::carrier::Carrier).
    #[must_use]
    pub fn explained(self, goodbye: Option<Message>) -> Self {
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

    /// Whether one side closed the connection deliberately, without a failure.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// An error that many wait for, as one dial that many share, is handed to each of them.
    #[test]
    fn the_error_of_every_operation_can_be_cloned() {
        fn is_cloned<E: std::error::Error + Clone + Send + Sync + 'static>() {}
        is_cloned::<ConnectionError>();
        is_cloned::<SubstreamError>();
        is_cloned::<FinishError>();
        is_cloned::<payload::PayloadError>();
        is_cloned::<payload::SendError>();
        is_cloned::<crate::OpenError>();
        is_cloned::<crate::ConfigError>();
        is_cloned::<crate::delimited::MessageReadError>();
        is_cloned::<crate::delimited::MessageWriteError>();
        #[cfg(feature = "webrtc")]
        {
            is_cloned::<crate::BindError>();
            is_cloned::<crate::ConnectError>();
            is_cloned::<crate::ConnectAnyError>();
            is_cloned::<crate::endpoint::PunchError>();
        }
        #[cfg(feature = "websocket")]
        {
            is_cloned::<crate::websocket::HandshakeError>();
            is_cloned::<crate::websocket::ListenError>();
            is_cloned::<crate::websocket::TlsIdentityError>();
            is_cloned::<crate::websocket::UpgradeError>();
        }
    }
}
