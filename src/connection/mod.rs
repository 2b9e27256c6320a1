//! Multiplexes substreams over one carrier: the application's handles, and the driver.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::timeout;

use crate::carrier::Carrier;
use crate::events::{ConnectionInfo, Initiator};
use crate::identity::PeerId;
use crate::substream::Substream;

mod closing;
mod config;
mod deadlines;
mod draining;
mod driver;
mod entry;
mod error;
#[cfg(any(feature = "webrtc", feature = "websocket"))]
mod guarded;
mod ineffective;
mod negotiate;
mod open;
mod opening;
mod peer_credit;
mod reader;
mod received;
mod report;
mod service;
mod shared;
#[cfg(test)]
mod shared_tests;
mod stats;
mod substreams;
mod turns;
mod unused;
mod work;
mod writer;

pub use crate::error::{ConnectionError, WebSocketError};
pub use config::{CeilingPolicy, Config, ConfigError, FinAckPolicy, Negotiation};
pub use driver::Driver;
pub use error::OpenError;
#[cfg(any(feature = "webrtc", feature = "websocket"))]
pub(crate) use guarded::spawn;
pub use open::Opening;
#[cfg(feature = "websocket")]
pub(crate) use shared::Attachment;
pub(crate) use shared::{ConnectionShared, Findings};
pub use stats::ConnectionStats;

/// A connection: opens and accepts substreams.
///
/// Cheap to clone; all clones refer to the same connection. It closes when the last clone and the
/// last substream are dropped.
pub struct Connection {
    shared: Arc<ConnectionShared>,
}

impl Connection {
    /// Makes a connection over any carrier, and the driver that has to be polled for it.
    ///
    /// Endpoints call this for their connections; call it for custom carriers and in tests. Check
    /// `config` with [`Config::validate`] first: it is not checked here, and a connection with an
    /// invalid one may hang.
    ///
    /// # Panics
    /// Outside a tokio runtime with timers enabled.
    pub fn over<C: Carrier>(carrier: C, config: Arc<Config>) -> (Self, Driver<C>) {
        let info = ConnectionInfo::new(Initiator::Local, None);
        Self::authenticated(carrier, config, info, Findings::default())
    }

    pub(crate) fn authenticated<C: Carrier>(
        carrier: C,
        config: Arc<Config>,
        info: ConnectionInfo,
        findings: Findings,
    ) -> (Self, Driver<C>) {
        let shared = ConnectionShared::new(config, info, findings);
        shared.add_handle();
        shared.emit(|events, connection| events.connection_open(connection));
        let driver = Driver::new(carrier, Arc::clone(&shared));
        (Self { shared }, driver)
    }

    #[cfg(feature = "webrtc")]
    pub(crate) fn shared(&self) -> &Arc<ConnectionShared> {
        &self.shared
    }

    /// Opens a substream for `protocol`, negotiated as [`Config::negotiation`] says.
    ///
    /// Waits, without a time limit, while the peer accepts no more substreams: a peer that runs
    /// this library announces its limit ([`Config::max_inbound_substreams`]). Up to 64 may be
    /// opened before the peer's limit is known.
    ///
    /// With a peer that runs this library the substream is returned at once, and what is written
    /// goes out with the open, unless [`Config::lazy_negotiation`] is off. If the peer does not
    /// support the protocol, it resets the substream with
    /// [`code::NEGOTIATION_FAILED`](crate::substream::code::NEGOTIATION_FAILED): the first read,
    /// and [`Substream::finish`], fail. The same holds for [`Negotiation::ChannelLabel`].
    ///
    /// # Errors
    /// With [`Negotiation::MultistreamSelect`] and any other peer:
    /// [`OpenError::UnsupportedProtocol`] if the peer does not support the protocol,
    /// [`OpenError::TimedOut`] if it does not answer within [`Config::open_timeout`].
    ///
    /// # Cancel safety
    /// If the future is dropped, the substream is closed.
    pub fn open(&self, protocol: &str) -> Opening {
        self.open_any(&[protocol])
    }

    /// Opens a substream for the first of `protocols` that the peer supports.
    ///
    /// [`Substream::protocol`] returns which one that is. With [`Negotiation::ChannelLabel`] it is
    /// the first of them, whatever the peer supports. With [`Negotiation::MultistreamSelect`] more
    /// than one protocol takes a round trip. Errors and cancel safety as for [`Connection::open`].
    pub fn open_any(&self, protocols: &[&str]) -> Opening {
        Opening::new(&self.shared, protocols)
    }

    /// The next substream that the peer opened, once its protocol is negotiated.
    ///
    /// `Ok(None)` when either side has closed the connection; an error when it has failed.
    /// Unaccepted substreams count against [`Config::max_inbound_substreams`].
    ///
    /// # Cancel safety
    /// Nothing is lost if the future is dropped.
    pub async fn accept(&self) -> Result<Option<Substream>, ConnectionError> {
        self.shared.accept().await
    }

    /// [`Connection::accept`] as a poll function. Of several tasks that call it, the last is woken.
    pub fn poll_accept(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Substream>, ConnectionError>> {
        self.shared.poll_accept(cx)
    }

    /// Replaces [`Config::fin_ack`] for this connection. For applications that learn what the peer
    /// supports after connecting, for example from identify.
    ///
    /// A FIN that waits for our own, under [`FinAckPolicy::AfterOwnFin`], still waits for it, and
    /// is then answered by the new policy.
    pub fn set_fin_ack(&self, policy: FinAckPolicy) {
        self.shared.set_fin_ack(policy);
    }

    /// Replaces [`Config::expect_fin_ack`] for this connection. For applications that learn what
    /// the peer supports after connecting. Applies to every FIN that is delivered, or whose wait
    /// ends, from then on.
    pub fn expect_fin_ack(&self, expected: bool) {
        self.shared.set_expect_fin_ack(expected);
    }

    /// Replaces [`Config::max_inbound_substreams`] for this connection. A peer that supports credit
    /// learns of more as soon as its opens would wait, or at once if it is a quarter more. Less
    /// closes nothing, and takes nothing back that was announced: it may open those, and learns of
    /// no more until enough have ended, as in QUIC. New substreams of any other peer are refused
    /// from now on.
    pub fn set_max_inbound_substreams(&self, max: usize) {
        self.shared.set_max_inbound_substreams(max);
    }

    /// Replaces [`Config::receive_window`] for substreams that are opened from now on, by either
    /// side. Those that are open keep theirs: credit can not be revoked.
    ///
    /// # Errors
    /// [`ConfigError`] as from [`Config::validate`], and nothing changes.
    pub fn set_receive_window(&self, bytes: u32) -> Result<(), ConfigError> {
        self.shared.config.check_receive_window(bytes)?;
        self.shared.set_receive_window(bytes);
        Ok(())
    }

    /// Replaces [`Config::connection_ceiling`] for this connection. A higher one takes effect with
    /// the next read of each substream, a lower one for credit that is granted from now on: what
    /// was granted, and 32 KiB for each substream, may still arrive. For peers without credit,
    /// which can not be asked to send less, the greatest one that was ever set holds.
    ///
    /// # Errors
    /// [`ConfigError`] if it is below [`Config::substream_ceiling`], and nothing changes.
    pub fn set_connection_ceiling(&self, bytes: usize) -> Result<(), ConfigError> {
        self.shared.config.check_connection_ceiling(bytes)?;
        self.shared.siblings.set_connection_ceiling(bytes);
        Ok(())
    }

    /// Replaces [`Config::idle_timeout`] for this connection. If it has no substreams now, the time
    /// begins anew.
    ///
    /// # Errors
    /// [`ConfigError::ZeroTimeout`], and nothing changes.
    pub fn set_idle_timeout(&self, timeout: Option<Duration>) -> Result<(), ConfigError> {
        if let Some(timeout) = timeout {
            ConfigError::require_time("idle_timeout", timeout)?;
        }
        self.shared.set_idle_timeout(timeout);
        Ok(())
    }

    /// Closes the connection and waits until it has ended. Accepted data is delivered, within
    /// [`Config::teardown_timeout`], then the peer is notified. A substream that was not shut down,
    /// finished or dropped before is then reset with
    /// [`code::SHUTDOWN`](crate::substream::code::SHUTDOWN): its reader gets an error after the
    /// last byte, never the end of the stream. Data that the peer has not finished is lost: the
    /// peer is asked to stop, and reads fail at once with
    /// [`SubstreamError::ConnectionLost`](crate::SubstreamError). If the peer does not answer with
    /// its FIN, the close takes the whole timeout.
    ///
    /// # Cancel safety
    /// The close goes on if the future is dropped.
    pub async fn close(&self) {
        self.shared.begin_close();
        self.shared.ended().await;
    }

    /// [`Connection::close`] as a poll function: begins the close, and completes when the
    /// connection has ended. Of several tasks that call this or [`Connection::poll_closed`], the
    /// last is woken.
    pub fn poll_close(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.shared.begin_close();
        self.shared.poll_ended(cx).map(drop)
    }

    /// Like [`Connection::close`], with a code and a reason for the peer. A peer that runs this
    /// library, and so supports credit, sees both as [`ConnectionError::ClosedByPeerWith`]: over
    /// WebRTC the first 1 024 bytes of the reason, over a WebSocket 123. Over a WebSocket the close
    /// frame carries both to every other peer as well. All peers receive the code in the
    /// STOP_SENDING of every substream that they still write to. On this side
    /// [`Connection::closed`], [`Connection::close_reason`] and the errors of substreams report
    /// both, as [`ConnectionError::ClosedWith`].
    ///
    /// The first close wins. Cancel safety as for [`Connection::close`].
    pub async fn close_with(&self, code: u32, reason: impl Into<String>) {
        let reason = reason.into();
        self.shared
            .begin_close_for(ConnectionError::ClosedWith { code, reason });
        self.shared.ended().await;
    }

    /// Ends the connection in peace: no new substreams are opened, in either direction, and when
    /// those that are open have ended, accepted ones and unaccepted ones, the connection closes.
    /// What is left after `limit` is cut off, as [`Connection::close`] does. Returns how many
    /// substreams that were, unaccepted ones included that have ended; 0 if none was left.
    ///
    /// A peer that runs this library is told, as by GOAWAY in HTTP/2 (`docs/wire.md` section 3):
    /// its [`Connection::open`] fails at once, with [`OpenError::Draining`]. Substreams that it
    /// had opened before it knew are accepted and served: keep calling [`Connection::accept`]. New
    /// substreams of other peers, and of one that does not answer within [`Config::open_timeout`],
    /// are refused.
    ///
    /// # Cancel safety
    /// The drain goes on if the future is dropped, without a limit.
    pub async fn drain(&self, limit: Duration) -> usize {
        self.shared.begin_drain();
        if timeout(limit, self.shared.ended()).await.is_ok() {
            return 0;
        }
        let open = usize::try_from(self.stats().substreams).unwrap_or(usize::MAX);
        let cut = open.saturating_add(self.shared.ended_unaccepted());
        self.close().await;
        cut
    }

    /// Whether this side or the peer drains the connection: it takes no new substreams, and
    /// [`Connection::open`] fails with [`OpenError::Draining`]. It stays so after the end. A pool
    /// dials another connection then. A peer that has no support for this drains unnoticed.
    pub fn is_draining(&self) -> bool {
        self.shared.is_draining() || self.shared.is_drained_by_peer()
    }

    /// Waits until the connection has ended and returns the cause. Cancel safe.
    pub async fn closed(&self) -> ConnectionError {
        self.shared.ended().await
    }

    /// [`Connection::closed`] as a poll function. Of several tasks that call this or
    /// [`Connection::poll_close`], the last is woken.
    pub fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<ConnectionError> {
        self.shared.poll_ended(cx)
    }

    /// The cause of the end of the connection, if it has ended.
    pub fn close_reason(&self) -> Option<ConnectionError> {
        self.shared.siblings.cause()
    }

    /// The authenticated identity of the peer; `None` for a connection without Noise.
    pub fn peer_id(&self) -> Option<PeerId> {
        self.shared.siblings.events.info.peer
    }

    /// Address of the peer when the connection was made; `None` for carriers without addresses.
    pub fn remote_address(&self) -> Option<SocketAddr> {
        self.shared.siblings.events.info.remote
    }

    /// The certificate (DER) that the peer has proven in TLS over a WebSocket: that of a listener,
    /// or of a client whose listener requires one
    /// ([`TlsIdentity::with_client_trust`](crate::websocket::TlsIdentity::with_client_trust)).
    /// `None` for any other client, without TLS or behind a proxy, and over other carriers.
    #[cfg(feature = "websocket")]
    pub fn peer_certificate(&self) -> Option<&[u8]> {
        self.shared.certificate.as_deref()
    }

    /// What the hook of the upgrade request has returned
    /// ([`RequestPolicy::with_hook`](crate::websocket::RequestPolicy::with_hook)), for example the
    /// user; `None` if it is of another type, and for a connection that came without such a hook.
    #[cfg(feature = "websocket")]
    pub fn attachment<T: std::any::Any + Send + Sync>(&self) -> Option<&T> {
        self.shared.attachment.as_ref()?.downcast_ref()
    }

    /// Number of this connection, unique within the process; also used by its
    /// [events](crate::events::Events) and `tracing` spans.
    pub fn id(&self) -> u64 {
        self.shared.siblings.events.info.id
    }

    /// Counters since the connection was made.
    pub fn stats(&self) -> ConnectionStats {
        self.shared.counters.snapshot(
            self.shared.siblings.unread.get(),
            self.shared.siblings.queued.get(),
        )
    }

    /// Whether all queues of this connection are empty. For checks at the end of tests.
    #[doc(hidden)]
    pub fn is_idle(&self) -> bool {
        self.shared.is_idle()
    }
}

impl Clone for Connection {
    fn clone(&self) -> Self {
        self.shared.add_handle();
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.drop_handle();
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("id", &self.shared.siblings.events.info.id)
            .field("peer", &self.shared.siblings.events.info.peer)
            .field("ended", &self.shared.siblings.cause())
            .finish_non_exhaustive()
    }
}
