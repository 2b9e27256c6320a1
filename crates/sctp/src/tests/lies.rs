//! Peers that acknowledge what they have not received.

use super::withholding::{sack, seeds};
use super::*;
use crate::entropy;
use crate::sender::{Sender, WithholdMode};

/// How a peer lies without looking at what is sent, guessing everything else correctly.
#[derive(Debug, Clone, Copy)]
enum Lie {
    /// Everything was received.
    Everything,
    /// All but the first chunk, so that the cumulative TSN reveals nothing.
    AllButTheFirst,
    /// Half of the flight, with a margin for what was not sent.
    Half,
}

#[test]
fn a_peer_that_acknowledges_what_it_has_not_received_ends_the_association_within_20_round_trips() {
    let lies = [Lie::Everything, Lie::AllButTheFirst, Lie::Half];
    for seed in 0..seeds(300) {
        entropy::fix(seed);
        let means = [
            WithholdMode::Skip,
            WithholdMode::SkipWhenDrained,
            WithholdMode::Delay,
        ];
        let (lie, means) = (lies[(seed % 3) as usize], means[(seed / 3 % 3) as usize]);
        println!("seed {seed}: {lie:?}, {means:?}");
        let mut sender = Sender::new(1000, 1160, CongestionControl::Cubic);
        sender.set_peer_window(64 << 20);
        sender.set_withhold_mode(means);
        sender.open(1);
        let (mut now, mut events) = (Instant::now(), VecDeque::new());
        let mut highest_sent = 999_u32;
        let mut acknowledged = highest_sent;
        let ended = (1..=20).find(|_| {
            // A flight that does not arrive.
            while sender.totals().0 < 64 << 20 {
                sender.write(1, 53, Bytes::from_static(&[7; 16_384]));
            }
            let mut out = Packets::new(1160, ([5000, 5000], 7), true, BytesMut::new());
            sender.fill(now, &mut out);
            for packet in out.finish().0 {
                highest_sent = data_tsns(&packet).into_iter().fold(highest_sent, u32::max);
            }
            now += Duration::from_millis(1);
            let ahead = (highest_sent - acknowledged) as u16;
            let value = match lie {
                Lie::Everything => {
                    acknowledged = highest_sent;
                    sack(highest_sent, &[])
                }
                Lie::Half => {
                    acknowledged += u32::from(ahead / 2).max(1);
                    sack(acknowledged, &[])
                }
                Lie::AllButTheFirst => sack(999, &[(2, (highest_sent - 999) as u16)]),
            };
            let sack = packet::Sack::parse(&value).expect("valid");
            let taken = sender.handle_sack(now, sack, &mut events);
            taken == Err(Violation::AcknowledgedWithheld)
        });
        assert!(ended.is_some(), "20 round trips");
    }
}

/// Bytes that stay written and unacknowledged.
const FLIGHT: usize = 1 << 20;

/// A sender whose peer may look at what is sent.
struct Watched {
    sender: Sender,
    now: Instant,
    events: VecDeque<Event>,
    highest_sent: u32,
    /// TSNs that have arrived, FORWARD-TSN included, for a peer that is honest for a while.
    received: std::collections::BTreeSet<u32>,
    forwarded: u32,
    window: u32,
}

impl Watched {
    fn new(seed: u64, means: WithholdMode) -> Self {
        entropy::fix(seed);
        let mut sender = Sender::new(1000, 1160, CongestionControl::Cubic);
        sender.set_peer_window(64 << 20);
        sender.set_withhold_mode(means);
        sender.open(1);
        Self {
            sender,
            now: Instant::now(),
            events: VecDeque::new(),
            highest_sent: 999,
            received: std::collections::BTreeSet::new(),
            forwarded: 999,
            window: 64 << 20,
        }
    }

    fn send(&mut self) {
        while self.sender.totals().0 < FLIGHT {
            self.sender.write(1, 53, Bytes::from_static(&[7; 16_384]));
        }
        let mut out = Packets::new(1160, ([5000, 5000], 7), true, BytesMut::new());
        self.sender.fill(self.now, &mut out);
        for packet in out.finish().0 {
            for chunk in parse(&packet).expect("valid").1 {
                if let Some(forward) = packet::ForwardTsn::parse(chunk.value)
                    && chunk.kind == kind::FORWARD_TSN
                {
                    self.forwarded = self.forwarded.max(forward.cumulative_tsn);
                }
            }
            self.received.extend(data_tsns(&packet));
        }
        self.highest_sent = self.received.last().copied().unwrap_or(999);
        self.now += Duration::from_millis(1);
    }

    fn sack(&mut self, cumulative: u32, gaps: &[(u16, u16)]) -> Result<(), Violation> {
        let mut value = sack(cumulative, gaps);
        value[4..8].copy_from_slice(&self.window.to_be_bytes());
        let sack = packet::Sack::parse(&value).expect("valid");
        self.sender.handle_sack(self.now, sack, &mut self.events)
    }

    /// Acknowledges what has arrived.
    fn sack_honestly(&mut self) {
        let mut cumulative = self.forwarded;
        while self.received.contains(&(cumulative + 1)) {
            cumulative += 1;
        }
        self.received = self.received.split_off(&(cumulative + 1));
        let ahead = self.received.first().map(|first| {
            let distance = |tsn: u32| (tsn - cumulative) as u16;
            (distance(*first), distance(self.highest_sent))
        });
        self.forwarded = cumulative;
        let gaps: Vec<_> = ahead.into_iter().collect();
        self.sack(cumulative, &gaps).expect("it is the truth");
    }
}

const FOUND: Result<(), Violation> = Err(Violation::AcknowledgedWithheld);

/// Lies only while it believes that nothing can be withheld.
#[test]
fn a_peer_that_lies_in_the_round_trips_after_each_gap_is_found() {
    for seed in 0..30 {
        let means = [
            WithholdMode::Skip,
            WithholdMode::SkipWhenDrained,
            WithholdMode::Delay,
        ][(seed % 3) as usize];
        let mut watched = Watched::new(seed, means);
        let mut lies = 0;
        let mut was_gap = false;
        let found = (0..2000).find(|_| {
            watched.send();
            if lies > 0 {
                lies -= 1;
                let highest_sent = watched.highest_sent;
                watched.forwarded = highest_sent;
                watched.received.clear();
                watched.received.insert(highest_sent);
                return watched.sack(highest_sent, &[]) == FOUND;
            }
            watched.sack_honestly();
            let is_gap = !watched.received.is_empty();
            if was_gap && !is_gap {
                lies = 8;
            }
            was_gap = is_gap;
            false
        });
        assert!(found.is_some(), "seed {seed}, {means:?}");
    }
}

/// Reports a gap first, so that what is withheld is sent, and acknowledges the rest at once.
#[test]
fn a_peer_that_reports_some_gap_before_it_lies_is_found() {
    for seed in 0..100 {
        let means = [
            WithholdMode::Skip,
            WithholdMode::SkipWhenDrained,
            WithholdMode::Delay,
        ][(seed % 3) as usize];
        let mut watched = Watched::new(seed, means);
        let mut acknowledged = 999;
        let found = (0..20).find(|_| {
            watched.send();
            let (highest_sent, ahead) = (watched.highest_sent, watched.highest_sent - acknowledged);
            if ahead < 2 {
                return false;
            }
            let distance = ahead as u16;
            if watched.sack(acknowledged, &[(distance, distance)]) == FOUND {
                return true;
            }
            acknowledged = highest_sent;
            watched.sack(acknowledged, &[]) == FOUND
        });
        assert!(found.is_some(), "seed {seed}, {means:?}");
    }
}

/// Each TSN by itself while a gap is always reported, so that FORWARD-TSN would be sent in between.
#[test]
fn a_peer_that_lies_step_by_step_is_found() {
    for seed in 0..10 {
        let mut watched = Watched::new(seed, WithholdMode::Skip);
        let mut acknowledged = 999;
        // Its gaps look like losses, which keep the window small.
        let found = (0..100).find(|_| {
            watched.send();
            let highest_sent = watched.highest_sent;
            while acknowledged + 1 < highest_sent {
                acknowledged += 1;
                let distance = (highest_sent - acknowledged) as u16;
                let gap = [(distance, distance)];
                if watched.sack(acknowledged, &gap[..usize::from(distance > 1)]) == FOUND {
                    return true;
                }
                watched.send();
            }
            false
        });
        assert!(found.is_some(), "seed {seed}");
    }
}

/// So that nothing can be sent after the withheld TSN.
#[test]
fn a_peer_that_lies_with_a_window_of_one_chunk_is_found() {
    for (seed, means) in [
        (1, WithholdMode::Delay),
        (2, WithholdMode::Delay),
        (3, WithholdMode::Skip),
    ] {
        let mut watched = Watched::new(seed, means);
        watched.window = 1200;
        let found = (0..400).find(|_| {
            watched.send();
            let highest_sent = watched.highest_sent.max(999);
            watched.sack(highest_sent, &[]) == FOUND
        });
        // Or it gets nothing more: it would have to acknowledge what it can not know.
        let stands = watched.sender.totals().0 >= FLIGHT && {
            let before = watched.highest_sent;
            watched.send();
            watched.highest_sent == before
        };
        assert!(found.is_some() || stands, "{means:?}");
    }
}
