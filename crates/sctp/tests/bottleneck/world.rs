//! Several flows over one path, in virtual time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use super::flow::{Flow, FlowConfig, Load, SENDER};
use super::link::{Link, LinkConfig, OVERHEAD, Packet, Served};
use super::rng::Rng;

/// Length of the intervals by which delivered bytes are counted.
const BIN: Duration = Duration::from_millis(100);

/// Flows after the first start this much later at most, so that seeds differ from the start.
const LATE: Duration = Duration::from_millis(250);

#[derive(Debug)]
enum Event {
    /// A flow starts its handshake.
    Start(usize),
    /// A flow has more to write.
    Write(usize),
    /// An end of a flow has a timeout.
    Wake(usize, usize),
    /// A link can send.
    Free(usize),
    Arrive(Packet),
    /// A second has passed.
    Second,
}

/// An event in its order: by time, then by age.
#[derive(Debug)]
struct Scheduled {
    at: Duration,
    number: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// Flows over a path of two links.
#[derive(Debug)]
pub(crate) struct World {
    epoch: Instant,
    now: Duration,
    events: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    links: [Link; 2],
    flows: Vec<Flow>,
    rng: Rng,
    /// Bytes on the wire that arrived at the receiver of each flow, by `BIN`.
    delivered: Vec<Vec<usize>>,
    /// When packets left the queue of the first link, and how long they had waited.
    waits: Vec<(Duration, Duration)>,
    is_traced: bool,
}

impl World {
    /// A world whose flows send their data over the first link, and their SACKs over the second.
    pub(crate) fn new(seed: u64, links: [LinkConfig; 2]) -> Self {
        anabranch_sctp::fix_entropy(seed);
        Self {
            epoch: Instant::now(),
            now: Duration::ZERO,
            events: BinaryHeap::new(),
            scheduled: 0,
            links: links.map(Link::new),
            flows: Vec::new(),
            rng: Rng::new(seed),
            delivered: Vec::new(),
            waits: Vec::new(),
            is_traced: std::env::var_os("BOTTLENECK_TRACE").is_some(),
        }
    }

    /// Adds a flow. Its number is the number of flows before it.
    pub(crate) fn add(&mut self, config: FlowConfig) {
        let flow = self.flows.len();
        let late = self.rng.duration(LATE);
        let late = if flow == 0 { Duration::ZERO } else { late };
        self.flows.push(Flow::new(config));
        self.delivered.push(Vec::new());
        self.schedule(config.start + late, Event::Start(flow));
    }

    fn schedule(&mut self, at: Duration, event: Event) {
        self.scheduled += 1;
        self.events.push(Reverse(Scheduled {
            at,
            number: self.scheduled,
            event,
        }));
    }

    /// Runs until a time.
    pub(crate) fn run(&mut self, until: Duration) {
        if self.is_traced {
            self.schedule(Duration::from_secs(1), Event::Second);
        }
        while let Some(Reverse(next)) = self.events.pop() {
            if next.at > until {
                self.events.push(Reverse(next));
                break;
            }
            self.now = next.at;
            self.handle(next.event);
        }
        self.now = until;
    }

    /// Runs until all transfers are complete, at most until a time.
    pub(crate) fn run_to_completion(&mut self, limit: Duration) {
        while self.now < limit && self.flows.iter().any(|flow| flow.completed_at.is_none()) {
            self.run(self.now + BIN);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Start(flow) => {
                self.flows[flow].ends[SENDER].start();
                if let Load::Periodic(..) = self.flows[flow].config.load {
                    self.schedule(self.now, Event::Write(flow));
                }
                self.run_end(flow, SENDER);
            }
            Event::Write(flow) => {
                if let Load::Periodic(bytes, period) = self.flows[flow].config.load {
                    self.flows[flow].add_due(bytes);
                    self.schedule(self.now + period, Event::Write(flow));
                    self.run_end(flow, SENDER);
                }
            }
            Event::Wake(flow, end) => self.wake(flow, end),
            Event::Free(link) => {
                self.links[link].on_free();
                self.serve(link);
            }
            Event::Arrive(packet) => self.arrive(packet),
            Event::Second => self.trace(),
        }
    }

    fn wake(&mut self, flow: usize, end: usize) {
        // Superseded by an earlier wake.
        if self.flows[flow].wakes[end] != Some(self.now) {
            return;
        }
        self.flows[flow].wakes[end] = None;
        let now = self.epoch + self.now;
        let association = &mut self.flows[flow].ends[end];
        if association.next_timeout().is_some_and(|at| at <= now) {
            association.handle_timeout(now);
            self.run_end(flow, end);
        } else {
            self.arm(flow, end);
        }
    }

    fn arrive(&mut self, packet: Packet) {
        let Packet { flow, to, .. } = packet;
        if to != SENDER {
            let bin = (self.now.as_nanos() / BIN.as_nanos()) as usize;
            let bins = &mut self.delivered[flow];
            if bins.len() <= bin {
                bins.resize(bin + 1, 0);
            }
            bins[bin] += packet.size;
        }
        let now = self.epoch + self.now;
        self.flows[flow].ends[to].handle_packet(now, &packet.bytes);
        self.run_end(flow, to);
    }

    /// Lets the application of an end run, transmits, and arms its timer.
    fn run_end(&mut self, flow: usize, end: usize) {
        let now = self.epoch + self.now;
        self.flows[flow].run_application(end, self.now);
        let link = self.flows[flow].link_from(end);
        let mut sent = Vec::new();
        let sender = &mut self.flows[flow].ends[end];
        while let Some(packets) = sender.poll_transmit(now) {
            sent.extend(packets);
        }
        sent.extend(std::iter::from_fn(|| sender.poll_probe(now)));
        let is_sending = !sent.is_empty();
        for bytes in sent {
            let packet = Packet {
                flow,
                to: 1 - end,
                size: bytes.len() + OVERHEAD,
                bytes,
                ce: false,
                enqueued_at: self.now,
            };
            self.links[link].enqueue(self.now, packet);
        }
        if is_sending {
            self.serve(link);
        }
        self.arm(flow, end);
    }

    /// Schedules the timeout of an end. A wake that is too early is kept, and arms again: timers
    /// move with every packet.
    fn arm(&mut self, flow: usize, end: usize) {
        let Some(at) = self.flows[flow].next_timeout(end, self.epoch) else {
            return;
        };
        let at = at.max(self.now);
        let wake = &mut self.flows[flow].wakes[end];
        if wake.is_none_or(|wake| at < wake) {
            *wake = Some(at);
            self.schedule(at, Event::Wake(flow, end));
        }
    }

    fn serve(&mut self, link: usize) {
        match self.links[link].serve(self.now, &mut self.rng) {
            Served::Nothing => {}
            Served::Outage(until) => self.schedule(until, Event::Free(link)),
            Served::Sent {
                packet,
                waited,
                free_at,
                arrives_at,
            } => {
                if link == 0 {
                    self.waits.push((self.now, waited));
                }
                self.schedule(free_at, Event::Free(link));
                if let Some(at) = arrives_at {
                    let extra = self.flows[packet.flow].config.extra_rtt / 2;
                    self.schedule(at + extra, Event::Arrive(packet));
                }
            }
        }
    }

    fn trace(&mut self) {
        let second = Duration::from_secs(1);
        let rates = self.rates(self.now - second, self.now);
        println!(
            "t={:.0} q={:.1} ms, {} dropped",
            self.now.as_secs_f64(),
            self.links[0].backlog(self.now).as_secs_f64() * 1e3,
            self.links[0].dropped
        );
        for (flow, rate) in self.flows.iter().zip(rates) {
            println!("  {:<8} {rate:5.1} Mbit/s  {}", flow.name(), flow.state());
        }
        self.schedule(self.now + second, Event::Second);
    }
}

/// What has happened.
impl World {
    /// Mbit/s on the wire that each flow delivered between two times.
    pub(crate) fn rates(&self, from: Duration, to: Duration) -> Vec<f64> {
        let bin = |at: Duration| (at.as_nanos() / BIN.as_nanos()) as usize;
        let range = bin(from)..bin(to);
        let rate = |bins: &Vec<usize>| {
            let counted = range.start.min(bins.len())..range.end.min(bins.len());
            let bytes: usize = bins[counted].iter().sum();
            bytes as f64 * 8e-6 / (to - from).as_secs_f64()
        };
        self.delivered.iter().map(rate).collect()
    }

    /// Milliseconds that this part of the packets waited less than in the first link, between two
    /// times.
    pub(crate) fn queue(&self, from: Duration, to: Duration, part: f64) -> f64 {
        let range = self.waits.partition_point(|(at, _)| *at < from)
            ..self.waits.partition_point(|(at, _)| *at < to);
        let mut waits: Vec<Duration> = self.waits[range].iter().map(|(_, wait)| *wait).collect();
        if waits.is_empty() {
            return 0.0;
        }
        let index = (waits.len() as f64 * part) as usize;
        let index = index.min(waits.len() - 1);
        let (_, wait, _) = waits.select_nth_unstable(index);
        wait.as_secs_f64() * 1e3
    }

    /// How long the transfer of a flow took, from the end of its handshake.
    pub(crate) fn completion(&self, flow: usize) -> Option<Duration> {
        let flow = &self.flows[flow];
        Some(flow.completed_at? - flow.connected_at?)
    }
}

/// Jain's index of fairness: 1 if all are equal.
pub(crate) fn jain(rates: &[f64]) -> f64 {
    let sum: f64 = rates.iter().sum();
    let squares: f64 = rates.iter().map(|rate| rate * rate).sum();
    sum * sum / (rates.len() as f64 * squares).max(f64::MIN_POSITIVE)
}
