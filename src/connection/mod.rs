//! Many substreams over one carrier: handles for the application, and the driver.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::carrier::Carrier;
use crate::events::{ConnectionInfo, Initiator};
use crate::identity::PeerId;
use crate::substream::Substream;

mod config;
mod deadlines;
mod driver;
mod entry;
mod error;
#[cfg(feature = "transport")]
mod guarded;
mod ineffective;
mod link;
#[cfg(test)]
mod link_tests;
mod negotiate;
mod opening;
mod output;
mod reading;
mod received;
mod stats;
mod tell;
mod unused;
mod work;

pub use crate::error::{ConnectionError, WebSocketError};
pub use config::{CeilingPolicy, Config, ConfigError, FinAckPolicy, Negotiation};
pub use driver::Driver;
pub use error::OpenError;
#[cfg(feature = "transport")]
pub(crate) use guarded::Guarded;
pub(crate) use link::Link;
use link::OpenRequest;
pub use stats::ConnectionStats;

/// A connection: opens and accepts substreams.
///
/// Cheap to clone; every clone is the same connection. When the last clone and the last substream
/// are dropped, the connection closes.
pub struct Connection {
    link: Arc<Link>,
}

impl Connection {
    /// Makes a connection over any carrier, and the driver that has to be polled for it.
    ///
    /// Endpoints do this for their connections; it is for carriers of your own, and for tests. Check `config` with
    /// [`Config::validate`] before: it is not refused here, and a connection with one that can not work may hang.
    ///
    /// # Panics
    /// Outside of a tokio runtime with its timers enabled.
    pub fn over<C: Carrier>(carrier: C, config: Arc<Config>) -> (Self, Driver<C>) {
        let info = ConnectionInfo::new(Initiator::Local, None);
        Self::authenticated(carrier, config, info)
    }

    pub(crate) fn authenticated<C: Carrier>(
        carrier: C,
        config: Arc<Config>,
        info: ConnectionInfo,
    ) -> (Self, Driver<C>) {
        let link = Link::new(config, info);
        link.add_handle();
        link.tell(|events, connection| events.connection_open(connection));
        let driver = Driver::new(carrier, Arc::clone(&link));
        (Self { link }, driver)
    }

    #[cfg(feature = "webrtc")]
    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Opens a substream for `protocol`, negotiated as the [`Config`] says.
    ///
    /// Waits, for as long as it takes, while the peer accepts no more of them: a peer of ours says how many it does
    /// ([`Config::max_inbound_substreams`]). Until it is known what the peer is, 64 may be opened.
    ///
    /// # Errors
    /// With [`Negotiation::MultistreamSelect`]: [`OpenError::UnsupportedProtocol`] if the peer does
    /// not speak it, [`OpenError::TimedOut`] if it does not answer within [`Config::open_timeout`].
    /// With [`Negotiation::ChannelLabel`] the substream is returned at once, and one that the peer
    /// does not speak is reset with
    /// [`code::NEGOTIATION_FAILED`](crate::substream::code::NEGOTIATION_FAILED).
    ///
    /// # Cancel safety
    /// If the future is dropped, the substream is closed.
    pub async fn open(&self, protocol: &str) -> Result<Substream, OpenError> {
        self.open_any(&[protocol]).await
    }

    /// Opens a substream for the first of `protocols` that the peer speaks.
    ///
    /// [`Substream::protocol`] tells which one that is. With [`Negotiation::ChannelLabel`] it is
    /// the first of them, whatever the peer speaks. Errors and cancel safety as
    /// [`Connection::open`].
    pub async fn open_any(&self, protocols: &[&str]) -> Result<Substream, OpenError> {
        let config = &self.link.config;
        match config.negotiation {
            Negotiation::MultistreamSelect => {
                let substream = self.open_channel("").await?;
                let limit = config.open_timeout;
                let substream = negotiate::negotiate_outbound(substream, protocols, limit).await?;
                tell::negotiated(&self.link, &substream);
                Ok(substream)
            }
            Negotiation::ChannelLabel => {
                let label = protocols.first().copied().unwrap_or_default();
                let mut substream = self.open_channel(label).await?;
                substream.set_protocol(label.into());
                tell::negotiated(&self.link, &substream);
                Ok(substream)
            }
            Negotiation::None => self.open_channel("").await,
        }
    }

    async fn open_channel(&self, label: &str) -> Result<Substream, OpenError> {
        let (reply, opened) = oneshot::channel();
        self.link.request_open(OpenRequest {
            label: label.to_owned(),
            reply,
        });
        // Without a limit of its own: the driver answers as soon as the peer has room, or when the connection ends.
        match opened.await {
            Ok(result) => result,
            // The driver is gone without an answer.
            Err(_) => Err(OpenError::Connection(
                self.link
                    .siblings
                    .cause()
                    .unwrap_or(ConnectionError::ClosedLocally),
            )),
        }
    }

    /// The next substream that the peer opened, once its protocol is agreed on.
    ///
    /// `Ok(None)` when the connection was closed by either side; an error when it failed.
    /// Substreams that are not accepted count against [`Config::max_inbound_substreams`].
    ///
    /// # Cancel safety
    /// Nothing is lost if the future is dropped.
    pub async fn accept(&self) -> Result<Option<Substream>, ConnectionError> {
        self.link.accept().await
    }

    /// Changes when FIN is answered with FIN_ACK, from [`Config::fin_ack`] to `policy`, for this
    /// connection. For applications that learn what the peer is when they are connected, from identify
    /// for one.
    ///
    /// A FIN that waits for our own, under [`FinAckPolicy::AfterOwnFin`], goes on waiting for that and
    /// is then treated by the new policy.
    pub fn set_fin_ack(&self, policy: FinAckPolicy) {
        self.link.set_fin_ack(policy);
    }

    /// Changes whether FIN_ACK is expected of the peer, from [`Config::expect_fin_ack`], for this connection. For
    /// applications that learn what the peer is when they are connected. A FIN that is delivered from
    /// then on, or whose wait ends then, is treated so.
    pub fn expect_fin_ack(&self, expected: bool) {
        self.link.set_expect_fin_ack(expected);
    }

    /// Closes the connection and waits until that is done: what was accepted for sending is
    /// delivered, within [`Config::teardown_timeout`], then the peer is told. A substream that was
    /// not shut down, finished or dropped before is then reset with
    /// [`code::SHUTDOWN`](crate::substream::code::SHUTDOWN): its reader gets an error after the last
    /// byte, never the end of the stream. What the peer has not finished
    /// is lost: it is asked to stop, and reads fail at once with
    /// [`SubstreamError::ConnectionLost`](crate::SubstreamError). A peer that does not answer that with its FIN
    /// makes the close take all of the timeout.
    ///
    /// # Cancel safety
    /// The close goes on if the future is dropped.
    pub async fn close(&self) {
        self.link.begin_close();
        self.link.ended().await;
    }

    /// As [`Connection::close`], and says why. A peer of ours, which is one that knows credit, sees both as
    /// [`ConnectionError::ClosedByPeerWith`]: over WebRTC the first 1 024 bytes of the reason, over a WebSocket 123,
    /// and there every other peer as well, by the close frame. All peers get the code in the
    /// STOP_SENDING of every substream that they still write to. On this side [`Connection::closed`], [`Connection::close_reason`] and the errors of substreams tell both, as
    /// [`ConnectionError::ClosedWith`].
    ///
    /// The first close counts. Cancel safety as [`Connection::close`].
    pub async fn close_with(&self, code: u32, reason: impl Into<String>) {
        let reason = reason.into();
        self.link
            .begin_close_for(ConnectionError::ClosedWith { code, reason });
        self.link.ended().await;
    }

    /// Waits until the connection has ended and returns why. Cancel safe.
    pub async fn closed(&self) -> ConnectionError {
        self.link.ended().await
    }

    /// Why the connection ended, if it has.
    pub fn close_reason(&self) -> Option<ConnectionError> {
        self.link.siblings.cause()
    }

    /// The authenticated identity of the peer; `None` where the connection was made without Noise.
    pub fn peer_id(&self) -> Option<PeerId> {
        self.link.siblings.audience.info.peer
    }

    /// Where the peer was when the connection was made; `None` for carriers without addresses.
    pub fn remote_address(&self) -> Option<SocketAddr> {
        self.link.siblings.audience.info.remote
    }

    /// Number of this connection, unique within the process; that of its
    /// [events](crate::events::Events) and `tracing` spans.
    pub fn id(&self) -> u64 {
        self.link.siblings.audience.info.id
    }

    /// Counts since the connection was made.
    pub fn stats(&self) -> ConnectionStats {
        self.link.counters.snapshot(
            self.link.siblings.unread.get(),
            self.link.siblings.queued.get(),
        )
    }

    /// Whether no queue of this connection holds anything. For tests that end with it.
    #[doc(hidden)]
    pub fn is_idle(&self) -> bool {
        self.link.is_idle()
    }
}

impl Clone for Connection {
    fn clone(&self) -> Self {
        self.link.add_handle();
        Self {
            link: Arc::clone(&self.link),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.link.drop_handle();
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("id", &self.link.siblings.audience.info.id)
            .field("peer", &self.link.siblings.audience.info.peer)
            .field("ended", &self.link.siblings.cause())
            .finish_non_exhaustive()
    }
}
