//! Why a WebRTC connection ended.

use std::io;

#[cfg(feature = "webrtc")]
pub use anabranch_rtc::{LimitExceeded, Violation as SctpViolation};
#[cfg(not(feature = "webrtc"))]
pub use never::{LimitExceeded, SctpViolation};

use super::ConnectionError;

/// Why the WebRTC connection under a connection ended, unless a side closed it in order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WebRtcError {
    /// The peer aborted the SCTP association.
    #[error("SCTP association aborted by the peer")]
    Aborted,
    /// The channel of the Noise handshake was closed before the handshake was complete.
    #[error("the channel of the handshake is closed")]
    ChannelClosed,
    /// DTLS failed.
    #[error("DTLS: {0}")]
    Dtls(String),
    /// The engine failed for another reason.
    #[error("{0}")]
    Engine(String),
    /// The peer exceeded a limit.
    #[error("limit exceeded: {0}")]
    Limit(#[source] LimitExceeded),
    /// The peer has no certificate.
    #[error("DTLS: the peer has no certificate")]
    NoCertificate,
    /// The peer violated SCTP.
    #[error("SCTP protocol violation: {0}")]
    Violation(#[source] SctpViolation),
}

impl WebRtcError {
    /// The kind of an I/O error with this cause.
    pub(super) fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Aborted => io::ErrorKind::ConnectionReset,
            Self::Limit(_) | Self::NoCertificate | Self::Violation(_) => io::ErrorKind::InvalidData,
            Self::ChannelClosed | Self::Dtls(_) | Self::Engine(_) => {
                io::ErrorKind::ConnectionAborted
            }
        }
    }
}

impl From<WebRtcError> for ConnectionError {
    fn from(error: WebRtcError) -> Self {
        Self::WebRtc(error)
    }
}

/// In place of causes that do not occur without the feature `webrtc`, so that it adds no variant.
#[cfg(not(feature = "webrtc"))]
mod never {
    /// A limit that the peer exceeded; none without the feature `webrtc`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
    #[non_exhaustive]
    pub enum LimitExceeded {}

    /// How the peer violated SCTP; not at all without the feature `webrtc`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
    #[non_exhaustive]
    pub enum SctpViolation {}
}
