//! One direction of a path: policer, queue, serialiser, loss, delay.
//!
//! ```text
//! policer ─► queue (drop-tail or CoDel) ─► rate ─► loss ─► delay, noise, reordering, aggregation
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::codel::{Codel, CodelConfig};
use super::rng::Rng;

/// Bytes that a packet of SCTP is longer on the wire: a DTLS record (29), UDP (8) and IPv4 (20).
pub(crate) const OVERHEAD: usize = 57;

/// Extra delay of each packet at most. Without it, the flows on a link lock phases, and which of
/// them meets a full queue is no matter of chance.
const NOISE: Duration = Duration::from_micros(300);

/// A packet in transit.
#[derive(Debug)]
pub(crate) struct Packet {
    pub(crate) flow: usize,
    /// The end of the flow that receives it.
    pub(crate) to: usize,
    pub(crate) bytes: Bytes,
    /// Bytes on the wire.
    pub(crate) size: usize,
    /// Marked with Congestion Experienced.
    pub(crate) ce: bool,
    pub(crate) enqueued_at: Duration,
}

/// A packet without content, for tests of queues.
#[cfg(test)]
pub(crate) fn packet(size: usize, enqueued_at: Duration) -> Packet {
    Packet {
        flow: 0,
        to: 1,
        bytes: Bytes::new(),
        size,
        ce: false,
        enqueued_at,
    }
}

/// Conditions of one direction. Times count from the start of the world.
#[derive(Debug, Clone)]
pub(crate) struct LinkConfig {
    /// Bytes per second from each time on. 0 is an outage that keeps the queue.
    rate: Vec<(Duration, f64)>,
    /// One-way delay from each time on.
    delay: Vec<(Duration, Duration)>,
    queue: usize,
    codel: Option<CodelConfig>,
    loss: f64,
    bursts: Option<(Duration, Duration)>,
    blackouts: Option<(Duration, Duration)>,
    reordering: Option<(f64, Duration)>,
    policer: Option<(f64, f64)>,
    aggregation: Option<Duration>,
    noise: Duration,
}

impl LinkConfig {
    /// A link of a rate in Mbit/s, with a drop-tail queue in bytes.
    pub(crate) fn new(mbit: f64, delay: Duration, queue: usize) -> Self {
        Self {
            rate: vec![(Duration::ZERO, bytes_per_second(mbit))],
            delay: vec![(Duration::ZERO, delay)],
            queue,
            codel: None,
            loss: 0.0,
            bursts: None,
            blackouts: None,
            reordering: None,
            policer: None,
            aggregation: None,
            noise: NOISE,
        }
    }

    /// Changes the rate at a time. Times ascend.
    pub(crate) fn rate_at(mut self, at: Duration, mbit: f64) -> Self {
        self.rate.push((at, bytes_per_second(mbit)));
        self
    }

    /// Changes the delay at a time. Times ascend.
    pub(crate) fn delay_at(mut self, at: Duration, delay: Duration) -> Self {
        self.delay.push((at, delay));
        self
    }

    /// CoDel with the parameters of RFC 8289.
    pub(crate) fn codel(mut self) -> Self {
        self.codel = Some(CodelConfig {
            target: Duration::from_millis(5),
            interval: Duration::from_millis(100),
            marks: false,
        });
        self
    }

    /// CoDel that marks instead of dropping.
    pub(crate) fn codel_with_marks(self) -> Self {
        let mut link = self.codel();
        if let Some(codel) = &mut link.codel {
            codel.marks = true;
        }
        link
    }

    /// Loses each packet with this probability.
    pub(crate) fn loss(mut self, probability: f64) -> Self {
        self.loss = probability;
        self
    }

    /// Loses all packets in bursts of this mean length, with this mean time between them: the model
    /// of Gilbert. Both are exponentially distributed.
    pub(crate) fn bursts(mut self, between: Duration, length: Duration) -> Self {
        self.bursts = Some((between, length));
        self
    }

    /// Loses all packets in the last `length` of each `period`.
    pub(crate) fn blackouts(mut self, period: Duration, length: Duration) -> Self {
        self.blackouts = Some((period, length));
        self
    }

    /// Delays each packet by `extra` with this probability, so that later ones overtake it.
    pub(crate) fn reordering(mut self, probability: f64, extra: Duration) -> Self {
        self.reordering = Some((probability, extra));
        self
    }

    /// Drops what exceeds a token bucket of `bucket` bytes that is filled at a rate in Mbit/s.
    pub(crate) fn policer(mut self, mbit: f64, bucket: usize) -> Self {
        self.policer = Some((bytes_per_second(mbit), bucket as f64));
        self
    }

    /// Delivers only at multiples of `interval`, as Wi-Fi and cable modems aggregate.
    pub(crate) fn aggregation(mut self, interval: Duration) -> Self {
        self.aggregation = Some(interval);
        self
    }

    /// Sets the extra delay of each packet at most.
    pub(crate) fn noise(mut self, noise: Duration) -> Self {
        self.noise = noise;
        self
    }
}

fn bytes_per_second(mbit: f64) -> f64 {
    mbit * 125_000.0
}

/// The value of a schedule at a time.
fn at<T: Copy>(schedule: &[(Duration, T)], now: Duration) -> T {
    let started = schedule.iter().rev().find(|(from, _)| *from <= now);
    started.unwrap_or(&schedule[0]).1
}

/// What a link does next.
#[derive(Debug)]
pub(crate) enum Served {
    /// The queue is empty, or the link is busy.
    Nothing,
    /// The link is out of service until then.
    Outage(Duration),
    /// A packet is sent.
    Sent {
        packet: Packet,
        /// Time in the queue.
        waited: Duration,
        /// When the link is free.
        free_at: Duration,
        /// When the packet arrives; `None` if it is lost.
        arrives_at: Option<Duration>,
    },
}

/// A link with its queue.
#[derive(Debug)]
pub(crate) struct Link {
    config: LinkConfig,
    queue: VecDeque<Packet>,
    queued: usize,
    codel: Codel,
    /// Tokens of the policer, and when they were counted.
    tokens: (f64, Duration),
    /// A burst of loss, and when that changes.
    is_in_burst: bool,
    burst_changes_at: Duration,
    is_busy: bool,
    last_arrival: Duration,
    /// Packets dropped by the queue or the policer.
    pub(crate) dropped: usize,
}

impl Link {
    pub(crate) fn new(config: LinkConfig) -> Self {
        Self {
            tokens: (
                config.policer.map_or(0.0, |(_, bucket)| bucket),
                Duration::ZERO,
            ),
            config,
            queue: VecDeque::new(),
            queued: 0,
            codel: Codel::default(),
            is_in_burst: true,
            burst_changes_at: Duration::ZERO,
            is_busy: false,
            last_arrival: Duration::ZERO,
            dropped: 0,
        }
    }

    /// Takes a packet into the queue, or drops it.
    pub(crate) fn enqueue(&mut self, now: Duration, mut packet: Packet) {
        if !self.police(now, packet.size) || self.queued + packet.size > self.config.queue {
            self.dropped += 1;
            return;
        }
        packet.enqueued_at = now;
        self.queued += packet.size;
        self.queue.push_back(packet);
    }

    /// Whether the policer admits a packet.
    fn police(&mut self, now: Duration, size: usize) -> bool {
        let Some((rate, bucket)) = self.config.policer else {
            return true;
        };
        let (tokens, counted_at) = self.tokens;
        let refilled = (now - counted_at).as_secs_f64() * rate;
        self.tokens = ((tokens + refilled).min(bucket), now);
        let is_admitted = self.tokens.0 >= size as f64;
        if is_admitted {
            self.tokens.0 -= size as f64;
        }
        is_admitted
    }

    /// The link has sent its packet, or the outage is over.
    pub(crate) fn on_free(&mut self) {
        self.is_busy = false;
    }

    /// Sends the next packet, unless the link is busy.
    pub(crate) fn serve(&mut self, now: Duration, rng: &mut Rng) -> Served {
        if self.is_busy || self.queue.is_empty() {
            return Served::Nothing;
        }
        let rate = at(&self.config.rate, now);
        if rate <= 0.0 {
            let mut later = self.config.rate.iter().filter(|(from, _)| *from > now);
            return later.next().map_or(Served::Nothing, |(from, _)| {
                self.is_busy = true;
                Served::Outage(*from)
            });
        }
        let Some(packet) = self.dequeue(now) else {
            return Served::Nothing;
        };
        self.is_busy = true;
        let free_at = now + Duration::from_secs_f64(packet.size as f64 / rate);
        let waited = now - packet.enqueued_at;
        let arrives_at = (!self.loses(now, rng)).then(|| self.arrival(now, free_at, rng));
        Served::Sent {
            packet,
            waited,
            free_at,
            arrives_at,
        }
    }

    fn dequeue(&mut self, now: Duration) -> Option<Packet> {
        let Some(config) = self.config.codel else {
            let packet = self.queue.pop_front()?;
            self.queued -= packet.size;
            return Some(packet);
        };
        let (packet, dropped) = self
            .codel
            .dequeue(config, now, &mut self.queue, &mut self.queued);
        self.dropped += dropped;
        packet
    }

    fn loses(&mut self, now: Duration, rng: &mut Rng) -> bool {
        let is_blacked_out = self.config.blackouts.is_some_and(|(period, length)| {
            let phase = now.as_nanos() % period.as_nanos();
            phase >= (period - length).as_nanos()
        });
        is_blacked_out || self.is_in_burst(now, rng) || rng.chance(self.config.loss)
    }

    fn is_in_burst(&mut self, now: Duration, rng: &mut Rng) -> bool {
        let Some((between, length)) = self.config.bursts else {
            return false;
        };
        while self.burst_changes_at <= now {
            self.is_in_burst = !self.is_in_burst;
            let mean = if self.is_in_burst { length } else { between };
            self.burst_changes_at += mean.mul_f64(-(1.0 - rng.fraction()).ln());
        }
        self.is_in_burst
    }

    /// When a packet that leaves at `free_at` arrives. Only reordering changes the order.
    fn arrival(&mut self, now: Duration, free_at: Duration, rng: &mut Rng) -> Duration {
        let delay = at(&self.config.delay, now);
        let mut arrival = free_at + delay + rng.duration(self.config.noise);
        if let Some(interval) = self.config.aggregation {
            let periods = arrival.as_nanos().div_ceil(interval.as_nanos());
            arrival = Duration::from_nanos((periods * interval.as_nanos()) as u64);
        }
        if let Some((probability, extra)) = self.config.reordering
            && rng.chance(probability)
        {
            return arrival + extra;
        }
        self.last_arrival = self.last_arrival.max(arrival);
        self.last_arrival
    }

    /// Time that the queued bytes need. Zero during an outage.
    pub(crate) fn backlog(&self, now: Duration) -> Duration {
        let rate = at(&self.config.rate, now);
        if rate <= 0.0 {
            return Duration::ZERO;
        }
        Duration::from_secs_f64(self.queued as f64 / rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Offers packets of 1000 bytes at a rate in Mbit/s for a time. Returns when each arrived.
    fn offer(config: LinkConfig, mbit: f64, time: Duration) -> Vec<Duration> {
        let arrivals = offer_and_see_marks(config, mbit, time).into_iter();
        arrivals.map(|(at, _)| at).collect()
    }

    /// The same, with whether each was marked.
    fn offer_and_see_marks(config: LinkConfig, mbit: f64, time: Duration) -> Vec<(Duration, bool)> {
        let (mut link, mut rng) = (Link::new(config), Rng::new(1));
        let gap = Duration::from_secs_f64(1000.0 / bytes_per_second(mbit));
        let (mut next, mut free, mut arrivals) = (Duration::ZERO, None, Vec::new());
        while next < time || free.is_some() {
            let now = match free {
                Some(at) if at <= next || next >= time => at,
                _ => next,
            };
            if free == Some(now) {
                free = None;
                link.on_free();
            } else {
                link.enqueue(now, packet(1000, now));
                next += gap;
            }
            match link.serve(now, &mut rng) {
                Served::Nothing => {}
                Served::Outage(until) => free = Some(until),
                Served::Sent {
                    packet,
                    free_at,
                    arrives_at,
                    ..
                } => {
                    free = Some(free_at);
                    arrivals.extend(arrives_at.map(|at| (at, packet.ce)));
                }
            }
        }
        arrivals
    }

    fn link() -> LinkConfig {
        LinkConfig::new(8.0, Duration::from_millis(10), 20_000)
    }

    #[test]
    fn the_rate_limits_and_the_queue_overflows() {
        let arrivals = offer(link(), 16.0, SECOND);
        // 1000 in the second, and 20 that waited.
        assert!(
            (1018..=1022).contains(&arrivals.len()),
            "{}",
            arrivals.len()
        );
        assert!(arrivals.is_sorted());
    }

    #[test]
    fn an_outage_keeps_the_queue() {
        let down = link().rate_at(SECOND / 2, 0.0).rate_at(SECOND * 2, 8.0);
        let arrivals = offer(down, 4.0, SECOND);
        let late = arrivals.iter().filter(|at| **at > SECOND * 2).count();
        assert_eq!(late, 20);
    }

    #[test]
    fn a_policer_passes_its_rate_and_its_bucket() {
        let arrivals = offer(link().policer(2.0, 10_000), 4.0, SECOND);
        assert!((258..=262).contains(&arrivals.len()), "{}", arrivals.len());
    }

    #[test]
    fn loss_and_blackouts_take_their_part() {
        let lossy = offer(link().loss(0.1), 4.0, SECOND * 20).len();
        assert!((8800..=9200).contains(&lossy), "{lossy}");
        let blackouts = link().blackouts(SECOND, SECOND / 4);
        let left = offer(blackouts, 4.0, SECOND * 20).len();
        assert!((7450..=7550).contains(&left), "{left}");
    }

    #[test]
    fn bursts_of_loss_have_their_lengths_in_the_mean() {
        let bursts = link().bursts(SECOND / 10, SECOND / 100);
        let left = offer(bursts, 4.0, SECOND * 100).len();
        assert!((44_500..=46_500).contains(&left), "{left}");
    }

    #[test]
    fn reordering_alone_changes_the_order() {
        let reordering = link().reordering(0.05, Duration::from_millis(20));
        let arrivals = offer(reordering, 4.0, SECOND);
        let late = arrivals.windows(2).filter(|pair| pair[0] > pair[1]).count();
        assert!((15..=35).contains(&late), "{late}");
        let aggregation = link().noise(SECOND / 100).aggregation(SECOND / 200);
        let arrivals = offer(aggregation, 4.0, SECOND);
        assert!(arrivals.is_sorted());
        assert!(arrivals.iter().all(|at| at.subsec_nanos() % 5_000_000 == 0));
    }

    #[test]
    fn codel_drops_or_marks() {
        let deep = LinkConfig::new(8.0, Duration::from_millis(10), 10_000_000);
        let marked =
            |arrivals: Vec<(Duration, bool)>| arrivals.iter().filter(|(_, ce)| *ce).count();
        let marks = offer_and_see_marks(deep.clone().codel_with_marks(), 16.0, SECOND);
        assert_eq!(marks.len(), 2000, "nothing is dropped");
        assert!(marked(marks) > 20);
        let drops = offer_and_see_marks(deep.codel(), 16.0, SECOND);
        assert!(drops.len() < 1980, "{}", drops.len());
        assert_eq!(marked(drops), 0);
    }
}
