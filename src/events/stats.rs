//! Counts of a substream.

/// What a substream has moved and holds; a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SubstreamStats {
    /// Payload bytes handed to the carrier.
    pub sent: u64,
    /// Payload bytes accepted from the application that the carrier has not taken.
    pub buffered: usize,
    /// Payload bytes that the peer's credit still allows; `None` while it has shown none, or if it knows
    /// none.
    pub credit: Option<u64>,
    /// Payload bytes received.
    pub received: u64,
    /// Payload bytes received that the application has not read.
    pub unread: usize,
    /// Payload bytes that the peer may send unread, where
    /// [`Config::connection_ceiling`](crate::Config::connection_ceiling) leaves as much: the
    /// receive window as it has grown so far.
    pub receive_window: u64,
}
