//! Which loss is a sign of congestion.
//!
//! A full queue loses packets and delays the rest. So a loss without queueing delay is no sign of
//! congestion on a path whose queue shows in its delay. On any other path the share of packets
//! that it loses anyway, measured while this sender builds no queue, may be lost.

/// Maximum share that a path may lose anyway.
const MAX_SHARE: f64 = 0.10;

/// Packets that are needed to learn that share.
const PRIOR: f64 = 300.0;

/// Packets after which what was learnt loses half of its weight.
const MEMORY: f64 = 4000.0;

/// Time in which it loses most of it, in seconds.
const FADE: f64 = 20.0;

/// More losses than these in a round trip, and a share above this, are congestion whatever the
/// delay: a policer, or a link whose queue is shorter than can be measured.
const MAX_LOSSES: f64 = 8.0;
const MAX_LOSS_SHARE: f64 = 0.15;

/// Judges losses by the delay they come with.
#[derive(Debug)]
pub(super) struct LossJudge {
    /// Packets, and lost ones of them, while this sender built no queue.
    calm: f64,
    calm_lost: f64,
    /// Packets and losses of this round trip.
    round: f64,
    round_lost: f64,
    /// Losses of this round trip that came with a queue, or on a path without one.
    round_suspect: f64,
    /// The largest queueing delay between two reductions, averaged: what the queue can hold.
    reference: Option<f64>,
    /// The largest queueing delay since the last reduction.
    largest: f64,
    /// Queueing delay when the queue was full, averaged.
    full: f64,
}

/// The conditions of one loss.
#[derive(Debug, Clone, Copy)]
pub(super) struct Conditions {
    /// The lost packet, in packets of the first size.
    pub(super) packets: f64,
    /// Queueing delay, in seconds.
    pub(super) queueing: f64,
    /// cwnd in packets.
    pub(super) window: f64,
    pub(super) is_slow_start: bool,
    /// The standing queue that this sender allows itself, in seconds.
    pub(super) target: f64,
    /// The minimum RTT, in seconds.
    pub(super) base: f64,
}

impl LossJudge {
    pub(super) fn new() -> Self {
        Self {
            calm: 0.0,
            calm_lost: 0.0,
            round: 0.0,
            round_lost: 0.0,
            round_suspect: 0.0,
            reference: None,
            largest: 0.0,
            full: f64::INFINITY,
        }
    }

    /// Notes a queueing delay.
    pub(super) fn on_delay(&mut self, queueing: f64) {
        self.largest = self.largest.max(queueing);
    }

    pub(super) fn on_acked(&mut self, packets: f64, is_calm: bool) {
        self.round += packets;
        if is_calm {
            self.calm += packets;
        }
        if self.calm > MEMORY {
            self.calm /= 2.0;
            self.calm_lost /= 2.0;
        }
    }

    /// Counts a loss while this sender built no queue. See [`LossJudge::on_lost`].
    pub(super) fn on_calm_loss(&mut self, packets: f64) {
        self.calm += packets;
        self.calm_lost += packets;
    }

    /// The share of packets that the path loses without a queue of this sender.
    pub(super) fn share(&self) -> f64 {
        (self.calm_lost / self.calm.max(PRIOR)).min(MAX_SHARE)
    }

    /// Whether delay says anything about the queue of this path.
    pub(super) fn is_delay_informative(&self, base: f64) -> bool {
        let least = (base / 25.0).max(0.0015);
        self.reference.is_none_or(|reference| reference > least)
    }

    /// Below this the queue counts as empty. Less than the 5 ms of CoDel, whose losses are signs of
    /// congestion.
    pub(super) fn low(&self, target: f64) -> f64 {
        let reference = self.reference.unwrap_or(0.0) / 4.0;
        reference.min(0.3 * target).max(0.001)
    }

    /// Counts a lost packet, as so many of the first size: what is acknowledged is counted so too,
    /// and longer packets would make the share of losses look smaller than it is.
    pub(super) fn on_lost(&mut self, packets: f64) {
        self.round += packets;
        self.round_lost += packets;
    }

    /// Whether a counted loss is a sign of congestion.
    pub(super) fn is_congestion(&mut self, loss: Conditions) -> bool {
        let Conditions {
            queueing,
            window,
            target,
            ..
        } = loss;
        let share = self.share();
        let is_heavy = |least: f64| self.round_lost > MAX_LOSSES && self.round_lost > least;
        if loss.is_slow_start {
            return queueing > target || is_heavy(MAX_LOSS_SHARE * self.round.max(window / 2.0));
        }
        if self.is_delay_informative(loss.base) && queueing < self.low(target) {
            return is_heavy((MAX_LOSS_SHARE + 2.0 * share) * window);
        }
        self.round_suspect += loss.packets;
        let expected = share * window.max(1.0);
        self.round_suspect > expected + 2.0 * expected.sqrt()
    }

    /// A loss was a sign of congestion.
    pub(super) fn on_congestion(&mut self, queueing: f64) {
        self.full = if self.full.is_finite() {
            (self.full + queueing) / 2.0
        } else {
            queueing
        };
        (self.round_lost, self.round_suspect) = (0.0, 0.0);
    }

    /// The window was reduced.
    pub(super) fn on_reduction(&mut self) {
        let largest = std::mem::take(&mut self.largest);
        self.reference = Some(match self.reference {
            Some(reference) => (reference + largest) / 2.0,
            None => largest,
        });
    }

    /// Whether the queue holds so little that loss alone bounds its delay.
    pub(super) fn is_queue_short(&self, target: f64) -> bool {
        self.full < 2.0 * target
    }

    pub(super) fn begin_round(&mut self, srtt: f64) {
        (self.round, self.round_lost, self.round_suspect) = (0.0, 0.0, 0.0);
        let fade = 1.0 - (srtt / FADE).min(0.5);
        self.calm *= fade;
        self.calm_lost *= fade;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOSS: Conditions = Conditions {
        packets: 1.0,
        queueing: 0.0,
        window: 100.0,
        is_slow_start: false,
        target: 0.010,
        base: 0.050,
    };

    fn lose(judge: &mut LossJudge, loss: Conditions) -> bool {
        judge.on_lost(1.0);
        judge.is_congestion(loss)
    }

    #[test]
    fn the_first_loss_with_a_queue_is_congestion() {
        let queue = Conditions {
            packets: 1.0,
            queueing: 0.005,
            ..LOSS
        };
        assert!(lose(&mut LossJudge::new(), queue));
    }

    #[test]
    fn losses_without_a_queue_are_ignored_up_to_a_share_of_the_window() {
        let mut judge = LossJudge::new();
        let ignored = (0..100).take_while(|_| !lose(&mut judge, LOSS)).count();
        assert_eq!(ignored, 15);
        judge.begin_round(0.05);
        assert!(!lose(&mut judge, LOSS));
    }

    #[test]
    fn a_path_without_a_measurable_queue_may_lose_what_it_loses_anyway() {
        let mut judge = LossJudge::new();
        // Reductions at which no delay was seen.
        (0..8).for_each(|_| judge.on_reduction());
        assert!(!judge.is_delay_informative(LOSS.base));
        assert!(lose(&mut judge, LOSS), "nothing is known of the path");
        for _ in 0..20 {
            judge.on_acked(98.0, true);
            judge.on_calm_loss(1.0);
            judge.on_calm_loss(1.0);
        }
        assert!((0.019..0.021).contains(&judge.share()), "{}", judge.share());
        judge.begin_round(0.05);
        let ignored = (0..100).take_while(|_| !lose(&mut judge, LOSS)).count();
        assert_eq!(ignored, 4);
    }

    #[test]
    fn what_was_learnt_fades() {
        let mut judge = LossJudge::new();
        judge.on_acked(3000.0, true);
        (0..100).for_each(|_| judge.on_calm_loss(1.0));
        let before = judge.share();
        (0..2000).for_each(|_| judge.begin_round(0.05));
        assert!(judge.share() < before / 3.0);
    }
}
