//! Whether somebody else fills the queue.
//!
//! A reduction by delay shortens the queue if it is our own. If the delay stays, another sender
//! fills it: then yielding to delay would leave everything to the other, and this sender competes
//! as CUBIC does, by loss alone.

/// Round trips in which the delay has to fall after a reduction.
const WATCHED: u32 = 3;

/// The part of the expected fall that is enough.
const ENOUGH: f64 = 0.6;

/// Round trips with little delay that end a competition.
const QUIET: u32 = 10;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rivals {
    /// Nobody else fills the queue, as far as is known.
    None,
    /// The window was reduced because of delay.
    Watching(Reduction),
    /// Somebody else fills the queue.
    Competing {
        /// Round trips with little delay.
        quiet: u32,
    },
}

/// A reduction by delay whose effect is awaited. Delays are in seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reduction {
    rounds_left: u32,
    /// Minimum RTT of the round trip before.
    rtt: f64,
    /// The fall that would be enough.
    enough: f64,
    /// cwnd before.
    window: f64,
}

impl Rivals {
    /// The window was reduced by `factor` because of `queueing`.
    pub(super) fn watch(window: f64, rtt: f64, queueing: f64, factor: f64) -> Self {
        Self::Watching(Reduction {
            rounds_left: WATCHED,
            rtt,
            enough: ENOUGH * (rtt * (1.0 - factor)).min(queueing),
            window,
        })
    }

    pub(super) fn compete() -> Self {
        Self::Competing { quiet: 0 }
    }

    pub(super) fn is_competing(&self) -> bool {
        matches!(self, Self::Competing { .. })
    }

    /// A round trip has ended, of which this was the minimum RTT. Returns the window to go back to
    /// if competition begins.
    pub(super) fn on_round(&mut self, min_rtt: f64, is_quiet: bool) -> Option<f64> {
        match self {
            Self::None => {}
            Self::Watching(reduction) => {
                reduction.rounds_left -= 1;
                if reduction.rtt - min_rtt >= reduction.enough {
                    *self = Self::None;
                } else if reduction.rounds_left == 0 {
                    let window = reduction.window;
                    *self = Self::Competing { quiet: 0 };
                    return Some(window);
                }
            }
            Self::Competing { quiet } => {
                *quiet = if is_quiet { *quiet + 1 } else { 0 };
                if *quiet >= QUIET {
                    *self = Self::None;
                }
            }
        }
        None
    }

    /// The window was reduced because of a loss: the effect of an earlier reduction is not known
    /// any more.
    pub(super) fn on_congestion(&mut self) {
        if let Self::Watching(_) = self {
            *self = Self::None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_that_falls_was_our_own() {
        let mut rivals = Rivals::watch(100.0, 0.080, 0.030, 0.8);
        assert_eq!(rivals.on_round(0.078, false), None);
        assert_eq!(rivals.on_round(0.065, false), None);
        assert!(matches!(rivals, Rivals::None));
    }

    #[test]
    fn a_delay_that_stays_is_anothers_until_it_has_been_low_for_ten_round_trips() {
        let mut rivals = Rivals::watch(100.0, 0.080, 0.030, 0.8);
        assert_eq!(rivals.on_round(0.079, false), None);
        assert_eq!(rivals.on_round(0.078, false), None);
        assert_eq!(rivals.on_round(0.079, false), Some(100.0));
        for _ in 0..3 {
            (0..QUIET - 1).for_each(|_| assert_eq!(rivals.on_round(0.050, true), None));
            assert!(rivals.is_competing());
            rivals.on_round(0.080, false);
        }
        (0..QUIET).for_each(|_| assert_eq!(rivals.on_round(0.050, true), None));
        assert!(!rivals.is_competing());
    }
}
