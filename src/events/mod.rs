//! What happens to connections and substreams, told to whoever wants to know.
//!
//! ```text
//! connection   opening ─► open ─► (closing) ─► closed | failed
//!                     └─► connect_failed
//! substream    opened ─► (negotiated) ─► closed | reset
//!                    credit_stalled ⇄ credit_resumed
//! payload      begun ─► progress, progress ─► ended
//! ```
//!
//! Each begins once and ends once, whoever is dropped and whatever fails: what is behind the last
//! arrow comes exactly once for everything that began. Only if the task of a connection panics,
//! nothing more is reported of the connection and its substreams ([`ConnectionError::Panicked`]).

use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::payload::PayloadError;
use crate::error::{CloseOutcome, ConnectionError};
use crate::identity::PeerId;

#[cfg(feature = "transport")]
mod attempt;
mod audience;
#[cfg(feature = "metrics")]
mod metrics;
mod payload;
mod stats;

#[cfg(feature = "transport")]
pub(crate) use attempt::Attempt;
pub(crate) use audience::Audience;
pub use payload::{PayloadDirection, PayloadOutcome, PayloadProgress};
pub use stats::SubstreamStats;

#[cfg(feature = "metrics")]
pub use self::metrics::MetricsEvents;

/// Who began something.
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

/// Which connection an event is of.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// Number of the connection or the attempt, unique within the process.
    pub id: u64,
    /// Who dialled. [`Initiator::Local`] for connections over carriers of your own.
    pub initiator: Initiator,
    /// The authenticated peer; `None` before that, and without Noise.
    pub peer: Option<PeerId>,
    /// Where the peer is; `None` for carriers without addresses.
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

/// Which substream an event is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubstreamInfo {
    /// As [`Substream::id`](crate::Substream::id): unique within its connection.
    pub id: u64,
    /// Who opened it.
    pub initiator: Initiator,
}

/// Is told what happens to connections and substreams; set as [`Config::events`](crate::Config::events).
///
/// Every method does nothing unless it is implemented. They are called by the task that connects, opens a
/// substream or drives the connection, as it happens, so they have to return soon and must not block;
/// hand what takes longer to another task.
#[allow(unused_variables)]
pub trait Events: fmt::Debug + Send + Sync + 'static {
    /// An attempt to connect begins: this side dials, or a dialler was let in by
    /// [`Incoming::accept`](crate::Incoming::accept).
    ///
    /// [`Events::connection_open`] or [`Events::connect_failed`] follows, with the same number.
    fn connection_opening(&self, connection: &ConnectionInfo) {}

    /// An attempt has failed; `error` is `None` if its future was dropped.
    fn connect_failed(&self, connection: &ConnectionInfo, error: Option<&(dyn Error + 'static)>) {}

    /// A connection is established and its peer authenticated.
    ///
    /// [`Events::connection_closed`] or [`Events::connection_failed`] follows.
    fn connection_open(&self, connection: &ConnectionInfo) {}

    /// This side begins to close a connection: no new substreams, those that exist are drained.
    fn connection_closing(&self, connection: &ConnectionInfo, cause: &ConnectionError) {}

    /// A connection has ended in an orderly way ([`ConnectionError::is_orderly`]), by either side.
    fn connection_closed(&self, connection: &ConnectionInfo, cause: &ConnectionError) {}

    /// A connection has failed.
    fn connection_failed(&self, connection: &ConnectionInfo, cause: &ConnectionError) {}

    /// The carrier measured a round trip with a ping of its own. WebSockets only: WebRTC has its
    /// consent checks.
    fn ping(&self, connection: &ConnectionInfo, round_trip: Duration) {}

    /// A substream was opened. Its protocol may not be agreed on yet.
    ///
    /// [`Events::substream_closed`] or [`Events::substream_reset`] follows.
    fn substream_opened(&self, connection: &ConnectionInfo, substream: SubstreamInfo) {}

    /// The protocol of a substream is known. Does not come with
    /// [`Negotiation::None`](crate::Negotiation::None).
    fn substream_negotiated(
        &self,
        connection: &ConnectionInfo,
        substream: SubstreamInfo,
        protocol: &str,
    ) {
    }

    /// A substream of the peer was refused with this code; nothing else is told of it.
    fn substream_refused(&self, connection: &ConnectionInfo, code: u32) {}

    /// A substream has ended without a reset; `outcome` says how the close of its write half went,
    /// [`CloseOutcome::Lost`] if its connection ended first.
    fn substream_closed(
        &self,
        connection: &ConnectionInfo,
        substream: SubstreamInfo,
        outcome: CloseOutcome,
        stats: &SubstreamStats,
    ) {
    }

    /// A substream was reset by `by`, with this code if one was given.
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

    /// The peer has granted more, after the writer had waited for so long.
    fn credit_resumed(
        &self,
        connection: &ConnectionInfo,
        substream: SubstreamInfo,
        waited: Duration,
    ) {
    }

    /// A payload begins: its header is sent, or has come and was not refused. `progress.resumed_from` and, of a
    /// payload whose length was not told, `progress.total` are not known yet.
    ///
    /// [`Events::payload_ended`] follows. This and the other events of payloads are called by the task that sends
    /// or receives it.
    fn payload_begun(
        &self,
        connection: &ConnectionInfo,
        substream: SubstreamInfo,
        progress: PayloadProgress,
    ) {
    }

    /// A payload ended before it began: this side refused it by its header, for want of one, or
    /// because too many are open, or the sender gave it up. Nothing else is told of it, and nothing
    /// at all if whoever waited for its header was dropped.
    fn payload_refused(
        &self,
        connection: &ConnectionInfo,
        substream: SubstreamInfo,
        error: &PayloadError,
    ) {
    }

    /// A payload has come further by
    /// [`PayloadConfig::progress_interval`](crate::payload::PayloadConfig::progress_interval) bytes or more, or
    /// is about to end: the last call, and there is at least one, has all that was `moved`.
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
