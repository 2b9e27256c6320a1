//! The errors of substreams, and the outcomes of their close.

use std::fmt;
use std::io;

use super::ConnectionError;

/// How the write half of a substream was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseOutcome {
    /// The peer confirmed with FIN_ACK that it has every byte.
    Acked,
    /// The peer's transport has acknowledged every byte and FIN, and the peer is known to send no
    /// FIN_ACK ([`Config::expect_fin_ack`](crate::Config::expect_fin_ack)). Over a WebSocket, which
    /// has no such acknowledgement, the local socket has accepted everything.
    Delivered,
    /// FIN was delivered to the peer (over a WebSocket: to the local socket), but no FIN_ACK
    /// arrived within [`Config::fin_ack_timeout`].
    ///
    /// [`Config::fin_ack_timeout`]: crate::Config::fin_ack_timeout
    TimedOut,
    /// The peer sent STOP_SENDING, with this code if it gave one: it did not want the rest.
    Stopped(Option<u32>),
    /// The substream was reset, by either side, with this code if one was given.
    Reset(Option<u32>),
    /// The peer closed the data channel after FIN without confirming it.
    ChannelClosed,
    /// The connection ended first, or the peer closed the data channel before FIN: what it received
    /// is unknown.
    Lost,
}

impl fmt::Display for CloseOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, code) = match self {
            Self::Acked => ("confirmed by the peer", None),
            Self::Delivered => ("delivered to the peer's transport", None),
            Self::TimedOut => ("delivered, and not confirmed in time", None),
            Self::Stopped(code) => ("stopped by the peer", *code),
            Self::Reset(code) => ("reset", *code),
            Self::ChannelClosed => ("closed by the peer without a confirmation", None),
            Self::Lost => ("lost with the channel or connection", None),
        };
        f.write_str(what)?;
        code.map_or(Ok(()), |code| write!(f, " with code {code:#x}"))
    }
}

/// How a [`finish`](crate::Substream::finish) succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Finished {
    /// The peer confirmed with FIN_ACK that it has every byte.
    Acked,
    /// The peer's transport, or over a WebSocket the local socket, has every byte and FIN. Only
    /// with a peer that is known to send no FIN_ACK, see
    /// [`Config::expect_fin_ack`](crate::Config::expect_fin_ack).
    Delivered,
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        CloseOutcome::from(*self).fmt(f)
    }
}

impl From<Finished> for CloseOutcome {
    fn from(finished: Finished) -> Self {
        match finished {
            Finished::Acked => Self::Acked,
            Finished::Delivered => Self::Delivered,
        }
    }
}

/// Why a [`finish`](crate::Substream::finish) failed: the peer did not confirm that it has every
/// byte.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FinishError {
    /// The peer's transport, or over a WebSocket the local socket, has every byte and FIN, but no
    /// FIN_ACK arrived within [`Config::fin_ack_timeout`](crate::Config::fin_ack_timeout). The
    /// normal outcome with peers that do not support FIN_ACK, such as rust-libp2p: see
    /// [`Config::expect_fin_ack`](crate::Config::expect_fin_ack).
    #[error("no FIN_ACK arrived in time")]
    TimedOut,
    /// The peer sent STOP_SENDING, with this code if it gave one: it did not want the rest.
    #[error("the peer stopped reading (code {0:?})")]
    Stopped(Option<u32>),
    /// The peer sent RESET_STREAM, with this code if it gave one.
    #[error("the peer reset the substream (code {0:?})")]
    ResetByPeer(Option<u32>),
    /// This side reset the substream, by [`Substream::reset`](crate::Substream::reset) or because
    /// of a violation by the peer.
    #[error("the substream was reset locally (code {0:?})")]
    ResetLocally(Option<u32>),
    /// The peer closed the data channel without confirming FIN.
    #[error("the data channel was closed before FIN_ACK")]
    ChannelClosed,
    /// The connection ended first.
    #[error("the connection ended: {0}")]
    ConnectionLost(#[source] ConnectionError),
}

impl From<FinishError> for io::Error {
    fn from(error: FinishError) -> Self {
        let kind = match &error {
            FinishError::TimedOut => io::ErrorKind::TimedOut,
            FinishError::Stopped(_) | FinishError::ChannelClosed => io::ErrorKind::BrokenPipe,
            FinishError::ResetByPeer(_) | FinishError::ResetLocally(_) => {
                io::ErrorKind::ConnectionReset
            }
            FinishError::ConnectionLost(_) => io::ErrorKind::ConnectionAborted,
        };
        Self::new(kind, error)
    }
}

/// Why a read, write or flush of a substream failed.
///
/// The I/O traits return it as the inner error ([`io::Error::get_ref`]); that of `shutdown()` and
/// `close()` is a [`FinishError`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubstreamError {
    /// The write half was shut down locally before.
    #[error("the write half is shut down")]
    ShutDown,
    /// The peer sent STOP_SENDING.
    #[error("the peer stopped reading (code {0:?})")]
    Stopped(Option<u32>),
    /// The peer sent RESET_STREAM.
    #[error("the peer reset the substream (code {0:?})")]
    ResetByPeer(Option<u32>),
    /// This side reset the substream, by [`Substream::reset`] or because of a violation by the
    /// peer.
    ///
    /// [`Substream::reset`]: crate::Substream::reset
    #[error("the substream was reset locally (code {0:?})")]
    ResetLocally(Option<u32>),
    /// The data channel was closed without FIN.
    #[error("the data channel was closed without FIN")]
    ChannelClosed,
    /// The connection ended without FIN.
    #[error("the connection ended: {0}")]
    ConnectionLost(#[source] ConnectionError),
}

impl SubstreamError {
    /// Converts the error for a reader, with the kind that readers expect.
    pub(crate) fn into_read_error(self) -> io::Error {
        let kind = match &self {
            Self::ResetByPeer(_) | Self::ResetLocally(_) => io::ErrorKind::ConnectionReset,
            Self::ChannelClosed | Self::ConnectionLost(_) => io::ErrorKind::UnexpectedEof,
            Self::ShutDown | Self::Stopped(_) => io::ErrorKind::BrokenPipe,
        };
        io::Error::new(kind, self)
    }
}

impl From<SubstreamError> for io::Error {
    fn from(error: SubstreamError) -> Self {
        let kind = match &error {
            SubstreamError::ResetByPeer(_) | SubstreamError::ResetLocally(_) => {
                io::ErrorKind::ConnectionReset
            }
            SubstreamError::ConnectionLost(_) => io::ErrorKind::ConnectionAborted,
            SubstreamError::ChannelClosed
            | SubstreamError::ShutDown
            | SubstreamError::Stopped(_) => io::ErrorKind::BrokenPipe,
        };
        Self::new(kind, error)
    }
}
