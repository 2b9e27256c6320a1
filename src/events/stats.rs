//! Counters of a substream.

/// Counters and buffer levels of a substream; a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SubstreamStats {
    /// Payload bytes handed to the carrier.
    pub sent: u64,
    /// Payload bytes accepted from the application that the carrier has not taken.
    pub buffered: usize,
    /// Payload bytes that the peer's credit still allows; `None` while the peer has sent none, or
    /// if it does not support credit.
    pub credit: Option<u64>,
    /// Payload bytes received.
    pub received: u64,
    /// Payload bytes received that the application has not read.
    pub unread: usize,
    /// Payload bytes that the peer may send before the application reads them, as far as
    /// [`Config::connection_ceiling`](crate::Config::connection_ceiling) allows: the receive window
    /// at its current size.
    pub receive_window: u64,
}
