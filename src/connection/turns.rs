//! Whose turn it is to send data: the greatest priority first, and in turns within one.

use std::collections::VecDeque;

use crate::carrier::ChannelId;

/// A place in the order. Another one replaces it when the priority changes: what is left of it in
/// the order is skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    priority: i32,
    stamp: u32,
}

impl Turn {
    pub(super) fn priority(self) -> i32 {
        self.priority
    }
}

/// Those of one priority.
#[derive(Debug)]
struct Level {
    priority: i32,
    queue: VecDeque<(ChannelId, Turn)>,
}

/// The order in which substreams send. Work per frame does not depend on their number, only on that
/// of the priorities in use.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// The greatest priority first.
    levels: Vec<Level>,
    len: usize,
    next_stamp: u32,
}

impl Turns {
    /// Whether some may have to wait for others of a greater priority.
    pub(super) fn has_priorities(&self) -> bool {
        self.levels.len() > 1
    }

    /// Places, including those that are left of others.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    fn queue(&mut self, priority: i32) -> &mut VecDeque<(ChannelId, Turn)> {
        let found = self
            .levels
            .binary_search_by(|level| priority.cmp(&level.priority));
        let index = found.unwrap_or_else(|index| {
            // Idle connections keep it: the usual one level is not given room for four.
            self.levels.reserve_exact(1);
            let queue = VecDeque::with_capacity(1);
            self.levels.insert(index, Level { priority, queue });
            index
        });
        &mut self.levels[index].queue
    }

    /// The last place of a priority.
    pub(super) fn push_back(&mut self, channel: ChannelId, priority: i32) -> Turn {
        let stamp = self.next_stamp;
        // Far fewer places than numbers exist at a time.
        self.next_stamp = self.next_stamp.wrapping_add(1);
        let turn = Turn { priority, stamp };
        self.queue(priority).push_back((channel, turn));
        self.len += 1;
        turn
    }

    /// Returns a turn that could not be used.
    pub(super) fn push_front(&mut self, channel: ChannelId, turn: Turn) {
        self.queue(turn.priority).push_front((channel, turn));
        self.len += 1;
    }

    /// Takes the first place.
    pub(super) fn pop(&mut self) -> Option<(ChannelId, Turn)> {
        loop {
            let level = self.levels.first_mut()?;
            if let Some(first) = level.queue.pop_front() {
                self.len -= 1;
                return Some(first);
            }
            // The last one keeps its memory.
            if self.levels.len() == 1 {
                return None;
            }
            self.levels.remove(0);
        }
    }

    pub(super) fn retain(&mut self, is_current: impl Fn(ChannelId, Turn) -> bool) {
        for level in &mut self.levels {
            let is_current = |(channel, turn): &(_, _)| is_current(*channel, *turn);
            level.queue.retain(is_current);
        }
        self.levels.retain(|level| !level.queue.is_empty());
        self.len = self.levels.iter().map(|level| level.queue.len()).sum();
    }

    pub(super) fn clear(&mut self) {
        self.levels.clear();
        self.len = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(number: u64) -> ChannelId {
        ChannelId::new(number)
    }

    fn order(turns: &mut Turns) -> Vec<u64> {
        std::iter::from_fn(|| turns.pop().map(|(channel, _)| channel.get())).collect()
    }

    #[test]
    fn the_greatest_priority_comes_first_and_equal_ones_in_turns() {
        let mut turns = Turns::default();
        for (number, priority) in [(1, 0), (2, -5), (3, 7), (4, 0), (5, 7), (6, i32::MAX)] {
            turns.push_back(channel(number), priority);
        }
        assert_eq!(turns.len(), 6);
        assert_eq!(order(&mut turns), [6, 3, 5, 1, 4, 2]);
        assert_eq!(turns.len(), 0);
        assert!(turns.levels.len() <= 1, "{turns:?}");
    }

    #[test]
    fn a_turn_that_could_not_be_used_stays_first_of_its_priority() {
        let mut turns = Turns::default();
        turns.push_back(channel(1), 0);
        turns.push_back(channel(2), 0);
        let (first, turn) = turns.pop().unwrap();
        turns.push_front(first, turn);
        turns.push_back(channel(3), 1);
        assert_eq!(order(&mut turns), [3, 1, 2]);
    }

    #[test]
    fn places_that_are_not_current_are_removed() {
        let mut turns = Turns::default();
        let places: Vec<Turn> = (0..10).map(|n| turns.push_back(channel(1), n)).collect();
        let last = *places.last().unwrap();
        turns.retain(|_, turn| turn == last);
        assert_eq!((turns.len(), turns.levels.len()), (1, 1));
        assert_eq!(order(&mut turns), [1]);
    }
}
