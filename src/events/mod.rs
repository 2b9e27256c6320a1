//! Events of connections, substreams and payloads, for logs and metrics.
//!
//! ```text
//! connection   opening ─► open ─► (closing) ─► closed | failed
//!                     └─► connect_failed
//! substream    opened ─► (negotiated) ─► closed | reset
//!                    credit_stalled ⇄ credit_resumed
//! payload      begun ─► progress, progress ─► ended
//! ```
//!
//! Each starts once and ends once, whatever is dropped and whatever fails: the event after the last
//! arrow comes exactly once for everything that started. The only exception: if the task of a
//! connection panics, nothing more is reported of the connection and its substreams
//! ([`ConnectionError::Panicked`]).

use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::payload::PayloadError;
use crate::error::{CloseOutcome, ConnectionError};
use crate::identity::PeerId;

#[cfg(any(feature = "webrtc", feature = "websocket"))]
mod attempt;
mod connection;
#[cfg(feature = "metrics")]
mod metrics;
mod payload;
mod stats;

#[cfg(any(feature = "webrtc", feature = "websocket"))]
pub(crate) use attempt::Attempt;
pub(crate) use connection::ConnectionEvents;
pub use payload::{PayloadDirection, PayloadOutcome, PayloadProgress};
pub use stats::SubstreamStats;

#[cfg(feature = "metrics")]
pub use self::metrics::MetricsEvents;

/// The side that started something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Initiator {
    /// This side.
    Local,
    /// The peer.
    Remote,
}

impl Initiator {
    /// `local` or `remote`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Remote => "remote",
        }
    }
}

impl fmt::Display for Initiator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The connection that an event belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// Number of the connection or the attempt, unique within the process.
    pub id: u64,
    /// The side that dialled. [`Initiator::Local`] for connections over custom carriers.
    pub initiator: Initiator,
    /// The authenticated peer; `None` before authentication, and without Noise.
    pub peer: Option<PeerId>,
    /// Address of the peer; `None` for carriers without addresses.
    pub remote: Option<SocketAddr>,
}

impl ConnectionInfo {
    pub(crate) fn new(initiator: Initiator, remote: Option<SocketAddr>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            initiator,
            peer: None,
            remote,
        }
    }
}

/// The substream that an event belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubstreamInfo {
    /// Equal to [`Substream::id`](crate::Substream::id): unique within its connection.
    pub id: u64,
    /// The side that opened it.
    pub initiator: Initiator,
}

/// Receives the events of connections, substreams and payloads; set as
/// [`Config::events`](crate::Config::events).
///
/// Every method does nothing by default. The task that connects, opens a substream or drives the
/// connection calls them synchronously, so they have to return quickly and must not block; hand
/// longer work to another task.
#[allow(unused_variables)]
pub trait Events: fmt::Debug + Send + Sync + 'static {
    /// An attempt to connect starts: this side dials, or
    /// [`Incoming::accept`](crate::Incoming::accept) has admitted a dialler.
    ///
    /// [`Events::connection_open`] or [`Events::connect_failed`] follows, with the same id.
    fn connection_opening(&self, connection: &ConnectionInfo) {}

    /// An attempt has failed; `error` is `None` if its future was dropped.
    fn connect_failed(&self, connection: &ConnectionInfo, error: Option<&(dyn Error + 'static)>) {}

    /// A connection is established and its peer authenticated.
    ///
    /// [`Events::connection_closed`] or [`Events::connection_failed`] follows.
    fn connection_open(&self, connection: &ConnectionInfo) {}

    /// This side begins to close a connection: no new substreams, and existing ones drain.
    fn connection_closing(&self, connection: &ConnectionInfo, cause: &ConnectionError) {}

    /// Either side has closed the connection in an orderly way ([`ConnectionError::is_orderly`]).
    fn connection_closed(&self, connection: &ConnectionInfo, cause: &ConnectionError) {}

    /// A connection has failed.
    fn connection_failed(&self, connection: &ConnectionInfo, cause: &ConnectionError) {}

    /// The carrier has measured a round-trip time with its own ping. WebSockets only: WebRTC has
    /// ICE consent checks instead.
    fn ping(&self, connection: &ConnectionInfo, round_trip: Duration) {}

    /// A substream was opened. Its protocol may not be negotiated yet.
    ///
    /// [`Events::substream_closed`] or [`Events::substream_reset`] follows.
    fn substream_opened(&self, connection: &ConnectionInfo, substream: SubstreamInfo) {}

    /// The protocol of a substream was negotiated. Never called with
    /// [`Negotiation::None`](crate::Negotiation::None).
    fn substream_negotiated(
        &self,
        connection: &ConnectionInfo,
        substream: SubstreamInfo,
        protocol: &str,
    ) {
    }

    /// A substream of the peer was refused with this code; no other event is reported for it.
    fn substream_refused(&self, connection: &ConnectionInfo, code: u32) {}

    /// A substream has ended without a reset. `outcome` is the result of closing its write half, or
    /// [`CloseOutcome::Lost`] if its connection ended first.
    fn substream_closed(
        &self,
        connection: &ConnectionInfo,
        substream: SubstreamInfo,
        outcome: CloseOutcome,
        stats: &SubstreamStats,
    ) {
    }

    /// A substream was reset by `by`, with this code if there was one.
    fn substream_reset(
        &self,
        connection: &ConnectionInfo,
        substream: SubstreamInfo,
        code: Option<u32>,
        by: Initiator,
        stats: &SubstreamStats,
    ) {
    }

    /// Data waits because the peer's credit is used up: its reader is slower than this writer.
    ///
    /// [`Events::credit_resumed`] follows, unless the substream ends first.
    fn credit_stalled(&self, connection: &ConnectionInfo, substream: SubstreamInfo) {}

    /// The peer has granted more credit, after the writer had waited for `waited`.
    fn credit_resumed(
        &self,
        connection: &ConnectionInfo,
        substream: SubstreamInfo,
        waited: Duration,
    ) {
    }

    /// A payload starts: its header was sent, or was received and accepted. `progress.resumed_from`
    /// is not known yet, nor is `progress.total` of a payload without a declared length.
    ///
    /// [`Events::payload_ended`] follows. The task that sends or receives a payload calls this and
    /// the other payload events.
    fn payload_begun(
        &self,
        connection: &ConnectionInfo,
        substream: SubstreamInfo,
        progress: PayloadProgress,
    ) {
    }

    /// A payload ended before it started: this side refused it (by its header, for lack of a
    /// header, or because too many are open), or the sender gave it up. No other event is reported
    /// for it, and none at all if the task that waited for its header was dropped.
    fn payload_refused(
        &self,
        connection: &ConnectionInfo,
        substream: SubstreamInfo,
        error: &PayloadError,
    ) {
    }

    /// A payload has progressed by
    /// [`PayloadConfig::progress_interval`](crate::payload::PayloadConfig::progress_interval) bytes
    /// or more, or is about to end. The last call, and there is at least one, completes the sum of
    /// `moved`.
    fn payload_progress(
        &self,
        connection: &ConnectionInfo,
        substream: SubstreamInfo,
        progress: PayloadProgress,
    ) {
    }

    /// A payload has ended, completely or not.
    fn payload_ended(
        &self,
        connection: &ConnectionInfo,
        substream: SubstreamInfo,
        progress: PayloadProgress,
        outcome: PayloadOutcome<'_>,
    ) {
    }
}
