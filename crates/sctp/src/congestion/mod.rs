//! Congestion control: the interface between the sender and its controller.
//!
//! The sender measures (round trips, delivery rates, losses) and obeys (congestion window, pacing
//! rate). A [`Controller`] decides.

use std::fmt;
use std::time::{Duration, Instant};

mod cubic;
mod heed;
mod hystart;

pub use cubic::Cubic;
pub use heed::Heed;

/// Initial window in packets (RFC 6928, RFC 9002 section 7.2).
pub(crate) const INITIAL_PACKETS: f64 = 10.0;

/// Minimum window in packets (RFC 9002 section 7.2).
pub(crate) const MIN_PACKETS: f64 = 2.0;

/// The congestion controller of an association.
///
/// `docs/congestion.md` in the repository describes Heed, with what was measured beside other
/// controllers.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub enum CongestionControl {
    /// CUBIC that judges a loss by the delay it comes with, and bounds the queue it builds.
    #[default]
    Heed,
    /// CUBIC (RFC 9438) with HyStart++ (RFC 9406), paced: every loss is a sign of congestion.
    Cubic,
    /// A controller of the application. The argument is the maximum length of a packet in bytes.
    Custom(fn(usize) -> Box<dyn Controller>),
}

impl CongestionControl {
    pub(crate) fn controller(self, max_packet: usize) -> Box<dyn Controller> {
        match self {
            Self::Heed => Box::new(Heed::new(max_packet)),
            Self::Cubic => Box::new(Cubic::new(max_packet)),
            Self::Custom(make) => make(max_packet),
        }
    }
}

/// A congestion controller of one association.
///
/// Sizes are bytes of DATA chunks, headers included; rates are bytes per second.
pub trait Controller: fmt::Debug + Send {
    /// Handles what one SACK, or the timer of loss detection, has revealed.
    fn on_ack(&mut self, ack: &Ack<'_>);

    /// Handles the `count`th consecutive probe timeout without an acknowledgement. From the second
    /// on, everything that was in flight counts as lost, and is not reported to
    /// [`Controller::on_ack`].
    fn on_timeout(&mut self, now: Instant, count: u32);

    /// Everything that counted as lost since the last reduction has arrived after all: the
    /// reduction can be undone.
    fn on_spurious_loss(&mut self, now: Instant) {
        let _ = now;
    }

    /// The congestion window: maximum bytes in flight.
    fn cwnd(&self) -> usize;

    /// How fast to send. `None` is as fast as the window allows.
    fn pacing_rate(&self) -> Option<f64>;
}

/// What a SACK, or the timer of loss detection, has revealed.
#[derive(Debug, Clone, Copy)]
pub struct Ack<'a> {
    /// The time.
    pub now: Instant,
    /// Bytes newly acknowledged; 0 if only losses were detected.
    pub acked: usize,
    /// Packets that count as lost from now on.
    pub lost: &'a [Lost],
    /// RTT of the newest packet acknowledged; `None` if an earlier transmission was acknowledged.
    pub rtt: Option<Duration>,
    /// SRTT (RFC 6298); zero before the first sample.
    pub srtt: Duration,
    /// Delivery rate while the newest packet acknowledged was in flight.
    pub delivery_rate: Option<f64>,
    /// The sender had less to send than it was allowed to while the rate was sampled.
    pub is_app_limited: bool,
    /// Bytes delivered so far.
    pub delivered: u64,
    /// The same when the newest packet acknowledged was sent.
    pub prior_delivered: u64,
    /// Bytes in flight after this acknowledgement.
    pub in_flight: usize,
    /// A round trip has ended: the newest packet acknowledged was sent after its start.
    pub is_round_start: bool,
    /// Window or pacing rate limited the sender while what is acknowledged was in flight.
    pub is_cwnd_limited: bool,
    /// Length of the longest packets at the moment: more than at first once the path MTU is known.
    pub max_packet: usize,
    /// Packets newly reported as marked with Congestion Experienced (RFC 3168).
    pub ce: usize,
}

impl Ack<'_> {
    /// When the newest packet acknowledged was sent, if that is known.
    pub fn newest_sent_at(&self) -> Option<Instant> {
        self.now.checked_sub(self.rtt?)
    }

    /// Whether CE marks are reported of which some may be of packets sent after a reduction at
    /// `reduced_at`: they are a reason for another one (RFC 9002 section 7.1). So there is at most
    /// one a round trip.
    pub fn is_ce_since(&self, reduced_at: Option<Instant>) -> bool {
        let is_after = |at: Instant| match self.newest_sent_at() {
            Some(sent_at) => sent_at > at,
            None => self.now.saturating_duration_since(at) > self.srtt,
        };
        self.ce > 0 && reduced_at.is_none_or(is_after)
    }
}

/// A packet that counts as lost.
#[derive(Debug, Clone, Copy)]
pub struct Lost {
    /// Its number. Numbers count transmissions and are never reused.
    pub number: u64,
    /// Its bytes.
    pub bytes: usize,
    /// When it was sent.
    pub sent_at: Instant,
}
