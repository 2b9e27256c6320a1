//! The conditions of a path, and the counters of what it did to datagrams.

use std::ops::{Add, AddAssign};
use std::time::Duration;

/// How one direction between two hosts treats datagrams. The default is a perfect path: no delay,
/// no loss, no limit.
///
/// Set the fields that matter and take the others from the default:
///
/// ```
/// use std::time::Duration;
/// use anabranch_testkit::simulator::Conditions;
///
/// let path = Conditions {
///     loss: 0.01,
///     ..Conditions::round_trip(Duration::from_millis(50))
/// };
/// assert_eq!(path.latency, Duration::from_millis(25));
/// ```
///
/// The conditions apply in this order: blackout, `mtu`, `rate` and `queue`, loss, corruption,
/// delay, reordering, duplication. A lost datagram has therefore used its share of `rate`.
///
/// Probabilities are between 0.0 and 1.0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conditions {
    /// One-way delay of every datagram, in addition to the time it waits for `rate`.
    pub latency: Duration,
    /// Maximum of a variable delay that is added to `latency`. It rises and falls as queues on a
    /// path do, with a period of about four times this value, and never reorders datagrams.
    pub jitter: Duration,
    /// Probability that a datagram is lost, independent of all others.
    pub loss: f64,
    /// Loss in bursts, in addition to `loss`.
    pub burst: Option<Burst>,
    /// Probability that a datagram arrives twice. The copy arrives up to 1 ms later, or up to
    /// `jitter` if that is longer.
    pub duplicate: f64,
    /// Probability that a datagram is delayed by `reorder_delay`, so that later ones overtake it.
    pub reorder: f64,
    /// Additional delay of a reordered datagram. Default: 10 ms.
    pub reorder_delay: Duration,
    /// Probability that one to four bits of a datagram are flipped.
    pub corrupt: f64,
    /// Whether the receiving host detects corruption and drops the datagram, as the UDP checksum
    /// nearly always does. If not, the changed bytes are delivered.
    pub checksum: bool,
    /// Bandwidth in bytes per second, IP and UDP headers included; `None` for no limit.
    pub rate: Option<u64>,
    /// Bytes that may wait for `rate`; a datagram that does not fit is dropped. Default: 256 KiB.
    pub queue: usize,
    /// Whether a full queue blocks the sender (`WouldBlock`) instead of dropping, as if the
    /// bottleneck were its own network card.
    pub backpressure: bool,
    /// Largest packet that passes, in bytes with IP and UDP headers; `None` for no limit. Default:
    /// 1 500, as on Ethernet. Larger packets are dropped silently, as by a router that neither
    /// fragments nor sends ICMP.
    pub mtu: Option<usize>,
    /// Bytes waiting for `rate` above which a datagram with ECT is marked with Congestion
    /// Experienced (RFC 3168), as by a router with a simple AQM; `None` for a path that marks
    /// nothing.
    pub mark_above: Option<usize>,
    /// Whether the path clears the ECN codepoint of every datagram.
    pub clears_ecn: bool,
}

impl Default for Conditions {
    fn default() -> Self {
        Self {
            latency: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            burst: None,
            duplicate: 0.0,
            reorder: 0.0,
            reorder_delay: Duration::from_millis(10),
            corrupt: 0.0,
            checksum: false,
            rate: None,
            queue: 256 * 1024,
            backpressure: false,
            mtu: Some(1500),
            mark_above: None,
            clears_ecn: false,
        }
    }
}

impl Conditions {
    /// Returns a perfect path whose two directions together take `time`.
    pub fn round_trip(time: Duration) -> Self {
        Self {
            latency: time / 2,
            ..Self::default()
        }
    }
}

/// Loss in bursts (Gilbert-Elliott model): the path is good or bad, and may change its state at
/// each datagram.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Burst {
    /// Probability that a good path turns bad at a datagram.
    pub enter: f64,
    /// Probability that a bad path turns good at a datagram. The mean length of a burst is
    /// `1 / leave` datagrams.
    pub leave: f64,
    /// Probability that a datagram is lost while the path is bad.
    pub loss: f64,
}

impl Burst {
    /// Returns the long-term share of lost datagrams. NaN if `enter` and `leave` are both zero.
    pub fn mean_loss(&self) -> f64 {
        self.loss * self.enter / (self.enter + self.leave)
    }
}

/// Numbers of datagrams by what happened to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Sent by sockets, or injected.
    pub sent: u64,
    /// UDP payload of those, in bytes.
    pub sent_bytes: u64,
    /// Put into the receive buffer of a socket.
    pub delivered: u64,
    /// UDP payload of those, in bytes.
    pub delivered_bytes: u64,
    /// Lost at random, in a burst, or to a checksum.
    pub lost: u64,
    /// Second copies of duplicated datagrams.
    pub duplicated: u64,
    /// Delayed by [`Conditions::reorder_delay`].
    pub reordered: u64,
    /// Sent with an ECN codepoint (RFC 3168).
    pub ect: u64,
    /// Marked with Congestion Experienced.
    pub marked: u64,
    /// Corrupted. Those that a checksum caught are counted in `lost` as well.
    pub corrupted: u64,
    /// Dropped because the queue was full.
    pub dropped_by_queue: u64,
    /// Dropped because they exceeded the MTU.
    pub dropped_by_mtu: u64,
    /// Dropped in a blackout, or because either host was silent.
    pub dropped_by_blackout: u64,
    /// Dropped by the tap.
    pub dropped_by_tap: u64,
    /// Dropped because the receive buffer of the socket was full.
    pub dropped_by_receiver: u64,
    /// Arrived at an address without a socket.
    pub unreachable: u64,
}

impl Counters {
    /// Returns the number of datagrams, second copies included, that were delivered or dropped:
    /// `sent + duplicated` minus those in flight.
    pub fn ended(&self) -> u64 {
        self.delivered
            + self.lost
            + self.dropped_by_queue
            + self.dropped_by_mtu
            + self.dropped_by_blackout
            + self.dropped_by_tap
            + self.dropped_by_receiver
            + self.unreachable
    }
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Add for Counters {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            sent: self.sent + other.sent,
            sent_bytes: self.sent_bytes + other.sent_bytes,
            delivered: self.delivered + other.delivered,
            delivered_bytes: self.delivered_bytes + other.delivered_bytes,
            lost: self.lost + other.lost,
            duplicated: self.duplicated + other.duplicated,
            reordered: self.reordered + other.reordered,
            ect: self.ect + other.ect,
            marked: self.marked + other.marked,
            corrupted: self.corrupted + other.corrupted,
            dropped_by_queue: self.dropped_by_queue + other.dropped_by_queue,
            dropped_by_mtu: self.dropped_by_mtu + other.dropped_by_mtu,
            dropped_by_blackout: self.dropped_by_blackout + other.dropped_by_blackout,
            dropped_by_tap: self.dropped_by_tap + other.dropped_by_tap,
            dropped_by_receiver: self.dropped_by_receiver + other.dropped_by_receiver,
            unreachable: self.unreachable + other.unreachable,
        }
    }
}
