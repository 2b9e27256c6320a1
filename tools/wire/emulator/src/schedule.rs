//! Values that change at given times.

use std::time::Duration;

/// A value that changes at given times since the start.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Schedule<T> {
    /// By time; the first is at zero.
    steps: Vec<(Duration, T)>,
}

impl<T: Copy> Schedule<T> {
    /// A value that never changes.
    pub(crate) fn constant(value: T) -> Self {
        Self {
            steps: vec![(Duration::ZERO, value)],
        }
    }

    /// Values with their times. The first has to be at zero and times have to increase.
    pub(crate) fn new(steps: Vec<(Duration, T)>) -> Option<Self> {
        let starts_at_zero = steps.first()?.0.is_zero();
        let increases = steps.is_sorted_by(|a, b| a.0 < b.0);
        (starts_at_zero && increases).then_some(Self { steps })
    }

    /// The value at `time`.
    pub(crate) fn at(&self, time: Duration) -> T {
        let after = self.steps.partition_point(|(from, _)| *from <= time);
        // The first step is at zero, so that at least one is not after `time`.
        self.steps[after - 1].1
    }

    /// When the value changes next after `time`.
    pub(crate) fn next_change(&self, time: Duration) -> Option<Duration> {
        let after = self.steps.partition_point(|(from, _)| *from <= time);
        self.steps.get(after).map(|(from, _)| *from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_value_holds_until_the_next_step() {
        let schedule = Schedule::new(vec![(Duration::ZERO, 5), (SECOND, 7)]).expect("sorted");
        assert_eq!(schedule.at(Duration::ZERO), 5);
        assert_eq!(schedule.at(SECOND - Duration::from_nanos(1)), 5);
        assert_eq!(schedule.at(SECOND), 7);
        assert_eq!(schedule.next_change(Duration::ZERO), Some(SECOND));
        assert_eq!(schedule.next_change(SECOND), None);
    }

    #[test]
    fn steps_start_at_zero_and_increase() {
        assert_eq!(Schedule::<u8>::new(vec![]), None);
        assert_eq!(Schedule::new(vec![(SECOND, 1)]), None);
        let twice = vec![(Duration::ZERO, 1), (SECOND, 2), (SECOND, 3)];
        assert_eq!(Schedule::new(twice), None);
        assert_eq!(Schedule::constant(3).at(SECOND), 3);
    }
}
