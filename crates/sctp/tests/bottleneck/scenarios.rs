//! What congestion control has to hold on a bottleneck. The thresholds are those of the same
//! scenarios on a real one.

use std::time::Duration;

use super::flow::{Contender, FlowConfig, Load};
use super::link::LinkConfig;
use super::models::{QUIC_CUBIC, TCP_BBR, TCP_CUBIC};
use super::paths::{BDP, back, both, bottleneck, ms, seconds};
use super::world::{World, jain};

/// A scenario.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// The threshold, for humans.
    pub(crate) bar: &'static str,
    /// Runs the scenario with a controller in our place and a seed.
    pub(crate) run: fn(Contender, u64) -> Outcome,
}

/// Whether a scenario holds, and its figures.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) holds: bool,
    pub(crate) figures: String,
}

/// A scenario that is only reported.
pub(crate) const NONE: &str = "no bar";

/// Who starts first.
#[derive(Debug, Clone, Copy, PartialEq)]
enum First {
    Us,
    Them,
}

/// All scenarios.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "cubic-shallow",
        bar: "each >= .30",
        run: |us, seed| duel(us, TCP_CUBIC, First::Us, bottleneck(BDP / 4), 0.30, seed),
    },
    Scenario {
        name: "cubic-1bdp",
        bar: "each >= .30",
        run: |us, seed| duel(us, TCP_CUBIC, First::Us, bottleneck(BDP), 0.30, seed),
    },
    Scenario {
        name: "cubic-deep",
        bar: "each >= .20",
        run: |us, seed| duel(us, TCP_CUBIC, First::Us, bottleneck(4 * BDP), 0.20, seed),
    },
    Scenario {
        name: "cubic-first-shallow",
        bar: "each >= .30",
        run: |us, seed| duel(us, TCP_CUBIC, First::Them, bottleneck(BDP / 4), 0.30, seed),
    },
    Scenario {
        name: "cubic-codel",
        bar: "each >= .30",
        run: |us, seed| duel(us, TCP_CUBIC, First::Us, codel(), 0.30, seed),
    },
    Scenario {
        name: "quic-shallow",
        bar: "each >= .30",
        run: |us, seed| duel(us, QUIC_CUBIC, First::Us, bottleneck(BDP / 4), 0.30, seed),
    },
    Scenario {
        name: "quic-1bdp",
        bar: "each >= .30",
        run: |us, seed| duel(us, QUIC_CUBIC, First::Us, bottleneck(BDP), 0.30, seed),
    },
    Scenario {
        name: "bbr-1bdp",
        bar: ">= .8 x CUBIC",
        run: beside_bbr,
    },
    Scenario {
        name: "three-cubics",
        bar: "each >= 5, ours <= 20",
        run: three_cubics,
    },
    Scenario {
        name: "two-ours",
        bar: "J >= .90, q <= 50",
        run: |us, seed| several(us, 2, BDP, 0.90, 50.0, seconds(75), seed),
    },
    Scenario {
        name: "four-ours",
        bar: "J >= .90, q <= 50",
        run: |us, seed| several(us, 4, BDP, 0.90, 50.0, seconds(75), seed),
    },
    Scenario {
        name: "eight-ours-deep",
        bar: "J >= .85, q <= 75",
        run: |us, seed| several(us, 8, 10 * BDP, 0.85, 75.0, seconds(90), seed),
    },
    Scenario {
        name: "loss-1",
        bar: ">= 45",
        run: |us, seed| Alone::new(bottleneck(BDP).loss(0.01), 45.0).run(us, seed),
    },
    Scenario {
        name: "loss-2",
        bar: ">= 35",
        run: |us, seed| Alone::new(bottleneck(BDP).loss(0.02), 35.0).run(us, seed),
    },
    Scenario {
        name: "loss-5",
        bar: ">= 10",
        run: |us, seed| Alone::new(bottleneck(BDP).loss(0.05), 10.0).run(us, seed),
    },
    Scenario {
        name: "clean",
        bar: ">= 48, q <= 25",
        run: |us, seed| Alone::new(bottleneck(BDP), 48.0).queue(25.0).run(us, seed),
    },
    Scenario {
        name: "shallow",
        bar: ">= 42",
        run: |us, seed| Alone::new(bottleneck(BDP / 10), 42.0).run(us, seed),
    },
    Scenario {
        name: "codel-alone",
        bar: ">= 45, q <= 10",
        run: |us, seed| Alone::new(codel(), 45.0).queue(10.0).run(us, seed),
    },
    Scenario {
        name: "policer",
        bar: ">= 16",
        run: |us, seed| Alone::new(policer(), 16.0).run(us, seed),
    },
    Scenario {
        name: "slow",
        bar: ">= .9, q <= 150",
        run: |us, seed| {
            let link = LinkConfig::new(1.0, ms(25), 125_000);
            let alone = Alone::new(link.clone(), 0.9).queue(150.0).back(link);
            alone.times(seconds(10), seconds(40)).run(us, seed)
        },
    },
    Scenario {
        name: "reordering",
        bar: ">= 35",
        run: |us, seed| {
            let link = bottleneck(BDP).reordering(0.05, ms(20));
            Alone::new(link, 35.0).run(us, seed)
        },
    },
    Scenario {
        name: "ack-loss",
        bar: ">= 45",
        run: |us, seed| {
            let alone = Alone::new(bottleneck(BDP), 45.0);
            alone.back(back().loss(0.3)).run(us, seed)
        },
    },
    Scenario {
        name: "longer-path",
        bar: ">= 35",
        run: |us, seed| {
            let link = bottleneck(2 * BDP).delay_at(seconds(12), ms(50));
            let alone = Alone::new(link, 35.0).times(seconds(14), seconds(24));
            alone.run(us, seed)
        },
    },
    Scenario {
        name: "reverse-cubic",
        bar: ">= 40",
        run: beside_reverse_cubic,
    },
    Scenario {
        name: "outage",
        bar: ">= 25, >= 45",
        run: outage,
    },
    Scenario {
        name: "blackout",
        bar: ">= 10",
        run: blackout,
    },
    Scenario {
        name: "short-1m-50ms",
        bar: "<= 1.1 x QUIC",
        run: |us, seed| short(us, 1 << 20, ms(25), seed),
    },
    Scenario {
        name: "short-1m-100ms",
        bar: "<= 1.1 x QUIC",
        run: |us, seed| short(us, 1 << 20, ms(50), seed),
    },
    Scenario {
        name: "short-100k-100ms",
        bar: "<= 1.1 x QUIC",
        run: |us, seed| short(us, 100 * 1024, ms(50), seed),
    },
    // Without a bar: what is known to be hard.
    Scenario {
        name: "capacity",
        bar: NONE,
        run: capacity,
    },
    Scenario {
        name: "unequal-rtts",
        bar: NONE,
        run: unequal_rtts,
    },
    Scenario {
        name: "periodic",
        bar: NONE,
        run: periodic,
    },
    Scenario {
        name: "jitter-10ms",
        bar: NONE,
        run: |us, seed| {
            let link = bottleneck(BDP).noise(ms(10));
            duel(us, TCP_CUBIC, First::Us, link, 0.0, seed)
        },
    },
    Scenario {
        name: "ack-bursts-20ms",
        bar: NONE,
        run: |us, seed| {
            let alone = Alone::new(bottleneck(BDP), 0.0);
            alone.back(back().aggregation(ms(20))).run(us, seed)
        },
    },
    Scenario {
        name: "bursts-of-loss",
        bar: NONE,
        run: |us, seed| {
            let link = bottleneck(BDP).bursts(seconds(1), ms(5));
            Alone::new(link, 0.0).run(us, seed)
        },
    },
];

/// The scenario of a name.
pub(crate) fn scenario(name: &str) -> &'static Scenario {
    let mut found = SCENARIOS.iter().filter(|scenario| scenario.name == name);
    found
        .next()
        .unwrap_or_else(|| panic!("no scenario is called {name}"))
}

/// The usual bottleneck with CoDel.
pub(crate) fn codel() -> LinkConfig {
    bottleneck(10 * BDP).codel()
}

/// 200 Mbit/s, policed to 20.
pub(crate) fn policer() -> LinkConfig {
    LinkConfig::new(200.0, ms(25), 1_000_000).policer(20.0, 60_000)
}

/// The rates of two flows, the second of which starts 6 s later, and the median of the queue, from
/// 14 to 50 s.
pub(crate) fn pair(
    first: Contender,
    second: Contender,
    link: LinkConfig,
    seed: u64,
) -> ([f64; 2], f64) {
    let mut world = World::new(seed, [link, back()]);
    world.add(FlowConfig::new(first, Duration::ZERO));
    world.add(FlowConfig::new(second, seconds(6)));
    world.run(seconds(50));
    let rates = world.rates(seconds(14), seconds(50));
    let queue = world.queue(seconds(14), seconds(50), 0.5);
    ([rates[0], rates[1]], queue)
}

/// Each of two gets at least this share of what both get.
fn duel(
    us: Contender,
    them: Contender,
    first: First,
    link: LinkConfig,
    share: f64,
    seed: u64,
) -> Outcome {
    let (ours, theirs, queue) = if first == First::Us {
        let ([ours, theirs], queue) = pair(us, them, link, seed);
        (ours, theirs, queue)
    } else {
        let ([theirs, ours], queue) = pair(them, us, link, seed);
        (ours, theirs, queue)
    };
    Outcome {
        holds: ours.min(theirs) >= share * (ours + theirs),
        figures: format!("{ours:.1}:{theirs:.1} q{queue:.0}"),
    }
}

/// BBRv1 does not yield to loss. So CUBIC in our place is the measure.
fn beside_bbr(us: Contender, seed: u64) -> Outcome {
    let ([ours, theirs], _) = pair(us, TCP_BBR, bottleneck(BDP), seed);
    let ([cubic, _], _) = pair(TCP_CUBIC, TCP_BBR, bottleneck(BDP), seed);
    Outcome {
        holds: ours >= 0.8 * cubic,
        figures: format!("{ours:.1}:{theirs:.1}, CUBIC {cubic:.1}"),
    }
}

fn three_cubics(us: Contender, seed: u64) -> Outcome {
    let mut world = World::new(seed, [bottleneck(BDP / 4), back()]);
    for start in 0..3 {
        world.add(FlowConfig::new(TCP_CUBIC, seconds(start)));
    }
    world.add(FlowConfig::new(us, seconds(5)));
    world.run(seconds(50));
    let rates = world.rates(seconds(14), seconds(50));
    Outcome {
        holds: rates[3] <= 20.0 && rates[..3].iter().all(|rate| *rate >= 5.0),
        figures: format!(
            "{:.1} {:.1} {:.1}, ours {:.1}",
            rates[0], rates[1], rates[2], rates[3]
        ),
    }
}

/// Several of ours, one after another: fair in the last 20 s, and a standing queue that is short
/// and does not grow.
fn several(
    us: Contender,
    count: u64,
    queue: usize,
    fair: f64,
    max_queue: f64,
    total: Duration,
    seed: u64,
) -> Outcome {
    let mut world = World::new(seed, [bottleneck(queue), back()]);
    for index in 0..count {
        world.add(FlowConfig::new(us, seconds(3 * index)));
    }
    world.run(total);
    let (earlier, later) = (total - seconds(40), total - seconds(20));
    let index = jain(&world.rates(later, total));
    let before = world.queue(earlier, later, 0.5);
    let queue = world.queue(later, total, 0.5);
    Outcome {
        holds: index >= fair && queue <= max_queue && queue <= before * 1.25 + 5.0,
        figures: format!("J{index:.2} q{before:.0} then q{queue:.0}"),
    }
}

/// One flow alone on its path.
#[derive(Debug)]
struct Alone {
    links: [LinkConfig; 2],
    since: Duration,
    until: Duration,
    min_rate: f64,
    max_queue: Option<f64>,
}

impl Alone {
    /// At least this many Mbit/s from 5 to 25 s.
    fn new(link: LinkConfig, min_rate: f64) -> Self {
        Self {
            links: [link, back()],
            since: seconds(5),
            until: seconds(25),
            min_rate,
            max_queue: None,
        }
    }

    /// The median of the queue is this many milliseconds at most.
    fn queue(mut self, max_queue: f64) -> Self {
        self.max_queue = Some(max_queue);
        self
    }

    fn back(mut self, link: LinkConfig) -> Self {
        self.links[1] = link;
        self
    }

    fn times(mut self, since: Duration, until: Duration) -> Self {
        (self.since, self.until) = (since, until);
        self
    }

    fn run(self, us: Contender, seed: u64) -> Outcome {
        let mut world = World::new(seed, self.links);
        world.add(FlowConfig::new(us, Duration::ZERO));
        world.run(self.until);
        let rate = world.rates(self.since, self.until)[0];
        let queue = world.queue(self.since, self.until, 0.5);
        Outcome {
            holds: rate >= self.min_rate && self.max_queue.is_none_or(|max| queue <= max),
            figures: format!("{rate:.1} q{queue:.0}"),
        }
    }
}

/// A CUBIC download fills the other direction.
fn beside_reverse_cubic(us: Contender, seed: u64) -> Outcome {
    let mut world = World::new(seed, both(&bottleneck(BDP)));
    world.add(FlowConfig::new(us, Duration::ZERO));
    world.add(FlowConfig {
        link: 1,
        ..FlowConfig::new(TCP_CUBIC, seconds(8))
    });
    world.run(seconds(40));
    let rates = world.rates(seconds(15), seconds(40));
    Outcome {
        holds: rates[0] >= 40.0,
        figures: format!("{:.1}, the other way {:.1}", rates[0], rates[1]),
    }
}

/// 2 s without a packet at a round trip of 200 ms: half of the rate within ten round trips of the
/// return, then all of it.
fn outage(us: Contender, seed: u64) -> Outcome {
    let link = LinkConfig::new(50.0, ms(100), 1_250_000);
    let forward = link.rate_at(seconds(6), 0.0).rate_at(seconds(8), 50.0);
    let (soon, later) = after_the_return(us, seed, forward, seconds(10), seconds(20));
    Outcome {
        holds: soon >= 25.0 && later >= 45.0,
        figures: format!("{soon:.1}, {later:.1}"),
    }
}

/// 2 s of which every packet is lost, at a round trip of 200 ms.
fn blackout(us: Contender, seed: u64) -> Outcome {
    let link = LinkConfig::new(50.0, ms(100), 1_250_000);
    let forward = link.blackouts(seconds(10), seconds(2));
    let (soon, later) = after_the_return(us, seed, forward, seconds(10), seconds(18));
    Outcome {
        holds: soon >= 10.0,
        figures: format!("{soon:.1}, {later:.1}"),
    }
}

/// The rate in the 2 s from a time on, and after them.
fn after_the_return(
    us: Contender,
    seed: u64,
    forward: LinkConfig,
    from: Duration,
    until: Duration,
) -> (f64, f64) {
    let back = LinkConfig::new(50.0, ms(100), 1_000_000);
    let mut world = World::new(seed, [forward, back]);
    world.add(FlowConfig::new(us, Duration::ZERO));
    world.run(until);
    let then = from + seconds(2);
    (world.rates(from, then)[0], world.rates(then, until)[0])
}

/// 100, then 10, then 100 Mbit/s again.
fn capacity(us: Contender, seed: u64) -> Outcome {
    let link = LinkConfig::new(100.0, ms(25), 4 * 2 * BDP);
    let forward = link.rate_at(seconds(10), 10.0).rate_at(seconds(20), 100.0);
    let mut world = World::new(seed, [forward, LinkConfig::new(100.0, ms(25), 1_000_000)]);
    world.add(FlowConfig::new(us, Duration::ZERO));
    world.run(seconds(30));
    let down = world.rates(seconds(12), seconds(20))[0];
    let up = world.rates(seconds(22), seconds(30))[0];
    let queue = world.queue(seconds(15), seconds(20), 0.5);
    Outcome {
        holds: true,
        figures: format!("{down:.1} q{queue:.0}, {up:.1}"),
    }
}

/// Two of ours with round trips of 50 and 150 ms.
fn unequal_rtts(us: Contender, seed: u64) -> Outcome {
    let mut world = World::new(seed, [bottleneck(BDP), back()]);
    world.add(FlowConfig::new(us, Duration::ZERO));
    world.add(FlowConfig {
        extra_rtt: ms(100),
        ..FlowConfig::new(us, seconds(3))
    });
    world.run(seconds(60));
    let rates = world.rates(seconds(20), seconds(60));
    let queue = world.queue(seconds(20), seconds(60), 0.5);
    Outcome {
        holds: true,
        figures: format!("{:.1}:{:.1} q{queue:.0}", rates[0], rates[1]),
    }
}

/// A sender of 1 Mbit each 100 ms beside CUBIC: what it has to send, and less than its share.
fn periodic(us: Contender, seed: u64) -> Outcome {
    let mut world = World::new(seed, [bottleneck(BDP), back()]);
    world.add(FlowConfig {
        load: Load::Periodic(125_000, ms(100)),
        ..FlowConfig::new(us, Duration::ZERO)
    });
    world.add(FlowConfig::new(TCP_CUBIC, seconds(6)));
    world.run(seconds(50));
    let rates = world.rates(seconds(14), seconds(50));
    let queue = world.queue(seconds(14), seconds(50), 0.5);
    Outcome {
        holds: true,
        figures: format!("{:.1}:{:.1} q{queue:.0}", rates[0], rates[1]),
    }
}

/// A short transfer takes a tenth longer than over QUIC at most.
fn short(us: Contender, bytes: usize, delay: Duration, seed: u64) -> Outcome {
    let time = |contender| {
        let queue = 12_500 * delay.as_millis() as usize;
        let link = LinkConfig::new(50.0, delay, queue);
        let mut world = World::new(seed, both(&link));
        world.add(FlowConfig {
            load: Load::Transfer(bytes),
            ..FlowConfig::new(contender, Duration::ZERO)
        });
        world.run_to_completion(seconds(60));
        let completion = world.completion(0).unwrap_or_else(|| seconds(60));
        completion.as_secs_f64() * 1e3
    };
    let (ours, quic) = (time(us), time(QUIC_CUBIC));
    Outcome {
        holds: ours <= 1.1 * quic,
        figures: format!("{ours:.0}:{quic:.0} ms"),
    }
}
