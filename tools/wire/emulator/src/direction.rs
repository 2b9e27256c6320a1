//! One direction of the path, without a clock or devices of its own.
//!
//! ```text
//! receive -> policer -> bleach -> queue -> link -> loss -> propagation -> deliver
//! ```
//!
//! Service of the queue happens at the times of the emulated link, whenever `advance` is called:
//! how late it is called delays packets, and changes neither rate nor queue.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::time::Duration;

use fastrand::Rng;

use crate::codel::CoDel;
use crate::loss::{GilbertElliott, Policer};
use crate::options::{Bleach, Options};
use crate::packet::Packet;
use crate::queue::Queue;

/// What became of a packet. The values are those of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Delivered = 0,
    QueueFull = 1,
    Lost = 2,
    DroppedByCoDel = 3,
    Policed = 4,
}

/// A line of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) time: Duration,
    /// In the queue.
    pub(crate) waited: Duration,
    pub(crate) len: usize,
    pub(crate) flow: u8,
    pub(crate) fate: Fate,
    pub(crate) marked: bool,
    pub(crate) sent_ecn: u8,
}

/// A packet between the link and its arrival.
#[derive(Debug)]
struct Flight {
    due: Duration,
    /// Keeps the order of packets that are due at once.
    number: u64,
    packet: Packet,
}

impl Flight {
    fn key(&self) -> (Duration, u64) {
        (self.due, self.number)
    }
}

impl PartialEq for Flight {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Flight {}

impl PartialOrd for Flight {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Flight {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

/// A direction of the path.
#[derive(Debug)]
pub(crate) struct Direction {
    options: Options,
    rng: Rng,
    policer: Option<Policer>,
    queue: Queue,
    bursts: Option<GilbertElliott>,
    /// The link sends the last packet until then.
    link_free: Duration,
    flights: BinaryHeap<Reverse<Flight>>,
    sent: u64,
    /// Of the packets that stay in order.
    last_due: Duration,
    dropped: Vec<Packet>,
    records: Vec<Record>,
}

impl Direction {
    pub(crate) fn new(options: Options, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let queue = Queue::new(options.queue, options.codel.map(CoDel::new), options.mark);
        Self {
            policer: options
                .police
                .map(|(rate, burst)| Policer::new(rate, burst)),
            queue,
            bursts: options
                .burst
                .map(|burst| GilbertElliott::new(burst, &mut rng)),
            link_free: Duration::ZERO,
            flights: BinaryHeap::new(),
            sent: 0,
            last_due: Duration::ZERO,
            dropped: Vec::new(),
            records: Vec::new(),
            options,
            rng,
        }
    }

    /// Takes a packet from the sender, at the time when it entered.
    pub(crate) fn receive(&mut self, mut packet: Packet) {
        let now = packet.entered;
        // The link may have made room since.
        self.advance(now);
        if let Some(policer) = &mut self.policer
            && !policer.conforms(now, packet.len())
        {
            return self.record(now, &packet, Fate::Policed);
        }
        if self.options.bleach == Some(Bleach::BeforeQueue) {
            packet.bleach();
        }
        if let Err(packet) = self.queue.push(packet) {
            self.record(now, &packet, Fate::QueueFull);
        }
    }

    /// Lets the link send what it has begun to send at `now`.
    pub(crate) fn advance(&mut self, now: Duration) {
        while let Some(begin) = self.next_begin()
            && begin <= now
        {
            let next = self.queue.pop(begin, &mut self.dropped);
            for packet in std::mem::take(&mut self.dropped) {
                self.record(begin, &packet, Fate::DroppedByCoDel);
            }
            if let Some(packet) = next {
                self.send(begin, packet);
            }
        }
    }

    /// A packet that has arrived at `now`, with the time when it was due.
    pub(crate) fn deliver(&mut self, now: Duration) -> Option<(Packet, Duration)> {
        if self.flights.peek()?.0.due > now {
            return None;
        }
        let Reverse(Flight { due, packet, .. }) = self.flights.pop()?;
        self.record(due, &packet, Fate::Delivered);
        Some((packet, due))
    }

    /// When to call `advance` and `deliver` again.
    pub(crate) fn next_event(&self) -> Option<Duration> {
        let due = self.flights.peek().map(|Reverse(flight)| flight.due);
        let events = [due, self.next_begin()];
        events.into_iter().flatten().min()
    }

    /// Records since the last call.
    pub(crate) fn records(&mut self) -> impl Iterator<Item = Record> {
        self.records.drain(..)
    }

    /// When the link begins to send the head of the queue.
    fn next_begin(&self) -> Option<Duration> {
        let mut begin = self.link_free.max(self.queue.head_entered()?);
        while self.options.rate.at(begin) <= 0.0 {
            begin = self.options.rate.next_change(begin)?;
        }
        Some(begin)
    }

    fn send(&mut self, begin: Duration, mut packet: Packet) {
        let seconds = packet.len() as f64 * 8.0 / self.options.rate.at(begin);
        self.link_free = begin + Duration::from_secs_f64(seconds);
        if self.is_lost(begin) {
            return self.record(begin, &packet, Fate::Lost);
        }
        if self.options.bleach == Some(Bleach::AfterQueue) {
            packet.bleach();
        }
        let due = self.arrival(begin);
        self.flights.push(Reverse(Flight {
            due,
            number: self.sent,
            packet,
        }));
        self.sent += 1;
    }

    fn is_lost(&mut self, begin: Duration) -> bool {
        let in_burst = match &mut self.bursts {
            Some(bursts) => bursts.loses(begin, &mut self.rng),
            None => false,
        };
        let probability = self.options.loss.at(begin);
        in_burst || (probability > 0.0 && self.rng.f64() < probability)
    }

    /// When the packet arrives that has just been sent.
    fn arrival(&mut self, begin: Duration) -> Duration {
        let mut due = self.link_free + self.options.delay.at(begin);
        if let Some(jitter) = self.options.jitter {
            due += jitter.mul_f64(self.rng.f64());
        }
        if let Some(batch) = self.options.batch {
            let batches = due.as_nanos().div_ceil(batch.as_nanos());
            due = batch.saturating_mul(u32::try_from(batches).unwrap_or(u32::MAX));
        }
        if let Some((probability, extra)) = self.options.reorder
            && self.rng.f64() < probability
        {
            return due + extra;
        }
        // Only a delay that gets shorter by schedule lets packets overtake.
        if self.options.jitter.is_some() || self.options.batch.is_some() {
            self.last_due = self.last_due.max(due);
            return self.last_due;
        }
        due
    }

    fn record(&mut self, time: Duration, packet: &Packet, fate: Fate) {
        self.records.push(Record {
            time,
            waited: packet.waited,
            len: packet.len(),
            flow: packet.flow,
            fate,
            marked: packet.marked,
            sent_ecn: packet.sent_ecn,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::ecn;
    use crate::packet::tests::udp;

    const MS: Duration = Duration::from_millis(1);

    fn direction(options: &str) -> Direction {
        Direction::new(options.parse().expect("valid"), 1)
    }

    /// Sends `count` packets of 1000 bytes, one each `every`, and returns numbers and arrivals.
    fn run(options: &str, count: u32, every: Duration) -> (Vec<(u32, Duration)>, Vec<Record>) {
        let mut direction = direction(options);
        let mut arrivals = Vec::new();
        for n in 0..count {
            let mut data = udp(1000, 0b10);
            data[40..44].copy_from_slice(&n.to_be_bytes());
            direction.receive(Packet::new(data, 0, n * every));
        }
        while let Some(event) = direction.next_event() {
            direction.advance(event);
            while let Some((packet, due)) = direction.deliver(event) {
                assert_eq!(due, event);
                let number = packet.data[40..44].try_into().expect("4 bytes");
                arrivals.push((u32::from_be_bytes(number), due));
            }
        }
        (arrivals, direction.records().collect())
    }

    fn count(records: &[Record], fate: Fate) -> usize {
        records.iter().filter(|record| record.fate == fate).count()
    }

    #[test]
    fn packets_leave_at_the_rate_and_arrive_after_the_delay() {
        let (arrivals, records) = run("rate=8m,delay=25,queue=10000", 3, Duration::ZERO);
        assert_eq!(arrivals, [(0, 26 * MS), (1, 27 * MS), (2, 28 * MS)]);
        let waited: Vec<_> = records.iter().map(|record| record.waited).collect();
        assert_eq!(waited, [Duration::ZERO, MS, 2 * MS]);
    }

    #[test]
    fn a_full_queue_drops_what_arrives() {
        // Twice the rate of the link, so that every second packet is dropped in the end.
        let (arrivals, records) = run("rate=8m,queue=5000", 200, MS / 2);
        assert_eq!(count(&records, Fate::QueueFull), 200 - arrivals.len());
        assert!((100..=106).contains(&arrivals.len()), "{}", arrivals.len());
        let longest = records.iter().map(|record| record.waited).max();
        assert!(longest <= Some(5 * MS), "{longest:?}");
    }

    #[test]
    fn an_outage_holds_the_queue() {
        let (arrivals, _) = run("rate=8m/0@0.002/8m@0.01,queue=100000", 4, MS);
        let times: Vec<_> = arrivals.iter().map(|(_, due)| *due).collect();
        assert_eq!(times, [MS, 2 * MS, 11 * MS, 12 * MS]);
        let (arrivals, _) = run("rate=8m/0@0.002,queue=100000", 4, MS);
        assert_eq!(arrivals.len(), 2, "the link never comes back");
    }

    #[test]
    fn lost_packets_have_used_the_link() {
        let (arrivals, records) = run("rate=8m,loss=0/1@0.001/0@0.003", 5, Duration::ZERO);
        assert_eq!(arrivals, [(0, MS), (3, 4 * MS), (4, 5 * MS)]);
        assert_eq!(count(&records, Fate::Lost), 2);
        let (arrivals, _) = run("rate=800m,queue=1g,loss=0.1", 20_000, Duration::ZERO);
        assert!((17_700..18_300).contains(&arrivals.len()));
    }

    #[test]
    fn only_reordered_packets_are_late() {
        let (arrivals, _) = run("rate=8m,queue=1g,reorder=0.1:5", 1000, MS);
        let late: Vec<_> = arrivals
            .iter()
            .filter(|(n, due)| *due != (n + 1) * MS)
            .collect();
        assert!((60..140).contains(&late.len()), "{}", late.len());
        assert!(late.iter().all(|(n, due)| *due == (n + 6) * MS));
        assert!(!arrivals.is_sorted(), "by number");
    }

    #[test]
    fn jitter_and_batches_keep_the_order() {
        let (arrivals, _) = run("rate=8m,queue=1g,jitter=10", 1000, MS);
        assert!(arrivals.is_sorted());
        let extra = |(n, due): &(u32, Duration)| *due - (n + 1) * MS;
        assert!(arrivals.iter().all(|arrival| extra(arrival) <= 10 * MS));
        assert!(arrivals.iter().any(|arrival| extra(arrival) > 8 * MS));
        let (arrivals, _) = run("rate=8m,queue=1g,batch=20", 1000, MS);
        assert!(arrivals.is_sorted());
        let due = |(n, due): &(u32, Duration)| *due == (n + 1).next_multiple_of(20) * MS;
        assert!(arrivals.iter().all(due));
    }

    #[test]
    fn the_ecn_field_is_cleared_before_or_after_the_queue() {
        let fields = |options: &str| {
            let mut direction = direction(options);
            for _ in 0..3 {
                direction.receive(Packet::new(udp(1000, 0b10), 0, Duration::ZERO));
            }
            direction.advance(9 * MS);
            let arrived = std::iter::from_fn(|| direction.deliver(9 * MS));
            let fields: Vec<_> = arrived.map(|(packet, _)| ecn(&packet.data)).collect();
            let marked = direction.records().filter(|record| record.marked).count();
            (fields, marked)
        };
        assert_eq!(fields("rate=8m,mark=1.5"), (vec![0b10, 0b10, 0b11], 1));
        assert_eq!(fields("rate=8m,mark=1.5,bleach"), (vec![0, 0, 0], 0));
        assert_eq!(fields("rate=8m,mark=1.5,bleach=after"), (vec![0, 0, 0], 1));
    }

    #[test]
    fn policed_packets_never_reach_the_queue() {
        let (arrivals, records) = run("rate=800m,police=4m:2000", 100, MS);
        assert_eq!(arrivals.len() + count(&records, Fate::Policed), 100);
        assert!((50..=52).contains(&arrivals.len()), "{}", arrivals.len());
    }

    #[test]
    fn codel_bounds_the_delay_of_a_flow_that_backs_off() {
        // Without a response, CoDel drops ever more, but needs seconds for it.
        let (_, records) = run("rate=8m,queue=1g,codel=5:100", 11_000, MS * 10 / 11);
        let last = records.last().expect("records");
        assert!(count(&records, Fate::DroppedByCoDel) > 100);
        assert!(last.waited < 1000 * MS, "{:?}", last.waited);
        let (_, records) = run("rate=8m,queue=1g,codel=5:100,ecn", 2000, MS / 2);
        assert_eq!(count(&records, Fate::Delivered), 2000);
        assert!(records.iter().filter(|record| record.marked).count() > 20);
    }

    #[test]
    fn the_seed_decides() {
        let losses = |seed| {
            let options = "rate=80m,queue=1g,loss=0.2".parse().expect("valid");
            let mut direction = Direction::new(options, seed);
            for n in 0..100 {
                direction.receive(Packet::new(udp(100, 0), n, Duration::ZERO));
            }
            direction.advance(Duration::from_secs(1));
            let lost = direction
                .records()
                .filter(|record| record.fate == Fate::Lost);
            lost.map(|record| record.flow).collect::<Vec<_>>()
        };
        assert_eq!(losses(3), losses(3));
        assert_ne!(losses(3), losses(4));
    }
}
