//! What a path does to datagrams, and what was done to them.

use std::ops::{Add, AddAssign};
use std::time::Duration;

/// How one direction between two hosts behaves. The default is a perfect path: no delay, no limit.
///
/// Fill in what matters and take the rest from the default:
///
/// ```
/// use std::time::Duration;
/// use anabranch::simulator::Conditions;
///
/// let path = Conditions {
///     loss: 0.01,
///     ..Conditions::round_trip(Duration::from_millis(50))
/// };
/// assert_eq!(path.latency, Duration::from_millis(25));
/// ```
///
/// A datagram meets them in this order: blackout, `mtu`, `rate` and `queue`, loss, corruption,
/// delay, reordering, duplication. So what is lost has taken its share of the rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conditions {
    /// Time that every datagram takes, beside what it waits for `rate`.
    pub latency: Duration,
    /// More time, from zero to this. It rises and falls as queues on a path do, about once in four
    /// times its length, so that datagrams keep their order.
    pub jitter: Duration,
    /// Probability that a datagram is lost, each for itself.
    pub loss: f64,
    /// Loss in bursts, beside `loss`.
    pub burst: Option<Burst>,
    /// Probability that a datagram arrives twice, the second up to a millisecond, or `jitter` if
    /// that is more, later.
    pub duplicate: f64,
    /// Probability that a datagram takes `reorder_delay` longer and those behind it do not wait.
    pub reorder: f64,
    /// How much later a reordered datagram arrives.
    pub reorder_delay: Duration,
    /// Probability that one to four bits of a datagram are flipped.
    pub corrupt: f64,
    /// Whether the receiving host finds that out and drops the datagram, as the checksum of UDP
    /// makes it do nearly always. If not, the changed bytes are delivered.
    pub checksum: bool,
    /// Bytes per second, headers of IP and UDP counted in; `None` for no limit.
    pub rate: Option<u64>,
    /// Bytes that may wait for `rate`; what finds it full is dropped.
    pub queue: usize,
    /// A full queue makes the sender wait (`WouldBlock`) in place of dropping: the bottleneck is its
    /// own network card.
    pub backpressure: bool,
    /// Largest packet that passes, headers of IP and UDP counted in. Larger ones vanish, as behind
    /// a router that neither fragments nor says so.
    pub mtu: Option<usize>,
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
            mtu: None,
        }
    }
}

impl Conditions {
    /// A perfect path whose both directions together take `time`.
    pub fn round_trip(time: Duration) -> Self {
        Self {
            latency: time / 2,
            ..Self::default()
        }
    }
}

/// Loss in bursts (Gilbert-Elliott): a path is good or bad, and each datagram may change that.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Burst {
    /// Probability that a good path is bad from this datagram on.
    pub enter: f64,
    /// Probability that a bad path is good from this datagram on: bursts are `1 / leave` datagrams
    /// long on average.
    pub leave: f64,
    /// Probability that a datagram is lost while the path is bad.
    pub loss: f64,
}

impl Burst {
    /// The share of datagrams that is lost in the long run.
    pub fn mean_loss(&self) -> f64 {
        self.loss * self.enter / (self.enter + self.leave)
    }
}

/// What happened to datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Sent by sockets, or injected.
    pub sent: u64,
    /// Bytes of those, without headers.
    pub sent_bytes: u64,
    /// Put into the buffer of a receiving socket.
    pub delivered: u64,
    /// Bytes of those, without headers.
    pub delivered_bytes: u64,
    /// Lost by chance, singly, in a burst, or by a checksum.
    pub lost: u64,
    /// Sent on twice; the second copies.
    pub duplicated: u64,
    /// Delayed so that others can overtake them.
    pub reordered: u64,
    /// Changed; those that a checksum caught are counted as lost too.
    pub corrupted: u64,
    /// Dropped by a full queue.
    pub dropped_by_queue: u64,
    /// Dropped for their size.
    pub dropped_by_mtu: u64,
    /// Dropped in a blackout, or from or to a silent host.
    pub dropped_by_blackout: u64,
    /// Dropped by the tap.
    pub dropped_by_tap: u64,
    /// Dropped by the full buffer of a receiving socket.
    pub dropped_by_receiver: u64,
    /// Arrived where no socket was, or was no more.
    pub unreachable: u64,
}

impl Counters {
    /// Datagrams, second copies included, whose way has ended: `sent + duplicated` less those
    /// that are under way.
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
