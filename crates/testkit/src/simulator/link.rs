//! One direction between two hosts.

use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::conditions::{Conditions, Counters};
use anabranch::udp::Ecn;

/// Minimum spread of the second copy of a datagram.
const DUPLICATE_SPREAD: Duration = Duration::from_millis(1);

/// Minimum time between two random delays.
const JITTER_STEP: Duration = Duration::from_millis(20);

/// Bytes of the IP and UDP headers.
fn headers(ip: IpAddr) -> usize {
    match ip {
        IpAddr::V4(_) => 28,
        IpAddr::V6(_) => 48,
    }
}

/// Purpose of a random number. Each purpose has its own sequence, so that changing one condition
/// leaves the effects of the others as they were.
#[derive(Debug, Clone, Copy)]
enum Roll {
    BurstTurn = 1,
    BurstLoss,
    Loss,
    Corrupt,
    CorruptWhere,
    Reorder,
    Duplicate,
    DuplicateDelay,
    /// Drawn by time, not by datagram.
    Jitter,
}

/// The random numbers of one datagram. They depend only on the seed, the link and the datagram's
/// number, so neither another datagram's fate nor an update of the crate `rand` shifts them.
#[derive(Debug, Clone, Copy)]
struct Dice(u64);

impl Dice {
    fn bits(self, roll: Roll) -> u64 {
        mix(self.0 ^ mix(roll as u64))
    }

    /// A number in `0.0..1.0`.
    fn roll(self, roll: Roll) -> f64 {
        (self.bits(roll) >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn chance(self, roll: Roll, probability: f64) -> bool {
        self.roll(roll) < probability
    }
}

/// The finaliser of SplitMix64.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

fn mix_address(seed: u64, ip: IpAddr) -> u64 {
    let bits = match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits(),
    };
    mix(mix(seed ^ (bits >> 64) as u64) ^ bits as u64)
}

/// When a datagram arrives, and what happens to it on its path.
#[derive(Debug)]
pub(super) struct Carried {
    pub(super) at: Instant,
    pub(super) second: Option<Instant>,
    /// Selects the bits that are flipped.
    pub(super) corruption: Option<u64>,
    pub(super) ecn: Ecn,
}

/// The state of one direction between two hosts.
#[derive(Debug)]
pub(super) struct Link {
    key: u64,
    /// Number of the next datagram.
    number: u64,
    /// The path is in its bad state (see [`Burst`](super::Burst)).
    bad: bool,
    /// Origin of the jitter curve: when jitter first applied.
    epoch: Option<Instant>,
    /// When the last datagram in the queue has left it.
    free_at: Option<Instant>,
    /// When the last datagram arrives that was not reordered.
    last_arrival: Option<Instant>,
    pub(super) blackout_until: Option<Instant>,
    pub(super) counters: Counters,
}

impl Link {
    pub(super) fn new(seed: u64, from: IpAddr, to: IpAddr) -> Self {
        Self {
            key: mix_address(mix_address(mix(seed), from), to),
            number: 0,
            bad: false,
            epoch: None,
            free_at: None,
            last_arrival: None,
            blackout_until: None,
            counters: Counters::default(),
        }
    }

    /// Decides the fate of a datagram. Returns `None` if it is dropped, which is then counted.
    pub(super) fn carry(
        &mut self,
        conditions: &Conditions,
        now: Instant,
        destination: IpAddr,
        length: usize,
        ecn: Ecn,
    ) -> Option<Carried> {
        let dice = Dice(mix(self.key ^ self.number));
        self.number += 1;
        if self.blackout_until.is_some_and(|until| now < until) {
            self.counters.dropped_by_blackout += 1;
            return None;
        }
        let size = length + headers(destination);
        if conditions.mtu.is_some_and(|mtu| size > mtu) {
            self.counters.dropped_by_mtu += 1;
            return None;
        }
        let is_queue_long = conditions.rate.is_some_and(|rate| {
            let backlog = self.backlog(rate, now);
            conditions.mark_above.is_some_and(|most| backlog > most)
        });
        let Some(departure) = self.departure(conditions, now, size) else {
            self.counters.dropped_by_queue += 1;
            return None;
        };
        if self.is_lost(conditions, dice) {
            self.counters.lost += 1;
            return None;
        }
        let corruption = dice
            .chance(Roll::Corrupt, conditions.corrupt)
            .then(|| dice.bits(Roll::CorruptWhere));
        if corruption.is_some() {
            self.counters.corrupted += 1;
            if conditions.checksum {
                self.counters.lost += 1;
                return None;
            }
        }
        let ecn = match ecn {
            _ if conditions.clears_ecn => Ecn::NotEct,
            Ecn::Ect0 | Ecn::Ect1 if is_queue_long => {
                self.counters.marked += 1;
                Ecn::Ce
            }
            other => other,
        };
        let mut at = departure + conditions.latency + self.jitter(conditions.jitter, departure);
        if let Some(last) = self.last_arrival {
            at = at.max(last);
        }
        if dice.chance(Roll::Reorder, conditions.reorder) {
            self.counters.reordered += 1;
            at += conditions.reorder_delay;
        } else {
            self.last_arrival = Some(at);
        }
        let second = dice.chance(Roll::Duplicate, conditions.duplicate).then(|| {
            self.counters.duplicated += 1;
            let spread = conditions.jitter.max(DUPLICATE_SPREAD);
            at + spread.mul_f64(dice.roll(Roll::DuplicateDelay))
        });
        Some(Carried {
            at,
            second,
            corruption,
            ecn,
        })
    }

    /// The variable delay at a time: random at points of a grid and linear between them. Its slope
    /// stays below that of time itself, so no datagram overtakes an earlier one.
    fn jitter(&mut self, max: Duration, at: Instant) -> Duration {
        if max.is_zero() {
            return Duration::ZERO;
        }
        let epoch = *self.epoch.get_or_insert(at);
        let step = (max * 2).max(JITTER_STEP).as_secs_f64();
        let position = at.saturating_duration_since(epoch).as_secs_f64() / step;
        let draw = |point: u64| Dice(mix(self.key ^ mix(point))).roll(Roll::Jitter);
        let (before, after) = (draw(position as u64), draw(position as u64 + 1));
        max.mul_f64(before + (after - before) * position.fract())
    }

    /// When a packet leaves the bottleneck; `None` if its queue is full.
    fn departure(&mut self, conditions: &Conditions, now: Instant, size: usize) -> Option<Instant> {
        let Some(rate) = conditions.rate else {
            return Some(now);
        };
        let backlog = self.backlog(rate, now);
        if backlog > 0 && backlog + size > conditions.queue && !conditions.backpressure {
            return None;
        }
        let begin = self.free_at.map_or(now, |free_at| free_at.max(now));
        let departure = begin + Duration::from_secs_f64(size as f64 / rate.max(1) as f64);
        self.free_at = Some(departure);
        Some(departure)
    }

    fn backlog(&self, rate: u64, now: Instant) -> usize {
        let wait = self
            .free_at
            .map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        (wait.as_secs_f64() * rate as f64) as usize
    }

    /// How long a sender has to wait in order not to overflow the queue.
    pub(super) fn blocked_until(
        &self,
        conditions: &Conditions,
        now: Instant,
        length: usize,
    ) -> Option<Instant> {
        let rate = conditions.rate.filter(|_| conditions.backpressure)?;
        let backlog = self.backlog(rate, now);
        if backlog == 0 || backlog + length <= conditions.queue {
            return None;
        }
        // Until the queue is half empty: a sender woken for every datagram would never send two
        // in one call.
        let excess = backlog - (conditions.queue / 2).min(backlog);
        let wait = Duration::from_secs_f64(excess as f64 / rate.max(1) as f64);
        Some(now + wait.max(Duration::from_millis(1)))
    }

    fn is_lost(&mut self, conditions: &Conditions, dice: Dice) -> bool {
        let alone = dice.chance(Roll::Loss, conditions.loss);
        let in_burst = match conditions.burst {
            None => {
                self.bad = false;
                false
            }
            Some(burst) => {
                let turn = if self.bad { burst.leave } else { burst.enter };
                self.bad ^= dice.chance(Roll::BurstTurn, turn);
                self.bad && dice.chance(Roll::BurstLoss, burst.loss)
            }
        };
        alone || in_burst
    }
}

/// Flips one to four bits.
pub(super) fn corrupt(contents: &mut [u8], choice: u64) {
    if contents.is_empty() {
        return;
    }
    for index in 0..=choice % 4 {
        let bit = mix(choice ^ (index + 1)) % (contents.len() as u64 * 8);
        if let Some(byte) = contents.get_mut((bit / 8) as usize) {
            *byte ^= 1 << (bit % 8);
        }
    }
}
