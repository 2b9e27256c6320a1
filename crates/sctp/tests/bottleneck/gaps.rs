//! More gaps than a SACK has room for. The packets after the last gap that is reported are neither
//! acknowledged nor lost for the sender, and must not fill its window for good.

use std::time::{Duration, Instant};

use anabranch_sctp::{Ack, CongestionControl, Controller};

use super::flow::{Contender, FlowConfig};
use super::link::LinkConfig;
use super::paths::{both, ms, seconds};
use super::world::World;

/// Packets in flight, of which so many are lost that a SACK can not report all gaps.
const WINDOW: usize = 3000;

/// A window that never changes, for paths whose loss is no sign of congestion.
#[derive(Debug)]
struct Fixed {
    cwnd: usize,
    srtt: Duration,
}

impl Controller for Fixed {
    fn on_ack(&mut self, ack: &Ack<'_>) {
        self.srtt = ack.srtt;
    }

    fn on_timeout(&mut self, _now: Instant, _count: u32) {}

    fn cwnd(&self) -> usize {
        self.cwnd
    }

    fn pacing_rate(&self) -> Option<f64> {
        let srtt = self.srtt.as_secs_f64();
        (srtt > 0.0).then(|| self.cwnd as f64 / srtt)
    }
}

const FIXED: Contender = Contender {
    name: "fixed",
    control: CongestionControl::Custom(|max_packet| {
        Box::new(Fixed {
            cwnd: WINDOW * max_packet,
            srtt: Duration::ZERO,
        })
    }),
    max_packet: 1200,
    packet_sizes: &[],
};

/// Mbit/s in the last 4 of 8 s with a loss of `loss` on the way, 200 ms long.
fn rate(loss: f64, seed: u64) -> f64 {
    let link = LinkConfig::new(200.0, ms(100), 4_000_000);
    let [forward, back] = both(&link);
    let mut world = World::new(seed, [forward.loss(loss), back]);
    world.add(FlowConfig::new(FIXED, Duration::ZERO));
    world.run(seconds(8));
    world.rates(seconds(4), seconds(8))[0]
}

#[test]
fn a_flow_goes_on_with_more_gaps_than_a_sack_reports() {
    // 3000 packets each 200 ms.
    let clean = rate(0.0, 1);
    assert!(clean > 140.0, "{clean:.1} Mbit/s");
    for loss in [0.1, 0.2] {
        // At 0.2 one of five or six seeds yields 40 Mbit/s.
        let mut rates = [1, 2, 4, 5, 6].map(|seed| rate(loss, seed));
        rates.sort_by(f64::total_cmp);
        println!("loss {loss}: {rates:.1?} of {clean:.1} Mbit/s");
        let lossy = rates[2];
        let arrives = (1.0 - loss) * clean;
        assert!(
            lossy > 0.5 * arrives,
            "{lossy:.1} of {arrives:.1} Mbit/s at a loss of {loss}"
        );
    }
}
